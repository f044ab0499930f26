import pytest
import torch

from lightning_uda.metrics import read_confusion, write_confusion


def test_a_matrix_comes_back_as_it_was(tmp_path):
    confusion = torch.tensor([[2**40, 1], [0, 7]])
    path = tmp_path / "run" / "confusion_val.csv"
    write_confusion(path, torch.zeros(2, 2, dtype=torch.int64), ["road", "sky, blue"])
    write_confusion(path, confusion, ["road", "sky, blue"])
    found, classes = read_confusion(path)
    assert torch.equal(found, confusion)
    assert classes == ["road", "sky, blue"]
    assert [file.name for file in path.parent.iterdir()] == ["confusion_val.csv"]


@pytest.mark.parametrize(
    "content", ["", "x,road,sky\nroad,1,2\n", "x,road,sky\nroad,1,2\nsky,a,3\n", "x,road,sky\nroad,1,2\ntram,0,3\n"]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "confusion_val.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"confusion_val\.csv: expected a confusion matrix"):
        read_confusion(path)
