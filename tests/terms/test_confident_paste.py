import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from lightning_uda.methods import DACS
from lightning_uda.mixing import paste
from lightning_uda.networks.base import Classifier, Outputs
from lightning_uda.pseudo_labels import pseudo_label
from lightning_uda.step import Labels, Step, View
from lightning_uda.terms import ConfidentPaste
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET, Replay


@pytest.mark.parametrize("tau", ["0.00", "0.55", "0.95"])
def test_confident_pixels_and_their_labels_are_the_reference(golden, tau):
    g = golden("ehtdi_htcm")
    size = g["y_source"].shape[-2:]
    labels, confidence = pseudo_label(g["logits_weak"], size)
    confident = confidence > float(tau)
    assert torch.equal(confident, g[f"mask_{tau}"].bool())
    assert torch.equal(labels.long()[confident], g[f"pred_{tau}"].long()[confident])
    truth = g["y_source"].long()
    expected = g[f"y_hts_{tau}"].long()
    assert torch.equal(paste(labels.long(), truth, confident), expected)


def test_the_pasted_image_is_the_reference(golden):
    g = golden("ehtdi_htcm")
    step, truth = Step({}, torch.Generator(), Replay(torch.zeros(2, 19, 5, 5))), g["y_source"].long()
    step.views["source_strong"] = View(g["x_source_strong"], [Labels(truth.where(truth >= 0, 255))])
    step.views["mixed"] = View(g["x_mixed_strong"])
    step.views["mixed_weak"] = View(g["x_mixed_strong"], outputs=Outputs((Classifier(g["logits_weak"]),), ()))
    term = ConfidentPaste(of="mixed_weak", image="mixed", onto="source_strong")
    term.name = "htcm"
    term(step)
    expected = g["y_hts_0.95"].long()
    assert torch.allclose(step.views["htcm"].image, g["x_hts_0.95"], rtol=0, atol=1e-4)
    assert torch.equal(step.views["htcm"].labels[0].mask, expected.where(expected >= 0, 255))
    assert step.log["htcm_pixels"]().item() == pytest.approx(g["mask_0.95"].float().mean().item())


