import logging

import pytest
import torch
from torch import nn

from lightning_uda.label_spaces import CITYSCAPES, CITYSCAPES16, NTHU13, LabelSpace
from lightning_uda.networks import (
    Auxiliary,
    CaffeDeepLabV2,
    DeepLabV2,
    DilatedConvolutions,
    EncoderDecoder,
    FCN8s,
    Head,
    TimmPyramid,
    WeightsError,
    WideResNet38,
    find_checkpoint,
    heads,
    start_from,
)
from tests.fixtures.tiny import TinyNetwork, tiny_network

HEADS = [
    each for each in vars(heads).values() if isinstance(each, type) and issubclass(each, Head) and each is not Head
]
NETWORKS = {
    "DeepLabV2": lambda classes: DeepLabV2(classes, "resnet10t", auxiliary=[Auxiliary(DilatedConvolutions(4), -1)]),
    "CaffeDeepLabV2": lambda classes: CaffeDeepLabV2(
        classes, blocks=(1, 1, 1, 1), planes=(2, 2, 2, 2), auxiliary=[Auxiliary(heads.ASPP())]
    ),
    "FCN8s": lambda classes: FCN8s(classes, "vgg11", fc_channels=6),
    "WideResNet38": lambda classes: WideResNet38(classes, stem_channels=2),
    "EncoderDecoder": lambda classes: EncoderDecoder(
        classes,
        TimmPyramid("resnet10t", output_stride=32),
        heads.LevelScores(),
        [Auxiliary(DilatedConvolutions(4), -2), Auxiliary(heads.ASPP(), -1)],
    ),
    "TinyNetwork": TinyNetwork,
}
OF_SYNTHIA = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]  # without terrain, truck and train


def checkpoint_of(network, path, classes, **more):
    """A checkpoint as a run writes it."""
    state = {f"student.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "classes": list(classes), "global_step": 30, **more}, path)
    return path


def random_network(build, classes):
    """A network without a zero or an equal row anywhere, statistics of BatchNorm included."""
    network = build(classes).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.05, 0.1)
    return network


def shapes_that_differ(first, second):
    first, second = ({name: tensor.shape for name, tensor in each.state_dict().items()} for each in (first, second))
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


@pytest.mark.parametrize("head", HEADS)
def test_heads_declare_the_tensors_that_have_a_row_for_each_class(head):
    built = [head().build((4, 5, 6, 7), (4, 8, 16, 32), classes) for classes in (3, 5)]
    rows = {name for name in built[0].state_dict() if name.startswith(head.class_rows)}
    assert rows == shapes_that_differ(*built) != set()


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_networks_declare_them_under_the_names_of_their_state_dicts(build):
    first, second = build(3), build(5)
    rows = {name for name in first.state_dict() if name.startswith(first.class_rows)}
    assert rows == shapes_that_differ(first, second) != set()


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_sixteen_of_nineteen_classes_are_picked_by_name_and_keep_their_logits(build, tmp_path, caplog):
    trained = random_network(build, 19)
    path = checkpoint_of(trained, tmp_path / "last.ckpt", CITYSCAPES.classes)
    network = build(16).eval()
    with caplog.at_level(logging.INFO, logger="lightning_uda"):
        start = start_from(network, path, CITYSCAPES16)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = trained.outputs(image).classifiers, network.outputs(image).classifiers
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logits, other.logits[:, OF_SYNTHIA])
    counted = sum(not name.endswith("num_batches_tracked") for name in network.state_dict())
    assert (
        f"last.ckpt: loaded {counted} of {counted} tensors, of classifiers the rows of 16 of 19 classes, picked by name"
        in caplog.text
    )
    assert start.note == (
        "weights at the start: those of a checkpoint of step 30, of classifiers the rows of 16 of its 19 classes"
    )
    assert not start.random_weights


