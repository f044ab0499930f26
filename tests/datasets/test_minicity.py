import hashlib
import subprocess
import sys

import numpy as np
import pytest

from lightning_uda.datasets.minicity import MiniCity
from lightning_uda.datasets.minicity.photography import photograph
from lightning_uda.datasets.minicity.style import TARGET, Photography
from lightning_uda.label_spaces import CITYSCAPES_CLASSES, IGNORE_INDEX

STYLES = ("source", "target")
SMALL = (64, 128)
TAIL = {
    "source": {
        "train": (0.01, 0.04), "motorcycle": (0.01, 0.06), "bus": (0.02, 0.08), "bicycle": (0.03, 0.09),
        "rider": (0.03, 0.10), "truck": (0.15, 0.32),
    },
    "target": {
        "train": (0.03, 0.10), "motorcycle": (0.09, 0.24), "bus": (0.05, 0.15), "bicycle": (0.28, 0.46),
        "rider": (0.18, 0.38), "truck": (0.12, 0.27),
    },
}  # fmt: skip
SHARES = {"wall": (0.2, 0.45), "fence": (0.25, 0.50), "road": (0.98, 1.0), "building": (0.98, 1.0), "car": (0.9, 1.0)}
"""Lowest and highest share of images that hold a class; classes not listed are in over two thirds."""


@pytest.fixture(scope="module", params=STYLES)
def labels(request):
    dataset = MiniCity("train", request.param, size=SMALL)
    return np.stack([dataset.load_label(index) for index in range(400)])


def digest(dataset, indices):
    pairs = b"".join(dataset.load_image(i).tobytes() + dataset.load_label(i).tobytes() for i in indices)
    return hashlib.sha256(pairs).hexdigest()


@pytest.mark.parametrize("size", [(64, 128), (96, 192), (128, 256), (130, 250), (97, 131), (40, 33), (70, 210)])
@pytest.mark.parametrize("style", STYLES)
def test_shapes_types_and_ids_at_any_size(size, style):
    dataset = MiniCity("val", style, length=2, size=size)
    image, label = dataset.load_image(1), dataset.load_label(1)
    assert image.shape == (*size, 3)
    assert dataset.image_size(1) == size
    assert label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(len(CITYSCAPES_CLASSES)), IGNORE_INDEX}
    assert image.std() > 10


