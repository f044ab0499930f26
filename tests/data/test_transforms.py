import numpy as np
import pytest
from PIL import Image

from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.transforms import EvalTransform, TrainTransform
from lightning_uda.label_spaces import CITYSCAPES, CITYSCAPES_IDS, IGNORE_INDEX
from lightning_uda.resize import resize_image, resize_label

TABLE = CITYSCAPES.lookup_table(CITYSCAPES_IDS)


def normalised(image, g):
    return (image[..., ::-1].astype(np.float32) - g.numpy("bgr_mean")).transpose(2, 0, 1)


def close(image, expected):
    error = np.abs(image - expected)
    return error.max() <= 1.5 and error.mean() < 0.1


def test_gta_pipeline_is_the_reference(golden):
    g = golden("dacs_data_samples")
    width, height = g.numpy("gta_size_wh").tolist()
    transform = TrainTransform(resize=(height, width), interpolation="bicubic")
    image, label = transform(g.numpy("gta_rgb"), g.numpy("gta_ids"), seed=0)
    assert close(normalised(image, g), g.numpy("gta_image"))
    assert np.array_equal(TABLE[label], g.numpy("gta_label"))


def test_cityscapes_pipelines_are_the_reference(golden):
    g = golden("dacs_data_samples")
    rgb, ids = g.numpy("city_rgb"), g.numpy("city_ids")
    half = (rgb.shape[0] // 2, rgb.shape[1] // 2)
    (x, y), (height, width) = g.numpy("city_train_crop_xy"), g.numpy("city_train_crop_hw")
    crop = resize_image(rgb, half)[y : y + height, x : x + width]
    assert close(normalised(crop, g), g.numpy("city_train_image"))

    size = tuple(g.numpy("city_eval_size_hw").tolist())
    image, label = EvalTransform(resize=size, labels="resized")(rgb, ids)
    expected = g.numpy("city_eval_label")
    assert close(normalised(image, g), g.numpy("city_eval_image"))
    assert np.array_equal(TABLE[label], np.where(expected == 250, IGNORE_INDEX, expected))


@pytest.mark.parametrize("size", [(50, 96), (64, 128), (203, 77)])
def test_resizing_is_pillows(size):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (128, 256, 3), np.uint8), rng.integers(0, 256, (128, 256), np.uint8)
    for name, method, levels in (("bilinear", Image.Resampling.BILINEAR, 1), ("bicubic", Image.Resampling.BICUBIC, 2)):
        reference = np.asarray(Image.fromarray(image).resize(size[::-1], method)).astype(int)
        error = np.abs(resize_image(image, size, name) - reference)
        assert error.max() <= (0 if (name, size) == ("bilinear", (64, 128)) else levels)
    reference = np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(resize_label(label, size), reference)


def test_the_seed_draws_crop_and_flip_for_image_and_label_together():
    coordinates = np.arange(40 * 60, dtype=np.int64).reshape(40, 60)
    image = np.stack([coordinates % 251, coordinates // 251, coordinates * 0], -1).astype(np.uint8)
    label = (coordinates % 251).astype(np.uint8)
    transform = TrainTransform(crop=(16, 24), horizontal_flip=0.5)
    corners = set()
    for seed in range(200):
        cropped, mask = transform(image, label, seed)
        again, _ = transform(image, None, seed)
        assert cropped.shape == (16, 24, 3)
        assert np.array_equal(cropped[..., 0], mask)
        assert np.array_equal(cropped, again)
        left, right = (int(cropped[0, i, 0]) + 251 * int(cropped[0, i, 1]) for i in (0, -1))
        corners.add((min(left, right) // 60, min(left, right) % 60, left < right))
    rows, columns, directions = map(set, zip(*corners, strict=True))
    assert (min(rows), max(rows)) == (0, 24)
    assert (min(columns), max(columns)) == (0, 36)
    assert directions == {True, False}


def test_small_images_are_padded_with_black_and_void():
    image, mask = TrainTransform(crop=(8, 8))(np.full((4, 8, 3), 9, np.uint8), np.ones((4, 8), np.uint8), 0)
    assert image.shape == (8, 8, 3)
    assert (mask == IGNORE_INDEX).sum() == 32
    assert (image[mask == IGNORE_INDEX] == 0).all()
    assert (image[mask == 1] == 9).all()


def test_a_crop_larger_than_the_image_or_labels_without_size_are_refused():
    with pytest.raises(ValueError, match="found a crop of 512 x 512 from images resized to 360 x 640"):
        TrainTransform(resize=(360, 640), crop=(512, 512))
    with pytest.raises(ValueError, match='labels="resized" needs `resize`'):
        EvalTransform(labels="resized")


@pytest.mark.parametrize("options", [{}, {"crop": (4, 4)}, {"horizontal_flip": 1.0}])
def test_a_label_of_another_size_needs_resize(options):
    image, label = np.zeros((8, 12, 3), np.uint8), np.zeros((10, 12), np.uint8)
    message = r"label of 10 x 12 for an image of 8 x 12 \(height x width\).* Set `resize` in the transform"
    with pytest.raises(DatasetError, match=message):
        TrainTransform(**options)(image, label, 0)
    resized, mask = TrainTransform(resize=(6, 8), **options)(image, label, 0)
    assert mask.shape == resized.shape[:2]
    assert TrainTransform(**options)(image, None, 0)[1] is None


def test_native_labels_keep_their_size():
    image, label = EvalTransform(resize=(8, 16))(np.zeros((16, 32, 3), np.uint8), np.zeros((16, 32), np.uint8))
    assert image.shape == (8, 16, 3)
    assert label.shape == (16, 32)
