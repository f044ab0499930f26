import torch
from lightning.pytorch import Trainer

from lightning_uda.methods import SourceOnly
from tests.fixtures.tiny import tiny_data, tiny_network


def test_it_learns_the_source_and_needs_no_target():
    module = SourceOnly(tiny_network(), "camvid", optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=60, enable_model_summary=False, **settings)
    before = trainer.validate(module, datamodule=tiny_data(target=None), verbose=False)
    trainer.fit(module, datamodule=tiny_data(target=None))
    after = trainer.validate(module, datamodule=tiny_data(target=None), verbose=False)
    assert after[0]["val/miou"] > before[0]["val/miou"] + 30
