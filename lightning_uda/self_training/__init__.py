"""Self-training in rounds: ST and CBST (Zou et al., ECCV 2018) and CRST's losses (ICCV 2019), but for their method."""

from lightning_uda.self_training.assignment import assign_pseudo_labels
from lightning_uda.self_training.class_balance import class_balance_score
from lightning_uda.self_training.prior import resize_prior
from lightning_uda.self_training.rounds import SelfTrainingRounds
from lightning_uda.self_training.thresholds import LogitHistogram, RadixSelect, ThresholdSearch, rank_of

__all__ = [
    "LogitHistogram",
    "RadixSelect",
    "SelfTrainingRounds",
    "ThresholdSearch",
    "assign_pseudo_labels",
    "class_balance_score",
    "rank_of",
    "resize_prior",
]
