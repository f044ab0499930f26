import math

import torch

from lightning_uda.label_spaces import LabelSpace
from lightning_uda.metrics import columns_of, evaluate

COLORS = ((128, 64, 128), (70, 130, 180), (0, 80, 100))
SPACE = LabelSpace("toy", ("road", "sky", "tram"), COLORS, {"2": ("road", "sky"), "rare": ("tram",)})


def test_iou_shares_and_means_in_percent_without_the_absent_class():
    evaluation = evaluate(torch.tensor([[6, 0, 0], [2, 0, 0], [0, 0, 0]]), SPACE)
    assert evaluation.iou[:2] == [75.0, 0.0]
    assert math.isnan(evaluation.iou[2])
    assert evaluation.share == [75.0, 25.0, 0.0]
    assert (evaluation.means["miou"], evaluation.means["miou_2"]) == (37.5, 37.5)
    assert math.isnan(evaluation.means["miou_rare"])
    assert evaluation.summary() == "mIoU 37.5  mIoU (2) 37.5  mIoU (rare) -"


def test_an_evaluation_without_pixels_has_no_figure():
    evaluation = evaluate(torch.zeros(3, 3, dtype=torch.int64), SPACE)
    assert all(math.isnan(value) for value in [*evaluation.iou, *evaluation.share, *evaluation.means.values()])


def test_columns_of_several_scopes():
    matrix = torch.tensor([[6, 0, 0], [2, 0, 0], [0, 0, 1]])
    columns = columns_of([evaluate(matrix, SPACE), evaluate(2 * matrix, SPACE, "at_4x8")])
    stems = ["miou", "miou_2", "miou_rare", "iou_road", "iou_sky", "iou_tram"]
    assert list(columns) == [*stems, *(f"{stem}_at_4x8" for stem in stems)]
    assert columns["iou_road_at_4x8"] == 75.0
