"""Margins of whole target images: where they are in crops, mirrored and padded ones too, and who gets them."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lightning_uda.data.margins import Margins
from lightning_uda.data.sampling import Origin, Shuffled, WeightedParts
from lightning_uda.data.streams import LabelReader
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.label_spaces import CAMVID
from lightning_uda.methods import DAFormer
from lightning_uda.self_training import ScaledCrop
from tests.fixtures.tiny import TinyDataset, tiny_data, tiny_network

HEIGHT, WIDTH = SIZE = (24, 32)
MARGINS = Margins(top=3, bottom=5, left=2, right=4)


class Coordinates(TinyDataset):
    """Images whose pixels say where they are: row, column, and 255 as padding has not."""

    def load_image(self, index):
        rows, columns = np.indices(self.size)
        return np.stack([rows, columns, np.full(self.size, 255)], -1).astype(np.uint8)


def stream(transform, margins=MARGINS, reader=None, sampling=Shuffled()):
    return sampling.stream(Origin("target", Coordinates(), reader, transform, 0, margins=margins), None)


def test_margins_are_rows_and_columns_of_the_whole_image():
    # fmt: off
    assert Margins(top=1, bottom=2, left=0, right=3).void((5, 6)).tolist() == [
        [255, 255, 255, 255, 255, 255],
        [  0,   0,   0, 255, 255, 255],
        [  0,   0,   0, 255, 255, 255],
        [255, 255, 255, 255, 255, 255],
        [255, 255, 255, 255, 255, 255],
    ]
    # fmt: on
    assert (Margins(top=9).void((5, 6)) == 255).all()


@pytest.mark.parametrize("sampling", [Shuffled(), WeightedParts([1])])
@pytest.mark.parametrize(
    "transform",
    [
        TrainTransform(horizontal_flip=0.5),
        TrainTransform(crop=(16, 12), horizontal_flip=0.5),
        TrainTransform(crop=(30, 20), horizontal_flip=0.5),  # higher than the image, so that it is padded
        ScaledCrop(crop=(16, 40), scale=(1, 1), horizontal_flip=0.5, fill=(0, 0, 0)),  # wider
    ],
)
def test_a_crop_has_what_it_shows_of_the_margins(transform, sampling):
    places = set()
    for position in range(40):
        sample = stream(transform, sampling=sampling).sample(position)
        row, column, inside = sample["image"].astype(int)
        expected = (inside == 255) & (row >= 3) & (row < HEIGHT - 5) & (column >= 2) & (column < WIDTH - 4)
        assert set(sample) == {"image", "valid"}
        assert sample["valid"].dtype == np.uint8
        assert np.array_equal(sample["valid"], expected.astype(np.uint8))
        places.add(sample["image"].tobytes())
    assert len(places) >= (2 if transform.crop is None else 10)


def test_margins_are_counted_after_resizing():
    for transform in (TrainTransform(resize=(12, 16)), ScaledCrop((12, 16), scale=(1, 1), resize=(12, 16))):
        valid = stream(transform).sample(0)["valid"]
        assert valid.shape == (12, 16)
        assert valid[3:7, 2:12].all()
        assert valid.sum() == 4 * 10


def test_margins_change_no_crop_and_labelled_images_have_none():
    transform = TrainTransform(crop=(16, 12), horizontal_flip=0.5)
    labelled = stream(transform, reader=LabelReader(Coordinates(), CAMVID.lookup_table(TinyDataset.class_ids)))
    for position in range(10):
        plain, marked = (stream(transform, margins).sample(position) for margins in (None, MARGINS))
        assert set(plain) == {"image"}
        assert np.array_equal(plain["image"], marked["image"])
        assert set(labelled.sample(position)) == {"image", "mask"}


def test_target_images_alone_have_them_in_a_batch():
    data = tiny_data(target_margins=MARGINS)
    batch = next(iter(data.train_dataloader()))
    assert {name: set(batch[name]) for name in batch} == {"source": {"image", "mask"}, "target": {"image", "valid"}}
    assert batch["target"]["valid"].dtype == torch.uint8
    assert batch["target"]["valid"].shape == (2, 16, 16)


@pytest.mark.parametrize("transform", [TrainTransform(), TrainTransform(resize=(12, 16))])
def test_margins_that_leave_nothing_are_refused_before_training(transform):
    rows = transform.resize[0] if transform.resize else HEIGHT
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module = DAFormer(network=tiny_network(), label_space="camvid", feature_distance=None)
    data = tiny_data(
        val=None,
        source_transform=transform,
        target_transform=transform,
        target_margins=Margins(top=rows - 4, bottom=4),
    )
    with pytest.raises(
        ValueError, match=rf"target_margins: found {rows - 4} \+ 4 rows .* leave nothing of .* {rows} x"
    ):
        Trainer(max_steps=1, enable_model_summary=False, **quiet).fit(module, datamodule=data)
