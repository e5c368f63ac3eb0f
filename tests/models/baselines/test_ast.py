"""AST: shapes of the paper's preset, the flow's mathematics, and that training separates normal from anomalous."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score

from models import registry
from models.base import Context, ModelError
from models.baselines.ast import Ast, AstConfig, distance, flow_loss
from models.nn.ast_networks import Student, Teacher, encoding
from models.weights import WeightStore


def context(seed: int = 0, weights: str | Path = "none") -> Context:
    return Context(device=torch.device("cpu"), seed=seed, weights=WeightStore(weights))


def build(spec: str, **settings: object) -> Ast:
    torch.manual_seed(0)
    detector = registry.method_class("ast")(registry.config(spec, {k: str(v) for k, v in settings.items()}), context())
    assert isinstance(detector, Ast)
    return detector


def stripes(rng: np.random.Generator, spot: bool) -> np.ndarray:
    """Vertical stripes with noise; with `spot` a patch of horizontal ones."""
    x = np.arange(96)
    picture = np.repeat((np.sin(x / 3) * 60 + 120)[None], 96, 0) + rng.normal(0, 6, (96, 96))
    if spot:
        top, left = rng.integers(5, 60, 2)
        picture[top : top + 30, left : left + 30] = picture[top : top + 30, left : left + 30].T
    return np.repeat(picture[..., None], 3, 2).clip(0, 255).astype(np.uint8)


def stirred(net: torch.nn.Module) -> torch.nn.Module:
    """Gains off zero, so that the flow is not the identity."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
    return net


def test_paper_preset_has_the_papers_shapes() -> None:
    detector = build("ast@paper")
    assert detector.backbone.channels == {"blocks.5": 304}
    picture = np.zeros((100, 120, 3), np.uint8)
    [student] = detector.feature_maps([picture])
    assert student.shape == (1, 304, 24, 24)
    couplings = [m for m in detector.teacher.modules() if type(m).__name__ == "GLOWCouplingBlock"]
    assert len(couplings) == 4 and len(detector.student.blocks) == 4
    assert [c.subnet1.first.kernel_size for c in couplings] == [(3, 3)] * 3 + [(5, 5)]
    assert couplings[0].subnet1.first.in_channels == 152 + 32 and detector.student.first.in_channels == 304 + 32
    assert registry.config("ast").shortened is False and registry.config("ast@quick").shortened


def test_maps_and_scores() -> None:
    detector = build("ast@tiny", cut="difference")
    pictures = [np.full((50, 70, 3), 90, np.uint8), np.zeros((64, 64, 3), np.uint8)]
    found = detector.predict(pictures)
    assert found.anomaly_map.shape == (2, 128, 128) and found.score.shape == (2,)
    [difference] = detector.feature_maps(pictures)
    torch.testing.assert_close(found.score, difference.square().mean((1, 2, 3)))
    assert build("ast@tiny", score="max").predict(pictures).score[0] >= found.score[0]


def test_cuts() -> None:
    picture = [np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)]
    teacher, student, difference = (build("ast@tiny", cut=c).feature_maps(picture)[0]
                                    for c in ("teacher", "student", "difference"))
    assert torch.equal(build("ast@tiny").feature_maps(picture)[0], student)
    assert torch.equal(difference, teacher - student) and difference.min() < 0 < difference.max()


@pytest.mark.parametrize("positions", [0, 8])
def test_flow_is_inverted_by_its_inverse(positions: int) -> None:
    torch.manual_seed(0)
    teacher = stirred(Teacher(6, AstConfig(teacher_channels=8, positions=positions)))
    x = torch.randn(2, 6, 5, 4)
    latent, log_det = teacher(x)
    back, log_det_back = teacher(latent, inverse=True)
    assert (latent - x).abs().max() > 0.1
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_det, -log_det_back, atol=1e-3, rtol=1e-4)


def test_flow_knows_its_jacobian_and_the_loss_is_the_likelihood() -> None:
    torch.manual_seed(0)
    teacher = stirred(Teacher(4, AstConfig(teacher_channels=8, positions=4))).double()
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    latent, log_det = teacher(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: teacher(v.view_as(x))[0].flatten(), x.flatten())
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_det[0], expected)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum() + expected
    constant = 4 * np.log(2 * np.pi) / 2
    assert flow_loss(latent, log_det).item() == pytest.approx((-density / 6 - constant).item(), abs=1e-6)


def test_likelihood_pulls_the_latent_to_zero_and_stretches() -> None:
    latent = torch.tensor([3.0, -4.0, 0.0, 0.0]).view(1, 2, 1, 2).requires_grad_()
    log_det = torch.tensor([0.5], requires_grad=True)
    loss = flow_loss(latent, log_det)
    assert float(loss) == pytest.approx((9 + 16) / 2 / 2 - 0.5 / 2)  # per position; there are two
    loss.backward()
    torch.testing.assert_close(latent.grad, latent.detach() / 2)
    assert float(log_det.grad) == -0.5


