"""What goes wrong in models, said so that a person can act on it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModelError(ValueError):
    """A method cannot be built or fitted as asked. The message says what was wrong and what to do."""


def near(word: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for the closest known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f", did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
