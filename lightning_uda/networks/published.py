"""Weights that others published: taken from a folder of weights, or fetched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor

from lightning_uda.networks.weights import WEIGHTS_FOLDER, WeightsError, folder_of_weights, read_weights

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_ENDS = (".safetensors", ".pth", ".pt", ".bin")
_SECONDS = 10.0
"""How long the hub may take to answer at all; its client by itself tries for over a minute."""


@dataclass(frozen=True)
class Published:
    """Weights of a backbone that can be had by name.

    Attributes:
        name: What they are called, such as "vit_small_patch14_dinov2.lvd142m".
        licence: The licence that they carry, as its short name.
        hub: Repository of the Hugging Face hub that holds them.
        url: Address of the file that their makers published, if it is known.
    """

    name: str
    licence: str
    hub: str | None
    url: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that are taken for them, those of their makers last."""
        makers = () if self.url is None else (PurePosixPath(self.url).name,)
        return (*(self.name + end for end in _ENDS), *makers)


def read_published(published: Published) -> tuple[dict[str, Tensor], str]:
    """Reads published weights: from the folder of weights, else from the hub or what was fetched from it before.

    Args:
        published: Which.

    Returns:
        Tensors by name, on the CPU, and where they come from, in words.

    Raises:
        WeightsError: If they are in neither place; it names the file to fetch and where to put it.
    """
    folder = folder_of_weights()
    found = next((folder / name for name in published.files if (folder / name).is_file()), None) if folder else None
    if found is not None:
        return read_weights(found), f"{published.name} ({found.name})"
    return read_weights(_from_hub(published)), f"{published.name} (hub, {published.hub})"


def _from_hub(published: Published) -> Path:
    from huggingface_hub import HfApi, hf_hub_download  # brings an HTTP client, which most runs do without
    from huggingface_hub.errors import LocalEntryNotFoundError

    if published.hub is None:
        raise WeightsError(_message(published, "no repository of the hub has them", published.url or "their file"))
    for name in _HUB_FILES:
        try:
            return Path(hf_hub_download(published.hub, name, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    try:
        held = [file.rfilename for file in HfApi().model_info(published.hub, timeout=_SECONDS).siblings or ()]
        name = next((name for name in _HUB_FILES if name in held), _HUB_FILES[0])
        return Path(hf_hub_download(published.hub, name))
    except Exception as error:  # of several HTTP libraries
        reason = f"the hub can't be reached for {published.hub} ({type(error).__name__}: {str(error).splitlines()[0]})"
        raise WeightsError(_message(published, reason, f"{' or '.join(_HUB_FILES)} of {published.hub}")) from error


def _message(published: Published, reason: str, file: str) -> str:
    folder = os.environ.get(WEIGHTS_FOLDER)
    place = f"in the folder {folder} that {WEIGHTS_FOLDER} names" if folder else f"({WEIGHTS_FOLDER} names no folder)"
    return (
        f"Pretrained weights {published.name}: found no file of theirs {place}, and {reason}. Fetch {file} where there "
        f"is a connection, put it as {published.name}{_ENDS[0]} (or .pth or .bin, as it ends) into a folder and name "
        f"that folder in the environment variable {WEIGHTS_FOLDER}; or start without them: pretrained=False."
    )
