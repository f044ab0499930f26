"""Bad input: each number that enters by a constructor, and generated configs that nothing can train by."""

import copy
import importlib
import inspect
import math
import os
import pkgutil
import typing
from collections import Counter

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn

import lightning_uda
from lightning_uda.__main__ import main
from lightning_uda.callbacks import ImagePanels
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.datasets import FolderDataset
from lightning_uda.label_spaces import get_label_space
from lightning_uda.methods import DSP
from lightning_uda.networks import EncoderDecoder
from lightning_uda.report import load_runs
from lightning_uda.self_training import RadixSelect
from lightning_uda.translation import ColorJitter
from tests.fixtures.bad_configs import (
    MINICITY,
    NOT_FITTED,
    NUMBERS,
    OTHERS,
    WRITTEN_OUT,
    changed,
    exchangeable,
    fitting,
    leaves,
    on_minicity,
    outcome_of,
    parts,
    value_at,
    written_out,
)
from tests.test_configs import make_benchmarks, make_camvid


def classes():
    """Every class of the package."""
    for found in pkgutil.walk_packages(lightning_uda.__path__, "lightning_uda."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            yield from (
                kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == found.name
            )


def declared():
    """Each constructor of the package that declares ranges, with an argument and its range."""
    for kind in classes():
        for name, allowed in getattr(vars(kind).get("__init__"), "ranges", {}).items():
            yield pytest.param(kind, name, allowed, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize(("kind", "name", "allowed"), declared())
def test_numbers_outside_of_their_range_are_refused_from_python_too(kind, name, allowed):
    beyond = (allowed.lowest - 1, allowed.highest * 2 + 1, math.nan, math.inf, -math.inf)
    for number in (*beyond, [allowed.lowest, math.nan]):
        with pytest.raises(ValueError, match=rf"{name}: found .*, expected number|{name}: found .*, expected a number"):
            kind.__init__(object(), **{name: number})


WITHOUT_RANGE = {
    "Auxiliary.level": "any level of the backbone, which is asked for them",
    "Auxiliary.weight": "a dataclass, which requires its range when it is made",
    "CamVid.fold": "one of the folds of a drive, which `require_fold` counts",
    "NTHU.fold": "one of the folds of a city, which `require_fold` counts",
    "FolderDataset.class_map": "raw ids as keys, which `read_class_ids` holds to those of a byte",
    "FolderDataset.ignore_ids": "raw ids, which `read_class_ids` holds to those of a byte",
    "RawIds.class_map": "raw ids as keys, which `read_class_ids` holds to those of a byte",
    "PortionPolicy.initial": "an exact decimal, which is compared with the maximum",
    "PortionPolicy.step": "an exact decimal, which is held to 0 to 1",
    "PortionPolicy.maximum": "an exact decimal, which is held to 1 or less",
    "PairedStreams.batch_size": "made by the data module, which declares it",
    "PairedStreams.first_batch": "made by the data module, of the steps done",
    "PairedStreams.rank": "made by the data module, of the processes that run",
    "PairedStreams.world_size": "made by the data module, of the processes that run",
}
"""Arguments that may be numbers and whose constructors declare no range, with the reason."""


def types_in(annotation):
    """All types that an annotation names, those of a callable's arguments and results included."""
    if isinstance(annotation, list):
        yield from (kind for part in annotation for kind in types_in(part))
    elif typing.get_origin(annotation) is not typing.Literal:
        yield annotation
        yield from types_in(list(typing.get_args(annotation)))


def arguments_of(kind):
    """Annotations of the arguments of a constructor of the package, by their names."""
    init = kind.__init__
    if not inspect.isfunction(init) or not init.__module__.startswith("lightning_uda"):
        return {}
    hints = typing.get_type_hints(inspect.unwrap(init))
    return {name: set(types_in(hint)) for name, hint in hints.items() if name != "return"}


def nameable():
    """Classes that a config can name: what the command line takes, what their arguments take, and so on.

    Left out are private classes, abstract ones, and modules that networks build: any `nn.Module` may be
    wrapped as a network, but those take features.
    """
    wanted, found = [Callback, LightningModule, LightningDataModule], {}
    everything = list(classes())
    while wanted:
        base = wanted.pop()
        for kind in everything:
            if kind not in found and base not in (object, nn.Module) and base in kind.__mro__:
                found[kind] = arguments_of(kind)
                wanted += [part for parts in found[kind].values() for part in parts]
    return {kind: parts for kind, parts in found.items() if kind.__name__[0] != "_" and not inspect.isabstract(kind)}


def test_every_number_that_a_config_can_give_has_a_range_or_a_reason():
    kinds = nameable()
    assert {DSP, UDADataModule, FolderDataset, EncoderDecoder, ColorJitter, ImagePanels, RadixSelect} <= kinds.keys()
    missing = set()
    for kind, arguments in kinds.items():
        inits = (vars(base).get("__init__") for base in kind.__mro__)
        ranges = {name for init in inits for name in getattr(init, "ranges", {})}  # those passed on to a base too
        numbers = {name for name, parts in arguments.items() if parts & {int, float}}
        missing |= {f"{kind.__name__}.{name}" for name in numbers - ranges}
    assert missing == set(WITHOUT_RANGE)


MODEL, DATA = ("model", "init_args"), ("data", "init_args")
NETWORK, OPTIMIZER = (*MODEL, "network", "init_args"), (*MODEL, "optimizer", "init_args")
LISTED = [
    ("dacs", (*OPTIMIZER, "lr"), math.inf, "lr: found inf"),
    ("dacs", (*OPTIMIZER, "weight_decay"), math.nan, "Invalid weight_decay value: nan"),
    ("dacs", (*OPTIMIZER, "capturable"), True, "AdamW.capturable: found true on cpu; expected a GPU"),
    ("dacs", (*MODEL, "optimizer"), None, "optimizer: found null"),
    (
        "cbst_sp_mst",
        ("trainer", "callbacks", 3, "init_args", "every_n_train_steps"),
        None,
        "trainer.callbacks: found two ModelCheckpoint whose states a checkpoint can't tell apart",
    ),
    ("dacs", (*MODEL, "pixel_weighting"), None, "pixel_weighting: found null"),
    ("dacs", ("trainer",), [0, 0], "trainer: found [0, 0]; expected a mapping of the arguments of Trainer"),
    ("dsp", (*MODEL, "feature_alignment", "init_args", "weight"), -1.0, "weight: found -1"),
    ("dsp", (*MODEL, "feature_alignment", "init_args", "weight"), math.nan, "weight: found nan"),
    ("ehtdi", (*MODEL, "picl", "init_args", "scale"), math.nan, "scale: found nan"),
    ("dacs", (*MODEL, "schedule", "init_args", "power"), math.nan, "power: found nan"),
    ("cbst_sp_mst", (*MODEL, "rounds", "init_args", "lr_round_factor"), -1.0, "lr_round_factor: found -1"),
    ("cbst_sp_mst", (*MODEL, "rounds", "init_args", "num_rounds"), 100_000_000, "num_rounds: found 100000000"),
    ("dsp", (*MODEL, "feature_alignment", "init_args", "channels"), 0, "channels: found 0"),
    ("dacs", (*NETWORK, "num_classes"), 5, "found 5 classes"),
    ("dacs", (*NETWORK, "dilations"), [0], "dilations: found"),
    (
        "dacs",
        (*DATA, "source_transform"),
        {"class_path": "TrainTransform", "init_args": {"resize": [0, 0]}},
        "resize: found",
    ),
    (
        "dacs",
        (*DATA, "source_transform"),
        {"class_path": "TrainTransform", "init_args": {"crop": [100_000, 100_000]}},
        "crop: found",
    ),
    ("dacs", (*DATA, "eval_transform"), {"init_args": {"resize": [65_536, 65_536]}}, "resize: found"),
    (
        "dacs",
        (*MODEL, "inference"),
        {"class_path": "MultiScale", "init_args": {"scales": [100.0]}},
        "scales: found [100.0], expected numbers from 0.1 to 10",
    ),
    ("dacs", ("trainer", "accumulate_grad_batches"), -1, "accumulate_grad_batches: found -1"),
    ("dacs", ("trainer", "overfit_batches"), 1e-30, "overfit_batches: found 1e-30, a share"),
    ("dacs", ("trainer", "limit_train_batches"), 0.5, "limit_train_batches: found 0.5, a share"),
    ("dacs", ("trainer", "devices"), 10**9, "devices: found 1000000000, which starts as many processes"),
    ("dacs", ("trainer", "devices"), [5], "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
    ("dacs", (*MODEL, "init_from"), "no_such.ckpt", "no_such.ckpt"),
    ("dacs", ("name",), "../x", "name: found '../x'; expected a folder below the output folder"),
    ("dacs", ("seed_everything",), -1, "seed_everything: found -1, expected a number from 0"),
    (
        "dacs",
        ("trainer", "callbacks", 1, "init_args", "monitor"),
        "val/mIoU",
        "ModelCheckpoint.monitor: found 'val/mIoU', which nothing logs. Did you mean val/miou?",
    ),
    (
        "dacs",
        ("trainer", "callbacks", 1, "init_args", "filename"),
        "best_step{step}_miou{val/mIoU:.1f}",
        "ModelCheckpoint.filename: found 'val/mIoU', which nothing logs. Did you mean val/miou?",
    ),
]


@pytest.mark.slow
def test_configs_that_the_issue_lists_are_refused_before_a_run_folder_is_there(tmp_path):
    bases = {row: on_minicity(row) for row in {row for row, *_ in LISTED}}
    for number, (row, path, value, message) in enumerate(LISTED):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = outcome_of(changed(bases[row], path, value), folder)
        assert (outcome.kind, message in outcome.message) == ("refused", True), (path, value, outcome)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("classes: null", "expected a mapping with a `classes` list"),
        ("classes: []", "found 0 class names"),
        ("classes: [road]", "expected 2 to 253 distinct names"),
        ('classes: ["ro\\nad", sky]', "names of one line"),
        ('classes: ["", sky]', "not empty"),
        ("classes: [null, sky]", "expected a mapping with a `classes` list"),
        ("classes: [road, sky]\npalette: [[0, 0, 256], [0, 0, 0]]", "palette: found .* from 0 to 255"),
        ("classes: [road, sky]\npalette: [1, 2]", "expected a list of"),
        ("classes: [road, sky]\nsubsets: {a: 3}", "expected lists of class names"),
        ("classes: [road", "can't be read as YAML"),
    ],
)
def test_label_spaces_that_cannot_be_are_refused(tmp_path, content, message):
    (tmp_path / "space.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        get_label_space(str(tmp_path / "space.yaml"))
    assert str(caught.value).count("\n") <= 1


SWEEP = {
    "method": "grid",
    "parameters": {"seed_everything": {"values": [0, 1]}},
    "command": ["lightning-uda", "fit", "${args}"],
}


@pytest.mark.parametrize(
    "changes",
    [{"command": 3}, {"metric": 3}, {"metric": {"name": 3}}, {"parameters": 3}, {"parameters": {1: {"value": 2}}}],
)
def test_sweep_files_of_numbers_are_refused(tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**SWEEP, **changes}))
    with pytest.raises(SystemExit, match=rf"found (the )?{next(iter(changes))}") as caught:
        main(["sweep", "sweep.yaml"])
    assert str(caught.value.code).count("\n") <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_a_report_of_a_malformed_config_names_it(tmp_path):
    (tmp_path / "confusions").mkdir()
    (tmp_path / "confusions/val_step_1.csv").write_text("road,sky\n1,0\n0,1\n")
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(ValueError, match=r"config.yaml: can't be read as YAML") as caught:
        load_runs([tmp_path])
    assert "\n" not in str(caught.value)


