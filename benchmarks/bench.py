"""`make bench`: every piece of work around the networks, our code against its literal, naive transcription.

Run as `python benchmarks/bench.py`, on a quiet machine. Both forms take the same inputs and random draws, in turn, in
one process and on one thread; times are CPU times, medians over the rounds, and the ratio is the median of the paired
ratios, which counts as it is printed. Results are compared in the same run, and the script fails if they disagree. Peak
memory is the peak above what the process held before the call, measured in another process (Linux). Rows of thresholds
and loading come from `cbst_thresholds.py` and `loading.py`, whose first lines say how they measure.

Inputs: batch of 2, 512 x 512, 19 classes, smooth label maps that hold every class at about its share in Cityscapes and
1.5 % void, logits at an eighth of the size of which half of the pixels reach a confidence of 0.968. EHTDI's contrasts
take logits of 65 x 65, T2S-DA's pull features of 256 channels; some pieces have the sizes that their names say.

With `--write`, the table replaces the one between `<!-- bench -->` and `<!-- end -->` in docs/performance.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cbst_thresholds
import cv2
import loading
import naive
import torch
import torch.nn.functional as F
from inputs import BATCH, CLASS_SHARES, NUM_CLASSES, Inputs, rank_of, smooth
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from measure import interleaved, peak_of
from pull import PullInputs
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_uda.callbacks import EMATeacher
from lightning_uda.inference import WholeImage
from lightning_uda.label_spaces import get_label_space
from lightning_uda.methods import DACS, UDAModule
from lightning_uda.metrics import Scoring
from lightning_uda.mixing import ClassMask, ClassPool, ConfidenceConsistency, paste, paste_tail, soft_paste
from lightning_uda.networks import CaffeDeepLabV2, Classifier, InputNormalization, Outputs, SegmentationNetwork
from lightning_uda.pseudo_labels import BatchConfidence, pseudo_label
from lightning_uda.resize import upsample
from lightning_uda.self_training.stored_logits import StoredLogits
from lightning_uda.step import Labels, Step, to_float
from lightning_uda.terms import FeatureMMD
from lightning_uda.terms.contrast import pixel_contrast, prototype_contrast
from lightning_uda.translation import (
    ColorJitter,
    FourierTranslation,
    GaussianBlur,
    RandomResizedCrop,
    StrongAugmentation,
    ViewJitter,
)

BETA, ALPHA = 0.8, 0.99
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- bench -->\n).*?(<!-- end -->)", re.DOTALL)


def ours(image: Tensor) -> Tensor:
    """Float images in [0, 1]."""
    return image.float() / 255


def theirs(image: Tensor) -> Tensor:
    """Float images in 0-255 minus mean."""
    return image.float() - torch.tensor(naive.MEAN).view(3, 1, 1)


def as_theirs(image: Tensor) -> Tensor:
    """From our images to theirs."""
    return theirs(255 * image)


def seeded() -> torch.Generator:
    """The same draws for both sides."""
    return torch.Generator().manual_seed(3)


Side = Callable[[], tuple[Tensor, ...]]
"""A call to be measured, and its results."""


@dataclass(frozen=True)
class Agreement:
    """How far two results may be apart, and in what.

    Attributes:
        tolerance: Largest value that `distance` may give.
        unit: What it is counted in.
        distance: Of what the naive side and ours gave.
    """

    tolerance: float
    unit: str
    distance: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], float]


def furthest(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """Largest absolute difference of any element."""
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(expected, found, strict=True))


def in_images(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """The same, of results whose float images are on different scales."""
    return furthest(expected, tuple(as_theirs(x) if x.ndim == 4 else x for x in found))


def relative(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """Largest norm of the difference, of losses and of gradients, over the norm."""
    return max(
        ((a.double() - b.double()).norm() / a.double().norm()).item() for a, b in zip(expected, found, strict=True)
    )


def on_average(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """Mean absolute difference of float images on different scales; infinite where labels differ."""
    pairs = list(zip(expected, found, strict=True))
    if any(not torch.equal(a, b) for a, b in pairs if a.ndim == 3):
        return math.inf
    return max((a - as_theirs(b)).abs().mean().item() for a, b in pairs if a.ndim == 4)


def with_ties(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """Largest difference of the confidence; infinite where labels differ and confidence isn't that of a tie."""
    differing = (expected[0] != found[0]) & ((expected[1] - 0.5).abs() > 1e-5) & (expected[1] > 0.5)
    return math.inf if differing.any() else furthest(expected[1:], found[1:])


