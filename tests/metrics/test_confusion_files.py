import pytest
import torch

from lightning_uda.metrics import find_confusions, keep_confusion, read_confusion, write_confusion


def test_a_matrix_comes_back_as_it_was(tmp_path):
    confusion = torch.tensor([[2**40, 1], [0, 7]])
    path = tmp_path / "run" / "val_step_000001.csv"
    write_confusion(path, torch.zeros(2, 2, dtype=torch.int64), ["road", "sky, blue"])
    write_confusion(path, confusion, ["road", "sky, blue"])
    found, classes = read_confusion(path)
    assert torch.equal(found, confusion)
    assert classes == ["road", "sky, blue"]
    assert [file.name for file in path.parent.iterdir()] == ["val_step_000001.csv"]


@pytest.mark.parametrize(
    "content", ["", "x,road,sky\nroad,1,2\n", "x,road,sky\nroad,1,2\nsky,a,3\n", "x,road,sky\nroad,1,2\ntram,0,3\n"]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "val_step_000001.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"val_step_000001\.csv: expected a confusion matrix"):
        read_confusion(path)


def test_matrices_are_kept_beside_each_other_and_found_by_step_order_and_scope(tmp_path):
    def keep(stage, step, scope, count):
        return keep_confusion(tmp_path, stage, step, scope, torch.tensor([[count]]), ["road"]).name

    assert keep("val", 80000, None, 1) == "val_step_080000.csv"
    assert keep("val", 1000000, "at_512x1024", 2) == "val_step_1000000_at_512x1024.csv"
    assert keep("val", 80000, None, 3) == "val_step_080000.2.csv"
    assert keep("val", 80000, None, 4) == "val_step_080000.3.csv"
    assert keep("test", 0, None, 5) == "test_step_000000.csv"
    assert keep("val", 1000000, "beyond_3px_of_borders", 6) == "val_step_1000000_beyond_3px_of_borders.csv"
    assert keep("val", 1000000, "within_3px_of_borders", 7) == "val_step_1000000_within_3px_of_borders.csv"
    assert keep("val", 1000000, "within_3px_of_borders", 8) == "val_step_1000000_within_3px_of_borders.2.csv"
    (tmp_path / "confusions" / "val_step_000001.csv.123.part").touch()
    (tmp_path / "confusions" / "mine.csv").touch()
    found = find_confusions(tmp_path)
    assert [(file.stage, file.step, file.scope, file.number) for file in found] == [
        ("test", 0, None, 1), ("val", 80000, None, 1), ("val", 80000, None, 2), ("val", 80000, None, 3),
        ("val", 1000000, "at_512x1024", 1), ("val", 1000000, "within_3px_of_borders", 1),
        ("val", 1000000, "beyond_3px_of_borders", 1), ("val", 1000000, "within_3px_of_borders", 2),
    ]  # fmt: skip
    assert [read_confusion(file.path)[0].item() for file in found] == [5, 1, 3, 4, 2, 7, 6, 8]
    assert find_confusions(tmp_path / "nowhere") == []
