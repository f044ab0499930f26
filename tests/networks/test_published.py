"""Pretrained weights by name: from a folder, from the hub, and what is said where they are in neither."""

import os
import re

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from lightning_uda.networks import ASPP, DeepLabV2, EncoderDecoder, MiT, TimmPyramid, TimmViT, WeightsError
from lightning_uda.networks.published import Published, read_published

DINO = "vit_small_patch14_reg4_dinov2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of weights; the hub can't be reached and has sent nothing before."""
    monkeypatch.setenv("LIGHTNING_UDA_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def whole(name, seed=3):
    """A network of timm with its classifier; no two of its tensors are equal."""
    torch.manual_seed(seed)
    network = timm.create_model(name)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return network.state_dict()


def note_of(network):
    (note,) = (note for note in network.notes() if note.startswith("weights: "))
    return note


def test_weights_of_a_name_come_from_the_folder(folder):
    tensors = whole("resnet18")
    safetensors.torch.save_file(tensors, folder / "resnet18.a1_in1k.safetensors")

    network = DeepLabV2(5, "resnet18", pretrained=True)

    backbone = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("backbone.")}
    assert all(torch.equal(tensor, tensors[name.removeprefix("backbone.")]) for name, tensor in backbone.items())
    assert len(backbone) == len(tensors) - 2
    assert not network.random_weights
    assert note_of(network) == (
        "weights: resnet18.a1_in1k (resnet18.a1_in1k.safetensors): loaded 100 of 100 tensors; licence: apache-2.0"
    )


def test_the_file_of_the_makers_is_taken_and_renamed(folder):
    """DINOv2's files have a mask token, and registers under another name; position 0 is that of the class token."""
    backbone = TimmViT(DINO)
    state = {name: torch.randn_like(tensor) for name, tensor in backbone.model.state_dict().items()}
    makers = {name: tensor for name, tensor in state.items() if name not in ("cls_token", "reg_token", "pos_embed")}
    first = torch.randn(1, 1, 384)
    makers |= {"mask_token": torch.zeros(1, 384), "register_tokens": state["reg_token"]}
    makers |= {"cls_token": state["cls_token"] - first, "pos_embed": torch.cat([first, state["pos_embed"]], dim=1)}
    torch.save(makers, folder / "dinov2_vits14_reg4_pretrain.pth")

    for loaded in (
        TimmViT(DINO, pretrained=True),
        EncoderDecoder(5, TimmViT(DINO), ASPP(), weights="dinov2_vits14_reg4_pretrain.pth").backbone,
    ):
        found = loaded.model.state_dict()
        assert all(torch.allclose(tensor, state[name], atol=1e-6) for name, tensor in found.items())


def test_a_file_given_by_path_says_what_was_loaded_and_under_which_licence(folder):
    torch.save(whole("resnet18"), folder / "resnet18.a1_in1k.pth")
    torch.save(whole("resnet18"), folder / "mine.pth")
    known = EncoderDecoder(5, TimmPyramid("resnet18"), ASPP(), weights=str(folder / "resnet18.a1_in1k.pth"))
    assert re.search(r"resnet18\.a1_in1k\.pth: loaded 100 of 10\d tensors; .*; licence: apache-2\.0$", note_of(known))
    assert note_of(EncoderDecoder(5, TimmPyramid("resnet18"), ASPP(), weights="mine.pth")).endswith(
        "; licence: not stated by the file"
    )


def test_dinov3_has_a_licence_of_its_own():
    assert TimmViT("vit_small_patch16_dinov3.lvd1689m").published.licence == "dinov3-license"
    assert TimmPyramid("convnext_tiny.dinov3_lvd1689m").published.licence == "dinov3-license"
    assert TimmViT("vit_small_patch14_dinov2").published.licence == "apache-2.0"
    assert "non-commercial" in MiT("b0").published.licence


def test_part_of_the_weights_is_refused(folder):
    tensors = whole("resnet18")
    del tensors["layer3.0.conv1.weight"]
    torch.save(tensors, folder / "resnet18.a1_in1k.pth")
    message = r"resnet18\.a1_in1k \(resnet18\.a1_in1k\.pth\): loaded 99 of 100 tensors; not in the file: model\.layer3"
    with pytest.raises(WeightsError, match=message):
        TimmPyramid("resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("make", "name", "repository"),
    [
        (lambda: TimmPyramid("resnet18", pretrained=True), "resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        (lambda: TimmViT(DINO, pretrained=True), f"{DINO}.lvd142m", f"timm/{DINO}.lvd142m"),
        (lambda: MiT("b0", pretrained=True), "mit_b0", "nvidia/mit-b0"),
    ],
)
def test_without_a_connection_it_says_which_file_goes_where(folder, make, name, repository):
    with pytest.raises(WeightsError) as raised:
        make()
    text = str(raised.value)
    assert text.startswith(f"Pretrained weights {name}: found no file of theirs in the folder {folder} that LIGHTNING_")
    assert f"the hub can't be reached for {repository} (OfflineModeIsEnabled: " in text
    assert f"Fetch model.safetensors or pytorch_model.bin of {repository} where there is a connection" in text
    assert f"put it as {name}.safetensors (or .pth or .bin, as it ends) into a folder" in text
    assert text.endswith("or start without them: pretrained=False.")


def test_weights_that_no_hub_has_are_asked_for_by_their_address(monkeypatch):
    monkeypatch.delenv("LIGHTNING_UDA_WEIGHTS", raising=False)
    with pytest.raises(WeightsError) as raised:
        read_published(Published("net", "MIT", None, "https://example.org/files/net-1.pth"))
    assert "(LIGHTNING_UDA_WEIGHTS names no folder), and no repository of the hub has them" in str(raised.value)
    assert "Fetch https://example.org/files/net-1.pth where" in str(raised.value)
    assert Published("net", "MIT", None, "https://example.org/files/net-1.pth").files[-1] == "net-1.pth"


class Hub:
    """A hub that holds some files in one repository and counts what it sends."""

    def __init__(self, folder):
        self.folder, self.sent, self.cached = folder, [], set()

    def download(self, repository, name, local_files_only=False):
        if local_files_only and name not in self.cached:
            raise LocalEntryNotFoundError("not here")
        if not local_files_only:
            self.sent.append((repository, name))
        self.cached.add(name)
        return str(self.folder / name)

    def model_info(self, repository, timeout):
        files = [huggingface_hub.hf_api.RepoSibling(rfilename=name) for name in sorted(os.listdir(self.folder))]
        return type("Info", (), {"siblings": files})


def test_the_hub_is_asked_once(tmp_path, monkeypatch):
    torch.save(whole("resnet18"), tmp_path / "pytorch_model.bin")
    (tmp_path / "README.md").touch()
    hub = Hub(tmp_path)
    monkeypatch.delenv("LIGHTNING_UDA_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)

    networks = [DeepLabV2(5, "resnet18", pretrained=True) for _ in range(2)]

    assert hub.sent == [("timm/resnet18.a1_in1k", "pytorch_model.bin")]
    assert all("(hub, timm/resnet18.a1_in1k): loaded 100 of 100" in note_of(network) for network in networks)