def taught(logits: Tensor, size: tuple[int, int], *labels: Labels) -> Tensor:
    """The loss of logits, as `Step.learn` forms it."""
    log_probs = upsample(logits, size).log_softmax(dim=1)
    return torch.stack([part.loss(log_probs) for part in labels]).sum()


EXACT = Agreement(0, "", furthest)
GRADIENT = Agreement(1e-5, "relative", relative)


def backward(loss: Callable[..., Tensor], *leaves: Tensor) -> Side:
    """Loss and gradients of `loss(*leaves)`."""
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)

    def run() -> tuple[Tensor, ...]:
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run


def class_mask_sides(x: Inputs) -> tuple[Side, Side]:
    """Half of the classes of two images; ours gets the bytes that streams have, as in its step."""
    ours, labels = ClassMask(), x.source_mask.byte()
    return lambda: (naive.class_mask(x.source_mask, seeded()),), lambda: (ours(labels, seeded()),)


def class_pool_sides(x: Inputs) -> tuple[Side, Side]:
    """Half of the classes of EHTDI's pool in two images; ours gets the bytes that streams have, as in its step."""
    ours, labels = ClassPool(), x.source_mask.byte()
    return lambda: (naive.class_pool(x.source_mask, seeded()),), lambda: (ours(labels, seeded()),)


def mixing_sides(x: Inputs) -> tuple[Side, Side]:
    """Image, label and weights of the mix, with lambda.

    As in their steps: ours mixes bytes and converts the mix, the naive side gets floats.
    """
    weighting, hard = BatchConfidence(), x.paste_mask.long()
    pair, source_mask = (theirs(x.source_image), theirs(x.target_image)), x.source_mask.byte()
    return (
        lambda: (
            naive.mix(*pair, hard),
            naive.mix(x.source_mask, x.pseudo_labels, hard),
            naive.confidence_weights(x.confidence, hard),
        ),
        lambda: (
            to_float(paste(x.source_image, x.target_image, x.paste_mask)),
            paste(source_mask, x.pseudo_labels, x.paste_mask).long(),
            weighting(x.confidence, x.paste_mask),
        ),
    )


def jitter_sides(x: Inputs) -> tuple[Side, Side]:
    """Colour jitter with hue in turns."""
    jitter, images = ColorJitter(), (theirs(x.source_image), ours(x.source_image))
    return lambda: (naive.color_jitter(images[0], seeded()),), lambda: (jitter(images[1], seeded()),)


def blur_sides(x: Inputs) -> tuple[Side, Side]:
    """Gaussian blur, one sigma for each image."""
    blur, images = GaussianBlur(), (theirs(x.source_image), ours(x.source_image))
    return lambda: (naive.gaussian_blur(images[0], seeded()),), lambda: (blur(images[1], seeded()),)


def two_pass_blur_sides(x: Inputs) -> tuple[Side, Side]:
    """The same against two passes along rows and columns, by kernels of the published length."""
    images = theirs(x.source_image)
    return lambda: (naive.gaussian_blur_in_two_passes(images, seeded()),), blur_sides(x)[1]


def fourier_sides(x: Inputs) -> tuple[Side, Side]:
    """FDA of two images, beta 0.01."""
    translation, images = FourierTranslation(), (x.source_image, x.target_image)
    floats, scaled = [image.float() for image in images], [ours(image) for image in images]
    return (
        lambda: (naive.fourier_translation(*floats, 0.01) - torch.tensor(naive.MEAN).view(3, 1, 1),),
        lambda: (translation(scaled[0], seeded(), scaled[1]),),
    )


