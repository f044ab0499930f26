"""Segmentation metrics from one confusion matrix."""

from lightning_uda.metrics.segmentation import iou_per_class, mean_iou

__all__ = ["iou_per_class", "mean_iou"]
