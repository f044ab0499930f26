"""HRDA: fusion, detail of one part in training and of all parts elsewhere, and all that a network has to be."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn

from lightning_uda.data.transforms import TrainTransform
from lightning_uda.inference import SlidingWindow
from lightning_uda.label_spaces import CITYSCAPES, CITYSCAPES16
from lightning_uda.methods import DACS, DSP, EHTDI, DAFormer
from lightning_uda.networks import (
    ASPP,
    HRDA,
    Auxiliary,
    CaffeResNet,
    EncoderDecoder,
    SegFormerHead,
    TimmPyramid,
    start_from,
)
from lightning_uda.networks.hrda import fuse
from lightning_uda.step import Labels, Step
from lightning_uda.terms import FeatureDistance
from lightning_uda.translation import RandomResizedCrop
from lightning_uda.windows import mean_of_windows, place
from tests.fixtures.choices import few_of
from tests.fixtures.tiny import TinyDataset, tiny_data
from tests.networks.test_checkpoints import checkpoint_of, random_network

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
EHTDI_CROP = RandomResizedCrop((32, 32))
DAFORMER = {"feature_distance": FeatureDistance(classes=(0, 1, 2), min_share=0.2)}


def backbone():
    return TimmPyramid("resnet10t", output_stride=32)


def hrda(classes=5, seed=0, head=SegFormerHead(8, 0.0), attention=SegFormerHead(4, 0.0), **kwargs):
    torch.manual_seed(seed)
    return HRDA(classes, backbone(), head, attention, **kwargs)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Answers(nn.Module):
    """Gives tensors in order, whatever it is given, and counts."""

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.asked = answers, 0

    def forward(self, levels):
        self.asked += 1
        return self.answers[self.asked - 1]


# Fusion


def test_training_fuses_as_the_reference_does(golden):
    g = golden("t2sda_hrda_fusion")
    y1, y2, x1, x2 = (int(side) for side in g["crop_box"])
    network, image = hrda(detail_weight=0.25), torch.rand(2, 3, 128, 128)
    network.classifier, network.attention = Answers(g["lr_logits"], g["hr_logits"]), Answers(g["att_logits"])
    for seed in range(1000):
        network.classifier.asked = network.attention.asked = 0
        fused, detail = network.outputs_for_training(image, generator(seed)).classifiers
        if detail.window == (y1, x1, y2 - y1, x2 - x1):
            break
    torch.testing.assert_close(fused.logits, g["fused_train"], rtol=0, atol=1e-5)
    assert torch.equal(detail.logits, g["hr_logits"])
    assert (fused.weight, fused.window) == (0.75, None)
    assert detail.weight == 0.25
    assert detail.window == (y1, x1, y2 - y1, x2 - x1)


@pytest.mark.parametrize("at_once", [1, 4, 9, 100])
def test_all_parts_are_fused_as_the_reference_does(golden, at_once):
    g = golden("t2sda_hrda_fusion")
    network, image = hrda(windows_at_once=at_once), torch.rand(2, 3, 128, 128)
    network.classifier = Answers(g["lr_logits"], *g["slide_hr_logits"].split(2 * at_once))
    network.attention = Answers(g["att_logits"])
    torch.testing.assert_close(network(image), g["fused_slide"], rtol=0, atol=1e-5)
    assert network.classifier.asked == 1 + -(-9 // at_once)
    found = [(top, top + height, left, left + width) for top, left, height, width in network._sliding_windows(image)]
    assert found == [tuple(box) for box in g["slide_boxes"].tolist()]


def test_overlapping_windows_are_averaged_as_in_the_reference(golden):
    g = golden("t2sda_hrda_fusion")
    windows = [(y1 // 4, x1 // 4, (y2 - y1) // 4, (x2 - x1) // 4) for y1, y2, x1, x2 in g["slide_boxes"].tolist()]
    merged = mean_of_windows(g["slide_hr_logits"].split(2), windows, (32, 32))
    torch.testing.assert_close(merged, g["slide_hr_merged"], rtol=0, atol=1e-5)


def test_fusion_by_hand():
    context, detail = torch.full((1, 2, 2, 2), 4.0), torch.full((1, 2, 4, 4), 8.0)
    attention = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(1, 2, 2, 2)
    row = torch.tensor([4.0, 0.75 * 4 + 0.25 * 8, 0.25 * 4 + 0.75 * 8, 8.0])
    assert torch.equal(fuse(context, attention, detail), row.expand(1, 2, 4, 4))
    assert torch.equal(place(torch.ones(1, 1), (1, 2, 1, 1), (2, 4)), torch.tensor([[0.0] * 4, [0, 0, 1, 0]]))


# Training


def learned(network, image, mask, seed=0):
    step = Step({}, generator(seed), network)
    view = step.learn("source", image, Labels(mask))
    return step, view


def test_losses_of_a_step_are_those_of_an_independent_computation():
    """The same weights in a plain network, which is shown the 2 x 2 means of the image, and the part."""
    torch.manual_seed(1)
    network = hrda().eval()
    for parameter in network.attention.parameters():  # attention that differs from place to place
        parameter.data += 0.5 * torch.randn(parameter.shape)
    plain = EncoderDecoder(5, backbone(), SegFormerHead(8, 0.0)).eval()
    plain.load_state_dict({n: t for n, t in network.state_dict().items() if not n.startswith("attention")})
    image, mask = torch.rand(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    mask[:, :20] = 255
    step, view = learned(network, image, mask)
    top, left, height, width = view.classifiers[1].window
    assert (height, width) == (32, 48)
    assert top % 8 == left % 8 == 0
    levels = plain.encode(F.avg_pool2d(image, 2))
    part = (..., slice(top, top + height), slice(left, left + width))
    a = network.attention(levels).sigmoid()
    inside = torch.zeros(64, 96)
    inside[part] = 1
    a = a * F.avg_pool2d(inside[None], 8)[0]
    detail, whole = plain(image[part]), torch.zeros(2, 5, 16, 24)
    whole[..., top // 4 : (top + height) // 4, left // 4 : (left + width) // 4] = detail

    def enlarged(x, factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    fused = enlarged((1 - a) * plain.decode(levels), 2) + enlarged(a, 2) * whole
    expected = 0.9 * F.cross_entropy(enlarged(fused, 4), mask, ignore_index=255)
    expected = expected + 0.1 * F.cross_entropy(enlarged(detail, 4), mask[part], ignore_index=255)
    torch.testing.assert_close(step.loss, expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(view.features, levels, strict=True))


def test_the_generator_alone_draws_the_part():
    network, image = hrda(), torch.rand(1, 3, 64, 96)
    windows = set()
    for seed in range(60):
        torch.manual_seed(seed % 7)
        window = network.outputs_for_training(image, generator(seed)).classifiers[1].window
        assert window == network.outputs_for_training(image, generator(seed)).classifiers[1].window
        windows.add(window)
    assert {window[2:] for window in windows} == {(32, 48)}
    assert {window[0] for window in windows} == {0, 8, 16, 24, 32}
    assert {window[1] for window in windows} == {0, 8, 16, 24, 32, 40, 48}
    network.eval()
    first, again = (network.outputs_for_training(image, generator()).classifiers[0].logits for _ in range(2))
    assert torch.equal(first, again)


def test_two_views_of_a_step_show_different_parts():
    step = Step({}, generator(3), hrda())
    windows = [step.look(name, torch.rand(2, 3, 128, 128)).classifiers[1].window for name in ("source", "mixed")]
    assert windows[0] != windows[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_trained_parameter_gets_a_finite_gradient(dtype):
    network = hrda(auxiliary=[Auxiliary(ASPP((2,)), -2)], checkpointing=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        step, view = learned(network, torch.rand(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64)))
    step.loss.backward()
    assert step.loss.isfinite()
    assert view.logits.dtype == torch.float32
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_weights_of_16_bits_work_too():
    network = hrda().to(torch.bfloat16)
    step, _ = learned(network, torch.rand(2, 3, 32, 64), torch.randint(0, 5, (2, 32, 64)))
    step.loss.backward()
    assert step.loss.isfinite()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 32, 64)).isfinite().all()


@pytest.mark.parametrize("method", few_of([DACS, DSP, EHTDI, DAFormer], EHTDI))
def test_methods_train_on_it_and_evaluate_it_in_windows(method):
    network = hrda(11, auxiliary=[Auxiliary(SegFormerHead(4), -2, 0.1)])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    more = {DACS: {}, DSP: {"long_tail_classes": 2}, EHTDI: {"crop": EHTDI_CROP}, DAFormer: DAFORMER}[method]
    trainer = train(method, network, inference=SlidingWindow((32, 32), (16, 16)), **more)
    assert trainer.global_step == 2
    assert 0 <= trainer.callback_metrics["val/miou"] <= 100
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(before)


def test_the_part_is_no_auxiliary_classifier_to_ehtdi():
    networks = hrda(11), hrda(11)
    for network, labels in zip(networks, ("predicted", "mixed"), strict=True):
        torch.manual_seed(0)
        inference = SlidingWindow((32, 32), (32, 32))
        train(EHTDI, network, crop=EHTDI_CROP, auxiliary_labels=labels, mixed_weight=1.0, inference=inference)
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def train(method, network, **settings):
    """Two steps and a validation, on images that don't fit the network as a whole."""
    module = method(network=network, label_space="camvid", **settings)
    data = tiny_data(
        source=TinyDataset(size=(48, 64)),
        target=TinyDataset(size=(48, 64), seed=1),
        val=TinyDataset(3, size=(40, 56), seed=2),
        **{f"{name}_transform": TrainTransform(crop=(32, 32)) for name in ("source", "target")},
    )
    trainer = Trainer(max_steps=2, val_check_interval=2, check_val_every_n_epoch=None, **QUIET)
    trainer.fit(module, datamodule=data)
    return trainer


