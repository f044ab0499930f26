"""Backbones: images in, feature levels out; one file each."""

from lightning_uda.networks.backbones.base import Backbone
from lightning_uda.networks.backbones.caffe_resnet import CaffeResNet
from lightning_uda.networks.backbones.mit import MiT
from lightning_uda.networks.backbones.resnet38 import ResNet38
from lightning_uda.networks.backbones.timm_pyramid import TimmPyramid
from lightning_uda.networks.backbones.timm_vit import TimmViT
from lightning_uda.networks.backbones.vgg import VGG

__all__ = ["VGG", "Backbone", "CaffeResNet", "MiT", "ResNet38", "TimmPyramid", "TimmViT"]
