"""The way to any other image model of anomalib: its settings, its weights from the store alone, its faults mended."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import registry
from models.base import Context, ModelError
from models.baselines import anomalib_mends
from models.baselines.anomalib_config import image_models
from models.baselines.anomalib_generic import detector_class
from models.nn.memory import noted
from models.weights import WeightsError, WeightStore
from tests.models.baselines.common import CPU, build, pictures

REPO = Path(__file__).parents[3]
VIT = {"size": "70", "crop": "56", "steps": "2", "train_batch": "2", "encoder_name": "vit_small_patch14_reg4_dinov2"}
# one of each kind: torchvision, timm, transformers, optimisers of its own, a loader that it asks for itself
SMALL = {
    "cfa": {"size": "64", "epochs": "1", "backbone": "resnet18"},
    "padim": {"size": "64"},
    "mh_patchcore": {"backbone": "resnet18"},
    "dinomaly": VIT,
    "inp_former": VIT,
    "anomaly_dino": {"size": "70"},
    "rad": {"size": "64", "crop": "64", "backbone": "vit_small_patch16_dinov3"},
    "ganomaly": {"size": "64", "epochs": "1"},
    "general_ad": {"size": "56", "epochs": "1", "backbone": "vit_small_patch14_dinov2.lvd142m", "layers": "12",
                   "hidden_dim": "32"},
    "glass": {"size": "64", "epochs": "1", "backbone": "resnet18", "train_batch": "2", "pretrain_embed_dim": "64",
              "target_embed_dim": "64", "discriminator_hidden": "16"},
}

SLOW = {
    "cflow": {"size": "64", "epochs": "1", "backbone": "resnet18", "coupling_blocks": "1",
              "fiber_batch_size": "16"},
    "csflow": {"size": "128", "epochs": "1", "cross_conv_hidden_channels": "4", "n_coupling_blocks": "1"},
    "dfkde": {"size": "64", "n_pca_components": "2"},
    "dfm": {"size": "128", "backbone": "resnet18", "pooling_kernel_size": "2"},
    "fastflow": {"size": "64", "epochs": "1", "flow_steps": "1"},
    "foundad": {"size": "56", "epochs": "1", "encoder_name": "dinov2_vit_small_14"},
    "fre": {"size": "64", "epochs": "1", "backbone": "resnet18", "input_dim": "1024", "latent_dim": "8"},
    "l2bt": {"size": "56", "epochs": "1"},
    "patchcore": {"size": "64", "backbone": "resnet18"},
    "patchflow": {"size": "64", "epochs": "1", "backbone": "resnet18", "flow_feature_dim": "8", "flow_hidden_dim": "8"},
    "reverse_distillation": {"size": "64", "epochs": "1", "backbone": "resnet18"},
    "stfpm": {"size": "64", "epochs": "1"},
    "super_add": {"size": "448", "backbone": "vit_small_patch16_dinov3", "layers": "5,11"},
    "supersimplenet": {"size": "128", "epochs": "1", "backbone": "resnet18"},
    "uflow": {"size": "448", "steps": "1", "train_batch": "1", "backbone": "resnet18", "flow_steps": "1"},
    "uninet": {"size": "64", "steps": "1", "train_batch": "2"},
}
OWN = ("draem", "dsr", "efficient_ad")  # with downloads of their own, tested below
NO_MAP = ("ganomaly", "dfkde")


def test_all_that_can_run_are_tested():
    refused = {"winclip", "vlm_ad", "anomalyvfm", "cfm"}
    assert {*SMALL, *SLOW, *OWN, *refused} == set(image_models())


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_fits_predicts_and_is_restored(name, tmp_path):
    spec = f"anomalib/{name}"
    settings = {**SMALL, **SLOW}[name]
    detector = build(spec, settings, scratch=tmp_path)
    used = detector.context.weights.used
    assert set(used.values()) == {"untrained"} or (name == "ganomaly" and not used)  # it has no pretrained part
    detector.fit(pictures(6), None)
    result = detector.predict(pictures(2))
    side = int(settings.get("crop") or settings.get("size") or 224)
    assert result.score.shape == (2,) and torch.isfinite(result.score).all()
    assert (result.anomaly_map is None) == (name in NO_MAP)
    assert name in NO_MAP or result.anomaly_map.shape == (2, side, side)
    other = build(spec, settings, seed=4)
    other.load_state_dict(detector.state_dict())
    again = other.predict(pictures(2))
    torch.testing.assert_close(again.score, result.score)
    assert name in NO_MAP or torch.allclose(again.anomaly_map, result.anomaly_map, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_models_with_downloads_of_their_own(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"draem": {"size": "64", "epochs": "1", "textures": "embedded"}, "dsr": {"size": "64", "epochs": "2"},
                "efficient_ad": {"steps": "2", "textures": "embedded"}}[name]
    detector = build(f"anomalib/{name}", settings, scratch=tmp_path / "scratch")
    detector.fit(pictures(4), None)
    assert torch.isfinite(detector.predict(pictures(2)).score).all()
    assert not list((REPO / "datasets").glob("dtd")) and not (tmp_path / "datasets").exists()
    if name == "efficient_ad":  # its quantiles act: they were 0 as long as no validation was run
        assert all(float(q) != 0 for q in detector.module.model.quantiles.values())


@pytest.mark.parametrize(("name", "size", "crop", "epochs", "steps", "batch"), [
    ("dinomaly", 448, 392, None, 5000, 16), ("foundad", 518, None, 2000, None, 32), ("l2bt", 224, None, 50, None, 32),
    ("super_add", 448, None, 1, None, 32), ("rad", 512, 448, 1, None, 32), ("general_ad", 518, None, 160, None, 32),
    ("patchflow", 768, None, 200, None, 32), ("glass", 288, None, 100, None, 8), ("uflow", 448, None, 50, None, 14),
    ("inp_former", 448, 392, 200, None, 16), ("anomaly_dino", 252, None, 1, None, 32),
    ("efficient_ad", 256, None, None, 70000, 1),
])
def test_the_models_own_settings(name, size, crop, epochs, steps, batch):
    config = registry.config(f"anomalib/{name}")
    assert (config.size, config.crop, config.epochs, config.steps, config.train_batch) == (
        size, crop, epochs, steps, batch)
    assert not config.short


def test_a_cut_schedule_is_short_and_a_whole_one_is_not():
    assert registry.config("anomalib/stfpm", {"epochs": "99"}).short
    assert not registry.config("anomalib/stfpm", {"epochs": "100"}).short
    assert registry.config("anomalib/stfpm", {"steps": "5"}).short
    assert registry.config("anomalib/dinomaly", {"steps": "4999"}).short
    assert registry.config("anomalib/dinomaly", {"epochs": "1", "steps": "none"}).short


def test_every_model_has_settings_or_a_reason():
    refused = {}
    for name in image_models():
        try:
            config = detector_class(name).Config()
        except ModelError as error:
            refused[name] = str(error)
            continue
        assert not config.short and config.own.source, name
        assert pickle.loads(pickle.dumps(config)) == config
    assert set(refused) == {"winclip", "vlm_ad", "anomalyvfm", "cfm"}
    assert "zero-shot" in refused["winclip"] and "point cloud" in refused["cfm"]


def test_constructor_arguments_are_fields_and_reach_the_model():
    config = registry.config("anomalib/patchcore", {"coreset_sampling_ratio": "0.5", "layers": "layer1,layer2"})
    assert config.coreset_sampling_ratio == 0.5 and config.layers == ("layer1", "layer2")
    detector = build("anomalib/stfpm", {"size": "64", "layers": "layer1,layer2"})
    assert detector.module.hparams["layers"] == ["layer1", "layer2"] or detector.module.hparams["layers"] == (
        "layer1", "layer2")
    with pytest.raises(ModelError, match="did you mean 'num_neighbors'"):
        registry.config("anomalib/patchcore", {"num_neighbor": "3"})
    with pytest.raises(ModelError, match="no field 'pre_trained'"):
        registry.config("anomalib/patchcore", {"pre_trained": "false"})


@pytest.mark.parametrize(("name", "settings", "words"), [
    ("dinomaly", {"crop": "390"}, "390 x 390.*multiples of 14"),
    ("dinomaly", {"size": "140"}, "crop=392 is larger than size=140"),
    ("uflow", {"size": "256"}, "takes exactly 448"),
    ("efficient_ad", {"size": "128"}, "at least 256"),
    ("draem", {"size": "100"}, "multiples of 32"),
    ("fre", {"size": "128"}, "exactly 256"),
    ("mh_patchcore", {"crop": "192"}, "exactly 224"),
    ("padim", {"epochs": "2"}, "exactly 1 epochs"),
    ("stfpm", {"epochs": "none"}, "epochs or steps"),
])
def test_settings_that_a_model_refuses_are_said_before_it_is_built(name, settings, words):
    with pytest.raises(ModelError, match=words) as caught:
        registry.config(f"anomalib/{name}", settings)
    assert str(caught.value).count(f"anomalib/{name}") == 1


def test_what_only_the_network_refuses_is_one_line():
    with pytest.raises(ModelError, match=r"anomalib/l2bt cannot be built so: .*exactly 2 layer"):
        build("anomalib/l2bt", {"size": "56", "layers": "3"})
    detector = build("anomalib/fre", {"size": "64", "backbone": "resnet18", "input_dim": "5"})
    with pytest.raises(ModelError, match="refuses its first pictures with these settings"):
        detector.fit(pictures(2), None)


@pytest.mark.parametrize("name", ["draem", "efficient_ad"])
def test_natural_pictures_are_asked_for_before_training(name):
    with pytest.raises(ModelError, match="--textures"):
        build(f"anomalib/{name}", {})


def test_unknown_model_of_anomalib_suggests_near_ones():
    with pytest.raises(ModelError, match="did you mean 'padim'"):
        registry.method_class("anomalib/paddim")


def test_the_learning_rate_of_dinomaly_moves_every_step():
    detector = build("anomalib/dinomaly", {**VIT, "steps": "4"})
    rates = []
    with noted() as remarks:  # one epoch, within which anomalib's own scheduler would not move
        detector.fit(pictures(8), None, lambda *_, **__: rates.append(
            detector.module.trainer.optimizers[0].param_groups[0]["lr"]))
    assert any("learning rate moves once a step" in remark for remark in remarks)
    assert rates[:3] == pytest.approx([2e-3 * k / 99 for k in (rates[0] > 0, 1 + (rates[0] > 0), 2 + (rates[0] > 0))])


@pytest.mark.parametrize(("logits", "kind"), [(True, "draem"), (False, "dsr")])
def test_focal_loss_teaches_normal_pixels(logits, kind):
    """Calling a normal picture defective must cost something; with anomalib's alpha it costs exactly nothing."""
    wrong = torch.zeros(1, 2, 4, 4)
    wrong[:, 1] = 3.0
    prediction = (wrong if logits else wrong.softmax(1)).requires_grad_()
    normal = torch.zeros(1, 4, 4, dtype=torch.long)
    loss = anomalib_mends.Focal(logits)(prediction, normal)
    (gradient,) = torch.autograd.grad(loss, prediction)
    p = wrong.softmax(1)[0, 1, 0, 0]
    assert loss.item() == pytest.approx((-(p**2) * torch.log1p(-p)).item(), rel=1e-4)
    assert (gradient[:, 1] > 0).all()
    if kind == "draem":
        from anomalib.models.image.draem.loss import DraemLoss

        faulty = DraemLoss().focal_loss(wrong.clone().requires_grad_(), normal)
        assert faulty.item() == 0, "anomalib has mended its loss: drop ours"


