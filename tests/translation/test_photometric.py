import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from lightning_uda.translation import (
    ColorJitter,
    GaussianBlur,
    RandomApply,
    RandomBlur,
    StrongAugmentation,
    Translation,
)
from lightning_uda.translation.photometric import JitterParameters, blur_kernel_size, color_jitter, gaussian_blur


@pytest.mark.parametrize(("unit", "turns"), [("turns", 1.0), ("radians", 1 / (2 * math.pi))])
def test_color_jitter_is_the_reference(golden, unit, turns):
    g = golden("dacs_color_jitter")
    mean = g["bgr_mean"].view(3, 1, 1)
    image = ((g["input"] + mean) / 255).expand(3, -1, -1, -1)
    factors = (g["brightness"], g["contrast"], g["saturation"], g["hue"] * turns)
    jittered = (
        color_jitter(image, JitterParameters(*(f.float().numpy() for f in factors), g["order"].numpy())) * 255 - mean
    )
    error = (jittered - g[f"out_hue_{unit}"]).abs().amax(1)
    assert error[g[f"artefact_mask_{unit}"] == 0].max() < 2e-3


def test_images_of_a_batch_are_jittered_as_they_would_be_alone():
    image = torch.rand(6, 3, 8, 9)
    drawn = ColorJitter().draw(6, torch.Generator().manual_seed(1))
    together = color_jitter(image, drawn)
    for i in range(6):
        alone = JitterParameters(*(getattr(drawn, f)[i : i + 1] for f in JitterParameters.__dataclass_fields__))
        assert torch.allclose(color_jitter(image[i : i + 1], alone)[0], together[i], atol=1e-6)


def test_saturated_and_grey_pixels_survive_a_neutral_jitter():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).T.reshape(1, 3, 3, 9)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        neutral = JitterParameters(one, one, one, zero, np.array([order]))
        assert torch.allclose(color_jitter(corners, neutral), corners, atol=1e-6)


def test_drawn_factors_cover_their_ranges():
    drawn = ColorJitter(hue_unit="radians").draw(4000, torch.Generator().manual_seed(0))
    for factor, center, width in ((drawn.brightness, 1, 0.25), (drawn.hue, 0, 0.25 / (2 * math.pi))):
        assert factor.min().item() == pytest.approx(center - width, abs=0.01)
        assert factor.max().item() == pytest.approx(center + width, abs=0.01)
    assert len({tuple(order) for order in drawn.order.tolist()}) == 24


def test_blur_is_the_reference(golden):
    g = golden("dacs_gaussian_blur")
    sigma = g["sigma"].float().numpy()
    blurred = gaussian_blur(g["input"].expand(4, -1, -1, -1), sigma, sigma.max().item())
    assert (blurred - g["output"]).abs().max() < 1e-3
    assert [blur_kernel_size(int(n)) for n in g["size"]] == g["kernel_for_size"].tolist()
    assert [blur_kernel_size(n) for n in g["input"].shape[1:]] == g["kernel_hw"].tolist()


def test_gates_are_shared_by_the_batch_and_met_as_often_as_asked():
    image = torch.rand(2, 3, 8, 8)
    gated = RandomApply(ColorJitter(), p=0.8)
    changed = [
        (gated(image, torch.Generator().manual_seed(seed)) != image).flatten(1).any(1).tolist() for seed in range(300)
    ]
    assert all(first == second for first, second in changed)
    assert sum(first for first, _ in changed) / 300 == pytest.approx(0.8, abs=0.07)


def test_a_gate_for_each_image_is_met_as_often_as_asked_by_each_alone():
    image = torch.rand(4000, 3, 4, 4)
    gated = RandomApply(ColorJitter(), p=0.3, gate="image")
    result = gated(image, torch.Generator().manual_seed(0))
    changed = (result != image).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    pairs = changed.view(2000, 2)
    assert pairs.all(1).float().mean().item() == pytest.approx(0.09, abs=0.025)  # both, if independent
    assert torch.equal(gated(image, torch.Generator().manual_seed(0)), result)
    for p, same in ((0, True), (1, False)):
        result = RandomApply(ColorJitter(), p, "image")(image, torch.Generator().manual_seed(0))
        assert ((result == image).flatten(1).all(1) == same).all()


