import json

import cv2
import numpy as np
import pytest
from PIL import Image

from lightning_uda.data.check import scan
from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.folder import FolderDataset, ImageFolder
from lightning_uda.label_spaces import LabelSpace
from tests.fixtures.make_folder_dataset import CLASS_MAP, make_bad, make_good, make_unlabelled


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    return root, make_good(root)


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    make_bad(root)
    return FolderDataset(str(root), class_map=CLASS_MAP)


def write_pair(root, name="a", size=(4, 6)):
    for folder, shape in (("images", (*size, 3)), ("labels", size)):
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros(shape, np.uint8)).save(path)


def message_of(root, **arguments):
    with pytest.raises(DatasetError) as caught:
        FolderDataset(str(root), **arguments)
    return str(caught.value)


# Reading


def test_every_kind_of_file_gives_the_stored_pixels_and_ids(good):
    root, expected = good
    dataset = FolderDataset(str(root))
    assert [dataset.name(i) for i in range(len(dataset))] == sorted(expected)
    for i in range(len(dataset)):
        image, label = expected[dataset.name(i)]
        loaded, ids = dataset.load_image(i), dataset.load_label(i)
        assert loaded.dtype == ids.dtype == np.uint8
        assert loaded.shape == (*label.shape, 3), dataset.name(i)
        assert dataset.image_size(i) == label.shape, dataset.name(i)
        np.testing.assert_array_equal(ids, label, err_msg=dataset.name(i))
        if image is not None:
            np.testing.assert_array_equal(loaded, image, err_msg=dataset.name(i))


def test_channels_are_rgb(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16), (200, 100, 20)).save(tmp_path / "images" / "a.jpg", quality=100)
    image = FolderDataset(str(tmp_path), labels=None).load_image(0)
    np.testing.assert_allclose(image.mean((0, 1)), (200, 100, 20), atol=2)


def test_good_set_passes_its_check(good):
    assert FolderDataset(str(good[0])).check() == []


def test_reads_a_split_in_its_order(good):
    root, _ = good
    (root / "some.txt").write_text("# two of them\n\nsub/dir/with.dots.v1\n  plain \n")
    dataset = FolderDataset(str(root), split="some.txt")
    assert [dataset.name(i) for i in range(len(dataset))] == ["sub/dir/with.dots.v1", "plain"]
    assert len(FolderDataset(str(root), split=str(root / "some.txt"))) == 2


def test_unlabelled_set_needs_only_images(tmp_path):
    make_unlabelled(tmp_path)
    dataset = FolderDataset(str(tmp_path), labels=None)
    assert (len(dataset), dataset.has_labels, dict(dataset.class_ids)) == (3, False, {})
    assert dataset.load_image(2).shape == (8, 12, 3)
    assert dataset.check() == []
    with pytest.raises(DatasetError, match=r"made without labels .*'frame_0'.*Give it a `labels` folder"):
        dataset.load_label(0)


def test_suffixes_are_no_part_of_the_name(tmp_path):
    write_pair(tmp_path, "city/0_left")
    (tmp_path / "labels/city/0_left.png").rename(tmp_path / "labels/city/0_ids.png")
    (tmp_path / "labels/city/0_color.png").write_bytes(b"")
    (tmp_path / "images/city/0_right.png").write_bytes(b"")
    dataset = FolderDataset(str(tmp_path), class_map={0: "road"}, image_suffix="_left", label_suffix="_ids")
    assert [dataset.name(i) for i in range(len(dataset))] == ["city/0"]
    assert dataset.load_label(0).shape == (4, 6)


def test_label_folder_inside_the_image_folder_holds_no_images(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "images/a.png").rename(tmp_path / "a.png")
    (tmp_path / "images").rmdir()
    assert len(FolderDataset(str(tmp_path), images=".", class_map={0: "road"})) == 1


IDS = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)


