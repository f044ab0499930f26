from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.long_tail import TailStream, long_tail_classes
from lightning_uda.data.statistics import ClassStatistics
from lightning_uda.data.streams import LabelReader, PairedStreams, Stream, collate
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.label_spaces import CAMVID, CAMVID_IDS, CITYSCAPES, CITYSCAPES16
from tests.fixtures.tiny import TinyDataset

CONFIGS = Path(__file__).parents[2] / "configs"
SYNTHIA_IMAGES = (
    9396, 9400, 9397, 3952, 7497, 9394, 6383, 8863, 9167, 8841, 9398, 9354, 9008, 7204, 7881, 9360,
)  # fmt: skip
TABLE = CAMVID.lookup_table(CAMVID_IDS)


class Counting(TinyDataset):
    """Counts what is opened."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.images_opened, self.labels_opened = [], []

    def load_image(self, index):
        self.images_opened.append(index)
        return super().load_image(index)

    def load_label(self, index):
        self.labels_opened.append(index)
        return super().load_label(index)


class Corner(Counting):
    """Class 2 is one pixel, the first of the image; all else is class 0."""

    def load_label(self, index):
        label = np.zeros_like(super().load_label(index))
        label[0, 0] = 2
        return label


class Sizes(TinyDataset):
    """Images of two sizes."""

    def load_image(self, index):
        return super().load_image(index)[index % 2 * 8 :]

    def load_label(self, index):
        return super().load_label(index)[index % 2 * 8 :]


def made_of_images(images, total):
    """Statistics in which class c is in the first images[c] of all images."""
    return ClassStatistics(CITYSCAPES16.classes[: len(images)], np.arange(total)[:, None] < np.array(images))


def tail(dataset=None, crop=(16, 16), k=2, samples_per_step=4, seed=0, images=None, resize=None, flip=0.5, **kwargs):
    dataset = dataset or TinyDataset()
    transform = TrainTransform(resize=resize, crop=crop, horizontal_flip=flip)
    everywhere = np.arange(len(dataset))
    return TailStream(
        dataset, LabelReader(dataset, TABLE), transform, seed, images or dict.fromkeys((0, 1, 2), everywhere), k,
        samples_per_step, **kwargs,
    )  # fmt: skip


def classes_in(mask):
    return [sorted(set(m.ravel().tolist()) - {255}) for m in mask]


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


# which classes


def test_the_four_rarest_classes_of_synthia(golden):
    statistics = made_of_images(SYNTHIA_IMAGES, 9400)
    chosen = long_tail_classes(statistics, 4)
    assert [statistics.classes[c] for c in chosen] == ["wall", "traffic light", "bus", "fence"]
    assert sorted(chosen) == golden("dacs_label_maps")["long_tail_synthia16_code"].tolist()


def test_the_papers_classes_of_gta5_are_a_preset(golden):
    config = yaml.safe_load((CONFIGS / "experiment/gta5_to_cityscapes/dsp_paper_classes.yaml").read_text())
    names = config["model"]["init_args"]["long_tail_classes"]
    assert [CITYSCAPES.classes.index(name) for name in names] == golden("dacs_label_maps")[
        "long_tail_gta_paper"
    ].tolist()


def test_classes_can_be_named():
    statistics = made_of_images(SYNTHIA_IMAGES, 9400)
    assert long_tail_classes(statistics, 4, ["bus", "wall", "bus"]) == [13, 3]


@pytest.mark.parametrize(
    ("num_classes", "names", "message"),
    [
        (4, None, r"num_classes: found 4, but the source labels hold 3 of the 4 classes; expected a number up to 3"),
        (1, ["road", "tram", "ship"], r"classes: found \['ship', 'tram'\], expected names .*'sidewalk'"),
        (1, ["building", "sidewalk"], r"classes: none of the 9 source label maps holds \['sidewalk'\].*Leave them out"),
    ],
)
def test_a_choice_that_cannot_be_made_says_why(num_classes, names, message):
    with pytest.raises(ValueError, match=message):
        long_tail_classes(made_of_images([5, 0, 2, 9], 9), num_classes, names)


# what a sample is


def test_a_sample_holds_one_patch_per_class_with_the_pixels_of_that_class_only():
    stream = tail()
    for position in range(40):
        sample = stream.sample(position)
        assert sample["image"].shape == (2, 3, 16, 16)
        assert sample["mask"].shape == (2, 16, 16)
        assert sample["image"].dtype == sample["mask"].dtype == np.uint8
        assert classes_in(sample["mask"]) == [[c] for c in stream.classes(position)]


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_image_and_mask_are_cropped_alike_and_no_pixel_of_the_class_is_lost(flip):
    stream = tail(flip=flip)
    for position in range(40):
        sample = stream.sample(position)
        for image, mask, c in zip(sample["image"], sample["mask"], stream.classes(position), strict=True):
            truth = image[0] // 60  # TinyDataset paints class c with 60 c to 60 c + 39
            assert np.array_equal(mask == c, truth == c)


@pytest.mark.parametrize(
    "transform",
    [
        TrainTransform(crop=(10, 12), horizontal_flip=0.5),
        TrainTransform(resize=(30, 40), crop=(10, 12), horizontal_flip=0.5),
        TrainTransform(resize=(30, 40)),
        TrainTransform(crop=(30, 40), horizontal_flip=0.5),  # padded
        TrainTransform(),
    ],
)
def test_the_crop_is_that_of_image_and_label_together(transform):
    dataset = TinyDataset()
    stream = TailStream(dataset, LabelReader(dataset, TABLE), transform, 0, {1: np.array([3])}, 1, 1)
    seeds = np.random.default_rng((*stream.key, 1, 5, 1))
    seeds.choice(1)
    image, label = transform(dataset.load_image(3), dataset.load_label(3), int(seeds.integers(2**32)))
    sample = stream.sample(5)
    assert np.array_equal(sample["image"][0], image.transpose(2, 0, 1))
    assert np.array_equal(sample["mask"][0], np.where(label == 1, 1, 255))


def test_all_chosen_classes_keeps_the_pixels_of_each_of_them():
    one, all_of_them = tail(), tail(all_chosen_classes=True)
    more = 0
    for position in range(20):
        first, second = one.sample(position), all_of_them.sample(position)
        assert np.array_equal(first["image"], second["image"])
        for c, narrow, wide, image in zip(
            one.classes(position), first["mask"], second["mask"], second["image"], strict=True
        ):
            assert np.array_equal(narrow, np.where(wide == c, c, 255))
            truth = image[0] // 60
            assert np.array_equal(wide, np.where(np.isin(truth, one.classes(position)), truth, 255))
            more += int((wide != narrow).sum())
    assert more > 0


def test_images_come_from_the_list_of_their_class_and_evenly():
    dataset = Counting(length=40)
    lists = {0: np.array([3, 7]), 1: np.array([11, 12, 13]), 2: np.array([20])}
    stream = tail(dataset, images=lists, k=3)
    for position in range(300):
        stream.sample(position)
        for c, index in zip(stream.classes(position), dataset.images_opened[-3:], strict=True):
            assert index in lists[c]
    times = np.bincount(dataset.images_opened, minlength=40)
    assert times[[3, 7]].min() > 110
    assert times[[11, 12, 13]].min() > 70
    assert times.sum() == 900


def test_batches_have_a_dimension_for_the_classes():
    stream = tail()
    batch = collate("tail", [stream.sample(position) for position in range(4)])
    assert batch["image"].shape == (4, 2, 3, 16, 16)
    assert batch["mask"].shape == (4, 2, 16, 16)
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8


def test_patches_of_different_sizes_are_an_error_that_says_what_to_do():
    stream = tail(Sizes(), crop=None, images={0: np.array([0]), 1: np.array([1])})
    with pytest.raises(
        DatasetError, match=r"images of one tail batch differ in size .*16 x 32, 24 x 32\. Set `resize`"
    ):
        stream.sample(0)


# retry


def test_draws_until_the_class_is_in_sight_and_decodes_one_image_only():
    dataset = Corner(length=50)
    stream = tail(dataset, crop=(16, 24), images={2: np.arange(50)}, k=1, flip=0, max_tries=10_000)
    for position in range(20):  # 9 x 9 crops, of which one shows the corner
        assert stream.sample(position)["mask"][0, 0, 0] == 2
    assert len(dataset.images_opened) == 20
    assert 81 / 2 < len(dataset.labels_opened) / 20 < 81 * 2
    assert len(set(dataset.labels_opened)) == 50  # another image at each try, not only another crop


def test_a_class_that_is_never_in_sight_is_left_out_and_the_others_stay():
    dataset = Corner()
    everywhere = np.arange(10)
    stream = tail(dataset, crop=(4, 4), images={0: everywhere, 2: everywhere}, max_tries=3)
    skipped = 0
    for position in range(30):
        dataset.labels_opened.clear(), dataset.images_opened.clear()
        sample = stream.sample(position)
        assert sample["image"].shape == (2, 3, 4, 4)
        by_class = dict(zip(stream.classes(position), zip(sample["image"], sample["mask"], strict=True), strict=True))
        assert (by_class[0][1] != 255).sum() >= 15
        if (by_class[2][1] == 255).all():
            skipped += 1
            assert not by_class[2][0].any()
            assert len(dataset.labels_opened) == 4
            assert len(dataset.images_opened) == 1
    assert skipped > 20


def test_a_class_lost_in_resizing_is_left_out():
    sample = tail(Corner(), resize=(6, 8), crop=None, images={2: np.arange(10)}, k=1, max_tries=2).sample(0)
    assert sample["image"].shape == (1, 3, 6, 8)
    assert (sample["mask"] == 255).all()


# where the randomness comes from


def test_classes_are_drawn_once_per_iteration_for_all_ranks():
    stream = tail()
    ranks = [PairedStreams({"tail": stream}, 2, rank=rank, world_size=2) for rank in range(2)]
    for number in range(6):
        masks = torch.cat([rank.batch(number)["tail"]["mask"] for rank in ranks])
        expected = [[c] for c in stream.classes(4 * number)]
        assert len(masks) == 4
        assert all(classes_in(mask.numpy()) == expected for mask in masks)
    assert len({tuple(stream.classes(4 * number)) for number in range(40)}) == 6  # all ordered pairs of three


def test_two_ranks_see_together_what_one_sees():
    ranks = [PairedStreams({"tail": tail()}, 2, rank=rank, world_size=2) for rank in range(2)]
    one = PairedStreams({"tail": tail()}, 4).batch(3)["tail"]
    for key in ("image", "mask"):
        assert torch.equal(torch.cat([rank.batch(3)["tail"][key] for rank in ranks]), one[key])


def test_classes_are_drawn_evenly_and_differ():
    images = dict.fromkeys((4, 7, 9, 12, 15), np.arange(10))
    stream = tail(images=images, k=3, samples_per_step=1)
    drawn = np.array([stream.classes(position) for position in range(1000)])
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    for slot in drawn.T:  # expected 200 of each, standard deviation 13
        assert all(140 < (slot == c).sum() < 260 for c in images)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    def batches(workers):
        return list(islice(DataLoader(PairedStreams({"tail": tail()}, 2), batch_size=None, num_workers=workers), 7))

    for first, second in zip(batches(0), batches(workers), strict=True):
        assert all(torch.equal(first["tail"][key], second["tail"][key]) for key in ("image", "mask"))


def test_neither_the_order_of_calls_nor_that_of_the_classes_matters():
    everywhere = np.arange(10)
    stream, other = tail(), tail(images=dict.fromkeys((2, 0, 1), everywhere))
    forward = [stream.sample(position) for position in range(8)]
    backward = [other.sample(position) for position in reversed(range(8))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))


def test_positions_and_seeds_differ():
    samples = [tail(seed=seed).sample(position)["image"].tobytes() for seed in (0, 1) for position in range(8)]
    assert len(set(samples)) == 16


def test_the_stream_beside_it_is_left_alone():
    dataset = TinyDataset()
    transform, reader = TrainTransform(crop=(16, 16), horizontal_flip=0.5), LabelReader(dataset, TABLE)
    source = Stream("source", dataset, transform, 0, reader)
    beside = TailStream(dataset, reader, transform, 0, {0: np.arange(10), 1: np.arange(10)}, 2, 2)
    alone = PairedStreams({"source": source}, 2).batch(4)["source"]
    together = PairedStreams({"tail": beside, "source": source}, 2).batch(4)["source"]
    assert torch.equal(alone["image"], together["image"])
