"""Parts of a step stay float32 where Lightning makes a 16-bit type the default, as under `bf16-true` and `16-true`."""

import pytest
import torch

from lightning_uda.mixing import ConfidenceConsistency, LiteralConsistency
from lightning_uda.pseudo_labels import BatchConfidence, ImageConfidence, unpasted_mean
from lightning_uda.self_training.losses import MRKLD
from lightning_uda.terms import mmd


@pytest.fixture(params=[torch.float16, torch.bfloat16])
def low(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("weighting", [BatchConfidence(), ImageConfidence()])
def test_a_share_of_many_confident_pixels(low, weighting):
    confidence = torch.ones(2, 512, 512, dtype=torch.float32)
    confidence[:, :100] = 0.5
    paste_mask = torch.zeros(2, 512, 512, dtype=torch.bool)
    paste_mask[:, :, :256] = True
    weights = weighting(confidence, paste_mask)
    assert weights.dtype == torch.float32
    assert weights[0, 0, -1].item() == pytest.approx(412 / 512, rel=1e-6)
    assert unpasted_mean(weights, paste_mask).item() == pytest.approx(412 / 512, rel=1e-5)


@pytest.mark.parametrize("consistency", [ConfidenceConsistency(), LiteralConsistency()])
def test_weights_of_soft_labels(low, consistency):
    weights = torch.ones(1, 2, 2, dtype=torch.float32)
    pasted, under = consistency.weights(weights, torch.ones(1, 2, 2, dtype=torch.bool), 0.8)
    assert pasted.unique().item() == pytest.approx(0.8, rel=1e-6)
    assert under.unique().item() == pytest.approx(0.2, rel=1e-6)


def test_uniform_labels(low):
    mask, is_target = torch.zeros(1, 2, 2, dtype=torch.uint8), torch.ones(1, dtype=torch.bool)
    _, uniform = MRKLD().labels(mask, is_target, torch.zeros(19), None)
    assert uniform.probs.unique().item() == pytest.approx(1 / 19, rel=1e-6)


def test_mmd(low):
    x, y = torch.randn(2, 3, 16, dtype=torch.float32)
    value = mmd(x, y)
    torch.set_default_dtype(torch.float32)
    assert value.item() == pytest.approx(mmd(x, y).item(), rel=1e-6)
