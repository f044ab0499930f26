import pytest

from lightning_uda.metrics import in_scope, score_label
from lightning_uda.metrics.columns import border_scopes, scope_order, size_scope

AT, (WITHIN, BEYOND) = size_scope((512, 1024)), border_scopes(3)


@pytest.mark.parametrize(
    ("stem", "scope", "name", "label"),
    [
        ("miou", None, "miou", "mIoU"),
        ("miou_13", None, "miou_13", "mIoU (13)"),
        ("miou", AT, "miou_at_512x1024", "mIoU at 512x1024"),
        ("miou_13", AT, "miou_13_at_512x1024", "mIoU (13) at 512x1024"),
        ("miou_at_night", None, "miou_at_night", "mIoU (at_night)"),
        ("miou", WITHIN, "miou_within_3px_of_borders", "mIoU within 3 px of borders"),
        ("miou_13", BEYOND, "miou_13_beyond_3px_of_borders", "mIoU (13) beyond 3 px of borders"),
        ("iou_traffic_sign", None, "iou_traffic_sign", "traffic_sign"),
        ("iou_traffic_sign", WITHIN, "iou_traffic_sign_within_3px_of_borders", "traffic_sign within 3 px of borders"),
        ("train/tail_classes", None, "train/tail_classes", "train/tail_classes"),
    ],
)
def test_names_and_what_tables_make_of_them(stem, scope, name, label):
    assert in_scope(stem, scope) == name
    assert score_label(name) == label


def test_scopes_are_sorted_as_tables_have_them():
    assert sorted([BEYOND, WITHIN, AT, None], key=scope_order) == [None, AT, WITHIN, BEYOND]
