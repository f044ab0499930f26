"""Stops a run whose losses or weights are no numbers any more, before a good checkpoint is overwritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from lightning_uda.data.streams import PairedStreams

_MOST_UNREAD = 100
"""Batches whose losses are kept on the device before they are read, where nothing is logged for longer."""

_LEAST_SCALE = 2.0**-10
"""A loss scale that AMP gets to where gradients are finite at no scale; it begins at 2^16 and is halved by each."""

_STATISTICS = ("running_mean", "running_var")


class _Batch(NamedTuple):
    """A batch whose losses weren't read yet.

    Attributes:
        number: Its number since the start of training, over all epochs.
        step: The optimiser step that it belongs to, counted from 1.
        loss: The loss that was minimised, a scalar on the device.
        parts: The losses by name that it is the sum of, where the module says them.
        gradients: Norm of the gradients that the optimiser took, a scalar on the device; `None` where it made no step.
    """

    number: int
    step: int
    loss: Tensor
    parts: Mapping[str, Tensor]
    gradients: Tensor | None


class FiniteCheck(Callback):
    """Stops a run at the first step whose loss or gradient isn't finite, with its losses and the names of its images.

    A step waits for nothing, and computes the norm of its gradients alone, as the optimiser took them: after clipping.
    Norm and losses stay on the device, where they are, and are read together at logging steps (and every 100 batches,
    where logging is rarer), before a validation, at the end and before a checkpoint is saved. The error names the first
    step that was bad. Before a validation or a checkpoint, weights and BatchNorm statistics are looked at too; so no
    checkpoint that isn't finite takes the place of a good one.

    Where AMP scales the loss (fp16) gradients may overflow; AMP then leaves the step out and halves its scale, which is
    no fault. The scale is looked at instead, with the losses: where it has vanished, steps are made no more.

    In a distributed run all processes stop together, with the message of the one whose batch it was.
    """

    def __init__(self) -> None:
        self._unread: list[_Batch] = []
        self._number = 0
        self._finite_at = -1  # step whose weights were looked at last

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets an earlier run."""
        self._unread, self._finite_at = [], -1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch."""
        accumulated: int = trainer.accumulate_grad_batches
        self._number = trainer.global_step * accumulated + batch_idx % accumulated

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the losses of a batch, and reads all that are kept at logging steps."""
        parts = {name: loss.detach() for name, loss in getattr(pl_module, "last_losses", {}).items()}
        step = self._number // trainer.accumulate_grad_batches + 1
        stepped = trainer.global_step == step
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        gradients = norm_of_gradients(pl_module) if stepped and not scaled else None
        self._unread.append(_Batch(self._number, step, outputs["loss"], parts, gradients))
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (stepped and interval and step % interval == 0) or len(self._unread) >= _MOST_UNREAD:
            self._require_finite_losses(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at losses and weights before a validation of training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._require_finite(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Looks at losses and weights before a checkpoint is saved."""
        self._require_finite(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the last losses and weights."""
        self._require_finite(trainer, pl_module)

    def _require_finite(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._require_finite_losses(trainer)
        step = trainer.global_step
        if self._finite_at == step:
            return
        bad = not_finite(weights_of(module))
        _stop_if_bad(trainer, step if bad else None, partial(_weights_message, trainer, bad))
        self._finite_at = step

    def _require_finite_losses(self, trainer: pl.Trainer) -> None:
        """Reads all losses that are kept: the one place where the device, and other processes, are waited for."""
        unread, self._unread = self._unread, []
        kinds = [
            (batch, name) for batch in unread for name in ("loss", "gradients") if getattr(batch, name) is not None
        ]
        numbers = [getattr(batch, name).float() for batch, name in kinds]
        finite = torch.stack(numbers).isfinite().tolist() if numbers else []
        bad = next((kind for kind, ok in zip(kinds, finite, strict=True) if not ok), None)
        if bad is None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            vanished = scaler is not None and scaler.get_scale() < _LEAST_SCALE
            _stop_if_bad(trainer, 2 * self._number if vanished else None, partial(_scale_message, trainer))
            return
        batch, name = bad
        by_gradients = name == "gradients"  # those of all processes, by a fault of one, whose loss may tell
        message = _gradients_message if by_gradients else _loss_message
        _stop_if_bad(trainer, 2 * batch.number + by_gradients, partial(message, trainer, batch))


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and BatchNorm statistics of a module by their names, on their device."""
    statistics = {name: buffer for name, buffer in module.named_buffers() if name.endswith(_STATISTICS)}
    return {**dict(module.named_parameters()), **statistics}


def norm_of_gradients(module: torch.nn.Module) -> Tensor | None:
    """The L2 norm of all gradients of a module, a scalar on their device; `None` where it has none.

    It isn't finite where a gradient isn't, or where float32 can't hold it.
    """
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    if not gradients:
        return None
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype)))
    return norm


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a value that isn't finite; one value is read where all are finite."""
    floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    if bool(get_total_norm(floating.values(), norm_type=torch.inf).isfinite()):
        return []
    return [name for name, tensor in floating.items() if not tensor.isfinite().all()]


def _stop_if_bad(trainer: pl.Trainer, number: int | None, message: Callable[[], str]) -> None:
    """Stops all processes with the message of the one that found the earliest fault; goes on where none did.

    Args:
        trainer: Of the run.
        number: Number that orders the faults; `None` where this process found none.
        message: Says what it found.

    Raises:
        FloatingPointError: On all processes, if one found something.
    """
    ranks, rank, none = trainer.world_size, trainer.global_rank, torch.iinfo(torch.int64).max
    own = torch.tensor(none if number is None else number * ranks + rank, device=trainer.strategy.root_device)
    first = int(trainer.strategy.reduce(own, reduce_op="min"))
    if first == none:
        return
    source = first % ranks
    text = trainer.strategy.broadcast(message() if source == rank else "", src=source)
    raise FloatingPointError(f"{f'Process {source}: ' if ranks > 1 else ''}{text}\n{_advice(trainer)}")


def _loss_message(trainer: pl.Trainer, bad: _Batch) -> str:
    losses = {name: value for name, value in bad.parts.items() if not value.isfinite()} or {"loss": bad.loss}
    found = ", ".join(f"train/{name} is {float(value)}" for name, value in losses.items())
    return f"The run stopped, as its loss is not finite at step {bad.step} of {trainer.max_steps}: {found}." + _images(
        trainer, bad.number
    )


def _gradients_message(trainer: pl.Trainer, bad: _Batch) -> str:
    losses = ", ".join(
        f"train/{name} is {float(value):.4g}" for name, value in (bad.parts or {"loss": bad.loss}).items()
    )
    first = (bad.step - 1) * trainer.accumulate_grad_batches
    images = "".join(_images(trainer, number) for number in range(first, bad.number + 1))
    shared = (
        "\nGradients are those of all processes; these images are of one of them." if trainer.world_size > 1 else ""
    )
    return (
        f"The run stopped, as its gradients are not finite at step {bad.step} of {trainer.max_steps}, though its "
        f"losses are: {losses}.{images}{shared}"
    )


def _scale_message(trainer: pl.Trainer) -> str:
    return (
        f"The run stopped, as AMP has found no scale of the loss at which gradients are finite, by step "
        f"{trainer.global_step} of {trainer.max_steps}: it fell below {_LEAST_SCALE:g}, and no step is made."
    )


def _weights_message(trainer: pl.Trainer, names: Sequence[str]) -> str:
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"The run stopped, as weights are not finite after step {trainer.global_step} of {trainer.max_steps}: {few}."


def _images(trainer: pl.Trainer, number: int) -> str:
    """A line with the images of a batch, where the loader can say them."""
    loader = trainer.train_dataloader
    streams = loader.dataset if isinstance(loader, DataLoader) else None
    if not isinstance(streams, PairedStreams):
        return ""
    shown = "; ".join(f"{name}: {', '.join(images)}" for name, images in streams.images(number).items())
    return f"\nIts batch: {shown}."


def _advice(trainer: pl.Trainer) -> str:
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    half = ", or train in bf16-mixed, whose range is that of float32" if "16-mixed" == trainer.precision else ""
    return (
        f"Lower the learning rate ({rate:.3g} now, --model.optimizer.lr) or clip gradients "
        f"(--trainer.gradient_clip_val){half}. No checkpoint was written since; those before are whole."
    )