def test_timm_is_left_as_it_was():
    """anomalib replaces timm's interpolation of position embeddings for the whole process, and others use timm."""
    from timm.models import vision_transformer as vit

    before = vit.resample_abs_pos_embed
    detector = build("anomalib/anomaly_dino", {"size": "70"})
    detector.fit(pictures(2), None)
    detector.predict(pictures(1))
    assert vit.resample_abs_pos_embed is before


PLANTED = """
import json, os, sys
from pathlib import Path
import torch
home = Path(os.environ["TORCH_HOME"])
from torchvision.models import resnet18
import timm
planted = 7.0
def full(net):
    return {k: torch.full_like(v, planted) if v.is_floating_point() else v for k, v in net.state_dict().items()}
def put(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
put(home / "hub/checkpoints/resnet18-f37072fd.pth", full(resnet18()))
put(home / "hub/checkpoints/resnet18.a1_in1k.pth", full(timm.create_model("resnet18")))
from safetensors.torch import save_file
snapshot = Path(os.environ["HF_HOME"]) / "hub/models--timm--resnet18.a1_in1k/snapshots/abc"
snapshot.mkdir(parents=True)
save_file(full(timm.create_model("resnet18")), snapshot / "model.safetensors")
(snapshot.parents[1] / "refs").mkdir()
(snapshot.parents[1] / "refs/main").write_text("abc")
from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel
from anomalib.models.image.dsr.torch_model import DsrModel
from anomalib.utils.path import get_pretrained_weights_dir
root = get_pretrained_weights_dir()
assert str(root).startswith(str(home.parent)), root
put(root / "efficientad_pretrained_weights/pretrained_teacher_small.pth", full(EfficientAdModel().teacher))
put(root / "dsr/vq_model_pretrained_128_4096.pckl", full(DsrModel().discrete_latent_model))
given = home.parent / "given"
mine = resnet18().state_dict()
mine["bn1.bias"].fill_(3.0)
put(given / "resnet18.tv_in1k.pth", mine)

def holds(net, value): return any(bool((t == value).any()) for t in net.state_dict().values() if t.is_floating_point())
said = {}
from anomalib.models import Cfa, Stfpm
off = dict(post_processor=False, evaluator=False, visualizer=False)
said["the plants are what anomalib itself would take"] = [
    holds(Cfa(backbone="resnet18", **off).model.feature_extractor, planted), holds(Stfpm(**off).model, planted)]

from models import registry
from models.base import Context
from models.weights import WeightStore
import numpy as np
SETTINGS = {
    "cfa": {"size": "64", "epochs": "1", "backbone": "resnet18"}, "stfpm": {"size": "64", "epochs": "1"},
    "dsr": {"size": "64", "epochs": "1"}, "efficient_ad": {"steps": "2", "textures": "embedded"},
}
pictures = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8) for i in range(2)]
for mode in ("none", str(given)):
    for name, settings in SETTINGS.items():
        torch.manual_seed(0)
        store = WeightStore(mode)
        try:
            detector = registry.method_class("anomalib/" + name)(
                registry.config("anomalib/" + name, settings), Context(torch.device("cpu"), 0, store, home / "scratch"))
            detector.fit(pictures, None)
            net = detector.module.model.feature_extractor if name == "cfa" else detector.module.model
            said[f"{name} {'none' if mode == 'none' else 'DIR'}"] = [holds(net, planted), holds(net, 3.0), store.used]
        except ValueError as error:
            said[f"{name} DIR"] = [type(error).__name__, str(error)]
print("RESULT" + json.dumps(said))
"""


