"""ProCL and PiCL: contrast of two views of the same scene in probability space (EHTDI, Li et al., ACM MM 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.precision import full_precision
from lightning_uda.ranges import CONTRAST, COUNT, SHARE, ranged
from lightning_uda.resize import LabelSampling, size_of, subsample
from lightning_uda.step import Labels, Step, Term


class ViewContrast(Term):
    """Base of the contrasts of two views: InfoNCE with the similarity H(a, b) = softmax(a) . softmax(b), in [0, 1].

    Gradients flow into both views. Everything is computed in float32 under mixed precision.

    Args:
        between: Names of two views of the same size and geometry, so that a pixel of one is that pixel of the other.
            Methods that augment a mixed image offer it without augmentation as `<name>_weak`.
        scale: s, the factor of similarities, above 0 and at most 80.
        weight: Factor of the loss; lambda_2 in EHTDI, 0.01 for GTA5 and 0.008 for SYNTHIA.

    Raises:
        ValueError: If `between` isn't two names, or the scale is out of range.
    """

    @ranged(scale=CONTRAST)
    def __init__(self, between: Sequence[str], scale: float, weight: float) -> None:
        super().__init__(weight)
        name = type(self).__name__
        if isinstance(between, str) or len(between) != 2:
            raise ValueError(
                f"{name}: found between={between!r}; expected the names of two views, such as [mixed, mixed_weak]."
            )
        self.between = self.differentiates = self.reads = tuple(between)
        self.scale = scale

    def logits(self, step: Step) -> tuple[Tensor, Tensor]:
        """Logits (N, C, h, w), float32, of both views.

        Raises:
            ValueError: If their shapes differ.
        """
        first, second = (self.seen(step, name).logits.float() for name in self.between)
        if first.shape != second.shape:
            raise ValueError(
                f"{type(self).__name__}: found logits of shapes {tuple(first.shape)} and {tuple(second.shape)} for the "
                f"views {self.between}; expected two views of the same geometry."
            )
        return first, second


class PixelContrast(ViewContrast):
    """PiCL: a pixel of one view against itself in the other, and all other pixels of both views of the image.

    The N x N similarities are formed a few rows at a time and never kept; value and gradient are exact.

    Args:
        between: As in `ViewContrast`.
        scale: As in `ViewContrast`; s_2.
        weight: As in `ViewContrast`.
        rows: Pixels of each image whose similarities to all others exist at a time; the peak of memory is this times
            2 h w floats for each image.

    Raises:
        ValueError: If `rows` is below 1; see also `ViewContrast`.
    """

    @ranged(rows=COUNT)
    def __init__(
        self,
        between: Sequence[str] = ("mixed", "mixed_weak"),
        scale: float = 20.0,
        weight: float = 0.01,
        rows: int = 256,
    ) -> None:
        super().__init__(between, scale, weight)
        self.rows = rows

    def forward(self, step: Step) -> Tensor:
        """L_pix, a scalar: the mean over both views' pixels and over images."""
        first, second = self.logits(step)
        return pixel_contrast(first, second, self.scale, self.rows)


class PrototypeContrast(ViewContrast):
    """ProCL: the prototype of a class in one view against its own in the other, and all other prototypes of the image.

    A prototype is the softmax of the mean of its pixels' logits. Pixels count for the class that they are taught where
    they were pasted into the first view (which is ground truth), and for the confident prediction of the student
    elsewhere; where nothing was pasted into a labelled view, for what they are taught.

    Args:
        between: As in `ViewContrast`.
        of: The view that the prediction is taken from; `None` takes the second.
        tau: Confidence above which a predicted pixel counts (strictly), 0-1.
        scale: As in `ViewContrast`; s_1.
        weight: As in `ViewContrast`.
        images: "all" images of the batch count, or the "first" alone, with 1 / N of its loss (EHTDI's program, by an
            oversight).
        sampling: How labels are brought to the size of logits: "nearest" takes pixel floor(i H / h) (EHTDI's program),
            "corner_nearest" the one that lies where logits with aligned corners do, round(i (H - 1) / (h - 1)).

    Raises:
        ValueError: If tau isn't in [0, 1]; see also `ViewContrast`.
    """

    @ranged(tau=SHARE)
    def __init__(
        self,
        between: Sequence[str] = ("mixed", "mixed_weak"),
        of: str | None = None,
        tau: float = 0.95,
        scale: float = 7.0,
        weight: float = 0.01,
        images: Literal["all", "first"] = "all",
        sampling: LabelSampling = "nearest",
    ) -> None:
        super().__init__(between, scale, weight)
        self.of = self.between[1] if of is None else of
        self.reads = (*self.between, self.of)
        self.tau = tau
        self.images = images
        self.sampling: LabelSampling = sampling

    def forward(self, step: Step) -> Tensor:
        """L_pro, a scalar: the mean over the prototypes of each image, then over images."""
        first, second = self.logits(step)
        labels = subsample(self.labels(step), size_of(first), self.sampling)
        if self.images == "first":
            return prototype_contrast(first[:1], second[:1], labels[:1], self.scale) / len(first)
        return prototype_contrast(first, second, labels, self.scale)

    @torch.no_grad()
    def labels(self, step: Step) -> Tensor:
        """Which class each pixel counts for, int64 (N, H, W); 255 where for none."""
        view = self.view(step, self.between[0])
        taught = view.labels[0] if view.labels else None
        if view.opacity is None and isinstance(taught, Labels):
            return taught.mask.long()
        self.view(step, self.of)
        predicted, confidence = step.prediction(self.of)
        predicted = predicted.masked_fill(confidence <= self.tau, IGNORE_INDEX)
        if view.opacity is None or not isinstance(taught, Labels):
            return predicted
        return torch.where(view.opacity > 0, taught.mask.long(), predicted)


