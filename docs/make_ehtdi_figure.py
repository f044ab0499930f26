"""Draws docs/images/ehtdi.png from the last pictures of an EHTDI run: `python docs/make_ehtdi_figure.py RUN`.

RUN is a folder with `panels/`, such as runs/minicity/ehtdi/version_0.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

OUTPUT = Path(__file__).parent / "images" / "ehtdi.png"
SAMPLE = 1
TILES = (
    ("source image", "source"),
    ("its labels", "source_mask"),
    ("target image", "target"),
    ("mixed_weak: source pixels on the plain target crop", "mixed_weak_image"),
    ("mixed: the same on the jittered crop", "mixed_image"),
    ("its labels", "mixed_mask"),
    ("htcm: confident pixels of the mix on the source crop", "htcm_image"),
    ("its labels", "htcm_mask"),
)


def main(run: Path) -> None:
    """Writes the picture from the last panels of a run."""
    folder = max((run / "panels").iterdir())
    figure, axes = plt.subplots(2, 4, figsize=(13.6, 3.9), layout="constrained")
    for axis, (title, tile) in zip(axes.T.flat, TILES, strict=True):
        axis.imshow(plt.imread(folder / f"train_{SAMPLE}_{tile}.png"), interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUTPUT, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
