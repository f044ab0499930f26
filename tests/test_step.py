import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_uda.networks.base import Classifier, InputNormalization, Outputs, SegmentationNetwork, parameter_group
from lightning_uda.resize import upsample
from lightning_uda.step import Labels, SoftLabels, Step
from lightning_uda.terms import Supervised


def log_probs_of(logits, size):
    return upsample(logits, size).log_softmax(dim=1)


def check_gradient(loss, logits, expected):
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(grad, expected, rtol=0, atol=1e-7)


def test_labels_over_valid_pixels_are_the_supervised_loss_of_dacs(golden):
    g = golden("dacs_supervised_ce")
    logits = g["logits"].requires_grad_()
    loss = Labels(g["target"]).loss(log_probs_of(logits, g["target"].shape[-2:]))
    assert loss.item() == pytest.approx(g["loss"].item(), rel=1e-5)
    check_gradient(loss, logits, g["grad"])


def test_labels_without_a_valid_pixel_cost_nothing():
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = Labels(torch.full((2, 8, 8), 255)).loss(logits.log_softmax(1))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("mode", ["uniform", "threshold", "none"])
def test_weighted_labels_over_all_pixels_are_the_mixed_loss_of_dacs(golden, mode):
    g = golden("dacs_mixed_loss")
    logits, mask = g["student_logits"].requires_grad_(), g["mixed_target"]
    loss = Labels(mask, g[f"weight_{mode}"], "all").loss(log_probs_of(logits, mask.shape[-2:]))
    assert loss.item() == pytest.approx(g[f"loss_{mode}"].item(), rel=1e-5)
    check_gradient(loss, logits, g[f"grad_{mode}"])


def test_bytes_and_long_labels_cost_the_same():
    log_probs, mask = torch.randn(2, 5, 6, 7).log_softmax(1), torch.randint(0, 5, (2, 6, 7))
    mask[0, 0] = 255
    assert Labels(mask).loss(log_probs) == Labels(mask.byte()).loss(log_probs)


def test_two_labels_of_a_soft_paste_are_the_weighting_of_dsps_equation_6():
    torch.manual_seed(0)
    logits, beta = torch.randn(2, 5, 6, 7), 0.7
    labels, pasted = (torch.randint(0, 5, (2, 6, 7)) for _ in range(2))
    labels[0, 0] = 255
    mask = torch.rand(2, 6, 7) > 0.5
    per_pixel = F.cross_entropy(logits, labels, ignore_index=255, reduction="none") * (1 - beta * mask)
    per_pixel = per_pixel + F.cross_entropy(logits, pasted, reduction="none") * beta * mask
    log_probs = logits.log_softmax(1)
    mixed = torch.where(mask, pasted, labels)
    loss = Labels(labels, 1 - beta, "all").loss(log_probs) + Labels(mixed, beta, "all").loss(log_probs)
    assert torch.allclose(loss, per_pixel.mean(), rtol=1e-5)


def test_a_mean_over_valid_pixels_takes_weights_too():
    torch.manual_seed(0)
    log_probs, mask, weights = (
        torch.randn(1, 3, 4, 4).log_softmax(1),
        torch.randint(0, 3, (1, 4, 4)),
        torch.rand(1, 4, 4),
    )
    mask[0, 0] = 255
    expected = sum(-weights[0, i, j] * log_probs[0, mask[0, i, j], i, j] for i in range(1, 4) for j in range(4)) / 12
    assert torch.allclose(Labels(mask, weights).loss(log_probs), expected)


class TwoHeads(SegmentationNetwork):
    """Gives main logits of the whole image, and detail logits of a window of it, at a weight."""

    window = (2, 4, 4, 8)

    def __init__(self):
        super().__init__(3, InputNormalization((0,) * 3, (1,) * 3), (1,), (3,), "train")
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, image):
        return self.scale[0] * image

    def outputs(self, image):
        top, left, height, width = self.window
        detail = self.scale[1] * image[..., top : top + height, left : left + width]
        return Outputs((Classifier(self(image)), Classifier(detail, 0.25, self.window)), (image,))

    def parameter_groups(self):
        return [parameter_group("backbone", self.parameters())]


def step_of(network, batch=None):
    return Step(batch or {}, torch.Generator().manual_seed(0), network)