def membership(labels: Tensor, num_classes: int) -> Tensor:
    """Share of each pixel in its class, so that those of a class sum to 1, or to 0 where it has no pixel.

    Args:
        labels: int64 (N, h, w); values of `num_classes` and above (void) belong to no class.
        num_classes: C.

    Returns:
        float32 (N, C, h w).
    """
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    members = (labels.flatten(1).unsqueeze(1) == classes).float()
    return members / members.sum(dim=2, keepdim=True).clamp(min=1)


def prototypes(logits: Tensor, members: Tensor) -> Tensor:
    """Mean logits of the pixels of each class, which are logits of mean features where the classifier is linear.

    Args:
        logits: float32 (N, C, h, w).
        members: As `membership` gives it.

    Returns:
        (N, C, C): a row for each class; 0 for those without pixels.
    """
    return torch.bmm(logits.flatten(2), members.transpose(1, 2)).transpose(1, 2)


def prototype_contrast(first: Tensor, second: Tensor, labels: Tensor, scale: float = 7.0) -> Tensor:
    """ProCL of a batch (EHTDI, Eqs. 8 to 11, with the mean instead of the sum).

    Args:
        first: Logits (N, C, h, w) of one view.
        second: Of the other.
        labels: int64 (N, h, w), the same for both; 255 counts for no class.
        scale: s_1.

    Returns:
        Scalar, float32: the mean over the 2 K prototypes of the K classes of each image, then over images; an image of
        one class or none gives 0.
    """
    with full_precision(first.device):
        num_classes = first.shape[1]
        members = membership(labels, num_classes)
        present = members.any(dim=2).repeat(1, 2)  # (N, 2 C)
        probs = torch.cat([prototypes(view.float(), members) for view in (first, second)], dim=1).softmax(dim=2)
        similarity = scale * probs @ probs.transpose(1, 2)
        positive = similarity.diagonal(num_classes, 1, 2).repeat(1, 2)
        itself = torch.eye(2 * num_classes, dtype=torch.bool, device=first.device)
        # Rows of absent classes stay finite, so that no gradient is NaN; they are left out of the mean.
        others = similarity.masked_fill(itself | ~present.unsqueeze(1), -2 * scale - 100)
        losses = (others.logsumexp(dim=2) - positive).where(present, 0)
        return (losses.sum(dim=1) / present.sum(dim=1).clamp(min=1)).mean()


def pixel_contrast(first: Tensor, second: Tensor, scale: float = 20.0, rows: int = 256) -> Tensor:
    """PiCL of a batch (EHTDI, Eqs. 12 to 14, with the mean instead of the sum), exact for any number of rows.

    Args:
        first: Logits (N, C, h, w) of one view.
        second: Of the other.
        scale: s_2.
        rows: Rows of the similarity matrix that exist at a time.

    Returns:
        Scalar, float32: the mean over the pixels of both views, then over images.
    """
    with full_precision(first.device):
        pixels = torch.cat([logits.float().flatten(2) for logits in (first, second)], dim=2)
        loss: Tensor = _InfoNCE.apply(pixels.softmax(dim=1).transpose(1, 2), scale, rows)
        return loss


class _InfoNCE(torch.autograd.Function):
    """Mean of log sum_{k != j} exp(S_jk) - S_j,pos(j) over queries j and images, S = s P P^T, pos: the other half.

    With E = exp(S - s), whose diagonal is 0, and its row sums D, the gradient is
    s / (2 N) [(E P) / D + E (P / D) - 2 P_pos]; both products are sums over blocks of rows of E. E never overflows, as
    products of probabilities are at most 1.
    """

    @staticmethod
    def forward(ctx: Any, probs: Tensor, scale: float, rows: int) -> Tensor:
        """The loss of probabilities (B, 2 N, C); its gradient is formed at once."""
        ones = torch.ones_like(probs[:, :, :1])
        right = torch.cat([probs, ones], dim=2)
        left = torch.cat([scale * probs, -scale * ones], dim=2)
        by_row, by_column = torch.empty_like(right), torch.zeros_like(probs)
        for start in range(0, probs.shape[1], rows):
            block = slice(start, start + rows)
            e = torch.bmm(left[:, block], right.transpose(1, 2)).exp_()
            e.diagonal(start, 1, 2).zero_()
            by_row[:, block] = torch.bmm(e, right)
            by_column.baddbmm_(e.transpose(1, 2), probs[:, block] / by_row[:, block, -1:])
        row_sums = by_row[:, :, -1:]
        positive = probs.roll(probs.shape[1] // 2, dims=1)
        gradient = by_row[:, :, :-1] / row_sums + by_column - 2 * positive
        ctx.save_for_backward(gradient * (scale / row_sums.numel()))
        return (row_sums.log().squeeze(2) + scale - scale * (probs * positive).sum(dim=2)).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, times that of the loss."""
        return ctx.saved_tensors[0] * grad, None, None
