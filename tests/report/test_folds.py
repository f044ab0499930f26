import csv
import io
import shlex
from pathlib import Path

import pytest
import rich
import torch
import yaml
from rich.console import Console

from lightning_uda.__main__ import main
from lightning_uda.label_spaces import CITYSCAPES, NTHU13
from lightning_uda.metrics import MIOU_NOTE, iou_per_class, keep_confusion, merge_predictions
from lightning_uda.report import ReportError
from lightning_uda.report.folds import folds_table, load_folds, report_folds, write_folds
from tests.fixtures.official_layouts import make_cityscapes, make_nthu
from tests.metrics.test_folds import MERGED, counted
from tests.test_configs import CONFIGS, FAST, small_benchmark

ROOT = Path(__file__).parents[2]


def write_run(folder, confusion, *, city="rome", stage="val", classes=CITYSCAPES.classes, target=None, **dataset):
    """A run folder as an evaluation of NTHU leaves it."""
    arguments = {"root": "data/nthu", "city": city, "split": "score", "fold": 0, "fold_seed": 0} | dataset
    node = {"class_path": "lightning_uda.datasets.NTHU", "init_args": arguments}
    data = {"label_space": "cityscapes", "val": node} | ({"target": {**node, "init_args": target}} if target else {})
    folder.mkdir(parents=True)
    config = {"data": {"class_path": "pkg.UDADataModule", "init_args": data}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    keep_confusion(folder, stage, 100, None, confusion, classes)
    return folder


def random_confusion(seed, size=19):
    return torch.randint(0, 50, (size, size), generator=torch.Generator().manual_seed(seed))


def ten_runs(top, city="rome"):
    return [write_run(top / f"{city}_{k}/version_0", random_confusion(k), city=city, fold=k) for k in range(10)]


def rows_of(path):
    with path.open(newline="") as file:
        return {(row["set"], row["fold"]): row for row in csv.DictReader(file)}


def printed(sets):
    console = Console(file=io.StringIO(), width=100)
    console.print(folds_table(sets))
    return {" ".join(line.split()[:-1]): line.split()[-1] for line in console.file.getvalue().splitlines() if line}


def test_ten_folds_of_a_city_score_what_the_reference_does(golden, tmp_path):
    arrays = golden("cbst_nthu")
    names19, names13 = arrays.arrays["names19"].tolist(), arrays.arrays["names13"].tolist()
    to_19 = torch.full((256,), 255, dtype=torch.uint8)
    to_19[:13] = torch.tensor([names19.index(name) for name in names13], dtype=torch.uint8)
    merged = {names19.index(name): names19.index(target) for name, target in MERGED.items()}
    whole = merge_predictions(counted(to_19[arrays["gt13"].long()], arrays["pred19"]).sum(dim=0), merged)
    parts = [whole // 10 + (whole % 10 > k) for k in range(10)]
    (one,) = load_folds([write_run(tmp_path / f"fold_{k}", part, fold=k) for k, part in enumerate(parts)])
    assert torch.equal(one.confusions.sum(dim=0), whole)
    assert one.scores()["miou_13"].miou == pytest.approx(float(arrays["miou"]), rel=0, abs=1e-12)
    assert one.names == list(map(str, range(10)))
    assert one.notes == ()


def test_table_and_file_hold_pooled_scores_and_both_means(tmp_path):
    road, sky = (CITYSCAPES.classes.index(name) for name in ("road", "sky"))
    first, second = (torch.zeros(19, 19, dtype=torch.int64) for _ in range(2))
    first[road, road], first[road, sky] = 3, 1  # IoU of road 3/4, of sky 0
    second[road, road] = 4  # sky is neither in labels nor in predictions
    runs = [write_run(tmp_path / "b", second, fold=1), write_run(tmp_path / "a", first, fold=0)]
    sets = load_folds(runs)
    cells = printed(sets)
    assert (cells["██ road"], cells["██ sky"], cells["██ wall"]) == ("87.5", "0.0", "-")
    assert (cells["mIoU"], cells["mIoU (13)"]) == ("43.8", "43.8")
    assert cells["mean of folds"] == "68.8"  # (37.5 + 100) / 2
    assert cells["mean of folds, absent as 0 (CBST's programs)"] == "6.7"  # of 13 classes: 175 / 13 / 2

    rows = rows_of(write_folds(sets, tmp_path / "out/folds.csv"))
    assert [fold for _, fold in rows] == ["0", "1", "pooled", "mean_of_folds", "mean_of_folds_absent_zero"]
    assert {city for city, _ in rows} == {"Rome"}
    assert rows["Rome", "0"]["miou"] == "37.5"
    assert rows["Rome", "1"]["miou_13"] == "100.0"
    assert (rows["Rome", "1"]["iou_road"], rows["Rome", "1"]["iou_sky"]) == ("100.0", "")
    assert (rows["Rome", "pooled"]["iou_road"], rows["Rome", "pooled"]["miou_13"]) == ("87.5", "43.75")
    assert rows["Rome", "mean_of_folds"]["miou_13"] == "68.75"
    assert float(rows["Rome", "mean_of_folds_absent_zero"]["miou_13"]) == pytest.approx(175 / 26, abs=1e-4)
    assert rows["Rome", "mean_of_folds"]["iou_road"] == ""


def test_cities_have_a_column_each(tmp_path):
    rome, rio = load_folds([*ten_runs(tmp_path), *ten_runs(tmp_path, "rio")])
    assert (rome.title, rio.title) == ("Rome", "Rio")
    pooled = sum(random_confusion(k) for k in range(10))
    torch.testing.assert_close(rome.scores()["miou"].iou, iou_per_class(pooled))
    assert [column.header for column in folds_table([rome, rio]).columns] == [
        "class", "Rome (10 folds)", "Rio (10 folds)",
    ]  # fmt: skip


def test_the_command_prints_writes_and_keeps_older_files(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(rich, "_console", console)
    runs = [str(folder) for folder in ten_runs(tmp_path)]
    output = tmp_path / "scores" / "folds.csv"
    main(["folds", *runs, "--output", str(output)])
    main(["folds", *runs[:8], "--output", str(output)])
    assert sorted(path.name for path in output.parent.iterdir()) == ["folds.1.csv", "folds.csv"]
    assert ("Rome", "9") in rows_of(output.with_name("folds.1.csv"))
    assert ("Rome", "9") not in rows_of(output)
    text = console.file.getvalue()
    assert "Rome (10 folds)" in text
    assert MIOU_NOTE in " ".join(text.split())
    assert "Rome: 8 of 10 folds; missing: 8, 9." in text
    assert text.splitlines()[-1] == str(output)


def test_of_a_folder_of_versions_the_latest_with_a_matrix_is_taken(tmp_path):
    for version in (0, 2, 10):
        write_run(tmp_path / f"run/version_{version}", random_confusion(version), fold=4)
    (tmp_path / "run/version_11").mkdir()
    (one,) = load_folds([tmp_path / "run"])
    assert torch.equal(one.confusions[0], random_confusion(10))
    assert one.names == ["4"]


def test_tests_are_read_where_nothing_was_validated_and_of_their_own_set(tmp_path):
    folder = write_run(tmp_path / "run", random_confusion(0), stage="test", fold=0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    arguments = config["data"]["init_args"]
    arguments["test"] = {"class_path": "NTHU", "init_args": {"city": "tokyo", "split": "score", "fold": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (one,) = load_folds([folder])
    assert (one.title, one.names) == ("Tokyo", ["3"])


def test_runs_without_a_config_are_folds_of_their_own(tmp_path):
    runs = [write_run(tmp_path / f"top/{name}", random_confusion(i, 3), classes="xyz") for i, name in enumerate("ab")]
    for run in runs:
        (run / "config.yaml").unlink()
    (one,) = load_folds(runs)
    assert (one.title, one.names) == ("runs", ["top/a", "top/b"])
    assert one.label_space.classes == ("x", "y", "z")
    assert printed([one])["mIoU"] == f"{100 * float(iou_per_class(one.confusions.sum(dim=0)).mean()):.1f}"


def test_other_classes_than_cityscapes_have_their_own_means(tmp_path):
    (one,) = load_folds([write_run(tmp_path / "run", random_confusion(0, 13), classes=NTHU13.classes)])
    assert list(one.scores()) == ["miou"]


def test_a_target_that_holds_scored_images_is_noted(tmp_path):
    target = {"city": "rome", "split": "adapt", "fold": 0, "fold_seed": 0, "labelled": False}
    runs = [write_run(tmp_path / str(k), random_confusion(k), fold=k, target=target) for k in range(2)]
    (one,) = load_folds(runs)
    (note,) = [note for note in one.notes if "target" in note]
    assert note.startswith(
        f"{tmp_path}/1: the config's target is the images outside of fold 0, the scores are of fold 1"
    )


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"fold": 0}, r"Rome: .*/a and .*/b both score fold 0; expected each fold once"),
        ({"fold": 0, "root": "elsewhere"}, "both score fold 0"),
        ({"fold": 1, "fold_seed": 5}, r"aren't folds of one division: fold_seed: 0 and 5\. Score them separately"),
        ({"fold": None, "split": "all"}, "aren't folds of one division: split: score and all"),
        ({"fold": 1, "classes": NTHU13.classes}, r"different label spaces: .*/a has 19 classes, .*/b has 13"),
    ],
)
def test_runs_that_are_no_folds_of_one_set_are_refused(tmp_path, second, said):
    first = write_run(tmp_path / "a", random_confusion(0))
    other = write_run(tmp_path / "b", random_confusion(1, len(second.get("classes", CITYSCAPES.classes))), **second)
    with pytest.raises(ReportError, match=said):
        load_folds([first, other])


@pytest.mark.parametrize("fold", ["x", [1]])
def test_a_fold_that_is_no_number_is_refused(tmp_path, fold):
    run = write_run(tmp_path / "a", random_confusion(0), fold=fold)
    with pytest.raises(ReportError, match=r"config\.yaml: found fold: .* of data\.val; expected a number"):
        load_folds([run])


def test_folders_that_hold_no_matrix_are_named(tmp_path):
    run = write_run(tmp_path / "run", random_confusion(0))
    with pytest.raises(ReportError, match="run is given twice"):
        load_folds([run, tmp_path / "run/../run"])
    with pytest.raises(ReportError, match="Found no run folder; give at least one"):
        load_folds([])
    with pytest.raises(ReportError, match=r"nowhere is no folder; expected a run folder"):
        load_folds([tmp_path / "nowhere"])
    (matrix,) = run.glob("confusions/*.csv")
    matrix.write_text("a,b\n1,2\n")
    with pytest.raises(ReportError, match=r"val_step_000100\.csv: expected a confusion matrix"):
        report_folds([run], tmp_path / "folds.csv")
    matrix.unlink()
    with pytest.raises(ReportError, match=r"holds no confusion matrix \(confusions/val_step_<step>\.csv\)"):
        load_folds([run])


def test_the_loop_of_the_documentation(tmp_path, monkeypatch):
    """The commands of docs/datasets/nthu.md, with a small network and images, for one city and two folds."""
    page = (ROOT / "docs/datasets/nthu.md").read_text()
    train = next(line.strip() for line in page.splitlines() if line.strip().startswith("lightning-uda fit"))
    make_cityscapes(tmp_path / "data/cityscapes")
    make_nthu(tmp_path / "data/nthu", cities=("Tokyo",))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    small = [*FAST[2:4], *small_benchmark(CONFIGS / "experiment/cityscapes_to_nthu/dacs.yaml", tmp_path / "data")]
    small += ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    for fold in (0, 7):
        command = train.replace("${city}", "tokyo").replace("$city", "tokyo").replace("$fold", str(fold))
        main([*shlex.split(command)[1:], *small])
    main(["folds", *map(str, sorted(Path("runs/nthu").iterdir())), "--output", "runs/nthu_folds.csv"])
    assert [key for key in rows_of(Path("runs/nthu_folds.csv"))][:3] == [
        ("Tokyo", "0"),
        ("Tokyo", "7"),
        ("Tokyo", "pooled"),
    ]
    (one,) = load_folds(sorted(Path("runs/nthu").iterdir()))
    assert one.notes == ("Tokyo: 2 of 10 folds; missing: 1, 2, 3, 4, 5, 6, 8, 9.",)
