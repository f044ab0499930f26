import io
import sys

import pytest
import rich
import torch

from lightning_uda.__main__ import main
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.metrics import keep_confusion


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_lacks_characters_ends_no_report(encoding, tmp_path, monkeypatch):
    for name in ("first", "second"):
        space = LabelSpace("own", ("straße", "небо"), ((1, 2, 3), (250, 120, 80)))
        keep_confusion(tmp_path / name, "val", 100, None, torch.tensor([[30, 10], [0, 0]]), space.classes)
        (tmp_path / name / "label_space.yaml").write_text(space.as_yaml(), encoding="utf-8")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(rich, "_console", None)
    page = tmp_path / "page.html"
    main(["report", str(tmp_path / "second"), "--against", str(tmp_path / "first"), "--output", str(page)])
    stream.seek(0)
    lines = stream.read().splitlines()
    road = "straße" if encoding == "cp1252" else "stra?e"
    assert ["##", road, "75.0", "75.0", "+0.0"] in [line.replace("|", " ").split() for line in lines]
    assert any("????" in line for line in lines)
    assert lines[-1] == str(page)
    text = page.read_text(encoding="utf-8")
    assert "небо" in text
    assert "rgb(250, 120, 80)" in text
