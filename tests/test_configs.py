"""Every shipped config parses and trains one step."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser

from lightning_uda import methods
from lightning_uda.cli import run_trainer
from lightning_uda.label_spaces import CAMVID
from lightning_uda.networks import SegmentationNetwork
from tests.fixtures.configs import CONFIGS, read
from tests.fixtures.official_layouts import (
    make_acdc,
    make_bdd100k,
    make_cityscapes,
    make_dark_zurich,
    make_gta5,
    make_idd,
    make_mapillary,
    make_nthu,
    make_synthia,
)

EXPERIMENTS = sorted(CONFIGS.glob("experiment/*/*.yaml")) + sorted(CONFIGS.glob("demo/*.yaml"))
FAST = ["--trainer.fast_dev_run", "1", "--data.num_workers", "0", "--data.batch_size", "2"]


def make_camvid(top):
    """Makes a folder laid out like CamVid, with its list files beside it, and gives its path."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (top / "camvid" / folder).mkdir(parents=True)
    for name in ("a", "b", "c", "d"):
        cv2.imwrite(str(top / "camvid/images" / f"{name}.jpg"), rng.integers(0, 256, (48, 64, 3), np.uint8))
        cv2.imwrite(str(top / "camvid/labels" / f"{name}.png"), rng.integers(0, 11, (48, 64), np.uint8))
    (top / "camvid/classes.json").write_text(json.dumps({"ids": dict(enumerate(CAMVID.classes)), "ignore": 255}))
    (top / "camvid_day2dusk").mkdir()
    for split in ("source_train", "target_train"):
        (top / "camvid_day2dusk" / f"{split}.txt").write_text("a\nb\nc\nd\n")
    return str(top / "camvid")


@pytest.fixture
def camvid(tmp_path):
    return make_camvid(tmp_path)


MAKERS = {
    **{"gta5": make_gta5, "synthia": make_synthia, "cityscapes": make_cityscapes, "bdd100k": make_bdd100k},
    **{"acdc": make_acdc, "dark_zurich": make_dark_zurich, "idd": make_idd, "mapillary": make_mapillary},
}


def make_benchmarks(top):
    """Makes the public datasets in their official layouts, small, each in a folder of its name."""
    for name, make in MAKERS.items():
        make(top / name)
    make_nthu(top / "nthu")
    return top


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    return make_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def small_backbone(*options):
    """Options that give a network of free parts random weights."""
    return ["--model.network.backbone.pretrained", "false", *options]


AT_TWO_SCALES = [part for name in ("source", "target", "val") for part in (f"--data.{name}.size", "[64, 128]")]
"""Options that give images whose halves MiT takes: its sides have 32 pixels or more."""
SMALL = {
    "deeplab_v2_efficientnet_lite0": ["--model.network.weights", "null"],
    "deeplab_v2_resnet50": ["--model.network.pretrained", "false"],
    "deeplab_v2_resnet101": ["--model.network.blocks", "[1,1,1,1]", "--model.network.planes", "[4,4,4,4]"],
    "fcn8s_vgg16": [
        *["--model.network.pretrained", "false", "--model.network.backbone", "vgg11"],
        *["--model.network.fc_channels", "8"],
    ],
    "wide_resnet38": ["--model.network.stem_channels", "4"],
    "daformer_mit_b5": small_backbone("--model.network.backbone.size", "b0"),
    "daformer_convnext_tiny": small_backbone("--model.network.backbone.name", "convnext_atto"),
    "daformer_swin_tiny": small_backbone(),
    "daformer_pvt_v2_b2": small_backbone("--model.network.backbone.name", "pvt_v2_b0"),
    "daformer_dinov2_base": small_backbone("--model.network.backbone.name", "vit_small_patch14_dinov2"),
    "daformer_dinov2_large": small_backbone("--model.network.backbone.name", "vit_small_patch14_dinov2"),
    "linear_dinov2_base": small_backbone("--model.network.backbone.name", "vit_small_patch14_dinov2"),
    "daformer_dinov3_base": small_backbone("--model.network.backbone.name", "vit_small_patch16_dinov3"),
    "daformer_dinov3_convnext_tiny": small_backbone("--model.network.backbone.name", "convnext_atto"),
    "deeplab_v2_resnet101_v1c": small_backbone("--model.network.backbone.name", "resnet18"),
    "hrda_mit_b0": AT_TWO_SCALES,
    "hrda_mit_b5": small_backbone("--model.network.backbone.size", "b0", *AT_TWO_SCALES),
    "hrda_resnet101_v1c": small_backbone("--model.network.backbone.name", "resnet18"),
}
"""Options that bring a network of the papers down to one for a test."""
SMALL_SCENES = [
    *(part for name in ("source", "target", "val") for part in (f"--data.{name}.size", "[32, 64]")),
    *(part for name in ("source", "target") for part in (f"--data.{name}_transform.crop", "[32, 64]")),
]
"""Options that give MiniCity's scenes for self-training in small."""
SMALL_CROPS = ["--model.crop.size", "[32, 32]"]
"""The same for EHTDI's crops."""


