"""DFR after the authors' code: regional features, latent width, networks, loss and gradient, map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.base import ModelError
from models.baselines import dfr
from tests.models.baselines.common import build, check_fit_predict_seed_and_state, pictures

SMALL = {"size": "64", "epochs": "2"}


def test_regions_are_enlarged_maps_averaged_and_joined():
    maps = [torch.rand(2, 3, 16, 16), torch.rand(2, 5, 4, 6)]
    full = [F.interpolate(m, (32, 32), mode="bilinear", align_corners=True) for m in maps]
    expected = torch.cat([F.avg_pool2d(m, 4) for m in full], 1)
    assert torch.allclose(dfr.regional(maps, 32, 4), expected, atol=1e-6)
    assert expected.shape == (2, 8, 8, 8)


def test_networks_have_the_codes_widths():
    net = dfr.autoencoder(3456, 200)
    convs = [m for m in net if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [1928, 400, 200, 400, 1928, 3456] and convs[0].in_channels == 3456
    assert [type(m).__name__ for m in net[:7]] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["Conv2d"]
    assert isinstance(net[7], nn.Conv2d) and isinstance(net[-1], nn.Conv2d) and isinstance(net[-2], nn.ReLU)


def test_paper_takes_twelve_relus_of_a_vgg19_with_reflected_borders():
    detector = build("dfr@paper")
    assert sum(detector.net.channels.values()) == 3456 and len(detector.net.layers) == 12
    convs = [m for m in detector.net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 12 and all(m.padding_mode == "reflect" for m in convs)
    assert detector.net.identity[1] == "untrained reflected"  # other features than PatchCore's would be
    x = torch.rand(1, 3, 32, 32)
    first = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), convs[0].weight, convs[0].bias).relu()
    assert torch.allclose(detector.net(x)["features.1"], first, atol=1e-5)
    config = detector.config
    assert (config.epochs, config.train_batch, config.lr, config.size) == (700, 4, 1e-4, 256)


def test_latent_holds_the_share_of_the_variance_of_ten_pictures():
    from sklearn.decomposition import PCA

    detector, train = build("dfr@quick", {**SMALL, "epochs": "1", "variance": "0.99"}), pictures(12)
    log = detector.fit(train, None)
    regions = dfr.regional(list(detector.net(detector.preprocess(train[:10])).values()), 64, 4)
    rows = regions.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    assert log["latent"] == PCA(0.99).fit(rows).n_components_ > 1


def test_map_is_the_mean_squared_error_enlarged_with_aligned_corners():
    detector, test = build("dfr@quick", SMALL), pictures(1, 3) + pictures(1, 4, spot=True)
    detector.fit(pictures(6), None)
    regions = dfr.regional(list(detector.net(detector.preprocess(test)).values()), 64, 4)
    with torch.no_grad():
        rebuilt = detector.trained["autoencoder"](regions)
    error = ((regions - rebuilt) ** 2).sum(1, keepdim=True) / 448
    found = detector.predict(test)
    expected = F.interpolate(error, (64, 64), mode="bilinear", align_corners=True)[:, 0]
    assert torch.allclose(found.anomaly_map, expected, atol=1e-5) and found.score is None


def test_loss_is_the_mean_squared_error_and_beats_the_mean_feature():
    """The mean feature restores nothing of what differs: its error is the variance, which the training must beat."""
    detector = build("dfr@quick", {**SMALL, "epochs": "30", "variance": "0.99", "lr": "0.005"})
    steps = []
    train = detector._train
    detector._train = lambda step, *rest, **more: steps.append(step) or train(step, *rest, **more)
    log = detector.fit(pictures(10), None)
    assert log["loss"][-1] < 0.5 * log["variance"] < log["loss"][0]
    detector.trained["autoencoder"].train()
    loss = steps[0](torch.tensor([0, 3]), torch.Generator())
    regions = dfr.regional(list(detector.net(detector.preprocess([pictures(10)[i] for i in (0, 3)])).values()), 64, 4)
    rebuilt = detector.trained["autoencoder"](regions)
    assert loss.item() == pytest.approx(((rebuilt - regions) ** 2).mean().item(), rel=1e-4)
    (grad,) = torch.autograd.grad(loss, [detector.trained["autoencoder"][-1].bias])
    by_hand = (2 * (rebuilt - regions) / rebuilt.numel()).sum((0, 2, 3))
    assert torch.allclose(grad, by_hand, rtol=1e-3, atol=1e-7) and grad.abs().max() > 0


def test_what_cannot_work_is_refused():
    with pytest.raises(ModelError, match="no training pictures"):
        build("dfr@quick", SMALL).fit([], None)
    with pytest.raises(ModelError, match="not a multiple of region=4"):
        build("dfr@quick", {"size": "66"})
    with pytest.raises(ModelError, match="epoch 1"):
        build("dfr@quick", {**SMALL, "lr": "inf"}).fit(pictures(4), None)


def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("dfr@quick", SMALL)
