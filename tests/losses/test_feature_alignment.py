import pytest
import torch
import torch.nn.functional as F

from lightning_uda.losses import FeatureAlignment, mmd
from lightning_uda.losses.feature_alignment import masked_mean, upsampling_adjoint
from lightning_uda.networks.weights import WeightsError


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


def test_loss_is_the_sum_of_both_mmds_of_projected_features():
    source, target, mask = torch.randn(2, 16, 5, 5), torch.randn(2, 16, 5, 5), (torch.rand(2, 33, 33) > 0.5) * 0.8
    alignment = FeatureAlignment(weight=0.01, channels=8)
    alignment.set_features(16)
    kernel = alignment.c1.weight.view(8, 16, 1, 1)
    source_, target_ = F.conv2d(source, kernel), F.conv2d(target, kernel)  # the program projects the maps
    expected = mmd(naive_masked_mean(target_, mask), naive_masked_mean(source_, mask))
    expected = expected + mmd(target_.mean((2, 3)), source_.mean((2, 3)))
    assert alignment(source, target, mask).item() == pytest.approx(0.01 * expected.item(), rel=1e-4)


def test_projection_is_fixed_and_seeded():
    made = []
    for seed in (0, 0, 1):
        alignment = FeatureAlignment(seed=seed)
        alignment.set_features(64)
        made.append(alignment.c1.weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].std().item() == pytest.approx(0.01, rel=0.05)
    assert not made[0].requires_grad


def test_raw_features_are_an_option():
    source, target, mask = torch.randn(2, 16, 5, 5), torch.randn(2, 16, 5, 5), torch.rand(2, 33, 33)
    alignment = FeatureAlignment(channels=None)
    alignment.set_features(16)
    assert 0 < alignment(source, target, mask).item() < 0.1
    assert not alignment.state_dict()


def test_projection_of_a_published_checkpoint(tmp_path):
    weight = torch.randn(8, 16, 1, 1)
    torch.save({"iteration": 1, "model": {"c1.weight": weight, "conv1.weight": torch.zeros(1)}}, tmp_path / "dsp.pth")
    alignment = FeatureAlignment(channels=8, weights=str(tmp_path / "dsp.pth"))
    alignment.set_features(16)
    assert torch.equal(alignment.c1.weight, weight.flatten(1))
    with pytest.raises(WeightsError, match=r"found c1.weight of shape \(8, 16, 1, 1\), expected \(8, 32, 1, 1\)"):
        alignment.set_features(32)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"no tensor c1\.weight"):
        FeatureAlignment(weights=str(tmp_path / "other.pth")).set_features(16)


def test_empty_masks_give_no_nan():
    source, target = (torch.randn(2, 16, 5, 5, requires_grad=True) for _ in range(2))
    alignment = FeatureAlignment(channels=8)
    alignment.set_features(16)
    alignment(source, target, torch.zeros(2, 33, 33)).backward()
    assert source.grad.isfinite().all()


def test_half_precision_features_are_pooled_in_float32():
    features, mask = torch.randn(2, 16, 9, 9), torch.rand(2, 33, 33)
    alignment = FeatureAlignment(channels=8)
    alignment.set_features(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = alignment(features, features.flip(0) + 1, mask)
    assert value.item() == alignment(features, features.flip(0) + 1, mask).item()
