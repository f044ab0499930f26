"""Heads: feature levels in, logits out; one file each."""

from lightning_uda.networks.heads.aspp import ASPP, ASPPClassifier
from lightning_uda.networks.heads.base import Head
from lightning_uda.networks.heads.daformer import DAFormerHead, SeparableASPP
from lightning_uda.networks.heads.dilated import DilatedConvolutions
from lightning_uda.networks.heads.fcn8s import LevelScores
from lightning_uda.networks.heads.linear import LinearHead
from lightning_uda.networks.heads.segformer import SegFormerHead
from lightning_uda.networks.heads.stacked import StackedLevels

__all__ = [
    "ASPP",
    "ASPPClassifier",
    "DAFormerHead",
    "DilatedConvolutions",
    "Head",
    "LevelScores",
    "LinearHead",
    "SegFormerHead",
    "SeparableASPP",
    "StackedLevels",
]
