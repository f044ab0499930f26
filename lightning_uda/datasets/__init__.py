"""Dataset readers."""

from lightning_uda.data.dataset import DatasetError, Problem, SegmentationDataset
from lightning_uda.datasets.acdc import ACDC
from lightning_uda.datasets.bdd100k import BDD100K
from lightning_uda.datasets.camvid import CamVid
from lightning_uda.datasets.cityscapes import Cityscapes
from lightning_uda.datasets.concat import Concat
from lightning_uda.datasets.dark_zurich import DarkZurich
from lightning_uda.datasets.folder import FolderDataset, ImageFolder
from lightning_uda.datasets.gta5 import GTA5
from lightning_uda.datasets.idd import IDD
from lightning_uda.datasets.mapillary import MapillaryVistas
from lightning_uda.datasets.media import MediaFiles
from lightning_uda.datasets.minicity import MiniCity
from lightning_uda.datasets.nthu import NTHU
from lightning_uda.datasets.polygons import PolygonDataset
from lightning_uda.datasets.synthia import SYNTHIA

__all__ = [
    "ACDC",
    "BDD100K",
    "GTA5",
    "IDD",
    "NTHU",
    "SYNTHIA",
    "CamVid",
    "Cityscapes",
    "Concat",
    "DarkZurich",
    "DatasetError",
    "FolderDataset",
    "ImageFolder",
    "MapillaryVistas",
    "MediaFiles",
    "MiniCity",
    "PolygonDataset",
    "Problem",
    "SegmentationDataset",
]
