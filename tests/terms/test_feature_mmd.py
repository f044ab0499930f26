import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from lightning_uda.methods import DACS, DSP
from lightning_uda.terms import FeatureMMD, mmd
from lightning_uda.terms.feature_mmd import masked_mean, upsampling_adjoint
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET


class Width:
    """A network of which a term asks the channels alone."""

    def __init__(self, channels):
        self.channels = (channels,)


def aligned(channels_in, **kwargs):
    term = FeatureMMD(**kwargs)
    term.prepare(Width(channels_in))
    return term


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


def naive_masked_mean(features, mask):
    """Upsample, multiply, average, as the definition says."""
    upsampled = F.interpolate(features, mask.shape[-2:], mode="bilinear", align_corners=True)
    return (upsampled * mask.unsqueeze(1)).mean(dim=(2, 3))


def test_masked_mean_is_the_reference(golden):
    g = golden("dsp_masked_pool")
    features = g["features"].requires_grad_()
    pooled = masked_mean(features, g["soft_mask"])
    assert torch.allclose(pooled, g["pooled_own_mask"], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(pooled, g["pooled_first_mask_for_all"], rtol=1e-3)
    pooled.square().sum().backward()
    assert torch.allclose(features.grad, g["grad_of_sum_sq_pooled_own_mask"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("small", "large"), [((5, 7), (33, 20)), ((1, 3), (8, 9)), ((4, 4), (4, 4))])
def test_adjoint_is_that_of_upsampling(small, large):
    features, mask = torch.randn(2, 3, *small), torch.rand(2, *large)
    assert torch.allclose(masked_mean(features, mask), naive_masked_mean(features, mask), atol=1e-6)
    assert torch.allclose(upsampling_adjoint(mask, small).sum((1, 2)), mask.sum((1, 2)), rtol=1e-5)


def test_it_is_the_sum_of_both_mmds_of_projected_features():
    source, target, mask = torch.randn(2, 16, 5, 5), torch.randn(2, 16, 5, 5), (torch.rand(2, 33, 33) > 0.5) * 0.8
    term = aligned(16, channels=8)
    kernel = term.projection.view(8, 16, 1, 1)
    source_, target_ = F.conv2d(source, kernel), F.conv2d(target, kernel)  # the program projects the maps
    expected = mmd(naive_masked_mean(target_, mask), naive_masked_mean(source_, mask))
    whole = mmd(target_.mean((2, 3)), source_.mean((2, 3)))
    assert term.discrepancy(target, source, mask).item() == pytest.approx((expected + whole).item(), rel=1e-4)
    assert term.discrepancy(target, source, None).item() == pytest.approx(whole.item(), rel=1e-4)


def test_projection_is_fixed_and_seeded():
    made = [aligned(64, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0].projection, made[1].projection)
    assert not torch.equal(made[0].projection, made[2].projection)
    assert made[0].projection.std().item() == pytest.approx(0.01, rel=0.05)
    assert not list(made[0].parameters())
    assert not made[0].state_dict()  # its seed gives it


def test_raw_features_are_an_option():
    source, target, mask = torch.randn(2, 16, 5, 5), torch.randn(2, 16, 5, 5), torch.rand(2, 33, 33)
    assert 0 < aligned(16, channels=None).discrepancy(source, target, mask).item() < 10


def test_empty_masks_give_no_nan():
    source, target = (torch.randn(2, 16, 5, 5, requires_grad=True) for _ in range(2))
    aligned(16, channels=8).discrepancy(source, target, torch.zeros(2, 33, 33)).backward()
    assert source.grad.isfinite().all()


def test_half_precision_features_are_pooled_in_float32():
    features, mask = torch.randn(2, 16, 9, 9), torch.rand(2, 33, 33)
    term = aligned(16, channels=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term.discrepancy(features, features.flip(0) + 1, mask)
    assert value.item() == term.discrepancy(features, features.flip(0) + 1, mask).item()


@pytest.mark.parametrize("between", ["mixed", ["mixed"], ["a", "b", "c"]])
def test_it_is_between_two_views(between):
    with pytest.raises(ValueError, match="expected the names of two views"):
        FeatureMMD(between)


@pytest.mark.parametrize(
    "module",
    [
        lambda: DSP(network=tiny_network(), label_space="camvid", long_tail_k=0),
        lambda: DACS(network=tiny_network(), label_space="camvid", terms={"feature": FeatureMMD(("source", "mixed"))}),
    ],
)
def test_single_images_are_refused_as_their_mmd_is_a_constant(module):
    x, y = torch.randn(1, 8), torch.randn(1, 8)
    assert mmd(x, y).item() == pytest.approx(mmd(x, 1e-3 * y).item())
    with pytest.raises(ValueError, match=r"data\.batch_size: found 1, but FeatureMMD needs 2 images"):
        Trainer(max_steps=1, **QUIET).fit(module(), datamodule=tiny_data(val=None, batch_size=1))
