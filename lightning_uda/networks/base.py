"""What a segmentation network declares to the rest of the package."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from lightning_uda.ranges import CLASSES, NUMBER, POSITIVE, ranged
from lightning_uda.windows import Window

BatchNormPolicy = Literal["train", "frozen_affine", "frozen_statistics", "eval"]


class Classifier(NamedTuple):
    """What one classifier of a network gave.

    Attributes:
        logits: (N, num_classes, h, w), at the classifier's own resolution.
        weight: Weight of its loss.
        window: Top, left, height and width, in pixels of the image, of the part that the logits cover; `None`: all.
    """

    logits: Tensor
    weight: float = 1.0
    window: Window | None = None


class Outputs(NamedTuple):
    """What a network gives for training.

    Attributes:
        classifiers: All that is to be taught; the first is what `forward` gives.
        features: Feature levels (N, channels, h, w), fine to coarse.
    """

    classifiers: tuple[Classifier, ...]
    features: tuple[Tensor, ...]

    def detach(self) -> Outputs:
        """The same without the graph that it came from."""
        classifiers = tuple(part._replace(logits=part.logits.detach()) for part in self.classifiers)
        return Outputs(classifiers, tuple(level.detach() for level in self.features))


class InputNormalization(nn.Module):
    """Turns RGB images in [0, 1] into what the network's weights expect.

    Args:
        mean: Channel means on the 0-255 scale, in the network's channel order.
        std: Channel standard deviations on the 0-255 scale; (1, 1, 1) for Caffe weights.
        channel_order: Whether the network wants "rgb" or "bgr".
    """

    mean: Tensor
    std: Tensor

    @ranged(mean=NUMBER, std=POSITIVE)
    def __init__(
        self, mean: Sequence[float], std: Sequence[float], channel_order: Literal["rgb", "bgr"] = "rgb"
    ) -> None:
        super().__init__()
        self.channel_order = channel_order
        self._values = {"mean": tuple(mean), "std": tuple(std)}
        for name in self._values:
            self.register_buffer(name, self._exact(name, None), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalises float (N, 3, H, W) RGB in [0, 1]."""
        if self.channel_order == "bgr":
            image = image.flip(1)
        return (image * 255 - self.mean) / self.std

    @property
    def mean_colour(self) -> Tensor:
        """The RGB colour in [0, 1] that becomes zero, (1, 3, 1, 1)."""
        mean = self.mean / 255
        return mean.flip(1) if self.channel_order == "bgr" else mean

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves to another device, but keeps float32 where all weights are brought to a 16-bit type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._values:
            setattr(self, name, self._exact(name, getattr(self, name).device))
        return self

    def _exact(self, name: str, device: torch.device | None) -> Tensor:
        return torch.tensor(self._values[name], dtype=torch.float32, device=device).view(1, 3, 1, 1)


