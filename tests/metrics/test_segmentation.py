from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_uda.label_spaces import CITYSCAPES16
from lightning_uda.metrics import iou_per_class, mean_iou

GOLDEN = Path(__file__).parents[1] / "golden" / "dacs_miou.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def confusion_of(truth: np.ndarray, pred: np.ndarray, num_classes: int) -> torch.Tensor:
    """One image after the other, as a run evaluates; ground truth outside the classes is void."""
    metric = MulticlassConfusionMatrix(num_classes, ignore_index=255)
    for image_truth, image_pred in zip(truth, pred, strict=True):
        void = np.where(image_truth >= num_classes, 255, image_truth)
        metric.update(torch.from_numpy(image_pred).long(), torch.from_numpy(void).long())
    return metric.compute()


@pytest.mark.parametrize(
    ("num_classes", "suffix", "confusion_key"), [(19, "", "confusion_rows_gt_cols_pred"), (16, "16", "confusion16")]
)
def test_iou_agrees_with_the_published_evaluation(golden, num_classes, suffix, confusion_key):
    confusion = confusion_of(golden[f"gt{suffix}"], golden[f"pred{suffix}"], num_classes)
    np.testing.assert_array_equal(confusion.numpy(), golden[confusion_key])
    np.testing.assert_allclose(iou_per_class(confusion).numpy(), golden[f"iou_per_class{suffix}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("confusion_key", "indices_key", "expected"),
    [
        ("confusion_rows_gt_cols_pred", None, "miou19"),
        ("confusion_rows_gt_cols_pred", "classes16_of_19", "miou16_from_19class_confusion"),
        ("confusion_rows_gt_cols_pred", "classes13_of_19", "miou13_from_19class_confusion"),
        ("confusion16", None, "miou16_from_16class_protocol"),
        ("confusion16", "classes13_of_16", "miou13_from_16class_protocol"),
    ],
)
def test_means_agree_with_the_published_evaluation(golden, confusion_key, indices_key, expected):
    iou = iou_per_class(torch.from_numpy(golden[confusion_key]))
    indices = None if indices_key is None else golden[indices_key].tolist()
    assert float(mean_iou(iou, indices)) == pytest.approx(float(golden[expected]), rel=0, abs=1e-12)


def test_agrees_with_the_evaluations_of_cbst():
    with np.load(GOLDEN.with_name("cbst_miou.npz")) as arrays:
        golden = dict(arrays)
    confusion = confusion_of(golden["gt19"], golden["pred19"], 19)
    np.testing.assert_array_equal(confusion.numpy(), golden["confusion"])
    iou = iou_per_class(confusion)
    np.testing.assert_allclose(iou.numpy(), golden["iou_nan"], rtol=1e-12, atol=1e-12)
    assert float(mean_iou(iou)) == pytest.approx(float(golden["miou_nanmean"]), rel=0, abs=1e-12)
    for program in ("torch", "mxnet"):
        expected = float(golden[f"miou_{program}_reference"])
        assert float(mean_iou(iou, absent=0.0)) == pytest.approx(expected, rel=0, abs=1e-12)
    confusion = confusion_of(golden["gt16"], golden["pred16"], 16)
    np.testing.assert_array_equal(confusion.numpy(), golden["confusion16"])
    iou = iou_per_class(confusion)
    np.testing.assert_allclose(iou.numpy(), golden["iou16"], rtol=1e-12, atol=1e-12)
    assert float(mean_iou(iou)) == pytest.approx(float(golden["miou16"]), rel=0, abs=1e-12)
    thirteen = golden["idx13_in_16"].tolist()
    assert CITYSCAPES16.subset_indices("13") == thirteen
    assert float(mean_iou(iou, thirteen)) == pytest.approx(float(golden["miou13"]), rel=0, abs=1e-12)


def test_a_class_in_neither_labels_nor_predictions_has_no_iou_and_no_part_in_the_mean():
    confusion = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    iou = iou_per_class(confusion)
    assert iou.dtype == torch.float64
    assert iou[:2].tolist() == [3 / 4, 4 / 5]
    assert iou[2].isnan()
    assert float(mean_iou(iou)) == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert mean_iou(iou, [2]).isnan()


def test_a_class_that_is_predicted_but_never_there_counts_as_zero():
    confusion = torch.tensor([[3, 1], [0, 0]])
    assert iou_per_class(confusion).tolist() == [3 / 4, 0.0]
    assert float(mean_iou(iou_per_class(confusion))) == pytest.approx(3 / 8)


def test_counts_beyond_float32_stay_exact():
    confusion = torch.tensor([[2**30 + 1, 0], [1, 2**30]])
    assert iou_per_class(confusion)[0].item() == (2**30 + 1) / (2**30 + 2)


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        iou_per_class(torch.zeros(2, 3))