# A network as others are


def test_levels_and_outputs_are_those_of_the_context():
    network, image = hrda(auxiliary=[Auxiliary(ASPP((2,)), -2, 0.3)]).eval(), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        outputs, levels, logits = network.outputs(image), network.encode(image), network(image)
    assert network.strides == (8, 16, 32, 64)
    assert [level.shape[2:] for level in levels] == [(64 // s, -(-96 // s)) for s in network.strides]
    assert all(torch.equal(one, other) for one, other in zip(outputs.features, levels, strict=True))
    main, auxiliary = outputs.classifiers
    assert torch.equal(main.logits, logits)
    assert logits.shape == (2, 5, 16, 24)
    assert (main.weight, main.window, auxiliary.weight, auxiliary.window) == (1.0, None, 0.3, None)
    assert not network.align_corners


def test_parts_at_once_change_nothing_in_eval_mode():
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        first, second = (hrda(windows_at_once=count).eval()(image) for count in (9, 2))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_groups_hold_every_trained_parameter_once_and_attention_learns_as_classifiers_do():
    network = hrda(classifier_lr_scale=7.0, batch_norm="frozen_affine")
    groups = network.parameter_groups()
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in network.parameters() if parameter.requires_grad)
    attention = groups[-1]
    assert (attention["name"], attention["lr_scale"]) == ("classifier_attention", 7.0)
    trained = [id(parameter) for parameter in network.attention.parameters() if parameter.requires_grad]
    assert sorted(map(id, attention["params"])) == sorted(trained)
    assert not any(norm.weight.requires_grad for norm in network.batch_norm_modules())


def test_a_deterministic_teacher_gives_the_same_twice_in_train_mode():
    network = hrda(head=SegFormerHead(8, 0.9), attention=SegFormerHead(4, 0.9)).make_deterministic().train()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))


