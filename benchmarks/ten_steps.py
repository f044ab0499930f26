"""Whether two checkouts train alike: the weights after ten steps of each method on MiniCity, bit for bit.

Run as `python benchmarks/ten_steps.py OTHER_CHECKOUT`, where the other checkout is another commit of this repository.
Both run in processes of their own, on one thread, with the packages of this environment. Tensors of one side alone are
listed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROWS = ("source_only", "ada_bn", "mean_teacher", "naive_class_mix", "dacs", "dsp", "cbst", "cbst_sp")
HERE = Path(__file__).parents[1]


def train(checkout, row, output):
    """State dict after ten steps of a row of MiniCity."""
    options = ["--trainer.val_check_interval", "10", "--data.val.length", "8"]
    if row.startswith("cbst"):
        options = ["--model.init_from", str(output / "source_only"), "--data.target.length", "40"]
    command = [sys.executable, "-m", "lightning_uda", "fit", "--config", f"configs/experiment/minicity/{row}.yaml"]
    command += ["--output", str(output), "--name", row, "--data.num_workers", "1"]
    command += ["--trainer.max_steps", "10", *options]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=checkout, env=environment, capture_output=True, check=True)
    (path,) = (output / row).glob("version_0/checkpoints/last.ckpt")
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def main():
    """Prints one row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="Another checkout of this repository.")
    other = parser.parse_args().other.resolve()
    table = Table("row", "tensors", "furthest apart", "bit for bit", "on one side alone")
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS:
            mine, theirs = (train(place, row, Path(folder) / name) for place, name in ((HERE, "a"), (other, "b")))
            both = sorted(mine.keys() & theirs.keys())
            equal = all(torch.equal(mine[name], theirs[name]) for name in both)
            furthest = max((mine[name].double() - theirs[name].double()).abs().max().item() for name in both)
            alone = ", ".join(sorted(mine.keys() ^ theirs.keys()))
            table.add_row(row, str(len(both)), f"{furthest:.1e}", "yes" if equal else "no", alone)
    Console().print(table)


if __name__ == "__main__":
    main()
