import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rich
from PIL import Image
from rich.console import Console

from lightning_uda.commands.data_check import check_data
from lightning_uda.commands.data_scan import print_report
from lightning_uda.data.check import absent_classes, padded_crops, require_usable, scan
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.dataset import DatasetError, Problem, SegmentationDataset
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.datasets import GTA5, Cityscapes, Concat
from lightning_uda.datasets.camvid import CamVid
from lightning_uda.datasets.folder import FolderDataset
from lightning_uda.label_spaces import CAMVID, LabelSpace
from lightning_uda.self_training.scaled_crop import ScaledCrop
from tests.fixtures.make_folder_dataset import CLASS_MAP, make_bad, make_good, make_unlabelled
from tests.fixtures.official_layouts import make_cityscapes, make_gta5

REAL = Path(__file__).parents[3] / "shared" / "data" / "camvid"
SPACE = LabelSpace("small", ("sky", "road", "car"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


class TwoImages(SegmentationDataset):
    """In memory, so without files; its second label is broken, its reader gives a problem of its own."""

    def __init__(self):
        self.class_ids = {0: "road", 1: "sky"}

    def __len__(self):
        return 2

    def name(self, index):
        return f"city_{index}"

    def load_image(self, index):
        return np.full((2, 4, 3), (10, 20, 30), np.uint8)[:, ::-1]

    def load_label(self, index):
        if index:
            raise KeyError("lost")
        return np.array([[0, 0, 1, 5], [0, 0, 0, 255]], np.uint8)

    def check(self, labels=True):
        return [Problem("city", "no licence file")]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    make_bad(root)
    return FolderDataset(str(root), class_map=CLASS_MAP)


def printed(report, width=200):
    console = Console(file=io.StringIO(), width=width)
    print_report("target", report, SPACE, console)
    return console.file.getvalue()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_lacks_characters_gets_the_report(encoding, tmp_path, monkeypatch):
    make_good(tmp_path)
    report = scan(FolderDataset(str(tmp_path)), SPACE, workers=1, progress=False)
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(rich, "_console", Console(file=file, width=120))
    print_report("target", report, SPACE, rich.get_console())
    file.seek(0)
    lines = [line.split() for line in file]
    largest = int(report.class_pixels.argmax())
    (row,) = (line for line in lines if line[:2] == [str(largest), "#"])
    assert "#" * 20 in row


def test_statistics_of_a_good_set(tmp_path):
    expected = make_good(tmp_path)
    report = scan(FolderDataset(str(tmp_path)), SPACE, workers=2, progress=False)
    labels = [label for _, label in expected.values()]
    raw_ids = (2, 0, 3)  # of sky, road, car
    assert report.images == report.readable_images == report.readable_labels == len(expected)
    assert report.sizes == Counter(label.shape for label in labels)
    assert report.class_pixels.tolist() == [sum(int((label == i).sum()) for label in labels) for i in raw_ids]
    assert report.class_images.tolist() == [sum(bool((label == i).any()) for label in labels) for i in raw_ids]
    assert report.class_pixels.sum() + report.void_pixels == sum(label.size for label in labels)
    assert report.class_shares.sum() == pytest.approx(1)
    assert report.problems == []
    void = sum(int((~np.isin(label, raw_ids)).sum()) for label in labels) / sum(label.size for label in labels)
    foreign, lost = report.warnings
    assert foreign == Problem(
        "class map", "names ['building'] aren't in the label space 'small': their pixels count as void"
    )
    assert lost.what.startswith(f"{100 * void:.0f} % of the pixels are void (ids ")
    assert "and no pixel is of car." in lost.what


def test_a_dataset_without_files_is_scanned_too():
    report = scan(TwoImages(), SPACE, progress=False)
    assert report.class_pixels.tolist() == [1, 5, 0]
    assert report.class_images.tolist() == [1, 1, 0]
    assert report.void_pixels == 2
    np.testing.assert_allclose(report.mean_rgb, (10, 20, 30))
    assert report.problems == [Problem("city_1 (label)", "KeyError: 'lost'"), Problem("city", "no licence file")]


def test_scan_finds_every_problem_once_and_never_stops(bad):
    report = scan(bad, SPACE, progress=False)
    found = Counter(Path(problem.where).stem for problem in report.problems)
    assert found.pop("two_faults") == 2
    assert found == Counter(
        "wrong_size wrong_ids rgb_label deep_ids cut_label jpeg_label empty_image text_image cut_png cut_jpeg "
        "cut_jpeg_with_thumbnail turned_tiff".split()
    )
    assert (report.images, report.readable_images, report.readable_labels) == (15, 8, 11)
    assert [Path(warning.where).stem for warning in report.warnings[1:]] == ["all_void", "label maps"]


def test_report_of_a_good_set_shows_sizes_shares_and_no_problems(tmp_path):
    make_unlabelled(tmp_path)
    (tmp_path / "labels").mkdir()
    for i in range(3):
        label = np.zeros((8, 12), np.uint8)
        label[:2] = 1 if i else 255
        Image.fromarray(label).save(tmp_path / "labels" / f"frame_{i}.png")
    report = scan(FolderDataset(str(tmp_path), class_map={0: "road", 1: "sky"}), SPACE, progress=False)
    lines = printed(report).splitlines()
    rows = {line.split()[2]: line.split() for line in lines if line.split()[0] in ("0", "1", "2")}
    assert "3 images (3 readable), 3 label maps" in lines
    assert "sizes (height x width: images): 8 x 12: 3" in lines
    assert (rows["sky"][3], rows["sky"][-1]) == ("18.18", "2")  # 48 of 264
    assert (rows["road"][3], rows["road"][-1]) == ("81.82", "3")
    assert (rows["car"][3], rows["car"][-1]) == ("0.00", "0")
    assert rows["road"][4] == "█" * 20
    assert any("void" in line and line.split()[-1] == "8.33" for line in lines)
    assert lines[-1] == "no problems found"


def test_report_lists_every_problem_under_its_file(bad):
    report = scan(bad, SPACE, progress=False)
    lines = printed(report, width=60).splitlines()
    for problem in report.problems:
        assert f"    {problem.what}" in lines[lines.index(f"  {problem.where}", lines.index("problems:")) :]
    assert lines[-1] == "14 problems in 14 files"


def test_report_of_an_unlabelled_set_has_no_table(tmp_path):
    make_unlabelled(tmp_path)
    text = printed(scan(FolderDataset(str(tmp_path), labels=None), SPACE, progress=False))
    assert "3 images (3 readable), no labels" in text
    assert "pixels %" not in text


def test_require_usable_passes_good_sets(tmp_path):
    make_good(tmp_path)
    dataset = FolderDataset(str(tmp_path))
    require_usable({"source": dataset, "val": dataset}, {"source": 2})


def test_require_usable_lists_all_sets_in_one_error(bad, tmp_path):
    make_unlabelled(tmp_path)
    target = FolderDataset(str(tmp_path), labels=None)
    with pytest.raises(DatasetError) as caught:
        require_usable({"source": bad, "target": target, "val": target}, {"source": 2, "target": 4})
    lines = str(caught.value).splitlines()
    assert lines[1] == "data.source (15 images):"
    assert sum(str(bad.root) in line for line in lines) == 10
    assert lines[12] == "  and 4 more; run `lightning-uda data check --config ...` for all."
    assert lines[13] == "data.target (3 images):"
    assert lines[14].startswith("  - found 3 images, expected at least one batch of 4.")
    assert len(lines) == 15


@pytest.mark.skipif(not REAL.is_dir(), reason="the real CamVid isn't here")
def test_real_camvid_has_the_published_class_shares():
    report = scan(CamVid(str(REAL), "val"), CAMVID, progress=False)
    published = (9.3, 26.4, 0.6, 29.5, 8.9, 16.6, 0.9, 3.1, 1.8, 0.7, 2.3)
    np.testing.assert_allclose(100 * report.class_shares, published, atol=0.051)
    assert report.sizes == Counter({(360, 480): 101})
    assert report.problems == report.warnings == []


# What is told beside


def write_set(root, label, sizes=((4, 6),), images=("a",)):
    for name, size in zip(images, sizes, strict=True):
        for folder, pixels in (("images", np.zeros((*size, 3), np.uint8)), ("labels", np.full(size, label, np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
    return FolderDataset(str(root), class_map={0: "sky", 1: "road", 2: "car", 7: None})


def test_crops_that_do_not_fit_are_told_of(tmp_path):
    report = scan(write_set(tmp_path, 1, [(4, 6), (8, 9), (8, 5)], ["a", "b", "c"]), SPACE, progress=False)
    [warning] = padded_crops("source", report, TrainTransform(crop=(8, 6)))
    assert warning.where == "data.source"
    assert warning.what.startswith(
        "the crop of 8 x 6 (height x width) doesn't fit into 2 of 3 images, such as one of 4 x 6"
    )
    assert padded_crops("source", report, ScaledCrop(crop=(8, 6))) == [warning]
    assert padded_crops("source", report, TrainTransform(crop=(4, 5))) == []
    assert padded_crops("source", report, TrainTransform(resize=(8, 8), crop=(8, 8))) == []


def test_classes_without_a_pixel_in_a_scored_set_are_told_of(tmp_path):
    report = scan(write_set(tmp_path, 1), SPACE, progress=False)
    [warning] = absent_classes("val", report, SPACE)
    assert (warning.where, warning.what[:26]) == ("data.val", "no pixel is of sky, car: i")
    assert absent_classes("val", scan(make_unlabelled_set(tmp_path / "u"), SPACE, progress=False), SPACE) == []


def make_unlabelled_set(root):
    make_unlabelled(root)
    return FolderDataset(str(root), labels=None)


def test_data_check_prints_both(tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text("classes: [sky, road, car]")
    for name in ("source", "target", "val"):
        write_set(tmp_path / name, 1, [(4, 6), (4, 6)], ["a", "b"])
    ids = {0: "sky", 1: "road", 2: "car"}
    config = {"label_space": str(space)}
    config |= {
        name: {"class_path": "FolderDataset", "init_args": {"root": str(tmp_path / name), "class_map": ids}}
        for name in ("source", "target", "val")
    }
    config["source_transform"] = {"crop": [8, 8]}
    (tmp_path / "data.yaml").write_text(json.dumps({"class_path": "UDADataModule", "init_args": config}))
    configs = Path(__file__).parents[2] / "configs"
    arguments = ["--data", str(tmp_path / "data.yaml"), "--model", str(configs / "method/source_only.yaml")]
    of_a_run = {"ckpt_path": None, "weights_only": None, "verbose": True, "return_predictions": None, "resume": False}
    (tmp_path / "config.yaml").write_text(json.dumps(of_a_run))
    arguments += ["--model.network", str(configs / "network/deeplab_v2_resnet18.yaml")]
    assert check_data([*arguments, "--config", str(tmp_path / "config.yaml")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("doesn't fit into 2 of 2 images") == 1
    assert printed.count("no pixel is of sky, car") == 1


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array([0, 255, 255, 255]), "data.source: label maps: the label maps hold two values, 0 and 255"),
        (
            np.array([0, 7, 7, 7]),
            "data.source: label maps: 75 % of the pixels are void (ids 7), and no pixel is of road",
        ),
        (np.array([0, 1, 2, 7]), None),
    ],
)
def test_masks_that_are_lost_as_void_are_warned_of_before_training(tmp_path, caplog, label, message):
    space = tmp_path / "space.yaml"
    space.write_text("classes: [sky, road, car]")
    dataset = write_set(tmp_path / "source", label.reshape(2, 2), [(2, 2)])
    data = UDADataModule(str(space), source=dataset, batch_size=1)
    for _ in range(2):
        data.check_datasets("fit", ["source"])
    assert caplog.messages == [] if message is None else [caplog.messages[0].startswith(message)] == [True]
    assert len(caplog.messages) == (message is not None)


def test_masks_of_one_of_several_sets_are_warned_of_with_its_number(tmp_path, caplog):
    space = tmp_path / "space.yaml"
    space.write_text("classes: [sky, road, car]")
    labels = np.array([0, 1, 2, 7]), np.array([0, 7, 7, 7]), np.array([0, 255, 255, 255])
    good, void, masks = (write_set(tmp_path / str(i), each.reshape(2, 2), [(2, 2)]) for i, each in enumerate(labels))
    data = UDADataModule(str(space), source=Concat([good, Concat([void, masks])]), batch_size=1)
    for _ in range(2):
        data.check_datasets("fit", ["source"])
    assert [message[:50] for message in caplog.messages] == [
        "data.source, set 1: label maps: 75 % of the pixels",
        "data.source, set 2: label maps: the label maps hol",
    ]


def test_what_a_set_remarks_of_itself_is_said_before_training(tmp_path, caplog):
    make_cityscapes(tmp_path)
    data = UDADataModule("cityscapes", source=Cityscapes(str(tmp_path)), batch_size=1)
    data.check_datasets("fit", ["source"])
    assert f"data.source: {tmp_path}: found 3 images; the whole set has 2975." in caplog.text


def test_labels_without_image_of_a_public_set_are_told_of(tmp_path):
    make_gta5(tmp_path)
    (tmp_path / "images/00002.png").unlink()
    found = [remark.what for remark in GTA5(str(tmp_path)).remarks()]
    assert found[1:] == ["1 labels have no image: 00002"]
    (tmp_path / "list.txt").write_text("00001")
    assert GTA5(str(tmp_path), "list.txt").remarks() == []