def pseudo_label_sides(x: Inputs) -> tuple[Side, Side]:
    """Labels and confidence of the teacher's logits."""
    logits = x.logits[1]
    return lambda: naive.pseudo_label(logits, x.size), lambda: pseudo_label(logits, x.size)


def source_ce_sides(x: Inputs) -> tuple[Side, Side]:
    """Loss of source images, upsampling included."""
    return (
        backward(lambda z: naive.cross_entropy(naive.upsample(z, x.size), x.source_mask), x.logits[0]),
        backward(lambda z: taught(z, x.size, Labels(x.source_mask)), x.logits[0]),
    )


def weighted_ce_sides(x: Inputs) -> tuple[Side, Side]:
    """Loss of mixed images, upsampling included."""
    labels = (x.mixed_mask, x.pixel_weights)
    return (
        backward(lambda z: naive.weighted_cross_entropy(naive.upsample(z, x.size), *labels), x.logits[2]),
        backward(lambda z: taught(z, x.size, Labels(*labels, "all")), x.logits[2]),
    )


def ema_sides(x: Inputs) -> tuple[Side, Side]:
    """The teacher's update, 44 M parameters of the published DeepLab-v2."""
    student = CaffeDeepLabV2(NUM_CLASSES)
    by_loop, fused = copy.deepcopy(student), copy.deepcopy(student)
    for parameter in student.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    ema = EMATeacher(ALPHA, warmup=False)

    def loop() -> tuple[Tensor, ...]:
        naive.ema_update(student, by_loop, ALPHA)
        return tuple(by_loop.parameters())

    def update() -> tuple[Tensor, ...]:
        ema.update(student, fused)
        return tuple(fused.parameters())

    return loop, update


def alignment_sides(x: Inputs) -> tuple[Side, Side]:
    """MMD of pooled features, 256 channels at an eighth of the size; the fixed projection is left out on both sides."""
    alignment, soft_mask = FeatureMMD(channels=None), BETA * x.paste_mask
    return (
        backward(lambda *f: naive.feature_alignment(*f, soft_mask), *x.features),
        backward(lambda *f: alignment.weight * alignment.discrepancy(*f, soft_mask), *x.features),
    )


def dsp_ce_sides(x: Inputs) -> tuple[Side, Side]:
    """All cross-entropies of a step of DSP: source, soft segmentation (two labels), consistency (two labels)."""
    weights = BatchConfidence()(x.confidence, torch.zeros_like(x.paste_mask))

    def five(*logits: Tensor) -> Tensor:
        labels = (x.source_mask, x.source_mixed_mask, x.mixed_mask, x.pseudo_labels)
        return naive.dsp_losses(logits, *labels, x.confidence, x.paste_mask.long(), BETA)

    def three(source: Tensor, mixed_source: Tensor, mixed_target: Tensor) -> Tensor:
        pasted, under = ConfidenceConsistency().weights(weights, x.paste_mask, BETA)
        source_labels = Labels(x.source_mask, 1 - BETA), Labels(x.source_mixed_mask, BETA)
        target_labels = Labels(x.mixed_mask, pasted, "all"), Labels(x.pseudo_labels, under, "all")
        return (
            taught(source, x.size, Labels(x.source_mask))
            + taught(mixed_source, x.size, *source_labels)
            + taught(mixed_target, x.size, *target_labels)
        )

    return backward(five, *x.logits), backward(three, *x.logits)


def dsp_mixing_sides(x: Inputs) -> tuple[Side, Side]:
    """Two long-tail classes over the template, and the composite softly over source and target.

    As in their steps: ours gets template and tail as bytes and converts the composite, the naive side gets floats.
    """
    names, hard = ("template", "tail", "source", "target"), x.paste_mask.long()
    masks = {"template": x.template_mask, "tail": x.tail_mask, "source": x.source_mask, "target": x.pseudo_labels}
    their, our = ({n: convert(getattr(x, f"{n}_image")) for n in names} for convert in (theirs, ours))
    template_mask, tail_mask = x.template_mask.byte(), x.tail_mask.byte()

    def whole() -> tuple[Tensor, ...]:
        image, mask, paste_mask = paste_tail(x.template_image, template_mask, x.paste_mask, x.tail_image, tail_mask)
        image, mask = to_float(image), mask.long()
        soft_mask = BETA * paste_mask
        source, target = (soft_paste(image, our[name], soft_mask) for name in ("source", "target"))
        labels = [paste(mask, masks[name], paste_mask) for name in ("source", "target")]
        return source, labels[0], target, labels[1], paste_mask

    return lambda: naive.dsp_mix(*((their[n], masks[n]) for n in names), hard, BETA), whole


