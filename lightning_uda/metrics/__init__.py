"""Segmentation metrics from one confusion matrix."""

from lightning_uda.metrics.columns import at_size, iou_column, mean_column, mean_label, size_name
from lightning_uda.metrics.confusion_files import (
    CONFUSIONS,
    ConfusionFile,
    find_confusions,
    keep_confusion,
    read_confusion,
    write_confusion,
)
from lightning_uda.metrics.evaluation import Evaluation, averaged, best_of, best_text, columns_of, evaluate
from lightning_uda.metrics.folds import FoldScores, score_folds
from lightning_uda.metrics.scoring import Confusion, Scoring
from lightning_uda.metrics.segmentation import iou_per_class, mean_iou, merge_predictions

__all__ = [
    "CONFUSIONS",
    "Confusion",
    "ConfusionFile",
    "Evaluation",
    "FoldScores",
    "Scoring",
    "at_size",
    "averaged",
    "best_of",
    "best_text",
    "columns_of",
    "evaluate",
    "find_confusions",
    "iou_column",
    "iou_per_class",
    "keep_confusion",
    "mean_column",
    "mean_iou",
    "mean_label",
    "merge_predictions",
    "read_confusion",
    "score_folds",
    "size_name",
    "write_confusion",
]
