"""GANomaly"""

from __future__ import annotations

import copy

import pytest
import torch

from models.base import ModelError
from tests.models.baselines.common import SHORT, build, check_fit_predict_seed_and_state, pictures


@pytest.mark.slow
def test_fit_predict_seed_and_state():
    check_fit_predict_seed_and_state("ganomaly@quick", SHORT)


def test_size_that_is_no_power_of_two_is_refused():
    with pytest.raises(ModelError, match="power of two"):
        build("ganomaly@quick", {"size": "48"})


def test_ganomaly_steps_both_players_as_one_after_the_other():
    """One joint step equals anomalib's two: the generator's loss leaves no gradient in the discriminator."""
    from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss

    detector = build("ganomaly@quick", {**SHORT, "epochs": "1", "train_batch": "4"})
    generate, judge = (copy.deepcopy(detector.trained[k]).train() for k in ("generator", "discriminator"))
    detector.fit(pictures(4), None)
    real = detector.preprocess(pictures(4)) * 2 - 1
    optimizers = [torch.optim.Adam(m.parameters(), 2e-4, (0.5, 0.999)) for m in (generate, judge)]
    fake, code, code_of_fake = generate(real)
    says_real, _ = judge(real)
    loss = GeneratorLoss(1, 50, 1)(code, code_of_fake, real, fake, says_real, judge(fake)[0])
    loss.backward(retain_graph=True)
    optimizers[0].step()
    optimizers[1].zero_grad()
    DiscriminatorLoss()(says_real, judge(fake.detach())[0]).backward()
    optimizers[1].step()
    for mine, theirs in ((detector.trained["generator"], generate), (detector.trained["discriminator"], judge)):
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            # Adam's first step is lr * sign(gradient): a gradient of rounding size may turn either way
            agree = torch.isclose(a, b, atol=1e-6).float().mean()
            assert agree > 0.97, name
