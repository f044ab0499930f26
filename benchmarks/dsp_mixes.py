"""What DSP's mixes show: the share of pixels of each class in source images and in mixes, for some k, on MiniCity.

Run as `python benchmarks/dsp_mixes.py`; further arguments are options of `fit`, such as `--model.long_tail_classes`.
Nothing is trained; the batches are those of the first steps of `configs/experiment/minicity/dsp.yaml`.
"""

import argparse
import logging
import types
import warnings

import torch
from lightning.pytorch import Trainer
from method_steps import load
from rich.console import Console
from rich.table import Table

from lightning_uda.mixing import paste
from lightning_uda.step import Step


def count(self, batch, batch_idx):
    """A training step that counts classes instead of learning: pixels of the source, of its mix, of the target left."""
    _, patch_mask, paste_mask = self.composite_patch(Step(batch, self.step_generator(batch_idx), self.student))
    source_mask = batch["source"]["mask"]
    mixed_mask = paste(patch_mask, source_mask, paste_mask)
    self.counts += torch.stack([mask.flatten().bincount(minlength=256) for mask in (source_mask, mixed_mask)])
    self.uncovered.append(1 - paste_mask.float().mean())


def shares(k, steps, options):
    """Pixel shares in % of the classes in source images and in mixes (2, 256), of uncovered pixels, and the names."""
    module, data = load("dsp", "--model.long_tail_k", str(k), *options)
    module.counts, module.uncovered = torch.zeros(2, 256, dtype=torch.int64), []
    module.training_step = types.MethodType(count, module)
    trainer = Trainer(
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    counts = module.counts.double()
    return 100 * counts / counts.sum(1, keepdim=True), 100 * torch.stack(module.uncovered).mean(), module.label_space


def main():
    """Prints one row for each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[0, 1, 2], help="long-tail classes pasted per step")
    parser.add_argument("--steps", type=int, default=100, help="batches that are counted")
    chosen, options = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {k: shares(k, chosen.steps, options) for k in chosen.k}
    table = Table("class", "source", *(f"mix, k = {k}" for k in chosen.k), title="share of pixels, %")
    _, _, space = found[chosen.k[0]]
    for c, name in enumerate(space.classes):
        values = [found[chosen.k[0]][0][0, c], *(found[k][0][1, c] for k in chosen.k)]
        table.add_row(name, *(f"{v:.1f}" for v in values))
    table.add_row("left uncovered", "", *(f"{found[k][1]:.1f}" for k in chosen.k))
    Console().print(table)


if __name__ == "__main__":
    main()