class Answers(SegmentationNetwork):
    """Normalises images as a network does and answers them with given logits, one after the other."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__(NUM_CLASSES, InputNormalization(naive.MEAN, (1, 1, 1)), (8,), (3,), "train")
        self.answers = nn.ParameterList(nn.Parameter(z.clone()) for z in logits)
        self.calls = 0

    def outputs(self, image: Tensor) -> Outputs:
        """The next answer, and the images as they come."""
        self.seen = self.normalized(image)
        self.calls += 1
        return Outputs((Classifier(self.answers[(self.calls - 1) % len(self.answers)]),), (self.seen,))

    def parameter_groups(self) -> list[dict[str, object]]:
        """None that is trained."""
        return []


def dacs_sides(x: Inputs) -> tuple[Side, Side]:
    """Everything of a step of DACS but network, teacher update and optimiser, jitter and blur switched on.

    Ours starts from bytes and normalises three batches; the naive side gets floats that its loader has normalised.
    """
    augmentation = StrongAugmentation(jitter_p=1.0, blur_p=1.0)
    module = DACS(network=Answers(x.logits[0], x.logits[2]), label_space="cityscapes", augmentation=augmentation)
    module.teacher = Answers(x.logits[1]).requires_grad_(False)
    module.log_step = lambda values: None
    module.step_generator = lambda batch_idx: seeded()
    batch = {
        "source": {"image": x.source_image, "mask": x.source_mask.byte()},
        "target": {"image": x.target_image},
    }
    leaves = [x.logits[0].clone().requires_grad_(), x.logits[2].clone().requires_grad_()]
    images = theirs(x.source_image), theirs(x.target_image)

    def literal() -> tuple[Tensor, ...]:
        source = (images[0], x.source_mask)
        loss, mixed = naive.dacs_losses((leaves[0], x.logits[1], leaves[1]), source, images[1], seeded())
        return loss.detach(), *torch.autograd.grad(loss, leaves), mixed

    def step() -> tuple[Tensor, ...]:
        loss = module.training_step(batch, 0)
        return loss.detach(), *torch.autograd.grad(loss, list(module.student.answers)), module.student.seen

    return literal, step


def contrast_sides(name: str, x: Inputs) -> tuple[Side, Side]:
    """EHTDI's contrast of two similar views, 65 x 65; labels of ten classes and some void."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(BATCH, NUM_CLASSES, 9, 9, generator=generator)
    first = 4 * F.interpolate(coarse, (65, 65), mode="bicubic", align_corners=True)
    second = first + torch.randn(first.shape, generator=generator)
    labels = first.argmax(1)
    labels = labels.masked_fill(labels > 9, 255)
    if name == "PiCL":
        their, our = partial(naive.pixel_contrast, scale=20.0), partial(pixel_contrast, scale=20.0)
    else:
        their, our = (
            partial(contrast, labels=labels, scale=7.0) for contrast in (naive.prototype_contrast, prototype_contrast)
        )
    return backward(their, first, second), backward(our, first, second)


def pull_sides(side: int, x: Inputs) -> tuple[Side, Side]:
    """T2S-DA's pull; drawing is part of our time, the naive form is given what it draws."""
    inputs = PullInputs(side)
    return inputs.naive, inputs.ours


