"""One training step: what the student saw, what it was taught about it, and what that cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.networks.base import Classifier, Outputs, SegmentationNetwork
from lightning_uda.pseudo_labels import pseudo_label
from lightning_uda.ranges import NOT_NEGATIVE, ranged
from lightning_uda.ranks import divisor
from lightning_uda.resize import size_of, upsample
from lightning_uda.translation import Translation
from lightning_uda.windows import Window, cut


class Taught(Protocol):
    """What pixels are taught to be: `Labels`, or anything else that can be compared with log-probabilities."""

    def loss(self, log_probs: Tensor) -> Tensor:
        """Loss, a scalar, of log-probabilities float32 (N, C, H, W)."""
        ...

    def crop(self, window: Window) -> Taught:
        """The same for a part of the image."""
        ...


@dataclass(frozen=True)
class Labels:
    """One class for each pixel; its loss is the weighted mean of the pixels' cross-entropy.

    Attributes:
        mask: Train ids, uint8 or int64 (N, H, W); pixels of 255 (void) add nothing.
        weights: Of each pixel, float (N, H, W), or of all pixels, a number.
        over: What the mean is over: "valid", the pixels that aren't void (L_s of DACS), or "all" pixels (its L_m).
    """

    mask: Tensor
    weights: Tensor | float = 1.0
    over: Literal["valid", "all"] = "valid"

    def loss(self, log_probs: Tensor) -> Tensor:
        """Weighted mean cross-entropy; 0 where no pixel is valid."""
        mask = self.mask.long()
        if isinstance(self.weights, Tensor):
            per_pixel = F.nll_loss(log_probs, mask, ignore_index=IGNORE_INDEX, reduction="none") * self.weights
            return per_pixel.mean() if self.over == "all" else per_pixel.sum() / self._valid_pixels()
        total = F.nll_loss(log_probs, mask, ignore_index=IGNORE_INDEX, reduction="sum")
        mean = total / (mask.numel() if self.over == "all" else self._valid_pixels())
        return mean if self.weights == 1 else self.weights * mean

    def _valid_pixels(self) -> Tensor:
        return divisor((self.mask != IGNORE_INDEX).sum())

    def crop(self, window: Window) -> Labels:
        """The labels of a part of the image."""
        weights = cut(self.weights, window) if isinstance(self.weights, Tensor) else self.weights
        return replace(self, mask=cut(self.mask, window), weights=weights)


@dataclass(frozen=True)
class SoftLabels:
    """A distribution over the classes for each pixel; its loss is the mean of -sum_c y(c) log p(c).

    Attributes:
        probs: y, float, broadcastable to (N, C, H, W); 0 in all classes for pixels without a label.
        valid: bool (N, H, W): the pixels that the mean is over, if they aren't those whose `probs` aren't all 0.
        weight: Factor of the loss.
    """

    probs: Tensor
    valid: Tensor | None = None
    weight: float = 1.0

    def loss(self, log_probs: Tensor) -> Tensor:
        """Mean cross-entropy with the distributions; 0 where no pixel has one."""
        valid = self.probs.any(dim=1) if self.valid is None else self.valid
        per_pixel = -(self.probs * log_probs).sum(dim=1)
        return self.weight * torch.where(valid, per_pixel, 0).sum() / divisor(valid.sum())

    def crop(self, window: Window) -> SoftLabels:
        """The labels of a part of the image."""
        valid = None if self.valid is None else cut(self.valid, window)
        probs = cut(self.probs, window) if size_of(self.probs) != (1, 1) else self.probs
        return replace(self, probs=probs, valid=valid)


@dataclass(frozen=True)
class View:
    """Images that the student saw, or may be shown.

    Attributes:
        image: RGB (N, 3, H, W), uint8 or float in [0, 1].
        labels: What was taught, or goes with the images; several where pixels have several labels (a soft paste).
        opacity: Opacity of the pasted pixels, (N, H, W), bool or float in [0, 1]; `None` where nothing was pasted.
        outputs: What the student made of them; `None` in views that are kept for pictures, or only offered.
        confidence: That of a teacher in its labels, float (N, H, W); `None` where no teacher labelled the images.
    """

    image: Tensor
    labels: Sequence[Taught] = ()
    opacity: Tensor | None = None
    outputs: Outputs | None = None
    confidence: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """Logits of the main classifier, (N, C, h, w)."""
        return self.classifiers[0].logits

    @property
    def classifiers(self) -> tuple[Classifier, ...]:
        """What each classifier of the network gave, the main one first."""
        return self._outputs.classifiers

    @property
    def features(self) -> tuple[Tensor, ...]:
        """Feature levels (N, D, h, w), fine to coarse."""
        return self._outputs.features

    def for_pictures(self) -> View:
        """The view without what takes memory: the student's outputs, and soft labels."""
        return replace(
            self, outputs=None, confidence=None, labels=[part for part in self.labels if isinstance(part, Labels)]
        )

    @property
    def _outputs(self) -> Outputs:
        assert self.outputs is not None
        return self.outputs