def small_network(network):
    """Options that bring a network of a published experiment down to one for a test."""
    whole = {"CaffeDeepLabV2": "deeplab_v2_resnet101", "FCN8s": "fcn8s_vgg16", "WideResNet38": "wide_resnet38"}
    if network["class_path"] in whole:
        return SMALL[whole[network["class_path"]]]
    parts = {"MiT": "daformer_mit_b5", "TimmPyramid": "deeplab_v2_resnet101_v1c", "TimmViT": "daformer_dinov2_base"}
    return SMALL[parts[network["init_args"]["backbone"]["class_path"]]]


def small_benchmark(config, top):
    """Options that bring a published experiment down to small images and a small network."""
    source, target = config.parent.name.split("_to_")
    content = read(config)
    network, data = content["model"]["init_args"]["network"], content["data"]["init_args"]
    arguments = small_network(network)
    for name, folder in (("source", source), ("target", target), ("val", target)):
        arguments = [*arguments, f"--data.{name}.root", str(top / folder)]
    crop, image = ("[64, 64]", "[64, 128]") if network["class_path"] == "HRDA" else ("[32, 32]", "[32, 64]")
    for name in ("source", "target"):
        arguments += [f"--data.{name}_transform.resize", image, f"--data.{name}_transform.crop", crop]
    if data.get("target_margins") is not None:
        arguments += ["--data.target_margins.top", "1", "--data.target_margins.bottom", "4"]
    if config.stem.startswith("ehtdi"):
        arguments += SMALL_CROPS
    if data["source_sampling"]["class_path"] == "RareClass":
        arguments += ["--data.source_sampling.min_pixels", "0"]
    if network["class_path"] == "HRDA":
        arguments += ["--model.inference.crop", crop, "--model.inference.stride", "[32, 32]"]
    return [*arguments, "--data.eval_transform.resize", image]


def small_rounds(pair):
    """Options for self-training without a source checkpoint and, on MiniCity, with few target images to label."""
    return [
        *["--model.init_from", "null"],
        *(["--data.source.length", "6", "--data.target.length", "4", *SMALL_SCENES] if pair == "minicity" else []),
    ]


def small_minicity(content):
    """Options that bring an experiment on MiniCity down to a few small scenes."""
    two_scales = content["model"]["init_args"]["network"]["class_path"] == "HRDA"
    arguments = ["--data.source.length", "60"]
    for name in ("source", "target", "val"):
        if content["data"]["init_args"].get(name) is not None:  # the oracle has no target stream
            arguments += [f"--data.{name}.size", "[64, 128]" if two_scales else "[32, 64]"]
    if content["data"]["init_args"].get("target") is not None:
        arguments += ["--data.target.length", "8"]
    if "min_pixels" in content["data"]["init_args"]["source_sampling"].get("init_args", ()):
        arguments += ["--data.source_sampling.min_pixels", "0"]
    return arguments


