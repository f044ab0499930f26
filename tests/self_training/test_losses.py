import pytest
import torch

from lightning_uda.self_training.losses import LRENT, MRKLD, HardLabels


def random_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 6, 8, generator=generator)
    mask = torch.randint(0, 5, (3, 6, 8), generator=generator)
    mask[mask == 4] = 255
    probs = (2 * torch.randn(3, 4, 6, 8, generator=generator)).softmax(dim=1)
    return logits, mask, torch.tensor([True, False, True]), probs, torch.tensor([0.4, 0.3, 0.5, torch.inf])


def naive(logits, mask, is_target, probs, thresholds, kind):
    """One pixel after the other, by the formulas of the paper."""
    log_probs, total, count, regularizer, regularized = logits.log_softmax(dim=1), 0.0, 0, 0.0, 0
    for n, i, j in torch.ones_like(mask).nonzero().tolist():
        if mask[n, i, j] == 255:
            continue
        log_p = log_probs[n, :, i, j]
        if kind == "lrent" and is_target[n]:
            weights = (probs[n, :, i, j] / thresholds) ** (1 / 0.25)
            if weights.sum() <= 1:
                continue
            total -= (weights / weights.sum() * log_p).sum()
        else:
            total -= log_p[mask[n, i, j]]
        count += 1
        if is_target[n]:
            regularizer -= log_p.mean()
            regularized += 1
    return total / count + (0.1 * regularizer / regularized if kind == "mrkld" else 0)


@pytest.mark.parametrize(("kind", "loss"), [("hard", HardLabels()), ("mrkld", MRKLD(0.1)), ("lrent", LRENT(0.25))])
def test_losses_match_a_loop_over_pixels(kind, loss):
    batch = random_batch()
    torch.testing.assert_close(loss(*batch), naive(*batch, kind))


@pytest.mark.parametrize("loss", [HardLabels(), MRKLD(), LRENT()])
def test_a_batch_without_labels_has_a_loss_of_0_and_finite_gradients(loss):
    logits, mask, is_target, probs, thresholds = random_batch()
    logits.requires_grad_()
    value = loss(logits, torch.full_like(mask, 255), is_target, probs, thresholds)
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


def test_crst_loss_of_the_golden_batch(golden):
    arrays = golden("cbst_crst_losses")
    logits, mask, is_target = arrays["logits"], arrays["labels"].long(), arrays["is_target"]
    found = MRKLD(float(arrays["weight"]))(logits, mask, is_target, None, torch.zeros(7))
    torch.testing.assert_close(found.double(), arrays["loss_formula"], rtol=1e-5, atol=0)
    assert not torch.isclose(found.double(), arrays["BUG_loss_reference"], rtol=1e-3)
    hard = HardLabels()(logits, mask, is_target, None, torch.zeros(7))
    torch.testing.assert_close(hard.double(), arrays["ce"], rtol=1e-5, atol=0)


def test_pixels_that_lrent_labels_are_those_of_the_golden_file(golden):
    arrays = golden("cbst_crst_losses")
    found = LRENT(0.25).assign(arrays["lrent_probs"], arrays["lrent_thr"])
    clear = arrays["log_partition_a025"].abs() >= 1e-5
    assert torch.equal(found[clear], arrays["hard_a025"][clear])
    assert 0 < (found != 255).float().mean() < 1


def test_strict_labels_leave_out_ties(golden):
    arrays = golden("cbst_ties")
    probs, thresholds = arrays["probs"], arrays["thr"][0]
    assert torch.equal(HardLabels().assign(probs, thresholds), arrays["pseudo_ge"][:1])
    assert torch.equal(HardLabels(strict=True).assign(probs, thresholds), arrays["pseudo_gt"][:1])
