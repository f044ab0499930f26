import re

import pytest
import yaml

from lightning_uda.__main__ import main
from lightning_uda.commands.configs import copy_config, listing, said_of
from lightning_uda.commands.runner import Runner
from lightning_uda.config_files import short_names
from tests.fixtures.configs import CONFIGS, read


def test_the_list_has_a_line_for_each_config_in_groups(capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(found) == set(short_names())
    assert all(len(line.split()) > 1 for line in found.values())
    assert lines[0].startswith("demo: ")
    assert "minicity: MiniCity, the embedded benchmark" in "\n".join(lines)
    assert "grids: lightning-uda grid NAME" in lines


def test_a_text_chooses_names(capsys):
    main(["configs", "minicity/dac"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert "minicity/dacs" in names
    assert all("minicity/dac" in name for name in names)
    with pytest.raises(FileNotFoundError, match="no name with 'zzz'"):
        listing("zzz")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# One. Two.\nx: 1", "One."),
        ("# A sentence over\n# two lines: and more. Next.\n", "A sentence over two lines: and more."),
        ("# DSP: Dual soft-paste.\nx: 1", "DSP: Dual soft-paste."),
        ("# Of v1.5 and 0.2 units\nx: 1\n# later", "Of v1.5 and 0.2 units"),
    ],
)
def test_a_line_is_the_first_sentence(text, said, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    assert said_of(tmp_path / "a.yaml") == said


def test_a_copy_holds_all_that_is_included_and_parses_where_it_lies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["configs", "copy", "minicity/cbst_sp", "deep/my.yaml"])
    assert "minicity/cbst_sp is copied to deep/my.yaml. It is used by: lightning-uda fit --config deep/my.yaml" in (
        capsys.readouterr().out
    )
    copied = yaml.safe_load((tmp_path / "deep/my.yaml").read_text())
    assert copied == read(CONFIGS / "experiment/minicity/cbst_sp.yaml")
    printed = []
    for name in ("deep/my.yaml", "minicity/cbst_sp"):
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", name, "--print_config"])
        assert not end.value.code
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_copy_without_a_name_gets_the_last_part_and_replaces_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_config("demo/dacs", None)
    before = (tmp_path / "dacs.yaml").read_text()
    with pytest.raises(FileExistsError, match=r"found dacs\.yaml\. Move it away, or give another FILE"):
        copy_config("minicity/dacs", None)
    assert (tmp_path / "dacs.yaml").read_text() == before


def test_a_file_that_includes_nothing_is_copied_as_it_is(tmp_path):
    said = copy_config("grids/minicity", tmp_path)
    assert (tmp_path / "minicity.yaml").read_bytes() == (CONFIGS / "grids/minicity.yaml").read_bytes()
    assert re.search(r"lightning-uda grid \S+minicity\.yaml$", said)


def test_a_copy_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"^configs copy: .*x\.yaml can't be written, as .*file is no"):
        copy_config("minicity/dacs", tmp_path / "file/x.yaml")


@pytest.mark.parametrize("words", [["copy"], ["copy", "a", "b", "c"], ["a", "b"]])
def test_other_words_are_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["configs", *words])
    assert end.value.code == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["grid", "minicity", "--rows", "dacs", "--seeds", "0"], ["sweep", "minicity_dsp_k"]], ids=" ".join
)
def test_grids_and_sweeps_are_found_by_name_from_any_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, "check", lambda self, points: None)  # which parses options for seconds
    main([*words, "--dry-run"])
    assert "to do" in capsys.readouterr().out


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (CONFIGS.parent / "docs/running.md").read_text(encoding="utf-8")
    commands = re.search(r"## Starting.*?```\n(.*?)```", page, re.S)[1].splitlines()
    assert len(commands) == 4
    for command in commands:
        program, *words = command.split()
        assert program == "lightning-uda"
        if words[0] == "fit":
            with pytest.raises(SystemExit) as end:
                main([*words, "--print_config"])
            assert not end.value.code, capsys.readouterr().err
        else:
            main(words)
    assert (tmp_path / "my.yaml").is_file()
