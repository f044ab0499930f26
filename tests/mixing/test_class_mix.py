import pytest
import torch

from lightning_uda.mixing import choose_half, class_mix, class_presence, paste, paste_mask_of
from lightning_uda.mixing.class_mix import _look_up, _look_up_on_cpu, _presence, _presence_on_cpu


def chosen_row(classes):
    return torch.zeros(1, 256, dtype=torch.bool).index_fill_(1, classes, True)


def test_mask_of_chosen_classes_is_the_reference(golden):
    g = golden("dacs_class_mask")
    label = g["label"].unsqueeze(0)
    assert class_presence(label)[0].nonzero().squeeze(1).tolist() == g["present_classes"].tolist()
    for i in range(4):
        mask = paste_mask_of(label, chosen_row(g[f"chosen_{i}"]))
        assert torch.equal(mask[0].long(), g[f"mask_{i}"])


def test_number_of_chosen_classes_is_the_reference(golden):
    g = golden("dacs_class_mask")
    present = torch.arange(256).expand(len(g["n_present"]), -1) < g["n_present"].unsqueeze(1)
    chosen = choose_half(present, torch.Generator().manual_seed(0))
    assert chosen.sum(1).tolist() == g["n_chosen"].tolist()
    assert not (chosen & ~present).any()


def test_every_class_is_chosen_equally_often():
    present = (torch.arange(256) < 5).expand(4000, -1)
    share = choose_half(present, torch.Generator().manual_seed(0))[:, :5].float().mean(0)
    assert torch.allclose(share, torch.full((5,), 3 / 5), atol=0.03)


def test_void_counts_as_a_class_unless_excluded():
    mask = torch.full((1, 4, 4), 255)
    assert class_mix(mask, torch.Generator()).all()
    assert not class_mix(mask, torch.Generator(), include_ignore=False).any()


def test_images_of_a_batch_choose_by_themselves_and_the_generator_decides():
    mask = torch.arange(16).repeat(64, 4, 1)
    masks = class_mix(mask, torch.Generator().manual_seed(3))
    assert torch.equal(masks, class_mix(mask, torch.Generator().manual_seed(3)))
    assert len({tuple(row) for row in masks[:, 0].int().tolist()}) > 32
    assert (masks.sum((1, 2)) == 4 * 8).all()


def test_paste_is_the_reference(golden):
    g = golden("dacs_mix")
    mask = g["mask"].bool().unsqueeze(0)
    image = paste(g["paste_image"][None], g["base_image"][None], mask)
    assert torch.equal(image[0], g["mixed_image_hard"])
    pictures = [picture.abs().byte()[None] for picture in (g["paste_image"], g["base_image"])]
    assert torch.equal(paste(*pictures, mask)[0], torch.where(mask, pictures[0][0], pictures[1][0]))
    assert torch.equal(paste(g["paste_label"][None], g["base_label"][None], mask)[0], g["mixed_label"])
    weight = paste(torch.ones_like(g["base_weight"])[None], g["base_weight"][None], mask)
    assert torch.equal(weight[0], g["mixed_weight"])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_a_cpus_forms_find_what_the_others_find(kind):
    mask = torch.randint(0, 19, (3, 33, 47)).to(kind)
    mask[0] = 7
    mask[1, 5, 5], mask[2, -1, -1] = 200, 255  # in one pixel each
    assert torch.equal(_presence_on_cpu(mask), _presence(mask))
    for chosen in (torch.rand(3, 256) < 0.5, (torch.rand(1, 256) < 0.5).expand(3, -1)):
        assert torch.equal(_look_up_on_cpu(mask[:, :, ::2], chosen), _look_up(mask[:, :, ::2], chosen))