@dataclass
class _OfTeacher:
    """What the teacher made of images so far."""

    image: Tensor
    logits: Tensor | None = None
    levels: tuple[Tensor, ...] | None = None


@dataclass
class Step:
    """What a method's algorithm works on.

    Attributes:
        batch: The streams: "image" uint8 (N, 3, H, W) and, of labelled ones, "mask" uint8 (N, H, W) of train ids; of
            target images with margins "valid" uint8 (N, H, W), 1 where pseudo-labels count.
        generator: Source of all randomness of the step, on the CPU.
        student: The network that learns.
        views: What it saw so far, by name.
        losses: What that cost, scalars by name.
        log: Further figures by name, scalars or functions that give one; these are called at logging steps only.
        differentiated: Views that a term to come sends a gradient into; other offered ones are shown without one.
        teacher: The network that labels, where the method has one.
        backward: Takes a loss back to the weights' gradients. With it, the loss of a view is taken back before the
            student sees the next one, so that one view's graph is kept at a time; views that a term sends a gradient
            into keep theirs until it has. `None` leaves all losses to the end of the step.
    """

    batch: Mapping[str, Mapping[str, Tensor]]
    generator: torch.Generator
    student: SegmentationNetwork
    views: dict[str, View] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    log: dict[str, Tensor | Callable[[], Tensor]] = field(default_factory=dict)
    differentiated: frozenset[str] = frozenset()
    teacher: SegmentationNetwork | None = None
    backward: Callable[[Tensor], None] | None = None
    _open: dict[str, frozenset[str]] = field(default_factory=dict)
    _levels: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    _taught: list[_OfTeacher] = field(default_factory=list)
    _predictions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def learn(
        self,
        name: str,
        image: Tensor,
        *labels: Taught,
        opacity: Tensor | None = None,
        auxiliary: Taught | None = None,
    ) -> View:
        """Shows images to the student and teaches it their labels; adds the loss `loss_<name>`.

        Every classifier that the network declares is taught, on the part of the image that it covers. The loss is the
        sum over classifiers, by their weights, and over `labels`.

        Args:
            name: Of the view and of its loss.
            image: RGB (N, 3, H, W), uint8 or float in [0, 1].
            *labels: What is taught, at least one; their losses are added up.
            opacity: As in `View`.
            auxiliary: What auxiliary classifiers are taught instead: all that cover the whole image, but the first.

        Raises:
            ValueError: If there are no labels, or a view or a loss of that name is there already.
        """
        if not labels:
            raise ValueError(f"Step.learn: found no labels for {name!r}; show images without teaching by Step.look.")
        view = self.look(name, image, *labels, opacity=opacity)
        self.add_loss(name, self.cost(view, auxiliary=auxiliary), of=(name,))
        return view

    def cost(self, view: View, auxiliary: Taught | None = None) -> Tensor:
        """The loss, a scalar, of what a view that the student saw has for labels; see `learn`."""
        main, *others = view.classifiers
        for_auxiliary = view.labels if auxiliary is None else (auxiliary,)
        parts = [self._loss(main, view.labels, size_of(view.image))]
        parts += [
            self._loss(part, view.labels if part.window else for_auxiliary, size_of(view.image)) for part in others
        ]
        return reduce(add, parts)

    def look(self, name: str, image: Tensor, *labels: Taught, opacity: Tensor | None = None) -> View:
        """Shows images to the student without teaching it; gradients flow to whatever a term makes of the view.

        Args:
            name: Of the view.
            image: RGB (N, 3, H, W), uint8 or float in [0, 1].
            *labels: What goes with the images, for terms and pictures.
            opacity: As in `View`.

        Raises:
            ValueError: If a view of that name is there already.
        """
        self.offer(name, image, *labels, opacity=opacity)
        return self._show(name)

    def offer(
        self,
        name: str,
        image: Tensor,
        *labels: Taught,
        opacity: Tensor | None = None,
        confidence: Tensor | None = None,
    ) -> None:
        """Has images ready for terms, which may show them to the student; arguments and errors as in `look`.

        Args:
            name: Of the view.
            image: RGB (N, 3, H, W), uint8 or float in [0, 1].
            *labels: What goes with the images.
            opacity: As in `View`.
            confidence: As in `View`.
        """
        if name in self.views:
            raise ValueError(
                f"Found a second view {name!r} in a step that has {sorted(self.views)}; rename one of them."
            )
        self.views[name] = View(image, labels, opacity, confidence=confidence)

    def seen(self, name: str) -> View:
        """A view with what the student makes of it, which is shown an offered one at the first call.

        An offered view gets a gradient only if a term is to send one into it (`differentiated`).
        """
        if self.views[name].outputs is not None:
            return self.views[name]
        with torch.set_grad_enabled(name in self.differentiated):
            return self._show(name)

    def levels(self, name: str) -> tuple[Tensor, ...]:
        """The student's feature levels of a view, fine to coarse, without its classifiers if it hasn't seen the view.

        They have a gradient where `seen` gives one; computed once.
        """
        if self.views[name].outputs is not None:
            return self.views[name].features
        if name not in self._levels:
            with torch.set_grad_enabled(name in self.differentiated):
                self._take_back()
                self._levels[name] = self.student.encode(to_float(self.views[name].image))
        return self._levels[name]

    def seen_views(self) -> dict[str, View]:
        """Views that the student has seen, for pictures."""
        return {
            name: view.for_pictures()
            for name, view in self.views.items()
            if view.outputs is not None or name in self._levels
        }

    def teacher_logits(self, image: Tensor) -> Tensor:
        """The teacher's logits (N, C, h, w) of images, without gradient; computed once for a tensor.

        Args:
            image: RGB (N, 3, H, W), uint8 or float in [0, 1].
        """
        known = self._of_teacher(image)
        if known.logits is None:
            with torch.no_grad():
                known.logits, known.levels = self._teacher.logits_and_levels(to_float(image))
        return known.logits

    def teacher_levels(self, image: Tensor) -> tuple[Tensor, ...]:
        """The teacher's feature levels of images, fine to coarse; as `teacher_logits`, and without its classifiers."""
        known = self._of_teacher(image)
        if known.levels is None:
            with torch.no_grad():
                known.levels = self._teacher.encode(to_float(image))
        return known.levels

    @property
    def _teacher(self) -> SegmentationNetwork:
        assert self.teacher is not None
        return self.teacher

    def _of_teacher(self, image: Tensor) -> _OfTeacher:
        known = next((each for each in self._taught if each.image is image), None)
        if known is None:
            known = _OfTeacher(image)
            self._taught.append(known)
        return known

    def prediction(self, name: str) -> tuple[Tensor, Tensor]:
        """The student's labels of a view and their probabilities, without gradient; computed once.

        Returns:
            Labels, int64 (N, H, W), and probabilities, float32 (N, H, W) in (0, 1].
        """
        if name not in self._predictions:
            view = self.seen(name)
            with torch.no_grad():
                self._predictions[name] = pseudo_label(
                    view.logits, size_of(view.image), align_corners=self.student.align_corners
                )
        return self._predictions[name]

    def add_loss(self, name: str, loss: Tensor, of: Collection[str] = ()) -> None:
        """Adds a loss, a scalar, as `loss_<name>`.

        Args:
            name: Its name.
            loss: The loss.
            of: Names of all views that it sends a gradient into, for `backward`; without any it waits for the end of
                the step.

        Raises:
            ValueError: If the step has one of that name already.
        """
        key = f"loss_{name}"
        if key in self.losses:
            raise ValueError(
                f"Found a second loss {name!r} in a step that has {sorted(self.losses)}; rename one of them."
            )
        self.losses[key] = loss
        if of:
            self._open[key] = frozenset(of)

    def translate(self, translation: Translation | None, image: Tensor, other: Tensor | None = None) -> Tensor:
        """Images as a translation changes them, or as they are where there is none.

        Args:
            translation: What to apply.
            image: RGB float (N, 3, H, W) in [0, 1].
            other: Images of the other domain, uint8 or float, for translations that take their style from them.
        """
        return image if translation is None else translation(image, self.generator, other)

    @property
    def loss(self) -> Tensor:
        """Sum of all losses so far.

        Raises:
            ValueError: If there are none.
        """
        if not self.losses:
            raise ValueError("The step taught nothing: expected at least one Step.learn or Step.add_loss.")
        return reduce(add, self.losses.values())

    def _take_back(self) -> None:
        """Takes losses of views that nothing to come depends on back to the weights, before another graph begins."""
        if self.backward is None or not torch.is_grad_enabled():
            return
        kept, before = self.differentiated, frozenset[str]()
        while kept != before:  # a loss that is kept keeps all its views
            before, kept = kept, kept.union(*(views for views in self._open.values() if views & kept))
        free = {key: views for key, views in self._open.items() if not views & kept}
        if not free:
            return
        self.backward(reduce(add, [self.losses[key] for key in free]))
        for key, views in free.items():
            self.losses[key] = self.losses[key].detach()
            del self._open[key]
            for name in views:
                if (outputs := self.views[name].outputs) is not None:
                    self.views[name] = replace(self.views[name], outputs=outputs.detach())
                if name in self._levels:
                    self._levels[name] = tuple(level.detach() for level in self._levels[name])

    def _show(self, name: str) -> View:
        self._take_back()
        view = self.views[name]
        outputs = self.student.outputs_for_training(to_float(view.image), self.generator)
        view = self.views[name] = replace(view, outputs=outputs)
        return view

    def _loss(self, classifier: Classifier, labels: Sequence[Taught], size: tuple[int, int]) -> Tensor:
        logits, weight, window = classifier
        if window is not None:
            labels, size = [part.crop(window) for part in labels], window[2:]
        log_probs = upsample(logits, size, self.student.align_corners).log_softmax(dim=1)
        loss = reduce(add, [part.loss(log_probs) for part in labels])
        return loss if weight == 1 else weight * loss


