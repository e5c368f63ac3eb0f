"""DRAEM against the authors' formulas: loss and gradient, networks, share of defects, map, image score."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.base import ModelError
from models.baselines import draem
from models.nn.focal import focal_loss
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

TINY = {"epochs": "1", "train_batch": "4", "size": "32", "width": "2", "average": "5"}


def authors_focal(probabilities, target):
    """Their formula pixel by pixel: one-hot clamped to [s, 1 - s], p_t = sum(one-hot * p) + s, -(1 - p_t)^2 log p_t."""
    smooth, losses = 1e-5, []
    for (normal, defect), t in zip(probabilities, target, strict=True):
        hot = [min(max(v, smooth), 1 - smooth) for v in (1.0 - t, float(t))]
        p = hot[0] * normal + hot[1] * defect + smooth
        losses.append(-((1 - p) ** 2) * math.log(p))
    return sum(losses) / len(losses)


def authors_ssim(x, y):
    """Their SSIM of one picture [C, H, W]: 11x11 Gaussian of sigma 1.5, zeros outside, range 1, in float64."""
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line / line.sum(), line / line.sum())[None, None]

    def blur(z):
        return F.conv2d(z[:, None], window, padding=5)[:, 0]

    x, y = x.double(), y.double()
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return ((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()


def case():
    """A clean picture, a reconstruction, logits that are wrong by turns, and a mask; one picture of 16 px."""
    random = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 3, 16, 16, generator=random)
    rebuilt = clean + 0.1 * torch.randn(1, 3, 16, 16, generator=random)
    logits = torch.randn(1, 2, 16, 16, generator=random) * 3
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:9, 4:9] = 1
    return clean, rebuilt, logits, mask


def test_loss_is_the_authors():
    clean, rebuilt, logits, mask = case()
    found = draem.draem_loss(clean, rebuilt, logits, mask)
    probabilities = logits.double().softmax(1)[0].flatten(1).T.tolist()
    assert float(found["focal"]) == pytest.approx(authors_focal(probabilities, mask.flatten().tolist()), rel=1e-5)
    assert float(found["ssim"]) == pytest.approx(float(1 - authors_ssim(rebuilt[0], clean[0])), rel=1e-4)
    assert float(found["l2"]) == pytest.approx(float(((rebuilt - clean) ** 2).mean()), rel=1e-6)
    assert float(found["loss"]) == pytest.approx(sum(float(found[k]) for k in ("l2", "ssim", "focal")), rel=1e-6)


def gradients(loss):
    """Mean size of the gradient with respect to the defect logit, on (normal, defective) pixels."""
    clean, rebuilt, logits, mask = case()
    logits.requires_grad_()
    loss(clean, rebuilt, logits, mask)["loss"].backward()
    size = logits.grad[:, 1].abs()
    return float(size[mask[:, 0] == 0].mean()), float(size[mask[:, 0] == 1].mean())


def test_both_kinds_of_pixels_have_a_gradient():
    """d(focal)/d(logit) by hand: with q = 1 - p_t, dL/dp_t = 2 q log p_t - q^2 / p_t, dp_t/dlogit = +-p (1 - p)."""
    normal, defective = gradients(draem.draem_loss)
    _, _, logits, mask = case()
    p = logits.double().softmax(1)[:, 1]
    right = torch.where(mask[:, 0] == 1, p, 1 - p) * (1 - 2e-5) + 2e-5
    slope = (2 * (1 - right) * right.log() - (1 - right) ** 2 / right) * p * (1 - p) * (1 - 2e-5) / mask.numel()
    assert normal == pytest.approx(float(slope.abs()[mask[:, 0] == 0].mean()), rel=1e-4) and normal > 1e-5
    assert defective == pytest.approx(float(slope.abs()[mask[:, 0] == 1].mean()), rel=1e-4) and defective > 1e-5


def test_anomalibs_loss_teaches_normal_pixels_nothing():
    """Why `paper` has its own loss; if this fails, the library's was mended and the docs need a new sentence."""
    normal, defective = gradients(draem.library_loss())
    assert normal == 0 and defective > 0


def test_a_confident_miss_still_has_a_gradient():
    logit = torch.tensor([-14.0], requires_grad=True)
    focal_loss(logit.sigmoid(), torch.ones(1), epsilon=0.0, smooth=1e-5).backward()
    assert -0.5 < float(logit.grad) < -0.01


def test_focal_loss_without_smoothing_is_the_papers():
    p, t = torch.tensor([0.1, 0.8, 0.3]), torch.tensor([1.0, 1.0, 0.0])
    right = [0.1, 0.8, 0.7]
    expected = sum(-((1 - q) ** 2) * math.log(q) for q in right) / 3
    assert float(focal_loss(p, t)) == pytest.approx(expected, rel=1e-6)
    weighted = sum(-a * (1 - q) ** 2 * math.log(q) for a, q in zip((0.75, 0.75, 0.25), right, strict=True)) / 3
    assert float(focal_loss(p, t, alpha=0.75)) == pytest.approx(weighted, rel=1e-6)


