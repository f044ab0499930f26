import re

import cv2
import numpy as np
import pytest

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets import MediaFiles
from tests.fixtures.media import picture, read_video, save, save_video


def names(paths):
    dataset = MediaFiles([str(path) for path in paths])
    return [dataset.name(index) for index in range(len(dataset))]


def test_a_folder_is_searched_to_its_ground(tmp_path):
    for name in ("b.png", "a/a.jpg", "a/b/c.bmp", ".hidden.png", "a/.hidden/d.png"):
        save(tmp_path / name, picture(0))
    (tmp_path / "classes.json").write_text("{}")
    assert names([tmp_path]) == ["a/a", "a/b/c", "b"]
    dataset = MediaFiles([str(tmp_path)])
    assert dataset.image_size(2) == (20, 36)
    assert dataset.frame(2) is None
    np.testing.assert_array_equal(dataset.load_image(2), picture(0))


def test_images_of_fewer_bits_than_their_files_are_as_bright_as_in_training(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4, 3), 4095, np.uint16))
    assert MediaFiles([str(tmp_path)], image_bits=12).load_image(0).min() == 255
    assert MediaFiles([str(tmp_path)]).load_image(0).max() < 20


def test_files_of_one_name_keep_apart(tmp_path):
    for name in ("day/a.png", "night/a.png", "night/a.jpg", "day/b/000000.png"):
        save(tmp_path / name, picture(0))
    save_video(tmp_path / "day/b.mp4", [picture(0, 32, 48)])
    (tmp_path / "list.txt").write_text("# of mine\nnight/a.png\n\nnight/a.jpg\n", encoding="utf-16")
    expected = ["night/a.png", "night/a.jpg", "day/a", "day/b/000000", "day/b.mp4/000000"]
    assert names([tmp_path / "list.txt", tmp_path / "day"]) == expected
    assert names([tmp_path / "night/a.png", tmp_path / "night/a.png"]) == ["a"]
    save(tmp_path / "night/a.png.jpg", picture(0))
    assert names([tmp_path / "night"]) == ["a.jpg", "a.png", "a.png.jpg"]


def test_frames_of_a_video_in_any_order(tmp_path):
    save(tmp_path / "a.png", picture(0))
    save_video(tmp_path / "b.mp4", [np.full((32, 48, 3), 50 * i, np.uint8) for i in range(5)])
    dataset = MediaFiles([str(tmp_path)])
    _, frames = read_video(tmp_path / "b.mp4")
    assert [dataset.name(i) for i in range(6)] == ["a", *(f"b/{i:06d}" for i in range(5))]
    assert dataset.frame(4) == ("b", 3, 5, 12.5)
    assert dataset.image_size(4) == (32, 48)
    for index in (1, 3, 2, 5, 5, 0, 4):
        expected = picture(0) if index == 0 else frames[index - 1]
        np.testing.assert_array_equal(dataset.load_image(index), expected)
    assert dataset.check() == []


def damaged(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no picture, no video")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "gone.png", r"gone\.png: not found; expected an image, a video, a folder or a list"),
        (lambda folder: damaged(folder / "a/b.json").parent, r"a: no images or videos found; expected .* b\.json"),
        (lambda folder: damaged(folder / "b.json"), r"b\.json: neither an image nor a video by its name; expected"),
        (lambda folder: damaged(folder / "b.txt"), r"b\.txt: 1 of the 1 paths in it aren't there: .*no picture, no"),
    ],
)
def test_paths_that_lead_nowhere_are_said_in_a_line(make, message, tmp_path):
    with pytest.raises(DatasetError, match=message) as error:
        MediaFiles([str(make(tmp_path))])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_said_in_a_line(tmp_path):
    damaged(tmp_path / "a.png")
    damaged(tmp_path / "b.mp4")
    save_video(tmp_path / "c.avi", 3 * [picture(0, 32, 48)], codec="MJPG", backend=cv2.CAP_OPENCV_MJPEG)
    first, second = MediaFiles([str(tmp_path)]).check()
    assert re.match(r".*a\.png: can't be decoded as an image", f"{first.where}: {first.what}")
    assert second.where == str(tmp_path / "b.mp4")
    assert second.what.startswith("can't be opened as a video. Copy it again, or convert it")
    with pytest.raises(DatasetError, match=r"MediaFiles has no labels"):
        MediaFiles([str(tmp_path / "a.png")]).load_label(0)