def small_folders(content):
    """Options that bring an experiment on folders down to CamVid's fixture and a small network."""
    arguments = ["--data.label_space", "camvid"]
    crop = "[32, 32]"
    if content["model"]["init_args"]["network"]["class_path"] == "HRDA":
        crop = "[64, 64]"
        arguments += small_backbone("--model.network.backbone.size", "b0")
        arguments += ["--model.inference.crop", crop, "--model.inference.stride", "[32, 32]"]
        for name in ("source_transform", "target_transform", "eval_transform"):
            arguments += [f"--data.{name}.resize", "[64, 128]"]
    else:
        arguments += ["--model.network.backbone", "resnet10t", "--model.network.pretrained", "false"]
    for name in ("source", "target"):
        arguments += [f"--data.{name}_transform.crop", crop]
    if content["data"]["init_args"]["source_sampling"]["class_path"] == "RareClass":
        arguments += ["--data.source_sampling.min_pixels", "0"]
    return arguments


def parts_of(content, option=""):
    """Each option of a config that names a class, with the class."""
    if isinstance(content, list):
        for element in content:
            yield from parts_of(element, option)
    elif isinstance(content, dict):
        if "class_path" in content:
            yield option, content["class_path"]
        for name, value in content.items():
            yield from parts_of(value, option if name == "init_args" else name)


def cover(parts):
    """Few of the configs of a mapping to their parts which together have all parts: ever that with most new ones."""
    chosen, missing = [], set().union(*parts.values())
    while missing:
        chosen.append(max(parts, key=lambda config: len(parts[config] & missing)))
        missing -= parts[chosen[-1]]
    return chosen


def experiments():
    """All experiments; left to the slow tests are those whose every part stands in others that run.

    Each folder is a part too.
    """
    parts = {}
    for config in EXPERIMENTS:
        parts[config] = {*parts_of(read(config)), config.parent.name}
    chosen = cover(parts)
    for config in EXPERIMENTS:
        marks = [] if config in chosen else [pytest.mark.slow]
        yield pytest.param(config, id=str(config.relative_to(CONFIGS)), marks=marks)


def small_experiment(config, camvid, benchmarks):
    """Options that bring an experiment down to small images and a small network.

    Args:
        config: Its file.
        camvid: The folder that stands for CamVid, and for folders of one's own.
        benchmarks: The folder of the public datasets.
    """
    pair, content = config.parent.name, read(config)
    arguments = []
    if pair in ("camvid_day_to_dusk", "folders"):
        for name in ("source", "target", "val"):
            arguments += [f"--data.{name}.root", camvid]
    if pair == "camvid_day_to_dusk":
        arguments += [*SMALL["deeplab_v2_efficientnet_lite0"], "--data.eval_transform.resize", "[48, 64]"]
        for name in ("source_transform", "target_transform"):
            arguments += [f"--data.{name}.resize", "[48, 64]"]
            if content["data"]["init_args"][name].get("class_path"):
                arguments += [f"--data.{name}.crop", "[48, 64]"]
        if content["data"]["init_args"]["source_sampling"]["class_path"] == "RareClass":
            arguments += ["--data.source_sampling.min_pixels", "0"]
    if pair == "folders":
        arguments += small_folders(content)
    if pair.split("_to_")[0] in MAKERS:
        arguments += small_benchmark(config, benchmarks)
    if content["model"]["class_path"] == "SelfTraining":
        arguments += small_rounds(pair)
    elif pair == "minicity":
        arguments += small_minicity(content)
    return arguments


