"""L_pull: translated source pixels are pulled to the source's prototypes (T2S-DA, Wang et al., 2023)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.pseudo_labels import ClassWeighting, DynamicClassWeights, pseudo_label
from lightning_uda.ranges import CHANNELS, COUNT, POSITIVE, SHARE, ranged
from lightning_uda.resize import Size, majority, size_of, subsample
from lightning_uda.step import Labels, Step, Term, View, to_float
from lightning_uda.terms.pull_draws import QuerySampling
from lightning_uda.terms.pull_loss import Keys, Objective, PrototypeNorm, Reduction, pull
from lightning_uda.translation import FourierTranslation, Translation

Positive = Literal["source", "target", "pseudo_target"]


class Projector:
    """Makes of the last feature level what is compared: blocks of convolution, BatchNorm and ReLU.

    Args:
        channels: Of both blocks' outputs.
        kernel: Side of the convolutions' kernels, 3 or 1; the paper names none.
        last_relu: Whether the second block ends in a ReLU (the paper). Without it, cosines may be negative.
        output_layer: Whether a 1 x 1 convolution follows (U2PL, from which T2S-DA descends).
        statistics: What BatchNorm normalises by in eval mode: "running" statistics, which are those of what the student
            projects, the translated images as a rule; or those of the "batch", as in train mode.

    Raises:
        ValueError: If a number is out of its range.
    """

    @ranged(channels=CHANNELS)
    def __init__(
        self,
        channels: int = 256,
        kernel: Literal[1, 3] = 3,
        last_relu: bool = True,
        output_layer: bool = False,
        statistics: Literal["running", "batch"] = "running",
    ) -> None:
        if kernel not in (1, 3):
            raise ValueError(f"Projector: found kernel={kernel}; expected 1 or 3.")
        self.channels = channels
        self.kernel = kernel
        self.last_relu = last_relu
        self.output_layer = output_layer
        self.statistics = statistics

    def build(self, in_channels: int) -> nn.Sequential:
        """The layers, which keep height and width."""
        layers: list[nn.Module] = []
        for given in (in_channels, self.channels):
            layers += [
                nn.Conv2d(given, self.channels, self.kernel, padding=self.kernel // 2, bias=False),
                nn.BatchNorm2d(self.channels, track_running_stats=self.statistics == "running"),
                nn.ReLU(inplace=True),
            ]
        if not self.last_relu:
            layers.pop()
        if self.output_layer:
            layers.append(nn.Conv2d(self.channels, self.channels, 1))
        return nn.Sequential(*layers)


class Pull(Term):
    """Contrasts the student's pixels of labelled images with the teacher's class means, and with its pixels of others.

    Queries are pixels of a translated source image (`pseudo_target`), which has the labels of the source; their
    positive key is the mean of their class on the source; negative keys are source pixels of other classes, and target
    pixels of other classes which the teacher is unsure of. All are projected, and live on the grid of the last feature
    level. Only queries get a gradient, so that the target's look is pulled to the source's features.

    Any method with a teacher takes the term. It makes the translated images itself, in the style of the target's; a
    method that has them as a view (T2SDA) is given `translation: null`. The projector is attached to student and
    teacher under the term's name.

    Args:
        weight: lambda, factor of the loss.
        source: Labelled view.
        target: View whose less confident pixels are negatives and whose confidence weighs the classes; `None` does
            without (domain generalisation).
        pseudo_target: View of the translated images: its name where the method has it, else what it shall be called.
        query: Whose pixels are pulled: "pseudo_target" or "source".
        positive: What they are pulled to, class means of the teacher's features: of "source", of "target" (by the
            teacher's labels) or of "pseudo_target".
        negatives: "source_and_target", or "source" alone.
        translation: What makes the translated images; `None` if the method offers them, or none are needed.
        style: View whose images the translation takes its style from; `None` takes that of `target`, and where there
            is no target that of the next image of the batch.
        objective: "infonce" or "mse", the squared distance of query and positive key (without negatives).
        tau: Temperature, above 0.
        n: Queries of a class in the mean.
        m: Negatives of a class.
        alpha: Share of the target's pixels that count as unsure, 0-1.
        gamma_per_image: Whether that is a share of each image instead of the batch.
        label_share: Least share (0-1) of a cell's pixels that its most frequent class has, which is then its label in
            the source; other cells are void. `None` takes the label of the pixel in the cell's place (the paper).
        query_sampling: How queries are drawn: "cbqs" in proportion to a class's pixels, at least one of each class
            present; "ceqs", n of each class present; "random", of all valid pixels.
        denps: Whether half of the negatives come from each domain (DENPS); else by the number of its pixels.
        void_negatives: Whether void pixels of the source are negatives too, as the pseudo-code has it.
        prototype_norm: Whether lengths are made 1 "after" class means are taken (the paper), "before" (its
            pseudo-code), or "both".
        reduction: "mean", over a class's queries, then the weighted sum over classes; or "eq3", the paper's sum.
        class_weighting: Weights of classes by the teacher's confidence in them on the target (DRW), or fixed ones
            (SRW); `None` weighs all alike.
        projector: What features are put through.
        projector_lr_scale: Learning rate of the projector as a multiple of the base rate.

    Raises:
        ValueError: If a number is out of its range, or something needs a target that isn't there.
    """

    needs_teacher = True
    needs_features = True

    @ranged(tau=POSITIVE, n=COUNT, m=COUNT, alpha=SHARE, label_share=SHARE, projector_lr_scale=POSITIVE)
    def __init__(
        self,
        weight: float = 0.1,
        source: str = "source",
        target: str | None = "target",
        pseudo_target: str = "pseudo_target",
        query: Literal["pseudo_target", "source"] = "pseudo_target",
        positive: Positive = "source",
        negatives: Literal["source_and_target", "source"] = "source_and_target",
        translation: Translation | None = FourierTranslation(),
        style: str | None = None,
        objective: Objective = "infonce",
        tau: float = 0.2,
        n: int = 128,
        m: int = 1024,
        alpha: float = 0.5,
        gamma_per_image: bool = False,
        label_share: float | None = None,
        query_sampling: QuerySampling = "cbqs",
        denps: bool = True,
        void_negatives: bool = False,
        prototype_norm: PrototypeNorm = "after",
        reduction: Reduction = "mean",
        class_weighting: ClassWeighting | None = DynamicClassWeights(),
        projector: Projector = Projector(),
        projector_lr_scale: float = 10.0,
    ) -> None:
        super().__init__(weight)
        if m < 2:
            raise ValueError(f"Pull: found m={m}; expected 2 or more.")
        needing = [
            name
            for name, needed in (
                ("negatives: source_and_target", negatives == "source_and_target"),
                ("positive: target", positive == "target"),
                ("class_weighting", class_weighting is not None),
            )
            if needed
        ]
        if target is None and needing:
            raise ValueError(
                f"Pull: found target: null, but {', '.join(needing)}. Without a target set negatives to source, "
                "class_weighting to null, and positive to source or pseudo_target."
            )
        self.source = source
        self.target = target
        self.pseudo_target = pseudo_target
        self.query = query
        self.positive = positive
        self.negatives = negatives
        self.translation = translation
        self.style = target if style is None else style
        self.pull = partial(
            pull,
            n=n,
            m=m,
            tau=tau,
            alpha=alpha,
            gamma_per_image=gamma_per_image,
            sampling=query_sampling,
            halves=denps,
            void=void_negatives,
            norm=prototype_norm,
            objective=objective,
            reduction=reduction,
        )
        self.label_share = label_share
        self.class_weighting = class_weighting
        self.projector = projector
        self.projector_lr_scale = projector_lr_scale
        self.differentiates = (pseudo_target if query == "pseudo_target" else source,)
        self.reads = (source, *(() if target is None else (target,)))

    def prepare(self, network: SegmentationNetwork) -> None:
        """Attaches the projector.

        Raises:
            ValueError: If the weights of classes don't go with their number.
        """
        if self.class_weighting is not None:
            self.class_weighting.check(network.num_classes)
        network.attach(self.name, self.projector.build(network.channels[-1]), self.projector_lr_scale)

    def forward(self, step: Step) -> Tensor:
        """L_pull, a scalar; 0, with a graph, where there is nothing to pull.

        Raises:
            ValueError: If a view isn't there, or the source has no labels of one class for each pixel.
        """
        source = self.view(step, self.source)
        mask = self._mask(source)
        if "pseudo_target" in (self.query, self.positive) and self.translation is not None:
            with torch.no_grad():
                translated = self.translation(to_float(source.image), step.generator, self._style(step, source))
            step.offer(self.pseudo_target, translated, *source.labels)
        query = self.differentiates[0]
        self.view(step, query)
        queries: Tensor = step.student.attached[self.name](step.levels(query)[-1])
        size = size_of(queries)
        with torch.no_grad():
            labels = self._on_grid(mask, size, step.student.num_classes)
            keys = {"source": Keys(self._projected(step, source), labels)}
            if self.positive == "pseudo_target":
                keys["pseudo_target"] = Keys(self._projected(step, self.view(step, self.pseudo_target)), labels)
            if self.positive == "target" or self.negatives == "source_and_target":
                keys["target"] = self._target_keys(step, size)
            weights = self._class_weights(step, queries)
        negatives = keys["target"] if self.negatives == "source_and_target" else None
        return self.pull(queries, keys["source"], negatives, weights, step.generator, keys[self.positive])

    def _mask(self, source: View) -> Tensor:
        labels = source.labels[0] if len(source.labels) == 1 else None
        if not isinstance(labels, Labels):
            raise ValueError(
                f"Pull: found {len(source.labels)} kinds of labels, or soft ones, on the view {self.source!r}; "
                "expected one class for each pixel. Set `source` to such a view, usually source."
            )
        return labels.mask

    def _on_grid(self, mask: Tensor, size: Size, num_classes: int) -> Tensor:
        """Labels of the source on the grid of the features, int64 (N, *size)."""
        if self.label_share is None:
            return subsample(mask, size).long()
        labels, share = majority(mask, size, num_classes)
        return labels.masked_fill((share < self.label_share) | (labels == num_classes), IGNORE_INDEX)

    def _style(self, step: Step, source: View) -> Tensor:
        """Images whose style the translation takes."""
        return source.image.roll(-1, dims=0) if self.style is None else self.view(step, self.style).image

    def _projected(self, step: Step, view: View) -> Tensor:
        """The teacher's features of a view, (N, D, h, w)."""
        assert step.teacher is not None
        features: Tensor = step.teacher.attached[self.name](step.teacher_levels(view.image)[-1])
        return features

    def _target_keys(self, step: Step, size: Size) -> Keys:
        view = self._target(step)
        logits = step.teacher_logits(view.image)
        labels, confidence = pseudo_label(logits, size, align_corners=False)
        return Keys(self._projected(step, view), labels, confidence)

    def _class_weights(self, step: Step, like: Tensor) -> Tensor:
        """Weights of the classes, float32 (C,), of sum 1."""
        num_classes = step.student.num_classes
        if self.class_weighting is None:
            return torch.full((num_classes,), 1 / num_classes, device=like.device)
        view = self._target(step)
        known = view.labels[0] if view.labels else None
        if view.confidence is not None and isinstance(known, Labels):
            return self.class_weighting(known.mask, view.confidence, num_classes)
        found = pseudo_label(
            step.teacher_logits(view.image), size_of(view.image), align_corners=step.student.align_corners
        )
        return self.class_weighting(*found, num_classes)

    def _target(self, step: Step) -> View:
        assert self.target is not None
        return self.view(step, self.target)
