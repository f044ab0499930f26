import pytest
import torch

from lightning_uda.pseudo_labels import DistributionAlignment, pseudo_label


def aligned(prior, window=128):
    alignment = DistributionAlignment(window=window)
    alignment.set_classes(len(prior))
    alignment.prior.copy_(torch.tensor(prior))
    return alignment


def test_probabilities_are_rescaled_by_prior_over_what_was_seen():
    probs = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    result = aligned([0.5, 0.5])(probs)
    expected = torch.tensor([0.6 * 0.5 / 0.6, 0.4 * 0.5 / 0.4])
    assert torch.allclose(result[0, :, 0, 0], expected / expected.sum())


def test_only_the_last_batches_count():
    alignment = aligned([0.5, 0.5], window=2)
    first, second, third = (torch.tensor([p, 1 - p]).view(1, 2, 1, 1) for p in (0.9, 0.3, 0.5))
    for probs in (first, second):
        alignment(probs)
    result = alignment(third)
    seen = (0.3 + 0.5) / 2
    scaled = torch.tensor([0.5 / seen, 0.5 / (1 - seen)])
    assert torch.allclose(result.flatten(), scaled / scaled.sum(), rtol=1e-5)


def test_absent_classes_are_never_chosen_and_nothing_is_nan():
    alignment = aligned([0.7, 0.3, 0.0])
    labels, confidence = pseudo_label(
        torch.randn(2, 3, 4, 4) + torch.tensor([0.0, 0, 9]).view(1, 3, 1, 1), (8, 8), alignment
    )
    assert labels.max() < 2
    assert confidence.isfinite().all()


def test_state_is_saved():
    alignment = aligned([0.5, 0.5])
    alignment(torch.full((1, 2, 1, 1), 0.5))
    other = aligned([0.2, 0.8])
    other.load_state_dict(alignment.state_dict())
    assert other.batches.item() == 1
    assert torch.equal(other.history, alignment.history)


def test_window_is_checked():
    with pytest.raises(ValueError, match="window: found 0"):
        DistributionAlignment(window=0)
