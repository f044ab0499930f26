from pathlib import Path

import numpy as np
import pytest

from lightning_uda.label_spaces import (
    CAMVID,
    CAMVID_IDS,
    CITYSCAPES,
    CITYSCAPES16,
    CITYSCAPES_IDS,
    IGNORE_INDEX,
    LABEL_SPACES,
    NTHU13,
    NTHU_IDS,
    NTHU_MERGED,
    NTHU_MERGED_TRAIN_AS_BUS,
    SYNTHIA_IDS,
    TRAIN_IDS,
    UNKNOWN_INDEX,
    LabelSpace,
    get_label_space,
    num_classes,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "dacs_label_maps.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("key", "space", "class_ids"),
    [
        ("gta_or_cityscapes_id_to_train19", CITYSCAPES, CITYSCAPES_IDS),
        ("cityscapes_id_to_train16", CITYSCAPES16, CITYSCAPES_IDS),
        ("synthia_id_to_train19", CITYSCAPES, SYNTHIA_IDS),
        ("synthia_id_to_train16", CITYSCAPES16, SYNTHIA_IDS),
    ],
)
def test_id_tables_equal_the_reference(golden, key, space, class_ids):
    table = space.lookup_table(class_ids)
    assert table.dtype == np.uint8
    np.testing.assert_array_equal(table, golden[key])


def test_class_names_equal_the_reference(golden):
    assert list(CITYSCAPES.classes) == golden["class_names19"].tolist()


def test_subsets_equal_the_reference():
    with np.load(GOLDEN / "dacs_miou.npz") as reference:
        assert CITYSCAPES.subset_indices("16") == reference["classes16_of_19"].tolist()
        assert CITYSCAPES.subset_indices("13") == reference["classes13_of_19"].tolist()
        assert CITYSCAPES16.subset_indices("13") == reference["classes13_of_16"].tolist()


def test_train_ids_map_to_themselves():
    np.testing.assert_array_equal(CITYSCAPES.lookup_table(TRAIN_IDS)[:19], range(19))
    np.testing.assert_array_equal(CAMVID.lookup_table(CAMVID_IDS)[:12], [*range(11), 255])


def test_unlisted_and_void_ids_differ_in_a_strict_table():
    table = CITYSCAPES16.lookup_table({1: "road", 2: None, 3: "terrain"}, unlisted=UNKNOWN_INDEX)
    assert table[:5].tolist() == [UNKNOWN_INDEX, 0, IGNORE_INDEX, IGNORE_INDEX, UNKNOWN_INDEX]


@pytest.mark.parametrize("space", LABEL_SPACES.values(), ids=LABEL_SPACES)
def test_colours_are_distinct(space):
    assert len(set(space.palette)) == space.num_classes


def test_colours_of_16_classes_are_those_of_19():
    colors = dict(zip(CITYSCAPES.classes, CITYSCAPES.palette, strict=True))
    assert CITYSCAPES16.palette == tuple(colors[name] for name in CITYSCAPES16.classes)
    assert colors["road"] == (128, 64, 128)
    assert colors["bicycle"] == (119, 11, 32)


def test_colorize_gives_the_palette_and_black_for_void():
    mask = np.array([[0, 18, 255], [13, 19, 0]])
    colors = CITYSCAPES.colorize(mask)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[128, 64, 128], [119, 11, 32], [0, 0, 0]], [[0, 0, 142], [0, 0, 0], [128, 64, 128]]]


def test_label_space_is_read_from_yaml(tmp_path):
    path = tmp_path / "room.yaml"
    path.write_text(
        "name: indoor\nclasses: [wall, floor, 3]\npalette: [[1, 2, 3], [4, 5, 6], [7, 8, 9]]\n"
        "subsets: {big: [floor, wall]}\n"
    )
    space = get_label_space(str(path))
    assert space == LabelSpace(
        "indoor", ("wall", "floor", "3"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), {"big": ("floor", "wall")}
    )
    assert space.subset_indices("big") == [0, 1]
    assert num_classes(str(path)) == 3


def test_class_names_that_yaml_reads_as_something_else_are_asked_to_be_quoted(tmp_path):
    path = tmp_path / "answers.yaml"
    path.write_text("classes: [road, no, on]\n")
    with pytest.raises(ValueError, match=r'found \[False, True\] among the class names.*write them as "no"'):
        get_label_space(str(path))
    path.write_text('classes: [road, "no"]\n')
    assert get_label_space(str(path)).classes == ("road", "no")