def save_label(path, kind="L"):
    image = Image.fromarray(IDS.astype(np.uint16) if kind == "I;16" else IDS)
    if kind == "P":
        image = Image.frombytes("P", image.size, IDS.tobytes())
        image.putpalette([(7 * i + 3) % 256 for i in range(768)])  # colours that aren't the ids
    image.save(path)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(".png", "L"), (".png", "P"), (".tif", "L"), (".tiff", "P"), (".TIF", "I;16"), (".bmp", "L"), (".bmp", "P")],
)
def test_labels_beside_their_images_are_told_by_a_suffix(tmp_path, ending, kind):
    (tmp_path / "day").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "day/img_01.jpg")
    Image.new("RGB", (3, 2)).save(tmp_path / "img_02.png")
    save_label(tmp_path / f"day/img_01_label{ending}", kind)
    save_label(tmp_path / f"img_02_label{ending}", kind)
    dataset = FolderDataset(
        str(tmp_path), images=".", labels=".", label_suffix="_label", class_map=dict(enumerate("abcde"))
    )
    assert [dataset.name(i) for i in range(len(dataset))] == ["day/img_01", "img_02"]
    assert dataset.check() == []
    for i in range(2):
        np.testing.assert_array_equal(dataset.load_label(i), IDS)


def test_one_folder_for_both_needs_a_suffix(tmp_path):
    write_pair(tmp_path)
    message = message_of(tmp_path, labels="images", class_map={0: "road"})
    assert "`images` and `labels` are the same folder" in message
    assert "`label_suffix: _label`" in message


@pytest.mark.parametrize("ending", [".tif", ".bmp"])
def test_labels_in_colours_and_damaged_ones_are_named(tmp_path, ending):
    for name in ("colours", "cut"):
        write_pair(tmp_path, name, (40, 60))
        (tmp_path / f"labels/{name}.png").unlink()
    Image.new("RGB", (60, 40)).save(tmp_path / f"labels/colours{ending}")
    Image.new("L", (60, 40)).save(tmp_path / f"labels/cut{ending}")
    whole = (tmp_path / f"labels/cut{ending}").read_bytes()
    (tmp_path / f"labels/cut{ending}").write_bytes(whole[: len(whole) // 2])
    colours, cut = FolderDataset(str(tmp_path), class_map={0: "road"}).check()
    assert colours.where.endswith(f"colours{ending}")
    assert "of kind RGB; expected a single channel" in colours.what
    assert cut.where.endswith(f"cut{ending}")
    assert "label can't be decoded" in cut.what


def test_jpeg_labels_are_refused_as_lossy(tmp_path):
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b")
    Image.new("RGB", (6, 4)).save(tmp_path / "labels/a.jpg")  # a picture beside a label that is there
    assert FolderDataset(str(tmp_path), class_map={0: "road"}).check() == []
    (tmp_path / "labels/a.png").unlink()
    message = message_of(tmp_path, class_map={0: "road"})
    assert "labels: found 1 JPEG labels, such as a.jpg; JPEG is lossy" in message


def test_unpaired_files_are_refused_or_skipped_and_named(tmp_path):
    for name in ("a", "b", "no_image", "no_label"):
        write_pair(tmp_path, name)
    (tmp_path / "images/no_image.png").unlink()
    (tmp_path / "labels/no_label.png").unlink()
    strict = FolderDataset(str(tmp_path), class_map={0: "road"})
    missing, extra = strict.check()
    assert missing.what.startswith("1 of 3 images have no label: no_label.png. ")
    assert extra.what.startswith("1 labels have no image: no_image.png. ")
    assert missing.where == extra.where == str(tmp_path / "labels")
    assert all("`unpaired: skip`" in problem.what for problem in (missing, extra))
    assert strict.check(labels=False) == strict.remarks() == []
    skipping = FolderDataset(str(tmp_path), class_map={0: "road"}, unpaired="skip")
    assert [skipping.name(i) for i in range(len(skipping))] == ["a", "b"]
    assert [skipping.image_path(i).name for i in range(2)] == ["a.png", "b.png"]
    assert skipping.check() == []
    assert [remark.what for remark in skipping.remarks()] == [
        "skipped 1 of 3 images, which have no label: no_label",
        "skipped: 1 labels have no image: no_image.png",
    ]
    (tmp_path / "list.txt").write_text("a\n")
    assert FolderDataset(str(tmp_path), class_map={0: "road"}, split="list.txt").check() == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_list_files_in_utf_16_are_read(tmp_path, encoding):
    write_pair(tmp_path, "bäume")
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "list.txt").write_bytes(f"{mark}# Liste\r\nbäume\r\n".encode(encoding))
    assert FolderDataset(str(tmp_path), labels=None, split="list.txt").name(0) == "bäume"


def test_list_files_that_are_no_utf_8_are_named(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "list.txt").write_bytes("bäume\n".encode("latin-1"))
    assert "list.txt: the list file isn't text in UTF-8" in message_of(tmp_path, labels=None, split="list.txt")


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    for name in ("a", "inner/b"):
        write_pair(tmp_path / "set", name)
    write_pair(tmp_path / "elsewhere", "c")
    images = tmp_path / "set/images"
    (images / "self").symlink_to(images)
    (images / "inner/up").symlink_to(images.parent)
    (images / "linked").symlink_to(tmp_path / "elsewhere/images")
    (tmp_path / "elsewhere/images/back").symlink_to(images)  # into the set again, by way of another folder
    dataset = FolderDataset(str(tmp_path / "set"), labels=None)
    assert [dataset.name(i) for i in range(len(dataset))] == ["a", "inner/b", "linked/c"]


# Class maps


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.json", json.dumps({"ids": {"0": "road", "4": None}, "ignore": 255})),
        ("classes.yaml", "ids: {0: road, 4: null}\nignore: [255]\n"),
        ("classes.yml", "0: road\n4: null\n255: null\n"),
    ],
)
def test_class_map_is_read_from_a_file(tmp_path, file, text):
    write_pair(tmp_path)
    (tmp_path / file).write_text(text)
    wanted = {0: "road", 4: None, 255: None}
    assert FolderDataset(str(tmp_path)).class_ids == wanted
    assert FolderDataset(str(tmp_path), class_map=file).class_ids == wanted
    assert FolderDataset(str(tmp_path), class_map=str(tmp_path / file), ignore_ids=[9]).class_ids == wanted | {9: None}


