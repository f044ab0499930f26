"""Inputs of the benchmarks: smooth label maps that hold every class at about its share in Cityscapes, and logits."""

from __future__ import annotations

import math

import naive
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.mixing import ClassMask, paste
from lightning_uda.pseudo_labels import BatchConfidence, pseudo_label

NUM_CLASSES, BATCH, TAIL = 19, 2, 2
FREQUENCY = (36.9, 6.1, 22.8, 0.7, 0.9, 1.2, 0.2, 0.6, 15.9, 1.2, 4.0, 1.2, 0.2, 7.0, 0.3, 0.3, 0.3, 0.2, 0.4)
CLASS_SHARES = torch.tensor(FREQUENCY) / sum(FREQUENCY)
VOID = 0.015


def smooth(*shape: int, generator: torch.Generator) -> Tensor:
    """Random fields float32 (..., H, W) without detail."""
    coarse = torch.randn(1, math.prod(shape[:-2]), 9, 9, generator=generator)
    return F.interpolate(coarse, size=shape[-2:], mode="bicubic", align_corners=True).view(shape)


def rank_of(field: Tensor) -> Tensor:
    """Share of an image's pixels that lie below each pixel; (N, H, W)."""
    flat = field.flatten(1)
    return (flat.argsort(dim=1).argsort(dim=1) / flat.shape[1]).view_as(field)


class Inputs:
    """All inputs, drawn once; images are uint8 for us and float minus mean for the naive side."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape, low = (BATCH, size, size), (size - 1) // 8 + 1
        self.size = (size, size)
        share = CLASS_SHARES

        def masks() -> Tensor:
            labels = torch.bucketize(rank_of(smooth(*shape, generator=generator)), share.cumsum(0)[:-1])
            return labels.masked_fill(rank_of(smooth(*shape, generator=generator)) > 1 - VOID, 255)

        def images(*shape: int) -> Tensor:
            return torch.randint(0, 256, (*shape, 3, size, size), dtype=torch.uint8, generator=generator)

        self.source_mask, self.template_mask = masks(), masks()
        self.source_image, self.template_image, self.target_image = images(BATCH), images(BATCH), images(BATCH)
        self.tail_image = images(BATCH, TAIL)
        rare = smooth(BATCH, TAIL, size, size, generator=generator) > 1
        self.tail_mask = torch.where(rare, torch.tensor([17, 18]).view(1, -1, 1, 1), 255)
        self.logits = [smooth(BATCH, NUM_CLASSES, low, low, generator=generator) for _ in range(3)]
        teacher = self.logits[1]
        while (teacher.softmax(dim=1).amax(dim=1) >= naive.THRESHOLD).float().mean() < 0.5:
            teacher *= 1.05
        self.pseudo_labels, self.confidence = pseudo_label(teacher, self.size)
        noise, level = (torch.randn(2, BATCH, 256, n, n, generator=generator) for n in (low, 1))
        self.features = list((noise + level).relu())
        self.paste_mask = ClassMask()(self.template_mask, generator)
        self.pixel_weights = BatchConfidence()(self.confidence, self.paste_mask)
        self.mixed_mask = paste(self.template_mask, self.pseudo_labels, self.paste_mask)
        self.source_mixed_mask = paste(self.template_mask, self.source_mask, self.paste_mask)