def test_every_classifier_is_taught_on_its_part_of_the_image():
    torch.manual_seed(0)
    image, mask, weights = torch.rand(2, 3, 8, 12), torch.randint(0, 3, (2, 8, 12)), torch.rand(2, 8, 12)
    step = step_of(TwoHeads())
    view = step.learn("source", image, Labels(mask, weights, "all"))
    assert view.logits.shape == (2, 3, 8, 12)
    per_pixel = F.cross_entropy(image, mask, reduction="none") * weights
    expected = per_pixel.mean() + 0.25 * per_pixel[:, 2:6, 4:12].mean()
    assert torch.allclose(step.losses["loss_source"], expected)
    assert torch.allclose(step.loss, expected)


def test_a_classifier_of_a_part_is_no_auxiliary_one():
    """What EHTDI teaches auxiliary classifiers is for those of the whole image."""

    class ThreeHeads(TwoHeads):
        def outputs(self, image):
            classifiers, features = super().outputs(image)
            return Outputs((*classifiers, Classifier(2 * image, 0.5)), features)

    torch.manual_seed(0)
    image, mask, other = torch.rand(2, 3, 8, 12), *torch.randint(0, 3, (2, 2, 8, 12))
    step = step_of(ThreeHeads())
    step.learn("mixed", image, Labels(mask), auxiliary=Labels(other))
    expected = F.cross_entropy(image, mask) + 0.25 * F.cross_entropy(image[..., 2:6, 4:12], mask[:, 2:6, 4:12])
    assert torch.allclose(step.loss, expected + 0.5 * F.cross_entropy(2 * image, other))


def test_soft_labels_are_cropped_to_the_part_too():
    torch.manual_seed(0)
    image, probs, valid = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 8, 12).softmax(1), torch.rand(2, 8, 12) > 0.5
    step = step_of(TwoHeads())
    uniform = torch.full((1, 3, 1, 1), 1 / 3)
    step.learn("union", image, SoftLabels(probs, valid), SoftLabels(uniform, valid, 0.1))
    log_probs = image.log_softmax(1)
    expected = 0
    for weight, part in ((1, (slice(None),) * 2), (0.25, (slice(2, 6), slice(4, 12)))):
        kept = valid[:, *part]
        soft, flat = -(probs * log_probs).sum(1)[:, *part], -log_probs.mean(1)[:, *part]
        expected += weight * (soft[kept].mean() + 0.1 * flat[kept].mean())
    assert torch.allclose(step.losses["loss_union"], expected)


def test_looking_teaches_nothing_but_carries_gradients():
    network = TwoHeads()
    step = step_of(network)
    view = step.look("weak", torch.randint(0, 256, (1, 3, 8, 12), dtype=torch.uint8))
    assert not step.losses
    assert step.views == {"weak": view}
    view.logits.sum().backward()
    assert network.scale.grad[0] != 0


def test_a_term_names_the_views_there_are():
    step = step_of(TwoHeads())
    step.look("weak", torch.rand(1, 3, 8, 12))
    with pytest.raises(ValueError, match=r"Supervised: found no view 'mixed'; the method's step has \['weak'\]"):
        Supervised().view(step, "mixed")


def test_two_losses_of_one_name_are_refused():
    step = step_of(TwoHeads())
    step.learn("source", torch.rand(1, 3, 8, 12), Labels(torch.zeros(1, 8, 12)))
    with pytest.raises(ValueError, match=r"second loss 'source' in a step that has \['loss_source'\]"):
        step.add_loss("source", torch.zeros(()))


def test_two_views_of_one_name_and_a_step_that_teaches_nothing_are_refused():
    step = step_of(TwoHeads())
    step.look("weak", torch.rand(1, 3, 8, 12))
    with pytest.raises(ValueError, match=r"second view 'weak' in a step that has \['weak'\]"):
        step.look("weak", torch.rand(1, 3, 8, 12))
    with pytest.raises(ValueError, match=r"no labels for 'strong'; show images without teaching by Step\.look"):
        step.learn("strong", torch.rand(1, 3, 8, 12))
    with pytest.raises(ValueError, match="The step taught nothing"):
        _ = step.loss


def test_views_kept_for_pictures_hold_no_outputs_and_no_soft_labels():
    view = step_of(TwoHeads()).learn("union", torch.rand(1, 3, 8, 12), SoftLabels(torch.rand(1, 3, 8, 12)))
    kept = view.for_pictures()
    assert kept.outputs is None
    assert kept.labels == []
    assert torch.equal(kept.image, view.image)
