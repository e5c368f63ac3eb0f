"""Feature ensembles: blocks against scikit-learn, shared members, alignment of fields of view, and wrong wishes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from models import registry
from models.base import Context, ModelError
from models.ensembles import feature_ensemble
from models.ensembles.feature_ensemble import FeatureEnsemble, FeatureEnsembleConfig
from models.ensembles.grid import Squares, from_square, to_grid
from models.ensembles.maps import MapStore, kept_maps
from models.ensembles.members import build_members, fit_members
from models.ensembles.projection import Block, spread
from models.ensembles.unseen import hold_out, overall
from models.nn import training
from models.nn.preprocess import Preprocess
from models.weights import WeightStore
from tests.conftest import picture

THREE = ("fake_maps@one", "fake_maps@two", "fake_maps@crop")
CONFIG = FeatureEnsembleConfig(
    members=THREE, grid=8, maps=10, hidden=32, epochs=30, train_batch=4, size=64, sigma=1.0, lr=2e-3, noise_std=(0.3,)
)


def context(shared: dict | None = None, folder: Path | None = None, scratch: Path | None = None) -> Context:
    extras = {"members": {} if shared is None else shared, "member_dir": folder}
    return Context(device=torch.device("cpu"), seed=0, weights=WeightStore("none"), scratch=scratch, extras=extras)


def pictures(count: int, seed: int = 0, spots: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    made = [picture(rng, (48, 60)) for _ in range(count)]
    for image in made if spots else ():
        top, left = rng.integers(4, 30, 2)
        image[top : top + 12, left : left + 12] = 250
    return made


def fitted(where: Context, **settings: Any) -> tuple[FeatureEnsemble, dict[str, Any]]:
    torch.manual_seed(0)
    ensemble = FeatureEnsemble(dataclasses.replace(CONFIG, **settings), where)
    return ensemble, ensemble.fit(pictures(20), None)


def members_and_stores(specs: tuple[str, ...]) -> tuple[list, list]:
    where, train = context(), pictures(12)
    members = build_members(specs, where, "test", features=True)
    fit_members(members, hold_out(train, None, 0.2, where), where, lambda *_, **__: None)
    return members, kept_maps(members, train, 1.0, None)


def all_maps(stores: list) -> list[list[torch.Tensor]]:
    device = torch.device("cpu")
    return [[torch.cat([s.read(0, device), s.read(8, device)]) for s in own] for own in stores]


@pytest.mark.parametrize("scaling", ["none", "member", "channel"])
def test_global_block_is_scikit_learns_pca_of_the_concatenated_maps(scaling: str) -> None:
    members, stores = members_and_stores(THREE)
    block = Block("global", 8)
    config = dataclasses.replace(CONFIG, scaling=scaling)
    log = block.fit(members, stores, config, torch.Generator().manual_seed(0), torch.device("cpu"))
    maps = all_maps(stores)
    found = block(maps, members).permute(0, 2, 3, 1).flatten(0, 2).numpy()

    rows = torch.cat([
        to_grid(m, member.detector.preprocess, 8) for member, own in zip(members, maps, strict=True) for m in own
    ], 1).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    widths = [6, 8 + 12, 5]
    if scaling == "channel":
        rows = rows / rows.std(0, ddof=1)
    if scaling == "member":
        parts = np.split(rows, np.cumsum(widths)[:-1], 1)
        rows = np.concatenate([p / np.sqrt(p.var(0, ddof=1).mean()) for p in parts], 1)
    theirs = PCA(10, svd_solver="full").fit(rows)
    expected = theirs.transform(rows) / np.sqrt(theirs.explained_variance_.mean())
    expected *= np.sign((expected * found).sum(0))
    assert np.abs(found - expected).max() < 1e-4
    assert found.var(0, ddof=1).mean() == pytest.approx(1, abs=1e-4)
    assert log["maps"] == 10 and log["explained"] == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-4)
    assert sum(log["loading"].values()) == pytest.approx(1, abs=1e-3)


def test_independent_block_keeps_exactly_the_number_asked_for() -> None:
    members, stores = members_and_stores(THREE)
    for wanted, total in (((4,), 12), ((3, 11, 5), 19), ((6, 20, 5), 31)):
        block = Block("independent", 8)
        config = dataclasses.replace(CONFIG, member_maps=wanted)
        log = block.fit(members, stores, config, torch.Generator().manual_seed(0), torch.device("cpu"))
        assert block(all_maps(stores), members).shape == (12, total, 8, 8) and log["maps"] == total


def test_independent_block_is_a_pca_per_map_before_the_resize() -> None:
    members, stores = members_and_stores(("fake_maps@one", "fake_maps@two"))
    block = Block("independent", 8)
    config = dataclasses.replace(CONFIG, member_maps=(5,), whiten=True)
    block.fit(members, stores, config, torch.Generator().manual_seed(0), torch.device("cpu"))
    maps = all_maps(stores)
    coarse = maps[1][1]  # the second scale of the second member, 16 x 16: two of its five components
    theirs = PCA(2, whiten=True, svd_solver="full").fit(coarse.permute(0, 2, 3, 1).flatten(0, 2).double().numpy())
    rows = theirs.transform(coarse.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()).reshape(12, 16, 16, 2)
    expected = to_grid(torch.from_numpy(rows).permute(0, 3, 1, 2).float(), members[1].detector.preprocess, 8)
    found = block(maps, members)[:, -2:]
    expected *= (expected * found).sum((0, 2, 3)).sign()[:, None, None]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("whiten", [False, True])
def test_share_of_variance_and_whitening(whiten: bool) -> None:
    members, stores = members_and_stores(THREE)
    block = Block("global", 8)
    config = dataclasses.replace(CONFIG, variance=0.9, whiten=whiten)
    log = block.fit(members, stores, config, torch.Generator().manual_seed(0), torch.device("cpu"))
    variances = block(all_maps(stores), members).var((0, 2, 3))
    assert log["explained"] >= 0.9 and variances.mean() == pytest.approx(1, abs=1e-2)
    assert bool((variances - 1).abs().max() < 0.01) == whiten


def test_spread_over_scales() -> None:
    assert spread(10, [256, 512, 1024], "m") == [4, 3, 3]
    assert spread(12, [2, 20, 3], "m") == [2, 7, 3]
    with pytest.raises(ModelError, match=r"26 components asked of member draem@x, whose maps have 25 channels \(2, 20"):
        spread(26, [2, 20, 3], "draem@x")
    with pytest.raises(ModelError, match="at least one for each"):
        spread(2, [2, 20, 3], "m")


def test_maps_of_a_cropping_member_lie_where_the_picture_has_them() -> None:
    """A ramp seen through a centre crop must agree with the ramp seen whole, except where the crop saw nothing."""
    ramp = torch.linspace(0, 1, 320).expand(1, 1, 320, 320) * 1.0
    whole = to_grid(F.avg_pool2d(ramp, 10), Preprocess((320, 320)), 16)
    view = Preprocess((320, 320), (240, 240))
    cropped = to_grid(F.avg_pool2d(ramp[..., 40:280, 40:280], 10), view, 16)
    assert whole.shape == cropped.shape == (1, 1, 16, 16)
    torch.testing.assert_close(cropped[..., 3:13], whole[..., 3:13], atol=1e-3, rtol=0)
    assert (cropped[..., 0] - cropped[..., 1]).abs().max() < 1e-6  # outside: the nearest value
    fine = to_grid(ramp, Preprocess((320, 320)), 16)
    torch.testing.assert_close(fine[..., 1:-1], whole[..., 1:-1], atol=5e-3, rtol=0)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (31, 50), (40, 40)])
def test_padding_to_a_square_and_back(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = F.interpolate(torch.from_numpy(rng.random((1, 3, 6, 6))), shape, mode="bilinear")[0]
    picture = (picture.permute(1, 2, 0) * 255).byte().numpy()
    padded = Squares([picture])[0]
    side, (height, width) = max(shape), shape
    assert padded.shape == (side, side, 3)
    top, left = (side - height) // 2, (side - width) // 2
    assert np.array_equal(padded[top : top + height, left : left + width], picture)
    assert (padded[0] == padded[top]).all() and (padded[:, -1] == padded[:, left + width - 1]).all()
    maps = F.interpolate(torch.from_numpy(padded).float().mean(2)[None, None], (200, 200), mode="bilinear")[0]
    found = from_square(maps, [shape])
    expected = F.interpolate(torch.from_numpy(picture).float().mean(2)[None, None], (200, 200), mode="bilinear")[0]
    torch.testing.assert_close(found, expected, atol=3.0, rtol=0)


def test_padded_ensembles_have_members_of_their_own_and_find_spots_where_they_are() -> None:
    shared: dict = {}
    plain = fitted(context(shared))[1]
    ensemble, log = fitted(context(shared), pad_square=True, noise_std=(0.3, 1.0))
    assert set(plain["members"].values()) == {"fitted"} == set(log["members"].values())
    assert log["noise_quality"][f"{log['noise_std']:g}"] > 0.1  # a hundredth of the pixels is anomalous
    test = [picture.copy() for picture in pictures(4, seed=1)]  # 48 x 60
    for image in test:
        image[2:14, 40:52] = 250
    found = ensemble.predict(test).anomaly_map
    peaks = [divmod(int(m.argmax()), 64) for m in found]
    assert all(abs(y - 8 / 48 * 64) < 8 and abs(x - 46 / 60 * 64) < 8 for y, x in peaks), peaks


def test_kept_maps_survive_half_precision_and_files(tmp_path: Path) -> None:
    small = torch.rand(3, 4, 2, 2) * 1e-6  # squared differences of normalised features are as small as this
    for file in (None, tmp_path / "x" / "maps"):
        store = MapStore(5, small, file)
        store.write(1, small)
        torch.testing.assert_close(store.read(0, torch.device("cpu"))[1:4], small, rtol=2e-3, atol=1e-9)
    where, train = context(scratch=tmp_path), pictures(12)
    members = build_members(THREE, where, "test")
    fit_members(members, hold_out(train, None, 0.2, where), where, lambda *_, **__: None)
    in_files = kept_maps(members, train, 0.0, tmp_path)
    assert all(m.kept is None for m in members) and any(tmp_path.iterdir())
    in_memory = kept_maps(members, train, 1.0, tmp_path)
    assert all(m.kept is not None for m in members)
    for a, b in zip(all_maps(in_files), all_maps(in_memory), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_members_are_fitted_once_for_all_ensembles_of_a_category_and_seed(tmp_path: Path) -> None:
    from fake_members import FITS

    registry.method_class("fake_maps")
    FITS.clear()
    shared: dict = {}
    ensembles = [
        fitted(context(shared)),
        fitted(context(shared), block="independent", member_maps=(4,)),
    ]
    torch.manual_seed(0)
    scores = registry.method_class("score_ensemble")(
        registry.config("score_ensemble@demo", {"members": ",".join(THREE)}), context(shared)
    )
    logs = [log for _, log in ensembles] + [scores.fit(pictures(20), None)]
    assert dict(FITS) == {"0": 1, "1": 1, "2": 1}
    assert [set(log["members"].values()) for log in logs] == [{"fitted"}, {"reused"}, {"reused"}]
    assert logs[1]["member_training"]["fake_maps@one"] == {"loss": [0.5], "pictures": 16}
    assert logs[0]["held_out"] == 4
    other_seed = dataclasses.replace(context(), seed=1)
    assert set(fitted(other_seed)[1]["members"].values()) == {"fitted"}


def test_members_are_taken_from_files_of_another_process(tmp_path: Path) -> None:
    from fake_members import FITS

    first, _ = fitted(context({}, tmp_path / "members"))
    FITS.clear()
    second, log = fitted(context({}, tmp_path / "members"))
    assert not FITS and set(log["members"].values()) == {"reused"}
    test = pictures(3, seed=5)
    assert torch.equal(first.predict(test).score, second.predict(test).score)
    for file in (tmp_path / "members").glob("*.pt"):
        file.write_bytes(file.read_bytes()[:100])  # a file cut short is not used
    assert set(fitted(context({}, tmp_path / "members"))[1]["members"].values()) == {"fitted"}


def test_a_reused_member_is_the_same_as_a_fitted_one_and_its_weights_are_recorded() -> None:
    test, shared = pictures(3, seed=5), {}
    fitted(context(shared), members=THREE[1:], maps=5)
    reused, log = fitted(context(shared))
    fresh, _ = fitted(context())
    assert log["members"] == {THREE[0]: "fitted", THREE[1]: "reused", THREE[2]: "reused"}
    assert torch.equal(reused.predict(test).anomaly_map, fresh.predict(test).anomaly_map)
    shared = {}
    for _ in range(2):
        where = context(shared)
        ensemble = FeatureEnsemble(dataclasses.replace(CONFIG, members=("simplenet@demo:epochs=1", THREE[0])), where)
        ensemble.fit(pictures(10), pictures(2), lambda *_, **__: None)
        assert where.weights.used == {"resnet18.tv_in1k": "untrained"}


@pytest.mark.parametrize("settings", [{}, {"block": "independent", "member_maps": (4,), "adapter": True}])
def test_finds_spots_and_comes_back_from_its_state(settings: dict, tmp_path: Path) -> None:
    ensemble, log = fitted(context(scratch=tmp_path), **settings)
    assert log["loss"][-1] < log["loss"][0] and log["epochs"] == 30
    test = pictures(6, seed=1) + pictures(6, seed=2, spots=True)
    found = ensemble.predict(test)
    assert found.anomaly_map.shape == (12, 64, 64)
    assert roc_auc_score([0] * 6 + [1] * 6, found.score) > 0.95
    torch.save(ensemble.state_dict(), tmp_path / "state.pt")
    again = FeatureEnsemble(ensemble.config, context())
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(again.predict(test).anomaly_map, found.anomaly_map)


@pytest.mark.parametrize("validation", [None, 6])
def test_of_several_noise_levels_the_one_that_finds_artificial_anomalies_is_kept(
    validation: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels, train, counts = (1e-4, 0.3, 0.1), pictures(20), []

    def counted(*parts: Any, count: int, **named: Any) -> dict[str, Any]:
        counts.append(count)
        return training.train(*parts, count=count, **named)

    monkeypatch.setattr(feature_ensemble, "train", counted)
    extra = pictures(validation, seed=9) if validation else None
    shared: dict = {}
    torch.manual_seed(0)
    ensemble = FeatureEnsemble(dataclasses.replace(CONFIG, noise_std=levels), context(shared))
    log = ensemble.fit(train, extra)
    qualities = {float(level): value for level, value in log["noise_quality"].items()}
    assert set(qualities) == set(levels) and log["noise_std"] == max(qualities, key=qualities.get)
    assert qualities[1e-4] < qualities[log["noise_std"]] - 0.02  # fakes that cannot be told from normal teach nothing
    found = ensemble._quality(*ensemble._judges(hold_out(train, extra, 0.2, context())))
    assert overall(found) == pytest.approx(qualities[log["noise_std"]], abs=1e-5)  # its head is back
    assert found["faint"] < found["plain"]
    assert counts == [20 if extra else 16] * 3  # held-back pictures judge and are not learnt from


def test_noise_levels_are_judged_where_anomalies_give_huge_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """AST's squared differences on an anomaly are far beyond half precision, in which training features are kept."""
    cls, normal = registry.method_class("fake_maps"), {p.tobytes() for p in pictures(20)}
    plain = cls.feature_maps

    def huge(self: Any, batch: list[np.ndarray]) -> list[torch.Tensor]:
        gain = torch.tensor([1.0 if p.tobytes() in normal else 1e8 for p in batch])[:, None, None, None]
        return [m * gain for m in plain(self, batch)]

    monkeypatch.setattr(cls, "feature_maps", huge)
    _, log = fitted(context(), noise_std=(0.1, 0.3))
    assert len(log["noise_quality"]) == 2


