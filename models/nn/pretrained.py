"""The convolutions of VGG16, VGG19 and ResNet50 with their pretrained weights, to be trained further."""

from __future__ import annotations

from torch import nn

from models.weights import IGNORED, WeightStore, load_into


def vgg_features(tag: str, store: WeightStore, last: int | None = None) -> nn.Sequential:
    """Layers [0, last) of torchvision's `features` for `vgg16.tv_in1k` or `vgg19.tv_in1k`, ReLUs not in place.

    The classifier, nine tenths of the weights, is never made. In the store's mode 'none' the start is torchvision's:
    Kaiming normal over the outputs. Raises WeightsError when the weights are missing or do not fit.
    """
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs[{"vgg16": "D", "vgg19": "E"}[tag.partition(".")[0]]])[:last]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    named = nn.ModuleDict({"features": layers})  # the names a weights file uses
    state = store.load(tag, named.state_dict())
    if state is not None:
        load_into(named, state, tag)
    return layers


def resnet50_features(tag: str, store: WeightStore) -> nn.Sequential:
    """`resnet50.tv_in1k` without classifier and pooling: [B, 3, s, s] -> [B, 2048, s/32, s/32].

    In the store's mode 'none' the start is torchvision's. Raises WeightsError when the weights are missing or do not
    fit.
    """
    from torchvision.models import resnet50

    net = resnet50(weights=None)
    net.fc = nn.Identity()
    state = store.load(tag, [key for key in net.state_dict() if not key.endswith(IGNORED)])
    if state is not None:
        load_into(net, state, tag)
    return nn.Sequential(*list(net.children())[:-2])
