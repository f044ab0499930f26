import json
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import lightning_uda.self_training.label_folder as label_folder
from lightning_uda.callbacks import SelfTrainingRounds
from lightning_uda.data.datamodule import EvaluationImages
from lightning_uda.data.dataset import DatasetError
from lightning_uda.inference import MultiScale, WholeImage
from lightning_uda.methods import SelfTraining
from lightning_uda.self_training.losses import HardLabels
from lightning_uda.self_training.mining import RareClassMining
from lightning_uda.self_training.portion import PortionPolicy, SourcePerTarget
from lightning_uda.self_training.scaled_crop import ScaledCrop
from lightning_uda.self_training.spatial_prior import SpatialPrior
from lightning_uda.self_training.thresholds import LogitHistogram, RadixSelect
from tests.fixtures.tiny import TinyDataset, TinyNetwork, tiny_data, tiny_network

ROOT = Path(__file__).parents[2]
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
CROPS = {"source_transform": ScaledCrop((16, 16)), "target_transform": ScaledCrop((16, 16))}
STEPS = 12
"""Of a round of 4 target and 4 source images shown three times, in batches of 2."""


def data_of(**kwargs):
    target = kwargs.pop("target", TinyDataset(length=4, seed=2, has_labels=False))
    return tiny_data(target=target, **{"val": None, **CROPS, **kwargs})


def module_of(network=None, lr=0.05, **rounds):
    settings = {"num_rounds": 2, "epochs_per_round": 3, "source_images": SourcePerTarget(1.0), **rounds}
    return SelfTraining(
        network=tiny_network() if network is None else network,
        label_space="camvid",
        rounds=SelfTrainingRounds(**settings),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9),
    )


def fit(module, data, folder=None, ckpt_path=None, **kwargs):
    logger = CSVLogger(folder, name="", version="log") if folder else False
    settings = {"logger": logger, "enable_checkpointing": False, "log_every_n_steps": 1, **QUIET, **kwargs}
    trainer = Trainer(**settings)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def labels_in(folder, number):
    return {path.stem: np.asarray(Image.open(path)) for path in (folder / f"log/rounds/round_{number}").glob("*.png")}


def record_of(folder, number):
    return json.loads((folder / f"log/rounds/round_{number}/round.json").read_text())


def expected_labels(network, dataset, portion, scale=0.9):
    """Step a of the algorithm, written naively: lists, sorting, one class after the other."""
    policy = MultiScale(scales=(scale,))
    network.eval()
    with torch.no_grad():
        probs = torch.cat(
            [
                policy(network, torch.from_numpy(dataset.load_image(i)).permute(2, 0, 1)[None] / 255, dataset.size)
                for i in range(len(dataset))
            ]
        )
    confidence, classes = probs.max(dim=1)
    thresholds = torch.full((probs.shape[1],), torch.inf)
    for c in range(probs.shape[1]):
        ranked = confidence[classes == c].sort(descending=True).values
        if rank := int(Decimal(portion) * len(ranked)):
            thresholds[c] = ranked[rank - 1]
    ratios, labels = (probs / thresholds.view(1, -1, 1, 1)).max(dim=1)
    return torch.where(ratios >= 1, labels, 255).byte().numpy(), thresholds, classes


class Weights(Callback):
    """Keeps the student's weights at some steps, and the optimiser's momenta before the first step of a round."""

    def __init__(self):
        self.at = {}
        self.momenta = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.at[trainer.global_step] = {k: v.clone() for k, v in pl_module.student.state_dict().items()}
        self.momenta[trainer.global_step] = len(trainer.optimizers[0].state)


