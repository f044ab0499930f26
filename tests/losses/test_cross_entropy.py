import pytest
import torch

from lightning_uda.losses import cross_entropy, weighted_cross_entropy


def check_gradient(loss, logits, expected):
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(grad, expected, rtol=0, atol=1e-7)


def test_supervised_loss_is_the_reference(golden):
    g = golden("dacs_supervised_ce")
    logits = g["logits"].requires_grad_()
    loss = cross_entropy(logits, g["target"])
    assert loss.item() == pytest.approx(g["loss"].item(), rel=1e-5)
    check_gradient(loss, logits, g["grad"])


def test_supervised_loss_of_a_batch_without_labels_is_zero():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 8, 8), 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("mode", ["uniform", "threshold", "none"])
def test_mixed_loss_is_the_reference(golden, mode):
    g = golden("dacs_mixed_loss")
    logits = g["student_logits"].requires_grad_()
    loss = weighted_cross_entropy(logits, g["mixed_target"], g[f"weight_{mode}"])
    assert loss.item() == pytest.approx(g[f"loss_{mode}"].item(), rel=1e-5)
    check_gradient(loss, logits, g[f"grad_{mode}"])
