"""A network whose logits are kept on disk, so that it is run once for each image however often scores are wanted."""

from __future__ import annotations

import errno
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from lightning_uda.files import free_bytes, gigabytes


class StoredLogits(nn.Module):
    """Runs a network once for each image, whatever the inference policy; after that it gives the logits it has kept.

    They are kept at the network's resolution, and given as they are kept from the first time on, so what is computed
    from them is the same every time, bit for bit. An image of 1024 x 2048, scaled by 0.9 and mirrored too, takes 4 MB
    for 19 classes, or half of it; host memory holds one.
    The file has no name: its room is free again when the process ends, however it ends (`df` counts it, `du` doesn't).

    Args:
        network: Gives logits (N, C, h, w) for images.
        folder: Folder of the file; it must exist.
        num_images: How many images will be kept on this disk, by all processes together.
        bits: Of a logit: 32 keep it as the network gives it; 16 round it to 11 digits in base 2.

    Raises:
        OSError: If the file can't be made.
    """

    def __init__(self, network: nn.Module, folder: Path, num_images: int, bits: Literal[16, 32] = 32) -> None:
        super().__init__()
        self.network = network
        self.folder = folder
        self.num_images = num_images
        self.dtype = torch.float16 if bits == 16 else torch.float32
        self.device = next(network.parameters()).device
        self.align_corners = bool(getattr(network, "align_corners", True))
        self._file = cast(Any, TemporaryFile(dir=folder))
        self._passes: dict[int, list[tuple[int, tuple[int, ...]]]] = {}  # of each image: start and shape of its logits
        self._image = 0
        self._next = 0

    def close(self) -> None:
        """Frees the room on the disk."""
        self._file.close()

    def show(self, image: int) -> None:
        """Says which image the next passes belong to; a policy must make them in the same order every time.

        Args:
            image: Number of the image.

        Raises:
            OSError: If the disk lacks room for the logits of all images, which is known after the first.
        """
        if len(self._passes) == 1 and image not in self._passes:
            self._require_room()
        self._passes.setdefault(image, [])
        self._image, self._next = image, 0

    def forward(self, image: Tensor) -> Tensor:
        """Logits, float32 (N, C, h, w): of the network, or as they were kept, for which an image on "meta" will do."""
        passes, number = self._passes[self._image], self._next
        self._next += 1
        if number < len(passes):
            return self._read(*passes[number])
        logits = cast(Tensor, self.network(image)).to(self.dtype)
        passes.append((self._file.seek(0, 2), tuple(logits.shape)))
        self._file.write(np.ascontiguousarray(logits.cpu().numpy()))
        return logits.float()

    def _read(self, start: int, shape: tuple[int, ...]) -> Tensor:
        logits = torch.empty(shape, dtype=self.dtype)
        self._file.seek(start)
        self._file.readinto(logits.numpy())
        return logits.to(self.device).float()

    def _require_room(self) -> None:
        needed, free = self._file.seek(0, 2) * (self.num_images - 1), free_bytes(self.folder)
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"found {gigabytes(free)} free, but the logits of {self.num_images} images, which are kept while they "
                f"are labelled, take {gigabytes(needed)} more",
            )
