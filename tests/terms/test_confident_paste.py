import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from lightning_uda.methods import DACS
from lightning_uda.mixing import paste
from lightning_uda.networks.base import Classifier, Outputs
from lightning_uda.step import Labels, Step, View
from lightning_uda.terms import ConfidentPaste
from lightning_uda.terms.confident_paste import confident_pixels
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET, Replay


@pytest.mark.parametrize("tau", ["0.00", "0.55", "0.95"])
def test_confident_pixels_and_their_labels_are_the_reference(golden, tau):
    g = golden("ehtdi_htcm")
    size = g["y_source"].shape[-2:]
    labels, confident = confident_pixels(g["logits_weak"], size, float(tau))
    assert torch.equal(confident, g[f"mask_{tau}"].bool())
    assert torch.equal(labels.long()[confident], g[f"pred_{tau}"].long()[confident])
    truth = g["y_source"].long()
    expected = g[f"y_hts_{tau}"].long()
    assert torch.equal(paste(labels.long(), truth, confident), expected)


def test_the_pasted_image_is_the_reference(golden):
    g = golden("ehtdi_htcm")
    _, confident = confident_pixels(g["logits_weak"], g["y_source"].shape[-2:], 0.95)
    image = paste(g["x_mixed_strong"], g["x_source_strong"], confident)
    assert torch.allclose(image, g["x_hts_0.95"], rtol=0, atol=1e-4)


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
    assert set(logged) - set(plain) == {"train/loss_htcm"}
    parts = [value for name, value in logged.items() if name.startswith("train/loss_")]
    assert logged["train/loss"].item() == pytest.approx(sum(parts).item())


@pytest.mark.parametrize("tau", [-0.1, 1.5])
def test_thresholds_are_probabilities(tau):
    with pytest.raises(ValueError, match=r"expected a probability in \[0, 1\]"):
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
