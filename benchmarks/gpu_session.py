"""Trains what is missing in several grids on a GPU that is there for minutes: `python benchmarks/gpu_session.py PLAN`.

A plan (`benchmarks/gpu_plan.yaml`) lists grids with rows and options, the most wanted first. Their points run side by
side, each in a fork of one process that has imported everything, and append their figures to `docs/figures/` as
`lightning-uda grid --figures` does; when the time is up, what still runs is killed. `analyze` names rows whose features
are measured too. One card runs many small networks two to four times as fast under NVIDIA's MPS, which lets their
kernels run at once: `nvidia-cuda-mps-control -d` before, `echo quit | nvidia-cuda-mps-control` after.
"""

import argparse
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # else a question for GPUs makes forks unusable

import cv2
import torch
import yaml

import lightning_uda.cli
import lightning_uda.commands.feature_analysis
import lightning_uda.report  # noqa: F401
from lightning_uda.__main__ import main as lightning_uda_main
from lightning_uda.commands.figures import FiguresFile
from lightning_uda.commands.grid_file import Grid, read_grid
from lightning_uda.commands.grid_tables import MINUTES, figures_of_run
from lightning_uda.commands.runner import STAMP, Point, Runner, _write_json
from lightning_uda.config_files import find_config
from lightning_uda.files import versions


class Job(NamedTuple):
    """A point of a grid that has no figures yet, or that others start from."""

    grid: Grid
    runner: Runner
    figures: FiguresFile
    row: str
    point: Point
    analyze: bool


def jobs_of(plan: list[dict[str, Any]], output: Path, figures: Path) -> list[Job]:
    """The jobs of a plan in its order, each once."""
    jobs: dict[str, Job] = {}
    for entry in plan:
        path = find_config(entry["grid"], "grids")
        grid = read_grid(path, None, entry.get("rows"), entry.get("options", []))
        file = FiguresFile(figures / f"{path.stem}.csv", tuple(grid.points[0].values))
        rows = {point.run: name for name, row in grid.rows.items() for point in row.points}
        wanted = {point.run for point in grid.points if file.find(rows[point.run], point.values) is None}
        for point in reversed(grid.points):
            if point.run in wanted:
                wanted.update(point.needs)
        runner = Runner(grid.name, grid.points, output)
        for point in grid.points:
            if point.run in wanted and runner.folder(point) is None:
                analyze = rows[point.run] in entry.get("analyze", [])
                jobs.setdefault(point.run, Job(grid, runner, file, rows[point.run], point, analyze))
    return list(jobs.values())


def run(job: Job, output: Path) -> None:
    """Trains a point in this process, stamps its folder and records its figures."""
    start, place = time.monotonic(), output / job.point.run
    call(job.runner.command(job.point))
    folder = versions(place)[-1]
    stamp = {"arguments": job.runner.arguments(job.point), MINUTES: (time.monotonic() - start) / 60}
    _write_json(folder / STAMP, stamp)
    found = figures_of_run(job.grid, folder)
    if found is not None:
        job.figures.add(job.row, job.point.values, found, folder)
    if job.analyze:
        of_run = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints/last.ckpt")]
        to = ["--output", str(output / "analysis" / job.point.run)]
        call(["analyze", *of_run, *to, "--num_images", "200", "--no_tsne"])


def call(arguments: list[str]) -> None:
    """`lightning-uda` in this process.

    Raises:
        SystemExit: If it fails.
    """
    sys.argv = ["lightning-uda", *arguments]
    try:
        lightning_uda_main()
    except SystemExit as end:
        if end.code:
            raise


def fork(job: Job, output: Path, log: Path) -> int:
    """Starts a point in a process of its own, whose number it gives."""
    number = os.fork()
    if number:
        return number
    os.setsid()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 1
    try:
        run(job, output)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Runs the plan and copies the figures as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--jobs", type=int, default=18, help="runs at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time after which all ends")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), help="folder of the files of figures")
    parser.add_argument("--copy", type=Path, help="folder that gets a copy of these files whenever a run ends")
    options = parser.parse_args()
    start = time.monotonic()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    waiting = jobs_of(yaml.safe_load(options.plan.read_text()), options.output, options.figures)
    running: dict[int, Job] = {}
    failed: set[str] = set()
    print(f"{len(waiting)} runs to do", flush=True)
    while (waiting or running) and time.monotonic() - start < options.seconds:
        for job in list(waiting):
            needed = [job.runner._by_run[name] for name in job.point.needs]
            if any(point.run in failed for point in needed):
                waiting.remove(job)
                failed.add(job.point.run)
            elif len(running) < options.jobs and all(job.runner.folder(point) for point in needed):
                waiting.remove(job)
                running[fork(job, options.output, options.output / "logs" / f"{job.point.run}.txt")] = job
        number, status = os.waitpid(-1, os.WNOHANG) if running else (0, 0)
        if number in running:
            job = running.pop(number)
            if status:
                failed.add(job.point.run)
            print(f"{time.monotonic() - start:.0f} s: {job.point.run}{' FAILED' * bool(status)}", flush=True)
            if options.copy:
                shutil.copytree(options.figures, options.copy, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        time.sleep(0.1)
    for number in running:
        os.killpg(number, signal.SIGKILL)
    print(f"{len(failed)} failed, {len(running)} broken off, {len(waiting)} not begun")


if __name__ == "__main__":
    main()