class SegmentationNetwork(nn.Module, ABC):
    """Base of all networks: RGB images in [0, 1] in, logits at the network's own resolution out.

    Args:
        num_classes: Number of output channels.
        normalization: The input normalisation that the weights were trained with.
        strides: Ratio of image to feature size of each feature level, fine to coarse.
        channels: Channels of each feature level; none where the network gives no features.
        batch_norm: "train" (batch statistics, trained scale and shift), "frozen_affine" (batch statistics, scale and
            shift fixed at their loaded values: DACS and its family), "frozen_statistics" (running statistics as loaded,
            trained scale and shift: CBST's ResNet-38) or "eval" (running statistics, all fixed).
        align_corners: How logits are upsampled for the losses: yes for DeepLab-v2 and its family, no for DAFormer's.

    Attributes:
        attached: Modules by name that terms of a loss have attached (`attach`): trained, averaged into teachers and
            saved with the network, which itself doesn't use them.
        class_rows: Beginnings of the names in state dicts of those tensors that have a row for each class; none where a
            network doesn't say, which then starts from checkpoints of its own classes only (`start_from`).
        random_weights: Whether the weights are those drawn at the start: neither a file nor another network's state
            has been loaded since, and no pretrained backbone was fetched.
        deterministic: Whether dropout and its kin are off in train mode too (`make_deterministic`).
        always_eval: Whether the network stays in eval mode (`keep_in_eval`).

    Raises:
        ValueError: If `batch_norm` is none of these.
    """

    class_rows: tuple[str, ...] = ()

    @ranged(num_classes=CLASSES)
    def __init__(
        self,
        num_classes: int,
        normalization: InputNormalization,
        strides: Sequence[int],
        channels: Sequence[int],
        batch_norm: BatchNormPolicy,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if batch_norm not in get_args(BatchNormPolicy):
            raise ValueError(f"Found batch_norm={batch_norm!r}; expected one of {get_args(BatchNormPolicy)}.")
        self.num_classes = num_classes
        self.normalization = normalization
        self.strides = tuple(strides)
        self.channels = tuple(channels)
        self.batch_norm = batch_norm
        self.align_corners = align_corners
        self.random_weights = True
        self.deterministic = False
        self.always_eval = False
        self.attached = nn.ModuleDict()
        self._attached_lr_scales: dict[str, float] = {}
        self.register_load_state_dict_post_hook(_weights_were_loaded)  # type: ignore[no-untyped-call]

    @abstractmethod
    def outputs(self, image: Tensor) -> Outputs:
        """All that is to be taught, of RGB images (N, 3, H, W) in [0, 1], and the feature levels."""

    def outputs_for_training(self, image: Tensor, generator: torch.Generator) -> Outputs:
        """What a training step teaches; `outputs`, but where a network shows itself a part that is drawn at random.

        Args:
            image: RGB (N, 3, H, W) in [0, 1].
            generator: Source of all random choices, on the CPU. Dropout and its kin don't draw from it.
        """
        return self.outputs(image)

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature levels, fine to coarse, of RGB images (N, 3, H, W) in [0, 1]."""
        return self.outputs(image).features

    def logits_and_levels(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What `forward` gives and what `encode` gives, of RGB images (N, 3, H, W) in [0, 1], in one pass."""
        outputs = self.outputs(image)
        return outputs.classifiers[0].logits, outputs.features

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters as optimiser groups with `name`, `params` and `lr_scale` (see `parameter_group`)."""

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of RGB images (N, 3, H, W) in [0, 1]."""
        return self.logits_and_levels(image)[0]

    def require_features(self, what: str) -> None:
        """Checks that the network has feature levels.

        Args:
            what: What needs them, for the message.

        Raises:
            ValueError: If it has none.
        """
        if not self.channels:
            raise ValueError(
                f"{what} needs features of the network, but {type(self).__name__} gives none. Name the submodule whose "
                "output they are (--model.network.features NAME), or leave that part out."
            )

    def notes(self) -> list[str]:
        """What a reader of a run's report should know of the network, a sentence each."""
        return []

    def normalized(self, image: Tensor) -> Tensor:
        """Network inputs, in the number format of the weights (which isn't float32 under `precision: bf16-true`)."""
        inputs: Tensor = self.normalization(image)
        return inputs.to(next(self.parameters()).dtype)

    def attach(self, name: str, part: nn.Module, lr_scale: float = 1.0) -> None:
        """Makes a module a part of the network, so that it is trained, averaged into teachers and saved with it.

        Args:
            name: Of the part in `attached`.
            part: The module.
            lr_scale: Learning rate of its parameters as a multiple of the base rate.

        Raises:
            ValueError: If there is one of that name.
        """
        if name in self.attached:
            raise ValueError(f"Found a second part {name!r} to be attached to the network; rename one of the terms.")
        self.attached[name] = part
        self._attached_lr_scales[name] = lr_scale
        self.train(self.training)

    def attach_copies(self, other: SegmentationNetwork) -> None:
        """Attaches frozen copies of what another network of the same kind has attached and this one lacks."""
        for name, part in other.attached.items():
            if name not in self.attached:
                self.attach(name, copy.deepcopy(part).requires_grad_(False), other._attached_lr_scales[name])

    def attached_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of what was attached, "attached_<name>"."""
        return [
            parameter_group(f"attached_{name}", self.attached[name].parameters(), lr_scale)
            for name, lr_scale in self._attached_lr_scales.items()
        ]

    def batch_norm_modules(self) -> Iterator[nn.Module]:
        """All BatchNorm layers that the policy is for: those of the network, not of what was attached."""
        attached = set(self.attached.modules())
        return (module for module in self.modules() if _is_batch_norm(module) and module not in attached)

    def apply_batch_norm_policy(self) -> None:
        """Freezes what the policy freezes; to be called once the layers exist."""
        for module in self.batch_norm_modules():
            module.requires_grad_(self.batch_norm in ("train", "frozen_statistics"))
        self.train(self.training)

    def make_deterministic(self) -> Self:
        """Switches off, in train mode too, what is random in a forward pass: dropout, drop-path, jittered positions.

        Every layer but BatchNorm is kept in eval mode from now on, in copies of the network as well; BatchNorm goes on
        following its policy. It is for teachers that are to normalise by the batch (DAFormer).
        """
        self.deterministic = True
        return self.train(self.training)

    def keep_in_eval(self) -> Self:
        """Keeps the network in eval mode from now on: for teachers that normalise by running statistics (T2S-DA)."""
        self.always_eval = True
        return self.eval()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the network in place, by its parts, as training doesn't go through `forward` alone.

        Its weights keep their names, so that checkpoints and teachers are those of a plain network. Copies of it aren't
        compiled.

        Args:
            *args: As in `torch.compile`.
            **kwargs: As there.
        """
        for part in _callable_parts(self):
            part.compile(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Sets train or eval mode.

        BatchNorm stays in eval mode under "frozen_statistics" and "eval", all else in a network made deterministic.
        """
        super().train(mode and not self.always_eval)
        frozen = set(self.batch_norm_modules()) if self.batch_norm in ("frozen_statistics", "eval") else set()
        for module in self.modules():
            fixed = module in frozen or (self.deterministic and not _is_batch_norm(module))
            if fixed and module is not self:
                module.training = False
        return self


def compiled_in_place(module: nn.Module) -> nn.Module:
    """The network that `torch.compile` wrapped, compiled in place as there; any other module as it is.

    See `SegmentationNetwork.compile`.
    """
    inner = module._modules.get("_orig_mod")  # the wrapper's class is known to torch._dynamo, which is slow to import
    if inner is None:
        return module
    for part in _callable_parts(inner):
        part._compiled_call_impl = module.dynamo_ctx(part._call_impl)  # type: ignore[operator]
    return inner


def _callable_parts(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            yield from _callable_parts(part)
        else:
            yield part


def parameter_group(
    name: str, parameters: Iterable[nn.Parameter], lr_scale: float = 1.0, **options: Any
) -> dict[str, Any]:
    """A group for an optimiser, of those parameters that are trained.

    Args:
        name: "backbone...", "classifier..." or "auxiliary...".
        parameters: Trained and frozen ones.
        lr_scale: Learning rate of the group as a multiple of the base rate.
        options: Further keys, for the optimisers that know them (`weight_decay`; `update_repeats` of `RepeatedSGD`).
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return {"name": name, "params": trained, "lr_scale": lr_scale, **options}


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _weights_were_loaded(network: SegmentationNetwork, _: object) -> None:
    network.random_weights = False


def without_numbers(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and kind on PyTorch's device "meta", which takes no memory; weights stay weights."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