def test_the_term_is_the_loss_of_the_source_image_with_confident_pixels_of_the_view():
    torch.manual_seed(0)
    images = [torch.rand(2, 3, 12, 12) for _ in range(2)]
    mask = torch.randint(0, 19, (2, 12, 12), dtype=torch.uint8)
    mask[0, :3] = 255
    sure, answer = 3 * torch.randn(2, 19, 4, 4), torch.randn(2, 19, 4, 4)
    student = Replay(answer)
    step = Step({}, torch.Generator(), student)
    step.views["source"] = View(images[0], [Labels(mask)])
    step.views["mixed"] = View(images[1], [Labels(mask)], outputs=Outputs((Classifier(sure),), ()))
    loss = ConfidentPaste(tau=0.6)(step)

    probs = F.interpolate(sure, (12, 12), mode="bilinear", align_corners=True).softmax(1)
    confidence, labels = probs.max(1)
    pasted = confidence > 0.6
    assert 0.1 < pasted.float().mean() < 0.9
    assert torch.equal(student.shown[0], torch.where(pasted.unsqueeze(1), images[1], images[0]))
    expected = F.cross_entropy(
        F.interpolate(answer, (12, 12), mode="bilinear", align_corners=True),
        torch.where(pasted, labels, mask.long()),
        ignore_index=255,
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_term_changes_the_run_and_is_logged_with_its_weight():
    def run(**terms):
        module = DACS(network=tiny_network(), label_space="camvid", terms=terms)
        trainer = Trainer(max_steps=2, log_every_n_steps=1, **QUIET)
        trainer.fit(module, datamodule=tiny_data(val=None))
        return trainer.logged_metrics, module.student.classifier.weight.detach().clone()

    plain, without = run()
    logged, weight = run(htcm=ConfidentPaste(tau=0.1, weight=0.5))
    assert not torch.equal(weight, without)
    assert set(logged) - set(plain) == {"train/loss_htcm", "train/htcm_pixels"}
    parts = [value for name, value in logged.items() if name.startswith("train/loss_")]
    assert logged["train/loss"].item() == pytest.approx(sum(parts).item())


@pytest.mark.parametrize("tau", [-0.1, 1.5])
def test_thresholds_are_probabilities(tau):
    with pytest.raises(ValueError, match=r"tau: found .*, expected a number from 0 to 1"):
        ConfidentPaste(tau=tau)


@pytest.mark.parametrize(
    "labels",
    [
        [],
        [Labels(torch.zeros(2, 4, 4)), Labels(torch.zeros(2, 4, 4))],
        [Labels(torch.zeros(2, 4, 4), torch.ones(2, 4, 4))],
    ],
)
def test_it_pastes_onto_ground_truth_alone(labels):
    step = Step({}, torch.Generator(), Replay())
    step.views["source"] = View(torch.rand(2, 3, 4, 4), labels)
    step.views["mixed"] = View(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="expected the ground truth of one class for each pixel"):
        ConfidentPaste()(step)


def pasted(pasted_before, opacity, tau=0.6, images="all"):
    """Labels of a paste, and all that they should be made of."""
    torch.manual_seed(0)
    logits, answer = 3 * torch.randn(2, 19, 12, 12), torch.randn(2, 19, 12, 12)
    truth, mixed = (torch.randint(0, 19, (2, 12, 12)) for _ in range(2))
    step = Step({}, torch.Generator(), Replay(answer))
    step.views["source"] = View(torch.rand(2, 3, 12, 12), [Labels(truth)])
    outputs = Outputs((Classifier(logits),), ())
    step.views["mixed"] = View(torch.rand(2, 3, 12, 12), [Labels(mixed)], opacity=opacity, outputs=outputs)
    loss = ConfidentPaste(tau=tau, pasted_before=pasted_before, images=images)(step)
    confidence, predicted = logits.softmax(1).max(1)
    (labels,) = step.views["term"].labels
    return loss, labels.mask, confidence > tau, predicted, truth, mixed, answer


def test_pixels_that_a_mix_has_from_a_source_image_carry_its_truth_or_are_all_pasted():
    before = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.4
    _, labels, confident, predicted, truth, mixed, _ = pasted("predicted", before)
    assert torch.equal(labels, torch.where(confident, predicted, truth))
    _, labels, *_ = pasted("truth", before)
    assert torch.equal(labels, torch.where(confident, torch.where(before, mixed, predicted), truth))
    _, labels, *_ = pasted("united", before.float() * 0.8)
    expected = torch.where(before, mixed, torch.where(confident, predicted, truth))
    assert torch.equal(labels, expected)
    with pytest.raises(ValueError, match="nothing was pasted into the view 'mixed'"):
        pasted("united", None)


def test_the_first_image_alone_is_taught_if_asked_for():
    loss, labels, *_, answer = pasted("predicted", None, images="first")
    assert loss.item() == pytest.approx(F.cross_entropy(answer[:1], labels[:1]).item(), rel=1e-5)


@pytest.mark.parametrize(("tau", "source"), [(1.0, True), (0.0, False)])
def test_tau_of_one_leaves_the_source_and_of_zero_takes_the_mix(tau, source):
    _, labels, _, predicted, truth, *_ = pasted("predicted", None, tau=tau)
    assert torch.equal(labels, truth if source else predicted)


def test_an_unjittered_form_of_the_paste_is_offered_to_other_terms():
    torch.manual_seed(0)
    step = Step({}, torch.Generator(), Replay(torch.zeros(2, 19, 4, 4)))
    images = {name: torch.rand(2, 3, 8, 8) for name in ("source", "mixed", "source_weak", "mixed_weak")}
    for name, image in images.items():
        step.offer(name, image, Labels(torch.zeros(2, 8, 8)))
    logits = 4 * torch.randn(2, 19, 8, 8)
    step.views["mixed_weak"] = View(images["mixed_weak"], outputs=Outputs((Classifier(logits),), ()))
    term = ConfidentPaste(of="mixed_weak", image="mixed", unjittered=("mixed_weak", "source_weak"))
    term(step)
    confident = (logits.softmax(1).amax(1) > 0.95).unsqueeze(1)
    expected = torch.where(confident, images["mixed_weak"], images["source_weak"])
    assert torch.equal(step.views["term_weak"].image, expected)
    assert step.views["term_weak"].labels == step.views["term"].labels
    assert step.views["term_weak"].outputs is None
