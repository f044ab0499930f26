"""Source images in the target's style are taught too, by any method."""

import pytest
import torch

from lightning_uda.step import Labels, Step
from lightning_uda.terms import Translated
from lightning_uda.translation import FourierTranslation
from tests.fixtures.tiny import tiny_network


def step_with(*labels):
    torch.manual_seed(0)
    step = Step({}, torch.Generator().manual_seed(0), tiny_network())
    step.offer("source", torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), *labels)
    step.offer("target", torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    return step


def test_the_loss_is_that_of_the_translated_images_and_the_labels_as_they_are():
    mask = torch.randint(0, 11, (2, 16, 16))
    mask[0, :4] = 255
    step, term = step_with(Labels(mask)), Translated(translation=FourierTranslation(beta=0.2))
    term.name = "fda"
    loss = term(step)
    shown = step.views["fda"].image
    source, target = (step.views[name].image for name in ("source", "target"))
    assert torch.equal(shown, FourierTranslation(beta=0.2)(source / 255, step.generator, target))
    assert not torch.allclose(shown, source / 255, atol=0.05)
    other = step_with(Labels(mask))
    torch.testing.assert_close(loss, other.cost(other.look("again", shown, Labels(mask))))
    loss.backward()
    assert any(weight.grad.abs().sum() > 0 for weight in step.student.parameters())


def test_without_others_images_take_the_style_of_the_next():
    step = step_with(Labels(torch.zeros(2, 16, 16, dtype=torch.long)))
    Translated(style="source")(step)
    image = step.views["source"].image / 255
    assert torch.equal(step.views["term"].image, FourierTranslation()(image, step.generator, image.flip(0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "found no labels on the view 'source'"),
        ({"of": "sources"}, "found no view 'sources'"),
        ({"of": "target"}, "found no labels on the view 'target'"),
    ],
)
def test_what_cannot_be_taught_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Translated(**options)(step_with())