@pytest.mark.slow
def test_nothing_is_loaded_that_the_record_does_not_name(tmp_path):
    """Files planted in the caches of torch, torchvision, timm, the hub and anomalib are not read."""
    env = {**os.environ, "TORCH_HOME": str(tmp_path / "torch"), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
           "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPO), "HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PLANTED], env=env, capture_output=True, text=True,
                          cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.rpartition("RESULT")[2])
    assert said.pop("the plants are what anomalib itself would take") == [True, True]
    untrained = {"cfa": "resnet18.tv_in1k", "stfpm": "resnet18.a1_in1k", "dsr": "vq_model_pretrained_128_4096",
                 "efficient_ad": "pretrained_teacher_small"}
    for name, tag in untrained.items():
        assert said[f"{name} none"] == [False, False, {tag: "untrained"}]
    assert len(said["cfa DIR"]) == 3, said["cfa DIR"]
    planted, given, used = said["cfa DIR"]
    assert (planted, given) == (False, True) and used["resnet18.tv_in1k"]["file"] == "resnet18.tv_in1k.pth"
    for name in ("stfpm", "dsr", "efficient_ad"):
        assert said[f"{name} DIR"][0] == "WeightsError" and untrained[name] in said[f"{name} DIR"][1]


def test_a_partial_file_is_taken_where_the_network_needs_no_more(tmp_path):
    import timm

    state = timm.create_model("resnet18").state_dict()
    for drop, fits in (("layer4", True), ("layer2", False)):
        part = {k: torch.full_like(v, 0.5) for k, v in state.items() if not k.startswith((drop, "fc"))}
        torch.save(part, tmp_path / "resnet18.a1_in1k.part.pth")
        if fits:
            detector = build("anomalib/stfpm", {"size": "64"}, weights=str(tmp_path))
            teacher = detector.module.model.teacher_model.state_dict()
            assert all((v == 0.5).all() for k, v in teacher.items() if k.endswith("conv1.weight"))
            assert detector.context.weights.used["resnet18.a1_in1k"]["file"] == "resnet18.a1_in1k.part.pth"
        else:
            with pytest.raises(WeightsError, match=r"resnet18\.a1_in1k.*have no key 'layer2\.0"):
                build("anomalib/stfpm", {"size": "64"}, weights=str(tmp_path))


