import pytest
import torch

from lightning_uda.losses import mmd


@pytest.mark.parametrize("case", "abcd")
def test_mmd_is_the_reference(golden, case):
    g = golden("dsp_mmd")
    x, y = (g[f"{name}_{case}"].requires_grad_() for name in "xy")
    value = mmd(x, y)
    assert value.item() == pytest.approx(g[f"mmd_{case}"].item(), rel=1e-5)
    fixed = mmd(x, y, bandwidth=2.0)
    assert fixed.item() == pytest.approx(g[f"mmd_fixed_sigma_2_{case}"].item(), rel=1e-5)
    value.backward()
    assert torch.allclose(x.grad, g[f"grad_x_{case}"], rtol=1e-4, atol=1e-6)
    assert torch.allclose(y.grad, g[f"grad_y_{case}"], rtol=1e-4, atol=1e-6)


def test_coinciding_vectors_give_zero_and_no_nan():
    x = torch.ones(2, 4, requires_grad=True)
    value = mmd(x, torch.ones(2, 4))
    value.backward()
    assert value.item() == 0
    assert torch.equal(x.grad, torch.zeros(2, 4))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_coinciding_vectors_survive_a_scaled_loss(n):
    x = torch.ones(n, 8, requires_grad=True)
    (65536 * mmd(x, torch.ones(n, 8))).backward()
    assert torch.equal(x.grad, torch.zeros(n, 8))


def test_scale_changes_nothing():
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    assert mmd(1e-3 * x, 1e-3 * y).item() == pytest.approx(mmd(x, y).item(), rel=1e-4)


def test_float32_under_mixed_precision():
    x, y = torch.randn(2, 256), torch.randn(2, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mmd(x, y)
    assert value.dtype == torch.float32
    assert value.item() == mmd(x, y).item()
