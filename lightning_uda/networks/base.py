"""What a segmentation network declares to the rest of the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

BatchNormPolicy = Literal["train", "frozen_affine", "frozen_statistics", "eval"]


class Classifier(NamedTuple):
    """What one classifier of a network gave.

    Attributes:
        logits: (N, C, h, w).
        weight: Factor of its loss.
        window: Part of the image that the logits cover: first row and column, height and width, in pixels of the
            image; `None` for all of it.
    """

    logits: Tensor
    weight: float = 1.0
    window: tuple[int, int, int, int] | None = None


class Outputs(NamedTuple):
    """What a network gives in training.

    Attributes:
        classifiers: Of every classifier that is to be taught; the first is the one that `forward` gives.
        features: Feature levels (N, D, h, w), fine to coarse.
    """

    classifiers: tuple[Classifier, ...]
    features: tuple[Tensor, ...]


class InputNormalization(nn.Module):
    """Turns RGB images in [0, 1] into what the network's weights expect.

    Args:
        mean: Channel means on the 0-255 scale, in the network's channel order.
        std: Channel standard deviations on the 0-255 scale; (1, 1, 1) for Caffe weights.
        channel_order: Whether the network wants "rgb" or "bgr".
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], channel_order: Literal["rgb", "bgr"] = "rgb"
    ) -> None:
        super().__init__()
        self.channel_order = channel_order
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalises float (N, 3, H, W) RGB in [0, 1]."""
        if self.channel_order == "bgr":
            image = image.flip(1)
        return (image * 255 - self.mean) / self.std


class SegmentationNetwork(nn.Module, ABC):
    """Base of all networks: RGB images in [0, 1] in, logits at the network's own resolution out.

    Args:
        num_classes: Number of output channels.
        normalization: The input normalisation that the weights were trained with.
        output_stride: Ratio of input to logit size.
        feature_channels: Channels of the features before the classifier.
        batch_norm: "train" (batch statistics, trained scale and shift), "frozen_affine" (batch statistics, scale and
            shift fixed at their loaded values: DACS and its family), "frozen_statistics" (running statistics as loaded,
            trained scale and shift: CBST's ResNet-38) or "eval" (running statistics, all fixed).

    Raises:
        ValueError: If `batch_norm` is none of these.
    """

    def __init__(
        self,
        num_classes: int,
        normalization: InputNormalization,
        output_stride: int,
        feature_channels: int,
        batch_norm: BatchNormPolicy,
    ) -> None:
        super().__init__()
        if batch_norm not in get_args(BatchNormPolicy):
            raise ValueError(f"Found batch_norm={batch_norm!r}; expected one of {get_args(BatchNormPolicy)}.")
        self.num_classes = num_classes
        self.normalization = normalization
        self.output_stride = output_stride
        self.feature_channels = feature_channels
        self.batch_norm = batch_norm

    random_weights: bool = True
    """Whether the weights are as they were drawn, rather than loaded."""

    align_corners: bool = True
    """Whether corners stay aligned when logits are upsampled; yes for DeepLab-v2 and its family."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the feature levels, fine to coarse."""
        return (self.feature_channels,)

    def notes(self) -> list[str]:
        """Sentences on the network that a report of its training should show."""
        return []

    @abstractmethod
    def encode(self, inputs: Tensor) -> Tensor:
        """Features before the classifier, (N, feature_channels, h, w), of normalised (N, 3, H, W) inputs."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of features."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters as optimiser groups with `name`, `params`, `lr_scale` and `update_repeats`.

        `name` is "backbone..." or "classifier"; the learning rate of a group is `lr_scale` times the base rate;
        `update_repeats` is read by `RepeatedSGD` alone.
        """

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of RGB images (N, 3, H, W) in [0, 1]."""
        return self.classify(self.encode(self._normalized(image)))

    def outputs(self, image: Tensor) -> Outputs:
        """Everything that is to be taught, of RGB images float (N, 3, H, W) in [0, 1]."""
        features = self.encode(self._normalized(image))
        return Outputs((Classifier(self.classify(features)),), (features,))

    def _normalized(self, image: Tensor) -> Tensor:
        """Network inputs, in the number format of the weights (which isn't float32 under `precision: bf16-true`)."""
        inputs: Tensor = self.normalization(image)
        return inputs.to(next(self.parameters()).dtype)

    def batch_norm_modules(self) -> Iterator[nn.Module]:
        """All BatchNorm layers."""
        return (module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))

    def apply_batch_norm_policy(self) -> None:
        """Freezes what the policy freezes; to be called once the layers exist."""
        for module in self.batch_norm_modules():
            module.requires_grad_(self.batch_norm in ("train", "frozen_statistics"))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets train or eval mode; BatchNorm stays in eval mode under "frozen_statistics" and "eval"."""
        super().train(mode)
        if self.batch_norm in ("frozen_statistics", "eval"):
            for module in self.batch_norm_modules():
                module.eval()
        return self