def test_a_file_of_other_shapes_names_the_layer(tmp_path):
    import timm

    torch.save(timm.create_model("resnet34d").state_dict(), tmp_path / "a.pth")
    store = WeightStore("none", substitutes={"resnet18.a1_in1k": tmp_path / "a.pth"})
    with pytest.raises(WeightsError, match=r"\(a\.pth\) do not fit: size mismatch for layer2"):
        build("anomalib/padim", {"size": "64"}, weights=store)


def test_loading_outside_of_the_store_is_refused_by_name(tmp_path):
    from models.loading import weights_from

    torch.save({}, tmp_path / "a.pth")
    with weights_from(WeightStore("none")):
        with pytest.raises(ModelError, match=r"torch asks for '.*a\.pth' by load, past the weights"):
            torch.load(tmp_path / "a.pth")
        with pytest.raises(ModelError, match=r"huggingface_hub asks for 'some/model, model\.safetensors'"):
            from huggingface_hub import hf_hub_download

            hf_hub_download("some/model", "model.safetensors")
        with pytest.raises(ModelError, match=r"torch\.hub asks for 'facebookresearch/dino"):
            torch.hub.load("facebookresearch/dinov2", "dinov2_vits14")
    assert torch.load(tmp_path / "a.pth") == {}


def test_context_is_what_other_detectors_get():
    cls = registry.method_class("anomalib/padim")
    assert cls(cls.Config(size=64), Context(CPU, 0, WeightStore("none"))).preprocess.output == (64, 64)
