import torch

from lightning_uda.mixing import BoxMask, ClassMask, class_mix

SHAPE = (400, 40, 60)


def test_boxes_are_boxes_of_half_the_area_anywhere():
    masks = BoxMask()(torch.zeros(SHAPE, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert masks.dtype == torch.bool
    widths, heights = masks.any(1).sum(1), masks.any(2).sum(1)
    assert torch.equal(widths * heights, masks.sum((1, 2)))
    assert widths.min() == 30
    assert widths.max() == 60
    assert (masks.float().mean((1, 2)) - 0.5).abs().max() < 0.02
    assert masks.any(0).all()
    assert widths.float().mean().sub(45).abs() < 2


def test_class_masks_are_class_mix():
    labels = torch.randint(0, 19, (2, 8, 8))
    for include in (True, False):
        drawn = ClassMask(include_ignore=include)(labels, torch.Generator().manual_seed(3))
        expected = class_mix(labels, torch.Generator().manual_seed(3), include_ignore=include)
        assert torch.equal(drawn, expected)
