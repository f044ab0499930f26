"""How a run keeps its state and goes on: checkpoint files, the newest one of a run, and tables that continue."""

from __future__ import annotations

import itertools
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from lightning_uda.callbacks.finite_check import not_finite
from lightning_uda.callbacks.iou_table import IOU_FILE
from lightning_uda.checkpoints import (
    CHECKPOINTS,
    CheckpointError,
    Found,
    explained,
    newest_checkpoint,
    read_checkpoint,
    require_content,
    view_checkpoint,
    write_checkpoint,
)
from lightning_uda.errors import MendableError
from lightning_uda.errors import explained as explained_by_torch
from lightning_uda.files import NOTES_FILE, PARTIAL, require_folder_place, versions
from lightning_uda.methods import UDAModule
from lightning_uda.metrics import find_confusions
from lightning_uda.networks.checkpoints import find_checkpoint
from lightning_uda.networks.weights import read_file
from lightning_uda.tables import read_log, read_table, write_table

_NETWORKS = ("student.", "teacher.")
_RESTORING = "lightning.pytorch.trainer.connectors.checkpoint_connector"
"""The module in which Lightning hands a checkpoint's content to model, callbacks, loops and optimisers."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes the trainer's checkpoints by `write_checkpoint`, and reads all without running code that they may hold.

    That goes for every stage and every address: Lightning would unpickle what it is given by a URL. Checkpoints at
    addresses (`s3://...`) are written as Lightning does.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            FloatingPointError: If it holds weights alone, of which `FiniteCheck` isn't told, and they aren't finite.
            OSError: If it can't be written; the one before is left as it is.
        """
        if "callbacks" not in checkpoint:
            networks = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith(_NETWORKS)}
            if bad := not_finite(networks):
                raise FloatingPointError(
                    f"{path}: not written, as weights are not finite: {', '.join(bad[:3])}. Lower the learning rate."
                )
        if is_address(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint; `weights_only` is always on.

        Raises:
            CheckpointError: If it is damaged, or needs code to be read.
        """
        if not is_address(path):
            return read_checkpoint(Path(path), map_location)
        try:
            content = super().load_checkpoint(path, map_location, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # of many kinds, as in `read_checkpoint`
            raise explained(path, error) from error
        require_content(content, path)
        return content


class _WholeTable(ExperimentWriter):
    """Lightning's writer, which empties the table to add columns; here the new one takes its place in one move."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        table = Path(self.metrics_file_path)
        write_table(table, fieldnames, read_log(table)[1])


class RunLogger(CSVLogger):
    """Writes `metrics.csv` into the run folder; a run that goes on there continues the table.

    What the run had written of steps after its checkpoint is taken back, from `iou.csv` and `confusions` too, as these
    steps are made again.

    Args:
        output: Folder of all runs.
        name: Name of the run.
        resumed: The checkpoint that the run goes on from, in the folder of one of its versions; `None` starts a new
            version.
    """

    def __init__(self, output: str, name: str, resumed: Found | None = None) -> None:
        version = None if resumed is None else resumed.path.parent.parent.name
        super().__init__(output, name, version, flush_logs_every_n_steps=10)
        self.resumed = resumed
        self._before: set[tuple[int, str]] = set()  # step and name of what the run had logged

    @property
    def version(self) -> int | str:
        """Number of the version, or name of its folder; the folder is made, as another run may start at this moment."""
        if self._version is None:
            first = int(super().version)
            for self._version in itertools.count(first) if not getattr(rank_zero_only, "rank", None) else ():
                require_folder_place(Path(self.root_dir), "--output")
                with suppress(FileExistsError):
                    Path(self.log_dir).mkdir(parents=True)
                    break
        return super().version

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, with what the run has logged before."""
        if self._experiment is not None:
            return self._experiment
        if self.resumed is None:
            return self._new_writer()
        run, step = Path(self.log_dir), self.resumed.step
        table = run / ExperimentWriter.NAME_METRICS_FILE
        kept = table.with_name(table.name + PARTIAL)  # Lightning's writer removes the table
        source = next((file for file in (table, kept) if file.is_file()), None)
        columns, rows = ([], []) if source is None else read_log(source)
        forget_later_evaluations(run, step)
        remove_unfinished(run)
        if source is None:
            return self._new_writer()
        rows = [row for row in rows if int(row["step"]) < step]
        write_table(kept, columns, rows)
        self._before = {(int(row["step"]), name) for row in rows for name, value in row.items() if value}
        writer = self._new_writer()
        kept.replace(table)
        writer.metrics_keys = columns
        return writer

    def _new_writer(self) -> _WholeTable:
        Path(self.root_dir).mkdir(parents=True, exist_ok=True)
        self._experiment = writer = _WholeTable(self.log_dir)
        return writer

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Adds a row, unless the table has it from before; it lacks that of a validation which wasn't finished."""
        _ = self.experiment  # has the table read
        if step is None or any((step, name) not in self._before for name in metrics):
            super().log_metrics(metrics, step)

    def remove_if_unused(self) -> None:
        """Removes the folder of a new run that holds what a start writes, but nothing in `checkpoints` and the like."""
        if self._version is None or self.resumed is not None:
            return
        folder = Path(self.log_dir)
        if not any(path.is_file() for path in folder.glob("*/**/*")):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # other versions, or other runs, are there
                for parent in folder.relative_to(self.save_dir).parents[:-1]:
                    (Path(self.save_dir) / parent).rmdir()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Writes what is logged, so that the table is as far as the checkpoint."""
        self.save()


def newest_of_run(folder: Path) -> Found:
    """The newest whole checkpoint of a run's latest version; versions that only evaluated don't count.

    Args:
        folder: Folder of the run, which holds its `version_<n>`.

    Raises:
        CheckpointError: If there is none.
    """
    trained = trained_versions(folder)
    if not trained:
        raise CheckpointError(
            f"{folder}: found no run to go on from. Leave out --resume and --ckpt_path to start it, or give --name and "
            "--output of the run."
        )
    found = newest_checkpoint(trained[-1] / CHECKPOINTS)
    if found is None:
        raise CheckpointError(
            f"{trained[-1]}: found no whole checkpoint to go on from, but this is the latest version of the run. Leave "
            "out --resume and --ckpt_path to start anew, or give a file as --ckpt_path."
        )
    return found


def require_file(path: str) -> None:
    """Checks that what is given as a checkpoint is a file, or an address.

    Raises:
        FileNotFoundError: If it isn't.
    """
    if is_address(path) or Path(path).is_file():
        return
    folder, newest = Path(path), None
    if path and folder.is_dir():
        newest = newest_checkpoint(folder, to_resume=False) or newest_checkpoint(folder / CHECKPOINTS, to_resume=False)
    raise FileNotFoundError(
        f"--ckpt_path: found no file {path or repr(path)}; expected a checkpoint, from the `{CHECKPOINTS}` folder of a "
        f"run{'' if newest is None else f', such as {newest.path}'}."
    )


def require_start(method: UDAModule, path: str | None, command: str) -> None:
    """Checks that a run can start from its checkpoint, or that of `init_from`, before it has a folder.

    Args:
        method: As the config made it.
        path: The checkpoint; `None` starts without. One at an address is looked at when the trainer reads it.
        command: Of the trainer; `fit` goes on with the optimiser.

    Raises:
        CheckpointError: If it doesn't fit the run.
        FileNotFoundError: If that of `init_from` isn't there.
        WeightsError: If weights are NaN or infinite, or that of `init_from` can't be read.
    """
    if path is None and command == "fit" and method.init_from is not None:
        read_file(find_checkpoint(Path(method.init_from)))
    elif path is not None and not is_address(path):
        method.require_fits(view_checkpoint(Path(path)), path, to_resume=command == "fit")


@contextmanager
def restoring(path: str | None) -> Iterator[None]:
    """Names the checkpoint in any error of the trainer while it restores what that holds; leaves others as they are.

    Args:
        path: The checkpoint; `None` is none.

    Raises:
        CheckpointError: In place of an error that arose there, but of those that name the file.
    """
    try:
        yield
    except (CheckpointError, MendableError, OSError):
        raise
    except Exception as error:  # of many kinds, by what the checkpoint holds
        if path is None or explained_by_torch(error) is not None or not _arose_in_restoring(error):
            raise
        own = isinstance(error, ValueError)
        said = str(error) if own else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path}: this run can't go on from it: {said.strip().rstrip('.')}. Config and checkpoint differ: give the "
            "config that it was trained with (config.yaml in its run folder), or start anew from its weights: "
            "--model.init_from instead of --ckpt_path or --resume."
        ) from error


def _arose_in_restoring(error: Exception) -> bool:
    """Whether Lightning's restoring of a checkpoint is among the functions that an error went through."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_globals["__name__"] == _RESTORING and frame.f_code.co_name.lstrip("_").startswith("restore")
        for frame in frames
    )


def trained_versions(folder: Path) -> list[Path]:
    """Versions of a run, in the order of their numbers, without those that only evaluated."""
    return [path for path in versions(folder) if (path / CHECKPOINTS).is_dir() or (path / NOTES_FILE).is_file()]


def remove_unfinished(run: Path) -> None:
    """Removes files that were being written when a run was killed; of a table its last whole content is kept."""
    for path in run.rglob(f"*{PARTIAL}"):
        if path.name != ExperimentWriter.NAME_METRICS_FILE + PARTIAL:
            path.unlink()


def forget_later_evaluations(run: Path, step: int) -> None:
    """Takes the evaluations of steps after `step` out of a run folder.

    Raises:
        ValueError: If its table of them is damaged; then nothing is taken out.
    """
    table = run / IOU_FILE
    columns, rows = read_table(table, {"step": int}) if table.is_file() else ([], [])
    for file in find_confusions(run):
        if file.step > step:
            file.path.unlink()
            file.image_scores.unlink(missing_ok=True)
    if rows:
        write_table(table, columns, [row for row in rows if int(row["step"]) <= step])


def is_address(path: str | Path) -> bool:
    """Whether a path is an address such as `https://...`, rather than a file here."""
    return "://" in str(path)
