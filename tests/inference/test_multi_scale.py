import pytest
import torch
import torch.nn.functional as F

from lightning_uda.inference import MultiScale, SlidingWindow, StrideProbabilities, WholeImage
from tests.inference.networks import Recorder, images, strided

SIZE = (40, 56)


@torch.no_grad()
@pytest.mark.parametrize("base", [WholeImage(), SlidingWindow((16, 16), (8, 8)), WholeImage(align_corners=False)])
def test_one_scale_without_mirroring_is_the_base(base):
    network, image = strided(), images(2, 3, 32, 48)
    expected = base(network, image, SIZE)
    assert torch.equal(MultiScale(base, [1.0], flip=False, average="logits")(network, image, SIZE), expected)
    assert torch.equal(MultiScale(base, [1.0], flip=False)(network, image, SIZE), expected.softmax(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("average", ["probs", "logits"])
def test_each_scale_is_made_from_the_original(average):
    network, image = Recorder(strided()), images(1, 3, 32, 48)
    policy = MultiScale(scales=[0.5, 0.75, 1.0, 1.5], flip=False, average=average)
    scores = policy(network, image, SIZE)
    assert [shape[-2:] for shape in network.shapes] == [(16, 24), (24, 36), (32, 48), (48, 72)]
    parts = []
    for size, seen in zip([(16, 24), (24, 36), (32, 48), (48, 72)], network.inputs, strict=True):
        scaled = F.interpolate(image, size, mode="bilinear", antialias=True)
        torch.testing.assert_close(seen, scaled)
        logits = F.interpolate(network.network(scaled), SIZE, mode="bilinear", align_corners=True)
        parts.append(logits.softmax(dim=1) if average == "probs" else logits)
    torch.testing.assert_close(scores, torch.stack(parts).mean(dim=0))


@torch.no_grad()
def test_the_published_scales_and_mirroring_are_the_default():
    network, image = Recorder(strided()), images(1, 3, 32, 48)
    probs = MultiScale()(network, image, SIZE)
    assert [shape[-2:] for shape in network.shapes] == [(16, 24)] * 2 + [(24, 36)] * 2 + [(32, 48)] * 2
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(1, *SIZE))


@torch.no_grad()
@pytest.mark.parametrize("average", ["probs", "logits"])
@pytest.mark.parametrize("base", [WholeImage(), SlidingWindow((16, 16), (8, 8))])
def test_with_mirroring_a_mirrored_image_has_the_mirrored_scores(base, average):
    network, image = strided(), images(1, 3, 32, 48)
    policy = MultiScale(base, [0.5, 1.0], flip=True, average=average)
    one, other = policy(network, image, SIZE), policy(network, image.flip(-1), SIZE)
    torch.testing.assert_close(other, one.flip(-1))
    without = MultiScale(base, [0.5, 1.0], flip=False, average=average)
    one, other = without(network, image, SIZE), without(network, image.flip(-1), SIZE)
    assert (other - one.flip(-1)).abs().max() > 1e-3


@torch.no_grad()
def test_several_sizes_take_one_round_of_passes():
    network, image = Recorder(strided()), images(1, 3, 32, 48)
    scores = MultiScale(scales=[0.5, 1.0]).scores(network, image)
    first = scores(SIZE).clone()
    assert scores((16, 24)).shape == (1, 5, 16, 24)
    assert torch.equal(scores(SIZE), first)
    assert len(network.inputs) == 4


@torch.no_grad()
def test_logits_are_upsampled_with_aligned_corners_before_the_softmax(golden):
    arrays = golden("cbst_inference")
    policy = MultiScale(scales=[1.0], flip=False)
    probs = policy(lambda _: arrays["logits_small"], torch.zeros(1, 3, 48, 72), (41, 65))
    torch.testing.assert_close(probs[0], arrays["prob_full_bilinear_aligned"], rtol=0, atol=1e-6)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"found no scales"):
        MultiScale(scales=[])
    with pytest.raises(ValueError, match=r"scales: found [\[(]1\.0, 0"):
        MultiScale(scales=[1.0, 0.0])
    with pytest.raises(ValueError, match="StrideProbabilities, which gives probabilities"):
        MultiScale(StrideProbabilities())
    with pytest.raises(ValueError, match="MultiScale, which gives probabilities"):
        MultiScale(MultiScale())
    with pytest.raises(ValueError, match=r"brings every image to 512 x 1024"):
        MultiScale(WholeImage(resize=(512, 1024)))
