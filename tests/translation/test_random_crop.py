import math
import os
import random

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from scipy.stats import kstest

from lightning_uda.translation import RandomResizedCrop, crop_images, crop_labels, random_crop

FRAMES = [((72, 128), (64, 64)), ((64, 128), (51, 93)), ((40, 50), (96, 192)), ((33, 47), (33, 47))]
"""Sizes of images and of results."""


def pictures(count, height, width, kind=np.uint8):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    mask = generator.integers(0, 19, (count, height, width)).astype(kind)
    mask[generator.random(mask.shape) < 0.1] = 255
    return image, mask


def patches(maps, boxes):
    return [m[t : t + h, left : left + w] for m, (t, left, h, w) in zip(maps, boxes, strict=True)]


@pytest.mark.parametrize("forms", [("_crop", "_pick"), ("_crop_on_cpu", "_pick_on_cpu")])
@pytest.mark.parametrize(("frame", "size"), FRAMES)
def test_crops_are_what_opencv_makes_of_the_patches(frame, size, forms, monkeypatch):
    for chosen, replaced in zip(forms, ("_crop_on_cpu", "_pick_on_cpu"), strict=True):
        monkeypatch.setattr(random_crop, replaced, getattr(random_crop, chosen))
    image, mask = pictures(12, *frame)
    boxes = RandomResizedCrop(size).draw(12, *frame, torch.Generator().manual_seed(0))
    boxes[0] = (3, 5, 1, 1)  # a single pixel
    boxes[1] = (0, 0, *frame)
    batch = torch.from_numpy(image).permute(0, 3, 1, 2)
    found = crop_images(batch, boxes, size)
    labels = crop_labels(torch.from_numpy(mask), boxes, size)
    assert found.dtype == torch.float32
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(crop_images(batch / 255, boxes, size), found, atol=1e-6, rtol=0)
    for result, patch in zip(found.permute(0, 2, 3, 1).numpy(), patches(image, boxes), strict=True):
        exact = cv2.resize(patch.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(255 * result - exact).max() < 1e-4
        of_bytes = cv2.resize(patch, size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)
        assert np.abs(255 * result - of_bytes).max() < 1.01
    for result, patch in zip(labels.numpy(), patches(mask, boxes), strict=True):
        assert np.array_equal(result, cv2.resize(patch, size[::-1], interpolation=cv2.INTER_NEAREST))


def test_labels_are_opencvs_for_every_length_of_a_box():
    """Products that are whole numbers are rounded as it rounds them, down now and then."""
    row = np.arange(700, dtype=np.int64)
    lengths = np.arange(1, 701)
    boxes = np.stack([0 * lengths, 700 - lengths, 0 * lengths + 1, lengths], axis=1)
    mask = torch.from_numpy(row).expand(len(boxes), 1, -1)
    for wanted in (64, 65, 100, 300, 512):
        found = crop_labels(mask, boxes, (1, wanted))
        assert found.dtype == torch.int64
        for result, length in zip(found[:, 0].numpy(), lengths, strict=True):
            patch = row[None, 700 - length :].astype(np.float32)
            expected = cv2.resize(patch, (wanted, 1), interpolation=cv2.INTER_NEAREST)[0]
            assert np.array_equal(result, expected.astype(np.int64))


def test_images_and_labels_share_their_boxes():
    mask = torch.arange(60 * 80).view(1, 60, 80).expand(6, -1, -1)
    levels = (mask.double() / 4800).float()
    image = levels.unsqueeze(1).expand(-1, 3, -1, -1)
    crop = RandomResizedCrop((32, 32))
    cropped, labels = crop(image, mask, torch.Generator().manual_seed(0))
    boxes = torch.from_numpy(crop.draw(6, 60, 80, torch.Generator().manual_seed(0)))
    for picked, (top, left, height, width) in zip(labels, boxes, strict=True):
        rows, columns = picked // 80, picked % 80
        assert rows.min() == top
        assert columns.min() == left
        assert rows.max() < top + height
        assert columns.max() < left + width
    # The nearest label lies up to half a step of the grid off, at most half a row and half a column of the crop.
    step = (boxes[:, 2:] / 64 + 1)[:, 0].mul(80) + (boxes[:, 3] / 64 + 1)
    assert ((cropped[:, 0] * 4800 - labels).abs().amax(dim=(1, 2)) <= step).all()


@pytest.mark.parametrize("size", [None, (48, 48), (40, 60)])
def test_a_generator_decides_and_sizes_of_images_may_differ(size):
    crop = RandomResizedCrop(size)
    for height, width in ((40, 64), (90, 70)):
        image, mask = pictures(3, height, width, np.int64)
        batch = torch.from_numpy(image).permute(0, 3, 1, 2), torch.from_numpy(mask)
        first, again, other = (crop(*batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert first[0].shape == (3, 3, *(size or (height, width)))
        assert first[1].shape == (3, *(size or (height, width)))
        assert first[1].dtype == torch.int64
        assert 0 <= first[0].min() < first[0].max() <= 1
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0])


def test_areas_are_uniform_and_aspect_ratios_log_uniform():
    crop = RandomResizedCrop((64, 64), scale=(0.2, 0.7))  # all draws fit into a square frame
    boxes = crop.draw(4000, 4000, 4000, torch.Generator().manual_seed(0))
    top, left, height, width = boxes.T
    assert kstest(height * width / 4000**2, "uniform", (0.2, 0.5)).pvalue > 0.01
    log_ratio = np.log(width / height) / math.log(4 / 3)
    assert kstest(log_ratio, "uniform", (-1, 2)).pvalue > 0.01
    assert kstest(top / (4000 - height), "uniform").pvalue > 0.01
    assert kstest(left / (4000 - width), "uniform").pvalue > 0.01
    assert (
        np.abs(np.corrcoef([height * width, log_ratio, top / (4000 - height), left / (4000 - width)]) - np.eye(4)).max()
        < 0.05
    )


def one_by_one(draw, height, width):
    """Boxes as the definition reads, a try after the other: heights and widths."""
    for _ in range(10):
        area, aspect = height * width * draw.uniform(0.2, 1), math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return h, w
    raise AssertionError


def test_draws_that_do_not_fit_are_drawn_anew():
    draw = random.Random(0)
    expected = np.array([one_by_one(draw, 1080, 1280) for _ in range(4000)]).T
    found = RandomResizedCrop((512, 512)).draw(4000, 1080, 1280, torch.Generator().manual_seed(0)).T[2:]
    for of_boxes in (np.prod, lambda sides, axis: sides[1] / sides[0]):
        assert kstest(of_boxes(found, axis=0), of_boxes(expected, axis=0)).pvalue > 0.01


def test_boxes_lie_in_the_image_and_reach_its_borders():
    top, left, height, width = RandomResizedCrop((8, 8)).draw(5000, 12, 16, torch.Generator().manual_seed(0)).T
    assert min(top.min(), left.min()) == 0
    assert height.min() > 0
    assert width.min() > 0
    assert (top + height).max() == 12
    assert (left + width).max() == 16
    positions = np.unique(top[height == 8], return_counts=True)
    assert positions[0].tolist() == [0, 1, 2, 3, 4]  # both ends included
    assert positions[1].min() > 0.8 * positions[1].mean()


@pytest.mark.parametrize("frame", [(100, 1000), (1000, 100), (90, 120), (100, 100), (7, 333)])
def test_the_central_box_is_that_of_albumentations(frame):
    scale = (1.0, 1.0) if frame[0] != frame[1] else (1e-9, 1e-9)  # too large, or less than a pixel
    crop = RandomResizedCrop((64, 64), scale, (1.0, 1.25) if frame == (100, 100) else (3 / 4, 4 / 3))
    boxes = crop.draw(3, *frame, torch.Generator().manual_seed(0))
    transform = A.RandomResizedCrop((64, 64), scale=scale, ratio=crop.ratio)
    transform.set_random_seed(1)  # of some seeds a draw fits by rounding
    left, top, right, bottom = transform.get_params_dependent_on_data({"shape": frame}, {})["crop_coords"]
    assert boxes.tolist() == [[top, left, bottom - top, right - left]] * 3


def test_the_ratio_is_relative_to_that_of_the_result():
    for size, frame in ((None, (500, 1000)), ((50, 200), (1000, 1000))):
        rows, columns = size or frame
        boxes = RandomResizedCrop(size, (0.1, 0.15)).draw(2000, *frame, torch.Generator().manual_seed(0))
        log_ratio = np.log(boxes[:, 3] / boxes[:, 2] * rows / columns) / math.log(4 / 3)
        assert kstest(log_ratio, "uniform", (-1, 2)).pvalue > 0.01
    whole = RandomResizedCrop(None, (1, 1), (1, 1)).draw(2, 50, 90, torch.Generator())
    assert whole.tolist() == [[0, 0, 50, 90]] * 2
    tall = RandomResizedCrop((50, 200), (1, 1), (0.9, 1.1)).draw(1, 1000, 1000, torch.Generator())
    assert tall[0, 2:].tolist() == [278, 1000]  # 1000 / (0.9 * 4) is the lowest box allowed in full width


def test_nothing_is_read_back_from_the_device():
    image = torch.empty(2, 3, 20, 30, dtype=torch.uint8, device="meta")  # whatever waits for a value fails on it
    cropped, labels = RandomResizedCrop((8, 16))(image, image[:, 0], torch.Generator())
    assert cropped.shape == (2, 3, 8, 16)
    assert labels.shape == (2, 8, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 4)}, r"size: found \(0, 4\), expected numbers from 1"),
        ({"scale": (0, 1)}, "expected numbers from"),
        ({"scale": (0.5, 1.2)}, "expected numbers from"),
        ({"ratio": (2, 1)}, "expected 0 < lower <= upper"),
        ({"ratio": (0, 1)}, "expected numbers from"),
        ({"tries": 0}, "found 0, expected a number from 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(**arguments)


def test_label_maps_of_another_size_are_refused():
    for shape in ((2, 20, 31), (1, 20, 30), (2, 1, 20, 30)):
        with pytest.raises(ValueError, match="one box fits both"):
            RandomResizedCrop()(torch.rand(2, 3, 20, 30), torch.zeros(shape, dtype=torch.uint8), torch.Generator())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_a_low_default_precision_changes_nothing(low):
    batch = torch.rand(2, 3, 12, 16)
    boxes = np.array([[0, 0, 12, 16], [3, 5, 4, 6]])
    expected = crop_images(batch, boxes, (8, 8))
    torch.set_default_dtype(low)
    try:
        assert torch.equal(crop_images(batch, boxes, (8, 8)), expected)
    finally:
        torch.set_default_dtype(torch.float32)