def ehtdi_views_sides(x: Inputs) -> tuple[Side, Side]:
    """EHTDI's views of source and target, whole images of 720 x 1280 and 640 x 1280 in crops of 512 x 512.

    Both sides start from floats, as what comes before them gives. The naive side works on bytes, as published, which
    rounds after every stage, and makes the program's third views, which feed nothing; ours works on floats.
    """
    crop, jitter, side = RandomResizedCrop(size=512), ViewJitter(), 512
    frames = []
    for height in (720, 640):
        image = 0.5 + 0.2 * smooth(BATCH, 3, height, 1280, generator=seeded())
        image = (255 * (image + 0.05 * torch.rand(image.shape, generator=seeded()))).clamp(0, 255).byte()
        mask = torch.bucketize(rank_of(smooth(BATCH, height, 1280, generator=seeded())), CLASS_SHARES.cumsum(0)[:-1])
        frames.append((image, mask))
    their, our = ([(convert(image), mask) for image, mask in frames] for convert in (theirs, ours))

    def literal() -> tuple[Tensor, ...]:
        generator, results = seeded(), []
        for image, mask in their:
            boxes = crop.draw(BATCH, *image.shape[-2:], generator).tolist()
            results += naive.strong_and_weak_views(image, mask, boxes, side, generator)
        naive.strong_and_weak_views(image, mask, boxes, side, generator)
        return tuple(results)

    def views() -> tuple[Tensor, ...]:
        generator, results = seeded(), []
        for image, mask in our:
            weak, labels = crop(image, mask, generator)
            results += [weak, jitter(weak, generator), labels]
        return tuple(results)

    return literal, views


def ehtdi_labels_sides(x: Inputs) -> tuple[Side, Side]:
    """Labels of both classifiers of EHTDI's network, two images of 640 x 1280."""
    logits, size = [smooth(BATCH, NUM_CLASSES, 81, 161, generator=seeded()) for _ in range(2)], (640, 1280)
    return tuple(
        lambda form=form: tuple(part for each in logits for part in form(each, size))
        for form in (naive.pseudo_label, pseudo_label)
    )


def ehtdi_ce_sides(x: Inputs) -> tuple[Side, Side]:
    """Losses of source images of 720 x 1280 with both classifiers of EHTDI's network."""
    size = (720, 1280)
    share = torch.linspace(0, 1, NUM_CLASSES + 1)[1:-1]
    mask = torch.bucketize(rank_of(smooth(1, *size, generator=seeded())), share)
    logits = [smooth(1, NUM_CLASSES, 91, 161, generator=seeded()) for _ in range(2)]

    def their(main: Tensor, auxiliary: Tensor) -> Tensor:
        first, second = (naive.cross_entropy(naive.upsample(z, size), mask) for z in (main, auxiliary))
        return first + 0.1 * second

    def our(main: Tensor, auxiliary: Tensor) -> Tensor:
        first, second = (taught(z, size, Labels(mask)) for z in (main, auxiliary))
        return first + 0.1 * second

    return backward(their, *logits), backward(our, *logits)


def confusion_sides(x: Inputs) -> tuple[Side, Side]:
    """The confusion matrix of one image, pixel by pixel on the naive side."""
    mask, predicted = x.source_mask[:1], x.pseudo_labels[:1]
    confusion = Scoring().new_confusion(get_label_space("cityscapes"))

    def count() -> tuple[Tensor, ...]:
        confusion.reset()
        confusion.update(predicted, mask)
        return (confusion.compute(),)

    return lambda: (naive.confusion(predicted[0], mask[0], NUM_CLASSES),), count


