import pytest
import torch

from lightning_uda.metrics import near_borders

VOID = 255


def by_loops(mask, distance):
    """Looks at every pixel of every pixel's square."""
    near = torch.zeros(mask.shape, dtype=torch.bool)
    for n, label_map in enumerate(mask.tolist()):
        for y, row in enumerate(label_map):
            for x, own in enumerate(row):
                rows = label_map[max(y - distance, 0) : y + distance + 1]
                square = {label for line in rows for label in line[max(x - distance, 0) : x + distance + 1]}
                near[n, y, x] = own != VOID and len(square - {VOID}) > 1
    return near


def near_in_row(labels, distance):
    return near_borders(torch.tensor([[labels]]), distance)[0, 0].int().tolist()


def test_either_side_of_a_straight_border_is_near_as_far_as_the_distance():
    labels = [4, 4, 4, 4, 4, 0, 0, 0, 0, 0]
    assert near_in_row(labels, 1) == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert near_in_row(labels, 3) == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_distance_goes_along_diagonals_too():
    mask = torch.zeros(1, 5, 5, dtype=torch.int64)
    mask[0, 2, 2] = 7
    expected = torch.zeros(1, 5, 5, dtype=torch.bool)
    expected[0, 1:4, 1:4] = True
    assert torch.equal(near_borders(mask, 1), expected)
    assert near_borders(mask, 2).all()


def test_void_is_neither_near_nor_a_border():
    assert near_in_row([0, 0, VOID, VOID, 0, 0], 2) == [0] * 6
    assert near_in_row([0, 0, VOID, 3, 3], 1) == [0] * 5
    assert near_in_row([0, 0, VOID, 3, 3], 2) == [0, 1, 0, 1, 0]
    assert near_in_row([VOID, 254, 253, VOID], 1) == [0, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("distance", [1, 2, 3, 10, 100])
def test_every_pixel_as_counted_by_loops(distance, dtype):
    """Of sparse, of patchy and of dense maps, at distances below, between and above height and width."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 19, (3, 3, 4), generator=generator).repeat_interleave(4, 1).repeat_interleave(5, 2)
    patches[torch.rand(patches.shape, generator=generator) < 0.2] = VOID
    sparse = torch.where(torch.rand(2, 11, 17, generator=generator) < 0.01, 254, VOID)
    sparse[:, 5, 8], sparse[0, :, 0] = 253, 0
    dense = torch.randint(0, 256, (2, 9, 13), generator=generator)
    for mask in (patches, sparse, dense):
        found = near_borders(mask.to(dtype), distance)
        assert found.dtype == torch.bool
        assert torch.equal(found, by_loops(mask, distance))


@pytest.mark.parametrize("label", [0, 18, 254, VOID])
def test_one_class_and_void_alone_have_no_border(label):
    mask = torch.full((2, 6, 7), label)
    assert not near_borders(mask, 3).any()
    mask[1] = 1 - label % 2  # of another image
    assert not near_borders(mask, 3).any()
    assert not near_borders(torch.full((1, 1, 1), label), 5).any()
