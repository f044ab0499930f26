import pytest
import torch

from lightning_uda.losses import cross_entropy
from lightning_uda.self_training.regularization import lrent_labels, mrkld, one_hot_labels, soft_cross_entropy

GOLDEN = "cbst_crst_losses"


def test_mrkld_on_labelled_target_pixels_is_the_reference(golden):
    g = golden(GOLDEN)
    mask = g["labels"].long()
    valid = (mask != 255) & g["is_target"].view(-1, 1, 1)
    ce, kld = cross_entropy(g["logits"], mask), mrkld(g["logits"], valid)
    assert ce.item() == pytest.approx(g["ce"].item(), rel=1e-5)
    assert kld.item() == pytest.approx(g["kld_mean_target"].item(), rel=1e-5)
    loss = ce + g["weight"] * kld
    assert loss.item() == pytest.approx(g["loss_formula"].item(), rel=1e-5)
    assert loss.item() != pytest.approx(g["BUG_loss_reference"].item(), rel=1e-2)


def test_the_gradient_of_mrkld_pulls_towards_the_uniform_distribution(golden):
    logits = golden(GOLDEN)["logits"][:1].requires_grad_()
    valid = torch.zeros(1, 10, 12, dtype=torch.bool)
    valid[0, 2:4, :5] = True
    (grad,) = torch.autograd.grad(mrkld(logits, valid), logits)
    expected = (logits.softmax(1) - 1 / 7) * valid.unsqueeze(1) / 10
    assert torch.allclose(grad, expected, atol=1e-7)


def test_small_logits_are_upsampled_to_the_labels():
    logits = torch.randn(2, 3, 4, 5)
    large = torch.nn.functional.interpolate(logits, size=(13, 17), mode="bilinear", align_corners=True)
    valid = torch.rand(2, 13, 17) < 0.5
    labels = one_hot_labels(torch.randint(0, 3, (2, 13, 17)), 3)
    assert torch.allclose(mrkld(logits, valid), -large.log_softmax(1).mean(1)[valid].mean(), atol=1e-6)
    assert torch.allclose(soft_cross_entropy(logits, labels), soft_cross_entropy(large, labels), atol=1e-6)


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


def test_soft_cross_entropy_is_the_reference(golden):
    g = golden(GOLDEN)
    loss = soft_cross_entropy(g["soft_ce_logits"], g["soft_ce_labels"])
    assert loss.item() == pytest.approx(g["soft_ce"].item(), rel=1e-5)


def test_one_hot_labels_make_it_the_hard_loss(golden):
    g = golden(GOLDEN)
    mask = g["labels"].long()
    labels = one_hot_labels(mask, 7)
    assert (labels.sum(1) == (mask != 255)).all()
    assert soft_cross_entropy(g["logits"], labels).item() == pytest.approx(g["ce"].item(), rel=1e-5)


def test_a_batch_without_labels_costs_nothing():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = mrkld(logits, torch.zeros(2, 8, 8, dtype=torch.bool)) + soft_cross_entropy(logits, torch.zeros(2, 3, 8, 8))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
