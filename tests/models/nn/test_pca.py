"""PCA against scikit-learn's, and its limits of time and memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from models.base import ModelError
from models.nn.pca import Covariance, loadings, positions, principal_components
from tests.conftest import REPO


def matrix(rows: int = 5000, channels: int = 60, seed: int = 0) -> np.ndarray:
    """Correlated channels with means far above their spread, float32."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(channels, channels)) * np.linspace(2, 0.2, channels)[:, None]
    return (rng.normal(size=(rows, channels)) @ mixing + rng.uniform(20, 50, channels)).astype(np.float32)


def summed(data: np.ndarray, parts: int = 7) -> Covariance:
    covariance = Covariance(data.shape[1])
    for part in np.array_split(data, parts):
        covariance.add(torch.from_numpy(part))
    return covariance


def up_to_sign(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of unit rows after giving each pair the same sign."""
    return float(np.abs(a * np.sign((a * b).sum(1, keepdims=True)) - b).max())


@pytest.mark.parametrize("channels", [5, 60, 300])
def test_equals_scikit_learn(channels: int) -> None:
    data = matrix(channels=channels)
    keep = min(20, channels)
    theirs = PCA(keep, svd_solver="full").fit(data.astype(np.float64))
    ours = principal_components(summed(data), keep)
    assert up_to_sign(ours.directions.numpy(), theirs.components_) < 1e-4
    np.testing.assert_allclose(ours.variance, theirs.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6)
    assert ours.explained == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_share_of_variance_keeps_as_many_components_as_scikit_learn(share: float) -> None:
    data = matrix()
    theirs = PCA(share, svd_solver="full").fit(data.astype(np.float64))
    assert len(principal_components(summed(data), share).directions) == theirs.n_components_


def test_scaling_the_covariance_is_scaling_the_data() -> None:
    data = matrix(channels=30)
    scale = np.random.default_rng(1).uniform(0.1, 10, 30)
    theirs = PCA(10, svd_solver="full").fit(data.astype(np.float64) * scale)
    ours = principal_components(summed(data), 10, torch.from_numpy(scale))
    assert up_to_sign(ours.directions.numpy(), theirs.components_) < 1e-4
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6)


def test_signs_do_not_depend_on_the_library() -> None:
    directions = principal_components(summed(matrix()), 20).directions
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()


def test_loadings_add_up_to_one_and_show_the_dominant_group() -> None:
    data = matrix(channels=30)
    data[:, :10] *= 100
    shares = loadings(principal_components(summed(data), 10), [10, 20])
    assert sum(shares) == pytest.approx(1) and shares[0] > 0.95


def test_wrong_wishes_are_refused() -> None:
    covariance = summed(matrix(rows=50, channels=8))
    with pytest.raises(ModelError, match="9 components asked for, but there are only 8 channels"):
        principal_components(covariance, 9)
    with pytest.raises(ModelError, match="at most 4"):
        principal_components(summed(matrix(rows=5, channels=8), 1), 6)
    for keep in (0, 1.5, 0.0):
        with pytest.raises(ModelError, match="keep="):
            principal_components(covariance, keep)
    with pytest.raises(ModelError, match="NaN"):
        covariance.add(torch.full((2, 8), torch.nan))
    with pytest.raises(ModelError, match="at least two feature vectors, got 0"):
        principal_components(Covariance(3), 1)


def test_constant_channels_do_no_harm() -> None:
    found = principal_components(summed(np.ones((20, 4), np.float32)), 2)
    assert torch.isfinite(found.directions).all() and found.explained == 0


def test_positions_are_drawn_without_repetition() -> None:
    maps = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4)
    drawn = positions(maps, 5, torch.Generator().manual_seed(0))
    assert drawn.shape == (10, 3)
    assert len({tuple(v) for v in drawn.tolist()}) == 10
    assert {tuple(v) for v in drawn.tolist()} <= {tuple(v) for v in maps.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert len(positions(maps, 99, torch.Generator())) == 32


@pytest.mark.slow
def test_hundred_thousand_by_two_thousand_within_four_gibibytes() -> None:
    code = (
        "import torch; from models.nn.pca import Covariance, principal_components as pca;"
        "from benchmarks.provenance import peak_memory;"
        "c = Covariance(2000); g = torch.Generator().manual_seed(0);"
        "[c.add(torch.randn(10_000, 2000, generator=g) * torch.linspace(1, 3, 2000)) for _ in range(10)];"
        "assert len(pca(c, 512).directions) == 512;"
        "print(peak_memory('cpu')['peak_host_mb'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4096  # MiB
