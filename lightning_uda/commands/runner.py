"""Runs one after another, each in a process of its own: what stands behind `sweep` and `grid`."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import rich

from lightning_uda.files import locked, replace_file, versions
from lightning_uda.signals import TIME_IS_UP

if TYPE_CHECKING:
    from lightning_uda.report import Run

STAMP = "point.json"
"""Name of the file that a run folder gets when its point is done; it holds the arguments of the run and its minutes."""

CONSOLE = "console_{}.txt"
"""Name of the file with what a run printed, where several run at once; it lies beside the run folder."""

_LOCK = ".lock"
_STARTED = "started.json"
"""Name of the file beside the run folders with the arguments of the last one that was started, and its version."""

_PATIENCE = 60.0
"""Seconds that a run has to finish its step and to save a checkpoint after the grid was stopped."""

_FOLDER = re.compile(r"\{run:([^}]+)\}")


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
        name: What tells it from the others, such as "beta=0.8" or "dacs, seed 0".
        run: Name of its run, the folder below the output folder that its `version_<n>` lie in.
        values: Value of each parameter, seed or other axis that makes the point.
        arguments: Arguments of `lightning-uda`, without name and output folder. `{run:NAME}` stands for the run folder
            of the point whose run is called NAME.
    """

    name: str
    run: str
    values: Mapping[str, Any]
    arguments: list[str]

    @property
    def needs(self) -> list[str]:
        """Names of the runs that it starts from."""
        return list(dict.fromkeys(name for argument in self.arguments for name in _FOLDER.findall(argument)))


