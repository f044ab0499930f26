import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import albumentations.augmentations.pixel.functional as published
import cv2
import numpy as np
import pytest
import torch

from lightning_uda.translation import Grey, HSVJitter, KernelBlur, ViewJitter
from lightning_uda.translation.photometric import PHASES
from lightning_uda.translation.view_jitter import shift_hsv

SHIFTS = [(20, 30, 20), (-20, -30, -20), (13, -7, 0), (-5, 22, -11), (0, 0, 17), (90, 120, -60)]
"""Hue of 180, saturation and value of 255."""


@pytest.fixture(scope="module")
def colors():
    """Every 15th level of each channel, bytes (18, 324, 3): greys, black, white and pure colours among them."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(18, 324, 3)


def as_batch(*pictures):
    return torch.stack([torch.from_numpy(p) for p in pictures]).permute(0, 3, 1, 2).float() / 255


def as_pictures(image):
    return image.permute(0, 2, 3, 1).numpy() * 255


def shifted(image, shifts):
    hue, saturation, value = np.array(shifts, dtype=np.float32).T
    values = [torch.from_numpy(v / 255)[:, None, None, None] for v in (saturation, value)]
    phases = torch.from_numpy((PHASES + 6 * hue / 180).T)[:, :, None, None]
    return shift_hsv(image, *values, phases)


def test_hsv_shifts_are_those_of_opencvs_float_hsv(colors):
    found = shifted(as_batch(*[colors] * len(SHIFTS)), SHIFTS)
    for (hue, saturation, value), result in zip(SHIFTS, found.permute(0, 2, 3, 1).numpy(), strict=True):
        h, s, v = cv2.split(cv2.cvtColor(colors.astype(np.float32) / 255, cv2.COLOR_RGB2HSV))
        h, s, v = (h + 2 * hue) % 360, np.clip(s + saturation / 255, 0, 1), np.clip(v + value / 255, 0, 1)
        expected = cv2.cvtColor(np.stack([h, s, v], axis=-1).astype(np.float32), cv2.COLOR_HSV2RGB)
        assert np.abs(result - expected).max() < 2e-5


def test_hsv_shifts_are_those_of_albumentations_but_for_its_rounding(colors):
    """It rounds the hue to 2 degrees, saturation and value to bytes: up to 6 levels, 0.6 on average."""
    found = as_pictures(shifted(as_batch(*[colors] * len(SHIFTS)), SHIFTS))
    colored = colors.max(axis=-1) > colors.min(axis=-1)  # grey pixels stay grey since version 2
    for shifts, result in zip(SHIFTS, found, strict=True):
        expected = published.shift_hsv(colors, *shifts).astype(np.float32)
        error = np.abs(result - expected)[colored]
        assert error.max() < 6
        assert error.mean() < 0.6


def test_more_saturation_makes_grey_pixels_red_as_in_version_1():
    grey = torch.full((1, 3, 2, 2), 0.5)
    result = shifted(grey, [(0, 51, 0)])
    assert result[0, :, 0, 0].tolist() == pytest.approx([0.5, 0.4, 0.4])
    assert torch.equal(shifted(grey, [(0, -51, 0)]), grey)
    assert shifted(torch.zeros(1, 3, 2, 2), [(7, 30, -20)]).abs().max() == 0


def test_contrast_comes_before_brightness_and_is_clipped_as_in_albumentations(colors):
    jitter = HSVJitter(hue=0, saturation=0, value=0)
    contrast, brightness = jitter.draw(8, torch.Generator().manual_seed(0))[:2]
    found = as_pictures(jitter(as_batch(*[colors] * 8), torch.Generator().manual_seed(0)))
    for c, b, result in zip(contrast, brightness, found, strict=True):
        transform = A.RandomBrightnessContrast((b, b), (c, c), brightness_by_max=True, p=1)
        expected = transform(image=colors)["image"].astype(np.float32)
        assert np.abs(result - expected).max() <= 1.01  # it drops what is behind the point


def test_drawn_shifts_cover_their_ranges():
    drawn = HSVJitter(0.2, 0.1, 20, 30, 25).draw(4000, torch.Generator().manual_seed(0))
    widths = [0.1, 0.2, 20 * 6 / 180, 30 / 255, 25 / 255]  # contrast first; the hue in sextants, of 60 degrees
    assert drawn.max(axis=1) == pytest.approx(widths, rel=0.01)
    assert drawn.min(axis=1) == pytest.approx([-w for w in widths], rel=0.01)
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.05


def test_the_jitter_applies_what_it_draws(colors):
    jitter = HSVJitter()
    image = as_batch(colors, colors[::-1].copy())
    contrast, brightness, hue, saturation, value = jitter.draw(2, torch.Generator().manual_seed(4))
    lit = image * (1 + torch.from_numpy(contrast)).view(-1, 1, 1, 1) + torch.from_numpy(brightness).view(-1, 1, 1, 1)
    expected = shifted(lit.clamp(0, 1), np.stack([30 * hue, 255 * saturation, 255 * value], axis=1))
    torch.testing.assert_close(jitter(image, torch.Generator().manual_seed(4)), expected, atol=1e-5, rtol=0)


def test_grey_is_opencvs(colors):
    expected = cv2.cvtColor(colors.astype(np.float32), cv2.COLOR_RGB2GRAY)
    found = as_pictures(Grey()(as_batch(colors), torch.Generator()))[0]
    assert np.abs(found - expected[..., None]).max() < 1e-3
    of_bytes = cv2.cvtColor(colors, cv2.COLOR_RGB2GRAY).astype(np.float32)
    assert np.abs(found - of_bytes[..., None]).max() < 0.51


@pytest.mark.parametrize(("size", "sigma"), [(3, 0.8), (5, 1.1), (7, 1.4)])
def test_each_kernel_is_a_blur_of_opencv(size, sigma):
    picture = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    found = as_pictures(KernelBlur([size], [1.0])(as_batch(picture), torch.Generator()))[0]
    expected = cv2.GaussianBlur(picture.astype(np.float32), (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(found - expected).max() < 1e-3
    of_bytes = cv2.GaussianBlur(picture, (size, size), sigma).astype(np.float32)
    assert np.abs(found - of_bytes).max() < 1.5  # its weights are multiples of 1/256


def bright_point(count=1):
    point = torch.zeros(count, 3, 9, 9)
    point[:, :, 4, 4] = 1
    return point


def test_opencvs_tabled_weights_are_near_those_of_the_formula():
    for size in (3, 5):
        blurred = KernelBlur([size], [1.0])(bright_point(), torch.Generator())
        weights = blurred[0, 0].sum(dim=0)[4 - size // 2 : 5 + size // 2].numpy()
        assert np.abs(weights - cv2.getGaussianKernel(size, 0)[:, 0]).max() < 0.0221


def test_kernels_are_drawn_by_their_odds():
    blurred = KernelBlur((3, 5), (1, 2))(bright_point(6000), torch.Generator().manual_seed(0))
    wide = blurred[:, 0, 4, 6] > 0
    assert wide.float().mean().item() == pytest.approx(2 / 3, abs=0.02)
    torch.testing.assert_close(blurred.sum(dim=(2, 3)), torch.ones(6000, 3))


def test_each_gate_is_met_as_often_as_asked_by_each_image_alone():
    image = torch.rand(3000, 3, 6, 6)
    for stage, share in (("jitter", 0.8), ("grey", 0.2), ("blur", 0.5)):
        probabilities = {f"{name}_p": share if name == stage else 0.0 for name in ("jitter", "grey", "blur")}
        result = ViewJitter(**probabilities)(image, torch.Generator().manual_seed(0))
        changed = (result != image).flatten(1).any(1)
        assert changed.float().mean().item() == pytest.approx(share, abs=0.025)
        together = changed.view(-1, 2).all(1).float().mean().item()
        assert together == pytest.approx(share**2, abs=0.035)  # of both images of a pair, as they are independent
        if stage == "grey":
            assert (result[changed].amax(dim=1) == result[changed].amin(dim=1)).all()


def test_the_same_image_becomes_another_view_in_each_place_of_a_batch():
    image = torch.rand(1, 3, 12, 12).expand(8, -1, -1, -1)
    jitter = ViewJitter(jitter_p=1)
    result = jitter(image, torch.Generator().manual_seed(1))
    assert torch.cdist(result.flatten(1), result.flatten(1)).fill_diagonal_(1).min() > 0.1
    assert 0 <= result.min() < result.max() <= 1
    assert torch.equal(jitter(image, torch.Generator().manual_seed(1)), result)
    assert not torch.equal(jitter(image, torch.Generator().manual_seed(2)), result)
    other = torch.rand(8, 3, 5, 5)
    assert torch.equal(jitter(image, torch.Generator().manual_seed(1), other), result)


def test_without_any_stage_the_images_are_given_back():
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(ViewJitter(jitter_p=0, grey_p=0, blur_p=0)(image, torch.Generator()), image)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_read_back_from_the_device(seed):
    image = torch.empty(4, 3, 16, 16, device="meta")  # a device without data: whatever waits for a value fails on it
    assert ViewJitter()(image, torch.Generator().manual_seed(seed)).shape == image.shape


@pytest.fixture(params=[torch.float16, torch.bfloat16])
def low(request):
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_low_default_precision_changes_nothing(low):
    image = torch.rand(4, 3, 16, 16, dtype=torch.float32)
    found = ViewJitter()(image, torch.Generator().manual_seed(0))
    torch.set_default_dtype(torch.float32)
    assert torch.equal(found, ViewJitter()(image, torch.Generator().manual_seed(0)))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"found (1\.2|-1), expected"):
        HSVJitter(contrast=1.2)
    with pytest.raises(ValueError, match=r"found (1\.2|-1), expected"):
        ViewJitter(hue=-1)
    for sizes, odds in (((3, 4), (1, 1)), ((1,), (1,)), ((3, 5), (1,)), ((), ())):
        with pytest.raises(ValueError, match="expected odd sizes"):
            KernelBlur(sizes, odds)
    with pytest.raises(ValueError, match=r"KernelBlur.odds: found \(1, 0\), expected numbers from"):
        KernelBlur((3, 5), (1, 0))
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        ViewJitter(grey_p=2)
