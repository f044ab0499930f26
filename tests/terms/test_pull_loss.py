import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_uda.terms import pull_loss as pull_module
from lightning_uda.terms.pull_draws import (
    Draws,
    classes_of_queries,
    draw,
    most_queries,
    percentile,
    query_counts,
    unreliable,
)
from lightning_uda.terms.pull_loss import Keys, pixel_rows, pull, pull_loss, query_losses, source_prototypes, unit_rows


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [64, 128, 256])
def test_query_counts_are_the_reference(golden, n):
    g = golden("t2sda_sampling")
    found = query_counts(g["label_src"].long(), 19, n)
    assert torch.equal(found, g[f"n_q_{n}"])
    assert found.sum() <= most_queries(19, n, "cbqs")


def test_a_share_that_gives_a_whole_number_adds_no_query():
    """Trap T8: in floating point ceil(10 * 0.7 * 3) and its like are one too many."""
    for valid in range(1, 60):
        for count in range(valid + 1):
            labels = torch.tensor([0] * count + [1] * (valid - count) + [255])
            exact = -(-3 * 10 * count // valid)
            assert query_counts(labels, 10, 3)[0] == exact


def test_equal_counts_are_of_the_classes_that_are_there(golden):
    g = golden("t2sda_sampling")
    found = query_counts(g["label_src"].long(), 19, 128, balanced=False)
    assert torch.equal(found, 128 * (g["p_hat"] > 0))


@pytest.mark.parametrize("index", range(3))
def test_percentiles_are_the_reference(golden, index):
    g = golden("t2sda_sampling")
    confidence, alpha = g["conf_trg"], g["alphas"][index].item()
    gamma = percentile(confidence, alpha)
    assert gamma.item() == pytest.approx(g["gamma"][index].item(), abs=1e-6)
    assert (confidence < gamma).sum() == g["n_below"][index]


def test_percentiles_of_each_image_are_the_reference(golden):
    g = golden("t2sda_sampling")
    found = percentile(g["conf_trg"], 0.5, per_image=True)
    assert found.shape == (2, 1, 1)
    torch.testing.assert_close(found.flatten().double(), g["gamma_per_image_0.5"], rtol=0, atol=1e-6)


def test_the_ends_of_the_percentile_are_the_least_and_the_greatest():
    confidence = torch.rand(2, 3, 4, generator=seeded())
    assert percentile(confidence, 0.0).item() == confidence.min()
    assert percentile(confidence, 1.0).item() == confidence.max()


def drawn_sets(source, target, classes, **settings):
    """For each class which pixels are ever drawn as queries and as negatives, of many draws."""
    queries, negatives = torch.zeros(classes, source.numel()), torch.zeros(classes, 2 * source.numel())
    for seed in range(20):
        draws = draw(source, target, classes, seeded(seed), **settings)
        used = draws.queries[: draws.counts.sum()]
        queries[classes_of_queries(draws.counts, len(used)), used] += 1
        of_class = torch.arange(classes)[draws.contrasted, None].expand(-1, draws.negatives.shape[1])
        negatives.index_put_((of_class, draws.negatives[draws.contrasted]), torch.tensor(1.0), accumulate=True)
    return queries, negatives


@pytest.mark.parametrize("halves", [True, False])
def test_draws_reach_the_reference_sets_and_nothing_else(golden, halves):
    g = golden("t2sda_sampling")
    source = g["label_src"].long()
    target = unreliable(g["pseudo_label_trg"].long(), g["conf_trg"], 0.5)
    queries, negatives = drawn_sets(source, target, 19, n=64, halves=halves)
    expected = F.one_hot(source.clamp(max=19).flatten(), 20).T[:19]
    assert torch.equal(queries > 0, expected > 0)
    wanted = torch.cat([g["neg_src_mask"].flatten(1), g["neg_trg_mask_0.5"].flatten(1)], dim=1)
    assert torch.equal(negatives > 0, wanted)


def test_void_pixels_serve_as_negatives_of_every_class_if_asked(golden):
    g = golden("t2sda_sampling")
    source = g["label_src"].long()
    _, negatives = drawn_sets(source, None, 19, void=True)
    assert torch.equal((negatives > 0).sum(dim=1), g["neg_src_count_literal"])
    assert (negatives[:, : source.numel()] > 0)[:, source.flatten() == 255].all()


def test_half_of_the_negatives_are_the_targets_or_as_many_as_its_share(golden):
    g = golden("t2sda_sampling")
    source, target = g["label_src"].long(), g["pseudo_label_trg"].long().masked_fill(torch.arange(11) > 0, 255)
    halves = draw(source, target, 19, seeded(), m=1000).negatives >= source.numel()
    assert (halves.sum(dim=1) == 500).all()
    union = draw(source, target, 19, seeded(), m=10000, halves=False).negatives >= source.numel()
    size = [[(pool.ne(c) & pool.ne(255)).sum().item() for pool in (source, target)] for c in range(19)]
    expected = torch.tensor([b / (a + b) for a, b in size])
    torch.testing.assert_close(union.float().mean(dim=1), expected, rtol=0, atol=0.02)


def test_draws_are_uniform():
    source = torch.tensor([[[0, 1, 1, 255, 0, 2, 2, 2]]])
    queries, negatives = drawn_sets(source, None, 3, n=1000, m=3000)
    for counts in (*queries, *negatives[:, :8]):
        counts = counts[counts > 0]
        assert (counts / counts.mean() - 1).abs().max() < 0.05


def test_random_queries_are_of_classes_by_their_pixels():
    source = torch.tensor([[[3, 1, 1, 255, 3, 3, 3, 1]]])
    draws = draw(source, None, 5, seeded(), n=1400, sampling="random")
    assert draws.counts.sum() == 7000 == len(draws.queries)
    assert draws.counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert draws.counts[3].item() == pytest.approx(4000, rel=0.05)
    labels = source.flatten()[draws.queries]
    assert torch.equal(labels, classes_of_queries(draws.counts, 7000))
    pixels = draws.queries.bincount(minlength=8)
    assert pixels[3] == 0
    assert (pixels[pixels > 0] / 1000 - 1).abs().max() < 0.15


@pytest.mark.parametrize("sampling", ["cbqs", "ceqs", "random"])
def test_queries_are_of_the_class_that_they_count_for(golden, sampling):
    source = golden("t2sda_sampling")["label_src"].long()
    draws = draw(source, None, 19, seeded(), n=16, sampling=sampling)
    used = draws.queries[: draws.counts.sum()]
    assert torch.equal(source.flatten()[used], classes_of_queries(draws.counts, len(used)))
    assert len(draws.queries) == most_queries(19, 16, sampling)


def test_draws_are_the_same_for_the_same_generator(golden):
    source = golden("t2sda_sampling")["label_src"].long()
    first, second, other = (draw(source, source, 19, seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.negatives, other.negatives)


def reference_draws(g):
    """The draws of the reference file, whose numbers count through the candidates of each class."""
    source, target = g["label_src"].long().flatten(), g["pseudo_label_trg"].long().flatten()
    below = g["conf_trg"].flatten() < g["gamma"]
    queries, negatives = [], torch.zeros(19, 24, dtype=torch.int64)
    for c in range(19):
        candidates = (source == c).nonzero().flatten()
        queries.append(candidates[g["q_idx"][c][g["q_idx"][c] >= 0].long()])
        if len(candidates) == 0:
            continue
        near = ((source != c) & (source != 255)).nonzero().flatten()
        far = ((target != c) & below).nonzero().flatten() + len(source)
        negatives[c] = torch.cat([near[g["neg_src_idx"][c].long()], far[g["neg_trg_idx"][c].long()]])
    beyond = torch.zeros(7, dtype=torch.int64)  # slots that no class has
    return Draws(torch.cat([*queries, beyond]), g["n_q"], negatives, torch.ones(19, dtype=torch.bool))


class Reference:
    """Inputs of the reference file as the functions take them."""

    def __init__(self, golden, norm="after", dtype=torch.float32):
        self.g = golden("t2sda_pull")
        self.features = self.g["feat_query"].to(dtype).requires_grad_()
        source, target = (pixel_rows(self.g[name]) for name in ("feat_src", "feat_trg"))
        self.prototypes = source_prototypes(source, self.g["label_src"].long(), 19, norm)
        self.keys = unit_rows(torch.cat([source, target]))
        self.draws = reference_draws(self.g)

    @property
    def arguments(self):
        return pixel_rows(self.features), self.prototypes, self.keys, self.draws


def test_prototypes_are_the_reference(golden):
    g = golden("t2sda_prototypes")
    rows, labels = pixel_rows(g["feat_src"]), g["label_src"].long()
    for norm, name in (("after", "proto_paper"), ("before", "proto_pseudocode")):
        torch.testing.assert_close(source_prototypes(rows, labels, 19, norm).double(), g[name], rtol=1e-5, atol=1e-6)
    lengths = source_prototypes(rows, labels, 19, "before").norm(dim=1)
    torch.testing.assert_close(lengths.double(), g["proto_pseudocode_norm"], rtol=1e-5, atol=1e-6)
    both = source_prototypes(rows, labels, 19, "both")
    torch.testing.assert_close(both, F.normalize(g["proto_pseudocode"].float(), dim=1), rtol=1e-5, atol=1e-6)


CASES = [
    ("infonce_paper", "infonce", "after"),
    ("mse_paper", "mse", "after"),
    ("infonce_pseudocode", "infonce", "before"),
]


@pytest.mark.parametrize(("name", "objective", "norm"), CASES)
@pytest.mark.parametrize("chunk", [(64, 8), (4, 3), (1, 1)])
def test_the_loss_of_each_query_is_the_reference(golden, monkeypatch, name, objective, norm, chunk):
    monkeypatch.setattr(pull_module, "_CHUNK", chunk[0])
    monkeypatch.setattr(pull_module, "_TOGETHER", chunk[1])
    reference = Reference(golden, norm)
    tau, expected = reference.g["tau"].item(), reference.g[f"{name}_per_query"]
    losses = query_losses(*reference.arguments, tau, objective)
    torch.testing.assert_close(losses[: len(expected)].double(), expected, rtol=1e-5, atol=2e-5)
    assert losses.isfinite().all()
    classes = classes_of_queries(reference.draws.counts, len(losses))[: len(expected)]
    assert torch.equal(classes, reference.g["per_query_class"].long())


@pytest.mark.parametrize(("name", "objective", "norm"), CASES)
@pytest.mark.parametrize("reduction", ["mean", "eq3"])
@pytest.mark.parametrize("by_pixels", [False, True])
def test_the_loss_is_the_reference(golden, monkeypatch, name, objective, norm, reduction, by_pixels):
    reference = Reference(golden, norm)
    if by_pixels:
        draws = reference.draws
        # Draws that count for nothing make it look as if there were more of them than pixels and keys.
        beyond = torch.zeros(4000, dtype=torch.int64)
        reference.draws = draws._replace(queries=torch.cat([draws.queries, beyond]))
        monkeypatch.setattr(pull_module, "_InfoNCE", None)
    weights, tau = reference.g["class_weight"].float(), reference.g["tau"].item()
    loss = pull_loss(*reference.arguments, weights, tau, objective, reduction)
    assert loss.item() == pytest.approx(reference.g[f"{name}_total_{reduction}"].item(), abs=2e-5)
    if reduction == "mean" and norm == "after":
        loss.backward()
        expected = reference.g[f"{name}_grad_total_mean"]
        torch.testing.assert_close(reference.features.grad, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_follows_the_weight_of_the_loss(golden):
    gradients = []
    for factor in (1, 3):
        reference = Reference(golden)
        (factor * pull_loss(*reference.arguments, reference.g["class_weight"].float())).backward()
        gradients.append(reference.features.grad)
    torch.testing.assert_close(gradients[1], 3 * gradients[0])


def test_autocasting_changes_nothing(golden):
    reference = Reference(golden)
    weights = reference.g["class_weight"].float()
    plain = pull_loss(*reference.arguments, weights)
    with torch.autocast("cpu", torch.bfloat16):
        loss = pull_loss(*reference.arguments, weights)
        prototypes = source_prototypes(pixel_rows(reference.g["feat_src"]), reference.g["label_src"].long(), 19)
    assert loss.dtype == torch.float32
    assert loss.item() == plain.item()
    assert torch.equal(prototypes, reference.prototypes)


def test_lengths_of_queries_and_negatives_do_not_count(golden):
    reference = Reference(golden)
    queries, prototypes, keys, draws = reference.arguments
    scale = torch.rand(len(queries), 1, generator=seeded()) + 0.1
    stretched = unit_rows(keys * torch.cat([scale, scale]))
    expected = query_losses(queries, prototypes, keys, draws)
    torch.testing.assert_close(query_losses(queries * scale, prototypes, stretched, draws), expected)


def test_squared_distances_are_two_minus_two_cosines(golden):
    reference = Reference(golden)
    queries, prototypes, _, draws = reference.arguments
    losses = query_losses(*reference.arguments, objective="mse")[: draws.counts.sum()]
    classes = classes_of_queries(draws.counts, len(losses))
    cosines = F.cosine_similarity(queries[draws.queries[: len(losses)]], prototypes[classes])
    torch.testing.assert_close(losses, 2 - 2 * cosines)


def looped_loss(queries, source, target, labels, draws, weights, tau):
    """The definition, query after query, in float64."""
    queries, source, target = (x.double() for x in (queries, source, target))
    keys, total, start = F.normalize(torch.cat([source, target]), dim=1), queries.new_zeros(()), 0
    for c, count in enumerate(draws.counts.tolist()):
        prototype = F.normalize(source[labels == c].mean(dim=0), dim=0) if count else None
        for pixel in draws.queries[start : start + count]:
            q = F.normalize(queries[pixel], dim=0)
            logits = [q @ prototype] + [q @ keys[k] for k in draws.negatives[c] if draws.contrasted[c]]
            total = total + weights[c] / count * F.cross_entropy(torch.stack(logits)[None] / tau, torch.tensor([0]))
        start += count
    return total


def contrast(labels, pseudo, classes=4, seed=0, n=3, m=6, tau=0.2, **settings):
    """Loss and gradient of random features under these labels, by us and by the definition."""
    labels, pseudo = (None if x is None else torch.tensor(x).view(1, 2, -1) for x in (labels, pseudo))
    generator, gradients, losses = seeded(seed), [], []
    queries, source, target = torch.randn(3, labels.numel(), 5, generator=generator)
    draws = draw(labels, pseudo, classes, generator, n, m, **settings)
    weights = torch.rand(classes, generator=generator)
    for form in ("ours", "definition"):
        leaf = queries.clone().requires_grad_()
        if form == "ours":
            prototypes = source_prototypes(source, labels, classes)
            loss = pull_loss(leaf, prototypes, unit_rows(torch.cat([source, target])), draws, weights, tau)
            loss.backward()
        else:
            loss = looped_loss(leaf, source, target, labels.flatten(), draws, weights, tau)
            if loss.requires_grad:
                loss.backward()
        losses.append(loss.item())
        gradients.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    return losses[0], gradients[0], draws


VOID = 255
BATCHES = {
    "all classes": ([0, 1, 2, 3, 0, 1, 2, VOID], [0, 1, 2, 3, VOID, 1, VOID, 0]),
    "absent classes": ([0, 0, 2, VOID, 0, 2, 2, VOID], [3, 3, 2, 3, VOID, 1, VOID, 0]),
    "a single pixel": ([0, 0, 0, 0, 0, 3, 0, 0], [3, 3, 2, 3, VOID, 1, VOID, 0]),
    "one class in the source": ([2, 2, 2, VOID, 2, 2, 2, 2], [3, 3, 2, 3, VOID, 1, VOID, 2]),
    "no unreliable target": ([0, 1, 2, 3, 0, 1, 2, VOID], [VOID] * 8),
    "no target": ([0, 1, 2, 3, 0, 1, 2, VOID], None),
    "one class everywhere": ([2, 2, 2, VOID, 2, 2, 2, 2], [2, 2, 2, 2, VOID, 2, VOID, 2]),
    "one class and no target": ([2, 2, 2, VOID, 2, 2, 2, 2], None),
    "the last class absent and no void": ([0, 1, 2, 0, 0, 1, 2, 2], [0, 1, 2, 0, 0, 1, 2, 2]),
    "void alone": ([VOID] * 8, [3, 3, 2, 3, VOID, 1, VOID, 0]),
    "void everywhere": ([VOID] * 8, [VOID] * 8),
}


@pytest.mark.parametrize("sampling", ["cbqs", "ceqs", "random"])
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
def test_any_batch_gives_the_loss_and_gradient_of_the_definition(batch, halves, sampling):
    for m in (6, 60):  # by chunks of queries, and by all pixels and keys
        loss, gradient, draws = contrast(*BATCHES[batch], seed=m, m=m, halves=halves, sampling=sampling)
        assert np.isfinite(loss)
        assert gradient.isfinite().all()
        assert draws.counts.sum() <= len(draws.queries)


def test_absent_classes_have_no_queries_and_single_pixels_are_drawn_again_and_again():
    _, _, draws = contrast(*BATCHES["absent classes"])
    assert (draws.counts > 0).tolist() == [True, False, True, False]
    _, _, draws = contrast(*BATCHES["a single pixel"], n=16, sampling="ceqs")
    assert draws.counts.tolist() == [16, 0, 0, 16]
    assert (draws.queries[16:32] == 5).all()


def test_an_empty_pool_leaves_all_negatives_to_the_other():
    _, _, draws = contrast(*BATCHES["one class in the source"])
    assert (draws.negatives[2] >= 8).all()
    assert draws.contrasted.all()
    for batch in ("no unreliable target", "no target"):
        _, _, draws = contrast(*BATCHES[batch])
        assert (draws.negatives < 8).all()
        assert draws.contrasted.all()


@pytest.mark.parametrize("batch", ["one class everywhere", "one class and no target"])
@pytest.mark.parametrize("m", [6, 60])
def test_no_negatives_at_all_cost_nothing(batch, m):
    loss, gradient, draws = contrast(*BATCHES[batch], m=m)
    assert not draws.contrasted[2]
    assert draws.counts[2] > 0
    assert loss == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("batch", ["void alone", "void everywhere"])
@pytest.mark.parametrize("m", [6, 60])
def test_void_sources_cost_nothing_and_have_a_graph(batch, m):
    loss, gradient, draws = contrast(*BATCHES[batch], m=m)
    assert draws.counts.sum() == 0
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("objective", "m"), [("infonce", 1), ("infonce", 1024), ("mse", 1024)])
def test_features_of_length_zero_stay_finite_and_send_no_gradient_back(objective, m):
    queries, source = torch.zeros(8, 5, requires_grad=True), torch.zeros(8, 5)
    labels = torch.tensor([[[0, 1, 2, 3, 0, 1, 2, VOID]]])
    draws = draw(labels, labels, 4, seeded(), n=1, m=m)
    prototypes = source_prototypes(source, labels, 4)
    loss = pull_loss(queries, prototypes, unit_rows(torch.cat([source, source])), draws, torch.ones(4), 0.2, objective)
    loss.backward()
    assert loss.item() == pytest.approx(4 * np.log(1 + m) if objective == "infonce" else 0, rel=1e-5)
    assert torch.equal(queries.grad, torch.zeros(8, 5))


@pytest.mark.parametrize("tau", [0.01, 0.02, 5.0])
@pytest.mark.parametrize("m", [6, 60])
def test_low_and_high_temperatures_are_exact(tau, m):
    contrast(*BATCHES["all classes"], tau=tau, m=m)


def test_relu_features_bound_the_loss_from_below():
    """Trap T15: cosines in [0, 1] leave ln(1 + 1024 e^-5) = 2.07 at tau = 0.2."""
    source = torch.eye(2)
    labels = torch.tensor([[[0, 1]]])
    draws = draw(labels, None, 2, seeded())
    losses = query_losses(torch.eye(2), source_prototypes(source, labels, 2), source, draws)
    torch.testing.assert_close(losses, torch.full_like(losses, np.log1p(1024 * np.exp(-5))))


def batch_of(golden):
    """Queries, source and target of the reference file."""
    g = golden("t2sda_pull")
    source = Keys(g["feat_src"], g["label_src"].long())
    return g["feat_query"].requires_grad_(), source, Keys(g["feat_trg"], g["pseudo_label_trg"].long(), g["conf_trg"])


@pytest.mark.parametrize("with_target", [True, False])
def test_the_pull_of_a_batch_is_the_loss_of_its_draws(golden, with_target):
    queries, source, target = batch_of(golden)
    target = target if with_target else None
    weights = torch.full((19,), 1 / 19)
    found = pull(queries, source, target, weights, seeded(5), n=4, m=24)
    confident = None if target is None else unreliable(target.labels, target.confidence, 0.5)
    draws = draw(source.labels, confident, 19, seeded(5), 4, 24)
    rows = [pixel_rows(keys.features) for keys in (source, target) if keys is not None]
    expected = looped_loss(pixel_rows(queries), rows[0], rows[-1], source.labels.flatten(), draws, weights, 0.2)
    assert found.item() == pytest.approx(expected.item(), abs=2e-5)
    assert (draws.negatives >= len(rows[0])).any() == with_target


def test_prototypes_of_other_images_pull_the_classes_that_these_have(golden):
    queries, source, target = batch_of(golden)
    confident = target.confidence > 0.6
    there = Keys(target.features, target.labels.where(confident, 255))
    weights = torch.full((19,), 1 / 19)
    found = pull(queries, source, target, weights, seeded(5), there, n=4, m=24)
    present = torch.tensor([(there.labels == c).any() for c in range(19)])
    draws = draw(source.labels, unreliable(target.labels, target.confidence), 19, seeded(5), 4, 24)
    assert (draws.counts[~present] > 0).any()
    prototypes = source_prototypes(pixel_rows(target.features), there.labels, 19)
    keys = unit_rows(torch.cat([pixel_rows(source.features), pixel_rows(target.features)]))
    expected = pull_loss(pixel_rows(queries), prototypes, keys, draws, weights * present)
    assert found.item() == expected.item()
    found.backward()
    of_present = present[source.labels.clamp(max=18)] & (source.labels != VOID)
    assert queries.grad.abs().sum(dim=1)[~of_present].max() == 0


def test_a_batch_without_labels_costs_nothing_and_has_a_graph(golden):
    queries, source, target = batch_of(golden)
    void = source._replace(labels=torch.full_like(source.labels, VOID))
    loss = pull(queries, void, target, torch.full((19,), 1 / 19), seeded())
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(queries.grad, torch.zeros_like(queries))


@pytest.mark.parametrize("sampling", ["cbqs", "ceqs", "random"])
@pytest.mark.parametrize("objective", ["infonce", "mse"])
@pytest.mark.parametrize("with_target", [True, False])
@pytest.mark.parametrize("size", [(6, 7), (40, 65)])
def test_nothing_is_read_back_from_the_device(sampling, objective, with_target, size):
    labels = torch.zeros(2, *size, dtype=torch.int64, device="meta")
    features = torch.zeros(2, 5, *size, device="meta", requires_grad=True)
    keys = Keys(features.detach(), labels, torch.zeros(2, *size, device="meta"))
    weights = torch.ones(19, device="meta")
    target = keys if with_target else None
    loss = pull(features, keys, target, weights, seeded(), sampling=sampling, objective=objective)
    loss.backward()
    assert features.grad.shape == features.shape