SEED = int(os.environ.get("BAD_CONFIGS_SEED", "16"))
"""Of the generated configs; another one tries others."""


@st.composite
def bad_configs(draw, bases):
    """A shipped experiment in which a value, a list, a class or a group of settings is another one, or misspelt.

    Others are any value, one of the same kind, or what another experiment has there.
    """
    row = draw(st.sampled_from(sorted(bases)))
    content = bases[row]
    kind = draw(st.sampled_from(("number", "number", "other", "misspelt", "part", *3 * ("fitting", "exchanged"))))
    if kind == "exchanged":
        other = bases[draw(st.sampled_from(sorted(bases)))]
        paths = exchangeable(content, other)
        assume(paths)
        path = draw(st.sampled_from(paths))
        value = value_at(other, path)
    elif kind == "misspelt":
        path, value = (*draw(st.sampled_from(list(parts(content)))), "misspelt"), 1
    elif kind == "part":
        path, value = draw(st.sampled_from(list(parts(content)))), draw(st.sampled_from(OTHERS))
        assume(path[-1] != "init_args" or value)  # else a class with its defaults, such as a large set
    else:
        path = draw(st.sampled_from(list(leaves(content))))
        assume(kind != "fitting" or path not in NOT_FITTED)
        of_kind = {"number": NUMBERS, "other": OTHERS, "fitting": fitting(value_at(content, path))}
        value = draw(st.sampled_from(of_kind[kind]))
    return row, path, copy.deepcopy(value)