def test_class_map_argument_and_ignore_ids_are_joined(tmp_path):
    write_pair(tmp_path)
    dataset = FolderDataset(str(tmp_path), class_map={0: "road", 1: None}, ignore_ids=[11, 255])
    assert dataset.class_ids == {0: "road", 1: None, 11: None, 255: None}
    assert dataset.strict_ids


def test_missing_class_map_error_says_what_to_write(tmp_path):
    write_pair(tmp_path)
    message = message_of(tmp_path)
    assert "no class map" in message
    advised = message[message.index('{"ids"') : message.index("; without labels")]
    (tmp_path / "classes.json").write_text(advised)
    assert FolderDataset(str(tmp_path)).class_ids == {0: "road", 1: "sky", 255: None}


@pytest.mark.parametrize(
    ("class_map", "found"),
    [
        ({0: "road", 255: "sky"}, "raw id 255 is both class 'sky' and ignored"),
        ({300: "road"}, "raw id 300 isn't an integer from 0 to 255"),
        ({"a": "road"}, "raw id 'a' isn't an integer"),
        ({0: True}, "class of raw id 0 is True; expected a name (in quotes) or null"),
        ({0: False}, 'write them as "no"'),
        ({0: None}, "names no class"),
        ({}, "names no class"),
        ("absent.json", "absent.json: class map file not found"),
        ("broken.json", "broken.json: class map can't be parsed"),
        ("list.yaml", "list.yaml: expected a mapping"),
    ],
)
def test_bad_class_maps_are_named(tmp_path, class_map, found):
    write_pair(tmp_path)
    (tmp_path / "broken.json").write_text("{0: road")
    (tmp_path / "list.yaml").write_text("- road\n- sky\n")
    assert found in message_of(tmp_path, class_map=class_map)


# Errors of the constructor