class Runner:
    """Trains the points of a grid that aren't done.

    A point is done if a run folder of its name holds a stamp with its arguments, which it gets when the run has ended
    well, at its last step; it is trained again, beside the old run, where arguments differ (changes inside config files
    aren't noticed). A training that a signal stopped goes on from its newest checkpoint. A point that fails is passed
    over, and so are those that start from it. Of two runners, the second waits for a point that the first is training.

    Args:
        title: Heading of every point on the console.
        points: The grid, in the order of training; those that others start from before these.
        output: Folder of all runs.
        when_done: Called with each point that is done, now or before, and its run folder; in the order in which they
            end, one at a time.
    """

    def __init__(
        self,
        title: str,
        points: Sequence[Point],
        output: Path,
        when_done: Callable[[Point, Path], None] = lambda point, folder: None,
    ) -> None:
        self.title, self.points, self.output, self.when_done = title, points, output, when_done
        self.failed: list[Point] = []
        self.passed_over: list[Point] = []
        self._by_run = {point.run: point for point in points}
        self._waiting: list[Point] = []
        self._running: dict[str, subprocess.Popen[bytes] | None] = {}
        self._changed = threading.Condition()

    def folder(self, point: Point) -> Path | None:
        """Run folder of a point that is done; `None` if it isn't."""
        if any(self.folder(self._by_run[name]) is None for name in point.needs):
            return None
        arguments = self.arguments(point)
        for folder in versions(self.output / point.run):
            if read_stamp(folder).get("arguments") == arguments:
                return folder
        return None

    def to_do(self) -> list[Point]:
        """The points that aren't done."""
        return [point for point in self.points if self.folder(point) is None]

    def arguments(self, point: Point) -> list[str]:
        """Arguments of a point with the folders of the runs it starts from, `version_?` where these aren't done."""

        def folder(match: re.Match[str]) -> str:
            needed = self._by_run[match[1]]
            return str(self.folder(needed) or self.output / needed.run / "version_?")

        return [_FOLDER.sub(folder, argument) for argument in point.arguments]

    def command(self, point: Point) -> list[str]:
        """Arguments of `lightning-uda` that train a point."""
        return [*self.arguments(point), "--output", str(self.output), "--name", point.run]

    def check(self, points: Iterable[Point]) -> None:
        """Parses the arguments of points as `lightning-uda` would.

        Raises:
            SystemExit: If they are refused; the parser has said why.
        """
        from lightning_uda.cli import run_trainer  # brings torch and Lightning, which help does without

        for point in points:
            arguments = self.arguments(point)
            try:
                with redirect_stdout(io.StringIO()):
                    run_trainer([*arguments, "--print_config"])
            except SystemExit as end:
                if end.code:
                    sys.exit(f"error: point {point.name} can't be run: lightning-uda {shlex.join(arguments)}")

    def show(self) -> None:
        """Prints the points and their commands."""
        to_do = self.to_do()
        for point in self.points:
            state = "to do" if point in to_do else "done"
            line = f"{point.name} ({state}): {shlex.join(['lightning-uda', *self.command(point)])}"
            rich.get_console().print(line, soft_wrap=True, markup=False, highlight=False)

    def run(self, jobs: int = 1) -> None:
        """Trains what isn't done; `failed` and `passed_over` then hold the points that have no result.

        Args:
            jobs: Runs at a time. Several write what they print into files, and have one thread of computation each
                unless OMP_NUM_THREADS says otherwise.

        Raises:
            SystemExit: If the user or a signal stops it; its status is 130 or 143.
        """
        self._waiting = list(self.points)
        self.failed, self.passed_over = [], []
        workers = [threading.Thread(target=self._work, args=(jobs,), daemon=True) for _ in range(jobs - 1)]
        try:
            for worker in workers:
                worker.start()
            self._work(jobs)
            for worker in workers:
                worker.join()
        except KeyboardInterrupt:
            self._stop(128 + signal.SIGINT)
        except SystemExit as end:  # of a signal
            self._stop(end.code)

    def require_all(self) -> None:
        """Ends the program with exit status 1 where points have no result, and names them.

        Raises:
            SystemExit: If a point failed.
        """
        if not self.failed:
            return
        what = f"{len(self.failed)} of {len(self.points)} points failed, {_names(self.failed)}"
        if self.passed_over:
            what += f"; passed over, as they start from these: {_names(self.passed_over)}"
        sys.exit(f"error: {what}. Their messages are above. The same command tries them again.")

    def _work(self, jobs: int) -> None:
        while (point := self._next()) is not None:
            try:
                ended_well = self._train(point, jobs)
                if ended_well and (folder := self.folder(point)):
                    with self._changed:
                        self.when_done(point, folder)
            except (OSError, ValueError) as error:  # such as a full disk, or a damaged stamp
                rich.get_console().print(f"{point.name}: {error}", markup=False, soft_wrap=True)
                ended_well = False
            with self._changed:
                del self._running[point.run]
                if not ended_well:
                    self.failed.append(point)
                self._changed.notify_all()

    def _next(self) -> Point | None:
        """The next point whose needs are settled; waits for one, gives `None` if there is none left."""
        with self._changed:
            while self._waiting:
                without_result = {point.run for point in (*self.failed, *self.passed_over)}
                open_runs = {*self._running, *(point.run for point in self._waiting)}
                for point in self._waiting:
                    if open_runs.isdisjoint(point.needs):
                        self._waiting.remove(point)
                        if without_result.isdisjoint(point.needs):
                            self._running[point.run] = None
                            return point
                        self.passed_over.append(point)
                        break
                else:
                    self._changed.wait()
        return None

    def _train(self, point: Point, jobs: int) -> bool:
        """Trains a point unless it is done; gives whether it is done then."""
        place = self.output / point.run
        title = f"{self.title} {self.points.index(point) + 1}/{len(self.points)}: {point.name}"
        if self.folder(point) is None:
            with locked(place / _LOCK):
                if self.folder(point) is None:
                    rich.get_console().rule(title, style="dim")
                    return self._train_in_process(point, place, jobs)
        rich.get_console().rule(f"{title}, done before", style="dim")
        return True

    def _train_in_process(self, point: Point, place: Path, jobs: int) -> bool:
        arguments, before, start = self.arguments(point), versions(place), time.monotonic()
        command = [sys.executable, "-m", "lightning_uda", *self.command(point)]
        resumed = _stopped_run(place, arguments)
        if resumed is not None:
            command += ["--ckpt_path", "last"]
        else:
            _write_json(place / _STARTED, {"arguments": arguments, "version": _next_version(before)})
        environment = {"WANDB_MODE": "disabled", **({"OMP_NUM_THREADS": "1"} if jobs > 1 else {}), **os.environ}
        if jobs > 1:
            printed = place / CONSOLE.format(len(before))
            with printed.open("w") as file:
                status = self._wait(
                    point, subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
                )
            if status:
                rich.get_console().print(f"{point.name} failed; its messages are in {printed}", soft_wrap=True)
        else:
            status = self._wait(point, subprocess.Popen(command, env=environment))
        new = [resumed] if resumed else [folder for folder in versions(place) if folder not in before]
        if 0 < status < 128 and status != TIME_IS_UP:  # of an error: the user may mend a config and start anew
            (place / _STARTED).unlink(missing_ok=True)
        if status or not new:
            return False
        minutes = {} if resumed else {"minutes": (time.monotonic() - start) / 60}  # else unknown
        _write_json(new[-1] / STAMP, {"arguments": arguments, **minutes})
        return True

    def _wait(self, point: Point, process: subprocess.Popen[bytes]) -> int:
        self._running[point.run] = process
        return process.wait()

    def _stop(self, status: Any) -> NoReturn:
        """Stops the runs in progress, which save a checkpoint first; a second signal ends them at once."""
        with self._changed:
            self._waiting = []
            running = dict(self._running)
        names, processes = _names([self._by_run[run] for run in running]), [*filter(None, running.values())]
        console = rich.get_console()
        console.print(f"stopping {names}: its step is finished and saved; Ctrl-C again ends it at once", markup=False)
        try:
            for process in processes:
                process.terminate()  # no second time for one that a terminal has told to stop
            for process in processes:
                process.wait(_PATIENCE)
        except (KeyboardInterrupt, SystemExit, subprocess.TimeoutExpired):
            for process in processes:
                process.kill()
        console.print(f"stopped in {names}; the same command goes on with it.", markup=False)
        raise SystemExit(status)


