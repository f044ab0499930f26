import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from lightning_uda.methods import DACS, SourceOnly
from lightning_uda.networks.base import InputNormalization
from lightning_uda.pseudo_labels import UniformWeights
from lightning_uda.step import Labels, Step
from lightning_uda.terms import MaskedConsistency
from lightning_uda.terms.masked_consistency import hidden_squares
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET, Replay


def generator():
    return torch.Generator().manual_seed(0)


def test_squares_are_hidden_as_often_as_asked_for():
    hidden = hidden_squares(50, (130, 70), 16, 0.7, generator())
    assert hidden.shape == (50, 130, 70)
    corners = hidden[:, ::16, ::16]
    assert corners.float().mean().item() == pytest.approx(0.7, abs=0.02)
    assert torch.equal(hidden[:, 15::16, 15::16], corners[:, :8, :4])  # whole squares, those at the border cut off
    assert hidden_squares(1, (8, 8), 16, 1.0, generator()).all()
    assert not hidden_squares(1, (8, 8), 16, 0.0, generator()).any()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_hidden_pixels_are_zero_to_the_network(order):
    normalization = InputNormalization((10, 100, 200), (1, 2, 3), order)
    image = normalization.mean_colour.expand(2, 3, 4, 4)
    assert normalization(image).abs().max() < 1e-4


def masked_step(term, confidence=None):
    torch.manual_seed(0)
    answer = torch.randn(2, 19, 4, 4)
    student = Replay(answer)
    step = Step({}, generator(), student)
    labels = torch.randint(0, 19, (2, 16, 16))
    image = torch.rand(2, 3, 16, 16)
    confidence = torch.rand(2, 16, 16) if confidence is None else confidence
    step.offer("target", image, Labels(labels), confidence=confidence)
    return step, term(step), answer, labels, image, confidence


def test_it_is_the_weighted_loss_of_masked_images_on_the_labels_of_whole_ones():
    term = MaskedConsistency(patch=8, ratio=0.5, augmentation=None)
    step, loss, answer, labels, image, confidence = masked_step(term)
    shown = step.views["term"].image
    hidden = (shown == 0).all(dim=1)  # the replaying network's mean colour is black
    assert 0 < hidden.float().mean() < 1
    assert torch.equal(shown, image * ~hidden.unsqueeze(1))
    logits = F.interpolate(answer, (16, 16), mode="bilinear", align_corners=True)
    share = (confidence >= 0.968).float().mean()
    expected = share * F.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_of_the_labels_count_too():
    term = MaskedConsistency(pixel_weighting=UniformWeights(), augmentation=None)
    step, loss, answer, labels, _, confidence = masked_step(term)
    weights = torch.zeros(2, 16, 16)
    weights[:, 8:] = 1
    step = Step({}, generator(), Replay(answer))
    step.offer("target", torch.rand(2, 3, 16, 16), Labels(labels, weights), confidence=confidence)
    logits = F.interpolate(answer, (16, 16), mode="bilinear", align_corners=True)
    expected = (F.cross_entropy(logits, labels, reduction="none") * weights).mean()
    assert term(step).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() > expected.item()


def fit(method, **terms):
    module = method(network=tiny_network(), label_space="camvid", terms=terms)
    trainer = Trainer(max_steps=2, log_every_n_steps=1, **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None))
    return trainer.logged_metrics


def test_any_method_with_a_teachers_labels_takes_it():
    logged = fit(DACS, mic=MaskedConsistency(patch=4, pixel_weighting=UniformWeights()))
    assert logged["train/loss_mic"] > 0
    with pytest.raises(ValueError, match="found no view 'target'"):
        fit(SourceOnly, mic=MaskedConsistency())


def test_a_view_without_a_teachers_labels_is_refused():
    step = Step({}, generator(), Replay())
    step.offer("target", torch.rand(1, 3, 8, 8), Labels(torch.zeros(1, 8, 8)))
    with pytest.raises(ValueError, match="found no labels of a teacher"):
        MaskedConsistency()(step)


@pytest.mark.parametrize("options", [{"patch": 0}, {"ratio": 1.2}])
def test_arguments_are_checked(options):
    with pytest.raises(ValueError, match=r"MaskedConsistency\.\w+: found"):
        MaskedConsistency(**options)
