"""Self-training in rounds: ST and CBST (Zou et al., ECCV 2018) and CRST's losses (ICCV 2019), but for their method."""

from lightning_uda.self_training.assignment import assign_pseudo_labels
from lightning_uda.self_training.class_balance import class_balance_score
from lightning_uda.self_training.label_folder import LabelFolder, RoundRecord
from lightning_uda.self_training.losses import LRENT, MRKLD, HardLabels, SelfTrainingLoss
from lightning_uda.self_training.mining import RareClassMining
from lightning_uda.self_training.portion import PortionPolicy, SourcePerTarget, SourcePortion, SourceSubset
from lightning_uda.self_training.prior import resize_prior
from lightning_uda.self_training.rounds import SelfTrainingRounds
from lightning_uda.self_training.scaled_crop import ScaledCrop
from lightning_uda.self_training.spatial_prior import SpatialPrior
from lightning_uda.self_training.thresholds import LogitHistogram, RadixSelect, ThresholdSearch, rank_of

__all__ = [
    "LRENT",
    "MRKLD",
    "HardLabels",
    "LabelFolder",
    "LogitHistogram",
    "PortionPolicy",
    "RadixSelect",
    "RareClassMining",
    "RoundRecord",
    "ScaledCrop",
    "SelfTrainingLoss",
    "SelfTrainingRounds",
    "SourcePerTarget",
    "SourcePortion",
    "SourceSubset",
    "SpatialPrior",
    "ThresholdSearch",
    "assign_pseudo_labels",
    "class_balance_score",
    "rank_of",
    "resize_prior",
]