def read_stamp(folder: Path) -> dict[str, Any]:
    """What the stamp of a run folder holds; nothing if there is none, or it is damaged: the point isn't done then."""
    return _read_json(folder / STAMP)


def _stopped_run(place: Path, arguments: Sequence[str]) -> Path | None:
    """The run folder of a training that was started with these arguments, stopped, and can go on; else `None`."""
    from lightning_uda.checkpoints import CHECKPOINTS, newest_checkpoint  # brings torch

    if arguments[0] != "fit" or any(word.startswith("--ckpt_path") for word in arguments):
        return None
    started, folders = _read_json(place / _STARTED), versions(place)
    if started.get("arguments") != list(arguments) or not folders or folders[-1].name != started.get("version"):
        return None
    return folders[-1] if newest_checkpoint(folders[-1] / CHECKPOINTS) else None


def _next_version(folders: Sequence[Path]) -> str:
    """Name of the run folder that comes after others."""
    return f"version_{int(folders[-1].name.removeprefix('version_')) + 1 if folders else 0}"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    replace_file(path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def load_run(folder: Path | None) -> Run | None:
    """What a run folder holds; `None` if there is none, or it holds no evaluation."""
    from lightning_uda.report import ReportError, load_runs  # brings torch and matplotlib

    try:
        return load_runs([folder])[0] if folder else None
    except ReportError:
        return None


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments before `--`, and those after it, which go to every run."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end + 1 :])


def _names(points: Iterable[Point]) -> str:
    return ", ".join(point.name for point in points)
