from decimal import Decimal

import torch

from lightning_uda.data.datamodule import EvaluationImages
from lightning_uda.data.transforms import EvalTransform
from lightning_uda.inference import MultiScale
from lightning_uda.self_training.assignment import assign_pseudo_labels
from lightning_uda.self_training.label_folder import LabelFolder
from lightning_uda.self_training.labelling import label_images
from lightning_uda.self_training.target_scores import Ranks, TargetScores
from lightning_uda.self_training.thresholds import RadixSelect
from tests.fixtures.tiny import TinyDataset, tiny_network

SIZES = ((24, 32), (20, 36))


class TwoSizes(TinyDataset):
    """Images of two sizes in turn."""

    def load_image(self, index):
        return TinyDataset(size=SIZES[index % 2], seed=self.seed).load_image(index)


def scores_of(dataset, **kwargs):
    images = EvaluationImages(dataset, EvalTransform(), None)
    return TargetScores(tiny_network(), images, MultiScale(scales=(0.9,)), **kwargs)


def test_the_prior_is_made_once_for_each_size_and_weighs_the_probabilities(tmp_path):
    made = []

    def prior(size):
        made.append(size)
        return torch.linspace(0, 1, 11).view(-1, 1, 1).expand(11, *size)

    dataset = TwoSizes(length=6)
    scores = scores_of(dataset, prior=prior)
    with scores.kept_in(tmp_path, 6):
        label_images(
            scores, range(6), RadixSelect(), Decimal("0.2"), assign_pseudo_labels, LabelFolder(tmp_path, dataset)
        )
        weighted, plain = dict(scores.of(range(6), "")), dict(scores.of(range(6), "", weighted=False))
    assert sorted(made) == sorted(SIZES)
    for index in range(6):
        assert plain[index].shape == (1, 11, *SIZES[index % 2])
        torch.testing.assert_close(plain[index].sum(dim=1), torch.ones(1, *SIZES[index % 2]))
        assert torch.equal(weighted[index], plain[index] * prior(SIZES[index % 2]))


def test_ranks_share_the_images_and_keep_their_own(tmp_path):
    dataset = TinyDataset(length=7)
    whole = scores_of(dataset)
    with whole.kept_in(tmp_path, 7):
        expected = dict(whole.of(range(7), ""))
    found = {}
    for rank in range(2):
        scores = scores_of(dataset, ranks=Ranks(rank, 2))
        with scores.kept_in(tmp_path, 7):
            first = dict(scores.of(range(7), ""))
            again = dict(scores.of([1, 2, 4, 6], ""))  # a subset: each image stays with the rank that has its logits
        assert set(again) == set(first) & {1, 2, 4, 6}
        found |= first
    assert sorted(found) == list(range(7))
    assert all(torch.equal(found[index], expected[index]) for index in range(7))