@pytest.mark.parametrize("style", STYLES)
def test_same_bytes_in_another_process_and_order(style):
    here = digest(MiniCity("train", style, size=SMALL), [3, 0])
    program = (
        "import cv2; cv2.setNumThreads(1)\n"
        "from lightning_uda.datasets.minicity import MiniCity\n"
        "import hashlib\n"
        f"d = MiniCity('train', {style!r}, size={SMALL})\n"
        "labels = {i: d.load_label(i).tobytes() for i in (0, 7, 3)}\n"
        "images = {i: d.load_image(i).tobytes() for i in (7, 0, 3)}\n"
        "print(hashlib.sha256(b''.join(images[i] + labels[i] for i in (3, 0))).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_asking_for_labels_changes_nothing():
    asked, never_asked, label_first = (MiniCity("train", "target", size=SMALL) for _ in range(3))
    for index in (2, 5):
        image, label = asked.load_image(index), asked.load_label(index)
        assert np.array_equal(label_first.load_label(index), label)
        assert np.array_equal(label_first.load_image(index), image)
        assert np.array_equal(never_asked.load_image(index), image)


def test_callers_may_write_into_what_they_get():
    dataset = MiniCity(size=SMALL)
    image, label = dataset.load_image(0), dataset.load_label(0)
    kept = image.copy(), label.copy()
    image[:], label[:] = 0, 0
    assert np.array_equal(dataset.load_image(0), kept[0])
    assert np.array_equal(dataset.load_label(0), kept[1])


def test_every_split_style_seed_and_index_is_another_scene():
    variants = [
        MiniCity(split, style, size=SMALL, seed=seed).load_label(index).tobytes()
        for split in ("train", "val", "test")
        for style in STYLES
        for seed in (0, 1)
        for index in (0, 1)
    ]
    assert len(set(variants)) == len(variants)


def test_length_does_not_change_images():
    short, long = MiniCity(length=2, size=SMALL), MiniCity(length=2000, size=SMALL)
    assert (len(short), len(long)) == (2, 2000)
    assert np.array_equal(short.load_image(1), long.load_image(1))


def test_image_frequencies_have_a_tail_behind_a_gap(labels, request):
    style = request.node.callspec.params["labels"]
    found = {name: float(np.mean((labels == c).any(axis=(1, 2)))) for c, name in enumerate(CITYSCAPES_CLASSES)}
    for name, share in found.items():
        low, high = (SHARES | TAIL[style]).get(name, (0.67, 1.0))
        assert low <= share <= high, f"{name}: in {share:.1%} of images"
    rising = sorted(found, key=found.__getitem__)
    if style == "source":
        assert set(rising[:5]) == {"rider", "bus", "train", "motorcycle", "bicycle"}  # those of GTA5 (DSP)
        assert found[rising[5]] > 2 * found[rising[4]]


def test_rare_objects_are_small_but_visible(labels):
    for name, lowest, highest in (
        ("train", 100, 900), ("bus", 80, 600), ("truck", 80, 600), ("motorcycle", 40, 300), ("bicycle", 30, 200),
        ("rider", 15, 120),
    ):  # fmt: skip
        counts = (labels == CITYSCAPES_CLASSES.index(name)).sum(axis=(1, 2))
        assert lowest <= np.median(counts[counts > 0]) <= highest, name


def test_void_is_a_small_share(labels):
    assert 0 < np.mean(labels == IGNORE_INDEX) < 0.1


def test_sky_is_above_road_and_road_is_below(labels):
    rows = np.arange(SMALL[0])[None, :, None]
    sky, road = (labels == CITYSCAPES_CLASSES.index(name) for name in ("sky", "road"))
    assert (rows * sky).sum() / sky.sum() < SMALL[0] * 0.35
    assert (rows * road).sum() / road.sum() > SMALL[0] * 0.65


def test_riders_sit_on_two_wheelers(labels):
    ridden = np.isin(labels, [CITYSCAPES_CLASSES.index(name) for name in ("motorcycle", "bicycle")]).any(axis=(1, 2))
    riders = (labels == CITYSCAPES_CLASSES.index("rider")).sum(axis=(1, 2)) > 40
    assert riders.any()
    assert np.mean(ridden[riders]) > 0.9


def test_styles_differ_in_colour_and_sharpness():
    images = {s: np.stack([MiniCity("val", s, size=SMALL).load_image(i) for i in range(20)]) for s in STYLES}
    saturation = {s: np.ptp(stack, axis=-1).mean() for s, stack in images.items()}
    assert saturation["source"] > 1.5 * saturation["target"]
    assert images["source"].std() > images["target"].std()


def test_neutral_photography_keeps_the_drawing_and_the_targets_does_not():
    dataset = MiniCity(size=SMALL)
    drawing, label = dataset.load_image(0), dataset.load_label(0)
    assert np.array_equal(photograph(drawing, label, Photography(), np.random.default_rng(0)), drawing)
    picture = photograph(drawing, label, TARGET.photography, np.random.default_rng(0))
    assert np.abs(picture.astype(float) - drawing).mean() > 5


def test_names_are_unique():
    datasets = [MiniCity(split, style, length=3) for split in ("train", "val", "test") for style in STYLES]
    names = [dataset.name(index) for dataset in datasets for index in range(3)]
    assert len(set(names)) == len(names) == 18
    assert datasets[0].check() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "training"}, "found split 'training', expected one of train, val, test"),
        ({"style": "game"}, "found style 'game', expected one of source, target"),
        ({"length": 0}, "length: found 0, expected a number from 1"),
        ({"size": (8, 256)}, r"found size \(8, 256\), expected \(height, width\)"),
        ({"size": (128, 256, 3)}, r"found size \(128, 256, 3\)"),
        ({"seed": -1}, "seed: found -1, expected a number from 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MiniCity(**arguments)


@pytest.mark.parametrize("index", [-1, 5, 1000])
def test_index_out_of_range(index):
    dataset = MiniCity(length=5, size=SMALL)
    for method in (dataset.load_image, dataset.load_label, dataset.name):
        with pytest.raises(IndexError, match=f"found index {index}, expected 0 to 4"):
            method(index)
