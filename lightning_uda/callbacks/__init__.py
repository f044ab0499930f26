"""What crosses methods: the teacher's update, pictures, tables, predictions, progress, and stopping in time."""

from lightning_uda.callbacks.adapt_batch_norm import AdaptBatchNorm
from lightning_uda.callbacks.alignment_prior import AlignmentPrior
from lightning_uda.callbacks.anonymized_train_ids import AnonymizedTrainIds
from lightning_uda.callbacks.channels_last import ChannelsLast
from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.callbacks.fast_depthwise import FastDepthwise
from lightning_uda.callbacks.finite_check import FiniteCheck
from lightning_uda.callbacks.image_panels import ImagePanels
from lightning_uda.callbacks.iou_table import IoUTable
from lightning_uda.callbacks.long_tail import LongTailStatistics
from lightning_uda.callbacks.memory_check import MemoryCheck
from lightning_uda.callbacks.prediction_formats import (
    CityscapesLabelIds,
    Colors,
    Confidence,
    Overlay,
    Prediction,
    PredictionFormat,
    RawIds,
    TrainIds,
)
from lightning_uda.callbacks.prediction_writer import PredictionWriter
from lightning_uda.callbacks.progress_bar import StepProgressBar
from lightning_uda.callbacks.run_record import RunRecord
from lightning_uda.callbacks.stop_signals import StopSignals, StopWithCheckpoint
from lightning_uda.self_training.rounds import SelfTrainingRounds

__all__ = [
    "AdaptBatchNorm",
    "AlignmentPrior",
    "AnonymizedTrainIds",
    "ChannelsLast",
    "CityscapesLabelIds",
    "Colors",
    "Confidence",
    "EMATeacher",
    "FastDepthwise",
    "FiniteCheck",
    "ImagePanels",
    "IoUTable",
    "LongTailStatistics",
    "MemoryCheck",
    "Overlay",
    "Prediction",
    "PredictionFormat",
    "PredictionWriter",
    "RawIds",
    "RunRecord",
    "SelfTrainingRounds",
    "StepProgressBar",
    "StopSignals",
    "StopWithCheckpoint",
    "TrainIds",
]
