"""ACDC, Dark Zurich, IDD and Mapillary Vistas in their official layouts."""

import numpy as np
import pytest

from lightning_uda.data.check import scan
from lightning_uda.datasets import ACDC, IDD, DarkZurich, DatasetError, MapillaryVistas
from lightning_uda.label_spaces import CITYSCAPES, IDD_NAMES
from tests.fixtures.official_layouts import idd_polygons, make_acdc, make_dark_zurich, make_idd, make_mapillary, pack

CONDITIONS = ("fog", "night", "rain", "snow")


def require_same(dataset, made):
    assert [dataset.name(i) for i in range(len(dataset))] == sorted(made)
    assert dataset.check() == []
    for i in range(len(dataset) if dataset.has_labels else 0):
        np.testing.assert_array_equal(dataset.load_label(i), made[dataset.name(i)])
    assert dataset.load_image(0).shape[2] == 3


@pytest.mark.parametrize("zipped", [False, True])
def test_acdc_has_the_frames_of_a_split_in_the_conditions_that_are_asked_for(tmp_path, zipped):
    made = make_acdc(tmp_path)
    root = tmp_path
    if zipped:
        root = tmp_path / "zipped"
        pack(tmp_path, root, {"rgb_anon_trainvaltest.zip": ["rgb_anon/**/*"], "gt_trainval.zip": ["gt/**/*"]})
    for split, labelled in (("train", True), ("val", True), ("test", False)):
        everything = {name: label for kind in CONDITIONS for name, label in made[kind, split].items()}
        require_same(ACDC(str(root), split, labelled), everything)
        require_same(ACDC(str(root), split, labelled, ["night"]), made["night", split])
    assert "the whole set has 106" in ACDC(str(root), "val", conditions=["night"]).remarks()[0].what


def test_reference_frames_of_acdc_are_a_set_of_their_own_without_labels(tmp_path):
    make_acdc(tmp_path)
    reference = ACDC(str(tmp_path), "val", labelled=False, conditions=["fog", "snow"], reference=True)
    assert len(reference) == 2
    assert all("_rgb_ref_anon.png" in reference.image_file(i) for i in range(2))
    with pytest.raises(DatasetError, match="reference frames have no labels"):
        ACDC(str(tmp_path), "val", reference=True)


def test_dark_zurich_has_labels_by_night_in_val_alone(tmp_path):
    made = make_dark_zurich(tmp_path)
    require_same(DarkZurich(str(tmp_path)), made["val/night"])
    require_same(DarkZurich(str(tmp_path), "test", labelled=False), made["test/night"])
    require_same(DarkZurich(str(tmp_path), "train", labelled=False), made["train/night"])
    both = DarkZurich(str(tmp_path), "train", labelled=False, times=["twilight", "day"])
    require_same(both, made["train/twilight"] | made["train/day"])
    with pytest.raises(DatasetError, match="train split has no public labels"):
        DarkZurich(str(tmp_path), "train")


def test_names_of_idd_tell_its_drives_apart(tmp_path):
    made = make_idd(tmp_path)
    for split, labelled in (("train", True), ("val", True), ("test", False)):
        require_same(IDD(str(tmp_path), split, labelled), made[split])
    np.testing.assert_array_equal(CITYSCAPES.lookup_table(IDD.class_ids), [*range(19), *[255] * 237])
    with pytest.raises(DatasetError, match="split: found 'training'; expected one of train, val, test"):
        IDD(str(tmp_path), "training")


def test_polygons_of_idd_are_painted_where_there_is_no_label_map(tmp_path):
    made = make_idd(tmp_path)["train"]
    text, label = idd_polygons()
    for drive in ("0", "17"):
        (tmp_path / f"gtFine/train/{drive}/frame0029_gtFine_polygons.json").write_text(text)
    (tmp_path / "gtFine/train/17/frame0029_gtFine_labelcsTrainIds.png").unlink()
    require_same(IDD(str(tmp_path)), made | {"17/frame0029": label})
    pack(tmp_path, tmp_path / "zipped", {"idd.zip": ["leftImg8bit/**/*", "gtFine/**/*"]})
    require_same(IDD(str(tmp_path / "zipped")), made | {"17/frame0029": label})


def test_faults_of_idd_polygons_are_named(tmp_path):
    make_idd(tmp_path)
    gt = tmp_path / "gtFine/train/17"
    (gt / "frame0029_gtFine_labelcsTrainIds.png").unlink()
    polygons = gt / "frame0029_gtFine_polygons.json"
    polygons.write_text(idd_polygons(height=20)[0])
    [problem] = IDD(str(tmp_path)).check()
    assert (problem.where, problem.what[:40]) == (str(polygons), "label is 20 x 32 (height x width), its i")
    polygons.write_text(idd_polygons()[0].replace("autorickshaw", "autorikshaw"))
    [problem] = scan(IDD(str(tmp_path)), CITYSCAPES, progress=False).problems
    assert problem.what.startswith(
        "found the label 'autorikshaw', which IDD's table of labels doesn't hold. Did you mean auto"
    )


def test_names_of_idd_polygons_stand_for_the_ids_of_its_own_table():
    """Spot checks against `csTrainId` of AutoNUE's helpers/anue_labels.py, which has 40 names."""
    expected = {"road": 0, "non-drivable fallback": 9, "rider": 12, "train": 16, "bicycle": 18, "polegroup": 255}
    assert expected == {name: IDD_NAMES[name] for name in expected}
    assert len(IDD_NAMES) == 40
    assert set(IDD_NAMES.values()) == {*range(19), 255}


@pytest.mark.parametrize("version", ["1.2", "2.0"])
def test_vistas_has_the_classes_of_cityscapes(tmp_path, version):
    made = make_mapillary(tmp_path, version)
    for split, labelled in (("training", True), ("validation", True), ("testing", False)):
        require_same(MapillaryVistas(str(tmp_path), split, labelled), made[split])
    table = CITYSCAPES.lookup_table(MapillaryVistas.class_ids)
    assert set(table) == {*range(19), 255}
    named = {13: "road", 15: "sidewalk", 27: "sky", 30: "vegetation", 55: "car", 52: "bicycle", 61: "truck"}
    assert {raw: CITYSCAPES.classes[table[raw]] for raw in named} == named
    assert table[64] == table[65] == 255


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: ACDC(root, "test"), r"ACDC: the labels of its test split aren't public.*`labelled: false`"),
        (lambda root: ACDC(root, conditions=["mist"]), r"conditions: found \['mist'\]; expected some of fog, night"),
        (lambda root: ACDC(root, conditions=[]), r"conditions: found none"),
        (lambda root: ACDC(root), r"no ACDC images found; expected the folder rgb_anon/ .*rgb_anon_trainvaltest\.zip"),
        (lambda root: DarkZurich(root, times=["dusk"]), r"times: found \['dusk'\]; expected some of night, twilight"),
        (lambda root: DarkZurich(root), r"no Dark Zurich images found; .*Dark_Zurich_val_anon\.zip"),
        (lambda root: IDD(root), r"no IDD images found; expected the folder leftImg8bit/"),
        (lambda root: MapillaryVistas(root, "testing"), r"test split aren't public.*`split: validation`"),
        (lambda root: MapillaryVistas(root), r"no Mapillary Vistas images found; expected the folder training/"),
    ],
)
def test_what_is_missing_is_named(tmp_path, make, message):
    with pytest.raises(DatasetError, match=message):
        make(str(tmp_path))
