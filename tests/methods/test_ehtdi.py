from unittest.mock import MagicMock

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_uda.callbacks import EMATeacher
from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.methods import EHTDI
from lightning_uda.mixing import ClassMask, paste_mask_of
from lightning_uda.networks.base import Classifier, Outputs
from lightning_uda.optim import Constant
from lightning_uda.step import Step
from lightning_uda.terms import ConfidentPaste, PixelContrast, PrototypeContrast
from lightning_uda.translation import RandomResizedCrop, StrongAugmentation
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET, Replay

VIEWS = ("src", "trg", "v2", "v1", "hts")
"""Forward passes of a step, in our order."""


class ReplayBoth(Replay):
    """Answers with pairs of main and auxiliary logits."""

    def forward(self, image):
        return super().forward(image)[0]

    def outputs(self, image):
        main, auxiliary = Replay.forward(self, image)
        return Outputs((Classifier(main), Classifier(auxiliary, 0.1)), (main,))


def with_void(labels):
    return labels.long().where(labels >= 0, 255)


def in_turn(*results):
    results = iter(results)
    return lambda *_: next(results)


def golden_step(g, images):
    """A step of EHTDI on the inputs of the published program's run, and the logits that its network gave."""
    logits = {view: [g[f"logits_{view}_{head}"].requires_grad_() for head in ("main", "aux")] for view in VIEWS}
    chosen = torch.zeros(2, 256, dtype=torch.bool)
    for image, classes in enumerate(g["selected_classes"].long()):
        chosen[image, classes[classes > -2] % 256] = True  # -1, void, is 255 here
    crops = [(g[f"{domain}_weak"], with_void(g[name])) for domain, name in CROPS.items()]
    module = EHTDI(
        network=Replay(),
        label_space="cityscapes",
        input_augmentation=None,
        crop=MagicMock(side_effect=crops),
        augmentation=in_turn(g["src_strong"], g["trg_strong"]),
        paste_mask=lambda mask, _: paste_mask_of(mask, chosen),
        htcm=ConfidentPaste(of="mixed_weak", image="mixed", onto="source_strong", images=images),
        procl=PrototypeContrast(images=images),
    )
    module.student = ReplayBoth(*logits.values())
    logged = {}
    module.log_step = lambda values: logged.update(values)
    size = g["src_full_label"].shape
    batch = {
        "source": {"image": torch.zeros(size[0], 3, *size[1:]), "mask": with_void(g["src_full_label"])},
        "target": {"image": torch.zeros(size[0], 3, *size[1:])},
    }
    return module, logits, logged, batch


CROPS = {"src": "src_label_crop", "trg": "trg_pseudo_label_crop"}


def test_training_step_is_the_published_programs(golden):
    g = golden("ehtdi_step")
    module, logits, logged, batch = golden_step(g, "first")
    loss = module.training_step(batch, 0)
    loss.backward()

    mixed, weak, htcm = (module.last_views[name] for name in ("mixed", "mixed_weak", "htcm"))
    assert torch.equal(mixed.opacity, g["cmix_mask"])
    assert torch.allclose(mixed.image, g["cmix_strong"], rtol=0, atol=1e-4)
    assert torch.allclose(weak.image, g["cmix_weak"], rtol=0, atol=1e-4)
    assert torch.equal(mixed.labels[0].mask, with_void(g["cmix_label"]))
    assert torch.allclose(htcm.image, g["htcm_image"], rtol=0, atol=1e-4)
    assert torch.equal(htcm.labels[0].mask, with_void(g["htcm_label"]))
    source = g["loss_ce_src_main"] + 0.1 * g["loss_ce_src_aux"]
    st = 0.1 * g["loss_ce_st"] + 0.01 * g["loss_ce_aux_st"]
    for name, expected in (
        ("source", source),
        ("mixed", st),
        ("htcm", 0.1 * g["loss_ce_hts_sample0"]),
        ("procl", 0.01 * g["loss_procl_sample0"] / 2),
        ("picl", 0.01 * g["loss_picl"].mean()),
        ("total", g["loss_total"]),
    ):
        found = loss if name == "total" else logged[f"loss_{name}"]
        assert found.item() == pytest.approx(expected.item(), abs=2e-5), name
    for view in ("src", "v1", "v2", "hts"):
        for head, tensor in zip(("main", "aux"), logits[view], strict=True):
            found = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            assert torch.allclose(found, g[f"grad_{view}_{head}"].float(), rtol=1e-5, atol=1e-6), (view, head)
    assert logits["hts"][0].grad[1].count_nonzero() == 0
    assert logits["trg"][0].grad is None


