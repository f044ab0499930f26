import pytest
import torch

from lightning_uda.pseudo_labels import (
    BatchConfidence,
    ImageConfidence,
    PixelConfidence,
    UniformWeights,
    pseudo_label,
)


def test_pseudo_labels_are_the_reference(golden):
    g = golden("dacs_mixed_loss")
    labels, confidence = pseudo_label(g["teacher_logits"], (12, 12))
    assert torch.equal(labels, g["pseudo_label"])
    assert torch.allclose(confidence, g["max_prob"], rtol=1e-5)


@pytest.mark.parametrize(
    ("weighting", "mode"),
    [(BatchConfidence, "uniform"), (PixelConfidence, "threshold"), (lambda _: UniformWeights(), "none")],
)
def test_pixel_weights_are_the_reference(golden, weighting, mode):
    g = golden("dacs_mixed_loss")
    weights = weighting(g["threshold"].item())(g["max_prob"], g["mask"].bool())
    assert torch.allclose(weights, g[f"weight_{mode}"], rtol=1e-5)


def test_weight_per_image_is_the_reference(golden):
    g = golden("dacs_mixed_loss")
    weights = ImageConfidence(g["threshold"].item())(g["max_prob"], g["mask"].bool())
    for image in range(2):
        outside = weights[image][g["mask"][image] == 0]
        assert torch.allclose(outside, g["lambda_per_image"][image].float(), rtol=1e-5)
        assert (weights[image][g["mask"][image] == 1] == 1).all()


def test_scope_whole_image_scales_pasted_pixels_too(golden):
    g = golden("dacs_mixed_loss")
    weights = BatchConfidence(g["threshold"].item(), "whole_image")(g["max_prob"], g["mask"].bool())
    assert torch.allclose(weights, g["lambda_batch"].float().expand_as(weights), rtol=1e-5)


def test_a_threshold_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"threshold: found 96\.8, expected a number from 0 to 1"):
        BatchConfidence(96.8)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(33, 20), (7, 9)])
def test_bands_of_rows_give_the_labels_of_the_whole(monkeypatch, size, align_corners):
    logits = 3 * torch.randn(2, 19, 7, 9, generator=torch.Generator().manual_seed(0))
    kept = logits.clone()
    expected = pseudo_label(logits, size, lambda probs: probs, align_corners)
    monkeypatch.setattr("lightning_uda.pseudo_labels.confidence._BAND", 5 * 19 * size[1])
    labels, confidence = pseudo_label(logits, size, align_corners=align_corners)
    assert torch.equal(labels, expected[0])
    assert torch.allclose(confidence, expected[1], rtol=1e-5)
    assert torch.equal(logits, kept)


def test_equal_logits_are_labelled_as_the_first_class_and_nan_as_some_class(monkeypatch):
    logits = torch.tensor([[1.0, 2, 2], [3, 3, 3], [0, torch.nan, 1]]).T.view(1, 3, 3, 1)
    monkeypatch.setattr("lightning_uda.pseudo_labels.confidence._BAND", 3)
    labels, confidence = pseudo_label(logits, (3, 1))
    assert labels[0, :2, 0].tolist() == [1, 0]
    assert 0 <= labels[0, 2, 0] < 3
    assert confidence[0, :, 0].isnan().tolist() == [False, False, True]
