"""Draws docs/images/minicity.png: scenes of both MiniCity styles beside their labels, and a legend of the classes."""

from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from PIL import Image

from lightning_uda.datasets.minicity import MiniCity
from lightning_uda.label_spaces import CITYSCAPES

OUTPUT = Path(__file__).parent / "images" / "minicity.png"
SIZE = (144, 288)
SCENES = {"source": (131, 149, 132, 377), "target": (10, 1, 2, 8)}
"""Indices shown, chosen so that every class appears."""


def main() -> None:
    """Writes the picture."""
    figure, axes = plt.subplots(4, 4, figsize=(12.4, 6.9), layout="constrained")
    for block, (style, indices) in enumerate(SCENES.items()):
        dataset = MiniCity("train", style, size=SIZE)
        for column, index in enumerate(indices):
            image, label = dataset.load_image(index), CITYSCAPES.colorize(dataset.load_label(index))
            for row, picture in ((2 * block, image), (2 * block + 1, label)):
                axes[row, column].imshow(picture, interpolation="nearest")
                axes[row, column].set(xticks=[], yticks=[])
                axes[row, column].spines[:].set_visible(False)
        axes[2 * block, 0].set_ylabel(style, fontsize=12, fontweight="bold")
        axes[2 * block + 1, 0].set_ylabel("labels", fontsize=10)
    colors = [*zip(CITYSCAPES.classes, CITYSCAPES.palette, strict=True), ("void", (0, 0, 0))]
    handles = [Patch(color=np.array(color) / 255, label=name) for name, color in colors]
    figure.legend(handles=handles, loc="outside lower center", ncols=10, fontsize=9, frameon=False)
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)  # type: ignore[union-attr]
    drawn = BytesIO()
    figure.savefig(drawn, dpi=100)
    picture = Image.open(drawn).convert("RGB")
    palette = picture.quantize(256, kmeans=1)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(OUTPUT, optimize=True)
    print(f"{OUTPUT.relative_to(Path.cwd())}: {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