def step_distance(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """Largest relative distance of loss and gradients, or of the mixed images in 1000 of 255."""
    return max(relative(expected[:3], found[:3]), furthest(expected[3:], found[3:]) / 1000)


@dataclass(frozen=True)
class Piece:
    """A row of the table.

    Attributes:
        sides: Makes the naive call and ours.
        bar: Least ratio of their times.
        memory: Largest peak of ours, in MB.
        agreement: What is compared.
    """

    sides: Callable[[Inputs], tuple[Side, Side]]
    bar: float
    memory: float
    agreement: Agreement


OF_255 = Agreement(1e-2, "of 255", in_images)
PIECES = {
    "class mask": Piece(class_mask_sides, 4, 8, EXACT),
    "class pool": Piece(class_pool_sides, 30, 8, EXACT),
    "mixing": Piece(mixing_sides, 3, 16, Agreement(1e-4, "of 255", in_images)),
    "colour jitter": Piece(jitter_sides, 3, 50, OF_255),
    "Gaussian blur": Piece(blur_sides, 20, 30, OF_255),
    "the same, kernels in two passes": Piece(two_pass_blur_sides, 1, 30, OF_255),
    "Fourier": Piece(fourier_sides, 5, 40, OF_255),
    "pseudo label": Piece(pseudo_label_sides, 1, 90, Agreement(1e-5, "confidence", with_ties)),
    "source CE": Piece(source_ce_sides, 4, 130, GRADIENT),
    "weighted CE": Piece(weighted_ce_sides, 1, 130, GRADIENT),
    "EMA": Piece(ema_sides, 3.5, 1, Agreement(1e-6, "", furthest)),
    "DSP alignment": Piece(alignment_sides, 100, 40, GRADIENT),
    "DSP CE": Piece(dsp_ce_sides, 4, 350, GRADIENT),
    "DSP mixing": Piece(dsp_mixing_sides, 3, 40, Agreement(1e-4, "of 255", in_images)),
    "PiCL, 65 x 65": Piece(partial(contrast_sides, "PiCL"), 5, 80, GRADIENT),
    "ProCL, 65 x 65": Piece(partial(contrast_sides, "ProCL"), 3, 5, GRADIENT),
    "EHTDI views, from 720 x 1280": Piece(ehtdi_views_sides, 3, 40, Agreement(1, "of 255 on average", on_average)),
    "EHTDI labels, 640 x 1280": Piece(ehtdi_labels_sides, 2.5, 800, Agreement(1e-5, "confidence", with_ties)),
    "EHTDI source CE, 720 x 1280": Piece(ehtdi_ce_sides, 1, 550, GRADIENT),
    "pull, 65 x 65": Piece(partial(pull_sides, 65), 2, 90, GRADIENT),
    "pull, 16 x 16": Piece(partial(pull_sides, 16), 2, 90, GRADIENT),
    "confusion matrix": Piece(confusion_sides, 50, 8, EXACT),
    "whole DACS": Piece(dacs_sides, 4, 200, Agreement(1e-5, "relative", step_distance)),
}


class Row(NamedTuple):
    """A row of the table, as texts; "ok", "missed" or "disagrees" last."""

    piece: str
    naive_ms: str
    ours_ms: str
    ratio: str
    bar: str
    naive_mb: str
    ours_mb: str
    bar_mb: str
    difference: str
    verdict: str


HEADINGS = Row("piece", "naive ms", "ours ms", "ratio", "bar", "peak MB naive", "ours", "bar", "difference", "")


def verdict(held: bool, agrees: bool = True) -> str:
    """What is said of a row."""
    return "disagrees" if not agrees else "ok" if held else "missed"


def measured_peaks(names: list[str], size: int) -> dict[str, list[float]]:
    """Peaks in MB of the naive side and of ours, from a process that gives small blocks back when they are freed."""
    command = [sys.executable, __file__, "--size", str(size), "--peaks"]
    command += [word for name in names for word in ("--only", name)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def piece_rows(names: list[str], inputs: Inputs, size: int, rounds: int) -> Iterator[Row]:
    """Rows of the pieces; of a slow naive side no more than five calls."""
    peaks = measured_peaks(names, size)
    for name in names:
        piece = PIECES[name]
        literal, package = piece.sides(inputs)
        start = time.process_time()
        expected = literal()
        calls = rounds if time.process_time() - start < 2 else min(rounds, 5)
        difference = piece.agreement.distance(expected, package())
        slow, fast, ratio = interleaved(literal, package, calls)
        agrees = difference <= piece.agreement.tolerance
        before, after = peaks[name]
        yield Row(
            name,
            *(f"{slow:.1f}", f"{fast:.1f}", f"{ratio:.1f}x", f"{piece.bar:g}x"),
            *(f"{before:.0f}", f"{after:.0f}", f"{piece.memory:g}"),
            f"{difference:.0e} {piece.agreement.unit}".strip() if difference else "none",
            verdict(round(ratio, 1) >= piece.bar and after <= piece.memory, agrees),
        )


def scores_row() -> Iterator[Row]:
    """What is kept of an image of 512 x 1024 between CBST's two passes, and the pixels that it labels differently."""
    size = (512, 1024)
    logits = 4 * smooth(1, NUM_CLASSES, 65, 129, generator=seeded())
    network = Answers(logits).requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        path, stored = Path(folder, "probabilities.npy"), StoredLogits(network, Path(folder), 1, bits=16)

        def keep() -> Tensor:
            stored.show(0)
            return WholeImage()(stored, torch.zeros(1, 3, *size), size).softmax(dim=1)

        literal = naive.keep_probabilities(logits, size, path)
        keep()
        kept = [file.stat().st_size / 1e6 for file in (path, Path(f"/proc/self/fd/{stored._file.fileno()}"))]
        labels = [naive.class_balanced_labels(scores, 0.2) for scores in (literal, keep())]
        slow, fast, _ = interleaved(lambda: naive.keep_probabilities(logits, size, path), keep, 15)
        stored.close()
    off, ratio = (labels[0] != labels[1]).float().mean().item(), kept[0] / kept[1]
    yield Row(
        "CBST scores kept in 16 bits, 512 x 1024: MB",
        *(f"{slow:.1f}", f"{fast:.1f}", f"{ratio:.1f}x", "50x"),
        *(f"{kept[0]:.1f}", f"{kept[1]:.2f}", "0.35"),
        f"{off:.0e} of pixels" if off else "none",
        verdict(ratio >= 50 and kept[1] <= 0.35, off <= 2e-4),
    )


def threshold_rows() -> Iterator[Row]:
    """CBST's thresholds of 50 maps of 1024 x 2048, by the histogram and exactly."""
    found = {form: cbst_thresholds.run(form, 50, (1024, 2048)) for form in cbst_thresholds.FORMS}
    slow, exact = found["collect"], found["radix"]["thresholds"]
    for form, name in (("histogram", "CBST thresholds, T = 50"), ("radix", "the same, exact")):
        own, bar, memory = found[form], cbst_thresholds.RATIO_BAR, cbst_thresholds.MEMORY_BAR
        ratio, off = slow["seconds"] / own["seconds"], cbst_thresholds.furthest(own["thresholds"], exact)
        agrees = off <= cbst_thresholds.ERROR_BAR
        yield Row(
            name,
            *(f"{1000 * slow['seconds']:.0f}", f"{1000 * own['seconds']:.0f}", f"{ratio:.1f}x", f"{bar}x"),
            *(f"{slow['megabytes']:.0f}", f"{own['megabytes']:.0f}", f"{memory}"),
            f"{off:.0e}" if off else "none",
            verdict(round(ratio, 1) >= bar and own["megabytes"] <= memory, agrees),
        )


def loading_rows() -> Iterator[Row]:
    """Items of one loader worker; `loading` has compared the pixels before it measures."""
    with tempfile.TemporaryDirectory() as folder:
        for setting in (loading.SETTINGS[0], loading.SETTINGS[2]):
            root = Path(folder, setting.title.partition(",")[0])
            loading.make_files(root, setting.file_size, 6)
            times, ratios = loading.measure(loading.forms(setting, root), 30)
            for form, bar in (("uncached", setting.uncached_bar), ("png", 8), ("memmap", 8)):
                name = f"{root.name} item, {form if form == 'uncached' else f'{form} cache'}"
                numbers = (f"{times['naive']:.1f}", f"{times[form]:.1f}", f"{ratios[form]:.1f}x", f"{bar}x")
                yield Row(name, *numbers, "", "", "", "pixels compared", verdict(round(ratios[form], 1) >= bar))


def lightning_row(rounds: int = 5) -> Iterator[Row]:
    """What Lightning and our logging add to a step of a layer that costs nothing, over a bare loop."""

    class Nothing(UDAModule):
        """A step that logs five numbers as methods do."""

        def __init__(self) -> None:
            super().__init__(network=Answers(), label_space="cityscapes")
            self.layer = nn.Linear(8, 8)

        def algorithm(self, step: Step) -> None:
            """Nothing that a step of views would do."""

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = self.layer(batch).square().mean()
            self.log_step({f"loss_{number}": loss for number in range(4)} | {"loss": loss})
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.layer.parameters(), lr=1e-3)

    steps, batch = 1000, torch.randn(4, 8)

    def bare() -> float:
        module = Nothing()
        optimizer = module.configure_optimizers()
        start = time.process_time()
        for _ in range(steps):
            optimizer.zero_grad()
            module.layer(batch).square().mean().backward()
            optimizer.step()
        return 1000 * (time.process_time() - start) / steps

    def trained(folder: str) -> float:
        trainer = Trainer(
            max_steps=steps,
            logger=CSVLogger(folder),
            log_every_n_steps=50,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = DataLoader([batch] * steps, batch_size=None)
        module = Nothing()
        start = time.process_time()
        trainer.fit(module, data)  # and what comes before and after the steps
        return 1000 * (time.process_time() - start) / steps

    with tempfile.TemporaryDirectory() as folder:
        pairs = [(bare(), trained(folder)) for _ in range(rounds)]
    loop, whole = (min(column) for column in zip(*pairs, strict=True))  # a difference, which other work would add to
    extra = whole - loop
    numbers = (f"{loop:.2f}", f"{whole:.2f}", f"+{extra:.2f} ms", "+1 ms")
    yield Row("Lightning and logging, over a bare loop", *numbers, "", "", "", "", verdict(extra <= 1))


FURTHER = {
    "CBST scores": scores_row,
    "CBST thresholds": threshold_rows,
    "loading": loading_rows,
    "Lightning": lightning_row,
}
"""Rows that measure otherwise, by the name of all that come together."""


def machine() -> str:
    """The processor and its cores, torch and the day."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"


def markdown(rows: list[Row], title: str) -> str:
    """The table of the page."""
    held = sum(row.verdict == "ok" for row in rows)
    lines = [HEADINGS, Row(*["---"] * len(HEADINGS)), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"\n{title}: {held} of {len(rows)} bars held.\n\n{table}\n\n"


def main() -> None:
    """Prints one row for each piece, and writes them into the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [*PIECES, *FURTHER]
    parser.add_argument("--only", choices=choices, action="append", help="measure this piece; may be given repeatedly")
    parser.add_argument("--rounds", type=int, default=15, help="calls of each form")
    parser.add_argument("--size", type=int, default=512, help="height and width; the bars are for 512")
    parser.add_argument("--peaks", action="store_true", help="print peak memory alone, as JSON, and exit")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write: the page has all rows; leave out --only.")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    inputs = Inputs(options.size)
    names = [name for name in PIECES if name in (options.only or choices)]
    if options.peaks:
        print(json.dumps({name: [peak_of(side) for side in PIECES[name].sides(inputs)] for name in names}))
        return

    rows = [*piece_rows(names, inputs, options.size, options.rounds)] if names else []
    rows += [row for name in FURTHER if name in (options.only or choices) for row in FURTHER[name]()]
    title = f"{machine()}; {options.size} x {options.size}, one thread, {options.rounds} rounds"
    table = Table(title=title)
    for column in HEADINGS:
        table.add_column(column, justify="left" if column in ("piece", "") else "right", no_wrap=True)
    colours = {"ok": "green", "missed": "yellow", "disagrees": "red"}
    for row in rows:
        table.add_row(*row[:-1], f"[{colours[row.verdict]}]{row.verdict}")
    Console(width=140).print(table)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(BLOCK.sub(lambda match: match[1] + markdown(rows, title) + match[2], text), encoding="utf-8")
    if disagreeing := [row.piece for row in rows if row.verdict == "disagrees"]:
        sys.exit(f"Ours and the naive form disagree: {', '.join(disagreeing)}")


if __name__ == "__main__":
    main()
