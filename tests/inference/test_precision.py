"""Under every precision, scores are float32 from the logits on, and the arg-max is that of exact upsampling."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from lightning_uda.inference import MultiScale, SlidingWindow, StrideProbabilities, WholeImage
from lightning_uda.methods import SourceOnly
from tests.fixtures.tiny import TinyDataset, tiny_data, tiny_network
from tests.inference.networks import images, strided

SIZE = (96, 128)
POLICIES = {
    "whole": WholeImage(),
    "whole, corners not aligned": WholeImage(align_corners=False),
    "windows": SlidingWindow((16, 24), (8, 8)),
    "scales, probabilities": MultiScale(scales=[0.5, 1.0]),
    "scales, logits": MultiScale(SlidingWindow((16, 16), (16, 16)), [0.5, 1.0], average="logits"),
    "stride": StrideProbabilities(),
}


@contextmanager
def bfloat16_true():
    """What Lightning sets under `precision: bf16-true`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


PRECISIONS = {
    "float32": (nullcontext, torch.float32),
    "bf16-mixed": (lambda: torch.autocast("cpu", torch.bfloat16), torch.float32),
    "bf16-true": (bfloat16_true, torch.bfloat16),
    "fp16-true": (nullcontext, torch.float16),
    "mixed over bfloat16 weights": (lambda: torch.autocast("cpu", torch.bfloat16), torch.bfloat16),
}


class Logits:
    """A network whose logits are known: random, on the coarse grid of bfloat16, at output stride 8."""

    def __init__(self):
        self.passes = []

    def __call__(self, image):
        num, _, height, width = image.shape
        generator = torch.Generator().manual_seed(len(self.passes))
        logits = torch.randn(num, 19, height // 8, width // 8, generator=generator, dtype=torch.float32)
        self.passes.append(logits.bfloat16())
        return self.passes[-1]


def regret(scores, exact):
    """By how much the exact score of the chosen class lies below the largest one, at most."""
    chosen = exact.gather(1, scores.argmax(dim=1, keepdim=True))
    return (exact.amax(dim=1, keepdim=True) - chosen).max().item()


def upsampled(logits, size, align_corners=True):
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)


def exact_whole(passes, align_corners=True):
    (logits,) = passes
    return upsampled(logits, SIZE, align_corners)


def exact_windows(passes):
    """All windows at once were one pass each of four windows, row after row."""
    windows = iter(torch.cat(passes))
    total, count = torch.zeros(1, 19, 64, 96, dtype=torch.float64), torch.zeros(64, 96, dtype=torch.float64)
    for top in range(0, 49, 8):
        for left in range(0, 73, 8):
            total[0, :, top : top + 16, left : left + 24] += upsampled(next(windows)[None], (16, 24))[0]
            count[top : top + 16, left : left + 24] += 1
    return upsampled(total / count, SIZE)


def exact_scales(passes):
    parts = [upsampled(logits, SIZE).softmax(dim=1) for logits in passes]
    return sum(part.flip(-1) if i % 2 else part for i, part in enumerate(parts)) / 4


def exact_stride(passes):
    straight, mirrored = (logits.double().softmax(dim=1) for logits in passes)
    whole = F.interpolate((straight + mirrored.flip(-1)) / 2, (64, 96), mode="bicubic", antialias=True)
    return F.interpolate(whole, SIZE, mode="bicubic", antialias=True)


EXACT = {
    "whole": exact_whole,
    "whole, corners not aligned": lambda passes: exact_whole(passes, align_corners=False),
    "windows": exact_windows,
    "scales, probabilities": exact_scales,
    "stride": exact_stride,
}


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("policy", POLICIES)
def test_scores_are_float32(policy, precision):
    context, weights = PRECISIONS[precision]
    network, image = strided().to(weights), images(1, 3, 32, 48)
    with context():
        scores = POLICIES[policy].scores(lambda batch: network(batch.to(weights)), image)
        assert all(scores(size).dtype == torch.float32 for size in [(8, 12), (32, 48), SIZE])


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("policy", EXACT)
def test_predictions_are_those_of_float64_upsampling(policy, precision):
    network, image = Logits(), images(1, 3, 64, 96)
    with PRECISIONS[precision][0]():
        scores = POLICIES[policy](network, image, SIZE)
    assert regret(scores, EXACT[policy](network.passes)) < 2e-6


def test_the_measure_tells_bfloat16_upsampling_from_ours():
    network = Logits()
    logits = network(images(1, 3, 64, 96))
    coarse = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    assert regret(coarse, exact_whole(network.passes)) > 2e-3


def test_windows_are_counted_exactly_where_more_than_256_lie_over_a_pixel():
    constant = torch.full((1, 2, 4, 4), 0.3, dtype=torch.float32)
    with bfloat16_true():
        policy = SlidingWindow((32, 32), (1, 1), windows_per_batch=256)
        scores = policy(lambda crops: constant.expand(len(crops), 2, 4, 4), images(1, 3, 64, 64), (64, 64))
    torch.testing.assert_close(scores, torch.full_like(scores, 0.3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_validation_and_prediction_take_the_arg_max_of_float32_scores(precision):
    seen = []

    class Recorder(WholeImage):
        def scores(self, network, image):
            scores = super().scores(network, image)

            def recorded(size):
                seen.append(scores(size).dtype)
                return scores(size)

            return recorded

    module = SourceOnly(tiny_network(), "camvid", inference=Recorder())
    trainer = Trainer(
        accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    data = tiny_data(predict=TinyDataset(length=3, has_labels=False))
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.predict(module, datamodule=data)
    assert len(seen) >= 6
    assert set(seen) == {torch.float32}