def test_yaml_without_name_and_palette_gets_both(tmp_path):
    path = tmp_path / "room.yaml"
    path.write_text(f"classes: {[f'class {i}' for i in range(30)]}\n")
    space = get_label_space(str(path))
    assert space.name == "room"
    assert len(set(space.palette)) == 30
    assert all(0 <= value <= 255 for color in space.palette for value in color)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("- wall\n- floor\n", "expected a mapping with a `classes` list"),
        ("classes: wall\n", "expected a mapping with a `classes` list"),
        ("classes: [wall]\ncolours: [[0, 0, 0]]\n", r"unknown keys \['colours'\]"),
        ("classes: [wall, wall]\n", "found 2 class names, 1 of them distinct"),
        ("classes: []\n", "found 0 class names"),
        ("classes: [wall, floor]\npalette: [[0, 0, 0]]\n", "found 1 colours for 2 classes"),
        ("classes: [wall, door]\nsubsets: {big: [floor]}\n", r"subset 'big' names unknown classes \['floor'\]"),
    ],
)
def test_bad_yaml_is_named(tmp_path, text, found):
    path = tmp_path / "room.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=found):
        get_label_space(str(path))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'cityscape': expected one of \['camvid', 'cityscapes', 'cityscapes16', 'nthu13'\]"
    ):
        get_label_space("cityscape")


@pytest.fixture(scope="module")
def luts():
    with np.load(GOLDEN / "cbst_label_luts.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def nthu():
    with np.load(GOLDEN / "cbst_nthu.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("key", "space", "class_ids"),
    [
        ("cityscapes_id_to_19", CITYSCAPES, CITYSCAPES_IDS),
        ("cityscapes_id_to_16", CITYSCAPES16, CITYSCAPES_IDS),
        ("synthia_id_to_16", CITYSCAPES16, SYNTHIA_IDS),
    ],
)
def test_id_tables_equal_those_of_the_other_reference(luts, key, space, class_ids):
    np.testing.assert_array_equal(space.lookup_table(class_ids), luts[key])


def test_16_classes_equal_the_reference(luts):
    assert list(CITYSCAPES16.classes) == luts["names16"].tolist()
    assert CITYSCAPES16.subset_indices("13") == luts["idx13_in_16"].tolist()
    np.testing.assert_array_equal(CITYSCAPES16.table_from(CITYSCAPES), luts["train19_to_16"])


@pytest.mark.parametrize(
    ("space", "key"), [(CITYSCAPES, "train19_to_cityscapes_id"), (CITYSCAPES16, "train16_to_cityscapes_id")]
)
def test_raw_ids_for_submission_equal_the_reference(luts, space, key):
    table = space.raw_id_table(CITYSCAPES_IDS)
    assert table.dtype == np.uint8
    np.testing.assert_array_equal(table[: space.num_classes], luts[key])
    assert set(table[space.num_classes :]) == {0}


def test_raw_ids_need_every_class_and_take_the_lowest():
    with pytest.raises(ValueError, match=r"no raw id stands for \['wall', 'fence'"):
        CITYSCAPES.raw_id_table(NTHU_IDS)
    space = LabelSpace("two", ("road", "sky"), ((0, 0, 0), (1, 1, 1)))
    assert space.raw_id_table({9: "road", 4: "road", 5: "sky", 2: None}, void=7)[:3].tolist() == [4, 5, 7]


def test_nthu_classes_equal_the_reference(nthu):
    assert list(NTHU13.classes) == nthu["names13"].tolist()
    assert NTHU13.classes == CITYSCAPES.subsets["13"]


@pytest.mark.parametrize(
    ("merged", "suffix"), [(NTHU_MERGED, ""), (NTHU_MERGED_TRAIN_AS_BUS, "_train_as_bus")], ids=["miss", "bus"]
)
def test_nthu_predictions_equal_the_reference(nthu, merged, suffix):
    table = NTHU13.table_from(CITYSCAPES, merged, missing=NTHU13.num_classes)
    np.testing.assert_array_equal(table, nthu[f"lut19_to_13{suffix}"])
    predicted, truth = table[nthu["pred19"]], nthu["gt13"]
    np.testing.assert_array_equal(predicted, nthu[f"pred13{suffix}"])
    valid = truth != IGNORE_INDEX
    confusion = np.bincount(truth[valid].astype(np.int64) * 14 + predicted[valid], minlength=196).reshape(14, 14)
    np.testing.assert_array_equal(confusion, nthu[f"confusion{suffix}"])


def test_merging_unknown_classes_is_refused():
    with pytest.raises(ValueError, match=r"'cityscapes' into 'nthu13': found unknown classes \['hedge', 'tram'\]"):
        NTHU13.table_from(CITYSCAPES, {"tram": "bus", "terrain": "hedge"})
