import math

import pytest
import torch

from lightning_uda.metrics import iou_per_class, mean_iou, merge_predictions, score_folds

MERGED = {
    "wall": "building", "fence": "building", "pole": "building", "truck": "car", "terrain": "vegetation",
}  # fmt: skip


def counted(truth, pred):
    """Confusion matrices (M, 19, 19) of pairs of label maps, by counting."""
    valid = truth != 255
    return torch.stack(
        [
            torch.bincount(19 * t[v].long() + p[v].long(), minlength=361).view(19, 19)
            for t, p, v in zip(truth, pred, valid, strict=True)
        ]
    )


@pytest.fixture
def nthu(golden):
    """The reference, its predictions of 19 classes, its labels brought to 19 classes, and the train ids of the 13."""
    arrays = golden("cbst_nthu")
    names19, names13 = arrays.arrays["names19"].tolist(), arrays.arrays["names13"].tolist()
    indices = [names19.index(name) for name in names13]
    to_19 = torch.full((256,), 255, dtype=torch.uint8)
    to_19[:13] = torch.tensor(indices, dtype=torch.uint8)
    merged = {names19.index(name): names19.index(target) for name, target in MERGED.items()}
    return arrays, counted(to_19[arrays["gt13"].long()], arrays["pred19"]), indices, merged, names19


def test_a_network_of_19_classes_is_scored_on_the_13_of_nthu(nthu):
    arrays, confusions, indices, merged, names = nthu
    for key, mapping in {"": merged, "_train_as_bus": merged | {names.index("train"): names.index("bus")}}.items():
        iou = iou_per_class(merge_predictions(confusions.sum(dim=0), mapping))
        torch.testing.assert_close(iou[indices], arrays[f"iou{key}"], rtol=0, atol=1e-12)
        assert float(mean_iou(iou, indices)) == pytest.approx(float(arrays[f"miou{key}"]), rel=0, abs=1e-12)


def test_merged_predictions_are_counted_where_they_belong(nthu):
    arrays, confusions, indices, merged, _ = nthu
    whole = merge_predictions(confusions.sum(dim=0), merged)
    scored = torch.zeros(14, 14, dtype=torch.int64)
    scored[:13, :13] = whole[indices][:, indices]
    scored[:13, 13] = whole[indices].sum(dim=1) - scored[:13, :13].sum(dim=1)
    assert torch.equal(scored, arrays["confusion"])
    assert whole.dtype == torch.int64
    assert not whole[:, list(merged)].any()


def test_ten_folds_of_ten_images_score_what_all_images_score_together(nthu):
    arrays, confusions, indices, merged, _ = nthu
    parts = [c for confusion in confusions for c in split_in(confusion, 50)]
    images = torch.stack([merge_predictions(part, merged) for part in parts])
    folds = torch.randperm(100, generator=torch.Generator().manual_seed(0)) % 10
    assert torch.bincount(folds).tolist() == arrays["fold_sizes"].tolist()

    scores = score_folds(images, indices, folds.tolist())

    assert scores.miou == pytest.approx(float(arrays["miou"]), rel=0, abs=1e-12)
    torch.testing.assert_close(scores.iou[indices], arrays["iou"], rtol=0, atol=1e-12)
    by_fold = torch.stack([images[folds == fold].sum(dim=0) for fold in range(10)])
    assert scores.fold_mious == tuple(float(mean_iou(iou_per_class(one), indices)) for one in by_fold)
    assert scores.mean_of_folds == pytest.approx(sum(scores.fold_mious) / 10)
    again = score_folds(by_fold, indices)
    assert (again.miou, again.fold_mious, again.mean_of_folds) == (scores.miou, scores.fold_mious, scores.mean_of_folds)


def split_in(confusion, parts):
    """Matrices that add up to one, drawn at random."""
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(parts, *confusion.shape, generator=generator)
    pieces = (confusion * shares / shares.sum(dim=0)).long()
    pieces[-1] += confusion - pieces.sum(dim=0)
    return pieces


def test_a_class_that_a_fold_lacks():
    folds = torch.tensor([[[3, 1], [0, 0]], [[2, 0], [0, 2]]])
    folds[0, 0, 1] = 0
    scores = score_folds(folds)
    assert scores.fold_mious == (1.0, 1.0)
    assert scores.mean_of_folds == 1.0
    assert scores.mean_of_folds_absent_zero == 0.75
    assert scores.miou == 1.0


def test_a_fold_without_pixels_has_no_score():
    scores = score_folds(torch.stack([torch.eye(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)]))
    assert scores.miou == 1.0
    assert math.isnan(scores.mean_of_folds)


def test_what_is_no_set_of_folds_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2\); expected \(M, C, C\)"):
        score_folds(torch.eye(2))
    with pytest.raises(ValueError, match=r"Found 1 fold numbers for 2 matrices"):
        score_folds(torch.ones(2, 2, 2), folds=[0])
