"""Test-time policies: how an image is put through a network."""

from lightning_uda.inference.multi_scale import MultiScale
from lightning_uda.inference.policies import Inference, Scores, WholeImage
from lightning_uda.inference.sliding_window import SlidingWindow
from lightning_uda.inference.stride_probabilities import StrideProbabilities

__all__ = ["Inference", "MultiScale", "Scores", "SlidingWindow", "StrideProbabilities", "WholeImage"]
