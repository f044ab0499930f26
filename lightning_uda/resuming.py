"""How a run keeps its state and goes on: the trainer's checkpoint files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_uda.callbacks.finite_check import not_finite
from lightning_uda.checkpoints import explained, read_checkpoint, write_checkpoint

_NETWORKS = ("student.", "teacher.")


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
            return super().load_checkpoint(path, map_location, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # of many kinds, as in `read_checkpoint`
            raise explained(path, error) from error


def is_address(path: str | Path) -> bool:
    """Whether a path is an address such as `https://...`, rather than a file here."""
    return "://" in str(path)
