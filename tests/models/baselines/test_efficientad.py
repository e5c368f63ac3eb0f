"""EfficientAD: losses, maps and scores after the paper's formulas, and what it asks for before it trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional

from models.base import ModelError
from models.baselines.efficientad import change
from models.weights import WeightsError
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures


@pytest.fixture(scope="module")
def detector():
    """Untrained, with statistics and quantiles of four pictures."""
    found = build("efficientad@quick")
    found._teacher_statistics(found._pictures(pictures(4)))
    found._quantiles(found._pictures(pictures(2, 5)))
    return found


@pytest.fixture
def batches():
    drawing = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 256, 256, generator=drawing) for _ in range(3)]


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("efficientad@quick", {"steps": "2"})


def test_efficientad_asks_for_its_teacher_and_its_pictures(tmp_path):
    with pytest.raises(WeightsError, match=r"pretrained_teacher_small\.pth from https://github\.com/.*\.zip"):
        build("efficientad@quick", {}, weights=str(tmp_path))
    with pytest.raises(ModelError, match=r"natural pictures.*set `textures`"):
        build("efficientad@small", {}).fit(pictures(3), None)
    with pytest.raises(ModelError, match="textures: no folder"):  # what --textures hands over is looked at
        build("efficientad@small", {}, extras={"textures": str(tmp_path / "absent")}).fit(pictures(3), None)


def test_small_pictures_are_refused():
    with pytest.raises(ModelError, match="at least 256"):
        build("efficientad@quick", {"size": "128"})


@pytest.mark.parametrize("model", ["small", "medium"])
def test_parameters(model):
    """Counted by hand from the paper's tables of layers: convolutions with their biases."""
    small = [(3, 128, 4), (128, 256, 4), (256, 256, 3)]
    medium = [(3, 256, 4), (256, 512, 4), (512, 512, 1), (512, 512, 3)]

    def count(layers):
        return sum(a * b * k * k + b for a, b, k in layers)

    def describing(out):
        if model == "small":
            return count([*small, (256, out, 4)])
        return count([*medium, (512, out, 4), (out, out, 1)])

    encoder = [(3, 32, 4), (32, 32, 4), (32, 64, 4), (64, 64, 4), (64, 64, 4), (64, 64, 8)]
    decoder = [(64, 64, 4)] * 6 + [(64, 64, 3), (64, 384, 3)]
    nets = build("efficientad@quick", {"model": model}).trained["model"]
    sizes = [sum(p.numel() for p in net.parameters()) for net in (nets.teacher, nets.student, nets.ae)]
    assert sizes == [describing(384), describing(768), count(encoder + decoder)]


@pytest.mark.parametrize("size", ["small", "medium"])
def test_half_of_the_student_is_that_half_of_its_output(size):
    detector = build("efficientad@quick", {"model": size})
    x, student = torch.rand(1, 3, 256, 256), detector.trained["model"].student
    for part in (slice(384), slice(384, None)):
        torch.testing.assert_close(detector._half(x, part), student(x)[:, part])


def test_kept_outputs_of_the_teacher_change_no_loss(detector, batches):
    x, altered, natural = batches
    detector.trained["model"].eval()
    output = detector.trained["model"].teacher(x)
    torch.testing.assert_close(detector._loss(x, altered, natural, output), detector._loss(x, altered, natural))
    assert not torch.equal(detector._loss(x, altered, natural, 2 * output), detector._loss(x, altered, natural))


def test_loss_is_the_papers(detector, batches):
    """Term by term, and in what direction each network is pushed."""
    x, altered, natural = batches
    model = detector.trained["model"]
    model.requires_grad_(False)
    model.student.requires_grad_(True)
    model.ae.requires_grad_(True)
    model.eval()  # no dropout, so that both ways see the same
    mean, std = model.mean_std["mean"], model.mean_std["std"]
    teacher, student = (model.teacher(x) - mean) / std, model.student(x)
    distance = ((teacher - student[:, :384]) ** 2).flatten().sort().values
    count = distance.numel()
    hardest = distance[distance >= np.quantile(distance.detach().numpy(), 0.999)]
    assert abs(len(hardest) / count - 0.001) < 1e-4
    rebuilt = model.ae(altered, (256, 256))
    expected = (
        hardest.mean() + (model.student(natural)[:, :384] ** 2).mean()
        + (((model.teacher(altered) - mean) / std - rebuilt) ** 2).mean()
        + ((rebuilt - model.student(altered)[:, 384:]) ** 2).mean()
    )
    loss = detector._loss(x, altered, natural)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    for part in (model.student, model.ae):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())
        part.zero_grad()


def test_statistics_make_the_teacher_standard(detector):
    y = detector._teacher(detector._pictures(pictures(4)))
    assert y.mean((0, 2, 3)).abs().max() < 1e-3 and (y.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-3


def test_quantiles_are_those_of_the_maps_without_a_border(detector):
    """On the teacher's grid of 56 x 56: padded maps have 23 % zeros, which would pull both quantiles down."""
    model, x = detector.trained["model"], detector._pictures(pictures(2, 5))
    with torch.no_grad():
        student = model.student(x)
        near = ((model.teacher(x) - model.mean_std["mean"]) / model.mean_std["std"] - student[:, :384]) ** 2
        far = (model.ae(x, (256, 256)) - student[:, 384:]) ** 2
    assert near.shape[-2:] == (56, 56)
    for part, values in (("st", near), ("ae", far)):
        for key, q in ((f"qa_{part}", 0.9), (f"qb_{part}", 0.995)):
            expected = np.quantile(values.mean(1).numpy(), q)
            assert float(model.quantiles[key]) == pytest.approx(expected, rel=1e-5)


def test_map_scales_both_parts_and_pads_with_zero_after_that(detector):
    image = pictures(1, 9, spot=True)
    model = detector.trained["model"]
    with torch.no_grad():
        x = detector.preprocess(image)
        student = model.student(x)
        teacher = (model.teacher(x) - model.mean_std["mean"]) / model.mean_std["std"]
        near = ((teacher - student[:, :384]) ** 2).mean(1)
        far = ((model.ae(x, (256, 256)) - student[:, 384:]) ** 2).mean(1)
    q = {key: float(value) for key, value in model.quantiles.items()}
    near = 0.1 * (near - q["qa_st"]) / (q["qb_st"] - q["qa_st"])
    far = 0.1 * (far - q["qa_ae"]) / (q["qb_ae"] - q["qa_ae"])
    expected = F.interpolate(F.pad((near + far) / 2, (4, 4, 4, 4))[None], (256, 256), mode="bilinear")[0]
    found = detector.predict(image)
    torch.testing.assert_close(found.anomaly_map, expected)
    assert found.score is None  # the harness takes the map's maximum, as in the paper
    assert found.anomaly_map[0, :14].abs().max() == 0


def test_altered_pictures_change_in_one_of_three_ways_by_at_most_a_fifth():
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2
    drawing, kinds = torch.Generator().manual_seed(0), set()
    for _ in range(40):
        kind, factor = change(drawing)
        y = getattr(functional, f"adjust_{kind}")(x, factor)
        assert y.shape == x.shape and 0 < (y - x).abs().max() < 0.2
        ratio = y / x
        if ratio.std() < 1e-4:
            kinds.add("brightness")
            assert 0.8 <= float(ratio.mean()) <= 1.2
        else:
            grey = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
            same = ((y * grey).sum(1) - (x * grey).sum(1)).abs().max() < 1e-3
            kinds.add("saturation" if same else "contrast")
    assert kinds == {"brightness", "contrast", "saturation"}
