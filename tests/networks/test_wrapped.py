from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from lightning_uda.__main__ import main
from lightning_uda.methods import DACS, DSP, MeanTeacher
from lightning_uda.networks import InputNormalization, WeightsError, WrappedNetwork, from_transformers
from lightning_uda.step import Step
from lightning_uda.terms import FeatureDistance, FeatureMMD, MaskedConsistency, Pull

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def layers(num_classes=11):
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(stem, nn.Conv2d(8, num_classes, 1))


class Mapped(nn.Module):
    """Gives a mapping, as torchvision's models do, with features of two strides inside."""

    def __init__(self, gives=("out", "aux")):
        super().__init__()
        torch.manual_seed(0)
        self.gives = gives
        self.backbone = nn.ModuleDict({"fine": nn.Conv2d(3, 4, 3, 2, 1), "coarse": nn.Conv2d(4, 8, 3, 2, 1)})
        self.levels = nn.Identity()
        self.head = nn.Conv2d(8, 5, 1)
        self.aux_head = nn.Conv2d(4, 5, 1)

    def forward(self, inputs):
        fine = self.backbone["fine"](inputs)
        levels = self.levels((fine, self.backbone["coarse"](fine)))
        return dict(zip(self.gives, (self.head(levels[1]), self.aux_head(levels[0])), strict=True))


def wrapped(**kwargs):
    return WrappedNetwork(layers(), 11, **{"features": "0", "classifiers": ["1"], **kwargs})


def batch():
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 2, 3, 16, 16), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 11, (2, 16, 16), dtype=torch.uint8, generator=generator)
    return {"source": {"image": image[0], "mask": mask}, "target": {"image": image[1]}}


def test_logits_and_features_are_the_module_s_own():
    network = wrapped().eval()
    image = torch.rand(2, 3, 16, 24)
    inputs = (image - MEAN) / STD
    (classifier,), (features,) = network.outputs(image)
    assert torch.allclose(features, network.module[0](inputs), atol=1e-5)
    assert torch.allclose(classifier.logits, network.module(inputs), atol=1e-5)
    assert torch.equal(network(image), classifier.logits)
    assert torch.equal(network.encode(image)[0], features)
    assert (network.channels, network.strides, network.num_classes) == ((8,), (4,), 11)


def test_nothing_of_the_trial_stays():
    module = layers()
    before = copy.deepcopy(module.state_dict())
    network = WrappedNetwork(module, 11, features="0")
    assert module.training
    assert module[0][3].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    network(torch.rand(1, 3, 8, 8))
    assert not module[0]._forward_hooks


def test_a_copy_reads_its_own_features():
    network = wrapped().eval()
    teacher = copy.deepcopy(network)
    nn.init.zeros_(teacher.module[0][0].weight)
    nn.init.zeros_(teacher.module[0][0].bias)
    image = torch.rand(1, 3, 8, 8)
    assert (teacher.encode(image)[0] == 0).all()
    assert (network.encode(image)[0] != 0).any()


def test_mappings_objects_levels_and_auxiliary_logits():
    network = WrappedNetwork(Mapped(), 5, features="levels", auxiliary={"aux": 0.4})
    image = torch.rand(1, 3, 16, 16)
    (main, auxiliary), (features,) = network.outputs(image)
    assert (main.weight, auxiliary.weight) == (1.0, 0.4)
    assert main.logits.shape == (1, 5, 4, 4)
    assert auxiliary.logits.shape == (1, 5, 8, 8)
    assert features.shape == (1, *network.channels, 4, 4) == (1, 8, 4, 4)
    assert torch.equal(main.logits, network.module.head(features))


def test_groups_normalisation_and_batch_norm_policy():
    network = wrapped(
        batch_norm="eval", classifier_lr_scale=5.0, normalization=InputNormalization((0,) * 3, (255,) * 3)
    )
    groups = {group["name"]: group for group in network.parameter_groups()}
    names = {parameter: name for name, parameter in network.named_parameters()}
    found = {name: ([names[each] for each in group["params"]], group["lr_scale"]) for name, group in groups.items()}
    assert found == {
        "backbone": (["module.0.0.weight", "module.0.0.bias"], 1.0),
        "classifier": (["module.1.weight", "module.1.bias"], 5.0),
    }
    image = torch.rand(1, 3, 8, 8)
    assert torch.allclose(network.normalized(image), image)
    assert not network.train().module[0][1].training
    assert [group["name"] for group in wrapped(classifiers=[]).parameter_groups()] == ["backbone"]


