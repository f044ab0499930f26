from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.streams import LabelReader, PairedStreams, Stream, collate
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.label_spaces import CAMVID, CAMVID_IDS, UNKNOWN_INDEX
from tests.fixtures.faults import Vanished
from tests.fixtures.tiny import TinyDataset

TABLE = CAMVID.lookup_table(CAMVID_IDS)


def streams(seed=0):
    source, target = TinyDataset(seed=1), TinyDataset(length=7, seed=2, has_labels=False)
    transform = TrainTransform(crop=(16, 16), horizontal_flip=0.5)
    return {
        "source": Stream("source", source, transform, seed, LabelReader(source, TABLE)),
        "target": Stream("target", target, transform, seed, None),
    }


def batches(count, workers=0, **kwargs):
    loader = DataLoader(PairedStreams(streams(), 2, **kwargs), batch_size=None, num_workers=workers)
    return list(islice(loader, count))


def same(first, second):
    return all(
        torch.equal(a[stream][key], b[stream][key])
        for a, b in zip(first, second, strict=True)
        for stream in a
        for key in a[stream]
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(workers):
    assert same(batches(12), batches(12, workers))


def test_a_resumed_stream_goes_on_where_it_stopped():
    assert same(batches(12)[5:], batches(7, first_batch=5))


def test_two_ranks_share_out_the_positions_of_one():
    ranks = [PairedStreams(streams(), 2, rank=rank, world_size=2) for rank in range(2)]
    seen = [[p for number in range(10) for p in rank.positions(number)] for rank in ranks]
    assert sorted(seen[0] + seen[1]) == list(range(40))
    one = PairedStreams(streams(), 4)
    joined = torch.cat([rank.batch(3)["source"]["image"] for rank in ranks])
    assert torch.equal(joined, one.batch(3)["source"]["image"])


def test_every_pass_shows_every_image_once_in_an_order_of_its_own():
    stream = streams()["source"]
    passes = [[stream.index(10 * number + i) for i in range(10)] for number in range(20)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert len({tuple(order) for order in passes}) == 20


def test_streams_and_seeds_differ_over_the_same_dataset():
    dataset, transform = TinyDataset(), TrainTransform()
    orders = [
        tuple(Stream(name, dataset, transform, seed, None).index(i) for i in range(10))
        for name, seed in (("source", 0), ("template", 0), ("source", 1))
    ]
    assert len(set(orders)) == 3


def test_samples_of_one_image_at_two_positions_are_cropped_differently():
    stream = streams()["source"]
    positions = [p for p in range(200) if stream.index(p) == stream.index(0)]
    crops = {stream.sample(p)["image"].tobytes() for p in positions}
    assert len(crops) > 10


def test_target_labels_are_never_opened_and_never_in_a_batch():
    for batch in batches(5):
        assert set(batch) == {"source", "target"}
        assert set(batch["source"]) == {"image", "mask"}
        assert set(batch["target"]) == {"image"}
        assert batch["source"]["image"].dtype == batch["source"]["mask"].dtype == torch.uint8
        assert batch["target"]["image"].shape == (2, 3, 16, 16)


def test_an_unlisted_id_is_an_error_that_names_the_image():
    dataset = TinyDataset()
    dataset.class_ids, dataset.strict_ids = {0: "Sky", 255: None}, True
    reader = LabelReader(dataset, CAMVID.lookup_table(dataset.class_ids, UNKNOWN_INDEX))
    with pytest.raises(DatasetError, match=r"^tiny_0_0 \(label\): found ids \[1, 2\].*not in the class map"):
        reader(0)


def test_images_of_different_sizes_are_an_error_that_says_what_to_do():
    samples = [{"image": np.zeros((3, 4, size), np.uint8)} for size in (5, 6)]
    with pytest.raises(
        DatasetError, match=r"images of one target batch differ in size .*4 x 5, 4 x 6\. Set `resize` or `crop`"
    ):
        collate("target", samples)


def test_a_pair_of_two_sizes_is_an_error_that_names_its_image():
    class Uneven(TinyDataset):
        def load_label(self, index):
            return super().load_label(index)[4:]

    reader = LabelReader(Uneven(), CAMVID.lookup_table(TinyDataset.class_ids))
    with pytest.raises(DatasetError, match=r"^tiny_0_\d \(image\): TrainTransform: found a label of 20 x 32 for an "):
        Stream("source", Uneven(), TrainTransform(crop=(16, 16)), 0, reader).sample(0)


def test_what_cannot_be_read_is_left_out_by_choice_and_changes_no_other_sample():
    def paired(dataset, leave_out):
        stream = Stream("target", dataset, TrainTransform(crop=(16, 16)), 0, None)
        return PairedStreams({"target": stream}, 2, leave_out_unreadable=leave_out)

    whole = [paired(TinyDataset(4), False).batch(number) for number in range(4)]
    damaged = paired(Vanished(gone=2), True)
    gone = [damaged.streams["target"].index(position) == 2 for position in range(8)]
    assert sum(gone) == 2
    for number, batch in enumerate(whole):
        found, again = damaged.batch(number), damaged.batch(number)
        lost = gone[2 * number : 2 * number + 2]
        error = "/set/images/tiny_0_2.png: can't be read (No such file)."
        assert set(found.pop("left_out", ())) == ({error} if any(lost) else set())
        same = [torch.equal(*pair) for pair in zip(batch["target"]["image"], found["target"]["image"], strict=True)]
        assert same == [not was for was in lost]
        assert torch.equal(found["target"]["image"], again["target"]["image"])
    with pytest.raises(DatasetError, match=r"^/set/images/tiny_0_2\.png: can't be read"):
        paired(Vanished(gone=2), False).batch(gone.index(True) // 2)


def test_a_set_of_which_nothing_can_be_read_is_an_error_by_choice_too():
    stream = Stream("target", Vanished(gone=0, length=1), TrainTransform(), 0, None)
    with pytest.raises(DatasetError, match=r"tiny_0_0\.png: can't be read"):
        PairedStreams({"target": stream}, 1, leave_out_unreadable=True).batch(0)
