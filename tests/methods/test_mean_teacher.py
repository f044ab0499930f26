import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from lightning_uda.methods import MeanTeacher
from lightning_uda.optim import Constant
from lightning_uda.pseudo_labels import BatchConfidence, UniformWeights
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET, Replay


def test_loss_is_that_of_target_images_on_pseudo_labels(golden):
    g = golden("dacs_step")
    module = MeanTeacher(network=Replay(), label_space="cityscapes", augmentation=None)
    logits = [g[f"student_logits_{part}"] for part in ("source", "mixed")]
    module.student, module.teacher = Replay(*logits), Replay(g["teacher_logits_target"])
    logged = {}
    module.log_step = logged.update
    size = g["source_label"].shape[-2:]
    target = torch.randint(0, 255, (2, 3, *size), dtype=torch.uint8)
    source = {"image": g["source_image"], "mask": g["source_label"]}
    loss = module.training_step({"source": source, "target": {"image": target}}, 0)

    up = [F.interpolate(z, size, mode="bilinear", align_corners=True) for z in (g["teacher_logits_target"], logits[1])]
    confidence, labels = up[0].softmax(1).max(1)
    weight = (confidence >= 0.968).float().mean()
    assert 0 < weight < 1
    assert logged["loss_target"].item() == pytest.approx((weight * F.cross_entropy(up[1], labels)).item(), rel=1e-5)
    assert loss.item() == pytest.approx((logged["loss_source"] + logged["loss_target"]).item())
    assert torch.equal(module.student.shown[1], target / 255)


def run(pixel_weighting=UniformWeights(), **kwargs):
    module = MeanTeacher(
        pixel_weighting=pixel_weighting, network=tiny_network(), label_space="camvid", schedule=Constant(), **kwargs
    )
    Trainer(max_steps=3, **QUIET).fit(module, datamodule=tiny_data(val=None))
    return torch.cat([p.detach().flatten() for p in module.student.parameters()])


def test_parts_change_the_run_and_the_seed_decides_it():
    assert torch.equal(run(), run())
    runs = [run(), run(augmentation=None), run(pixel_weighting=BatchConfidence(0.2))]
    assert len({tuple(weights.tolist()) for weights in runs}) == 3


def test_labels_of_the_teacher_come_from_clean_images():
    module = MeanTeacher(network=tiny_network(), label_space="camvid")
    module.log_step = lambda values: None
    seen = []
    for network in (module.student, module.teacher):
        network.outputs = lambda image, outputs=network.outputs: seen.append(image) or outputs(image)
    image = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    mask = torch.zeros(2, 16, 16, dtype=torch.uint8)
    module.training_step({"source": {"image": image, "mask": mask}, "target": {"image": image}}, 0)
    assert torch.equal(seen[0], image / 255)  # source, then the teacher's, then the student's target images
    assert torch.equal(seen[1], image / 255)
    assert not torch.equal(seen[2], seen[1])
