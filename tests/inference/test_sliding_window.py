import pytest
import torch
import torch.nn.functional as F

from lightning_uda.inference import SlidingWindow, WholeImage
from lightning_uda.windows import window_starts
from tests.inference.networks import Recorder, images, pointwise, strided


@torch.no_grad()
@pytest.mark.parametrize(
    ("crop", "stride"), [((8, 8), (4, 4)), ((8, 8), (8, 8)), ((7, 10), (3, 7)), ((17, 23), (1, 5)), ((64, 6), (9, 6))]
)
def test_a_network_that_looks_at_single_pixels_gives_the_same_in_windows(crop, stride):
    network, image = pointwise(), images(2, 3, 17, 23)
    windowed = SlidingWindow(crop, stride)(network, image, (34, 46))
    torch.testing.assert_close(windowed, WholeImage()(network, image, (34, 46)), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_window_as_large_as_the_image_is_the_whole_image():
    network, image = strided(), images(2, 3, 16, 24)
    window = SlidingWindow((16, 24), (8, 8))(network, image, (16, 24))
    assert torch.equal(window, WholeImage()(network, image, (16, 24)))


@torch.no_grad()
def test_an_image_smaller_than_the_window_is_one_window():
    network, image = Recorder(strided()), images(1, 3, 12, 40)
    scores = SlidingWindow((16, 16), (8, 8))(network, image, (12, 40))
    assert network.shapes == [(4, 3, 12, 16)]
    assert scores.shape == (1, 5, 12, 40)
    network.inputs.clear()
    smaller = SlidingWindow((100, 100), (50, 50))(network, image, (12, 40))
    assert network.shapes == [(1, 3, 12, 40)]
    assert torch.equal(smaller, WholeImage()(network, image, (12, 40)))


@torch.no_grad()
@pytest.mark.parametrize("windows_per_batch", [1, 3, 100])
def test_overlaps_are_averaged_as_if_windows_came_one_by_one(windows_per_batch):
    network, image = strided(), images(2, 3, 13, 19)
    total, count = torch.zeros(2, 5, 13, 19), torch.zeros(13, 19)
    for top in (0, 3, 5):
        for left in (0, 4, 8, 10):
            window = image[:, :, top : top + 8, left : left + 9]
            total[:, :, top : top + 8, left : left + 9] += F.interpolate(
                network(window), (8, 9), mode="bilinear", align_corners=False
            )
            count[top : top + 8, left : left + 9] += 1
    policy = SlidingWindow((8, 9), (3, 4), windows_per_batch, align_corners=False)
    torch.testing.assert_close(policy(network, image, (13, 19)), total / count, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("windows_per_batch", [1, 4, 5])
def test_no_more_windows_than_asked_for_go_through_at_once(windows_per_batch):
    network, image = Recorder(strided()), images(2, 3, 16, 24)
    SlidingWindow((8, 8), (8, 8), windows_per_batch)(network, image, (16, 24))
    sizes = [shape[0] for shape in network.shapes]
    assert max(sizes) == windows_per_batch
    assert sum(sizes) == 12
    assert all(shape[1:] == (3, 8, 8) for shape in network.shapes)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (5, 5), (7, 3), (16, 15)])
def test_windows_cover_every_pixel_and_none_beyond(window, stride):
    for whole in range(window, 60):
        starts = window_starts(whole, window, stride)
        pixels = [pixel for start in starts for pixel in range(start, start + window)]
        assert set(pixels) == set(range(whole))
        assert len(set(starts)) == len(starts) == -(-(whole - window) // stride) + 1


def test_the_windows_of_hrda_on_cityscapes():
    assert window_starts(1024, 1024, 512) == [0]
    assert window_starts(2048, 1024, 512) == [0, 512, 1024]


@torch.no_grad()
def test_half_precision_logits_are_summed_in_single_precision():
    network, image = pointwise().to(torch.bfloat16), images(1, 3, 16, 16)
    scores = SlidingWindow((8, 8), (2, 2))(lambda crops: network(crops.bfloat16()), image, (16, 16))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, network(image.bfloat16()).float(), rtol=1e-6, atol=1e-6)


def test_windows_that_leave_pixels_out_are_refused():
    with pytest.raises(ValueError, match=r"stride of 8 x 9 for windows of 8 x 8 .* no pixel is left out"):
        SlidingWindow((8, 8), (8, 9))
    with pytest.raises(ValueError, match="stride: found"):
        SlidingWindow((8, 8), (0, 1))
    with pytest.raises(ValueError, match="windows_per_batch: found 0"):
        SlidingWindow(windows_per_batch=0)
