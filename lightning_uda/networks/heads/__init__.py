"""Heads: feature levels in, logits out; one file each."""

from lightning_uda.networks.heads.aspp import ASPP, ASPPClassifier
from lightning_uda.networks.heads.base import Head
from lightning_uda.networks.heads.dilated import DilatedConvolutions
from lightning_uda.networks.heads.fcn8s import LevelScores

__all__ = ["ASPP", "ASPPClassifier", "DilatedConvolutions", "Head", "LevelScores"]