class Term(nn.Module, ABC):
    """A further term of a method's loss, over what the student has seen; it may show the student more.

    Any method takes any term by name: `--model.terms.<name> <class>`. It is logged as `train/loss_<name>`.

    Args:
        weight: Factor of the term in the sum of losses.

    Attributes:
        min_batch_size: Least number of images of each stream in a batch that the term makes sense for.
        needs_teacher: Whether the term makes sense for methods with a teacher only.
        needs_features: Whether the term reads feature levels, which not every network gives.
        name: What the method calls the term; that of the view too, if the term shows the student one.
        differentiates: Names of the views that the term sends a gradient into.
        reads: Names of the views that the method, or another term, has to have.
        streams: Streams that a training batch must hold for the term, beside the method's.
    """

    min_batch_size: int = 1
    needs_teacher: bool = False
    needs_features: bool = False
    differentiates: Sequence[str] = ()
    reads: Sequence[str] = ()
    streams: Sequence[str] = ()
    name: str = "term"

    @ranged(weight=NOT_NEGATIVE)
    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def prepare(self, network: SegmentationNetwork) -> None:
        """Makes what depends on the network, and attaches to it what it has to carry; called once, before training."""

    def notes(self) -> list[str]:
        """What a reader of a run's report should know of the term, a sentence each; see `UDAModule.notes`."""
        return []

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The term without its weight, a scalar."""

    def view(self, step: Step, name: str) -> View:
        """A view of this step, as it is.

        Raises:
            ValueError: If the method has no view of that name.
        """
        self.require_view(name, step.views)
        return step.views[name]

    def require_view(self, name: str, there: Collection[str]) -> None:
        """Checks that there is a view; errors as in `view`."""
        if name not in there:
            raise ValueError(
                f"{type(self).__name__}: found no view {name!r}; the method's step has {sorted(there)}. Name "
                "views of the method in the term's arguments."
            )

    def seen(self, step: Step, name: str) -> View:
        """A view of this step with what the student makes of it; errors as in `view`."""
        self.view(step, name)
        return step.seen(name)


def to_float(image: Tensor) -> Tensor:
    """Images uint8 (N, 3, H, W) as float32 in [0, 1]; floating-point images as they are."""
    return image if image.is_floating_point() else image.to(torch.float32).div_(255)
