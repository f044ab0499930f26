from decimal import Decimal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_uda.self_training import LogitHistogram, RadixSelect, ThresholdSearch, rank_of
from lightning_uda.self_training.thresholds import every_nth_of_class

CPU = torch.device("cpu")


class Record(TorchDispatchMode):
    """Notes the names of all calls, and the bytes of what they allocate."""

    def __init__(self):
        super().__init__()
        self.names, self.bytes = set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        if isinstance(result, torch.Tensor) and not func._schema.name.endswith(("_", "::view", "::slice")):
            self.bytes.append(result.nbytes)
        return result


def search(found: ThresholdSearch, num_classes, images, portion):
    """Runs all passes over images of (confidence, classes)."""
    found.start(num_classes, CPU)
    again = True
    while again:
        for confidence, classes in images:
            found.update(confidence, classes)
        again = found.end_pass(Decimal(str(portion)))
    return found


def images_of(scores):
    """Confidences and classes of each image of scores (N, C, H, W)."""
    return list(zip(*scores.max(dim=1), strict=True))


def search_on_ranks(make, num_classes, shares, portion):
    """Runs one search per rank side by side; an all-reduce adds up their tables, as they wait for each other."""
    ranks = [make() for _ in shares]
    for rank in ranks:
        rank.start(num_classes, CPU)
    again = True
    while again:
        for rank, share in zip(ranks, shares, strict=True):
            for confidence, classes in share:
                rank.update(confidence, classes)
        total = sum(rank._table for rank in ranks)
        again = {rank.end_pass(Decimal(str(portion)), lambda table: total.clone()) for rank in ranks}  # noqa: B023
        assert len(again) == 1
        again = again.pop()
    return ranks


@pytest.fixture
def stream(golden):
    """The streaming reference as 50 images of (confidence, classes), and the file."""
    g = golden("cbst_streaming")
    return list(zip(g["conf"].split(800), g["cls"].split(800), strict=True)), g


@pytest.mark.parametrize("stride", [1, 4])
def test_class_thresholds_are_the_reference(golden, stride):
    g = golden("cbst_thresholds")
    counts = g["pixel_count"] if stride == 1 else g["sample_count_ds4"]
    for row, portion in enumerate(g["p"].tolist()):
        found = search(RadixSelect(conf_stride=stride), 7, images_of(g["probs"]), portion)
        ranks = g[f"rank_class_floor_ds{stride}"][row]
        expected = torch.where(ranks > 0, g[f"thr_class_floor_ds{stride}"][row], torch.inf)
        assert torch.equal(found.counts, counts)
        assert torch.equal(found.ranks, ranks)
        assert torch.equal(found.thresholds, expected)
        assert found.thresholds.dtype == torch.float32


def test_the_published_phantom_zeros_are_not_reproduced(golden):
    g = golden("cbst_thresholds")
    found = search(RadixSelect(conf_stride=4), 7, images_of(g["probs"]), 1)
    assert not torch.equal(found.counts, g["size_class_mxnet_ds4"])
    assert not torch.equal(found.thresholds, g["thr_class_mxnet_ds4"][-1])
    assert found.thresholds[6] == 0.7  # the one pixel of class 6; with the phantom it was lost


def test_global_thresholds_are_the_reference(golden):
    g = golden("cbst_thresholds")
    for row, portion in enumerate(g["p"].tolist()):
        found = search(RadixSelect("global"), 7, images_of(g["probs"]), portion)
        assert torch.equal(found.thresholds, g["thr_global_floor_ds1"][row].expand(7))
        assert (found.ranks == g["rank_global_floor_ds1"][row]).all()
        assert torch.equal(found.counts, g["pixel_count"])


