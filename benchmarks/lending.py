"""Which frozen features a unit took from another one, in seconds, so that its cost is told as if it had run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from models.features import FeatureCache


class Lending(FeatureCache):
    """A feature cache that tells what was there before from what the phase itself computed and read again.

    A method that trains on kept features reads them every epoch, and would alone too: only the first reading of a
    picture within a phase (fit, predict) counts as lent.
    """

    def begin(self) -> None:
        """A new unit."""
        super().begin()
        self.turn()

    def turn(self) -> float:
        """A new phase; returns the seconds that computing what the last one took over had cost."""
        lent, self._lent, self._met = getattr(self, "_lent", 0.0), 0.0, set()
        return lent

    def get(
        self, group: Any, pictures: bytes, count: int, layers: Sequence[str], compute: Callable[[], dict[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """As in the base class."""
        before = self.stats["saved_s"]
        found = super().get(group, pictures, count, layers, compute)
        if (group, pictures) not in self._met:
            self._met.add((group, pictures))
            self._lent += self.stats["saved_s"] - before
        return found

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Inside, nothing is taken from what is held and nothing is kept, and no count moves."""
        state = self._held, self.limit, dict(self.stats), set(self._used), self._lent, set(self._met)
        self._held, self.limit = {}, 0
        try:
            yield
        finally:
            self._held, self.limit, self.stats, self._used, self._lent, self._met = state

    def apart(self, look: Callable[[], Any]) -> Any:
        """Call `look`, whose readings belong to no phase (the look at test pictures during training)."""
        lent, met = self._lent, set(self._met)
        try:
            return look()
        finally:
            self._lent, self._met = lent, met
