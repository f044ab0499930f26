import numpy as np
import pytest
import torch

from lightning_uda.translation import FourierTranslation, RandomApply
from lightning_uda.translation.fourier import exchange_amplitudes


def whole_spectrum(image, style, reach):
    """FDA by whole, centred spectra, as its authors' program for arrays does it."""
    spectrum, wanted = (np.fft.fftshift(np.fft.fft2(x.double().numpy()), axes=(-2, -1)) for x in (image, style))
    amplitude = np.abs(spectrum)
    rows, columns = (slice(n // 2 - reach, n // 2 + reach + 1) for n in image.shape[-2:])
    amplitude[..., rows, columns] = np.abs(wanted)[..., rows, columns]
    mixed = np.fft.ifftshift(amplitude * np.exp(1j * np.angle(spectrum)), axes=(-2, -1))
    return torch.from_numpy(np.fft.ifft2(mixed).real)


def pictures(count, height, width, seed=0):
    """Smooth images with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return 0.8 * smooth + 0.2 * torch.rand(count, 3, height, width, generator=generator)


@pytest.mark.parametrize(("dtype", "levels"), [(torch.float32, 2e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("beta", ["0.01", "0.05", "0.10"])
def test_the_translation_is_the_reference(golden, beta, dtype, levels):
    g = golden("t2sda_fda")
    source, target = (g[name].to(dtype) / 255 for name in ("src", "trg"))
    found = 255 * FourierTranslation(float(beta))(source, torch.Generator(), target)
    torch.testing.assert_close(found.double(), g[f"out_sym_{beta}"], rtol=0, atol=levels)
    assert int(min(source.shape[-2:]) * float(beta)) == g[f"b_{beta}"].item()


def test_values_outside_the_range_are_kept_or_clamped(golden):
    g = golden("t2sda_fda")
    source, target = g["src"] / 255, g["trg"]
    free, clamped = (FourierTranslation(0.1, clip)(source, torch.Generator(), target) for clip in (False, True))
    outside = ((free < 0) | (free > 1)).double().mean().item()
    assert outside == pytest.approx(g["out_of_range_fraction_0.10"].item(), abs=1e-9)
    assert torch.equal(clamped, free.clamp(0, 1))


def test_the_style_of_the_images_themselves_changes_nothing(golden):
    source = golden("t2sda_fda")["src"] / 255
    assert torch.equal(FourierTranslation(0.1)(source, torch.Generator(), source), source)


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (7, 5)])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.49])
def test_any_size_and_any_window_is_the_whole_spectrums(size, beta):
    image, style, reach = pictures(2, *size), pictures(2, *size, seed=1), int(min(size) * beta)
    found = exchange_amplitudes(image, style, reach)
    torch.testing.assert_close(found.double(), whole_spectrum(image, style, reach), rtol=0, atol=2e-5)


def test_a_large_image_in_float32_is_within_a_hundredth_of_a_grey_level():
    image, style = pictures(1, 512, 1024), pictures(1, 512, 1024, seed=1)
    found = FourierTranslation()(image, torch.Generator(), style)
    torch.testing.assert_close(found.double(), whole_spectrum(image, style, 5), rtol=0, atol=1e-2 / 255)


def test_no_window_but_the_middle_exchanges_mean_colours():
    image, style = pictures(1, 8, 8), pictures(1, 8, 8, seed=1)
    found = FourierTranslation(0)(image, torch.Generator(), style)
    shift = style.mean(dim=(2, 3), keepdim=True) - image.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(found, image + shift)


def test_a_black_image_takes_amplitudes_without_phase():
    style = pictures(1, 16, 16, seed=1)
    found = FourierTranslation(0.1)(torch.zeros(1, 3, 16, 16), torch.Generator(), style)
    torch.testing.assert_close(found.double(), whole_spectrum(torch.zeros_like(style), style, 1), rtol=0, atol=1e-5)


def test_images_are_paired_by_slot_and_styles_cycle():
    translation, image, style = FourierTranslation(0.1), pictures(5, 16, 24), pictures(2, 16, 24, seed=1)
    found = translation(image, torch.Generator(), style)
    for slot in range(5):
        alone = translation(image[slot, None], torch.Generator(), style[slot % 2, None])
        torch.testing.assert_close(found[slot, None], alone, rtol=0, atol=1e-6)
    chosen = RandomApply(translation, 0.5, "image")(image[:2], torch.Generator().manual_seed(4), style)
    assert ((chosen == image[:2]) | (chosen - found[:2]).abs().lt(1e-6)).all()


def test_styles_of_another_size_and_in_bytes_are_resized():
    image, style = pictures(1, 16, 24), (255 * pictures(1, 40, 48, seed=1)).byte()
    found = FourierTranslation(0)(image, torch.Generator(), style)
    torch.testing.assert_close(found.mean(dim=(2, 3)), style.float().mean(dim=(2, 3)) / 255, rtol=0, atol=5e-3)


def test_nothing_is_read_back_from_the_device():
    image, style = (torch.empty(n, 3, 16, 24, device="meta") for n in (3, 2))
    assert FourierTranslation(0.1, clip=True)(image, torch.Generator(), style).shape == image.shape


@pytest.mark.parametrize("beta", [-0.1, 0.5, float("nan")])
def test_windows_wider_than_the_image_are_refused(beta):
    with pytest.raises(ValueError, match=r"FourierTranslation.beta: found .*, expected a number from 0 to 0"):
        FourierTranslation(beta)


def test_images_to_take_the_style_from_must_be_there():
    with pytest.raises(ValueError, match="found no other images"):
        FourierTranslation()(torch.zeros(1, 3, 8, 8), torch.Generator())
