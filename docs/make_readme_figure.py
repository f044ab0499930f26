"""Draws docs/images/readme.png from a DACS run: source, target, mix, prediction.

`python docs/make_readme_figure.py runs/demo/dacs/version_0` (any run with `panels/`).
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

OUTPUT = Path(__file__).parent / "images" / "readme.png"
SAMPLE = 1
TILES = (
    ("source image", "train_{}_source"),
    ("its labels", "train_{}_source_mask"),
    ("target image (no labels)", "train_{}_target"),
    ("new target image", "val_{}_image"),
    ("mixed image", "train_{}_mixed_image"),
    ("mixed labels", "train_{}_mixed_mask"),
    ("pixel weights", "train_{}_mixed_weights"),
    ("DACS's prediction", "val_{}_prediction"),
)


def main(run: Path) -> None:
    """Writes the picture from the last panels of a run."""
    folder = max((run / "panels").iterdir())
    figure, axes = plt.subplots(2, 4, figsize=(12.4, 3.5), layout="constrained")
    for axis, (title, tile) in zip(axes.flat, TILES, strict=True):
        axis.imshow(plt.imread(folder / f"{tile.format(SAMPLE)}.png"), interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUTPUT, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
