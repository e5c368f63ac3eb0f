"""Where members can be cut, against what their own prediction is made of; and which methods can be members."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import registry
from models.base import ModelError
from models.ensembles.members import build_members, fit_members
from models.ensembles.unseen import hold_out
from models.weights import WeightStore
from tests.models.baselines.common import build, pictures
from tests.models.ensembles.test_feature_ensemble import context

METHODS = [name for name in registry.entries() if not name.startswith("fake")]
CUTTABLE = (
    "patchcore", "simplenet", "ast", "draem", "reverse_distillation", "csflow", "anomalydino", "dinomaly", "inp_former",
    "uninet", "glass",
)


def test_reverse_distillation_is_cut_at_signed_differences_or_at_the_student() -> None:
    settings, test = {"size": "64", "sigma": "0"}, pictures(2)
    detector = build("reverse_distillation@quick", settings)
    difference = detector.feature_maps(test)
    student = build("reverse_distillation@quick", {**settings, "cut": "student"}).feature_maps(test)
    assert all(d.min() < 0 < d.max() for d in difference)
    for s in student:
        torch.testing.assert_close(s.norm(dim=1), torch.ones(len(s), *s.shape[-2:]), atol=1e-4, rtol=0)
    # |t - s|^2 of unit vectors is twice the cosine distance that the method scores
    distance = [d.square().sum(1, keepdim=True) / 2 for d in difference]
    full = sum(F.interpolate(d, (64, 64), mode="bilinear", align_corners=True) for d in distance)
    torch.testing.assert_close(full[:, 0], detector.predict(test).anomaly_map, atol=1e-4, rtol=1e-3)


def test_draem_is_cut_at_the_segmentations_last_map_or_bottleneck() -> None:
    test = pictures(2)
    for cut, channels, side in (("decoder", 1, 64), ("bottleneck", 8, 2)):
        detector = build("draem@quick", {"cut": cut, "size": "64"})
        [found] = detector.feature_maps(test)
        assert tuple(found.shape) == (2, channels * detector.config.width, side, side)
        if cut == "decoder":  # the two-channel convolution after it gives the anomaly map
            segment = detector.trained["model"].discriminative_subnetwork.decoder_segment
            expected = segment.fin_out(found).softmax(1)[:, 1]
            torch.testing.assert_close(expected, detector.predict(test).anomaly_map, atol=1e-5, rtol=1e-4)


def test_csflow_is_cut_at_its_latent_or_at_the_square() -> None:
    settings, test = {"size": "128", "hidden": "4", "blocks": "1"}, pictures(1)
    latent = build("csflow@quick", settings).feature_maps(test)
    square = build("csflow@quick", {**settings, "cut": "square"}).feature_maps(test)
    assert len(latent) == 3 and all(torch.equal(a.square(), b) for a, b in zip(latent, square, strict=True))


@pytest.mark.parametrize("name", [*METHODS, "anomalib/padim"])
def test_any_registered_method_can_be_a_member(name: str) -> None:
    preset = next((p for p in ("demo", "quick", "default")
                   if not name.startswith("anomalib/") and p in registry.entries()[name].presets), None)
    spec = f"{name}@{preset}" if preset else name
    where = context()
    [member, _] = build_members((spec, "fake_maps@one"), where, "score_ensemble")
    assert member.detector.name == name
    gives = hasattr(registry.method_class(name), "feature_maps")
    assert gives or name not in CUTTABLE  # further methods may offer maps, the six of the thesis must
    if not gives:
        with pytest.raises(ModelError, match=f"member '{name}@.*' gives no feature maps"):
            build_members((spec, "fake_maps@one"), where, "feature_ensemble", features=True)


@pytest.mark.parametrize("spec", ["padim@demo", "stfpm@demo:epochs=1:size=64", "score_ensemble@demo"])
def test_members_of_other_kinds_are_fitted_saved_and_reused(spec: str, tmp_path) -> None:
    train = pictures(12)
    inner = spec.replace("score_ensemble@demo", "score_ensemble@demo:members=padim@demo,patchcore@demo")
    for how in ("fitted", "reused"):
        where = context({}, tmp_path)
        members = build_members((inner, "fake_maps@one"), where, "score_ensemble")
        log = fit_members(members, hold_out(train, None, 0.2, where), where, lambda *_, **__: None)
        assert log["members"][members[0].spec] == how
        assert torch.isfinite(members[0].detector.predict(train[:2]).anomaly_map).all()
    assert isinstance(where.weights, WeightStore)
