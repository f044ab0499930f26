import torch

from lightning_uda.mixing import paste_tail


def test_later_classes_lie_over_earlier_ones_and_over_the_template():
    image, mask = torch.zeros(1, 3, 2, 3), torch.zeros(1, 2, 3, dtype=torch.int64)
    paste_mask = torch.tensor([[[True, False, False], [False, False, False]]])
    tail_image = torch.stack([torch.full((3, 2, 3), 1.0), torch.full((3, 2, 3), 2.0)]).unsqueeze(0)
    tail_mask = torch.full((1, 2, 2, 3), 255)
    tail_mask[0, 0, 0, :2] = 7
    tail_mask[0, 1, 0, 1] = 9
    tail_mask[0, 1, 1, 2] = 9
    image, mask, paste_mask = paste_tail(image, mask, paste_mask, tail_image, tail_mask)
    assert image[0, 0].tolist() == [[1, 2, 0], [0, 0, 2]]
    assert mask[0].tolist() == [[7, 9, 0], [0, 0, 9]]
    assert paste_mask[0].tolist() == [[True, True, False], [False, False, True]]


def test_classes_that_were_not_found_change_nothing():
    image, mask, paste_mask = torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.int64), torch.rand(2, 4, 4) > 0.5
    nothing = torch.full((2, 3, 4, 4), 255)
    result = paste_tail(image, mask, paste_mask, torch.rand(2, 3, 3, 4, 4), nothing)
    assert all(torch.equal(got, given) for got, given in zip(result, (image, mask, paste_mask), strict=True))
