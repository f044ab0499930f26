"""Draws docs/images/NAME.png from the last pictures of a run: `python docs/make_run_figure.py NAME RUN`.

NAME is readme (of a DACS run) or ehtdi; RUN is a folder with `panels/`, such as runs/demo/dacs/version_0.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

IMAGES = Path(__file__).parent / "images"
SAMPLE = 1
PICTURES = {
    "readme": (
        ("source image", "train_{}_source"),
        ("its labels", "train_{}_source_mask"),
        ("target image (no labels)", "train_{}_target"),
        ("new target image", "val_{}_image"),
        ("mixed image", "train_{}_mixed_image"),
        ("mixed labels", "train_{}_mixed_mask"),
        ("pixel weights", "train_{}_mixed_weights"),
        ("DACS's prediction", "val_{}_prediction"),
    ),
    "ehtdi": (
        ("source image", "train_{}_source"),
        ("target image", "train_{}_target"),
        ("mixed: source pixels on the jittered crop", "train_{}_mixed_image"),
        ("htcm: its confident pixels on the source crop", "train_{}_htcm_image"),
        ("its labels", "train_{}_source_mask"),
        ("mixed_weak: the mix without jitter", "train_{}_mixed_weak_image"),
        ("labels of the mix", "train_{}_mixed_mask"),
        ("labels of htcm", "train_{}_htcm_mask"),
    ),
}
"""Title and file of each tile, row by row."""


def main(name: str, run: Path) -> None:
    """Writes the picture from the last panels of a run."""
    folder = max((run / "panels").iterdir())
    figure, axes = plt.subplots(2, 4, figsize=(12.4, 3.5), layout="constrained")
    for axis, (title, tile) in zip(axes.flat, PICTURES[name], strict=True):
        axis.imshow(plt.imread(folder / f"{tile.format(SAMPLE)}.png"), interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / f"{name}.png", dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in PICTURES:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