def test_missing_root(tmp_path):
    (tmp_path / "real").mkdir()
    message = message_of(tmp_path / "reel")
    assert "reel: dataset folder not found" in message
    assert "holds: real/" in message


def test_missing_image_folder(tmp_path):
    (tmp_path / "leftImg8bit").mkdir()
    message = message_of(tmp_path)
    assert "images: folder not found" in message
    assert "holds: leftImg8bit/. Correct `images`." in message


def test_missing_label_folder(tmp_path):
    make_unlabelled(tmp_path)
    message = message_of(tmp_path)
    assert "labels: folder not found" in message
    assert "holds: images/. Correct `labels`." in message
    assert "`labels: null`" in message


def test_empty_set(tmp_path):
    (tmp_path / "images").mkdir()
    assert "is empty" in message_of(tmp_path, labels=None)
    (tmp_path / "images" / "film.mp4").write_bytes(b"")
    message = message_of(tmp_path, labels=None)
    assert "no images found; expected files ending in .png, .jpg" in message
    assert "holds: film.mp4" in message


def test_split_names_without_image(tmp_path):
    make_unlabelled(tmp_path)
    (tmp_path / "train.txt").write_text("\n".join(["frame_0", *(f"other_{i}" for i in range(7))]))
    message = message_of(tmp_path, labels=None, split="train.txt")
    assert "7 of 8 names have no image: other_0, other_1, other_2, other_3, other_4 and 2 more" in message
    assert "Expected names like 'frame_0'" in message


def test_split_file_problems(tmp_path):
    make_unlabelled(tmp_path)
    (tmp_path / "train.txt").write_text("# nothing\n\n")
    (tmp_path / "twice.txt").write_text("frame_0\nframe_1\nframe_0\n")
    assert "holds these .txt files: train.txt, twice.txt" in message_of(tmp_path, labels=None, split="trian.txt")
    assert "names no image" in message_of(tmp_path, labels=None, split="train.txt")
    assert "1 names are listed more than once: frame_0" in message_of(tmp_path, labels=None, split="twice.txt")


def test_no_pair_at_all(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "labels/a.png").rename(tmp_path / "labels/a_label.png")
    message = message_of(tmp_path, class_map={0: "road"})
    assert (
        "none of the 1 images has a label; expected a.png. It holds 1 other label files, such as a_label.png" in message
    )
    (tmp_path / "labels/a_label.png").rename(tmp_path / "labels/a.txt")
    assert "holds: a.txt" in message_of(tmp_path, class_map={0: "road"})


def test_some_images_without_label(tmp_path):
    make_unlabelled(tmp_path)
    write_pair(tmp_path)
    (tmp_path / "images/frame_1.png").write_bytes(b"")
    dataset = FolderDataset(str(tmp_path), class_map={0: "road"})
    missing, empty = dataset.check()
    assert missing.where == str(tmp_path / "labels")
    assert missing.what.startswith("3 of 4 images have no label: frame_0.png, frame_1.png, frame_2.png. Add these")
    assert empty.where == str(tmp_path / "images/frame_1.png")
    assert dataset.check(labels=False) == [empty]
    assert dataset.load_label(0).shape == (4, 6)
    for load in (dataset.load_label, dataset.label_path):
        with pytest.raises(DatasetError, match="labels: 3 of 4 images have no label"):
            load(1)
    report = scan(dataset, LabelSpace("two", ("road", "sky"), ((1, 2, 3), (4, 5, 6))), progress=False)
    assert sorted(report.problems, key=str) == sorted([missing, empty], key=str)


