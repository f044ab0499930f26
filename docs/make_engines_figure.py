"""Draws docs/images/engines.png, a source image as each translation changes it."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from lightning_uda.datasets import MiniCity
from lightning_uda.translation import BlendJitter, FourierTranslation, GaussianBlur

SIZE = (96, 192)
ENGINES = {
    "FourierTranslation, beta 0.01": FourierTranslation(0.01, clip=True),
    "beta 0.05": FourierTranslation(0.05, clip=True),
    "beta 0.09": FourierTranslation(0.09, clip=True),
    "BlendJitter": BlendJitter(p=1.0),
    "BlendJitter, another draw": BlendJitter(p=1.0),
    "GaussianBlur, 2 pixels": GaussianBlur((2.0, 2.0)),
}


def main() -> None:
    """Writes the picture, of the second scene of MiniCity."""
    source, target = (
        torch.from_numpy(MiniCity(style=style, split="train", length=2, size=SIZE).load_image(1)).permute(2, 0, 1)[None]
        for style in ("source", "target")
    )
    generator = torch.Generator().manual_seed(11)
    image = source / 255
    pictures = {"source image": image, "target image (the style)": target / 255}
    pictures |= {name: engine(image, generator, target) for name, engine in ENGINES.items()}
    figure, axes = plt.subplots(2, 4, figsize=(12.4, 3.5), layout="constrained")
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=True):
        axis.imshow(picture[0].permute(1, 2, 0), interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    figure.savefig(Path(__file__).parent / "images" / "engines.png", dpi=110)


if __name__ == "__main__":
    main()