def test_classes_in_another_order_are_picked_by_name(tmp_path):
    trained = random_network(TinyNetwork, 3)
    path = checkpoint_of(trained, tmp_path / "last.ckpt", ("a", "b", "c"))
    network = TinyNetwork(3)
    start_from(network, path, LabelSpace("other", ("c", "a", "b"), ((0, 0, 0),) * 3))
    assert torch.equal(network.classifier.weight, trained.classifier.weight[[2, 0, 1]])
    assert torch.equal(network.classifier.bias, trained.classifier.bias[[2, 0, 1]])
    assert torch.equal(network.backbone[0].weight, trained.backbone[0].weight)


def test_the_same_classes_are_taken_as_they_are(tmp_path, caplog):
    trained = random_network(TinyNetwork, 13)
    path = checkpoint_of(trained, tmp_path / "last.ckpt", NTHU13.classes, random_weights=True)
    network = TinyNetwork(13)
    with caplog.at_level(logging.INFO, logger="lightning_uda"):
        start = start_from(network, path, NTHU13)
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert caplog.text.strip().endswith("last.ckpt: loaded 8 of 8 tensors.")
    assert start == ("weights at the start: those of a checkpoint of step 30, whose run began with random ones", True)


def test_a_file_of_weights_alone_names_no_classes_and_no_step(tmp_path):
    torch.save(tiny_network(num_classes=13).state_dict(), tmp_path / "weights.pth")
    assert start_from(TinyNetwork(13), tmp_path / "weights.pth", NTHU13) == (
        "weights at the start: those of weights.pth", False,
    )  # fmt: skip


def test_classes_that_the_checkpoint_lacks_are_named(tmp_path):
    path = checkpoint_of(tiny_network(num_classes=13), tmp_path / "last.ckpt", NTHU13.classes)
    network = TinyNetwork(16)
    before = network.classifier.weight.clone()
    with pytest.raises(
        ValueError, match=r"last\.ckpt: trained on 13 classes \['road'.*this run has 16 .*lacks"
    ) as raised:
        start_from(network, path, CITYSCAPES16)
    assert "of which it lacks ['wall', 'fence', 'pole']" in str(raised.value)
    assert torch.equal(network.classifier.weight, before)


def test_a_network_that_does_not_say_where_its_classes_are_starts_from_its_own_only(tmp_path):
    class Silent(TinyNetwork):
        class_rows = ()

    path = checkpoint_of(Silent(19), tmp_path / "last.ckpt", CITYSCAPES.classes)
    start_from(Silent(19), path, CITYSCAPES)
    with pytest.raises(ValueError, match="Silent doesn't say which of its tensors have a row for each class"):
        start_from(Silent(16), path, CITYSCAPES16)


def test_all_of_the_network_has_to_fit(tmp_path):
    path = checkpoint_of(DeepLabV2(16, "resnet10t"), tmp_path / "last.ckpt", CITYSCAPES16.classes)
    network = DeepLabV2(16, "resnet10t", auxiliary=[Auxiliary(heads.ASPP(), -2)])
    with pytest.raises(WeightsError, match=r"not in the file: auxiliary\.0\.conv2d_list\.0\.weight"):
        start_from(network, path, CITYSCAPES16)
    start_from(DeepLabV2(16, "resnet10t"), checkpoint_of(network, path, CITYSCAPES16.classes), CITYSCAPES16)


def test_the_latest_version_of_a_run_is_taken(tmp_path):
    for version in (2, 9, 10, 11):
        (tmp_path / f"version_{version}/checkpoints").mkdir(parents=True)
    for version in (2, 9, 10):
        (tmp_path / f"version_{version}/checkpoints/last.ckpt").touch()
    assert find_checkpoint(tmp_path) == tmp_path / "version_10/checkpoints/last.ckpt"
    for path in ("version_11", "nothing"):
        with pytest.raises(FileNotFoundError, match=rf"{path}: found no such file, and no checkpoints/last.ckpt in it"):
            find_checkpoint(tmp_path / path)
