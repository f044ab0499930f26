import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_uda.networks.base import Classifier, Outputs
from lightning_uda.resize import subsample
from lightning_uda.step import Labels, Step, View
from lightning_uda.terms import PixelContrast, PrototypeContrast
from lightning_uda.terms.contrast import membership, pixel_contrast, prototype_contrast, prototypes
from tests.fixtures.tiny import tiny_network
from tests.methods.test_dacs import Replay


def leaves(*tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def with_void(labels):
    return labels.long().where(labels >= 0, 255)


def gradients(loss, *tensors):
    loss.backward()
    return [tensor.grad for tensor in tensors]


def dense_pixel_contrast(first, second, scale):
    """PiCL as the paper writes it, with the whole matrix of similarities, one image after the other."""
    losses = []
    for a, b in zip(first, second, strict=True):
        probs = torch.cat([a.flatten(1).T.softmax(1), b.flatten(1).T.softmax(1)])
        similarity = scale * probs @ probs.T
        similarity = similarity.masked_fill(torch.eye(len(probs), dtype=torch.bool), -torch.inf)
        positive = torch.arange(len(probs)).roll(len(probs) // 2)
        losses.append(F.cross_entropy(similarity, positive))
    return torch.stack(losses).mean()


def test_subsampled_labels_are_the_reference(golden):
    g = golden("ehtdi_procl")
    assert torch.equal(subsample(g["label_full"], g["label_lr"].shape[-2:]), g["label_lr"])


def test_corner_nearest_takes_the_pixels_where_aligned_logits_lie():
    picked = subsample(torch.arange(512).expand(1, 512, 512), (65, 65), "corner_nearest")[0, 0]
    assert torch.equal(picked, (511 * torch.arange(65) / 64).round().long())
    assert (subsample(torch.arange(512).expand(1, 512, 512), (65, 65))[0, 0] - picked).abs().max() == 7  # trap T14
    assert subsample(torch.arange(6).view(1, 2, 3), (1, 1), "corner_nearest").tolist() == [[[0]]]


def test_prototypes_are_the_reference(golden):
    g = golden("ehtdi_procl")
    for view in ("v1", "v2"):
        found = prototypes(g[f"logits_{view}"], membership(with_void(g["label_lr"]), 19))[0, g["classes"].long()]
        assert torch.allclose(found, g[f"proto_logits_{view}"].float(), rtol=1e-5, atol=2e-5)
        assert torch.allclose(found.softmax(1), g[f"proto_prob_{view}"].float(), rtol=1e-5, atol=1e-6)


def test_prototype_contrast_is_the_reference(golden):
    g = golden("ehtdi_procl")
    views = leaves(g["logits_v1"], g["logits_v2"])
    loss = prototype_contrast(*views, with_void(g["label_lr"]), float(g["s1"]))
    assert loss.item() == pytest.approx(g["loss_mean"].item(), abs=2e-5)
    for found, name in zip(gradients(loss, *views), ("grad_v1", "grad_v2"), strict=True):
        assert torch.allclose(found, g[name].float(), rtol=1e-5, atol=1e-6)


def test_images_of_one_class_or_none_add_nothing_to_the_prototype_contrast(golden):
    g = golden("ehtdi_procl")
    labels = with_void(g["label_lr"])
    alone, one, none = labels, torch.full_like(labels, 3), torch.full_like(labels, 255)
    views = leaves(g["logits_v1"].expand(3, -1, -1, -1), g["logits_v2"].expand(3, -1, -1, -1))
    loss = prototype_contrast(*views, torch.cat([alone, one, none]))
    assert loss.item() == pytest.approx(g["loss_mean"].item() / 3, abs=2e-5)
    for grad in gradients(loss, *views):
        assert grad.isfinite().all()
        assert grad[1:].abs().max() < 1e-9
    for labels in (one, none):
        views = leaves(g["logits_v1"], g["logits_v2"])
        loss = prototype_contrast(*views, labels)
        assert loss.item() == pytest.approx(g["loss_single_class"].item(), abs=1e-6)
        assert all(grad.abs().max() < 1e-9 for grad in gradients(loss, *views))


@pytest.mark.parametrize("rows", [1, 7, 64, 100_000])
def test_pixel_contrast_is_the_reference_for_any_number_of_rows(golden, rows):
    g = golden("ehtdi_picl")
    views = leaves(g["logits_v1"], g["logits_v2"])
    loss = pixel_contrast(*views, float(g["s2"]), rows)
    assert loss.item() == pytest.approx(g["loss_mean"].item(), abs=2e-5)
    for found, name in zip(gradients(loss, *views), ("grad_v1", "grad_v2"), strict=True):
        assert torch.allclose(found, g[name].float(), rtol=1e-5, atol=1e-6)
    same = pixel_contrast(g["logits_v1"], g["logits_v1"], float(g["s2"]), rows)
    assert same.item() == pytest.approx(g["loss_identical_views"].item(), abs=2e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows", [5, 16])
def test_pixel_contrast_and_its_gradients_are_the_dense_form(batch, rows):
    torch.manual_seed(0)
    logits = [2 * torch.randn(batch, 5, 3, 4) for _ in range(2)]
    views, dense = leaves(*logits), leaves(*logits)
    loss, expected = pixel_contrast(*views, 20.0, rows), dense_pixel_contrast(*dense, 20.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for found, wanted in zip(gradients(3 * loss, *views), gradients(3 * expected, *dense), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("certain", [0.0, 1e4])
def test_pixel_contrast_stays_finite_at_its_ends(certain):
    torch.manual_seed(0)
    views = leaves(*(certain * torch.randn(2, 19, 4, 4) for _ in range(2)))
    loss = pixel_contrast(*views, 80.0)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(loss, *views))
    if certain == 0:
        assert loss.item() == pytest.approx(np.log(31))  # all similarities are equal: log(2 N - 1)


def test_one_pixel_has_no_negative():
    views = leaves(*(torch.randn(2, 19, 1, 1) for _ in range(2)))
    loss = pixel_contrast(*views)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert all(grad.abs().max() < 1e-5 for grad in gradients(loss, *views))


def test_the_contrasts_are_symmetric_and_blind_to_the_order_of_pixels(golden):
    g = golden("ehtdi_picl")
    first, second = g["logits_v1"], g["logits_v2"]
    loss = pixel_contrast(first, second)
    assert loss.item() >= 0
    assert pixel_contrast(second, first).item() == pytest.approx(loss.item(), rel=1e-5)
    order = torch.randperm(first[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    shuffled = [view.flatten(2)[..., order].view_as(view) for view in (first, second)]
    assert pixel_contrast(*shuffled).item() == pytest.approx(loss.item(), rel=1e-5)
    labels = torch.randint(0, 5, (1, *first.shape[-2:]), generator=torch.Generator().manual_seed(0))
    assert prototype_contrast(first, second, labels).item() == pytest.approx(
        prototype_contrast(second, first, labels).item(), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["procl", "picl"])
def test_gradients_reach_features_and_classifier(golden, kind):
    g = golden("ehtdi_feature_level")
    first, second, weight, bias = leaves(g["feat_v1"], g["feat_v2"], g["weight"], g["bias"])
    logits = [F.conv2d(features, weight[:, :, None, None], bias) for features in (first, second)]
    loss = pixel_contrast(*logits) if kind == "picl" else prototype_contrast(*logits, with_void(g["label_lr"]))
    assert loss.item() == pytest.approx(g[f"loss_{kind}"].item(), abs=2e-5)
    names = ("feat_v1", "feat_v2", "weight", "bias")
    for found, name in zip(gradients(loss, first, second, weight, bias), names, strict=True):
        assert torch.allclose(found, g[f"grad_{kind}_{name}"].float(), rtol=1e-5, atol=2e-6)


def test_prototypes_of_logits_are_logits_of_mean_features(golden):
    g = golden("ehtdi_feature_level")
    logits = F.conv2d(g["feat_v1"], g["weight"][:, :, None, None], g["bias"])
    found = prototypes(logits, membership(with_void(g["label_lr"]), 19))[0, g["classes"].long()].softmax(1)
    assert torch.allclose(found, g["proto_prob_v1"].float(), rtol=1e-5, atol=1e-6)


def test_no_matrix_of_all_similarities_is_ever_made():
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            largest.extend(part.numel() for part in [result] if isinstance(part, torch.Tensor))
            return result

    views = leaves(*(torch.randn(1, 19, 32, 32) for _ in range(2)))
    with Watch():
        pixel_contrast(*views, rows=16).backward()
    assert max(largest) <= 2048 * 20  # pixels of both views by classes and one; their pairs would be 2048 ** 2


def test_contrasts_are_of_float32_under_mixed_precision():
    torch.manual_seed(0)
    logits = [(3 * torch.randn(2, 19, 5, 5)).bfloat16() for _ in range(2)]
    labels = torch.randint(0, 19, (2, 5, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = pixel_contrast(*logits), prototype_contrast(*logits, labels)
    wide = [view.float() for view in logits]
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert losses[0].item() == pixel_contrast(*wide).item()
    assert losses[1].item() == prototype_contrast(*wide, labels).item()


def step_of(mixed, weak, student=None):
    step = Step({}, torch.Generator(), student or Replay())
    step.views.update(mixed=mixed, mixed_weak=weak)
    return step


def seen(logits, *labels, opacity=None):
    image = torch.rand(len(logits), 3, 16, 16)
    return View(image, labels, opacity, Outputs((Classifier(logits),), ()))


def test_pasted_pixels_count_as_taught_and_others_where_they_are_confident():
    torch.manual_seed(0)
    logits = 4 * torch.randn(2, 19, 16, 16)
    taught = torch.randint(0, 19, (2, 16, 16), dtype=torch.uint8)
    taught[0, 0] = 255
    opacity = torch.rand(2, 16, 16) < 0.4
    step = step_of(seen(torch.zeros(2, 19, 16, 16), Labels(taught), opacity=opacity), seen(logits))
    found = PrototypeContrast(tau=0.9).labels(step)
    confidence, predicted = logits.softmax(1).max(1)
    expected = torch.where(opacity, taught.long(), torch.where(confidence > 0.9, predicted, 255))
    assert 0.2 < (expected == 255).float().mean() < 0.6
    assert torch.equal(found, expected)


def test_without_a_paste_labelled_pixels_count_as_taught_and_without_labels_where_they_are_confident():
    taught = torch.randint(0, 19, (2, 16, 16))
    logits = 4 * torch.randn(2, 19, 16, 16)
    assert torch.equal(PrototypeContrast().labels(step_of(seen(logits, Labels(taught)), seen(logits))), taught)
    confidence, predicted = logits.softmax(1).max(1)
    unlabelled = PrototypeContrast(tau=0.9).labels(step_of(seen(logits), seen(logits)))
    assert torch.equal(unlabelled, torch.where(confidence > 0.9, predicted, 255))


def test_all_images_count_unless_the_first_alone_is_asked_for():
    torch.manual_seed(0)
    logits = [torch.randn(2, 19, 16, 16) for _ in range(2)]
    taught = torch.randint(0, 19, (2, 16, 16))
    step = step_of(seen(logits[0], Labels(taught)), seen(logits[1]))
    each = [prototype_contrast(*(view[i : i + 1] for view in logits), taught[i : i + 1]).item() for i in range(2)]
    assert PrototypeContrast()(step).item() == pytest.approx(sum(each) / 2, rel=1e-5)
    assert PrototypeContrast(images="first")(step).item() == pytest.approx(each[0] / 2, rel=1e-5)


def test_offered_views_are_shown_once_and_with_a_gradient_for_contrast_alone():
    for differentiated in ((), PixelContrast().differentiates):
        student = tiny_network()
        step = Step({}, torch.Generator(), student, differentiated=frozenset(differentiated))
        step.offer("mixed_weak", torch.rand(2, 3, 16, 16))
        assert step.views["mixed_weak"].outputs is None
        with torch.no_grad():
            labels, _ = step.prediction("mixed_weak")
        assert step.prediction("mixed_weak")[0] is labels
        assert step.seen("mixed_weak") is step.views["mixed_weak"]
        assert step.seen("mixed_weak").logits.requires_grad == bool(differentiated)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelContrast(between="mixed"), "expected the names of two views"),
        (lambda: PixelContrast(scale=0), "scale: found 0, expected a number from"),
        (lambda: PixelContrast(scale=100), "from 1e-06 to 80"),
        (lambda: PixelContrast(rows=0), "rows: found 0, expected a number from 1"),
        (lambda: PrototypeContrast(tau=1.5), r"tau: found 1.5, expected"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_views_of_other_sizes_are_refused():
    step = step_of(seen(torch.zeros(2, 19, 4, 4)), seen(torch.zeros(2, 19, 5, 5)))
    with pytest.raises(ValueError, match="expected two views of the same geometry"):
        PixelContrast()(step)


def test_a_view_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="found no view 'mixed'"):
        PixelContrast()(Step({}, torch.Generator(), Replay()))