@pytest.mark.parametrize("config", experiments())
def test_experiment_runs_a_step(config, camvid, benchmarks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = run_trainer(["fit", "--config", str(config), *FAST, *small_experiment(config, camvid, benchmarks)])
    assert cli.trainer.global_step == 1
    assert cli.model.label_space.num_classes == cli.model.student.num_classes


def test_folders_have_a_config_for_every_method():
    found = {read(path)["model"]["class_path"] for path in (CONFIGS / "experiment/folders").glob("*.yaml")}
    assert found == set(methods.__all__) - {"UDAModule", "TeacherModule"}
    names = {path.stem for path in (CONFIGS / "experiment/folders").glob("*.yaml")}
    assert {"st", "cbst", "cbst_sp"} <= names


def included(config):
    """The files that a config takes over, and those that these do."""
    for name in re.findall(r"include: *([^\s}]+\.yaml)", config.read_text()):
        path = (config.parent / name).resolve()
        yield path
        yield from included(path)


def axis_combinations():
    """Every method, every network and every schedule once, each with the plain choice on the other axes.

    Left to the slow tests are files that an experiment has which runs without them, and networks all of whose parts
    stand in one before.
    """
    run = [path for case in experiments() if not case.marks for path in included(*case.values)]
    plain = {"method": "dacs", "network": "deeplab_v2_resnet18", "schedule": "minicity"}
    chosen, seen = [plain], {path.stem for path in run}
    for axis in plain:
        chosen += [{**plain, axis: path.stem} for path in sorted((CONFIGS / axis).glob("*.yaml"))]
    for name, axes in {"-".join(axes.values()): axes for axes in chosen}.items():
        parts = {*parts_of(read(CONFIGS / f"network/{axes['network']}.yaml"))}
        found = {axes["method"], axes["schedule"], *(parts if axes["network"] not in seen else ())}
        yield pytest.param(axes, id=name, marks=[pytest.mark.slow] if found <= seen else [])
        seen |= {*found, *parts}


@pytest.mark.parametrize("axes", axis_combinations())
def test_axes_compose(axes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_rounds = axes["method"] == "self_training"
    data = CONFIGS / "data" / ("minicity_crops.yaml" if in_rounds else "minicity.yaml")
    arguments = ["fit", "--data", str(data), "--model", str(CONFIGS / f"method/{axes['method']}.yaml")]
    arguments += ["--model.network", str(CONFIGS / f"network/{axes['network']}.yaml")]
    arguments += ["--trainer", str(CONFIGS / f"schedule/{axes['schedule']}.yaml"), *FAST]
    for name in ("source", "target", "val"):
        arguments += [f"--data.{name}.size", "[32, 64]"]
    arguments += SMALL.get(axes["network"], [])
    arguments += SMALL_CROPS if axes["method"].startswith("ehtdi") else []
    if axes["method"] == "dsp":
        arguments += ["--data.source.length", "60"]
    if axes["method"] == "ada_bn":
        arguments += ["--data.target.length", "8"]
    cli = run_trainer(arguments + (small_rounds("minicity") if in_rounds else []))
    assert cli.trainer.global_step == 1


PUBLISHED_SIZES = {
    "daformer_mit_b5": 81_443_008 + 3_712_275,
    "hrda_mit_b5": 81_443_008 + 3_712_275 + 256 * (64 + 128 + 320 + 512 + 4) + 256 * (4 * 256 + 2) + 256 * 19 + 19,
    "linear_dinov2_base": (86_580_480 - 768) + 2 * 768 + (768 * 19 + 19),
    "daformer_dinov2_large": (304_368_640 - 1024) + 4 * (1024 * 256 + 256) + 3_449_107,
}
"""Weights of backbones as published, DINOv2's without mask tokens, of heads as in section 7.6 of T2S-DA's spec, and of
HRDA's attention: four linear layers to 256 channels, a 1x1 convolution of all with BatchNorm, one to the classes."""


def random_weights(config):
    """A network's config without what is loaded from elsewhere."""
    if not isinstance(config, dict):
        return config
    return {key: key != "pretrained" and random_weights(value) for key, value in config.items() if key != "weights"}


def network_of(content):
    """The network of a config at its real size, without storage."""
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(SegmentationNetwork, "network")
    content["init_args"]["num_classes"] = 19
    with torch.device("meta"):
        return parser.instantiate_classes(parser.parse_object({"network": random_weights(content)})).network


@pytest.mark.parametrize("path", sorted((CONFIGS / "network").glob("*.yaml")), ids=lambda path: path.stem)
def test_networks_are_built_at_their_real_size(path):
    size = sum(parameter.numel() for parameter in network_of(read(path)).parameters())
    assert size == PUBLISHED_SIZES.get(path.stem, size)


OTHERS = [
    ("TimmPyramid", {"name": "resnet18", "output_stride": 16, "levels": 2, "drop_path": 0.7, "layer_decay": 0.3}),
    ("TimmViT", {"name": "test_vit", "strides": [16], "blocks": [1], "drop_path": 0.7, "layer_decay": 0.3}),
    ("MiT", {"size": "b1", "drop_path": 0.7}),
]
HEADS = [
    ("ASPP", {"dilations": [2], "branches": [2, 3]}),
    ("SegFormerHead", {"channels": 7, "dropout": 0.7}),
    ("DAFormerHead", {"channels": 7, "separable_dilations": [7], "dropout": 0.7}),
]


@pytest.mark.parametrize("other", range(3))
@pytest.mark.parametrize(
    "path",
    [p for p in sorted((CONFIGS / "network").glob("*.yaml")) if read(p)["class_path"] in ("EncoderDecoder", "HRDA")],
    ids=lambda path: path.stem,
)
def test_of_an_earlier_network_nothing_shines_through(path, other, tmp_path):
    """A setting that a file doesn't name would be taken over from the network of the experiment that it replaces."""
    earlier = {
        **{
            part: {"class_path": name, "init_args": settings}
            for part, (name, settings) in {"backbone": OTHERS[other], "head": HEADS[other]}.items()
        },
        **{"auxiliary": [{"head": "ASPP"}], "weights": "x.pth", "batch_norm": "eval", "classifier_lr_scale": 3.0},
        **{"min_loaded": 0.5, "align_corners": True, "checkpointing": True, "num_classes": 19},
    }
    kind, settings = read(path)["class_path"], read(path)["init_args"]
    if kind == "HRDA":
        del earlier["align_corners"]
        earlier |= {"attention": earlier["head"], "scale": 0.25, "multiple": 4, "detail_weight": 0.7}
        earlier["windows_at_once"] = 7
    earlier["backbone"]["init_args"]["pretrained"] = not settings["backbone"]["init_args"]["pretrained"]
    (tmp_path / "earlier.yaml").write_text(json.dumps({"class_path": kind, "init_args": earlier}))
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(SegmentationNetwork, "network")
    alone = parser.parse_args(["--network", str(path), "--network.num_classes", "19"])
    after = parser.parse_args(["--network", str(tmp_path / "earlier.yaml"), "--network", str(path)])
    assert after.network == alone.network


def test_a_head_takes_over_no_settings_of_another():
    backbone = {"class_path": "CaffeResNet"}
    network = network_of({"class_path": "EncoderDecoder", "init_args": {"backbone": backbone, "head": "DAFormerHead"}})
    assert network.head.separable_dilations == (6, 12, 18)


def test_every_config_is_reached_by_a_test():
    folders = {path.parent.name for path in CONFIGS.rglob("*.yaml")} - {path.parent.name for path in EXPERIMENTS}
    assert folders == {"data", "grids", "network", "method", "optimizer", "rounds", "schedule", "sweeps"}
    data = {path.name for path in (CONFIGS / "data").glob("*.yaml")}
    used = {name for path in EXPERIMENTS for name in re.findall(r"/data/(\w+\.yaml)", path.read_text())}
    assert data == used
