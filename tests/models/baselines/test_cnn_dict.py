"""CNN_Dict after Bergmann's recipe: descriptors, PCA, dictionary of real descriptors, map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from models.base import ModelError
from models.nn.clusters import k_means
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "32", "samples": "60", "layer": "layer1", "centres": "4"}


def test_k_means_finds_separate_clouds_and_keeps_an_empty_one():
    x = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    means, own = k_means(x, torch.tensor([[0.0], [9.0], [100.0]]), 10, 1e-6)
    assert means.flatten().tolist() == [0.5, 11.0, 100.0] and own.tolist() == [0, 0, 1, 1]


def test_a_descriptor_is_the_mean_of_the_enlarged_patchs_last_stage():
    detector = build("cnn_dict@quick", {**SMALL, "input": "64"})
    patches = torch.rand(3, 3, 16, 16)
    large = F.interpolate(patches, (64, 64), mode="bilinear", align_corners=False)
    expected = detector.net(large)["layer1"].mean((2, 3))
    assert torch.equal(detector._described(patches), expected) and expected.shape == (3, 64)


def test_components_are_those_of_95_percent_and_entries_are_real_descriptors():
    detector, seen = build("cnn_dict@quick", SMALL), []
    described = detector._described
    detector._described = lambda patches: seen.append(described(patches)) or seen[-1]
    log = detector.fit(pictures(7), None)
    rows = torch.cat(seen)
    assert len(rows) == 60 and [len(part) for part in seen] == [9, 9, 9, 9, 8, 8, 8]
    pca = PCA(0.95).fit(rows.double().numpy())
    assert log["components"] == pca.n_components_ and log["explained"] == pytest.approx(
        pca.explained_variance_ratio_.sum(), abs=1e-6)
    assert np.allclose(np.abs(detector.directions @ pca.components_.T.astype(np.float32)),
                       np.eye(pca.n_components_), atol=1e-2)
    reduced = (rows - detector.mean) @ detector.directions.T
    assert torch.cdist(detector.dictionary, reduced).min(1).values.max() < 1e-3
    assert sum(log["cluster_sizes"]) == 60 and len(detector.dictionary) == 4
    assert len(torch.unique(detector.dictionary, dim=0)) > 1


@pytest.mark.parametrize("nearest", [1, 3])
def test_map_is_the_mean_over_patches_of_the_distance_to_the_dictionary(nearest):
    detector, test = build("cnn_dict@quick", {**SMALL, "nearest": str(nearest)}), pictures(1, 4, spot=True)
    detector.fit(pictures(7), None)
    x = detector.preprocess(test)
    total, count = torch.zeros(32, 32), torch.zeros(32, 32)
    for top in range(0, 17, 8):
        for left in range(0, 17, 8):
            described = detector._described(x[..., top : top + 16, left : left + 16])
            row = (described - detector.mean) @ detector.directions.T
            distance = (row - detector.dictionary).norm(dim=1).sort().values[:nearest].mean()
            total[top : top + 16, left : left + 16] += distance
            count[top : top + 16, left : left + 16] += 1
    found = detector.predict(test)
    assert torch.allclose(found.anomaly_map[0], total / count, atol=1e-3) and found.score is None
    assert found.anomaly_map.std() > 0


def test_lines_that_no_patch_reaches_take_the_nearest_value():
    detector, test = build("cnn_dict@quick", {**SMALL, "size": "35"}), pictures(1, 4, spot=True)
    detector.fit(pictures(7), None)
    found = detector.predict(test).anomaly_map[0]
    assert found.shape == (35, 35) and (found > 0).all()
    assert torch.equal(found[32:, :32], found[31:32, :32].expand(3, -1)) and torch.equal(found[34, 34], found[31, 31])


def test_settings_are_the_recipes():
    config = build("cnn_dict@objects", {"layer": "layer1"}).config
    found = config.size, config.patch, config.stride, config.centres, config.variance, config.samples, config.input
    assert found == (256, 16, 4, 10, 0.95, 10_000, 224)
    assert build("cnn_dict@textures", {"layer": "layer1"}).config.size == 512
    assert build("cnn_dict@p65", {"layer": "layer1"}).config.patch == 65


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="too few"):
        build("cnn_dict@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="at least the patch"):
        build("cnn_dict@quick", {"size": "12"})
    with pytest.raises(ModelError, match="no layer"):
        build("cnn_dict@quick", {"layer": "layer9"})


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("cnn_dict@quick", SMALL)