def test_names_are_those_of_the_plain_network_and_attention():
    for make in (backbone, lambda: CaffeResNet((1, 1, 1, 1), (2, 3, 4, 5), 4)):
        plain, network = EncoderDecoder(5, make(), ASPP()), HRDA(5, make(), ASPP(), SegFormerHead(4))
        names = list(network.state_dict())
        assert names[: len(plain.state_dict())] == list(plain.state_dict())
        assert {name.split(".")[0] for name in names[len(plain.state_dict()) :]} == {"attention"}
        other = HRDA(5, make(), ASPP(), SegFormerHead(4))
        other.load_state_dict(network.state_dict())
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_weights_may_be_a_plain_networks_or_its_own(tmp_path):
    plain, network = EncoderDecoder(5, backbone(), SegFormerHead(8)), hrda(seed=1)
    checkpoint_of(plain, tmp_path / "plain.ckpt", ["a"] * 5)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    loaded = hrda(seed=2, weights=str(tmp_path / "plain.ckpt"), min_loaded=1.0)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    loaded = hrda(seed=2, weights=str(tmp_path / "own.pth"), min_loaded=1.0)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    assert not loaded.random_weights
    notes = loaded.notes()
    assert any("own.pth: loaded" in note for note in notes)
    assert "HRDA: context at scale 1/2, detail at full scale, of weight 0.1, attention: SegFormerHead" in notes