@pytest.mark.parametrize("portion", [20, 50])
def test_thresholds_of_scores_weighted_by_a_prior_are_the_reference(golden, portion):
    g = golden("cbst_prior_weighted")
    images = images_of(g["potential"])
    by_class = search(RadixSelect(), 6, images, portion / 100)
    assert torch.equal(by_class.thresholds, g[f"thr_sp_floor_ds1_p{portion}"])
    together = search(RadixSelect("global"), 6, images, portion / 100)
    assert torch.equal(together.thresholds, g[f"thr_stsp_floor_ds1_p{portion}"].expand(6))


def test_saturated_thresholds_are_the_reference(golden):
    g = golden("cbst_ties")
    for make in (RadixSelect, LogitHistogram):
        for row, portion in enumerate(g["p"].tolist()):
            found = search(make(), 3, images_of(g["probs"]), portion)
            assert torch.equal(found.counts, g["pixel_count"])
            saturated = g["thr"][row] == 1
            assert saturated.any()
            assert (found.thresholds[saturated] == 1).all()


def test_radix_select_is_exact_on_the_stream(stream):
    images, g = stream
    for row, portion in enumerate(g["p"].tolist()):
        found = search(RadixSelect(), 6, images, portion)
        assert torch.equal(found.counts, g["count"])
        assert torch.equal(found.ranks, g["rank"][row])
        assert torch.equal(found.thresholds, g["thr_exact"][row])


@pytest.mark.parametrize("bins", [1024, 4096, 65536])
def test_the_histogram_keeps_its_bound_and_knows_what_it_selects(stream, bins):
    images, g = stream
    width = 20.07 / (bins - 1)
    for row, portion in enumerate(g["p"].tolist()):
        found = search(LogitHistogram(bins), 6, images, portion)
        exact = g["thr_exact"][row]
        held = g["rank"][row] > 0
        assert torch.equal(found.ranks, g["rank"][row])
        assert torch.equal(held, found.thresholds.isfinite())
        error = exact[held].double() - found.thresholds[held].double()
        bound = width * exact * (1 - exact) * (1 + width) + 2**-24
        assert (error >= 0).all()
        assert (error <= bound[held]).all()
        for c in range(6):
            assert found.selected[c] == ((g["conf"] >= found.thresholds[c]) & (g["cls"] == c)).sum()
        wanted = [((g["conf"] >= exact[c]) & (g["cls"] == c)).sum() for c in range(4)]  # ties included
        assert (found.selected[:4] - torch.stack(wanted) <= 0.004 * g["count"][:4]).all()


def test_bins_begin_where_their_edges_say():
    histogram = LogitHistogram()
    for num_classes in (2, 19, 40):
        histogram.start(num_classes, CPU)
        edges = histogram._edges
        assert (edges.diff() >= 0).all()
        assert edges[-1] == 1
        assert edges[0] <= 1 / max(num_classes, 31)
        below = edges.nextafter(edges.new_tensor(0.0))
        for values in (edges, below, torch.rand(100_000) * (1 - edges[0]) + edges[0], 1 - torch.rand(100_000) ** 8):
            histogram._table.zero_()
            histogram._count(values, torch.zeros_like(values, dtype=torch.int32), None)
            columns = np.searchsorted(edges.numpy(), values.numpy(), side="right")
            assert np.array_equal(histogram._table[0].numpy(), np.bincount(columns, minlength=histogram.bins + 1))


def test_the_bound_of_the_documentation():
    width = 20.07 / 65535
    for t, stated in ((0.5, 7.7e-5), (0.95, 1.5e-5), (0.99, 3.1e-6)):
        assert width * t * (1 - t) * (1 + width) + 2**-24 == pytest.approx(stated, rel=0.03)


