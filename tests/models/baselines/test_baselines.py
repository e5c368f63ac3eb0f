"""What holds for all baselines: presets pin their weights, and importing a method does not import anomalib."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from models import registry


def test_module_imports_without_anomalib():
    code = "import sys, models.baselines.draem as a, models.baselines.patchcore; sys.exit('anomalib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


def test_presets_pin_weights_and_mark_short_schedules():
    for name in ("patchcore", "padim", "stfpm", "draem", "reverse_distillation", "csflow", "fastflow", "ganomaly",
                 "efficientad", "supersimplenet"):
        presets = registry.entries()[name].presets
        configs = {preset: registry.config(f"{name}@{preset}") for preset in presets}
        small = next(configs[p] for p in ("demo", "quick") if p in configs)
        assert not configs[presets[0]].shortened and small.shortened
        assert all("." in config.backbone for config in configs.values() if hasattr(config, "backbone"))