def try_configs(bases, number, folder):
    """Trains a step by generated configs, and requires that each is refused in time or trains.

    Args:
        bases: Experiments by name.
        number: How many configs.
        folder: Where they run, one after the other.

    Returns:
        How many were refused, and how many trained.
    """
    counts, faults = Counter(), []

    @seed(SEED)
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bad_configs(bases))
    def attempt(case):
        row, path, value = case
        outcome = outcome_of(changed(bases[row], path, value), folder)
        counts[outcome.kind] += 1
        if outcome.kind not in ("refused", "trained"):
            faults.append((outcome.kind, row, ".".join(map(str, path)), value, outcome.message[-500:]))

    attempt()
    print(f"BAD_CONFIGS_SEED={SEED}: {dict(counts)}")
    assert not faults, f"BAD_CONFIGS_SEED={SEED}\n" + "\n".join(map(str, faults))
    return counts["refused"], counts["trained"]


@pytest.mark.slow
def test_five_hundred_generated_configs_are_refused_or_train(tmp_path):
    refused, trained = try_configs({row: on_minicity(row) for row in MINICITY}, 500, tmp_path)
    assert refused + trained >= 500
    assert refused > 300


@pytest.mark.slow
def test_so_are_five_hundred_of_all_benchmarks_with_all_defaults_written_out(tmp_path):
    camvid, benchmarks = make_camvid(tmp_path), make_benchmarks(tmp_path)
    bases = {row: written_out(row, camvid, benchmarks) for row in WRITTEN_OUT}
    for row, content in bases.items():
        outcome = outcome_of(content, tmp_path)
        assert outcome.kind == "trained", f"{row}: {outcome}"
    refused, trained = try_configs(bases, 500, tmp_path)
    assert refused + trained >= 500
    assert refused > 300
