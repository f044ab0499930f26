"""Every method starts from an earlier run by `init_from`."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback

from lightning_uda.__main__ import main
from lightning_uda.metrics import read_confusion
from tests.fixtures.choices import few_of
from tests.fixtures.stages import METHODS, write_config
from tests.fixtures.tiny import TinyDataset, TinyNetwork


class Starts(Callback):
    """Keeps the module as it is before the first step."""

    seen: dict = {}  # noqa: RUF012

    def on_train_start(self, trainer, pl_module):
        Starts.seen = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


STARTS = "--trainer.callbacks+=tests.methods.test_init_from.Starts"


def state_of(checkpoint):
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]


def network_of(state, name):
    """Tensors of a network, without what terms attached to it."""
    beginning = f"{name}."
    found = {key.removeprefix(beginning): tensor for key, tensor in state.items() if key.startswith(beginning)}
    found = {key: tensor for key, tensor in found.items() if not key.startswith("attached.")}
    assert len(found) == 9
    return found


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run folder of a source-only run of four steps, whose network began with random weights."""
    folder = tmp_path_factory.mktemp("earlier")
    last = "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.filename=last"
    main(["fit", "--config", write_config(folder, "SourceOnly"), *last.split()])
    return folder / "SourceOnly"


@pytest.fixture
def source_run(trained, tmp_path):
    """A copy of that run, which may be damaged."""
    return shutil.copytree(trained, tmp_path / "earlier")


def last_of(run):
    return run / "version_0/checkpoints/last.ckpt"


def refused(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return str(end.value.code)


@pytest.mark.parametrize("method", few_of(METHODS, "SourceOnly", "T2SDA", "SelfTraining"))
def test_every_method_starts_from_a_run_folder_and_says_so(method, source_run, tmp_path, caplog):
    Starts.seen = {}
    with caplog.at_level("INFO", logger="lightning_uda"):
        main(["fit", "--config", write_config(tmp_path, method), "--model.init_from", str(source_run), STARTS])
    source = network_of(state_of(last_of(source_run)), "student")
    assert_equal(network_of(Starts.seen, "student"), source)
    if any(name.startswith("teacher.") for name in Starts.seen):
        assert_equal(network_of(Starts.seen, "teacher"), source)
    assert "teacher.classifier.weight" in Starts.seen or method in ("SourceOnly", "AdaBN", "SelfTraining")
    attached = any(".attached." in name for name in Starts.seen)  # what a term attached starts anew
    assert f"last.ckpt: loaded 8 of {18 if attached else 8} tensors" in caplog.text
    assert "init_from isn't set" not in caplog.text
    notes = (tmp_path / method / "version_0/notes.txt").read_text()
    assert "weights at the start: those of a checkpoint of step 4, whose run began with random ones\n" in notes
    assert "random at the start" not in notes


@pytest.mark.slow
def test_a_run_that_resumes_or_only_evaluates_does_not_open_the_checkpoint(source_run, tmp_path):
    command = ["--config", write_config(tmp_path, "DACS"), "--model.init_from", str(source_run)]
    main(["fit", *command])
    shutil.rmtree(source_run)
    run = tmp_path / "DACS/version_0"
    main(["fit", *command, "--ckpt_path", str(run / "checkpoints/step=2.ckpt")])
    resumed = tmp_path / "DACS/version_1"
    assert_equal(*(state_of(each / "checkpoints/step=4.ckpt") for each in (run, resumed)))
    assert (resumed / "notes.txt").read_text() == (run / "notes.txt").read_text()
    for stage in ("validate", "test", "predict"):
        main([stage, *command, "--ckpt_path", str(run / "checkpoints/step=4.ckpt")])
    main(["validate", *command])
    assert "no such file" in refused(["fit", *command])


def test_what_the_first_of_several_runs_began_with_is_handed_on(source_run, tmp_path):
    main(["fit", "--config", write_config(tmp_path, "DACS"), "--model.init_from", str(source_run)])
    second = tmp_path / "DACS/version_0/checkpoints/step=3.ckpt"
    main(["fit", "--config", write_config(tmp_path, "AdaBN"), "--model.init_from", str(second)])
    notes = (tmp_path / "AdaBN/version_0/notes.txt").read_text()
    assert "weights at the start: those of a checkpoint of step 3, whose run began with random ones\n" in notes
    content = torch.load(second, weights_only=True)
    torch.save({**content, "random_weights": False}, second)
    main(["fit", "--config", write_config(tmp_path, "AdaBN"), "--model.init_from", str(second)])
    notes = (tmp_path / "AdaBN/version_1/notes.txt").read_text()
    assert "weights at the start: those of a checkpoint of step 3\n" in notes
    assert "random" not in notes


@pytest.mark.parametrize("evaluate", ["student", "teacher"])
def test_a_teacher_starts_alike_takes_the_students_statistics_and_is_evaluated(evaluate, source_run, tmp_path):
    ema = "--trainer.callbacks+=EMATeacher --trainer.callbacks.buffers=copy --trainer.callbacks.decay=0.5"
    ema += " --trainer.callbacks.warmup=false"
    config = write_config(tmp_path, "DACS")
    options = [*ema.split(), "--model.evaluate", evaluate, "--model.init_from", str(source_run), STARTS]
    main(["fit", "--config", config, *options, "--model.optimizer=SGD", "--model.optimizer.lr=0.1"])
    checkpoints = tmp_path / "DACS/version_0/checkpoints"
    source = network_of(state_of(last_of(source_run)), "student")
    for step in (1, 2):
        state = state_of(checkpoints / f"step={step}.ckpt")
        student, teacher = network_of(state, "student"), network_of(state, "teacher")
        before = source if step == 1 else network_of(state_of(checkpoints / "step=1.ckpt"), "teacher")
        for name in ("backbone.1.running_mean", "backbone.1.running_var"):
            assert torch.equal(teacher[name], student[name])
            assert not torch.equal(teacher[name], source[name])
        expected = (before["classifier.weight"] + student["classifier.weight"]) / 2
        torch.testing.assert_close(teacher["classifier.weight"], expected)
        assert not torch.equal(student["classifier.weight"], before["classifier.weight"])
    last = state_of(checkpoints / "step=4.ckpt")
    expected = {name: confusion_of(network_of(last, name)) for name in ("student", "teacher")}
    assert expected["student"] != expected["teacher"]
    found, _ = read_confusion(tmp_path / "DACS/version_0/confusions/val_step_000004.csv")
    assert found.tolist() == expected[evaluate]


def confusion_of(state):
    """The matrix of a network of the tiny experiments on their validation set, pixel by pixel."""
    network, dataset = TinyNetwork().eval(), TinyDataset(length=4, seed=2)
    network.load_state_dict(state)
    matrix = np.zeros((11, 11), dtype=int)
    for i in range(4):
        logits = network(torch.from_numpy(dataset.load_image(i)).permute(2, 0, 1)[None] / 255)
        found = F.interpolate(logits, (24, 32), mode="bilinear", align_corners=True).argmax(dim=1)[0].numpy()
        mask = dataset.load_label(i)
        np.add.at(matrix, (mask[mask < 255], found[mask < 255]), 1)
    return matrix.tolist()


def test_classes_of_a_subset_are_picked_by_name(source_run, tmp_path, capsys):
    classes = ["Car", "Sky", "Road"]  # 8, 0 and 3 of CamVid's eleven
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"classes": classes}))
    command = ["fit", "--config", write_config(tmp_path, "DACS"), "--data.label_space", str(tmp_path / "few.yaml")]
    Starts.seen = {}
    main([*command, "--model.network.num_classes", "3", "--model.init_from", str(source_run), STARTS])
    source = network_of(state_of(last_of(source_run)), "student")
    for name in ("student", "teacher"):
        found = network_of(Starts.seen, name)
        for part in ("classifier.weight", "classifier.bias"):
            assert torch.equal(found.pop(part), source[part][[8, 0, 3]])
        assert_equal(found, {part: tensor for part, tensor in source.items() if part in found})
    notes = (tmp_path / "DACS/version_0/notes.txt").read_text()
    assert "those of a checkpoint of step 4, of classifiers the rows of 3 of its 11 classes, whose run" in notes