@pytest.mark.parametrize("make", [RadixSelect, lambda: RadixSelect("global"), LogitHistogram])
def test_any_order_and_number_of_ranks_give_the_same_bits(stream, make):
    images, _ = stream
    expected = search(make(), 6, images, 0.2)
    backwards = search(make(), 6, images[::-1], 0.2)
    alone = [(confidence[i : i + 1], classes[i : i + 1]) for confidence, classes in images[:1] for i in range(800)]
    in_pixels = search(make(), 6, alone + images[1:], 0.2)
    at_once = search(make(), 6, [tuple(torch.cat(part) for part in zip(*images, strict=True))], 0.2)
    of_ranks = [
        rank
        for world in (1, 2, 3)
        for rank in search_on_ranks(make, 6, [images[rank::world] for rank in range(world)], 0.2)
    ]
    assert len(of_ranks) == 6
    for found in (backwards, in_pixels, at_once, *of_ranks):
        for name in ("thresholds", "counts", "ranks"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_rank_may_be_without_images(stream):
    images, _ = stream
    expected = search(RadixSelect(), 6, images, 0.2)
    for found in search_on_ranks(RadixSelect, 6, [images, []], 0.2):
        assert torch.equal(found.thresholds, expected.thresholds)


@pytest.mark.parametrize("make", [RadixSelect, LogitHistogram])
def test_large_images_are_counted_in_parts(make):
    torch.manual_seed(0)
    confidence, classes = torch.rand(700, 800) * 0.9 + 0.1, torch.randint(0, 3, (700, 800), dtype=torch.uint8)
    found = search(make(), 3, [(confidence, classes)], 0.3)
    for c in range(3):
        values = confidence[classes == c].sort(descending=True).values
        assert found.counts[c] == len(values)
        exact = values[int(0.3 * len(values)) - 1]
        assert found.thresholds[c] == exact if make is RadixSelect else 0 <= exact - found.thresholds[c] < 1e-4


@pytest.mark.parametrize("make", [RadixSelect, LogitHistogram])
def test_a_class_without_a_rank_selects_nothing_unless_its_best_is_wanted(make):
    images = [(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 0, 1]))]
    assert search(make(), 3, images, 0.34).ranks.tolist() == [1, 0, 0]
    assert search(make(), 3, images, 0.34).thresholds.isinf().tolist() == [False, True, True]
    kept = search(make(min_rank=1), 3, images, 0.34)
    assert kept.ranks.tolist() == [1, 1, 0]
    assert kept.thresholds.isinf().tolist() == [False, False, True]
    assert kept.thresholds[1].item() == pytest.approx(0.6, abs=1e-4)


@pytest.mark.parametrize("make", [RadixSelect, LogitHistogram])
@pytest.mark.parametrize("scope", ["class", "global"])
@pytest.mark.parametrize("min_rank", [0, 1])
def test_a_portion_of_0_selects_nothing(make, scope, min_rank):
    images = [(torch.tensor([1.0, 1.0, 0.7, 0.6]), torch.tensor([0, 0, 0, 1]))]
    found = search(make(scope=scope, min_rank=min_rank, threshold_cap=0.5), 3, images, 0)
    assert found.thresholds.isposinf().all()
    assert found.ranks.tolist() == [0, 0, 0]
    assert found.predicted.tolist() == [3, 1, 0]


def test_no_image_at_all_gives_thresholds_that_select_nothing():
    for make in (RadixSelect, LogitHistogram, lambda: RadixSelect("global")):
        found = search(make(), 3, [], 0.2)
        assert found.thresholds.isposinf().all()
        assert found.counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("make", [RadixSelect, LogitHistogram])
def test_a_cap_bounds_thresholds_that_are_there(make):
    images = [(torch.tensor([1.0, 1.0, 0.5, 0.5]), torch.tensor([0, 0, 1, 1]))]
    capped = search(make(threshold_cap=0.9), 3, images, 0.5).thresholds
    assert torch.allclose(capped, torch.tensor([0.9, 0.5, torch.inf]), atol=1e-4)


def test_global_selection_of_the_histogram_is_told_by_class(stream):
    images, g = stream
    found = search(LogitHistogram(scope="global"), 6, images, 0.3)
    assert found.thresholds.unique().numel() == 1
    expected = [((g["conf"] >= found.thresholds[0]) & (g["cls"] == c)).sum().item() for c in range(6)]
    assert found.selected.tolist() == expected
    assert found.selected.sum() >= found.ranks[0]


