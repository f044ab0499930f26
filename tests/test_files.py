import os

import pytest

from lightning_uda.files import require_file_place, require_folder_place, versions, write_beside_older


def test_versions_come_in_the_order_of_their_numbers_and_nothing_else_is_one(tmp_path):
    for name in ("version_10", "version_9", "version_0", "version_x", "version_", "other_1"):
        (tmp_path / name).mkdir()
    (tmp_path / "version_3").write_text("a file")
    assert [path.name for path in versions(tmp_path)] == ["version_0", "version_9", "version_10"]
    assert versions(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("check", "place", "message"),
    [
        (require_file_place, "folder", r"--output: .*folder is a folder; expected a file to write\. Give another path"),
        (require_file_place, "file/new", r"file/new can't be written, as .*/file is no folder"),
        (require_file_place, os.devnull, "is a device or a pipe; expected a file to write"),
        (require_file_place, "x" * 300, "can't be written: in .* nothing can be made"),
        (require_folder_place, "file", "is no folder"),
        (require_folder_place, "file/a/b", "file/a/b can't be written, as .*/file is no folder"),
        (require_folder_place, os.devnull, "is no folder"),
        pytest.param(
            require_folder_place, "/proc/x/y", "/proc/x/y can't be written: in /proc nothing can be made",
            marks=pytest.mark.skipif(not os.path.isdir("/proc"), reason="Linux alone has it"),
        ),
    ],
)  # fmt: skip
def test_places_where_nothing_can_be_written_are_refused_beforehand(check, place, message, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=message) as error:
        check(tmp_path / place, "--output")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_places_where_something_can_be_written_are_left_as_they_are(tmp_path):
    (tmp_path / "file").write_text("mine")
    require_file_place(tmp_path / "file", "--output")
    require_file_place(tmp_path / "a/b/file", "--output")
    require_folder_place(tmp_path / "a/b", "--output")
    require_folder_place(tmp_path, "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_never_renamed_for_a_file(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError, match="out is a folder"):
        write_beside_older(tmp_path / "out", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
