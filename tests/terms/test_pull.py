import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_uda.methods import DACS, MeanTeacher, SourceOnly
from lightning_uda.pseudo_labels import DynamicClassWeights, FixedClassWeights, dynamic_weights, pseudo_label
from lightning_uda.resize import subsample
from lightning_uda.step import Labels, SoftLabels, Step
from lightning_uda.terms import Projector, Pull
from lightning_uda.terms.pull_loss import Keys, pull
from lightning_uda.translation import FourierTranslation
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET

CLASSES = 11


def generator():
    return torch.Generator().manual_seed(0)


def step_of(term, confidence=True, mask=None):
    """A step over random images with a student and another teacher, whom the term was prepared for."""
    student = tiny_network()
    term.prepare(student)
    torch.manual_seed(1)
    teacher = copy.deepcopy(student).requires_grad_(False).keep_in_eval()
    for parameter in teacher.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    step = Step({}, generator(), student, differentiated=frozenset(term.differentiates), teacher=teacher)
    mask = (
        torch.randint(0, CLASSES, (2, 4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2) if mask is None else mask
    )
    step.offer("source", torch.rand(2, 3, 16, 16), Labels(mask))
    image = torch.rand(2, 3, 16, 16)
    labels, sure = pseudo_label(teacher(image), (16, 16))
    step.offer("target", image, Labels(labels), confidence=sure if confidence else None)
    return step


def projected(network, image):
    return network.attached["term"](network.encode(image)[-1])


POSITIVES = ["source", "target", "pseudo_target"]


@pytest.mark.parametrize("query", ["source", "pseudo_target"])
@pytest.mark.parametrize("positive", POSITIVES)
@pytest.mark.parametrize("negatives", ["source", "source_and_target"])
def test_every_direction_is_the_loss_of_these_features(query, positive, negatives):
    term = Pull(query=query, positive=positive, negatives=negatives, n=4, m=16)
    step = step_of(term)
    source, target = step.views["source"], step.views["target"]
    found = term(step)

    translated = FourierTranslation()(source.image, generator(), target.image)
    images = {"source": source.image, "target": target.image, "pseudo_target": translated}
    labels = subsample(source.labels[0].mask, (4, 4))
    on_grid, sure = pseudo_label(step.teacher(target.image), (4, 4), align_corners=False)
    keys = {name: Keys(projected(step.teacher, images[name]), labels) for name in ("source", "pseudo_target")}
    keys["target"] = Keys(projected(step.teacher, target.image), on_grid, sure)
    student = copy.deepcopy(step.student)
    expected = pull(
        projected(student, images[query]),
        keys["source"],
        keys["target"] if negatives == "source_and_target" else None,
        dynamic_weights(target.labels[0].mask, target.confidence, CLASSES),
        generator(),
        keys[positive],
        n=4,
        m=16,
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.item() > 0


def test_only_the_students_encoder_and_projector_learn():
    term = Pull()
    step = step_of(term)
    term(step).backward()
    moved = {name for name, p in step.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[0] for name in moved} == {"backbone", "attached"}
    assert all(p.grad is None for p in step.teacher.parameters())


def test_the_teacher_is_asked_once_for_labels_and_features():
    term = Pull()
    step = step_of(term)
    asked = []
    step.teacher.backbone.register_forward_hook(lambda *_: asked.append(1))
    step.teacher_logits(step.views["target"].image)  # as a method does that labels target images
    term(step)
    assert len(asked) == 2  # target, source


def test_where_the_method_has_no_confidence_the_teachers_is_taken():
    found = [Pull(n=4, m=16)(step_of(Pull(), confidence)) for confidence in (False, True)]
    assert found[0].item() == pytest.approx(found[1].item(), rel=1e-6)


def test_classes_weigh_alike_without_weighting_and_as_given_with_it():
    alike = [
        Pull(class_weighting=weighting, n=4, m=16)(step_of(Pull()))
        for weighting in (None, FixedClassWeights([1.0] * CLASSES), DynamicClassWeights(beta=0))
    ]
    assert alike[0].item() == pytest.approx(alike[1].item(), rel=1e-6)
    assert alike[0].item() == pytest.approx(alike[2].item(), rel=1e-6)
    with pytest.raises(ValueError, match="19 weights for 11 classes"):
        Pull(class_weighting=FixedClassWeights()).prepare(tiny_network())


@pytest.mark.parametrize("target", ["target", None])
def test_images_without_labels_cost_nothing_and_have_a_graph(target):
    without = {"target": None, "negatives": "source", "class_weighting": None}
    term = Pull(**({} if target else without))
    step = step_of(term, mask=torch.full((2, 16, 16), 255))
    loss = term(step)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in step.student.parameters())


def test_without_a_target_the_style_is_that_of_the_next_image():
    term = Pull(target=None, negatives="source", class_weighting=None)
    step = step_of(term)
    del step.views["target"]
    assert term(step).isfinite()
    image = step.views["source"].image
    expected = FourierTranslation()(image, generator(), image.flip(0))
    assert torch.equal(step.views["pseudo_target"].image, expected)


def test_the_projector_is_as_it_is_asked_for():
    plain = Projector(channels=5).build(3)
    assert [type(layer).__name__ for layer in plain] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    assert plain[0].weight.shape == (5, 3, 3, 3)
    assert plain[0].bias is None
    assert plain(torch.rand(2, 3, 7, 6)).shape == (2, 5, 7, 6)
    other = Projector(channels=5, kernel=1, last_relu=False, output_layer=True, statistics="batch").build(3)
    assert [type(layer).__name__ for layer in other] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "Conv2d",
        "BatchNorm2d",
        "Conv2d",
    ]
    image = torch.rand(2, 3, 7, 6)
    with torch.no_grad():
        assert torch.equal(other.train()(image), other.eval()(image))
        assert not torch.equal(plain.train()(image), plain.eval()(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, "tau: found 0"),
        ({"m": 1}, "m=1"),
        ({"alpha": 1.5}, "alpha: found 1"),
        ({"target": None}, "negatives to source, class_weighting to null"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pull(**options)
    with pytest.raises(ValueError, match="kernel=2"):
        Projector(kernel=2)


def test_views_that_are_not_there_or_without_labels_are_named():
    term = Pull(source="sauce")
    with pytest.raises(ValueError, match="found no view 'sauce'"):
        term(step_of(term))
    term = Pull(source="soft")
    step = step_of(term)
    step.offer("soft", torch.rand(2, 3, 16, 16), SoftLabels(torch.rand(2, CLASSES, 16, 16)))
    with pytest.raises(ValueError, match="expected one class for each pixel"):
        term(step)


def test_the_projector_is_a_part_of_student_and_teacher():
    module = DACS(network=tiny_network(), label_space="camvid", terms={"pull": Pull(projector_lr_scale=3.0)})
    student, teacher = module.student.attached["pull"], module.teacher.attached["pull"]
    assert {name: p.shape for name, p in student.named_parameters()} == {
        name: p.shape for name, p in teacher.named_parameters()
    }
    assert student[0].weight.data_ptr() != teacher[0].weight.data_ptr()
    assert not any(p.requires_grad for p in teacher.parameters())
    (group,) = module.student.attached_groups()
    assert (group["name"], group["lr_scale"]) == ("attached_pull", 3.0)
    assert {p.data_ptr() for p in group["params"]} == {p.data_ptr() for p in student.parameters()}


def test_a_method_adds_it_after_its_teacher_was_made_too():
    module = MeanTeacher(network=tiny_network(), label_space="camvid")
    module.add_term("pull", Pull())
    for mine, theirs in zip(module.student.state_dict().items(), module.teacher.state_dict().items(), strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1])
    assert not any(p.requires_grad for p in module.teacher.parameters())


@pytest.mark.parametrize("policy", ["eval", "frozen_affine", "frozen_statistics"])
def test_frozen_batch_norm_does_not_freeze_the_projectors(policy):
    network = tiny_network(batch_norm=policy)
    Pull().prepare(network)
    norms = [module for module in network.attached.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert all(norm.weight.requires_grad and norm.training for norm in norms)
    network.eval()
    assert not any(norm.training for norm in norms)
    network.train()
    assert all(norm.training for norm in norms)
    assert network.backbone[1].training == (policy == "frozen_affine")


def test_methods_without_a_teacher_are_told_so():
    module = SourceOnly(network=tiny_network(), label_space="camvid", terms={"pull": Pull()})
    with pytest.raises(ValueError, match="Pull needs the features of a teacher, but SourceOnly has none"):
        Trainer(max_steps=1, **QUIET).fit(module, datamodule=tiny_data(val=None))


def test_a_cells_label_may_be_that_of_most_of_its_pixels():
    mask = torch.randint(0, CLASSES, (2, 4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    speckled = mask.clone()
    speckled[:, ::4, ::4] = 255  # the pixels that nearest takes, a sixteenth of each cell

    def loss(mask, **options):
        term = Pull(n=4, m=16, **options)
        return term(step_of(term, mask=mask)).item()

    assert loss(speckled) == 0
    assert loss(speckled, label_share=0.9) == loss(mask) > 0
    assert loss(speckled, label_share=0.95) == 0
