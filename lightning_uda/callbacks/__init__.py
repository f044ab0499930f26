"""What crosses methods: the teacher's update, pictures, tables, predictions, progress."""

from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.callbacks.image_panels import ImagePanels
from lightning_uda.callbacks.iou_table import IoUTable
from lightning_uda.callbacks.prediction_writer import PredictionWriter
from lightning_uda.callbacks.progress_bar import StepProgressBar

__all__ = ["EMATeacher", "ImagePanels", "IoUTable", "PredictionWriter", "StepProgressBar"]
