"""What can't be written to is refused before the work, by every command that writes what `--output` names."""

import os

import pytest

from lightning_uda.__main__ import main

FILES = ("folds runs/a", "report runs/a", "export --format torch_export --config c.yaml")
FOLDERS = ("predict --images images --ckpt_path runs/a", "analyze --config c.yaml")


@pytest.mark.parametrize(
    ("command", "output", "message"),
    [
        *((command, "folder", "is a folder; expected a file") for command in FILES if "report" not in command),
        *((command, "file/new", "file is no folder") for command in (*FILES, *FOLDERS)),
        *((command, os.devnull, "is a device or a pipe") for command in FILES),
        *((command, os.devnull, "is no folder") for command in FOLDERS),
    ],
)
def test_outputs_that_cannot_be_are_refused_at_once(command, output, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match=rf"^error: --output: {output}.*{message}"):
        main([*command.split(), "--output", output])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
