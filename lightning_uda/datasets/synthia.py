"""SYNTHIA-RAND-CITYSCAPES: 9,400 labelled rendered frames, 1280 x 760."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_uda.data.decoding import decode_first_channel, require_rgb16_png
from lightning_uda.datasets.storage import Part, StoredDataset, with_void
from lightning_uda.label_spaces import SYNTHIA_IDS

_ARCHIVE = "SYNTHIA_RAND_CITYSCAPES packed as .zip"
_NOTE = "It comes as a .rar archive, which can't be read in place: unpack it, or pack it again as .zip."
_IMAGES = Part("images", "RGB", r"(?P<name>[^/]+)\.png", "0000000.png", _ARCHIVE, note=_NOTE)
_LABELS = Part("labels", "GT/LABELS", r"(?P<name>[^/]+)\.png", "0000000.png", _ARCHIVE, note=_NOTE)


class SYNTHIA(StoredDataset):
    """SYNTHIA-RAND-CITYSCAPES as distributed: `RGB/0000000.png` and `GT/LABELS/0000000.png`.

    Labels are three-channel 16-bit PNG files; the first channel is the class, the second the instance. The ids fit
    the label spaces "cityscapes16" (with its 13-class mean), "nthu13" and "cityscapes" (19 outputs; terrain, truck
    and train hardly or never occur).

    Args:
        root: Folder that holds `RGB` and `GT/LABELS`, such as the unpacked `RAND_CITYSCAPES` or the one above, or a
            .zip archive of them. The official .rar archive can't be read in place.
        split: List file with one image name ("0000000") per line, absolute or relative to `root`; `None` takes all.
        labelled: Whether labels are used; if not, they are never looked for.

    Raises:
        DatasetError: If images or labels are missing; the message names them and what should hold them.
    """

    class_ids = with_void(SYNTHIA_IDS, (*range(23), 255))
    title = "SYNTHIA-RAND-CITYSCAPES"
    home = "the SYNTHIA project page (Computer Vision Center, Barcelona)"

    def __init__(self, root: str, split: str | None = None, labelled: bool = True) -> None:
        super().__init__(root, _IMAGES, _LABELS if labelled else None, split, full_size=9_400)

    def decode_label(self, data: bytes, where: str) -> npt.NDArray[np.uint8]:
        """Raw ids, uint8 (H, W): the first channel of the file."""
        return decode_first_channel(data, where, self.size_limit)

    def check_label_kind(self, head: bytes, where: str) -> None:
        """Checks that a label is a three-channel 16-bit PNG."""
        require_rgb16_png(head, where)
