"""HRDA: context at low and detail at full resolution, and attention between them (Hoyer et al., ECCV 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.networks.backbones import Backbone
from lightning_uda.networks.base import BatchNormPolicy, Classifier, Outputs, parameter_group
from lightning_uda.networks.encoder_decoder import Auxiliary, EncoderDecoder
from lightning_uda.networks.heads import Head, SegFormerHead
from lightning_uda.ranges import COUNT, SHARE, SHARE_NOT_ZERO, SIDE, ranged
from lightning_uda.resize import Size, size_of, upsample
from lightning_uda.windows import Window, cut, mean_of_windows, place, window_starts


class HRDA(EncoderDecoder):
    """Any backbone with any head, seen at two scales whose logits are fused by attention.

    The context branch sees the whole image, scaled down; the detail branch sees, with the same weights, parts of the
    image at full scale that are as large as the scaled-down image. A further head on the context's levels says, for
    each class and place, how far the detail is to be trusted. In training the detail is one part of the image, drawn at
    random, the same for a batch; both the fused logits and those of the part are taught. Everywhere else
    (pseudo-labels, validation, prediction, `outputs`) parts slide over the image with half an overlap, and their logits
    are averaged.

    Levels, `encode` and auxiliary classifiers are those of the context. State dicts hold what `EncoderDecoder`'s hold,
    and the attention as "attention"; so `weights` may be a checkpoint of an `EncoderDecoder` of the same parts.

    Groups: those of `EncoderDecoder`, and "classifier_attention" with the rate of classifiers.

    Args:
        num_classes: Number of output channels.
        backbone: What makes the feature levels; the network takes it over.
        head: What makes the logits of them.
        attention: What makes the attention of the context's levels.
        scale: Scale of the context; one over a whole number.
        multiple: First rows and columns of parts are multiples of this many pixels, which has to be a multiple of the
            logits' stride divided by `scale`. Sides of images have to be multiples of `multiple` divided by `scale`.
        detail_weight: Weight of the loss of the part's own logits, 0-1; that of the fused ones has the rest.
        windows_at_once: How many parts of each image go through the network at once where they slide; 9 are all of
            them at scale 0.5. It changes memory and speed alone, but where BatchNorm normalises by the batch.
        auxiliary: As in `EncoderDecoder`.
        weights: As in `EncoderDecoder`.
        batch_norm: See `SegmentationNetwork`.
        classifier_lr_scale: Learning rate of attention and classifiers as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside attention and classifiers that `weights` has to provide.
        checkpointing: As in `EncoderDecoder`.

    Raises:
        ValueError: If a number is out of its range; see also `EncoderDecoder`.
        WeightsError: As in `EncoderDecoder`.
    """

    heads = (*EncoderDecoder.heads, "attention.")

    @ranged(scale=SHARE_NOT_ZERO, multiple=SIDE, detail_weight=SHARE, windows_at_once=COUNT)
    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        head: Head,
        attention: Head = SegFormerHead(channels=256),
        scale: float = 0.5,
        multiple: int = 8,
        detail_weight: float = 0.1,
        windows_at_once: int = 9,
        auxiliary: Sequence[Auxiliary] = (),
        weights: str | None = None,
        batch_norm: BatchNormPolicy = "train",
        classifier_lr_scale: float = 10.0,
        min_loaded: float = 0.9,
        checkpointing: bool = False,
    ) -> None:
        if not math.isclose(1 / scale, round(1 / scale)) or scale == 1:
            raise ValueError(f"HRDA: found scale={scale}, expected one over a whole number, such as 0.5 or 0.25.")
        super().__init__(
            num_classes,
            backbone,
            head,
            auxiliary,
            batch_norm=batch_norm,
            classifier_lr_scale=classifier_lr_scale,
            align_corners=False,
            checkpointing=checkpointing,
        )
        self.ratio = round(1 / scale)
        self.multiple = multiple
        self.detail_weight = detail_weight
        self.windows_at_once = windows_at_once
        self.attention_head = attention
        self.attention = self._build(attention, len(self.channels))
        attention.initialize(self.attention)
        self.class_rows += tuple("attention." + layer for layer in attention.class_rows)
        self.strides = tuple(self.ratio * stride for stride in self.strides)
        if weights is not None:
            self._load(weights, min_loaded)
        self.apply_batch_norm_policy()

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """The context's feature levels, fine to coarse, of RGB images (N, 3, H, W) in [0, 1].

        Raises:
            ValueError: If the images' sides are no multiples of `multiple` divided by `scale`.
        """
        context = F.interpolate(image, size=self._context_size(image), mode="bilinear", align_corners=False)
        return super().encode(context)

    def logits_and_levels(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Fused logits (N, num_classes, h, w), with detail everywhere, and the context's levels.

        Raises:
            ValueError: As `encode`, and if `multiple` doesn't go with the logits' stride.
        """
        levels = self.encode(image)
        return self._fused_everywhere(image, levels), levels

    def outputs(self, image: Tensor) -> Outputs:
        """The logits of `forward`, then those of the auxiliary classifiers; errors as in `logits_and_levels`."""
        logits, levels = self.logits_and_levels(image)
        return Outputs((Classifier(logits), *self.decode_auxiliary(levels)), levels)

    def outputs_for_training(self, image: Tensor, generator: torch.Generator) -> Outputs:
        """Fused logits with the detail of one part of the image, that part's own, and those of auxiliary classifiers.

        Args:
            image: RGB (N, 3, H, W) in [0, 1].
            generator: Draws the part.

        Raises:
            ValueError: As `logits_and_levels`.
        """
        window = self._random_window(image, generator)
        levels = self.encode(image)
        context, attention, stride = self._context(image, levels)
        detail = self._scores(cut(image, window))
        on_context, on_detail = _on_grid(window, stride * self.ratio), _on_grid(window, stride)
        masked = place(cut(attention, on_context), on_context, size_of(attention))
        placed = place(detail.float(), on_detail, self._fused_size(context))
        taught = (
            Classifier(fuse(context, masked, placed), 1 - self.detail_weight),
            Classifier(detail, self.detail_weight, window),
        )
        return Outputs((*taught, *self.decode_auxiliary(levels)), levels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of `EncoderDecoder`, and "classifier_attention" (`classifier_lr_scale` times the base rate)."""
        group = parameter_group("classifier_attention", self.attention.parameters(), self.classifier_lr_scale)
        return [*super().parameter_groups(), group]

    def notes(self) -> list[str]:
        """Those of `EncoderDecoder`, and the two scales."""
        detail = f"HRDA: context at scale 1/{self.ratio}, detail at full scale, of weight {self.detail_weight:g}"
        attention = f"attention: {type(self.attention_head).__name__}"
        return [*super().notes(), f"{detail}, {attention}", *self.attention_head.notes()]

    def _scores(self, part: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of images (N, 3, H, W) as they are."""
        return self.decode(super().encode(part))

    def _context(self, image: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, int]:
        """Logits and attention (0-1), float32 (N, num_classes, h, w), and the stride of both to the scaled image."""
        context = self.decode(levels).float()
        stride = self._stride(self._context_size(image), size_of(context))
        attention = upsample(self.attention(levels), size_of(context), align_corners=False).sigmoid()
        return context, attention, stride

    def _fused_everywhere(self, image: Tensor, levels: Sequence[Tensor]) -> Tensor:
        context, attention, stride = self._context(image, levels)
        windows = self._sliding_windows(image)
        on_grid = [_on_grid(window, stride) for window in windows]
        detail = mean_of_windows(self._scores_of(image, windows), on_grid, self._fused_size(context))
        return fuse(context, attention, detail)

    def _scores_of(self, image: Tensor, windows: Sequence[Window]) -> Iterator[Tensor]:
        """Logits of each part of the image, a few parts at a time."""
        for first in range(0, len(windows), self.windows_at_once):
            some = windows[first : first + self.windows_at_once]
            yield from self._scores(torch.cat([cut(image, window) for window in some])).chunk(len(some))

    def _sliding_windows(self, image: Tensor) -> list[Window]:
        """Parts that cover the image, in steps of half their size, rounded down to `multiple`."""
        size = self._context_size(image)
        starts = (
            window_starts(whole, side, max(side // 2 // self.multiple, 1) * self.multiple)
            for whole, side in zip(size_of(image), size, strict=True)
        )
        return [(top, left, *size) for top, left in product(*starts)]

    def _random_window(self, image: Tensor, generator: torch.Generator) -> Window:
        size = self._context_size(image)
        places = ((whole - side) // self.multiple + 1 for whole, side in zip(size_of(image), size, strict=True))
        top, left = (self.multiple * int(torch.randint(count, (), generator=generator)) for count in places)
        return (top, left, *size)

    def _context_size(self, image: Tensor) -> Size:
        """Height and width of the scaled-down images, and of parts at full scale."""
        height, width = size_of(image)
        unit = self.ratio * self.multiple
        if height % unit or width % unit:
            raise ValueError(
                f"HRDA: found images of {height} x {width} (height x width), expected sides that are multiples of "
                f"{unit}: of `multiple` ({self.multiple}) divided by `scale` (1/{self.ratio}). Crop or resize to such "
                "a size (data.source_transform.crop, data.target_transform.crop, data.eval_transform.resize), or "
                "evaluate by model.inference SlidingWindow with such a `crop`."
            )
        return height // self.ratio, width // self.ratio

    def _fused_size(self, context: Tensor) -> Size:
        height, width = size_of(context)
        return self.ratio * height, self.ratio * width

    def _stride(self, pixels: Size, logits: Size) -> int:
        """Ratio of image to logit size, checked to be whole and to go with `multiple`."""
        stride = math.ceil(pixels[0] / logits[0])
        if (logits[0] * stride, logits[1] * stride) != pixels:
            raise ValueError(
                f"HRDA: found logits of {logits[0]} x {logits[1]} for images of {pixels[0]} x {pixels[1]} (height x "
                "width), expected sides that divide the images', so that those of a part can be put in its place. Take "
                "images whose sides are multiples of the logits' stride, and a backbone that rounds no side up "
                "(CaffeResNet does; TimmPyramid doesn't)."
            )
        if self.multiple % (self.ratio * stride):
            raise ValueError(
                f"HRDA: found multiple={self.multiple} for logits of stride {stride}, expected a multiple of "
                f"{self.ratio * stride}: of the stride divided by `scale` (1/{self.ratio}). Set multiple to "
                f"{self.ratio * stride}."
            )
        return stride


def fuse(context: Tensor, attention: Tensor, detail: Tensor) -> Tensor:
    """Logits of two scales: up((1 - a) Z_context) + up(a) Z_detail, bilinear without aligned corners.

    Args:
        context: Logits of the scaled-down image, (N, C, h, w).
        attention: a, how far each class is taken from the detail, (N, C, h, w) in [0, 1]; zero where there is none.
        detail: Logits at full scale, (N, C, s h, s w); zero where there are none.

    Returns:
        float32 (N, C, s h, s w).
    """
    size = size_of(detail)
    return upsample((1 - attention) * context, size, align_corners=False) + (
        upsample(attention, size, align_corners=False) * detail
    )


def _on_grid(window: Window, stride: int) -> Window:
    """A part of an image on a grid of a stride."""
    top, left, height, width = window
    return top // stride, left // stride, height // stride, width // stride
