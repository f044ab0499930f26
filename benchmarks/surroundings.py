"""What surrounds the network in a step of all methods: our code against its literal, naive transcription.

Run as `python benchmarks/surroundings.py`. Both forms take the same inputs and random draws, in turn, in one process
and on one thread; times are CPU times, medians over the rounds, and the ratio is the median of the paired ratios, which
counts as it is printed. Results are compared in the same run, and the script fails if they disagree. Peak memory is the
peak above what the process held before the call, measured in another process (Linux).

Inputs: batch of 2, 512 x 512, 19 classes, smooth label maps that hold every class at about its share in Cityscapes and
1.5 % void, logits at an eighth of the size of which half of the pixels reach a confidence of 0.968.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import naive
import torch
import torch.nn.functional as F
from measure import interleaved, peak_of
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_uda.callbacks import EMATeacher
from lightning_uda.methods import DACS
from lightning_uda.mixing import ClassMask, ClassPool, ConfidenceConsistency, paste, paste_tail, soft_paste
from lightning_uda.networks import CaffeDeepLabV2, Classifier, InputNormalization, Outputs, SegmentationNetwork
from lightning_uda.pseudo_labels import BatchConfidence, pseudo_label
from lightning_uda.resize import upsample
from lightning_uda.step import Labels, to_float
from lightning_uda.terms import FeatureMMD
from lightning_uda.translation import ColorJitter, FourierTranslation, GaussianBlur, StrongAugmentation

NUM_CLASSES, BATCH, BETA, TAIL, ALPHA = 19, 2, 0.8, 2, 0.99
FREQUENCY = (36.9, 6.1, 22.8, 0.7, 0.9, 1.2, 0.2, 0.6, 15.9, 1.2, 4.0, 1.2, 0.2, 7.0, 0.3, 0.3, 0.3, 0.2, 0.4)
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
        share = torch.tensor(FREQUENCY) / sum(FREQUENCY)

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
    """Half of the classes of two images."""
    ours = ClassMask()
    return lambda: (naive.class_mask(x.source_mask, seeded()),), lambda: (ours(x.source_mask, seeded()),)


def class_pool_sides(x: Inputs) -> tuple[Side, Side]:
    """Half of the classes of EHTDI's pool in two images."""
    ours = ClassPool()
    return lambda: (naive.class_pool(x.source_mask, seeded()),), lambda: (ours(x.source_mask, seeded()),)


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
    "Fourier": Piece(fourier_sides, 5, 40, OF_255),
    "pseudo label": Piece(pseudo_label_sides, 1, 90, Agreement(1e-5, "confidence", with_ties)),
    "source CE": Piece(source_ce_sides, 4, 130, GRADIENT),
    "weighted CE": Piece(weighted_ce_sides, 1, 130, GRADIENT),
    "EMA": Piece(ema_sides, 3.5, 1, Agreement(1e-6, "", furthest)),
    "DSP alignment": Piece(alignment_sides, 100, 40, GRADIENT),
    "DSP CE": Piece(dsp_ce_sides, 4, 350, GRADIENT),
    "DSP mixing": Piece(dsp_mixing_sides, 3, 40, Agreement(1e-4, "of 255", in_images)),
    "whole DACS": Piece(dacs_sides, 4, 200, Agreement(1e-5, "relative", step_distance)),
}


def measured_peaks(names: list[str], size: int) -> dict[str, list[float]]:
    """Peaks in MB of the naive side and of ours, from a process that gives small blocks back when they are freed."""
    command = [sys.executable, __file__, "--size", str(size), "--peaks"]
    command += [word for name in names for word in ("--only", name)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    """Prints one row for each piece."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PIECES, action="append", help="measure this piece; may be given repeatedly")
    parser.add_argument("--rounds", type=int, default=7, help="calls of each form")
    parser.add_argument("--size", type=int, default=512, help="height and width; the bars are for 512")
    parser.add_argument("--peaks", action="store_true", help="print peak memory alone, as JSON, and exit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = Inputs(options.size)
    names = options.only or list(PIECES)
    if options.peaks:
        print(json.dumps({name: [peak_of(side) for side in PIECES[name].sides(inputs)] for name in names}))
        return

    table = Table(title=f"batch of {BATCH}, {options.size} x {options.size}, one thread, {options.rounds} rounds")
    for column in ("piece", "naive ms", "ours ms", "ratio", "bar", "peak MB naive", "ours", "bar", "difference", ""):
        table.add_column(column, justify="left" if column in ("piece", "") else "right", no_wrap=True)
    disagreeing, peaks = [], measured_peaks(names, options.size)
    for name in names:
        piece = PIECES[name]
        literal, package = piece.sides(inputs)
        difference = piece.agreement.distance(literal(), package())
        slow, fast, ratio = interleaved(literal, package, options.rounds)
        agrees = difference <= piece.agreement.tolerance
        disagreeing += [] if agrees else [name]
        met = round(ratio, 1) >= piece.bar and peaks[name][1] <= piece.memory
        table.add_row(
            name,
            *(f"{slow:.1f}", f"{fast:.1f}", f"{ratio:.1f}x", f"{piece.bar:g}x"),
            *(f"{peaks[name][0]:.0f}", f"{peaks[name][1]:.0f}", f"{piece.memory:g}"),
            f"{difference:.0e} {piece.agreement.unit}" if difference else "none",
            "[red]disagrees" if not agrees else "[green]ok" if met else "[yellow]missed",
        )
    Console(width=120).print(table)
    if disagreeing:
        sys.exit(f"Ours and the naive form disagree: {', '.join(disagreeing)}")


if __name__ == "__main__":
    main()
