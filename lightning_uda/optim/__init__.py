"""Learning-rate schedules and optimisers that PyTorch lacks."""

from lightning_uda.optim.repeated_sgd import RepeatedSGD, describe_updates
from lightning_uda.optim.schedules import Constant, Poly, Schedule
from lightning_uda.optim.states import require_finite_states, require_state_fits

__all__ = [
    "Constant",
    "Poly",
    "RepeatedSGD",
    "Schedule",
    "describe_updates",
    "require_finite_states",
    "require_state_fits",
]