def test_weights_of_the_module_load_without_a_classifier_of_other_classes(tmp_path):
    other = layers(num_classes=4)
    nn.init.ones_(other[0][0].weight)
    torch.save(other.state_dict(), tmp_path / "four.pth")
    network = wrapped(weights=str(tmp_path / "four.pth"))
    assert (network.module[0][0].weight == 1).all()
    assert torch.equal(network.module[1].weight, layers()[1].weight)
    assert not network.random_weights
    assert "four.pth: loaded 6 of 8 tensors; other shape" in network.notes()[1]
    with pytest.raises(WeightsError, match=r"four\.pth.*expected at least 90%"):
        wrapped(weights=str(tmp_path / "four.pth"), classifiers=[])
    assert wrapped().random_weights
    assert not wrapped(pretrained=True).random_weights


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (layers(4), {}, r"Sequential: gives logits of 4 classes, expected 11\. Make it with 11 classes"),
        (layers(), {"features": "backbone"}, r"features: found 'backbone'.*no submodule of Sequential.*\['0', '1'\]"),
        (layers(), {"classifiers": ["head"]}, r"classifiers: found 'head'.*expected a name such as \['0', '1'\]"),
        (layers(), {"auxiliary": {"aux": 0.4}}, r"auxiliary: found \['aux'\], but its further outputs are \[\]"),
        (Mapped(("main", "aux")), {}, r"Mapped: gives a mapping with \['main', 'aux'\]; expected logits"),
        (nn.Flatten(), {}, r"Flatten: gives a tensor of shape \(1, 12288\); expected logits \(N, classes, h, w\)"),
        (nn.Linear(5, 11), {}, r"Linear: can't be run on an image of 64 x 64 \(.*another trial_size"),
        (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (48, 16, 16))), {"features": "0"}, r"'0' gives a tensor of shape"),
    ],
)
def test_what_does_not_fit_is_said_when_the_network_is_made(module, options, message):
    with pytest.raises(ValueError, match=message):
        WrappedNetwork(module, 11, **options)


def test_a_plain_sequential_trains_in_python():
    module = DACS(network=wrapped(), label_space="camvid")
    step = Step(batch(), torch.Generator().manual_seed(0), module.student, teacher=module.teacher)
    module.algorithm(step)
    step.loss.backward()
    assert all(parameter.grad is not None for parameter in module.student.parameters())
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())


@pytest.mark.parametrize("term", [FeatureMMD(("source", "target")), FeatureDistance(classes=None), Pull()])
def test_terms_that_need_features_are_refused_without_and_accepted_with_them(term):
    message = rf"model\.terms\.far: {type(term).__name__} needs features of the network, but WrappedNetwork gives none"
    with pytest.raises(ValueError, match=message + r".*--model\.network\.features NAME"):
        MeanTeacher(network=wrapped(features=None), label_space="camvid", terms={"far": term})
    module = MeanTeacher(network=wrapped(), label_space="camvid", terms={"far": term})
    step = Step(batch(), torch.Generator().manual_seed(0), module.student, teacher=module.teacher)
    step.differentiated = frozenset(module.terms["far"].differentiates)
    module.algorithm(step)
    module.terms["far"](step).backward()


def test_without_features_other_terms_work_and_a_method_s_own_term_can_be_left_out():
    network = wrapped(features=None)
    assert MeanTeacher(network=network, label_space="camvid", terms={"masked": MaskedConsistency()}).terms["masked"]
    with pytest.raises(ValueError, match=r"model\.terms\.feature: FeatureMMD needs features"):
        DSP(network=network, label_space="camvid")
    assert not DSP(network=network, label_space="camvid", feature_alignment=None).terms
    with pytest.raises(ValueError, match=r"encode needs features"):
        network.encode(torch.rand(1, 3, 8, 8))


def test_the_config_of_the_page_trains_a_module_of_torchvision(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs/extending.md").read_text(), re.S)
    (network,) = (text for text in found if text.startswith("class_path: WrappedNetwork"))
    (further,) = (text for text in found if text.startswith("  normalization:"))
    Path("network.yaml").write_text(network + further)
    Path("config.yaml").write_text(yaml.safe_dump(one_step("network.yaml")))
    main(["fit", "--config", "config.yaml"])
    assert "loss mixed" in capsys.readouterr().out
    run = Path("runs/run/version_0")
    notes = (run / "notes.txt").read_text()
    assert "network: torchvision.models.segmentation.deeplabv3.DeepLabV3" in notes
    assert "weights: random at the start" in notes
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["network"]["init_args"]
    assert saved["module"]["init_args"]["weights_backbone"] is None
    assert saved["normalization"]["init_args"]["std"] == [255.0] * 3


def one_step(network):
    """A step of DACS on tiny data, with a network from a file."""
    tiny = "tests.fixtures.tiny.TinyDataset"
    return {
        "data": {
            "class_path": "UDADataModule",
            "init_args": {"label_space": "camvid", "source": tiny, "target": tiny, "num_workers": 0},
        },
        "model": {"class_path": "DACS", "init_args": {"network": network}},
        "trainer": {
            **{"max_steps": 1, "log_every_n_steps": 1, "accelerator": "cpu", "enable_checkpointing": False},
            "check_val_every_n_epoch": None,
        },
    }


def test_torchvision_s_modules_are_taken_as_they_come():
    network = WrappedNetwork(
        lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3), 3, classifiers=["classifier"]
    )
    assert network.eval()(torch.rand(1, 3, 32, 48)).shape == (1, 3, 32, 48)


def test_a_model_of_transformers_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[4, 8, 12, 16], num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    )
    saved = transformers.SegformerForSemanticSegmentation(config)
    saved.save_pretrained(tmp_path)
    network = WrappedNetwork(
        from_transformers(str(tmp_path), num_labels=5), 5, features="segformer", classifiers=["decode_head"]
    )
    (classifier,), (features,) = network.train().outputs(torch.rand(2, 3, 64, 96))
    assert classifier.logits.shape == (2, 5, 16, 24)
    assert features.shape == (2, 16, 2, 3)
    weights = saved.segformer.state_dict()
    assert all(torch.equal(t, weights[name]) for name, t in network.module.segformer.state_dict().items())
    made = from_transformers(str(tmp_path), num_labels=5, pretrained=False).state_dict()
    assert any(not torch.equal(tensor, made[f"segformer.{name}"]) for name, tensor in weights.items())
