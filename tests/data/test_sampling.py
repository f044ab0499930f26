import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.sampling import (
    LongTail,
    LongTailStream,
    Origin,
    RareClass,
    Shuffled,
    long_tail_classes,
    rare_class_probabilities,
)
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
    origin = Origin("tail", dataset, LabelReader(dataset, TABLE), transform, seed, samples_per_step)
    return LongTailStream(origin, images or dict.fromkeys((0, 1, 2), everywhere), k, **kwargs)


def classes_in(mask):
    return [sorted(set(m.ravel().tolist()) - {255}) for m in mask]


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


# long tail: which classes


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
    assert long_tail_classes(statistics, ["bus", "wall", "bus"]) == [13, 3]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([100, 6, 5, 90, 24], [2, 1]),  # rises by 1.2, 4, 3.75 and 1.1
        ([100, 0, 5, 90, 24], [2]),  # a class without images is no class; 5 to 24 is the largest rise
        ([100, 99, 1, 50, 49], [2]),
        ([10, 20, 100, 5000], [0, 1]),  # the rise behind the upper half isn't looked at
        ([7], [0]),
    ],
)
def test_the_largest_rise_of_frequency_can_choose(images, expected):
    assert long_tail_classes(made_of_images(images, max(images)), "gap") == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (4, r"num_classes: found 4, but the source labels hold 3 of the 4 classes; expected a number up to 3"),
        (["road", "tram", "ship"], r"classes: found \['ship', 'tram'\], expected names .*'sidewalk'"),
        (["building", "sidewalk"], r"classes: none of the 9 source label maps holds \['sidewalk'\].*Leave them out"),
    ],
)
def test_a_choice_that_cannot_be_made_says_why(wanted, message):
    with pytest.raises(ValueError, match=message):
        long_tail_classes(made_of_images([5, 0, 2, 9], 9), wanted)


def test_fewer_long_tail_classes_than_are_pasted_are_refused():
    with pytest.raises(ValueError, match=r"Found 2 long-tail classes \['building', 'road'\], but 3 different ones"):
        LongTail(3, 2).chosen(made_of_images([5, 0, 2, 9], 9))


# long tail: what a sample is


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
    origin = Origin("tail", dataset, LabelReader(dataset, TABLE), transform, 0)
    stream = LongTailStream(origin, {1: np.array([3])}, 1)
    seeds = np.random.default_rng((*origin.key, 1, 5, 1))
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


# long tail: retry


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


# long tail: where the randomness comes from


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
    beside = LongTailStream(Origin("tail", dataset, reader, transform, 0, 2), dict.fromkeys((0, 1), np.arange(10)), 2)
    alone = PairedStreams({"source": source}, 2).batch(4)["source"]
    together = PairedStreams({"tail": beside, "source": source}, 2).batch(4)["source"]
    assert torch.equal(alone["image"], together["image"])


# rare classes


class Squares(TinyDataset):
    """64 x 64 of class 0; in image i < 8 a square of class 1 of side 4 i, in image 9 all of it is class 2."""

    def __init__(self, **kwargs):
        super().__init__(size=(64, 64), **kwargs)

    def load_label(self, index):
        label = np.zeros((64, 64), np.uint8)
        if index < 8:
            label[: 4 * index, : 4 * index] = 1
        return np.full_like(label, 2) if index == 9 else label

    def load_image(self, index):
        return (self.load_label(index)[..., None] * 60 + np.arange(3, dtype=np.uint8)).astype(np.uint8)


def statistics_of(dataset):
    labels = [dataset.load_label(i) for i in range(len(dataset))]
    return ClassStatistics(("a", "b", "c", "d"), np.array([[(m == c).sum() for c in range(4)] for m in labels]))


def rare(dataset=None, stream="source", seed=0, crop=(16, 16), resize=None, labelled=True, **settings):
    dataset = dataset or Squares()
    transform = TrainTransform(resize=resize, crop=crop)
    origin = Origin(stream, dataset, LabelReader(dataset, TABLE) if labelled else None, transform, seed)
    return RareClass(**{"min_pixels": 100, "max_share": 1.1, **settings}).stream(origin, lambda: statistics_of(dataset))


@pytest.mark.parametrize("temperature", ["0.01", "0.1", "1.0", "inf"])
def test_probabilities_of_daformer(golden, temperature):
    reference = golden("t2sda_daformer_rcs")
    found = rare_class_probabilities(reference.numpy("pixel_count"), float(temperature))
    assert np.allclose(found, reference.numpy(f"prob64_T{temperature}"), rtol=1e-12, atol=0)
    assert np.allclose(found, reference.numpy(f"prob_T{temperature}"), rtol=0, atol=1e-6)


def test_classes_without_a_pixel_are_never_drawn():
    assert rare_class_probabilities([30, 0, 10], float("inf")).tolist() == [0.5, 0, 0.5]
    a, b = np.exp(-0.75), np.exp(-0.25)
    assert np.allclose(rare_class_probabilities([30, 0, 10], 1.0), [b / (a + b) * a / b, 0, b / (a + b)])


def test_a_class_is_drawn_by_its_probability_and_an_image_with_enough_of_it_evenly():
    stream = rare(temperature=0.2)
    drawn = np.array([stream.draw(position)[:2] for position in range(4000)])
    counts = statistics_of(Squares()).pixels
    expected = rare_class_probabilities(counts, 0.2)
    assert np.abs(np.bincount(drawn[:, 0], minlength=4) / 4000 - expected).max() < 0.025
    of_one = np.bincount(drawn[drawn[:, 0] == 1, 1], minlength=10)
    assert np.flatnonzero(of_one).tolist() == [3, 4, 5, 6, 7]  # sides of 12 and more: over 100 pixels
    assert np.abs(of_one[3:8] / of_one.sum() - 0.2).max() < 0.04
    assert set(drawn[drawn[:, 0] == 2, 1]) == {9}