def test_labels_of_each_round_are_those_of_the_algorithm(tmp_path):
    data, weights = data_of(), Weights()
    fit(module_of(), data, tmp_path, callbacks=[weights])
    for number, portion in ((1, "0.20"), (2, "0.25")):
        network = tiny_network()
        network.load_state_dict(weights.at[STEPS * (number - 1)])
        expected, thresholds, classes = expected_labels(network, data.target, portion)
        found, record = labels_in(tmp_path, number), record_of(tmp_path, number)
        assert sorted(found) == [data.target.name(i) for i in range(4)]
        for i in range(4):
            np.testing.assert_array_equal(found[data.target.name(i)], expected[i])
        assert [t if t is not None else torch.inf for t in record["thresholds"]] == thresholds.tolist()
        assert record["predicted"] == torch.bincount(classes.view(-1), minlength=11).tolist()
        assert record["labelled"] == np.bincount(expected.ravel(), minlength=256)[:11].tolist()
        assert record["pixels"] == expected.size
        assert record["portion"] == portion
        assert 0 < (expected != 255).mean() < 0.5
    assert not list((tmp_path / "log/rounds").glob("*/logits_*"))


def test_a_round_starts_with_the_weights_of_the_last_and_a_fresh_optimiser():
    weights = Weights()
    trainer = fit(module_of(), data_of(), callbacks=[weights])
    assert trainer.global_step == 2 * STEPS
    assert sorted(weights.at) == list(range(2 * STEPS))
    assert [step for step, count in weights.momenta.items() if count == 0] == [0, STEPS]
    assert not torch.equal(weights.at[STEPS]["classifier.weight"], weights.at[0]["classifier.weight"])


def test_learning_rate_falls_from_round_to_round():
    rates = {}

    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates[trainer.global_step] = [group["lr"] for group in trainer.optimizers[0].param_groups]

    fit(module_of(num_rounds=3, epochs_per_round=1, lr_round_factor=0.5), data_of(), callbacks=[Rates()])
    assert [rates[step][0] for step in (0, 3, 4, 7, 8, 11)] == pytest.approx([0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125])
    assert rates[4][1] == pytest.approx(0.25)


