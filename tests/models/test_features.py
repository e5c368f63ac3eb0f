"""Backbones that stop where they may, and the cache that gives the same features as the pass."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from models import features
from models.base import ModelError
from models.features import CHUNK, FeatureCache, architecture, backbone, extract
from models.nn.memory import noted
from models.nn.preprocess import Preprocess
from models.weights import WeightsError, WeightStore

TAG = "resnet18.tv_in1k"
SMALL = Preprocess((64, 64))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A directory with a random ResNet-18 without layer4 and fc."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    net = architecture(TAG)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    kept = {k: v for k, v in net.state_dict().items() if not k.startswith(("layer4", "fc"))}
    torch.save(kept, folder / f"{TAG}.trunk.pth")
    return folder, net.eval()


def near(found, expected):
    """Within a hundred thousandth of the range."""
    return (found - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (70, 60 + i, 3), dtype=np.uint8) for i in range(count)]


def test_features_equal_the_whole_networks(weights):
    folder, whole = weights
    net = backbone(TAG, ["layer1", "layer3"], WeightStore(folder))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = net(x)
        y = whole.maxpool(whole.act1(whole.bn1(whole.conv1(x))))
        first = whole.layer1(y)
        third = whole.layer3(whole.layer2(first))
    assert list(found) == ["layer1", "layer3"]
    assert near(found["layer1"], first) and near(found["layer3"], third)
    assert net.channels == {"layer1": 64, "layer3": 256}
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.train().modules())
    assert not any(name.startswith("net.layer4.0") for name, _ in net.named_parameters())


def test_deeper_layers_than_the_file_has_are_refused(weights):
    with pytest.raises(WeightsError, match=r"lacks .* first 'layer4"):
        backbone(TAG, ["layer4"], WeightStore(weights[0]))


def test_wrong_shapes_are_refused(tmp_path, weights):
    state = torch.load(next(weights[0].glob("*.pth")), weights_only=True)
    torch.save({**state, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, tmp_path / f"{TAG}.pth")
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight.*\(64, 64, 1, 1\).*\(64, 64, 3, 3\)"):
        backbone(TAG, ["layer1"], WeightStore(tmp_path))


def test_a_relu_in_place_does_not_reach_the_features_before_it():
    net = backbone("vgg11.tv_in1k", ["features.3", "features.4"], WeightStore("none"))
    found = net(torch.randn(1, 3, 32, 32))
    assert found["features.3"].min() < 0
    assert torch.equal(found["features.4"], found["features.3"].relu())


@pytest.mark.parametrize(("tag", "layer", "channels"), [
    ("squeezenet1_1.tv_in1k", "features.5", 128),  # torchvision only
    ("efficientnet_b0.tv_in1k", "features.2", 24),  # torchvision's names, since these weights are its own
    ("tf_efficientnet_b0.ns_jft_in1k", "blocks.1", 24),  # timm's
])
def test_layer_names_are_the_networks_own(tag, layer, channels):
    assert backbone(tag, [layer], WeightStore("none")).channels == {layer: channels}


def test_unknown_names_suggest_near_ones():
    with pytest.raises(ModelError, match="layer2"):
        backbone(TAG, ["layer22"], WeightStore("none"))
    with pytest.raises(ModelError, match="resnet18"):
        backbone("resnet81.tv_in1k", ["layer1"], WeightStore("none"))
    with pytest.raises(ModelError, match="at least one layer"):
        backbone(TAG, [], WeightStore("none"))


def test_untrained_weights_are_the_same_every_time_and_leave_the_random_state():
    torch.manual_seed(1)
    first = backbone(TAG, ["layer1"], WeightStore("none"))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    second = backbone(TAG, ["layer1"], WeightStore("none"))
    assert torch.equal(first.net.conv1.weight, second.net.conv1.weight)


def test_cache_gives_the_same_bits_and_counts(weights):
    store = WeightStore(weights[0])
    net, images, cache = backbone(TAG, ["layer1", "layer2"], store), pictures(CHUNK + 3), FeatureCache()
    plain = list(extract(net, SMALL, images, "cpu"))
    first = list(extract(net, SMALL, images, "cpu", cache))
    second = list(extract(backbone(TAG, ["layer2"], store), SMALL, images, "cpu", cache))
    assert [len(p["layer2"]) for p in plain] == [CHUNK, 3]
    for a, b, c in zip(plain, first, second, strict=True):
        assert torch.equal(a["layer1"], b["layer1"]) and torch.equal(a["layer2"], b["layer2"])
        assert list(c) == ["layer2"] and torch.equal(a["layer2"], c["layer2"])
    assert (cache.stats["computed"], cache.stats["reused"]) == (CHUNK + 3, CHUNK + 3)
    assert cache.stats["bytes"] == sum(t.nbytes for part in plain for t in part.values())


@pytest.mark.parametrize("change", ["pixel", "preprocess", "weights", "layer"])
def test_cache_is_passed_over_when_anything_differs(weights, change):
    store = WeightStore(weights[0])
    images, cache = pictures(3), FeatureCache()
    list(extract(backbone(TAG, ["layer1"], store), SMALL, images, "cpu", cache))
    net, preprocess = backbone(TAG, ["layer2" if change == "layer" else "layer1"], store), SMALL
    if change == "pixel":
        images[1][5, 5, 1] ^= 1
    if change == "preprocess":
        preprocess = Preprocess((64, 64), normalise=False)
    if change == "weights":
        net = backbone(TAG, ["layer1"], WeightStore("none"))
    found = list(extract(net, preprocess, images, "cpu", cache))
    assert cache.stats["reused"] == 0 and cache.stats["computed"] == 6
    plain = list(extract(net, preprocess, images, "cpu"))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(found, plain, strict=True) for k in a)


def test_cache_keeps_to_its_limit(weights):
    net, images = backbone(TAG, ["layer1"], WeightStore(weights[0])), pictures(3 * CHUNK)
    one = sum(t.nbytes for t in next(iter(extract(net, SMALL, images, "cpu"))).values())
    cache = FeatureCache(limit=int(1.5 * one))
    for _ in range(2):
        list(extract(net, SMALL, images, "cpu", cache))
    counts = {name: cache.stats[name] for name in ("computed", "reused", "bytes", "full")}
    assert counts == {"computed": 5 * CHUNK, "reused": CHUNK, "bytes": one, "full": 4 * CHUNK}
    assert cache.stats["compute_s"] > cache.stats["saved_s"] > 0
    cache.begin()
    assert cache.stats == {"computed": 0, "reused": 0, "full": 0, "compute_s": 0, "saved_s": 0, "bytes": one}


def test_features_that_no_later_unit_asks_for_make_room(weights):
    net, images = backbone(TAG, ["layer1"], WeightStore(weights[0])), pictures(2 * CHUNK)
    one = sum(t.nbytes for part in extract(net, SMALL, images, "cpu") for t in part.values())
    cache, other = FeatureCache(limit=int(1.5 * one)), Preprocess((64, 64), normalise=False)

    def reused(preprocess):
        before = cache.stats["reused"]
        list(extract(net, preprocess, images, "cpu", cache))
        return cache.stats["reused"] - before

    reused(SMALL)
    reused(other)  # the same unit: what it has used stays, there is room for half of the new
    assert (reused(SMALL), reused(other)) == (2 * CHUNK, CHUNK) and cache.stats["bytes"] == int(1.5 * one)
    cache.begin()
    assert reused(other) == CHUNK  # the rest of it takes the place of the other group
    assert reused(other) == 2 * CHUNK and cache.stats["bytes"] == one
    cache.clear()
    assert reused(other) == 0 and cache.stats["bytes"] == one


def test_room_is_a_quarter_of_what_is_free(monkeypatch, weights):
    monkeypatch.setattr(features, "available", lambda device: 400)
    cache = FeatureCache()
    list(extract(backbone(TAG, ["layer1"], WeightStore(weights[0])), SMALL, pictures(2), "cpu", cache))
    assert cache.limit == 100 and cache.stats["full"] == 2 and cache.stats["bytes"] == 0
    monkeypatch.setattr(features, "available", lambda device: 1 << 50)
    assert features.room("cpu") == 4 << 30


def test_features_kept_while_predicting_can_be_trained_on(weights):
    net, images, cache = backbone(TAG, ["layer1"], WeightStore(weights[0])), pictures(2), FeatureCache()
    with torch.inference_mode():
        list(extract(net, SMALL, images, "cpu", cache))
    (found,) = extract(net, SMALL, images, "cpu", cache)
    head = torch.nn.Conv2d(64, 1, 1)
    head(found["layer1"]).mean().backward()
    assert cache.stats["reused"] == 2 and head.weight.grad is not None


@pytest.mark.parametrize("cached", [False, True])
def test_a_pass_that_exceeds_the_memory_runs_in_halves(weights, monkeypatch, cached):
    net, images = backbone(TAG, ["layer1"], WeightStore(weights[0])), pictures(CHUNK + 3)
    plain, sizes = list(extract(net, SMALL, images, "cpu")), []
    real = net.net.forward

    def forward(x):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(x)

    monkeypatch.setattr(net.net, "forward", forward)
    with noted() as notes:
        found = list(extract(net, SMALL, images, "cpu", FeatureCache() if cached else None))
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]  # the second chunk starts at what fitted
    assert [len(part["layer1"]) for part in found] == [CHUNK, 3]
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b)
    assert notes[-1] == f"out of memory: features of {TAG} are taken 2 at a time instead of 4"


def test_bf16_is_near_float32_kept_apart_and_off_by_default(weights):
    net, images, cache = backbone(TAG, ["layer2"], WeightStore(weights[0])), pictures(4), FeatureCache()
    (full,) = extract(net, SMALL, images, "cpu", cache)
    with features.precision("bf16"), noted() as notes:
        (low,) = extract(net, SMALL, images, "cpu", cache)
    (again,) = extract(net, SMALL, images, "cpu", cache)
    assert low["layer2"].dtype == torch.float32 and torch.equal(full["layer2"], again["layer2"])
    assert 0 < (low["layer2"] - full["layer2"]).abs().max() < 0.1 * full["layer2"].abs().max()
    assert cache.stats["computed"] == 8 and cache.stats["reused"] == 4 and "bf16" in notes[0]
    with pytest.raises(ModelError, match="use float32 or tf32 or bf16"), features.precision("fp8"):
        pass


def test_channels_last_stays_within_the_backbone(weights):
    net, seen = backbone(TAG, ["layer1", "layer3"], WeightStore(weights[0])), []
    net.net.layer2.register_forward_hook(lambda module, inputs, output: seen.append(output))
    (last,) = extract(net, SMALL, pictures(3), "cpu")
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()
    assert all(tensor.is_contiguous() for tensor in last.values())


def norms(net):
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())


def test_batch_norms_are_folded_into_convolutions_where_nothing_asks_for_them(weights):
    store, x = WeightStore(weights[0]), torch.randn(2, 3, 64, 64)
    folded, plain = backbone(TAG, ["layer1", "layer3"], store), backbone(TAG, ["layer1", "layer3"], store, trained=True)
    assert norms(folded) == 0 and norms(plain) == 15 and plain.form == "channels last" == store.forms[TAG]
    assert folded.form == "channels last, batch norm folded"
    found, expected = folded(x), plain(x)
    assert all(near(found[k], expected[k]) for k in expected) and not torch.equal(found["layer3"], expected["layer3"])
    for layer in ("bn1", "layer2.0.conv1"):
        asked = backbone(TAG, [layer, "layer3"], store)
        assert asked.form == "channels last" and near(asked(x)["layer3"], expected["layer3"])


def test_batch_norms_stay_where_the_convolution_has_another_reader(monkeypatch):
    class Skips(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.bn.running_mean += 1
            self.end = torch.nn.ReLU()

        def forward(self, x):
            x = self.conv(x)
            return self.end(self.bn(x) + x)

    monkeypatch.setattr(features, "architecture", lambda tag: Skips())
    net, x = backbone("skips", ["end"], WeightStore("none")), torch.randn(1, 3, 16, 16)
    made = net.net.conv(x)
    assert net.form == "channels last" and near(net(x)["end"], (made + (made - 1) / (1 + 1e-5) ** 0.5).relu())


def test_features_of_two_forms_are_kept_apart(weights):
    store, images, cache = WeightStore(weights[0]), pictures(3), FeatureCache()
    for trained in (False, True):
        list(extract(backbone(TAG, ["layer1"], store, trained=trained), SMALL, images, "cpu", cache))
    assert (cache.stats["computed"], cache.stats["reused"]) == (6, 0)


@pytest.mark.real
def test_real_partial_file_suffices_for_two_layers_only(real):
    store = WeightStore(real / "weights")
    assert backbone(TAG, ["layer2", "layer3"], store).channels == {"layer2": 128, "layer3": 256}
    assert store.used[TAG]["file"] == "resnet18.tv_in1k.layers1-3.pth"
    with pytest.raises(WeightsError, match="layer4"):
        backbone(TAG, ["layer3", "layer4"], store)


@pytest.mark.parametrize("used", [False, True])
def test_a_network_is_freed_with_its_last_reference(weights, used):
    """Held in a circle, it would stay on the device until Python next looks for circles."""
    net = backbone(TAG, ["layer1", "layer2"], WeightStore(weights[0]))
    if used:
        list(extract(net, SMALL, pictures(2), "cpu", FeatureCache()))
    whole, inner = weakref.ref(net), weakref.ref(net.net.conv1)
    gc.collect()
    gc.disable()
    try:
        del net
        assert whole() is None and inner() is None
    finally:
        gc.enable()


def test_pixels_are_hashed_once_a_pass_and_not_where_nothing_can_be_kept(weights, monkeypatch):
    hashed, digest = [], features._digest
    monkeypatch.setattr(features, "_digest", lambda seen: (hashed.append(len(seen)), digest(seen))[1])
    net = backbone(TAG, ["layer1"], WeightStore(weights[0]))
    cache, images = FeatureCache(), pictures(CHUNK + 3)
    for _ in range(2):
        list(extract(net, SMALL, images, "cpu", cache))
    assert hashed == [CHUNK, 3] * 2 and cache.stats["reused"] == len(images)
    cache.give_up()
    plain = list(extract(net, SMALL, images, "cpu"))
    found = list(extract(net, SMALL, images, "cpu", cache))
    assert len(hashed) == 4, "a cache that keeps nothing needs no digest"
    assert cache.stats["full"] == len(images) and cache.stats["computed"] == 2 * len(images)
    assert all(torch.equal(a["layer1"], b["layer1"]) for a, b in zip(plain, found, strict=True))


def test_a_digest_tells_sizes_order_and_values_apart():
    one = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    other = one.copy()
    other[1, 3, 2] += 1
    cases = [[one], [one.reshape(4, 2, 3)], [other], [one, other], [other, one], [one, one]]
    assert len({features._digest(case) for case in cases}) == len(cases)
    assert features._digest([one[:, ::-1]]) == features._digest([np.ascontiguousarray(one[:, ::-1])])