def test_a_run_of_more_classes_may_start_it(tmp_path):
    trained = random_network(hrda, 19)
    path = checkpoint_of(trained, tmp_path / "last.ckpt", CITYSCAPES.classes)
    network = hrda(16).eval()
    start_from(network, path, CITYSCAPES16)
    kept = [CITYSCAPES.classes.index(name) for name in CITYSCAPES16.classes]
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(image), trained(image)[:, kept])


def test_a_third_of_the_scale():
    network = hrda(scale=1 / 3, multiple=12).eval()
    image = torch.rand(1, 3, 72, 108)
    with torch.no_grad():
        assert network(image).shape == (1, 5, 18, 27)
    (_, detail) = network.outputs_for_training(image, generator()).classifiers
    assert detail.window[2:] == (24, 36)


# What is refused


@pytest.mark.parametrize("size", [(60, 64), (64, 72)])
def test_images_that_do_not_fit_are_refused(size):
    network, image = hrda(), torch.rand(1, 3, *size)
    for call in (network, network.encode, network.outputs, lambda x: network.outputs_for_training(x, generator())):
        with pytest.raises(ValueError, match=rf"found images of {size[0]} x {size[1]} .* multiples of 16: of `mult"):
            call(image)


def test_logits_that_do_not_fit_are_refused():
    image = torch.rand(1, 3, 64, 64)
    coarse = HRDA(5, TimmPyramid("resnet10t", output_stride=8), ASPP())
    with pytest.raises(ValueError, match=r"found multiple=8 for logits of stride 8, .* Set multiple to 16"):
        coarse.eval()(image)
    with pytest.raises(ValueError, match=r"found logits of 5 x 5 for images of 32 x 32"):
        HRDA(5, CaffeResNet((1, 1, 1, 1), (2, 3, 4, 5), 4), ASPP(), multiple=16).eval()(image)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"scale": 0.4}, r"scale=0\.4, expected one over a whole number"),
        ({"scale": 1.0}, r"scale=1\.0"),
        ({"scale": 0.0}, r"scale: found 0"),
        ({"detail_weight": 1.5}, r"detail_weight: found 1"),
        ({"multiple": 0}, "multiple: found 0"),
        ({"windows_at_once": 0}, "windows_at_once: found 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, found):
    with pytest.raises(ValueError, match=found):
        hrda(**settings)
