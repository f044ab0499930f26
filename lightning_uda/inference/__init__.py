"""Test-time policies."""

from lightning_uda.inference.policies import Inference, WholeImage

__all__ = ["Inference", "WholeImage"]
