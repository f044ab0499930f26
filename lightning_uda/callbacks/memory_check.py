"""Warns before the first step of a training that the GPU may not hold."""

from __future__ import annotations

import copy
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from lightning_uda.errors import LESS_MEMORY
from lightning_uda.networks.base import without_numbers
from lightning_uda.precision import MetaAutocast

_log = logging.getLogger(__name__)

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What the trainer's precisions compute in where they autocast."""


class MemoryCheck(Callback):
    """Estimates before the first step what training needs of the GPU's memory, and warns where it has less.

    The first batch goes through one step of a copy of the method that has shapes but no numbers (torch's device
    "meta"), which takes no memory of the GPU and some seconds. The estimate holds the weights of student and teacher,
    the optimiser's states, the batch, and the most that the step keeps at once: activations, gradients and results in
    between. It leaves out the workspaces of cuDNN and the like, what the allocator can't use for its holes, copies of
    gradients in DDP, and validation. Beside peaks measured on a GPU it was 0.98 to 1.09 times as
    much (docs/performance.md). On a CPU nothing is looked at.
    """

    def __init__(self) -> None:
        self._looked = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Looks once, before the first step."""
        if self._looked:
            return
        self._looked = True
        there = available(trainer.strategy.root_device)
        if there is None or not trainer.is_global_zero:
            return
        _log.info("estimating what a step needs of the GPU's memory, some seconds for a large network")
        try:
            needed = step_memory(pl_module, trainer.optimizers[0], batch, _HALF.get(str(trainer.precision)))
        except Exception as error:  # whatever a network of one's own does without numbers; training may go on
            _log.info("what a step needs of the GPU's memory can't be estimated: %s", str(error).partition("\n")[0])
            return
        if needed.total > there:
            _log.warning(
                "the GPU may not hold this training: by an estimate it needs %.1f GB (%s), and has %.1f GB. %s",
                *(needed.total / 1e9, needed, there / 1e9, LESS_MEMORY),
            )


def available(device: torch.device) -> int | None:
    """Bytes of a GPU that this process has or can get; `None` for what is no GPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


class StepMemory(NamedTuple):
    """What training needs, in bytes.

    Attributes:
        weights: Parameters and buffers of the method, its teacher's among them.
        optimizer: States of the optimiser after its first step.
        batch: The images and labels of a step.
        step: The most that a step keeps at once beside these: activations, gradients, results in between.
    """

    weights: int
    optimizer: int
    batch: int
    step: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)

    def __str__(self) -> str:
        """The parts in GB."""
        names = ("weights", "optimiser", "batch", "activations and gradients")
        return ", ".join(f"{name} {value / 1e9:.2f}" for name, value in zip(names, self, strict=True))


def step_memory(
    module: LightningModule, optimizer: torch.optim.Optimizer, batch: Mapping[str, Any], half: torch.dtype | None
) -> StepMemory:
    """Memory of a training step of a method, by running it on a copy without numbers.

    Args:
        module: The method, which is left as it is.
        optimizer: Its optimiser, likewise.
        batch: A batch of its streams; only shapes and types are used.
        half: What autocasting computes in; `None` without it.

    Returns:
        Bytes.

    Raises:
        Exception: Of any kind, where the step needs numbers and not only shapes.
    """
    tensors = [*module.parameters(), *module.buffers()]
    shapes = {id(tensor): without_numbers(tensor) for tensor in tensors}
    twin = copy.deepcopy(module, dict(shapes))
    given = {"trainer": module._trainer, "global_means": False, "log_step": _nothing, "_take_back": Tensor.backward}
    for name, value in given.items():
        setattr(twin, name, value)
    for layer in twin.modules():
        if isinstance(layer, nn.SyncBatchNorm):
            layer.eval()  # or it would ask other processes; what it keeps is the same
    meta_batch = tree_map_only(Tensor, without_numbers, batch)
    used = _Peak([*shapes.values(), *(leaf for leaf in tree_leaves(meta_batch) if isinstance(leaf, Tensor))])
    with used, torch.random.fork_rng(devices=()), torch.compiler.set_stance("force_eager"):
        with MetaAutocast(half):
            loss = cast(Tensor, twin.training_step(meta_batch, 0))
        loss.backward()  # type: ignore[no-untyped-call]
    states = _states_of(optimizer, shapes)
    return StepMemory(_bytes_of(tensors), _bytes_of(states), _bytes_of(tree_leaves(batch)), used.peak)


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory of what calls make without numbers, and takes off what is gone.

    Args:
        known: What was there before, which isn't counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._seen = WeakIdKeyDictionary(dict.fromkeys((tensor.untyped_storage() for tensor in known), True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = True
            self._live += size
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._live -= size


def _states_of(optimizer: torch.optim.Optimizer, shapes: Mapping[int, Tensor]) -> Sequence[Tensor]:
    """The states that a step of the optimiser makes for weights without numbers, which have gradients."""
    twin = copy.copy(optimizer)
    twin.param_groups = [
        {**group, "params": [shapes[id(weight)] for weight in group["params"]], "fused": False}
        for group in optimizer.param_groups  # the fused kernels, which keep the same states, refuse such weights
    ]
    twin.state = defaultdict(dict)
    step = cast(Callable[[torch.optim.Optimizer], None], type(optimizer).step)  # a schedule counts calls of the other
    step(twin)
    return list(chain.from_iterable(state.values() for state in twin.state.values()))


def _bytes_of(tensors: Sequence[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def _nothing(values: Mapping[str, Any]) -> None:
    """Logs nothing."""