def test_distance_of_normal_and_anomalous_positions() -> None:
    """By hand: two channels, one position where the student follows and one where it does not."""
    teacher = torch.tensor([[1.0, 2.0], [-1.0, 0.0]]).view(1, 2, 1, 2)
    student = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).view(1, 2, 1, 2).requires_grad_()
    found = distance(teacher, student)
    assert found.tolist() == [[[0.0, 5.0]]]
    found.mean().backward()
    assert student.grad[0, :, 0, 0].tolist() == [0.0, 0.0]  # nothing to learn where it follows
    assert student.grad[0, :, 0, 1].tolist() == [-1.5, 0.5]  # towards the teacher


def test_map_is_raised_bicubically_and_the_score_taken_before() -> None:
    detector = build("ast@tiny")
    picture = [np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)]
    teacher, student = detector._outputs(picture)
    cells = ((teacher - student) ** 2).mean(1, keepdim=True)
    found = detector.predict(picture)
    expected = F.interpolate(cells, scale_factor=8, mode="bicubic", align_corners=False)[:, 0]
    torch.testing.assert_close(found.anomaly_map, expected)
    torch.testing.assert_close(found.score, cells.mean((1, 2, 3)))
    assert registry.config("ast").score == "mean"  # RGB only


def test_parameters_of_the_papers_networks() -> None:
    """From the authors' layers with the settings for MVTec AD: 304 channels, 32 of encoding, 1024 hidden."""
    detector = build("ast@paper")

    def conv(before: int, after: int, size: int) -> int:
        return before * after * size * size + after

    half = 152
    teacher = sum(2 * (conv(half + 32, 1024, k) + conv(1024, 2 * half, k) + 1) for k in (3, 3, 3, 5))
    student = conv(304 + 32, 1024, 3) + 4 * 2 * (conv(1024, 1024, 3) + 2 * 1024) + conv(1024, 304, 3)
    assert sum(p.numel() for p in detector.student.parameters()) == student
    assert sum(p.numel() for p in detector.teacher.parameters() if p.requires_grad) == teacher


def test_encoding_tells_all_positions_apart() -> None:
    waves = encoding(torch.zeros(2, 1, 7, 5), 8)
    assert waves.shape == (2, 8, 7, 5) and torch.equal(waves[0], waves[1])
    assert len({tuple(v) for v in waves[0].flatten(1).T.tolist()}) == 35
    assert torch.equal(waves[0, :4, 0], waves[0, :4, 3]) and torch.equal(waves[0, 4:, :, 0], waves[0, 4:, :, 2])
    torch.testing.assert_close(waves[0, 0, 0], torch.arange(5.0).sin())
    with pytest.raises(ModelError, match="multiple of 4"):
        build("ast@tiny", positions=6)


def test_student_is_not_a_flow_of_the_teachers_size() -> None:
    config = AstConfig(student_channels=16, positions=4)
    x = torch.randn(2, 10, 6, 6)
    assert Student(10, config)(x).shape == x.shape
    assert Student(10, dataclasses.replace(config, positions=0))(x).shape == x.shape


def test_building_leaves_numpys_generator_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    Teacher(4, AstConfig(teacher_channels=4, positions=4))
    assert np.random.rand() == expected  # noqa: NPY002


def test_training_finds_what_is_not_normal() -> None:
    rng = np.random.default_rng(0)
    detector = build("ast@tiny", epochs=12)
    steps: list[tuple[int, int]] = []
    log = detector.fit([stripes(rng, False) for _ in range(16)], None, lambda a, b, /, **_: steps.append((a, b)))
    assert log["loss"][-1] < log["loss"][0] / 2 and log["teacher_loss"][-1] < log["teacher_loss"][0]
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    test = [stripes(rng, bool(i % 2)) for i in range(12)]
    assert roc_auc_score([i % 2 for i in range(12)], detector.predict(test).score) > 0.95


def test_divergence_is_an_error() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ModelError, match="lower the learning rate"):
        build("ast@tiny", epochs=3, learning_rate=1e30).fit([stripes(rng, False) for _ in range(10)], None)


@pytest.mark.real
@pytest.mark.slow
def test_bottle_with_resnet18(real: Path) -> None:
    """Two epochs each already order the bottles; six reach 0.99."""
    folder = real / "mvtec_ad" / "bottle"

    def load(pattern: str) -> list[np.ndarray]:
        return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob(pattern))]

    torch.manual_seed(0)
    detector = Ast(registry.config("ast@quick", {"epochs": "2"}), context(weights=real / "weights"))
    detector.fit(load("train/good/*.png"), None)
    good, bad = load("test/good/*.png"), load("test/broken_large/*.png")
    scores = torch.cat([detector.predict([picture]).score for picture in good + bad])
    assert roc_auc_score([0] * len(good) + [1] * len(bad), scores) > 0.9
