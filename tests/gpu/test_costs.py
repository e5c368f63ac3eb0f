"""Every method fits and predicts on the pretended GPU, and a training step hardly waits for it or copies to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu import costs
from tests.models.test_all_methods import METHODS

OWN = ("cae", "dae", "feature_ensemble", "gen_encdec", "rb_ae", "score_ensemble", "tsdn")
MOST = {  # (waits, copies) a step, where they are not (0, 1); each with its reason
    "draem": (0, 2),  # which pictures are turned comes beside the defects
    "ganomaly": (1, 0),  # the last step's loss decides whether the discriminator starts anew
    "supersimplenet": (0, 2),  # Perlin noise, and which masks are emptied
    "patchcore": (2, 0),  # a block of selections: how many points the bounds left open; and where a graph is captured
    "score_ensemble": (2, 0),  # its member is PatchCore
}


@pytest.mark.parametrize("spec", [
    pytest.param(spec, marks=() if spec.partition("@")[0] in OWN else pytest.mark.slow)
    for spec in [*METHODS, "cae@quick_ssim", "dae@quick_ssim"]
])
def test_a_method_works_on_a_gpu_and_its_steps_keep_to_their_bounds(spec: str, tmp_path: Path) -> None:
    found = costs.measure(spec, tmp_path)
    waits, copies = MOST.get(spec.partition("@")[0], (0, 1))
    assert found.waits <= waits and found.copies <= copies, "\n".join([spec, *found.where])