def test_an_image_needs_more_than_the_least_number_of_pixels():
    assert rare(min_pixels=143).images[1].tolist() == [3, 4, 5, 6, 7]
    assert rare(min_pixels=144).images[1].tolist() == [4, 5, 6, 7]


def test_crops_are_tried_until_one_shows_more_than_the_least_share_and_the_last_is_kept():
    dataset = Squares()
    first_tries, last_tries = 0, 0
    stream = rare(dataset, min_crop_ratio=0.5, max_tries=3)
    assert stream.min_pixels == 50
    for position in range(300):
        wanted, index, seeds = stream.draw(position)
        shown = [stream.origin.transform(dataset.load_image(index), dataset.load_label(index), s) for s in seeds]
        enough = [i for i, (_, label) in enumerate(shown) if (label == wanted).sum() > 50]
        image, label = shown[enough[0] if enough else -1]
        sample = stream.sample(position)
        assert np.array_equal(sample["image"], image.transpose(2, 0, 1))
        assert np.array_equal(sample["mask"], label)
        first_tries, last_tries = first_tries + (enough[:1] == [0]), last_tries + (not enough)
    assert first_tries > 20
    assert last_tries > 20


def test_crops_of_nearly_one_class_are_tried_again():
    dataset = Squares()
    stream = rare(dataset, min_crop_ratio=0.1, max_tries=5, max_share=0.7)
    again, kept_enough, kept_last = 0, 0, 0
    for position in range(300):
        wanted, index, seeds = stream.draw(position)
        shown = [stream.origin.transform(dataset.load_image(index), dataset.load_label(index), s)[1] for s in seeds]
        enough = [i for i, label in enumerate(shown) if (label == wanted).sum() > 10]
        shares = [max((label == c).sum() for c in range(3)) / (label != 255).sum() for label in shown]
        good = [i for i in enough if shares[i] < 0.7]
        expected = good[0] if good else (enough or [-1])[-1]
        assert np.array_equal(stream.sample(position)["mask"], shown[expected])
        again += bool(good) and good[0] > enough[0]
        kept_enough += bool(enough) and not good and enough[-1] < 4
        kept_last += not enough
    assert min(again, kept_enough) > 5


@pytest.mark.parametrize(("min_pixels", "tries"), [(195, 1), (196, 5)])
def test_pixels_of_a_crop_are_counted_after_resizing(min_pixels, tries, monkeypatch):
    """Halved, the square of side 28 has 196 pixels, of which all crops of this size show all."""
    stream = rare(resize=(32, 32), crop=(32, 32), min_pixels=min_pixels, min_crop_ratio=1.0, max_tries=5)
    position = next(p for p in range(1000) if stream.draw(p)[:2] == (1, 7))
    calls, transform = [], TrainTransform.__call__
    monkeypatch.setattr(TrainTransform, "__call__", lambda *a: calls.append(a) or transform(*a))
    stream.sample(position)
    assert len(calls) == tries + 1  # the last for image and label together


def test_only_the_image_that_is_shown_is_decoded():
    class Watched(Squares, Counting):
        def load_image(self, index):
            self.images_opened.append(index)
            return super().load_image(index)

    dataset = Watched()
    stream = rare(dataset)
    dataset.images_opened.clear()
    for position in range(30):
        stream.sample(position)
    assert dataset.images_opened == [stream.draw(position)[1] for position in range(30)]


def test_rare_samples_are_pure_functions_of_seed_stream_and_position():
    forward = [rare().sample(position) for position in range(12)]
    assert all(same(a, b) for a, b in zip(forward, [rare().sample(p) for p in reversed(range(12))][::-1], strict=True))
    others = [rare(seed=1), rare(stream="template")]
    assert not any(all(same(a, other.sample(p)) for p, a in enumerate(forward)) for other in others)
    ranks = [PairedStreams({"source": rare()}, 2, rank=rank, world_size=2).batch(3)["source"] for rank in range(2)]
    one = PairedStreams({"source": rare()}, 4).batch(3)["source"]
    assert torch.equal(torch.cat([rank["mask"] for rank in ranks]), one["mask"])


def test_a_class_that_no_image_shows_enough_of_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"more than min_pixels=800 pixels.*\{'b': 784\}\. Set .*min_pixels below 784"):
        rare(min_pixels=800)


def test_a_stream_without_labels_cannot_be_sampled_by_class():
    with pytest.raises(ValueError, match=r"stream 'target', whose labels are never opened.*_sampling to Shuffled"):
        rare(stream="target", labelled=False)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"min_pixels": -1}, {"min_crop_ratio": -0.1}, {"max_tries": 0}, {"max_share": 0}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"RareClass\.{next(iter(wrong))}: found"):
        RareClass(**wrong)


def test_shuffled_counts_nothing_and_is_the_stream_of_earlier_versions():
    dataset, transform = TinyDataset(), TrainTransform(crop=(16, 16), horizontal_flip=0.5)
    reader = LabelReader(dataset, TABLE)

    def statistics():
        raise AssertionError("labels were counted")

    stream = Shuffled().stream(Origin("source", dataset, reader, transform, 3), statistics)
    before = Stream("source", dataset, transform, 3, reader)
    assert all(same(stream.sample(position), before.sample(position)) for position in range(12))
    rng = np.random.default_rng((3, zlib.crc32(b"source"), 0, 1))
    assert [stream.index(10 + i) for i in range(10)] == rng.permutation(10).tolist()
