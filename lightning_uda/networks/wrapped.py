"""Any module that gives logits, as a network: torchvision's, transformers', one of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uda.networks.base import (
    BatchNormPolicy,
    Classifier,
    InputNormalization,
    Outputs,
    SegmentationNetwork,
    parameter_group,
)
from lightning_uda.networks.weights import copy_weights, licence_of, read_weights
from lightning_uda.ranges import NOT_NEGATIVE, SHARE, SIDE, ranged
from lightning_uda.resize import size_of

_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_MAIN = "out"


class WrappedNetwork(SegmentationNetwork):
    """A network of a module that knows nothing of this package.

    The module takes images (N, 3, H, W), normalised here, and gives logits (N, C, h, w) of any size h x w: as a tensor,
    as a mapping with "out" (torchvision), or as an object with `logits` (transformers). It is tried once, when the
    network is made, in eval mode on one grey image.

    Groups: "backbone" and, where `classifiers` names any, "classifier".

    Args:
        module: The module; the network takes it over. In a config a class, or a function that is annotated to return
            one, such as `torchvision.models.segmentation.fcn_resnet50`.
        num_classes: Number of output channels; the module has to give as many.
        features: Name of the submodule whose output is the feature level that terms of a loss read, such as "backbone":
            a tensor (N, D, h, w), a mapping with "out", or several levels, of which the last is taken. `None`: there
            is none, and terms that need features are refused.
        classifiers: Names of the submodules that are classifiers, which learn at a rate of their own.
        classifier_lr_scale: Learning rate of the classifiers as a multiple of the base rate.
        auxiliary: Further logits that are taught, for modules that give a mapping: weight of the loss by name, such as
            0.4 of torchvision's "aux".
        weights: Path of weights to load: a state dict of the module, or a checkpoint of a run with it. Classifiers of
            other shape are skipped.
        min_loaded: Share (0-1) of the tensors outside the classifiers that `weights` has to provide.
        pretrained: Whether the module has trained weights as it comes, which the notes of a run say.
        normalization: What the module's weights expect; `None` is ImageNet's, in RGB.
        batch_norm: See `SegmentationNetwork`.
        align_corners: How logits are upsampled for the losses, if the module doesn't upsample by itself.
        trial_size: Height and width of the image that the module is tried on.

    Raises:
        ValueError: If the module can't take the image, gives no logits of so many classes, or lacks what is named.
        WeightsError: If weights can't be read or don't fit.
    """

    @ranged(classifier_lr_scale=NOT_NEGATIVE, auxiliary=NOT_NEGATIVE, min_loaded=SHARE, trial_size=SIDE)
    def __init__(
        self,
        module: nn.Module,
        num_classes: int,
        features: str | None = None,
        classifiers: Sequence[str] = (),
        classifier_lr_scale: float = 10.0,
        auxiliary: dict[str, float] = {},  # noqa: B006  never changed
        weights: str | None = None,
        min_loaded: float = 0.9,
        pretrained: bool = False,
        normalization: InputNormalization | None = None,
        batch_norm: BatchNormPolicy = "train",
        align_corners: bool = False,
        trial_size: tuple[int, int] = (64, 64),
    ) -> None:
        normalization = normalization or InputNormalization(_IMAGENET_MEAN, _IMAGENET_STD)
        super().__init__(num_classes, normalization, (), (), batch_norm, align_corners)
        self.module = module
        self.features = features
        self.classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        self.classifier_lr_scale = classifier_lr_scale
        self.auxiliary_weights = dict(auxiliary)
        for argument, names in (("features", [features] if features else []), ("classifiers", self.classifiers)):
            for name in names:
                self._require_submodule(name, argument)
        self._try(trial_size)
        self.random_weights = not pretrained
        self._loaded: list[str] = []
        if weights is not None:
            self._load(weights, min_loaded)
        self.apply_batch_norm_policy()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of RGB images (N, 3, H, W) in [0, 1]."""
        return self._logits_of(self.module(self.normalized(image)))

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """The feature level, alone, of RGB images (N, 3, H, W) in [0, 1]; the whole module is run.

        Raises:
            ValueError: If `features` names none.
        """
        self.require_features("encode")
        return super().encode(image)

    def outputs(self, image: Tensor) -> Outputs:
        """Logits, then auxiliary ones with their weights, and the feature level if there is one."""
        given, levels = self._run(self.normalized(image))
        others = (Classifier(given[name], weight) for name, weight in self.auxiliary_weights.items())
        return Outputs((Classifier(self._logits_of(given)), *others), levels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone" and "classifier" (`classifier_lr_scale` times the base rate)."""
        rest: list[nn.Parameter] = []
        classifiers: list[nn.Parameter] = []
        for name, parameter in self.module.named_parameters():
            (classifiers if name.startswith(self._classifier_names) else rest).append(parameter)
        groups = [parameter_group("backbone", rest)]
        if self.classifiers:
            groups.append(parameter_group("classifier", classifiers, self.classifier_lr_scale))
        return groups

    def notes(self) -> list[str]:
        """What the module is, and which weights were loaded."""
        kind = type(self.module)
        return [f"network: {kind.__module__}.{kind.__qualname__}", *self._loaded]

    @property
    def _classifier_names(self) -> tuple[str, ...]:
        """Beginnings of the names of the classifiers' tensors in the module."""
        return tuple(f"{name}." for name in self.classifiers)

    def _run(self, inputs: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """What the module gives, and the feature levels, read by a hook that is there for this pass alone."""
        if self.features is None:
            return self.module(inputs), ()
        seen: list[Any] = []
        hook = self.module.get_submodule(self.features).register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            given = self.module(inputs)
        finally:
            hook.remove()
        return given, (self._level_of(seen[-1] if seen else None),)

    def _logits_of(self, given: Any) -> Tensor:
        if isinstance(given, Mapping) and _MAIN in given:
            given = given[_MAIN]
        logits = getattr(given, "logits", given)
        if not isinstance(logits, Tensor) or logits.ndim != 4:
            raise ValueError(
                f"{self._name}: gives {_kind_of(logits)}; expected logits (N, classes, h, w), as a tensor, a mapping "
                f"with {_MAIN!r} or an object with `logits`. Wrap it in a module of your own that gives them."
            )
        return logits

    def _level_of(self, output: Any) -> Tensor:
        if isinstance(output, Mapping):  # transformers' outputs are mappings too
            output = output.get(_MAIN, output.get("feature_maps", output.get("last_hidden_state")))
        level = output[-1] if isinstance(output, Sequence) and output else output
        if not isinstance(level, Tensor) or level.ndim != 4:
            raise ValueError(
                f"{self._name}: its submodule {self.features!r} gives {_kind_of(level)}; expected features "
                f"(N, D, h, w). Name another one as `features`, such as {self._submodules()}."
            )
        return level

    @torch.no_grad()
    def _try(self, size: tuple[int, int]) -> None:
        """Runs the module once, and learns the channels and the stride of its feature level."""
        training = self.module.training
        some = next(self.module.parameters(), torch.empty(0))
        try:
            self.module.eval()
            given, levels = self._run(torch.zeros(1, 3, *size, dtype=some.dtype, device=some.device))
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{self._name}: can't be run on an image of {size[0]} x {size[1]} ({error}). Give a module that takes "
                "images (N, 3, H, W) alone, or another trial_size."
            ) from error
        finally:
            self.module.train(training)
        found = self._logits_of(given).shape[1]
        if found != self.num_classes:
            raise ValueError(
                f"{self._name}: gives logits of {found} classes, expected {self.num_classes}. Make it with "
                f"{self.num_classes} classes (`num_classes` of torchvision's, `num_labels` of transformers')."
            )
        names = [name for name in given if name != _MAIN] if isinstance(given, Mapping) else []
        if lacking := sorted(self.auxiliary_weights.keys() - set(names)):
            raise ValueError(f"{self._name}: auxiliary: found {lacking}, but its further outputs are {names}.")
        self.channels = tuple(level.shape[1] for level in levels)
        self.strides = tuple(round(size[0] / size_of(level)[0]) for level in levels)

    def _load(self, weights: str, min_loaded: float) -> None:
        report = copy_weights(
            self,
            read_weights(weights),
            source=weights,
            min_share=min_loaded,
            optional_prefixes=[f"module.{name}" for name in self._classifier_names],
            prefix="module.",
        )
        self._loaded = [f"weights: {weights}: {report}; licence: {licence_of(weights)}"]

    def _require_submodule(self, name: str, argument: str) -> None:
        try:
            self.module.get_submodule(name)
        except AttributeError:
            raise ValueError(
                f"{argument}: found {name!r}, which is no submodule of {self._name}; expected a name such as "
                f"{self._submodules()}."
            ) from None

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    def _submodules(self) -> list[str]:
        return [name for name, _ in self.module.named_children()]


def from_transformers(name: str, num_labels: int, pretrained: bool = True) -> nn.Module:
    """A model of transformers' `AutoModelForSemanticSegmentation`, as a module for `WrappedNetwork`.

    Args:
        name: Of the model on the Hugging Face hub, or a folder that it was saved to.
        num_labels: Number of classes; a classifier of another number is made anew.
        pretrained: Whether it takes its weights; else they are random.

    Raises:
        ValueError: If the package `transformers` isn't installed.
        OSError: If there is no such model.
    """
    try:
        from transformers import AutoConfig, AutoModelForSemanticSegmentation
    except ImportError as error:
        raise ValueError(
            'from_transformers: found no package transformers. Install it: pip install "lightning_uda[transformers]".'
        ) from error
    if pretrained:
        model = AutoModelForSemanticSegmentation.from_pretrained(
            name, num_labels=num_labels, ignore_mismatched_sizes=True
        )
    else:
        config = AutoConfig.from_pretrained(name, num_labels=num_labels)
        model = AutoModelForSemanticSegmentation.from_config(config)
    module: nn.Module = model.train()
    return module


def _kind_of(found: Any) -> str:
    """What was found instead of logits or features, in a few words."""
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    return f"a mapping with {list(found)}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
