"""Segmentation metrics from one confusion matrix."""

from lightning_uda.metrics.borders import near_borders
from lightning_uda.metrics.columns import in_scope, iou_column, mean_column, scope_label, score_label
from lightning_uda.metrics.confusion_files import (
    CONFUSIONS,
    ConfusionFile,
    find_confusions,
    image_scores_file,
    keep_confusion,
    keep_image_scores,
    latest_image_scores,
    read_confusion,
    write_confusion,
)
from lightning_uda.metrics.evaluation import (
    MIOU_NOTE,
    Evaluation,
    averaged,
    best_of,
    best_text,
    columns_of,
    evaluate,
)
from lightning_uda.metrics.folds import FoldScores, score_folds
from lightning_uda.metrics.scoring import Confusion, Scoring
from lightning_uda.metrics.segmentation import iou_per_class, mean_iou, merge_predictions

__all__ = [
    "CONFUSIONS",
    "MIOU_NOTE",
    "Confusion",
    "ConfusionFile",
    "Evaluation",
    "FoldScores",
    "Scoring",
    "averaged",
    "best_of",
    "best_text",
    "columns_of",
    "evaluate",
    "find_confusions",
    "image_scores_file",
    "in_scope",
    "iou_column",
    "iou_per_class",
    "keep_confusion",
    "keep_image_scores",
    "latest_image_scores",
    "mean_column",
    "mean_iou",
    "merge_predictions",
    "near_borders",
    "read_confusion",
    "scope_label",
    "score_folds",
    "score_label",
    "write_confusion",
]