def test_networks_have_the_authors_sizes():
    """Counted from their file: 3x3 convolutions with bias, each followed by a batch norm except the last ones."""
    def layers(pairs, last):
        return sum(9 * a * b + b + 2 * b for a, b in pairs) + 9 * last[0] * last[1] + last[1]

    w = 128
    down = [(3, w), (w, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w), (4 * w, 8 * w),
            (8 * w, 8 * w), (8 * w, 8 * w), (8 * w, 8 * w)]
    up = [(8 * w, 8 * w), (8 * w, 8 * w), (8 * w, 4 * w), (4 * w, 4 * w), (4 * w, 4 * w), (4 * w, 2 * w),
          (2 * w, 2 * w), (2 * w, 2 * w), (2 * w, w), (w, w), (w, w), (w, w)]
    v = 64
    down_v = [(6, v), (v, v), (v, 2 * v), (2 * v, 2 * v), (2 * v, 4 * v), (4 * v, 4 * v), (4 * v, 8 * v),
              (8 * v, 8 * v), *[(8 * v, 8 * v)] * 4]
    up_v = [(8 * v, 8 * v), (16 * v, 8 * v), (8 * v, 8 * v), (8 * v, 4 * v), (12 * v, 4 * v), (4 * v, 4 * v),
            (4 * v, 2 * v), (6 * v, 2 * v), (2 * v, 2 * v), (2 * v, v), (3 * v, v), (v, v), (v, v), (2 * v, v), (v, v)]
    with torch.device("meta"):
        net = draem.Network(64)
    counts = [sum(p.numel() for p in part.parameters())
              for part in (net.reconstructive_subnetwork, net.discriminative_subnetwork)]
    assert counts == [layers([*down, *up], (w, 3)), layers([*down_v, *up_v], (v, 2))]


def test_initial_weights_are_the_authors_and_the_librarys_preset_keeps_torchs():
    def spread(detector):
        modules = list(detector.trained["model"].modules())
        convs = torch.cat([m.weight.detach().flatten() for m in modules if isinstance(m, nn.Conv2d)])
        norms = torch.cat([m.weight.detach() for m in modules if isinstance(m, nn.BatchNorm2d)])
        return float(convs.std()), float(norms.std())

    own = build("draem@quick", TINY)
    assert spread(own) == pytest.approx((0.02, 0.02), rel=0.1)
    library = spread(build("draem@anomalib", {"size": "32", "width": "2"}))
    assert library[0] > 0.04 and library[1] == 0


def test_half_of_the_training_pictures_are_defective(monkeypatch):
    shares, loss = [], draem.draem_loss

    def watch(clean, rebuilt, logits, mask):
        shares.extend(mask.flatten(1).amax(1).tolist())
        return loss(clean, rebuilt, logits, mask)

    monkeypatch.setattr(draem, "draem_loss", watch)
    detector = build("draem@quick", {**TINY, "epochs": "8"})
    detector.fit(pictures(16), None)
    assert len(shares) == 128 and 0.35 < sum(shares) / len(shares) < 0.65


def test_learning_rate_falls_twice_to_a_fifth():
    rates = []
    detector = build("draem@quick", {**TINY, "epochs": "10", "lr": "0.001"})
    train = detector._train

    def watch(step, optimizers, *rest, **more):
        def wrapped(*arguments):
            rates.append(optimizers[0].param_groups[0]["lr"])
            return step(*arguments)

        return train(wrapped, optimizers, *rest, **more)

    detector._train = watch
    detector.fit(pictures(3), None)
    assert rates == pytest.approx([1e-3] * 8 + [2e-4, 4e-5])


def test_picture_after_its_reconstruction_in_the_joined_input():
    seen = []
    for spec in ("draem@quick", "draem@anomalib"):
        net = build(spec, {"size": "32", "width": "2"}).trained["model"]
        net.discriminative_subnetwork.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        x = torch.rand(1, 3, 32, 32)
        rebuilt, _ = net(x)
        places = [torch.equal(seen[-1][:, :3], rebuilt), torch.equal(seen[-1][:, 3:], x)]
        assert places == [spec == "draem@quick"] * 2


def test_score_is_the_largest_mean_of_the_softmax_map():
    detector = build("draem@quick", TINY)
    logits = torch.full((2, 2, 32, 32), 0.0)
    logits[:, 1] = -9
    logits[0, 1, 7, 7] = 9  # one certain pixel
    logits[1, 1, 10:20, 10:20] = 0.0  # a square at one half
    detector.trained["model"] = lambda x: (x, logits)
    result = detector.predict(pictures(2))
    assert torch.allclose(result.anomaly_map, logits.softmax(1)[:, 1])
    low = 1 / (1 + math.exp(9))
    assert result.score.tolist() == pytest.approx([(1 - low + 24 * low) / 25, 0.5], abs=1e-5)


def test_paper_and_anomalib_presets_score_as_they_should():
    from models import registry

    paper, library = registry.config("draem@paper"), registry.config("draem@anomalib")
    assert (paper.average, paper.rotate, paper.beta, paper.train_batch, paper.library) == (21, 0.3, 0.8, 8, False)
    assert (library.average, library.rotate, library.beta, library.train_batch) == (1, 0, 0.9, 32) and library.library


def test_size_that_the_strides_do_not_divide_is_refused():
    with pytest.raises(ModelError, match="multiple of 32"):
        build("draem@quick", {"size": "100"})


def test_feature_maps():
    maps = build("draem@quick", TINY).feature_maps(pictures(2))
    assert maps and all(m.ndim == 4 and len(m) == 2 and torch.isfinite(m).all() for m in maps)


@pytest.mark.parametrize("spec", ["draem@quick", "draem@anomalib"])
def test_fit_predict_seed_and_state(spec):
    check_fit_predict_seed_and_state(spec, {**TINY, "textures": "embedded"})
