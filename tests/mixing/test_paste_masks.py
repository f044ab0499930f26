import pytest
import torch

from lightning_uda.mixing import BoxMask, ClassMask, ClassPool, class_mix, class_presence

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


def pasted_values(pool, labels, generator):
    """Which values of the label maps are pasted, bool (N, 256); no pixel of another value may be."""
    pasted = pool(labels, generator)
    assert pasted.dtype == torch.bool
    values = class_presence(labels.masked_fill(~pasted, 254))
    assert torch.equal(values.gather(1, labels.flatten(1).long()).view_as(labels), pasted)
    values[:, 254] = False
    return values


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
@pytest.mark.parametrize("offset_bug", [False, True])
def test_a_class_pool_is_the_reference(golden, offset_bug, kind):
    g = golden("ehtdi_class_pool")
    reachable = g["reachable_reference" if offset_bug else "reachable_intended"]
    for listed, expected, number in zip(g["present"], reachable, g["k_reference"], strict=True):
        labels = listed[listed > -2].long()
        labels = labels.where(labels >= 0, 255).to(kind).repeat(400, 2, 3)
        values = pasted_values(ClassPool(offset_bug=offset_bug), labels, torch.Generator().manual_seed(0))
        assert (values.sum(1) == number).all()
        assert values.any(0)[[255, *range(19)]].tolist() == expected.tolist()


def test_the_classes_of_a_pool_are_chosen_equally_often_by_each_image_alone():
    labels = torch.arange(2, 12).repeat(6000, 2, 1)  # seven classes of the pool
    pool = ClassPool()
    values = pasted_values(pool, labels, torch.Generator().manual_seed(0))[:, 5:12].float()
    assert (values.sum(1) == 3).all()
    assert torch.allclose(values.mean(0), torch.full((7,), 3 / 7), atol=0.02)
    pairs = values.T @ values / len(values)
    assert torch.allclose(pairs[~torch.eye(7, dtype=torch.bool)], torch.tensor(1 / 7), atol=0.02)  # 3/7 * 2/6
    masks = pool(labels, torch.Generator().manual_seed(5))
    assert torch.equal(masks, pool(labels, torch.Generator().manual_seed(5)))
    assert len({tuple(row) for row in masks[:, 0].int().tolist()}) == 35  # all ways to choose 3 of 7


def test_the_excluded_classes_of_a_pool_are_an_argument():
    labels = torch.tensor([0, 1, 7, 255]).repeat(200, 2, 2)
    values = pasted_values(ClassPool(excluded=(7,)), labels, torch.Generator().manual_seed(0))
    assert values.any(0).nonzero().squeeze(1).tolist() == [0, 1]
    everything = pasted_values(ClassPool(excluded=()), labels, torch.Generator().manual_seed(0))
    assert everything.any(0).nonzero().squeeze(1).tolist() == [0, 1, 7]
    assert (everything.sum(1) == 1).all()


@pytest.mark.parametrize("offset_bug", [False, True])
def test_images_without_a_class_of_the_pool_paste_nothing(offset_bug):
    void = torch.full((1, 4, 4), 255)
    road = torch.zeros(1, 4, 4, dtype=torch.int64)
    both = torch.cat([void, road, torch.cat([void, road], dim=2)[..., ::2]])
    assert not ClassPool(offset_bug=offset_bug)(both, torch.Generator()).any()
    train = torch.full((1, 4, 4), 16)
    assert ClassPool(offset_bug=offset_bug)(train, torch.Generator()).all()  # nothing comes before: it is right


@pytest.mark.parametrize("offset_bug", [False, True])
def test_a_class_pool_reads_nothing_back_from_the_device(offset_bug):
    labels = torch.empty(2, 8, 8, dtype=torch.uint8, device="meta")  # whatever waits for a value fails on it
    assert ClassPool(offset_bug=offset_bug)(labels, torch.Generator()).shape == labels.shape


@pytest.mark.parametrize("excluded", [(255,), (0, -1), (256,)])
def test_what_cannot_be_excluded_is_refused(excluded):
    with pytest.raises(ValueError, match="expected numbers from 0 to 254"):
        ClassPool(excluded)
