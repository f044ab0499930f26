from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_uda.networks import TimmCNN, WeightsError


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_100", "convnext_atto"])
def test_levels_are_as_declared(backbone, stride):
    for levels in (1, 4):
        made = TimmCNN(backbone, output_stride=stride, levels=levels).eval()
        with torch.no_grad():
            features = made(torch.rand(1, 3, 64, 96))
        assert len(features) == levels
        assert made.strides[-1] == stride
        assert [level.shape for level in features] == [
            (1, channels, 64 // ratio, 96 // ratio) for channels, ratio in zip(made.channels, made.strides, strict=True)
        ]


def test_unknown_backbone_suggests_close_names():
    with pytest.raises(ValueError, match=r"Backbone 'resnet5O': timm has no model of this name; did you mean resnet50"):
        TimmCNN("resnet5O")


@pytest.mark.parametrize("backbone", ["vgg11", "vit_tiny_patch16_224"])
def test_backbone_that_cannot_be_dilated(backbone):
    with pytest.raises(ValueError, match=rf"Backbone '{backbone}': timm can't give .* output stride 8 .*Choose a conv"):
        TimmCNN(backbone)


def test_output_stride_is_checked_against_the_backbone():
    with pytest.raises(ValueError, match=r"found an output stride of 32, expected 64; ask for output_stride=32"):
        TimmCNN("mobilenetv3_small_100", output_stride=64)  # type: ignore[arg-type]


def test_unreachable_pretrained_weights(monkeypatch):
    create = timm.create_model

    def offline(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise OSError("no route")
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"couldn't get its ImageNet weights \(OSError: no route\).*`weights`"):
        TimmCNN("resnet18", pretrained=True)
