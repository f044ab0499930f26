import numpy as np
import pytest

from lightning_uda.data.streams import PairedStreams
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.self_training.scaled_crop import ScaledCrop
from lightning_uda.self_training.union import UnionPart, UnionStream
from tests.fixtures.tiny import TinyDataset


def union_of(seed=0, round_number=0, positions=(0, 21), transform=None):
    target, source = TinyDataset(length=9, seed=2, has_labels=False), TinyDataset(seed=1)
    transform = TrainTransform() if transform is None else transform
    return UnionStream(
        UnionPart(target, lambda index: np.full((24, 32), 100 + index, np.uint8), transform, [0, 3, 4, 8]),
        UnionPart(source, source.load_label, transform, [7, 2, 5]),
        seed,
        round_number,
        positions,
    )


def contents(stream, positions):
    """(domain, index) of samples, by their pixels."""
    images = {
        dataset.load_image(i).tobytes(): (kind, i)
        for kind, dataset in (("target", TinyDataset(length=9, seed=2)), ("source", TinyDataset(seed=1)))
        for i in range(len(dataset))
    }
    samples = [stream.sample(position) for position in positions]
    found = [images[np.ascontiguousarray(sample["image"].transpose(1, 2, 0)).tobytes()] for sample in samples]
    assert [kind == "target" for kind, _ in found] == [bool(sample["is_target"]) for sample in samples]
    return found


def test_every_pass_shows_every_image_once_in_an_order_of_its_own():
    stream = union_of()
    passes = [contents(stream, range(start, start + 7)) for start in (0, 7, 14)]
    expected = sorted([("target", i) for i in (0, 3, 4, 8)] + [("source", i) for i in (2, 5, 7)])
    assert all(sorted(shown) == expected for shown in passes)
    assert len({tuple(shown) for shown in passes}) == 3


def test_masks_are_pseudo_labels_of_target_images_and_ground_truth_of_source_images():
    stream = union_of()
    for position, (kind, index) in enumerate(contents(stream, range(7))):
        mask = stream.sample(position)["mask"]
        truth = np.full((24, 32), 100 + index) if kind == "target" else TinyDataset(seed=1).load_label(index)
        np.testing.assert_array_equal(mask, truth)


def test_samples_depend_on_seed_round_and_place_in_the_round_only():
    crop = ScaledCrop((16, 16))
    first = union_of(transform=crop)
    for position in range(7):
        for key in ("image", "mask", "is_target"):
            np.testing.assert_array_equal(first.sample(position)[key], union_of(transform=crop).sample(position)[key])
    orders = [tuple(contents(union_of(**kwargs), range(7))) for kwargs in ({}, {"seed": 1}, {"round_number": 1})]
    assert len(set(orders)) == 3
    shifted = union_of(positions=(40, 61))
    assert contents(shifted, range(40, 47)) == contents(union_of(), range(7))


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_batches_end_with_the_round(rank, world_size):
    stream = union_of(positions=(8, 24))
    paired = PairedStreams({"union": stream}, 2, first_batch=8 // (2 * world_size), rank=rank, world_size=world_size)
    batches = list(paired)
    assert len(batches) == 16 // (2 * world_size)
    assert batches[0]["union"]["is_target"].shape == (2,)