def test_images_behind_a_gate_get_the_images_of_the_other_domain_at_their_places():
    image, other = torch.rand(50, 3, 8, 8), torch.rand(50, 3, 5, 7)
    result = RandomApply(MeanOfTheOther(), p=0.5, gate="image")(image, torch.Generator().manual_seed(0), other)
    changed = (result != image).flatten(1).any(1)
    assert 10 < changed.sum() < 40
    torch.testing.assert_close(result[changed][..., 0, 0], other.mean(dim=(2, 3))[changed])


def smooth_picture(height=64, width=96):
    """Smooth colours with a sharp frame, uint8 (H, W, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.rectangle(picture, (20, 10), (70, 50), (255, 200, 0), 2)


@pytest.mark.parametrize("radius", [0.0, 0.3, 0.7, 1.0])
def test_the_light_blur_of_the_loader_is_near_pillows(radius):
    """Pillow's is three box blurs of that standard deviation; they differ from a Gaussian most at edges around 0.3."""
    picture = smooth_picture()
    expected = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    sigma = np.array([radius], dtype=np.float32)
    found = gaussian_blur(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, sigma, 1.0)[0].permute(1, 2, 0) * 255
    error = np.abs(found.numpy() - expected)[3:-3, 3:-3]  # borders are reflected here, repeated there
    assert error.mean() < 1.2
    assert error.max() < 20


def test_the_light_blur_of_the_loader_is_drawn_for_each_image_by_itself():
    image = torch.rand(2000, 3, 24, 24)
    blur = RandomBlur()
    result = blur(image, torch.Generator().manual_seed(0))
    assert result.isfinite().all()
    # Radii below about 0.25 change no pixel by a thousandth: of 0.5 + 0.5 * 0.25 of the images nothing is to be seen.
    same = (result - image).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert same.float().mean().item() == pytest.approx(0.625, abs=0.04)


class MeanOfTheOther(Translation):
    """Fills images with the mean colour of the other domain's."""

    def __call__(self, image, generator, other=None):
        return other.mean(dim=(2, 3), keepdim=True).expand_as(image)


def test_the_other_domain_reaches_a_translation_behind_a_gate():
    image, other = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 5, 7)
    translated = RandomApply(MeanOfTheOther(), p=1)(image, torch.Generator(), other)
    torch.testing.assert_close(translated[..., 0, 0], other.mean(dim=(2, 3)))


@pytest.mark.parametrize("translation", [ColorJitter(), GaussianBlur(), StrongAugmentation(jitter_p=1, blur_p=1)])
def test_jitter_and_blur_ignore_the_other_domain(translation):
    image, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    alone = translation(image, torch.Generator().manual_seed(0))
    assert torch.equal(translation(image, torch.Generator().manual_seed(0), other), alone)


def test_strong_augmentation_keeps_range_and_shape_and_may_lack_stages():
    image = torch.rand(2, 3, 64, 96)
    result = StrongAugmentation(jitter_p=1, blur_p=1)(image, torch.Generator().manual_seed(0))
    assert result.shape == image.shape
    assert 0 <= result.min() < result.max() <= 1
    assert torch.equal(StrongAugmentation(jitter_p=0, blur_p=0)(image, torch.Generator()), image)


def test_wrong_ranges_are_refused():
    with pytest.raises(ValueError, match="expected 0 <= lower <= upper"):
        GaussianBlur((1.0, 0.5))
    with pytest.raises(ValueError, match="upper > 0"):
        GaussianBlur((0.0, 0.0))
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        ColorJitter(contrast=1.5)
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        RandomApply(GaussianBlur(), p=5)
