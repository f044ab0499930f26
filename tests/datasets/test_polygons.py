import json
import re

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

from lightning_uda.data.check import scan
from lightning_uda.data.dataset import SizeLimit
from lightning_uda.datasets import DatasetError, PolygonDataset
from lightning_uda.label_spaces import CITYSCAPES_IDS, LabelSpace

SIZE = (40, 60)


def write(root, name, content, labels="labels"):
    for folder in ("images", labels):
        (root / folder).mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / "images" / f"{name}.png")
    (root / labels / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def cityscapes(*objects):
    named = [{"label": label, "polygon": polygon, **more} for label, polygon, more in objects]
    return {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": named}


def labelme(*shapes):
    named = [{"label": label, "points": points, "shape_type": kind} for label, kind, points in shapes]
    return {"version": "5.0", "imageHeight": SIZE[0], "imageWidth": SIZE[1], "shapes": named, "imageData": None}


def random_polygons(count):
    rng = np.random.default_rng(0)
    labels = ["road", "cargroup", "car", "sky", "persongroup", "license plate"]
    for i in range(count):
        corners = rng.integers((-8, -8), (SIZE[1] + 8, SIZE[0] + 8), (rng.integers(3, 9), 2)).tolist()
        yield labels[i % len(labels)], corners, {"deleted": 1} if i % 7 == 3 else {}


def test_polygons_of_cityscapes_are_drawn_as_its_own_tools_draw_them(tmp_path):
    content = cityscapes(*random_polygons(40))
    write(tmp_path, "a", content)
    dataset = PolygonDataset(
        str(tmp_path),
        class_map={"road": "road", "car": "car", "sky": "sky", "person": "person"} | {"license plate": None},
    )
    official = Annotation()
    official.fromJsonText(json.dumps(content))
    official.objects = [each for each in official.objects if each.label != "license plate"]  # which they don't draw
    expected = np.array(createLabelImage(official, "ids"))
    content["objects"] = [each for each in content["objects"] if each["label"] != "license plate"]
    (tmp_path / "labels/a.json").write_text(json.dumps(content))
    names = np.array([CITYSCAPES_IDS.get(raw) for raw in range(256)], object)
    ours = np.array([dataset.class_ids.get(raw) for raw in range(256)], object)
    np.testing.assert_array_equal(ours[dataset.load_label(0)], names[expected])
    assert dataset.check() == []


def test_polygons_of_labelme_lie_beside_the_images(tmp_path):
    shapes = [("wood", "rectangle", [[50, 30], [10.0, 10.0]]), ("leaf", "circle", [[30, 20], [33, 20]])]
    write(tmp_path, "a", labelme(*shapes, ("leaf", "polygon", [[0, 0], [5, 0], [0, 5]])), labels="images")
    dataset = PolygonDataset(str(tmp_path), labels="images")
    label = dataset.load_label(0)
    assert dataset.class_ids == {0: "leaf", 1: "wood", 255: None}
    assert (label[10:31, 10:51] == 1).sum() == 21 * 41 - (label[10:31, 10:51] == 0).sum()
    assert label[20, 30] == 0
    assert label[0, 0] == 0
    assert label[39, 59] == 255
    assert 25 <= (label[15:26, 25:36] == 0).sum() <= 40  # a circle of radius 3
    assert [dataset.name(0), dataset.image_size(0)] == ["a", SIZE]


def test_without_a_map_groups_are_the_class_of_one(tmp_path):
    write(
        tmp_path,
        "a",
        cityscapes(("cargroup", [[0, 0], [9, 0], [0, 9]], {}), ("car", [[20, 20], [29, 20], [20, 29]], {})),
    )
    write(tmp_path, "b", cityscapes(("treegroup", [[0, 0], [9, 0], [0, 9]], {})))
    dataset = PolygonDataset(str(tmp_path))
    assert dataset.class_ids == {0: "car", 1: "treegroup", 255: None}
    assert dataset.load_label(0)[1, 1] == 0


def test_another_map_is_another_content_for_caches(tmp_path):
    write(tmp_path, "a", cityscapes(("car", [[0, 0], [9, 0], [0, 9]], {}), ("sky", [[20, 0], [29, 0], [20, 9]], {})))
    maps = ({"car": "car", "sky": "sky"}, {"sky": "sky", "car": "car"})
    first, second = (PolygonDataset(str(tmp_path), class_map=each).fingerprint() for each in maps)
    assert first != second


def test_what_no_area_covers_is_void_or_a_class(tmp_path):
    write(tmp_path, "a", labelme(("crack", "rectangle", [[0, 0], [29, 39]])))
    space = LabelSpace("two", ("background", "crack"), ((1, 2, 3), (4, 5, 6)))
    [warning] = scan(PolygonDataset(str(tmp_path)), space, progress=False).warnings
    assert warning.what.endswith("name the class of the rest: `unlabelled: background`.")
    report = scan(PolygonDataset(str(tmp_path), unlabelled="background"), space, progress=False)
    assert (report.warnings, report.void_pixels, report.class_pixels.tolist()) == ([], 0, [30 * 40, 30 * 40])


TRIANGLE = [[0, 0], [9, 0], [0, 9]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cityscapes(("cra", TRIANGLE, {})), "found the label 'cra', which `class_map` doesn't hold. Did you mean car?"),
        (
            labelme(("car", "line", [[0, 0], [1, 1]])),
            "found a line of 2 points with the label 'car'; expected a polygon",
        ),
        (labelme(("car", "polygon", [[0, 0], [1, 1]])), "found a polygon of 2 points"),
        ("{", "can't be read as JSON"),
        ({"boxes": []}, "found no polygons of Cityscapes' style (imgHeight"),
        ([], "found no polygons of Cityscapes' style"),
        (labelme(("car", "polygon", [[0, float("nan")], [1, 1], [2, 2]])), "points of 'car' that aren't finite"),
        ({**cityscapes(), "imgHeight": 10**6, "imgWidth": 10**6}, "found 1000000 x 1000000 pixels"),
        ({**cityscapes(), "imgHeight": 41}, "41 x 60"),
    ],
)
def test_what_cannot_be_drawn_is_named_with_its_file(tmp_path, content, message):
    write(tmp_path, "a", content)
    dataset = PolygonDataset(str(tmp_path), class_map={"car": "car", "sky": None})
    dataset.size_limit = SizeLimit(1.0)
    (problem,) = dataset.check()
    assert problem.where.endswith("a.json")
    assert message in problem.what
    assert problem.what.count("\n") == 0


def test_a_missing_file_is_named_as_json(tmp_path):
    write(tmp_path, "a", cityscapes(("car", TRIANGLE, {})))
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "images/b.png")
    assert "have no label: b.json" in PolygonDataset(str(tmp_path)).check()[0].what
    (tmp_path / "labels/a.json").rename(tmp_path / "labels/c.json")
    with pytest.raises(DatasetError, match=re.escape("expected a.json, b.json")):
        PolygonDataset(str(tmp_path))
