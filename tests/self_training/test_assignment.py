import numpy as np
import pytest
import torch

from lightning_uda.self_training import assign_pseudo_labels, assignment, class_balance_score


@pytest.mark.parametrize("portion", ["p20", "p50"])
@pytest.mark.parametrize("strict", [False, True])
def test_pseudo_labels_are_the_reference(golden, portion, strict):
    g = golden("cbst_pseudo_labels")
    labels = assign_pseudo_labels(g["probs"], g[f"thr_{portion}"], strict)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, g[f"pseudo_{'gt' if strict else 'ge'}_{portion}"])


@pytest.mark.parametrize("portion", ["p20", "p50"])
def test_labels_of_a_single_threshold_are_the_reference(golden, portion):
    g = golden("cbst_pseudo_labels")
    labels = assign_pseudo_labels(g["probs"], g[f"thr_st_{portion}"].expand(7))
    assert torch.equal(labels, g[f"pseudo_st_ge_{portion}"])


def test_some_labels_differ_from_the_prediction(golden):
    g = golden("cbst_pseudo_labels")
    labels = assign_pseudo_labels(g["probs"], g["thr_p50"]).long()
    other = (labels != 255) & (labels != g["probs"].argmax(dim=1))
    assert 0.02 < other.double().mean() < 0.03


def test_saturated_labels_are_the_reference(golden):
    g = golden("cbst_ties")
    for row in range(2):
        for strict, name in ((False, "ge"), (True, "gt")):
            labels = assign_pseudo_labels(g["probs"], g["thr"][row], strict)
            assert torch.equal(labels[0], g[f"pseudo_{name}"][row])
            selected = torch.bincount(labels.view(-1), minlength=256)[:3]
            assert torch.equal(selected, g[f"selected_per_class_{name}"][row])


@pytest.mark.parametrize("portion", ["p20", "p50"])
@pytest.mark.parametrize("scale", [1.0, 2.0**11])
def test_labels_with_a_spatial_prior_are_the_reference(golden, portion, scale):
    g = golden("cbst_prior_weighted")
    potential = g["potential"] * scale  # a power of two, so that nothing is rounded anew
    by_class = assign_pseudo_labels(potential, g[f"thr_sp_floor_ds1_{portion}"] * scale)
    assert torch.equal(by_class, g[f"pseudo_sp_ge_{portion}"])
    together = assign_pseudo_labels(potential, (g[f"thr_stsp_floor_ds1_{portion}"] * scale).expand(6))
    assert torch.equal(together, g[f"pseudo_stsp_ge_{portion}"])
    assert not ((by_class == 4) | (together == 4)).any()  # absent in the source


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 20])
def test_rows_at_once_change_nothing(monkeypatch, chunk):
    monkeypatch.setattr(assignment, "_CHUNK", chunk)
    torch.manual_seed(0)
    scores = torch.randn(3, 5, 17, 11).softmax(dim=1)
    thresholds = torch.tensor([0.5, 0.3, torch.inf, 0.2, 0.9])
    expected = np.full((3, 17, 11), 255, np.uint8)
    for n, y, x in np.ndindex(3, 17, 11):
        ratios = [float(score / threshold) for score, threshold in zip(scores[n, :, y, x], thresholds, strict=True)]
        if max(ratios) >= 1:
            expected[n, y, x] = ratios.index(max(ratios))
    labels = assign_pseudo_labels(scores, thresholds)
    assert np.array_equal(labels.numpy(), expected)
    assert set(np.unique(expected)) >= {0, 1, 3, 255}


def test_a_class_of_infinite_threshold_is_never_assigned():
    scores = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    assert assign_pseudo_labels(scores, torch.tensor([0.1, torch.inf])).item() == 255


@pytest.mark.parametrize("strict", [False, True])
def test_infinite_thresholds_label_nothing(strict):
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1e30, 0.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 3)
    assert (assign_pseudo_labels(scores, torch.full((3,), torch.inf), strict) == 255).all()


def test_ties_go_to_the_lowest_class():
    scores = torch.tensor([0.2, 0.4, 0.4]).view(1, 3, 1, 1)
    assert assign_pseudo_labels(scores, torch.tensor([0.2, 0.4, 0.4])).item() == 0
    assert assign_pseudo_labels(scores, torch.tensor([0.3, 0.4, 0.4])).item() == 1


def test_zero_and_nan_are_never_selected():
    scores = torch.tensor([[0.0, torch.nan, 1e-30], [0.0, 0.5, 0.0]]).view(1, 2, 1, 3)
    assert assign_pseudo_labels(scores, torch.tensor([0.0, 0.7])).flatten().tolist() == [255, 255, 0]


def test_thresholds_of_another_class_count_are_refused():
    with pytest.raises(ValueError, match=r"Found thresholds \(3,\) for 2 classes"):
        assign_pseudo_labels(torch.zeros(1, 2, 4, 4), torch.ones(3))


def test_class_balance_scores_are_the_reference(golden):
    g = golden("cbst_thresholds")
    confidence, classes = g["probs"].max(dim=1)
    assert torch.allclose(class_balance_score(confidence, classes, 7), g["cbs_score"], rtol=1e-6, atol=1e-6)