def test_all_images_take_part_unless_the_published_program_is_asked_for(golden):
    g = golden("ehtdi_step")
    module, logits, logged, batch = golden_step(g, "all")
    module.training_step(batch, 0).backward()
    full = torch.nn.functional.interpolate(
        g["logits_hts_main"], g["htcm_label"].shape[-2:], mode="bilinear", align_corners=True
    )
    expected = torch.nn.functional.cross_entropy(full, with_void(g["htcm_label"]), ignore_index=255)
    assert logged["loss_htcm"].item() == pytest.approx(0.1 * expected.item(), rel=1e-5)
    assert logged["loss_htcm"].item() != pytest.approx(0.1 * g["loss_ce_hts_sample0"].item(), rel=1e-3)
    assert logits["hts"][0].grad[1].abs().max() > 0
    assert logged["loss_picl"].item() == pytest.approx(0.01 * g["loss_picl"].mean().item(), abs=2e-5)
    for name in ("src", "hts"):
        assert torch.isfinite(logits[name][0].grad).all()
    for head, tensor in zip(("main", "aux"), logits["src"], strict=True):
        assert torch.allclose(tensor.grad, g[f"grad_src_{head}"].float(), rtol=1e-5, atol=1e-6)


def ehtdi(**options):
    options = {"crop": RandomResizedCrop((16, 16)), "paste_mask": ClassMask(), "schedule": Constant(), **options}
    return EHTDI(network=tiny_network(), label_space="camvid", **options)


def run(seed=0, steps=3, data=None, **options):
    module = ehtdi(seed=seed, **options)
    trainer = Trainer(max_steps=steps, log_every_n_steps=1, **QUIET)
    trainer.fit(module, datamodule=data or tiny_data(val=None))
    return torch.cat([p.detach().flatten() for p in module.student.parameters()]), trainer.logged_metrics, module


@pytest.mark.parametrize("crop", [None, RandomResizedCrop(None)])
def test_streams_of_different_sizes_are_refused_unless_crops_bring_them_to_one(crop):
    data = tiny_data(val=None, target_transform=TrainTransform(crop=(12, 16)))
    with pytest.raises(DatasetError, match=r"EHTDI mixes images of its streams, so they must have one size: found"):
        run(steps=1, data=data, crop=crop)
    run(steps=1, data=data)


def test_the_seed_decides_the_run():
    assert torch.equal(run()[0], run()[0])
    assert not torch.equal(run()[0], run(seed=1)[0])


LOW = 0.05
"""A confidence that the tiny network reaches."""


def htcm(**options):
    return ConfidentPaste(**{"of": "mixed_weak", "image": "mixed", "onto": "source_strong", "tau": LOW, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"htcm": None},
        {"procl": None},
        {"picl": None},
        {"htcm": htcm()},
        {"htcm": htcm(of="target_weak", image="target_strong")},
        {"htcm": htcm(of="target_weak", image="mixed", pasted_before="united")},
        {"htcm": htcm(pasted_before="truth")},
        {"procl": PrototypeContrast(tau=LOW)},
        {
            "htcm": htcm(unjittered=("mixed_weak", "source_weak")),
            "procl": PrototypeContrast(between=("htcm", "htcm_weak"), weight=0.1),
            "picl": PixelContrast(between=("htcm", "htcm_weak")),
        },
        {
            "second_augmentation": StrongAugmentation(jitter_p=1.0),
            "picl": PixelContrast(between=("mixed", "mixed_second")),
        },
        {"mixed_weight": 0.2},
        {"augmentation": None},
    ],
)
def test_parts_change_the_run_and_its_losses_are_finite(options):
    weights, logged, _ = run(**options)
    assert not torch.equal(weights, run()[0])
    assert all(value.isfinite() for value in logged.values())
    names = {"source", "mixed", "htcm", "procl", "picl"} - {name for name, part in options.items() if part is None}
    assert {name.removeprefix("train/loss_") for name in logged if name.startswith("train/loss_")} == names


