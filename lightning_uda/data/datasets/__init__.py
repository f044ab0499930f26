"""Dataset readers."""

from lightning_uda.data.datasets.base import DatasetError, Problem, SegmentationDataset
from lightning_uda.data.datasets.camvid import CamVid
from lightning_uda.data.datasets.folder import FolderDataset, ImageFolder
from lightning_uda.data.datasets.minicity import MiniCity

__all__ = ["CamVid", "DatasetError", "FolderDataset", "ImageFolder", "MiniCity", "Problem", "SegmentationDataset"]
