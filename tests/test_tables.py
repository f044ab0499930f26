import io
import re

import pytest
import rich
from rich.console import Console

from lightning_uda.tables import (
    Row,
    append_row,
    console_table,
    csv_text,
    percent,
    percent_bar,
    read_log,
    read_rows,
    read_table,
    require_numbers,
)


def test_rows_with_new_columns_join_the_earlier_rows(tmp_path):
    path = tmp_path / "new" / "iou.csv"
    append_row(path, {"step": 1, "miou": 12.345678})
    append_row(path, {"step": 2, "miou": float("nan"), "iou_road": 3.0})
    assert path.read_text().splitlines() == ["step,miou,iou_road", "1,12.3457,", "2,,3.0"]
    assert [file.name for file in path.parent.iterdir()] == ["iou.csv"]
    assert read_rows(path)[1] == {"step": "2", "miou": "", "iou_road": "3.0"}


def test_cells_without_a_value_are_empty_in_files_and_dashes_in_tables():
    assert csv_text(["a, b", "c"], [[None, float("nan")], [0.00025, "x"]]) == '"a, b",c\n,\n0.00025,x\n'
    assert [percent(value) for value in (None, float("nan"), 0.0, 99.96)] == ["-", "-", "0.0", "100.0"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_tables_are_written_in_encodings_without_blocks(encoding, monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=60)
    monkeypatch.setattr(rich, "_console", console)
    rows = [Row("road", ["62.5", percent_bar(62.5)], (128, 64, 128)), Row("sky", ["-", percent_bar(float("nan"))])]
    console.print(console_table("Title", ["class", "IoU %", ""], rows))
    file.seek(0)
    assert ["##", "road", "62.5", "#" * 12] in [line.strip("| ").replace("|", " ").split() for line in file]


def test_a_narrow_console_shows_every_value_beside_a_long_label():
    console = Console(file=io.StringIO(), width=80)
    rows = [Row("DSP + all four (pool, HTCM, MIC, rare class sampling)", [f"{i}2.6 ± 0.{i}" for i in range(1, 8)])]
    console.print(console_table("Title", ["row", *7 * ["vs. dual hard paste"]], rows))
    shown = console.file.getvalue().split()
    assert {f"{i}2.6" for i in range(1, 8)} | {f"0.{i}" for i in range(1, 8)} <= {*shown}
    assert "…" not in "".join(shown)


def test_classes_have_a_swatch_and_means_a_line_above():
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system="truecolor")
    rows = [Row("road", ["1.0"], (128, 64, 128)), Row("mIoU", ["2.0"], style="bold", section=True)]
    console.print(console_table("Title", ["class", "run"], rows))
    title, *_, road, line, mean, _ = console.file.getvalue().splitlines()
    assert "Title" in title
    assert "\x1b[38;2;128;64;128m██ " in road
    assert set(line.strip()) == {"─"}
    assert "██" not in mean


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "found bytes that aren't text in UTF-8"),
        (b"a,b\n1,2\n", r"found no column 'step'; its columns are \['a', 'b'\]"),
        (b"step\n1\nx\n", "found 'x' as 'step' in row 2; expected a whole number"),
        (b"epoch,step\n0,\n", "found '' as 'step' in row 1; expected a whole number"),
        (b"step\n1,2\n", "found more cells in row 1 than the 1 columns"),
        (b"step,loss\n1,x\n", "found 'x' as 'loss' in row 1; expected a number"),
        (b"step\n" + b"1" * 200_000 + b"\n", "can't be read as CSV"),
    ],
)
def test_a_damaged_table_is_named(content, message, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {message}") as error:
        require_numbers(path, *read_table(path, {"step": int}))
    assert str(error.value).endswith("or move it away.")


def test_a_row_that_was_being_written_is_left_out_of_a_log(tmp_path):
    path = tmp_path / "metrics.csv"
    for end in ("", "1", "12,", "12,-"):
        path.write_text(f"step,loss\n9,0.5\n{end}")
        assert read_log(path) == (["step", "loss"], [{"step": "9", "loss": "0.5"}])
    path.write_text("")
    assert read_log(path) == ([], [])
