import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_uda.data.dataset import DatasetError
from lightning_uda.label_spaces import CAMVID, CITYSCAPES, LabelSpace
from lightning_uda.self_training import resize_prior
from lightning_uda.self_training.prior import count_positions, normalise, prior_from_counts, smooth
from lightning_uda.self_training.prior_counts import load_or_count_prior
from lightning_uda.self_training.prior_figure import draw_spatial_prior
from tests.fixtures.tiny import TinyDataset

SIZE = (24, 32)


class Sealed(TinyDataset):
    """Has the fingerprint of TinyDataset, but its labels can't be opened."""

    __module__, __qualname__ = TinyDataset.__module__, TinyDataset.__qualname__

    def load_label(self, index):
        raise AssertionError("a label was opened")


Sealed.__name__ = "TinyDataset"


def load(dataset, folder, label_space=CAMVID, size=SIZE, **kwargs):
    return load_or_count_prior(dataset, label_space, folder, size, progress=False, **kwargs)


def test_priors_are_the_reference(golden):
    g = golden("cbst_prior")
    counts = torch.zeros(7, 60, 84, dtype=torch.int32)
    for label in g["label_maps"]:
        count_positions(counts, label)
    assert torch.equal(counts[:6].long(), g["freq"])
    assert counts[6].sum() == (g["label_maps"] == 255).sum()
    small = prior_from_counts(counts[:6], 8, radius=7, sigma=7 / 3)
    assert torch.allclose(small, g["prior_small"], rtol=1e-5, atol=1e-9)
    prior = prior_from_counts(counts[:6], 8)
    assert prior.dtype == torch.float32
    assert torch.allclose(prior, g["prior_k71"], rtol=1e-5, atol=1e-9)


def test_the_resized_prior_and_its_products_are_the_reference(golden):
    g = golden("cbst_prior_weighted")
    resized = resize_prior(golden("cbst_prior")["prior_k71"], (40, 60))
    assert torch.allclose(resized, g["prior_resized"], rtol=1e-4, atol=0)
    assert torch.allclose(g["prior_resized"] * g["probs"], g["potential"], rtol=1e-6, atol=0)
    assert torch.equal((resized * g["probs"]).argmax(dim=1).to(torch.uint8), g["argmax_potential"])
    assert resize_prior(resized, (40, 60)) is resized


def test_sums_are_one_by_either_reading():
    frequency = torch.rand(3, 5, 7)
    frequency[1] = 0
    by_class = normalise(frequency)
    assert by_class.sum(dim=(1, 2)).tolist() == pytest.approx([1, 0, 1])
    by_pixel = normalise(frequency, "classes")
    assert torch.allclose(by_pixel.sum(dim=0), torch.ones(5, 7))
    assert torch.allclose(resize_prior(by_pixel, (10, 14), "classes").sum(dim=0), torch.ones(10, 14))
    frequency[:, 0, 0] = 0
    assert normalise(frequency, "classes")[:, 0, 0].tolist() == [0, 0, 0]


def test_the_border_is_replicated():
    assert torch.allclose(smooth(torch.ones(2, 5, 200)), torch.ones(2, 5, 200))
    with pytest.raises(ValueError, match="Found radius 3 and sigma 0"):
        smooth(torch.ones(1, 4, 4), 3, 0)


def test_the_prior_of_a_dataset(tmp_path):
    dataset = TinyDataset()
    prior = load(dataset, tmp_path, radius=3, sigma=1.0)
    maps = np.stack([dataset.load_label(i) for i in range(10)])
    counts = torch.from_numpy(np.stack([(maps == c).sum(axis=0) for c in range(11)]))
    assert torch.equal(prior, prior_from_counts(counts, 10, 3, 1.0))
    assert prior[:3].sum(dim=(1, 2)).tolist() == pytest.approx([1, 1, 1])
    assert not prior[3:].any()


def test_label_maps_are_brought_to_one_size_first(tmp_path):
    prior = load(TinyDataset(), tmp_path, size=(6, 8), radius=0, sigma=1.0)  # each block of 4 x 4 becomes a pixel
    maps = np.stack([TinyDataset().load_label(i)[::4, ::4] for i in range(10)])
    frequency = torch.from_numpy((maps == 1).mean(axis=0))
    assert torch.allclose(prior[1], (frequency / frequency.sum()).float())


def test_positions_are_counted_once_for_any_smoothing(tmp_path):
    load(TinyDataset(), tmp_path)
    for settings in ({}, {"radius": 2, "sigma": 1.0}, {"over": "classes"}):
        assert torch.equal(load(Sealed(), tmp_path, **settings), load(TinyDataset(), tmp_path / "new", **settings))
    other = LabelSpace("two", ("Pole", "Sky"), ((0, 0, 0), (1, 1, 1)))
    for changed in ({"dataset": Sealed(seed=5)}, {"label_space": other}, {"size": (12, 16)}):
        with pytest.raises(AssertionError, match="a label was opened"):
            load(**{"dataset": Sealed(), "folder": tmp_path, **changed})


@pytest.mark.parametrize(
    "damage", ["empty", "cut off", "other shape", "other type", "too large", "negative", "missing"]
)
def test_a_damaged_file_is_counted_again(tmp_path, damage):
    expected = load(TinyDataset(), tmp_path)
    (path,) = tmp_path.glob("*.npz")
    counts = {
        "other shape": np.zeros((11, 2, 2), np.int32),
        "other type": np.zeros((11, *SIZE), np.float32),
        "too large": np.full((11, *SIZE), 11, np.int32),
        "negative": np.full((11, *SIZE), -1, np.int32),
    }.get(damage)
    data = path.read_bytes()
    if counts is not None:
        np.savez(path, counts=counts)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    assert torch.equal(load(TinyDataset(), tmp_path), expected)
    assert torch.equal(load(Sealed(), tmp_path), expected)  # mended
    assert not list(tmp_path.glob("*.part"))


def test_where_nothing_can_be_kept_there_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="can't be kept"):
        prior = load(TinyDataset(), tmp_path / "file" / "folder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(prior, load(TinyDataset(), tmp_path / "folder"))


def test_a_full_disk_is_a_warning_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        load(TinyDataset(), tmp_path)
    assert not list(tmp_path.glob("*.npz")) + list(tmp_path.glob("*.part"))


def test_a_dataset_that_gives_no_prior_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="a spatial prior needs labels"):
        load(TinyDataset(has_labels=False), tmp_path)
    with pytest.raises(DatasetError, match=r"found no pixel of road, sidewalk, .* in 10 label maps"):
        load(TinyDataset(), tmp_path, CITYSCAPES)


def test_the_figure_shows_every_class(golden, tmp_path):
    path = tmp_path / "figures" / "prior.png"
    draw_spatial_prior(golden("cbst_prior")["prior_small"], [f"class {c}" for c in range(6)], path)
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
