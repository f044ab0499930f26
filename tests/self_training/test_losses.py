import pytest
import torch

from lightning_uda.resize import upsample
from lightning_uda.self_training.losses import LRENT, MRKLD, HardLabels, lrent_labels, one_hot_labels
from lightning_uda.step import SoftLabels

GOLDEN = "cbst_crst_losses"


def loss_of(loss, logits, mask, is_target, probs, thresholds):
    log_probs = upsample(logits, mask.shape[-2:]).log_softmax(dim=1)
    return sum(part.loss(log_probs) for part in loss.labels(mask, is_target, thresholds, probs))


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
    torch.testing.assert_close(loss_of(loss, *batch), naive(*batch, kind))


@pytest.mark.parametrize("loss", [HardLabels(), MRKLD(), LRENT()])
def test_a_batch_without_labels_has_a_loss_of_0_and_finite_gradients(loss):
    logits, mask, is_target, probs, thresholds = random_batch()
    logits.requires_grad_()
    value = loss_of(loss, logits, torch.full_like(mask, 255), is_target, probs, thresholds)
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", [HardLabels(), HardLabels(strict=True), MRKLD(), LRENT()])
def test_target_images_without_a_label_add_exactly_nothing(loss):
    logits, mask, is_target, probs, _ = random_batch()
    nothing = torch.full((4,), torch.inf)
    mask[is_target] = loss.assign(probs, nothing)[is_target].long()
    assert (mask[is_target] == 255).all()
    logits.requires_grad_()
    value = loss_of(loss, logits, mask, is_target, probs, nothing)
    value.backward()
    expected = torch.nn.functional.cross_entropy(logits.detach()[1:2], mask[1:2], ignore_index=255)
    torch.testing.assert_close(value.detach(), expected)
    assert (logits.grad[is_target] == 0).all()
    assert logits.grad[~is_target].isfinite().all()
    assert (logits.grad[~is_target] != 0).any()


def test_crst_loss_of_the_golden_batch(golden):
    arrays = golden(GOLDEN)
    logits, mask, is_target = arrays["logits"], arrays["labels"].long(), arrays["is_target"]
    found = loss_of(MRKLD(float(arrays["weight"])), logits, mask, is_target, None, torch.zeros(7))
    torch.testing.assert_close(found.double(), arrays["loss_formula"], rtol=1e-5, atol=0)
    assert not torch.isclose(found.double(), arrays["BUG_loss_reference"], rtol=1e-3)
    hard = loss_of(HardLabels(), logits, mask, is_target, None, torch.zeros(7))
    torch.testing.assert_close(hard.double(), arrays["ce"], rtol=1e-5, atol=0)


def test_pixels_that_lrent_labels_are_those_of_the_golden_file(golden):
    arrays = golden(GOLDEN)
    found = LRENT(0.25).assign(arrays["lrent_probs"], arrays["lrent_thr"])
    clear = arrays["log_partition_a025"].abs() >= 1e-5
    assert torch.equal(found[clear], arrays["hard_a025"][clear])
    assert 0 < (found != 255).float().mean() < 1


def test_strict_labels_leave_out_ties(golden):
    arrays = golden("cbst_ties")
    probs, thresholds = arrays["probs"], arrays["thr"][0]
    assert torch.equal(HardLabels().assign(probs, thresholds), arrays["pseudo_ge"][:1])
    assert torch.equal(HardLabels(strict=True).assign(probs, thresholds), arrays["pseudo_gt"][:1])


@pytest.mark.parametrize(("alpha", "name"), [(0.25, "025"), (0.5, "05"), (1.0, "10")])
def test_soft_labels_are_the_reference(golden, alpha, name):
    g = golden(GOLDEN)
    soft, kept = lrent_labels(g["lrent_probs"], g["lrent_thr"], alpha)
    clear = g[f"log_partition_a{name}"].abs() >= 1e-5
    assert torch.equal(kept[clear], g[f"mask_a{name}"][clear])
    expected = torch.where(kept.unsqueeze(1), g[f"soft_a{name}"], 0)
    assert torch.allclose(soft, expected, rtol=1e-4, atol=1e-6)
    hard = torch.where(kept, soft.argmax(1), 255)
    assert torch.equal(hard[clear], g[f"hard_a{name}"].long()[clear])


def test_classes_without_threshold_get_no_share():
    probs = torch.rand(2, 4, 6, 6).softmax(1)
    soft, kept = lrent_labels(probs, torch.tensor([0.2, float("inf"), 0.3, float("inf")]))
    assert kept.any()
    assert (soft[:, [1, 3]] == 0).all()
    assert torch.allclose(soft.sum(1), kept.float())
    soft, kept = lrent_labels(probs, torch.full((4,), float("inf")))
    assert not kept.any()
    assert (soft == 0).all()


def test_a_small_weight_gives_the_hard_labels_of_cbst():
    probs = (3 * torch.randn(2, 5, 12, 12)).softmax(1)
    thresholds = torch.tensor([0.5, 0.6, 0.7, 0.3, 0.9])
    soft, kept = lrent_labels(probs, thresholds, alpha=1e-3)
    ratio, label = (probs / thresholds.view(1, -1, 1, 1)).max(1)
    sure = (ratio - 1).abs() > 0.01
    assert torch.equal(kept[sure], (ratio > 1)[sure])
    assert torch.equal(soft.argmax(1)[kept], label[kept])


def uniform_loss(logits, valid):
    """MRKLD's regulariser alone: the loss less that of the hard labels."""
    mask, is_target = torch.where(valid, 0, 255).byte(), torch.ones(len(valid), dtype=torch.bool)
    _, uniform = MRKLD(1.0).labels(mask, is_target, torch.zeros(logits.shape[1]), None)
    return uniform.loss(upsample(logits, valid.shape[-2:]).log_softmax(1))


def test_the_regulariser_of_mrkld_is_the_reference(golden):
    g = golden(GOLDEN)
    valid = (g["labels"] != 255) & g["is_target"].view(-1, 1, 1)
    assert uniform_loss(g["logits"], valid).item() == pytest.approx(g["kld_mean_target"].item(), rel=1e-5)


def test_the_gradient_of_mrkld_pulls_towards_the_uniform_distribution(golden):
    logits = golden(GOLDEN)["logits"][:1].requires_grad_()
    valid = torch.zeros(1, 10, 12, dtype=torch.bool)
    valid[0, 2:4, :5] = True
    (grad,) = torch.autograd.grad(uniform_loss(logits, valid), logits)
    expected = (logits.softmax(1) - 1 / 7) * valid.unsqueeze(1) / 10
    assert torch.allclose(grad, expected, atol=1e-7)


def test_soft_cross_entropy_is_the_reference(golden):
    g = golden(GOLDEN)
    loss = SoftLabels(g["soft_ce_labels"]).loss(g["soft_ce_logits"].log_softmax(1))
    assert loss.item() == pytest.approx(g["soft_ce"].item(), rel=1e-5)


def test_one_hot_labels_make_it_the_hard_loss(golden):
    g = golden(GOLDEN)
    labels = one_hot_labels(g["labels"], 7)
    assert (labels.sum(1) == (g["labels"] != 255)).all()
    loss = SoftLabels(labels).loss(g["logits"].log_softmax(1))
    assert loss.item() == pytest.approx(g["ce"].item(), rel=1e-5)
