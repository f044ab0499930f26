"""Segmentation metrics from one confusion matrix."""

from lightning_uda.metrics.columns import at_size, mean_label, scored_size, size_name
from lightning_uda.metrics.confusion_files import read_confusion, write_confusion
from lightning_uda.metrics.folds import FoldScores, score_folds
from lightning_uda.metrics.scoring import Confusion, Scoring
from lightning_uda.metrics.segmentation import iou_per_class, mean_iou, merge_predictions

__all__ = [
    "Confusion",
    "FoldScores",
    "Scoring",
    "at_size",
    "iou_per_class",
    "mean_iou",
    "mean_label",
    "merge_predictions",
    "read_confusion",
    "score_folds",
    "scored_size",
    "size_name",
    "write_confusion",
]