def test_a_search_can_be_used_again(stream):
    images, _ = stream
    for found in (RadixSelect(), LogitHistogram()):
        first = search(found, 6, images, 0.2).thresholds
        search(found, 6, images[:3], 0.9)
        assert torch.equal(search(found, 6, images, 0.2).thresholds, first)


def test_ranks_are_floored_in_integers():
    counts = torch.tensor([1000, 4, 6_239_027_200])
    assert rank_of(Decimal("0.4"), counts).tolist() == [400, 1, 2_495_610_880]
    assert rank_of(Decimal("0.39999999999999997"), counts)[0] == 400
    assert rank_of(Decimal(1), counts).tolist() == counts.tolist()
    with pytest.raises(ValueError, match="found 20, expected the share of pixels"):
        rank_of(Decimal(20), counts)


def test_every_fourth_pixel_of_each_class_and_image():
    torch.manual_seed(0)
    classes = torch.randint(0, 3, (4, 9, 13))
    found = every_nth_of_class(classes, 3, 4).view(classes.shape)
    for image, marks in zip(classes, found, strict=True):
        for c in range(3):
            assert marks[image == c].nonzero().squeeze(1).tolist() == list(range(0, int((image == c).sum()), 4))
    assert torch.equal(every_nth_of_class(classes[0], 3, 4), found[0].view(-1))
    assert torch.equal(every_nth_of_class(classes[0].view(-1), 3, 4), found[0].view(-1))


def test_wrong_input_is_refused():
    found = RadixSelect()
    found.start(3, CPU)
    classes = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected float32, as a lower precision makes ties"):
        found.update(torch.ones(2, 2, dtype=torch.bfloat16), classes)
    with pytest.raises(ValueError, match="two equal shapes"):
        found.update(torch.ones(2, 3), classes)
    with pytest.raises(ValueError, match="bins: found 15"):
        LogitHistogram(15)
    with pytest.raises(ValueError, match="conf_stride: found 0"):
        RadixSelect(conf_stride=0)


@pytest.mark.parametrize("wrong", [torch.nan, -torch.nan, torch.inf, -0.1])
def test_the_exact_search_refuses_what_is_no_score(wrong):
    images = [(torch.tensor([0.5, wrong]), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match="found 1 confidences that are negative, infinite or not a number"):
        search(RadixSelect(), 2, images, 0.2)


@pytest.mark.parametrize("wrong", [torch.nan, 1e-6, -0.1])
def test_the_histogram_refuses_scores_that_are_no_probabilities(wrong):
    images = [(torch.tensor([0.5, wrong]), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match=r"found 1 confidences below the 0\.031 .* need RadixSelect"):
        search(LogitHistogram(), 2, images, 0.2)


def test_a_second_pass_over_other_scores_is_noticed(stream):
    images, _ = stream
    found = RadixSelect()
    found.start(6, CPU)
    for image in images:
        found.update(*image)
    assert found.end_pass(Decimal("0.2"))
    for image in images[1:]:
        found.update(*image)
    with pytest.raises(RuntimeError, match="second pass showed other confidences"):
        found.end_pass(Decimal("0.2"))


@pytest.mark.parametrize("make", [RadixSelect, LogitHistogram])
def test_counting_makes_no_large_copy_and_waits_for_nothing(make):
    found = make()
    found.start(2, CPU)
    confidence, classes = torch.full((1024, 1024), 0.5), torch.zeros(1024, 1024, dtype=torch.uint8)
    with Record() as record:
        found.update(confidence, classes)
    assert max(record.bytes) <= 2 << 20
    assert {"index_add_", "add_"} & record.names
    assert not {"_local_scalar_dense", "nonzero", "bincount", "masked_select"} & record.names