@pytest.mark.parametrize(
    ("ids", "class_map", "ignored", "warning"),
    [
        ([0, 255, 255, 255], {0: "road"}, (255,), "hold two values, 0 and 255, and 255 counts as void"),
        ([0, 255, 255, 255], {0: "road", 255: "sky"}, (), None),
        (
            [0, 7, 7, 7],
            {0: "road", 1: "sky", 7: None},
            (255,),
            "75 % of the pixels are void (ids 7), and no pixel is of sky",
        ),
        ([0, 1, 7, 7], {0: "road", 1: "sky", 7: None}, (255,), None),
        ([0, 0, 0, 7], {0: "road", 1: "sky", 7: None}, (255,), None),
    ],
)
def test_masks_whose_object_is_lost_as_void_are_warned_of(tmp_path, ids, class_map, ignored, warning):
    write_pair(tmp_path, size=(2, 2))
    Image.fromarray(np.array(ids, np.uint8).reshape(2, 2)).save(tmp_path / "labels/a.png")
    dataset = FolderDataset(str(tmp_path), class_map=class_map, ignore_ids=ignored)
    report = scan(dataset, LabelSpace("two", ("road", "sky"), ((1, 2, 3), (4, 5, 6))), progress=False)
    assert report.problems == []
    assert len(report.warnings) == (warning is not None)
    assert all(warning in found.what for found in report.warnings)


# Fewer bits than the file has


DEEP = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 178  # up to 4,094


def save_deep(root, ending, pixels=DEEP):
    (root / "images").mkdir(exist_ok=True)
    assert cv2.imwrite(str(root / f"images/a{ending}"), pixels[:, :, ::-1])


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_data_of_12_bits_in_files_of_16_is_scaled_on_request_and_told_of_otherwise(tmp_path, ending):
    save_deep(tmp_path, ending)
    Image.new("RGB", (3, 2), (200, 100, 20)).save(tmp_path / "images/b.png")
    plain = FolderDataset(str(tmp_path), labels=None)
    np.testing.assert_allclose(plain.load_image(0), DEEP // 256, atol=1)
    [remark] = plain.remarks()
    assert remark.where == str(tmp_path / "images")
    assert remark.what.startswith("the numbers in 1 image files of 16 bits reach 4094 of 65535")
    assert remark.what.endswith("If the data has 12 bits, set `image_bits: 12`.")
    scaled = FolderDataset(str(tmp_path), labels=None, image_bits=12)
    np.testing.assert_array_equal(scaled.load_image(0), DEEP // 16)
    np.testing.assert_array_equal(scaled.load_image(1)[0, 0], (200, 100, 20))
    assert scaled.remarks() == []
    assert scaled.fingerprint() != plain.fingerprint()


def test_grey_data_of_10_bits_is_scaled_too(tmp_path):
    (tmp_path / "a").mkdir()
    assert cv2.imwrite(str(tmp_path / "a/x.png"), np.array([[0, 512, 1023]], np.uint16))
    assert "set `image_bits: 10`" in ImageFolder(str(tmp_path)).remarks()[0].what
    np.testing.assert_array_equal(ImageFolder(str(tmp_path), image_bits=10).load_image(0)[0, :, 1], [0, 128, 255])


def test_files_that_use_their_16_bits_are_sound_and_have_no_12(tmp_path):
    save_deep(tmp_path, ".png", DEEP * 16)
    assert FolderDataset(str(tmp_path), labels=None).remarks() == []
    with pytest.raises(DatasetError, match=r"a\.png: found numbers up to 65504, expected at most 4095 in 12 bits"):
        FolderDataset(str(tmp_path), labels=None, image_bits=12).load_image(0)


# Labels among images


def test_labels_beside_the_images_of_an_unlabelled_set_are_told_of_and_left_out(tmp_path):
    for name in ("a", "b", "sub/c"):
        for ending in ("", "_label"):
            path = tmp_path / f"{name}{ending}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (3, 2)).save(path)
    for dataset in (ImageFolder(str(tmp_path)), FolderDataset(str(tmp_path), images=".", labels=None)):
        [remark] = dataset.remarks()
        assert remark.what.startswith(
            "3 of 6 images have the name of another and '_label': labels beside their images?"
        )
    ending = {"label_suffix": "_label"}
    for dataset in (
        ImageFolder(str(tmp_path), **ending),
        FolderDataset(str(tmp_path), images=".", labels=None, **ending),
    ):
        assert [dataset.name(i) for i in range(len(dataset))] == ["a", "b", "sub/c"]
        assert dataset.remarks() == []


@pytest.mark.parametrize("names", [["1", "10", "2", "20"], ["a", "a_left", "b", "c", "d"], ["x_1", "x_2"]])
def test_names_that_begin_alike_are_no_labels(tmp_path, names):
    for name in names:
        Image.new("L", (3, 2)).save(tmp_path / f"{name}.png")
    assert ImageFolder(str(tmp_path)).remarks() == []


def test_two_images_of_one_name(tmp_path):
    make_unlabelled(tmp_path, 1)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "frame_0.jpg")
    assert "second file named 'frame_0'" in message_of(tmp_path, labels=None)


# Check


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("labels/wrong_size.png", "label is 20 x 30 (height x width), its image 40 x 60"),
        ("labels/wrong_ids.png", "found ids [33, 34] (pixels: 33: 3, 34: 1), expected only 0-3, 7, 255. Add them to"),
        ("labels/rgb_label.png", "label is a PNG of kind RGB colour; expected a single-channel PNG"),
        ("labels/deep_ids.png", "found 16-bit ids up to 26001, expected class ids below 256"),
        ("labels/cut_label.png", "label can't be decoded"),
        ("labels/jpeg_label.png", "label is a JPEG file; JPEG is lossy"),
        ("images/empty_image.png", "empty file (0 bytes)"),
        ("images/text_image.png", "can't be decoded as an image (begins with b'<html>40')"),
        ("images/cut_png.png", "the file is cut off"),
        ("images/cut_jpeg.jpg", "the file is cut off"),
        ("images/cut_jpeg_with_thumbnail.jpg", "the file is cut off"),
        ("images/turned_tiff.tif", "TIFF with orientation tag 6"),
        ("images/two_faults.png", "empty file (0 bytes)"),
        ("labels/two_faults.png", "found ids [99] (pixels: 99: 2400)"),
    ],
)
def test_check_names_each_fault(bad, file, what):
    found = [problem.what for problem in bad.check() if problem.where == str(bad.root / file)]
    assert len(found) == 1
    assert what in found[0]


