"""The methods: one LightningModule each."""

from lightning_uda.methods.ada_bn import AdaBN
from lightning_uda.methods.base import UDAModule
from lightning_uda.methods.dacs import DACS
from lightning_uda.methods.daformer import DAFormer
from lightning_uda.methods.dsp import DSP
from lightning_uda.methods.ehtdi import EHTDI
from lightning_uda.methods.mean_teacher import MeanTeacher
from lightning_uda.methods.naive_class_mix import NaiveClassMix
from lightning_uda.methods.self_training import SelfTraining
from lightning_uda.methods.source_only import SourceOnly
from lightning_uda.methods.t2sda import T2SDA, T2SDAGeneralization
from lightning_uda.methods.teacher import TeacherModule

__all__ = [
    "DACS",
    "DSP",
    "EHTDI",
    "T2SDA",
    "AdaBN",
    "DAFormer",
    "MeanTeacher",
    "NaiveClassMix",
    "SelfTraining",
    "SourceOnly",
    "T2SDAGeneralization",
    "TeacherModule",
    "UDAModule",
]
