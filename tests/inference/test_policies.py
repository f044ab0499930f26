import torch
import torch.nn.functional as F

from lightning_uda.inference import WholeImage


def test_whole_image_upsamples_the_logits_of_one_pass_with_aligned_corners():
    image = torch.rand(2, 3, 12, 16)
    logits = WholeImage()(lambda x: x[:, :2, ::4, ::4], image, (24, 32))
    expected = F.interpolate(image[:, :2, ::4, ::4], size=(24, 32), mode="bilinear", align_corners=True)
    assert torch.equal(logits, expected)


def test_whole_image_brings_images_to_the_size_asked_for():
    shown = []

    def network(image):
        shown.append(image)
        return image

    image = torch.rand(1, 3, 12, 16)
    assert WholeImage(resize=(6, 8))(network, image, (12, 16)).shape == (1, 3, 12, 16)
    assert torch.equal(shown[0], F.interpolate(image, size=(6, 8), mode="bilinear", antialias=True))
    WholeImage(resize=(12, 16))(network, image, (12, 16))
    assert shown[1] is image