def test_check_reports_nothing_else(bad):
    assert len(bad.check()) == 14


def test_check_of_an_unlabelled_set_opens_no_label(bad):
    dataset = FolderDataset(str(bad.root), labels=None)
    assert {problem.where.split("/")[-2] for problem in dataset.check()} == {"images"}


@pytest.mark.parametrize(
    "name", ["empty_image", "text_image", "cut_png", "cut_jpeg", "cut_jpeg_with_thumbnail", "turned_tiff"]
)
def test_loading_a_broken_image_names_the_file(bad, name):
    index = [bad.name(i) for i in range(len(bad))].index(name)
    with pytest.raises(DatasetError, match=f"{name}.*(empty file|cut off|can't be decoded|orientation tag)"):
        bad.load_image(index)


def test_junk_after_the_end_of_an_image_is_no_fault(tmp_path):
    make_unlabelled(tmp_path, 1)
    path = tmp_path / "images" / "frame_0.png"
    Image.open(path).save(path.with_name("b.jpg"))
    for file in (path, path.with_name("b.jpg")):
        file.write_bytes(file.read_bytes() + b"\0" * 100_000)
    assert FolderDataset(str(tmp_path), labels=None).check() == []


def test_image_folder_takes_all_images_below_a_folder(tmp_path):
    for name in ("b.jpg", "inner/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / name)
    dataset = ImageFolder(str(tmp_path))
    assert [dataset.name(i) for i in range(len(dataset))] == ["b", "inner/a"]
    assert not dataset.has_labels
    with pytest.raises(DatasetError, match="dataset folder not found"):
        ImageFolder(str(tmp_path / "nowhere"))


def test_a_relative_root_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    make_good(tmp_path / "good")
    absolute = FolderDataset(str(tmp_path / "good"), class_map=CLASS_MAP)
    (tmp_path / "good/classes.json").write_text(json.dumps({"ids": CLASS_MAP}))
    monkeypatch.chdir(tmp_path)
    relative = FolderDataset("good")
    assert len(relative) == len(absolute)
    assert dict(relative.class_ids) == dict(absolute.class_ids)
