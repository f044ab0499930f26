import pytest
import torch

from lightning_uda.mixing import soft_paste


@pytest.mark.parametrize("opacity", [0.0, 0.5, 0.8, 0.9, 1.0])
def test_soft_paste_is_the_reference(golden, opacity):
    g = golden("dacs_mix")
    mixed = soft_paste(g["paste_image"][None], g["base_image"][None], opacity * g["mask"].bool()[None])
    expected = g[f"mixed_image_beta_{round(10 * opacity):02d}"]
    assert torch.allclose(mixed[0], expected, rtol=0, atol=1e-4)