@pytest.mark.parametrize("labels_of", ["student", "teacher"])
def test_whole_target_images_are_labelled_by_the_network_that_is_asked_for(labels_of):
    module = ehtdi(pseudo_labels_of=labels_of)
    module.teacher.load_state_dict(tiny_network(seed=1).state_dict())
    image = torch.rand(2, 3, 24, 32)
    logits = getattr(module, labels_of)(image)
    expected = torch.nn.functional.interpolate(logits, (24, 32), mode="bilinear", align_corners=True).argmax(1)
    step = Step({}, torch.Generator(), module.student, teacher=module.teacher)
    assert torch.equal(module.labelled(step, image), expected)
    assert expected.unique().numel() > 1


def test_without_a_mix_the_confident_paste_takes_target_crops():
    only = {"paste_mask": None, "procl": None, "picl": None}
    _, logged, _ = run(htcm=htcm(of="target_weak", image="target_strong"), **only)
    assert {name for name in logged if "loss_" in name} == {"train/loss_source", "train/loss_htcm"}
    with pytest.raises(ValueError, match="found no view 'mixed'"):
        run(htcm=htcm(), **only)


def test_the_weak_mix_is_shown_only_where_it_is_needed():
    def views(**options):
        return set(run(steps=1, **options)[2].student_saw)

    def student_saw(module, *_):
        module.student_saw = set(module.last_views)

    EHTDI.on_train_batch_end, before = student_saw, EHTDI.on_train_batch_end
    try:
        assert views(htcm=None, procl=None, picl=None) == {"source", "mixed"}
        assert views(procl=None, picl=None) == {"source", "mixed", "mixed_weak", "htcm"}
        assert views(htcm=None) == {"source", "mixed", "mixed_weak"}
    finally:
        EHTDI.on_train_batch_end = before


def test_the_teacher_is_for_evaluation_and_follows_slowly():
    _, _, module = run()
    (callback,) = (each for each in module.trainer.callbacks if isinstance(each, EMATeacher))
    assert (callback.decay, callback.buffers) == (0.999, "copy")
    assert module.evaluated_network() is module.teacher
    for mine, students in zip(module.teacher.buffers(), module.student.buffers(), strict=True):
        assert torch.equal(mine, students)


def batch_of(count, label=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (2, count, 3, 24, 32), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 11, (count, 24, 32), dtype=torch.uint8, generator=generator)
    mask = mask if label is None else torch.full_like(mask, label)
    return {"source": {"image": image[0], "mask": mask}, "target": {"image": image[1]}}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("label", [None, 4, 255])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_degenerate_batches_give_finite_losses_that_are_right_by_hand(count, label, tau):
    module = ehtdi(htcm=htcm(tau=tau), procl=PrototypeContrast(tau=tau), paste_mask=ClassMask(include_ignore=False))
    logged = {}
    module.log_step = lambda values: logged.update(values)
    module.training_step(batch_of(count, label), 0).backward()
    assert all(logged[name].isfinite() for name in logged if name.startswith("loss"))
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.student.parameters())
    assert logged["htcm_pixels"]().item() == 1 - tau  # tau = 0 takes every pixel, tau = 1 none
    if label == 255:
        assert logged["loss_source"].item() == 0
        if tau == 1:  # nothing but void is taught there, and no pixel counts for a class
            assert logged["loss_htcm"].item() == 0 == logged["loss_procl"].item()
    if label == 4 and tau == 1:  # one class alone has a prototype
        assert logged["loss_procl"].item() == pytest.approx(0, abs=1e-8)
