"""Distances and similarity of classes in feature space, against golden figures and loops over pixels and classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_uda.metrics.feature_space import ClassCenters, ClassDistances, PixelSample, center_similarity

GOLDEN = np.load(Path(__file__).parents[1] / "golden/t2sda_metrics.npz")
EXACT = {"atol": 1e-9, "rtol": 1e-5, "equal_nan": True}


def golden(domain):
    return torch.from_numpy(GOLDEN[f"feat_{domain}"]), torch.from_numpy(GOLDEN[f"label_{domain}"]).long()


def centers_of(rows, labels, num_classes=19, batch=7):
    centers = ClassCenters(num_classes)
    for part in zip(rows.split(batch), labels.split(batch), strict=True):
        centers.update(*part)
    return centers


def distances_of(rows, labels, centers, batch=7):
    distances = ClassDistances(centers)
    for part in zip(rows.split(batch), labels.split(batch), strict=True):
        distances.update(*part)
    return distances


def equal(found, expected):
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, **EXACT)


@pytest.mark.parametrize("domain", ["src", "trg"])
def test_centers_are_golden(domain):
    rows, labels = golden(domain)
    centers = centers_of(rows, labels)
    equal(centers.compute(), GOLDEN[f"center_{domain}"])
    assert centers.counts.tolist() == [int((labels == c).sum()) for c in range(19)]


def test_distances_and_similarity_are_golden():
    rows, labels = golden("trg")
    centers = centers_of(rows, labels).compute()
    distances = distances_of(rows, labels, centers)
    equal(distances.ccd(), GOLDEN["ccd_trg"])
    equal(distances.pdd(), GOLDEN["pdd_trg"])
    assert distances.skipped.tolist() == [0] * 19
    equal(center_similarity(centers_of(*golden("src")).compute(), centers), GOLDEN["centroid_cosine"])
    assert np.isnan(GOLDEN["ccd_trg"][[9, 16]]).all()


def cosine(a, b):
    """Of a vector of length 0 it is 0."""
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


def by_loops(rows, labels, num_classes):
    """CCD and PDD as the paper writes them, and pixels left out of PDD."""
    present = [c for c in range(num_classes) if (labels == c).any()]
    means = {c: rows[labels == c].mean(axis=0) for c in present}
    ccd, pdd, skipped = np.full(num_classes, np.nan), np.full(num_classes, np.nan), [0] * num_classes
    for i in present:
        others = [j for j in present if j != i]
        spread = np.mean([((x - means[i]) ** 2).sum() for x in rows[labels == i]])
        ccd[i] = np.mean([spread / ((means[i] - means[j]) ** 2).sum() for j in others])
        ratios = []
        for x in rows[labels == i]:
            below = sum(cosine(x, means[j]) for j in others)
            if abs(below) < 1e-6:
                skipped[i] += 1
            else:
                ratios.append(cosine(x, means[i]) / below)
        pdd[i] = 1 - np.mean(ratios)
    return ccd, pdd, skipped


def test_distances_are_those_of_loops_over_pixels_and_classes():
    """Classes 1 and 4 are absent, class 5 has a single pixel, features are signed."""
    generator = np.random.default_rng(3)
    labels = generator.choice([0, 2, 3, 255], 300)
    labels[17] = 5
    rows = generator.normal(size=(300, 6)) + 2 * generator.normal(size=(256, 6))[labels]
    ccd, pdd, skipped = by_loops(rows, labels, 6)
    pixels = torch.from_numpy(rows), torch.from_numpy(labels)
    distances = distances_of(*pixels, centers_of(*pixels, num_classes=6).compute())
    equal(distances.ccd(), ccd)
    equal(distances.pdd(), pdd)
    assert distances.skipped.tolist() == skipped == [0] * 6
    assert np.isnan(ccd[[1, 4]]).all()
    assert ccd[5] == 0


def test_pixels_whose_denominator_is_near_zero_are_counted_and_left_out():
    """Of class 0 one pixel is at right angles to the centre of class 1, one is 0 itself; one of the others is void."""
    rows = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    labels = torch.tensor([0, 0, 0, 1, 255])
    distances = distances_of(rows, labels, centers_of(rows, labels, 2).compute())
    assert distances.skipped.tolist() == [2, 0]
    own = (rows[0] @ torch.tensor([2.0, 1.0])).double() / (2**0.5 * 5**0.5)  # the centre is along (2, 1)
    assert float(distances.pdd()[0]) == pytest.approx(1 - float(own) / (1 / 2**0.5))


def test_one_class_alone_has_no_distances():
    rows = torch.rand(5, 3)
    distances = distances_of(
        rows, torch.zeros(5, dtype=torch.long), centers_of(rows, torch.zeros(5).long(), 3).compute()
    )
    assert distances.ccd().isnan().all()
    assert distances.pdd().isnan().all()
    assert distances.skipped.tolist() == [5, 0, 0]


def test_sums_of_many_large_features_stay_exact():
    """In float32 the running sum of these would be off by thousands."""
    rows, labels = torch.full((4000, 1), 16777.217), torch.zeros(4000, dtype=torch.long)
    mean = centers_of(rows, labels, 1, batch=100).compute()
    assert float(mean) == pytest.approx(float(rows[0]), rel=1e-12)


def test_half_precision_features_are_taken():
    rows, labels = torch.rand(8, 3).bfloat16(), torch.tensor([0, 1] * 4)
    centers = centers_of(rows, labels, 2).compute()
    equal(centers, np.stack([rows[0::2].double().mean(0), rows[1::2].double().mean(0)]))
    assert distances_of(rows, labels, centers).ccd().isfinite().all()


@pytest.mark.parametrize("kind", [ClassCenters, PixelSample])
def test_no_batch_is_an_error(kind):
    with pytest.raises(ValueError, match="found no pixels"):
        kind(3).compute()


def sample_of(rows, labels, batch, **options):
    sample = PixelSample(4, **options)
    for part in zip(rows.split(batch), labels.split(batch), strict=True):
        sample.update(*part)
    return sample.compute()


def test_a_sample_has_as_many_pixels_of_each_class_as_there_are_up_to_its_size():
    labels = torch.tensor([0] * 50 + [1] * 3 + [3] * 20 + [255] * 9)[torch.randperm(82)]
    rows = torch.arange(82.0).unsqueeze(1)
    drawn, classes = sample_of(rows, labels, 10, per_class=8, seed=5)
    assert classes.tolist() == [0] * 8 + [1] * 3 + [3] * 8
    places = drawn[:, 0].long()
    assert torch.equal(labels[places], classes)
    assert len(set(places.tolist())) == len(places)


def test_a_sample_depends_on_its_seed_but_not_on_the_batches():
    labels, rows = torch.arange(200) % 4, torch.arange(200.0).unsqueeze(1)
    whole = sample_of(rows, labels, 200, per_class=8, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(whole, sample_of(rows, labels, 7, per_class=8, seed=1), strict=True))
    assert not torch.equal(whole[0], sample_of(rows, labels, 200, per_class=8, seed=2)[0])


def test_every_pixel_is_drawn_equally_often():
    labels, rows = torch.zeros(20, dtype=torch.long), torch.arange(20.0).unsqueeze(1)
    drawn = torch.cat([sample_of(rows, labels, 6, per_class=5, seed=seed)[0] for seed in range(800)])
    counts = drawn[:, 0].long().bincount(minlength=20)
    assert counts.sum() == 4000
    assert (counts - 200).abs().max() < 5 * (800 * 0.25 * 0.75) ** 0.5
