"""Methods whose networks and losses are anomalib's, trained by our own loop and scored from their raw output.

What comes from anomalib: network definitions, losses, map generators. What does not: its Engine, default weights,
pre- and post-processing, image scores and running normalisation. Every frozen backbone is ours, loaded by exact tag.
anomalib takes seconds to import and is imported when a method is built. PatchCore, PaDiM, EfficientAD and
SuperSimpleNet have files of their own; `anomalib_generic` has the rest of anomalib's models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import MultiStepLR

from models.base import Context, Detector, Images, ModelError, Prediction, Progress, no_progress
from models.features import backbone, extract
from models.nn.smooth import gaussian_smooth
from models.nn.trained import Trained, TrainedConfig
from models.nn.training import generator
from models.registry import register

RESNET18 = "resnet18.tv_in1k"
WIDE50 = "wide_resnet50_2.tv_in1k"
STAGES = ("layer1", "layer2", "layer3")


def generic(name: str) -> type[Detector]:
    """The detector class of any one-class image model of anomalib (`anomalib/<name>`)."""
    from models.anomalib_generic import detector_class

    return detector_class(name)


@dataclass(frozen=True, kw_only=True)
class StfpmConfig(TrainedConfig):
    """Wang et al., BMVC 2021, Sec. 4.1; the last epoch is kept."""

    backbone: str = RESNET18
    layers: tuple[str, ...] = STAGES
    lr: float = 0.4
    weight_decay: float = 1e-4


@register("stfpm", presets={
    "resnet18": StfpmConfig(),
    "quick": StfpmConfig(epochs=15, train_batch=16, shortened=True),
    "demo": StfpmConfig(size=128, epochs=15, train_batch=8, lr=0.2, shortened=True),
})
class Stfpm(Trained):
    """STFPM: a student matches a frozen teacher's feature pyramid on normal pictures"""

    Config = StfpmConfig
    config: StfpmConfig

    def __init__(self, config: StfpmConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib.models.components import TimmFeatureExtractor

        self.teacher = backbone(config.backbone, config.layers, context.weights, context.device)
        name = config.backbone.partition(".")[0]
        student = TimmFeatureExtractor(name, config.layers, pre_trained=False, requires_grad=True)
        self._trained(student=student)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.stfpm.loss import STFPMLoss

        pictures, loss = self._pictures(train), STFPMLoss()
        cache = self.context.features
        parts = list(extract(self.teacher, self.preprocess, train, self.context.device, cache))
        targets = {layer: torch.cat([part[layer] for part in parts]) for layer in self.teacher.layers}

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            wanted = {layer: maps[indices] for layer, maps in targets.items()}
            # anomalib sums halved errors over the batch; the authors' learning rate belongs to their mean over pictures
            return 2 * loss(wanted, self.trained["student"](pictures[indices])) / len(indices)

        optimizer = SGD(self._parameters(), self.config.lr, momentum=0.9, weight_decay=self.config.weight_decay)
        return self._train(step, [optimizer], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        from anomalib.models.image.stfpm.anomaly_map import AnomalyMapGenerator

        x = self.preprocess(batch, self.context.device)
        maps = AnomalyMapGenerator().compute_anomaly_map(
            self.teacher(x), self.trained["student"](x), self.preprocess.output
        )
        return Prediction(maps[:, 0], None)


@dataclass(frozen=True, kw_only=True)
class DraemConfig(TrainedConfig):
    """Zavrtanik et al., ICCV 2021, Sec. 4.1 and the authors' code; the last epoch is kept."""

    epochs: int = 700
    train_batch: int = 8
    lr: float = 1e-4  # times 0.2 after 80 % and 90 % of the epochs
    textures: str | None = None  # folder of natural textures (DTD in the paper), or 'embedded'
    beta: float = 0.8  # a defect lets up to this share of the picture through
    rotate: float = 0.3  # share of the training pictures that are rotated first
    average: int = 21  # image score: largest mean over a square of this side


@register("draem", presets={
    "paper": DraemConfig(),
    "anomalib": DraemConfig(average=1, rotate=0.0),
    "quick": DraemConfig(size=64, epochs=3, train_batch=4, textures="embedded", shortened=True),
})
class Draem(Trained):
    """DRAEM: reconstructs pasted-in defects away and segments them from the two pictures"""

    Config = DraemConfig
    config: DraemConfig
    normalise = False

    def __init__(self, config: DraemConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib.models.image.draem.torch_model import DraemModel

        self._trained(model=DraemModel())

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.draem.loss import DraemLoss

        from models.nn.perlin import artificial_defects, rotate
        from models.nn.textures import Textures

        config, loss = self.config, DraemLoss().to(self.context.device)
        textures = Textures(config.textures or self.context.extras.get("textures"), self.preprocess.output)
        pictures = self._pictures(train)
        own = generator(self.context, "defects")

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            random = noise if noise.device.type == "cpu" else own
            clean = pictures[indices]
            turned = torch.rand(len(clean), generator=random) < config.rotate
            if turned.any():
                degrees = torch.rand(int(turned.sum()), generator=random) * 180 - 90
                clean[turned.to(clean.device)] = rotate(clean[turned.to(clean.device)], degrees.to(clean.device))
            drawn = textures.draw(len(clean), random)
            broken, mask = artificial_defects(clean, drawn, random, probability=0.5, beta=(0.0, config.beta))
            reconstruction, prediction = self.trained["model"](broken)
            return loss(clean, reconstruction, mask, prediction)

        optimizer = Adam(self._parameters(), config.lr)
        milestones = [int(config.epochs * share) for share in (0.8, 0.9)]
        log = self._train(step, [optimizer], len(train), progress, schedulers=[MultiStepLR(optimizer, milestones, 0.2)])
        return {**log, "textures": textures.describe()}

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        maps = self.trained["model"](self.preprocess(batch, self.context.device)).anomaly_map
        side = self.config.average
        means = F.avg_pool2d(maps.unsqueeze(1), side, 1, side // 2)
        return Prediction(maps, means.flatten(1).amax(1))

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """The segmentation decoder's last map, [B, 64, h, w]."""
        found: list[Tensor] = []
        last = self.trained["model"].discriminative_subnetwork.decoder_segment.fin_out
        handle = last.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        try:
            self.trained["model"](self.preprocess(batch, self.context.device))
        finally:
            handle.remove()
        return found


@dataclass(frozen=True, kw_only=True)
class ReverseDistillationConfig(TrainedConfig):
    """Deng & Li, CVPR 2022, Sec. 4.1; the last epoch is kept."""

    backbone: str = WIDE50
    epochs: int = 200
    train_batch: int = 16
    lr: float = 0.005
    sigma: float = 4.0


@register("reverse_distillation", presets={
    "wrn50": ReverseDistillationConfig(),
    "resnet18": ReverseDistillationConfig(backbone=RESNET18),
    "quick": ReverseDistillationConfig(backbone=RESNET18, epochs=10, shortened=True),
})
class ReverseDistillation(Trained):
    """Reverse Distillation: a decoder restores a teacher's features from a one-class bottleneck"""

    Config = ReverseDistillationConfig
    config: ReverseDistillationConfig

    def __init__(self, config: ReverseDistillationConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib.models.components.backbone import get_decoder
        from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer

        self.teacher = backbone(config.backbone, STAGES, context.weights, context.device)
        name = config.backbone.partition(".")[0]
        self._trained(bottleneck=get_bottleneck_layer(name), decoder=get_decoder(name))

    def _pairs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad():
            teacher = list(self.teacher(x).values())
        return teacher, self.trained["decoder"](self.trained["bottleneck"](teacher))

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss

        pictures, loss = self._pictures(train), ReverseDistillationLoss()

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            return loss(*self._pairs(pictures[indices]))

        return self._train(step, [Adam(self._parameters(), self.config.lr, (0.5, 0.999))], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        pairs = zip(*self._pairs(self.preprocess(batch, self.context.device)), strict=True)
        distances = [1 - F.cosine_similarity(teacher, student).unsqueeze(1) for teacher, student in pairs]
        full = [F.interpolate(d, self.preprocess.output, mode="bilinear", align_corners=True) for d in distances]
        return Prediction(gaussian_smooth(torch.stack(full).sum(0)[:, 0], self.config.sigma), None)

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """Squared differences of teacher and student, one map per stage [B, C, h, w]."""
        pairs = zip(*self._pairs(self.preprocess(batch, self.context.device)), strict=True)
        return [(F.normalize(teacher) - F.normalize(student)).square() for teacher, student in pairs]


@dataclass(frozen=True, kw_only=True)
class CsFlowConfig(TrainedConfig):
    """Rudolph et al., WACV 2022, Sec. 4.2 and the authors' code; the last epoch is kept."""

    backbone: str = "efficientnet_b5.tv_in1k"
    size: int = 768
    epochs: int = 240
    train_batch: int = 16
    lr: float = 2e-4
    blocks: int = 4
    hidden: int = 1024
    clamp: float = 3.0


class ClippedAdam(Adam):
    """Adam on gradients of norm 1 at most."""

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


@register("csflow", presets={
    "paper": CsFlowConfig(),
    "quick": CsFlowConfig(size=256, epochs=10, train_batch=8, hidden=32, shortened=True),
})
class CsFlow(Trained):
    """CS-Flow: a normalising flow over features of three image scales at once"""

    Config = CsFlowConfig
    config: CsFlowConfig
    layer: ClassVar[str] = "features.6.8"  # the 304-channel maps of the paper

    def __init__(self, config: CsFlowConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size % 128:
            raise ModelError(f"csflow: size={config.size} must be a multiple of 128, the smallest scale's stride")
        from anomalib.models.image.csflow.torch_model import CrossScaleFlow

        self.net = backbone(config.backbone, (self.layer,), context.weights, context.device)
        dims = (3, config.size, config.size)
        self._trained(flow=CrossScaleFlow(dims, config.blocks, config.clamp, config.hidden))

    @torch.no_grad()
    def _scales(self, images: Images) -> list[Tensor]:
        """[N, 304, h, w] at full, half and quarter size."""
        parts = []
        for start in range(0, len(images), 8):
            x = self.preprocess([images[i] for i in range(start, min(start + 8, len(images)))], self.context.device)
            sizes = [self.config.size // 2**k for k in range(3)]
            resized = [x, *(F.interpolate(x, (s, s)) for s in sizes[1:])]
            parts.append([self.net(y)[self.layer] for y in resized])
        return [torch.cat(scale) for scale in zip(*parts, strict=True)]

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        scales = self._scales(train)

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            z, jacobian = self.trained["flow"]([scale[indices] for scale in scales])
            flat = torch.cat([part.flatten(1) for part in z], 1)
            # anomalib's coupling sums log-determinants over the batch; the likelihood needs their mean
            return (0.5 * flat.square().sum(1).mean() - jacobian.mean() / len(indices)) / flat.shape[1]

        optimizer = ClippedAdam(self._parameters(), self.config.lr, (0.5, 0.9), eps=1e-4, weight_decay=1e-5)
        return self._train(step, [optimizer], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        z, _ = self.trained["flow"](self._scales(batch))
        full = [
            F.interpolate(part.square().mean(1, keepdim=True), self.preprocess.output, mode="bilinear",
                          align_corners=False) for part in z
        ]
        score = torch.cat([part.flatten(1) for part in z], 1).square().mean(1) / 2
        return Prediction(torch.stack(full).prod(0)[:, 0], score)

    @torch.no_grad()
    def feature_maps(self, batch: Images) -> list[Tensor]:
        """The latent variables at three scales, [B, 304, h, w] each."""
        return list(self.trained["flow"](self._scales(batch))[0])


@dataclass(frozen=True, kw_only=True)
class FastFlowConfig(TrainedConfig):
    """Yu et al., 2021 (arXiv 2111.07677), Sec. 4.2; the last epoch is kept."""

    backbone: str = WIDE50
    epochs: int = 500
    lr: float = 1e-3
    steps: int = 8
    conv3x3_only: bool = False
    hidden_ratio: float = 1.0


@register("fastflow", presets={
    "wrn50": FastFlowConfig(),
    "resnet18": FastFlowConfig(backbone=RESNET18, conv3x3_only=True),
    "quick": FastFlowConfig(
        backbone=RESNET18, size=128, epochs=8, train_batch=8, steps=4, hidden_ratio=0.25, shortened=True
    ),
})
class FastFlow(Trained):
    """FastFlow: 2D normalising flows over three stages of a frozen backbone"""

    Config = FastFlowConfig
    config: FastFlowConfig

    def __init__(self, config: FastFlowConfig, context: Context) -> None:
        super().__init__(config, context)
        from anomalib.models.image.fastflow.torch_model import create_fast_flow_block

        self.net = backbone(config.backbone, STAGES, context.weights, context.device)
        norms, flows = nn.ModuleList(), nn.ModuleList()
        before = np.random.get_state()  # noqa: NPY002 - FrEIA draws its permutations from NumPy's global state
        np.random.seed(context.seed % 2**32)  # noqa: NPY002
        for k, channels in enumerate(self.net.channels.values()):
            shape = [channels, config.size // 2 ** (k + 2), config.size // 2 ** (k + 2)]
            norms.append(nn.LayerNorm(shape))
            flows.append(create_fast_flow_block(shape, config.conv3x3_only, config.hidden_ratio, config.steps))
        np.random.set_state(before)  # noqa: NPY002
        self._trained(norms=norms, flows=flows)

    def _latent(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad():
            features = self.net(x).values()
        pairs = zip(self.trained["norms"], self.trained["flows"], features, strict=True)
        latent, jacobians = zip(*(flow(norm(feature)) for norm, flow, feature in pairs), strict=True)
        return list(latent), list(jacobians)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.fastflow.loss import FastflowLoss

        pictures, loss = self._pictures(train), FastflowLoss()

        def step(indices: Tensor, noise: torch.Generator) -> Tensor:
            return loss(*self._latent(pictures[indices]))

        return self._train(step, [Adam(self._parameters(), self.config.lr, weight_decay=1e-5)], len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        from anomalib.models.image.fastflow.anomaly_map import AnomalyMapGenerator

        latent, _ = self._latent(self.preprocess(batch, self.context.device))
        return Prediction(AnomalyMapGenerator(self.preprocess.output)(latent)[:, 0], None)


@dataclass(frozen=True, kw_only=True)
class GanomalyConfig(TrainedConfig):
    """Akcay et al., ACCV 2018, Sec. 4; the size is anomalib's, since the paper's 32 px data is not MVTec AD."""

    epochs: int = 100
    lr: float = 2e-4
    features: int = 64
    latent: int = 100
    weights: tuple[int, int, int] = (1, 50, 1)  # adversarial, contextual, encoder loss


@register("ganomaly", presets={
    "paper": GanomalyConfig(),
    "quick": GanomalyConfig(size=64, epochs=10, train_batch=8, features=16, shortened=True),
})
class Ganomaly(Trained):
    """GANomaly: distance between a picture's code and that of its reconstruction; no map"""

    Config = GanomalyConfig
    config: GanomalyConfig
    normalise = False
    has_map = False

    def __init__(self, config: GanomalyConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.size < 32 or config.size & (config.size - 1):
            raise ModelError(f"ganomaly: size={config.size} must be a power of two, at least 32")
        from anomalib.models.image.ganomaly.torch_model import GanomalyModel

        model = GanomalyModel((config.size, config.size), 3, config.features, config.latent)
        for module in model.modules():  # anomalib's own call reaches only the top module
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
                model.weights_init(module)
        self._trained(generator=model.generator, discriminator=model.discriminator)

    def fit(self, train: Images, validation: Images | None, progress: Progress = no_progress) -> dict[str, Any]:
        from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss

        pictures = self._pictures(train) * 2 - 1  # the decoder ends in tanh
        generate, judge = self.trained["generator"], self.trained["discriminator"]
        generator_loss, judge_loss = GeneratorLoss(*self.config.weights), DiscriminatorLoss()

        def step(indices: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
            real = pictures[indices]
            fake, code, code_of_fake = generate(real)
            fixed = {name: parameter.detach() for name, parameter in judge.named_parameters()}
            says_fake, _ = torch.func.functional_call(judge, fixed, (fake,))  # no gradient for the discriminator
            says_real, _ = judge(real)
            g_loss = generator_loss(code, code_of_fake, real, fake, says_real.detach(), says_fake)
            d_loss = judge_loss(says_real, judge(fake.detach())[0])
            return {"loss": g_loss + d_loss, "generator": g_loss, "discriminator": d_loss}

        optimizers = [Adam(m.parameters(), self.config.lr, (0.5, 0.999)) for m in (generate, judge)]
        return self._train(step, optimizers, len(train), progress)

    @torch.no_grad()
    def predict(self, batch: Images) -> Prediction:
        _, code, code_of_fake = self.trained["generator"](self.preprocess(batch, self.context.device) * 2 - 1)
        return Prediction(None, (code - code_of_fake).square().flatten(1).mean(1))
