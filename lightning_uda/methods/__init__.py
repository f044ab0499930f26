"""The methods: one LightningModule each."""

from lightning_uda.methods.base import TeacherModule, UDAModule
from lightning_uda.methods.dacs import DACS
from lightning_uda.methods.source_only import SourceOnly

__all__ = ["DACS", "SourceOnly", "TeacherModule", "UDAModule"]