def test_what_does_not_fit_is_refused_in_one_message_before_training(source_run, tmp_path):
    config = write_config(tmp_path, "DACS")
    command = ["fit", "--config", config, "--model.init_from", str(source_run)]

    assert "earlier/version_9: found no such file, and no checkpoints/last.ckpt in it" in refused(
        ["fit", "--config", config, "--model.init_from", str(source_run / "version_9")]
    )

    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"classes": ["Sky", "tram"]}))
    message = refused(
        [*command, "--data.label_space", str(tmp_path / "other.yaml"), "--model.network.num_classes", "2"]
    )
    assert "last.ckpt: trained on 11 classes ['Sky'," in message
    assert "this run has 2 ['Sky', 'tram'] (label space 'other'), of which it lacks ['tram']" in message

    network = ["--model.network", "DeepLabV2", "--model.network.backbone", "resnet10t"]
    assert "last.ckpt: loaded 0 of" in refused([*command, *network])

    for name in ("student", "teacher"):  # of which the second isn't taken
        content = torch.load(last_of(source_run), weights_only=True)
        content["state_dict"][f"{name}.classifier.bias"] = torch.full((11,), torch.nan)
        torch.save(content, tmp_path / f"{name}.ckpt")
    message = refused(["fit", "--config", config, "--model.init_from", str(tmp_path / "student.ckpt")])
    assert "student.ckpt: classifier.bias isn't finite: 11 of its 11 numbers are NaN or infinite" in message

    assert list(tmp_path.glob("DACS/*/metrics.csv")) == []
    main(["fit", "--config", config, "--model.init_from", str(tmp_path / "teacher.ckpt")])


def test_what_is_no_checkpoint_is_refused_before_a_run_has_a_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    for given, said in (("notes.txt", "can't be read safely"), ("nowhere", "found no such file")):
        command = ["fit", "--config", write_config(tmp_path, "DACS"), "--model.init_from", str(tmp_path / given)]
        assert refused(command).startswith(f"error: {tmp_path / given}: {said}")
    assert not (tmp_path / "DACS").exists()


@pytest.mark.parametrize("stage", ["fit", "validate", "predict"])
def test_a_checkpoint_that_is_not_finite_is_neither_resumed_nor_evaluated(stage, source_run, tmp_path):
    content = torch.load(source_run / "version_0/checkpoints/step=2.ckpt", weights_only=True)
    content["state_dict"]["student.backbone.1.running_var"][0] = torch.inf
    torch.save(content, tmp_path / "diverged.ckpt")
    command = [stage, "--config", write_config(tmp_path, "SourceOnly"), "--ckpt_path", str(tmp_path / "diverged.ckpt")]
    assert ": student.backbone.1.running_var isn't finite: 1 of its 8 numbers" in refused(command)
