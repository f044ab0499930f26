import pytest

from lightning_uda.metrics import at_size, mean_label, size_name


@pytest.mark.parametrize(
    ("stem", "size", "name", "label"),
    [
        ("miou", None, "miou", "mIoU"),
        ("miou_13", None, "miou_13", "mIoU (13)"),
        ("miou", (512, 1024), "miou_at_512x1024", "mIoU at 512x1024"),
        ("miou_13", (512, 1024), "miou_13_at_512x1024", "mIoU (13) at 512x1024"),
        ("miou_at_night", None, "miou_at_night", "mIoU (at_night)"),
    ],
)
def test_names_and_what_tables_make_of_them(stem, size, name, label):
    size = None if size is None else size_name(size)
    assert at_size(stem, size) == name
    assert mean_label(name) == label
