import pytest
import torch
from lightning.pytorch import Trainer

from lightning_uda.callbacks import AlignmentPrior
from lightning_uda.data.statistics import class_statistics
from lightning_uda.methods import NaiveClassMix
from lightning_uda.mixing import BoxMask
from lightning_uda.optim import Constant
from lightning_uda.pseudo_labels import DistributionAlignment, ImageConfidence, UniformWeights
from tests.fixtures.tiny import TinyDataset, tiny_data, tiny_network
from tests.methods.test_dacs import QUIET, Replay


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_UDA_CACHE", str(tmp_path))


def test_target_images_are_mixed_with_the_next_one_of_the_batch():
    torch.manual_seed(0)
    teacher_logits = torch.tensor([9.0, 5.0, 3.0]).view(3, 1, 1, 1) * torch.randn(3, 19, 8, 8)
    half = torch.zeros(3, 8, 8, dtype=torch.bool)
    half[:, :4] = True
    module = NaiveClassMix(
        pixel_weighting=ImageConfidence(0.9),
        augmentation=None,
        paste_mask=lambda mask, _: half,
        network=Replay(),
        label_space="cityscapes",
    )
    module.student, module.teacher = Replay(*torch.randn(2, 3, 19, 8, 8)), Replay(teacher_logits)
    module.log_step = lambda values: None
    image = torch.randint(0, 255, (3, 3, 8, 8), dtype=torch.uint8)
    source = {"image": image, "mask": torch.zeros(3, 8, 8, dtype=torch.uint8)}
    module.training_step({"source": source, "target": {"image": image}}, 0)
    mixed = module.last_views["mixed"]
    (mixed_labels,) = mixed.labels
    confidence, labels = teacher_logits.softmax(1).max(1)
    share = (confidence >= 0.9).float().mean((1, 2))
    assert len(set(share.tolist())) == 3
    for b in range(3):
        n = (b + 1) % 3
        assert torch.equal(mixed.image[b], torch.cat([image[b, :, :4], image[n, :, 4:]], 1) / 255)
        assert torch.equal(mixed_labels.mask[b].long(), torch.cat([labels[b, :4], labels[n, 4:]]))
        assert torch.allclose(mixed_labels.weights[b, :4], share[b])
        assert torch.allclose(mixed_labels.weights[b, 4:], share[n])


def run(data=None, **kwargs):
    module = NaiveClassMix(
        pixel_weighting=UniformWeights(), network=tiny_network(), label_space="camvid", schedule=Constant(), **kwargs
    )
    trainer = Trainer(max_steps=3, **QUIET)
    trainer.fit(module, datamodule=data or tiny_data(val=None))
    return torch.cat([p.detach().flatten() for p in module.student.parameters()]), module


def test_parts_change_the_run_and_the_seed_decides_it():
    assert torch.equal(run()[0], run()[0])
    runs = [run()[0], run(paste_mask=BoxMask())[0], run(alignment=DistributionAlignment())[0]]
    assert len({tuple(weights.tolist()) for weights in runs}) == 3


def test_prior_is_counted_from_the_set_that_is_named():
    data = tiny_data(val=None, target=TinyDataset(length=7, seed=2))
    for name in ("source", "target"):
        _, module = run(data, alignment=DistributionAlignment(prior_of=name))
        expected = class_statistics(getattr(data, name), data.label_space).pixel_frequency
        assert torch.allclose(module.alignment.prior, torch.from_numpy(expected).float())
        assert module.alignment.batches.item() == 3


def test_an_oracle_prior_needs_target_labels():
    with pytest.raises(RuntimeError, match="class statistics need labels"):
        run(alignment=DistributionAlignment(prior_of="target"))


def test_single_images_are_refused():
    with pytest.raises(ValueError, match=r"data\.batch_size: found 1, but NaiveClassMix needs 2 images"):
        run(tiny_data(val=None, batch_size=1))


def test_a_prior_without_alignment_is_refused():
    trainer = Trainer(max_steps=1, callbacks=[AlignmentPrior()], **QUIET)
    with pytest.raises(ValueError, match="AlignmentPrior needs a method with `alignment`"):
        trainer.fit(NaiveClassMix(network=tiny_network(), label_space="camvid"), datamodule=tiny_data(val=None))
