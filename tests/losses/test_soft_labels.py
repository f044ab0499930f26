import torch
import torch.nn.functional as F

from lightning_uda.losses import ConfidenceConsistency, SoftSegmentationLoss, weighted_cross_entropy
from lightning_uda.mixing import paste

SIZE = (6, 7)


def sample():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, *SIZE)
    labels, pasted, pseudo = (torch.randint(0, 5, (2, *SIZE)) for _ in range(3))
    labels[0, 0] = 255
    return logits, labels, pasted, pseudo, torch.rand(2, *SIZE) > 0.5


def test_soft_segmentation_outside_the_paste_has_the_full_weight():
    logits, labels, pasted, _, mask = sample()
    mixed, beta = paste(pasted, labels, mask), 0.7
    per_pixel = F.cross_entropy(logits, labels, ignore_index=255, reduction="none") * (1 - beta * mask)
    per_pixel = per_pixel + F.cross_entropy(logits, pasted, reduction="none") * beta * mask
    loss = SoftSegmentationLoss("all")(logits, labels, mixed, beta)
    assert torch.allclose(loss, per_pixel.mean(), rtol=1e-5)


def test_all_void_gives_zero():
    void = torch.full((2, *SIZE), 255)
    assert SoftSegmentationLoss()(torch.randn(2, 5, *SIZE), void, void, 0.8) == 0


def test_hard_paste_is_dacs_mixed_loss():
    logits, _, pasted, pseudo, mask = sample()
    confidence = torch.full((2, *SIZE), 0.3)
    mixed = paste(pasted, pseudo, mask)
    expected = weighted_cross_entropy(logits, mixed, confidence.masked_fill(mask, 1.0))
    assert torch.allclose(ConfidenceConsistency()(logits, mixed, pseudo, confidence, mask, 1.0), expected, rtol=1e-6)