def test_what_is_logged(tmp_path):
    target = TinyDataset(length=4, seed=2)
    fit(module_of(accuracy=True), data_of(target=target), tmp_path)
    header, *lines = (tmp_path / "log/metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    rounds = [row for row in rows if row["rounds/round"]]
    assert [row["step"] for row in rounds] == ["0", str(STEPS)]
    assert [float(row["rounds/portion"]) for row in rounds] == [20, 25]
    found, record = labels_in(tmp_path, 2), record_of(tmp_path, 2)
    assert float(rounds[1]["rounds/labelled"]) == pytest.approx(100 * sum(record["labelled"]) / record["pixels"])
    truth = np.stack([target.load_label(i) for i in range(4)])
    labels = np.stack([found[target.name(i)] for i in range(4)])
    judged = 0
    for c, name in enumerate(record["classes"]):
        known = truth[labels == c]
        known = known[known != 255]
        if len(known):
            judged += 1
            assert float(rounds[1][f"rounds/accuracy_{name}"]) == pytest.approx(100 * (known == c).mean())
        else:
            assert record["accuracy"][c] is None
    assert judged


@pytest.mark.parametrize(
    ("workers", "steps"), [(0, (5, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS - 1)), (2, (STEPS - 1,))]
)
def test_a_run_resumed_within_or_between_rounds_is_bit_identical(tmp_path, workers, steps):
    data = {"val": TinyDataset(length=2, seed=3), "num_workers": 0}
    every_step = ModelCheckpoint(tmp_path / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    each_round = ModelCheckpoint(tmp_path / "rounds", filename="{step}", save_top_k=-1, every_n_epochs=1)
    settings = {"enable_checkpointing": True, "callbacks": [every_step, each_round]}
    whole = module_of()
    fit(whole, data_of(**data), tmp_path / "whole", **settings)
    assert {path.name for path in (tmp_path / "rounds").iterdir()} == {f"step={n * STEPS}.ckpt" for n in (1, 2)}
    checkpoints = [tmp_path / f"steps/step={step}.ckpt" for step in steps]
    for checkpoint in [*checkpoints, tmp_path / f"rounds/step={STEPS}.ckpt"]:
        resumed = module_of(network=tiny_network(seed=9))
        folder = tmp_path / f"from_{checkpoint.parent.name}_{checkpoint.stem}"
        trainer = fit(resumed, data_of(**{**data, "num_workers": workers}), folder, checkpoint)
        assert trainer.global_step == 2 * STEPS
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), (checkpoint, name)


def test_labels_that_were_complete_are_taken_up(tmp_path, monkeypatch):
    checkpoint = ModelCheckpoint(tmp_path / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    settings = {"enable_checkpointing": True, "callbacks": [checkpoint]}
    fit(module_of(), data_of(), tmp_path / "whole", **settings)
    path = str(tmp_path / f"steps/step={STEPS}.ckpt")

    def refuse(*args):
        raise AssertionError("labels were made again")

    with monkeypatch.context() as patch:
        patch.setattr(SelfTrainingRounds, "_write_labels", refuse)
        fit(module_of(), data_of(), tmp_path / "again", path)
        with pytest.raises(AssertionError, match="made again"):
            fit(module_of(portions=PortionPolicy("0.30")), data_of(), tmp_path / "other", path)

        strict = module_of()
        strict.loss = HardLabels(strict=True)
        with pytest.raises(AssertionError, match="made again"):
            fit(strict, data_of(), tmp_path / "strict", path)

    # not complete: a crash while labels were written
    (tmp_path / "whole/log/rounds/round_2/round.json").unlink()
    before = labels_in(tmp_path / "whole", 2)
    fit(module_of(), data_of(), tmp_path / "crashed", path)
    for name, label in labels_in(tmp_path / "crashed", 2).items():
        np.testing.assert_array_equal(label, before[name])

    # gone, but needed
    shutil.rmtree(tmp_path / "whole/log/rounds")
    message = r"resumes within round 2, whose pseudo-labels can't be used. They are gone: expected them in .*round_2"
    with pytest.raises(DatasetError, match=message):
        fit(module_of(), data_of(), tmp_path / "lost", str(tmp_path / f"steps/step={STEPS + 1}.ckpt"))


def test_a_round_that_would_change_halfway_is_refused(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(module_of(), data_of(), tmp_path / "whole", enable_checkpointing=True, callbacks=[checkpoint])
    with pytest.raises(ValueError, match=r"steps \[0, 12, 24\], those of this run at \[0, 24, 48\]"):
        fit(module_of(), data_of(batch_size=1), tmp_path / "other", str(tmp_path / f"steps/step={STEPS + 2}.ckpt"))
    trainer = fit(module_of(num_rounds=3), data_of(), tmp_path / "longer", str(tmp_path / f"steps/step={STEPS}.ckpt"))
    assert trainer.global_step == 3 * STEPS


def test_a_record_never_stands_beside_labels_of_other_weights(tmp_path, monkeypatch):
    fit(module_of(), data_of(), tmp_path)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(label_folder.LabelFolder, "write", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(module_of(network=tiny_network(seed=9)), data_of(), tmp_path)
    assert not (tmp_path / "log/rounds/round_1/round.json").exists()


def test_predicted_shares_are_of_all_pixels_whatever_the_stride(tmp_path):
    for name, stride in (("all", 1), ("fourth", 4)):
        fit(module_of(num_rounds=1, thresholds=RadixSelect(conf_stride=stride)), data_of(), tmp_path / name)
    first, second = record_of(tmp_path / "all", 1), record_of(tmp_path / "fourth", 1)
    assert first["predicted"] == second["predicted"]
    assert sum(first["predicted"]) == first["pixels"]


def test_a_full_disk_leaves_earlier_rounds_whole(tmp_path, monkeypatch):
    replace, written = label_folder.replace_file, []

    def fail_late(path, write):
        written.append(path)
        if len(written) > 7:
            raise OSError(28, "No space left on device")
        replace(path, write)

    monkeypatch.setattr(label_folder, "replace_file", fail_late)
    with pytest.raises(
        DatasetError, match=r"round_2: the pseudo-labels of round 2 can't be written.*No space left.*resume"
    ):
        fit(module_of(), data_of(), tmp_path)
    assert len(labels_in(tmp_path, 1)) == 4
    assert record_of(tmp_path, 1)["images"] == 4
    assert not (tmp_path / "log/rounds/round_2/round.json").exists()
    assert not list((tmp_path / "log/rounds/round_2").glob("logits_*"))


def test_a_saturated_class_gets_labels_and_one_never_predicted_gets_none(tmp_path):
    network = tiny_network(batch_norm="eval")
    with torch.no_grad():
        network.classifier.bias[4] = -200.0
        network.classifier.weight.mul_(1000)
    module = module_of(network, lr=0.0, num_rounds=1)
    fit(module, data_of(), tmp_path)
    record = record_of(tmp_path, 1)
    saturated = [c for c, threshold in enumerate(record["thresholds"]) if threshold == 1.0]
    assert saturated
    for c in saturated:
        assert record["labelled"][c] >= int(0.2 * record["predicted"][c]) > 0
    assert record["predicted"][4] == record["labelled"][4] == 0
    assert record["thresholds"][4] is None
    assert all(torch.isfinite(parameter).all() for parameter in module.student.parameters())


def test_one_threshold_for_all_classes_loses_rare_ones(tmp_path):
    network = tiny_network(batch_norm="eval")
    fit(module_of(network, lr=0.0, num_rounds=1, thresholds=RadixSelect(scope="global")), data_of(), tmp_path / "st")
    fit(module_of(network, lr=0.0, num_rounds=1), data_of(), tmp_path / "cbst")
    st, cbst = record_of(tmp_path / "st", 1), record_of(tmp_path / "cbst", 1)
    assert len(set(st["thresholds"])) == 1
    assert st["predicted"] == cbst["predicted"]
    assert sum(st["labelled"]) == pytest.approx(0.2 * st["pixels"], rel=0.01)
    assert sum(n > 0 for n in st["labelled"]) <= sum(n > 0 for n in cbst["labelled"])


NOTHING = PortionPolicy("0", "0", "0")


@pytest.mark.parametrize("scope", ["class", "global"])
@pytest.mark.parametrize("prior", [None, SpatialPrior(size=(24, 32), radius=2, sigma=1.0)])
def test_a_portion_of_0_labels_no_pixel(tmp_path, scope, prior):
    thresholds = RadixSelect(scope=scope, min_rank=1)
    module = module_of(portions=NOTHING, thresholds=thresholds, spatial_prior=prior)
    trainer = fit(module, data_of(cache_dir=str(tmp_path / "cache")), tmp_path)
    assert trainer.global_step == 2 * STEPS
    for number in (1, 2):
        record = record_of(tmp_path, number)
        assert all((label == 255).all() for label in labels_in(tmp_path, number).values())
        assert (record["labelled"], record["thresholds"]) == ([0] * 11, [None] * 11)
        assert sum(record["predicted"]) == record["pixels"] == 4 * 24 * 32
    assert all(torch.isfinite(tensor).all() for tensor in module.student.state_dict().values())


def student_after(seed, **settings):
    """The student after rounds without labels on the target images of a seed."""
    module = module_of(tiny_network(**settings), portions=NOTHING, mining=None)
    fit(module, data_of(target=TinyDataset(length=4, seed=seed, has_labels=False)))
    return module.student.state_dict()


def test_unlabelled_target_images_change_the_network_by_batchnorm_in_train_mode_alone():
    train, other_train = (student_after(seed) for seed in (2, 9))
    assert not torch.equal(train["backbone.1.running_mean"], other_train["backbone.1.running_mean"])
    assert not torch.equal(train["classifier.weight"], other_train["classifier.weight"])
    frozen, other_frozen = (student_after(seed, batch_norm="frozen_statistics") for seed in (2, 9))
    assert all(torch.equal(tensor, other_frozen[name]) for name, tensor in frozen.items())
    assert not torch.equal(frozen["classifier.weight"], tiny_network().classifier.weight)


def test_a_histogram_gives_nearly_the_same_labels(tmp_path):
    network = tiny_network(batch_norm="eval")
    fit(module_of(network, lr=0.0, num_rounds=1), data_of(), tmp_path / "exact")
    fit(module_of(network, lr=0.0, num_rounds=1, thresholds=LogitHistogram()), data_of(), tmp_path / "histogram")
    exact, histogram = labels_in(tmp_path / "exact", 1), labels_in(tmp_path / "histogram", 1)
    assert np.mean([(exact[name] != histogram[name]).mean() for name in exact]) < 0.01


def test_a_spatial_prior_weighs_the_scores(tmp_path):
    prior = SpatialPrior(size=(24, 32), radius=2, sigma=1.0)
    data = data_of(cache_dir=str(tmp_path / "cache"))
    fit(module_of(num_rounds=1, spatial_prior=prior), data, tmp_path)
    record = record_of(tmp_path, 1)
    assert sum(record["labelled"][3:]) == 0  # the source has classes 0, 1, 2 alone
    assert sum(record["labelled"][:3]) > 0
    assert (tmp_path / "log/rounds/prior.png").is_file()
    with pytest.raises(ValueError, match=r"LogitHistogram with a spatial prior.*RadixSelect"):
        SelfTrainingRounds(spatial_prior=prior, thresholds=LogitHistogram())


def test_a_subset_of_balanced_images_is_chosen_once(tmp_path):
    data, seen = data_of(target=TinyDataset(length=6, seed=2, has_labels=False)), Weights()
    module = module_of(target_subset=3)
    trainer = fit(module, data, tmp_path, callbacks=[seen])
    first, second = record_of(tmp_path, 1), record_of(tmp_path, 2)
    assert first["target_images"] == second["target_images"]
    network = tiny_network()
    network.load_state_dict(seen.at[0])
    network.eval()
    scores = []
    for i in range(6):
        image = torch.from_numpy(data.target.load_image(i)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            confidence, classes = MultiScale(scales=(0.9,))(network, image, (24, 32)).max(dim=1)
        scores.append(np.mean([confidence[classes == c].mean().item() for c in classes.unique()]))
    assert first["target_images"] == sorted(np.argsort(scores)[::-1][:3].tolist())
    assert sorted(labels_in(tmp_path, 1)) == [data.target.name(i) for i in first["target_images"]]
    assert trainer.global_step == 2 * 9  # 3 target and 3 source images, three times, by 2


def test_files_keep_their_size_where_images_are_resized(tmp_path):
    transform = ScaledCrop((16, 16), resize=(20, 26))
    data = data_of(target_transform=transform, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    fit(module_of(num_rounds=1), data, tmp_path)
    assert {label.shape for label in labels_in(tmp_path, 1).values()} == {(24, 32)}
    plain = data_of(target_transform=transform)
    fit(module_of(num_rounds=1), plain, tmp_path / "plain")
    for name, label in labels_in(tmp_path, 1).items():
        np.testing.assert_array_equal(label, labels_in(tmp_path / "plain", 1)[name])


def test_labels_without_a_run_folder_are_temporary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = module_of(num_rounds=1)
    fit(module, data_of())
    assert not any(tmp_path.iterdir())
    assert not module.rounds._folder.exists()


def test_target_labels_are_opened_for_the_accuracy_alone():
    fit(module_of(), data_of(target=TinyDataset(length=4, seed=2, has_labels=False)))  # opening one would raise
    with pytest.raises(DatasetError, match="accuracy=true needs labels"):
        fit(module_of(accuracy=True), data_of())


def test_bad_data_and_settings_are_refused_before_training():
    with pytest.raises(DatasetError, match=r"data\.target is empty"):
        fit(module_of(), data_of(target=TinyDataset(length=0), check=False))
    with pytest.raises(DatasetError, match=r"data\.target"):
        fit(module_of(), data_of(target=None))
    with pytest.raises(ValueError, match=r"found a TrainTransform.*expected a ScaledCrop"):
        fit(module_of(), tiny_data(val=None))
    with pytest.raises(ValueError, match=r"give 16 x 16 for the source, 8 x 8 for the target .*the same `crop`"):
        fit(module_of(), data_of(target_transform=ScaledCrop((8, 8))))
    with pytest.raises(ValueError, match=r"max_steps: found 500, but the 2 rounds end after 24 steps"):
        fit(module_of(), data_of(), max_steps=500)
    with pytest.raises(ValueError, match="num_rounds: found 0"):
        SelfTrainingRounds(num_rounds=0)


def test_training_may_end_early(caplog):
    trainer = fit(module_of(), data_of(), max_steps=14)
    assert trainer.global_step == 14
    assert "training ends in round 2 of 2, whose last step is 24" in caplog.text


def test_mining_looks_for_rarely_predicted_classes():
    seen = []

    class Mining(RareClassMining):
        def transform(self, base, priority, fallback):
            seen.append((priority, fallback))
            return super().transform(base, priority, fallback)

    module = module_of(num_rounds=1, mining=Mining())
    fit(module, data_of())
    record = json.loads(json.dumps(seen[-1]))
    assert record[0]
    assert len(record[1]) == 3
    assert seen[0] == ((), ())  # the check before training
    fit(module_of(num_rounds=1, mining=None), tiny_data(val=None))  # plain crops will do without


@pytest.mark.parametrize("policy", [WholeImage(), MultiScale(scales=(0.5, 1.0), flip=False)])
def test_any_inference_policy_labels(policy, tmp_path):
    fit(module_of(num_rounds=1, inference=policy), data_of(), tmp_path)
    assert len(labels_in(tmp_path, 1)) == 4


@pytest.fixture
def whole(tmp_path):
    """A run folder of two rounds, with a checkpoint of every step."""
    folder = tmp_path / "whole"
    module = module_of()
    fit(module, data_of(), folder, enable_checkpointing=True, callbacks=[each_step_in(folder)])
    return folder, module


def each_step_in(folder):
    return ModelCheckpoint(folder / "log/checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)


def checkpoint_of(folder, step):
    return str(folder / f"log/checkpoints/step={step}.ckpt")


def test_a_moved_run_folder_resumes(tmp_path, whole):
    folder, module = whole
    moved = folder.rename(tmp_path / "moved")
    resumed = module_of(network=tiny_network(seed=9))
    settings = {"enable_checkpointing": True, "callbacks": [each_step_in(tmp_path / "second")], "max_steps": 5}
    fit(resumed, data_of(), tmp_path / "second", checkpoint_of(moved, 3), **settings)
    shutil.rmtree(moved)
    again = (tmp_path / "second").rename(tmp_path / "third")
    resumed = module_of(network=tiny_network(seed=9))
    fit(resumed, data_of(), tmp_path / "fourth", checkpoint_of(again, 5))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_target_set_of_other_images_is_refused_though_it_is_as_long(tmp_path, whole):
    folder, _ = whole
    other = TinyDataset(length=4, seed=7, has_labels=False)
    with pytest.raises(DatasetError, match=r"resumes within round 1.*round_1: these are labels of other images than"):
        fit(module_of(), data_of(target=other), tmp_path / "other", checkpoint_of(folder, 3))
    assert fit(module_of(), data_of(), tmp_path / "same", checkpoint_of(folder, 3)).global_step == 2 * STEPS


def test_a_label_file_that_is_gone_is_made_anew_between_rounds_and_named_within_one(tmp_path, whole, caplog):
    folder, module = whole
    before = labels_in(folder, 2)
    name = sorted(before)[1]
    (folder / f"log/rounds/round_2/{name}.png").unlink()
    with pytest.raises(DatasetError, match=rf"within round 2.*1 label files are missing, first {name}\.png"):
        fit(module_of(), data_of(), tmp_path / "within", checkpoint_of(folder, STEPS + 1))
    resumed = module_of(network=tiny_network(seed=9))
    fit(resumed, data_of(), tmp_path / "between", checkpoint_of(folder, STEPS))
    assert "labels of round 2 are made anew" in caplog.text
    np.testing.assert_array_equal(labels_in(tmp_path / "between", 2)[name], before[name])
    assert torch.equal(resumed.student.classifier.weight, module.student.classifier.weight)


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"round": 2}', ""])
def test_a_damaged_record_is_named(tmp_path, whole, caplog, content):
    folder, _ = whole
    (folder / "log/rounds/round_2/round.json").write_text(content)
    with pytest.raises(DatasetError, match=r"within round 2.*round_2/round\.json: "):
        fit(module_of(), data_of(), tmp_path / "within", checkpoint_of(folder, STEPS + 1))
    fit(module_of(), data_of(), tmp_path / "between", checkpoint_of(folder, STEPS))
    assert "made anew" in caplog.text
    assert record_of(tmp_path / "between", 2)["images"] == 4


def test_a_finished_run_says_so(tmp_path, whole, caplog):
    folder, _ = whole
    shutil.rmtree(folder / "log/rounds")  # not needed any more
    trainer = fit(module_of(), data_of(), tmp_path / "again", checkpoint_of(folder, 2 * STEPS))
    assert trainer.global_step == 2 * STEPS
    assert "the run is finished: the checkpoint is of step 24, the last one" in caplog.text
    assert not list((tmp_path / "again").rglob("*.png"))


def test_an_image_is_decoded_and_put_through_the_network_once_a_round(monkeypatch):
    decoded, passes = [], []
    read, forward = EvaluationImages.__getitem__, TinyNetwork.forward

    def count(self, index):
        decoded.append(index)
        return read(self, index)

    def count_pass(self, image):
        passes.append(self.training)
        return forward(self, image)

    monkeypatch.setattr(EvaluationImages, "__getitem__", count)
    monkeypatch.setattr(TinyNetwork, "forward", count_pass)
    fit(module_of(target_subset=3), data_of())
    assert decoded[:4] == [0, 1, 2, 3]
    assert len(decoded) == 4 + 3  # the second round labels the three chosen ones alone
    assert passes.count(False) == 2 * (4 + 3)  # mirrored too


def test_a_full_disk_is_seen_before_the_second_image(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_uda.self_training.stored_logits.free_bytes", lambda folder: 5000)
    message = r"round 1 can't be written.*found 0.0 MB free.*logits of 4 images.*Make room"
    with pytest.raises(DatasetError, match=message):
        fit(module_of(), data_of(), tmp_path)
    assert not labels_in(tmp_path, 1)


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_uda.self_training.label_folder import LabelFolder
from tests.self_training.test_rounds import data_of, fit, module_of

LabelFolder.write = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
fit(module_of(), data_of(), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_logits_behind(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, timeout=120)
    assert killed.returncode == -9
    assert (tmp_path / "log/rounds/round_1").is_dir()
    fit(module_of(), data_of(), tmp_path)
    left = {path.name for path in (tmp_path / "log/rounds").rglob("*") if path.suffix != ".png"}
    assert left == {"round_1", "round_2", "round.json"}


def test_one_target_image_will_do():
    trainer = fit(module_of(num_rounds=1), data_of(target=TinyDataset(length=1, seed=2, has_labels=False)))
    assert trainer.global_step == 3  # one image of each domain, three times, by 2


def test_thresholds_are_float32_whatever_the_precision(tmp_path):
    module, given = module_of(num_rounds=1), []
    use = module.use_thresholds
    module.use_thresholds = lambda thresholds: (given.append(thresholds), use(thresholds))
    fit(module, data_of(), tmp_path, precision="bf16-true")
    (thresholds,) = given
    assert thresholds.dtype == torch.float32
    values = [value for value in record_of(tmp_path, 1)["thresholds"] if value is not None]
    assert values
    assert thresholds[thresholds.isfinite()].tolist() == values
    assert any(value != torch.tensor(value).bfloat16().item() for value in values)


def test_progress_is_shown_by_whichever_callback_can():
    shown = []

    class Bar(Callback):
        def follow(self, items, title, total):
            shown.append((title, total))
            yield from items

    fit(module_of(num_rounds=1), data_of(), callbacks=[Bar()])
    assert shown == [("threshold", 4), ("threshold", 4), ("labelling", 4)]