@pytest.mark.parametrize(("members", "message"), [
    (("fake_maps@one",), "at least two members are joined, got only 'fake_maps@one'"),
    ((), "no members; give them as members=a,b"),
    (("fake_maps@one", "fake_maps"), "'fake_maps@one' is named twice"),
    (("fake_maps@one", "fake@plain"), "'fake@plain' gives no feature maps"),
    (("fake_maps@one", "fake_maps@two:aspect=short"), "sees another part of each picture"),
    (("fake_maps@one", "patchcor"), "unknown method 'patchcor'"),
    (("fake_maps@one", "fake_maps@two:seed"), "'seed' is not field=value"),
    (("fake_maps@one", "fake_maps@two:sed=3"), "has no field 'sed', did you mean 'seed'"),
])
def test_wrong_members_are_named(members: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        FeatureEnsemble(dataclasses.replace(CONFIG, members=members), context())


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="32 components asked for, but there are only 31 channels"):
        fitted(context(), maps=32)
    with pytest.raises(ModelError, match="7 components asked of member fake_maps@one, whose maps have 6 channels"):
        fitted(context(), block="independent", member_maps=(7, 5, 5))
    with pytest.raises(ModelError, match="member_maps has 2 numbers for 3 members"):
        fitted(context(), block="independent", member_maps=(3, 3))
    with pytest.raises(ModelError, match=r"holdout=1\.0 must be"):
        fitted(context(), holdout=1.0)
    for wrong in ((), (0.0,), (0.1, -1.0), (0.1, 0.1)):
        with pytest.raises(ModelError, match="give one level above 0, or several different ones"):
            fitted(context(), noise_std=wrong)
    with pytest.raises(ModelError, match=r"members have not seen, and there are none; set holdout above 0"):
        fitted(context(), noise_std=(0.1, 0.2), holdout=0.0)
    with pytest.raises(ModelError, match="no training pictures"):
        FeatureEnsemble(CONFIG, context()).fit([], None)


def test_a_member_that_failed_is_named_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cls, shared, tries = registry.method_class("fake_maps"), {}, []

    def broken(self: Any, *_: Any) -> None:
        tries.append(1)
        raise RuntimeError("no luck")

    monkeypatch.setattr(cls, "fit", broken)
    with pytest.raises(ModelError, match="member fake_maps@one could not be fitted: no luck"):
        fitted(context(shared))
    with pytest.raises(ModelError, match=r"member fake_maps@one failed earlier .*: RuntimeError: no luck"):
        fitted(context(shared))
    assert len(tries) == 1


def test_a_member_with_maps_of_a_wrong_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.method_class("fake_maps"), "feature_maps", lambda self, batch: [torch.zeros(1, 3)])
    with pytest.raises(ModelError, match="member fake_maps@one: feature_maps gave"):
        fitted(context())
