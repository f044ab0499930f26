"""Self-training in rounds: ST and CBST (Zou et al., ECCV 2018), with CRST's regularisers (ICCV 2019)."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_uda.methods.base import UDAModule
from lightning_uda.optim import Constant, Schedule
from lightning_uda.ranges import ranged
from lightning_uda.resize import size_of, upsample
from lightning_uda.self_training.losses import HardLabels, SelfTrainingLoss
from lightning_uda.self_training.rounds import SelfTrainingRounds
from lightning_uda.step import Step, to_float

_log = logging.getLogger(__name__)


class SelfTraining(UDAModule):
    """Labels the target set with the network, trains the network on it and some source images, and again.

    Step a of a round, choosing the pseudo-labels, is done by `rounds` before the round's first batch; step b, training
    with them, is the training step here. Rounds continue with the weights of the round before. In a distributed run the
    loss is the mean over processes of each one's mean over pixels.

    Args:
        rounds: Number of rounds, portions, thresholds (class-wise: CBST; global: ST) and all that belongs to
            them; the module keeps a copy.
        loss: `HardLabels` (CBST), `MRKLD` or `LRENT` (CRST).
        optimizer: Makes the optimiser from parameter groups; its state is forgotten at the start of each round. The
            default is that of the PyTorch program for DeepLab-v2.
        schedule: Learning-rate factor over the steps of all rounds, on top of `rounds.lr_round_factor`.
        **common: As in `UDAModule`; `init_from` should be a source-only run.

    Raises:
        ValueError: If a loss with soft labels is combined with a spatial prior.
    """

    streams = ("union",)
    views = ("union",)
    sets_steps = True

    @ranged()
    def __init__(
        self,
        *,
        rounds: SelfTrainingRounds = SelfTrainingRounds(),
        loss: SelfTrainingLoss = HardLabels(),
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=5e-5, momentum=0.9, weight_decay=5e-4),
        schedule: Schedule = Constant(),
        **common: Any,
    ) -> None:
        if loss.needs_probs and rounds.spatial_prior is not None:
            raise ValueError(
                f"SelfTraining: found the loss {type(loss).__name__} and a spatial prior. Its soft labels compare "
                "plain probabilities with the thresholds, which would be those of weighted ones. Leave one out."
            )
        rounds = copy.deepcopy(rounds)  # it keeps state, and the default is one object
        super().__init__(optimizer=optimizer, schedule=_PerRound(schedule, rounds), **common)
        self.rounds = rounds
        self.loss = loss
        self.thresholds = torch.full((self.student.num_classes,), torch.inf)
        self.starting_network = copy.deepcopy(self.student).requires_grad_(False) if loss.needs_probs else None

    def configure_callbacks(self) -> list[Callback]:
        """The rounds."""
        return [self.rounds]

    def on_fit_start(self) -> None:
        """As in the base; says so if the first round starts from an untrained network."""
        super().on_fit_start()
        if self.init_from is None and self.trainer.ckpt_path is None:
            _log.warning("model.init_from isn't set: self-training starts from the network as it was made")

    def use_thresholds(self, thresholds: Tensor) -> None:
        """Takes over the thresholds of the round that begins or that a run resumes in.

        They are no buffer of the module, as their precision is float32 whatever that of the weights.

        Args:
            thresholds: exp(-k_c), float32 (C,).
        """
        self.thresholds = thresholds.to(self.device)

    def begin_round(self) -> None:
        """Keeps the network that a round starts from, if the loss needs it."""
        if self.starting_network is not None:
            self.starting_network.load_state_dict(self.student.state_dict())

    def algorithm(self, step: Step) -> None:
        """Step b of a round: the loss of a batch of the union of both domains."""
        union = step.batch["union"]
        probs = self._starting_probs(union["image"])
        step.learn(
            "union",
            union["image"],
            *self.loss.labels(union["mask"], union["is_target"].bool(), self.thresholds, probs),
        )

    @torch.no_grad()
    def _starting_probs(self, image: Tensor) -> Tensor | None:
        """Probabilities (N, C, H, W) of the network that the round started from, if the loss needs them."""
        if self.starting_network is None:
            return None
        logits = self.starting_network.eval()(to_float(image))
        return upsample(logits, size_of(image), self.student.align_corners).softmax(dim=1)


class _PerRound(Schedule):
    """A schedule times the factor of the round."""

    @ranged()
    def __init__(self, schedule: Schedule, rounds: SelfTrainingRounds) -> None:
        self.schedule = schedule
        self.rounds = rounds

    def factor(self, step: int, max_steps: int) -> float:
        """Product of both factors."""
        return self.rounds.learning_rate_factor(step) * self.schedule.factor(step, max_steps)
