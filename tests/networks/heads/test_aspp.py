from __future__ import annotations

import pytest
import torch

from lightning_uda.networks import ASPP, ASPPClassifier


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"dilations": (6, 12)}, "output_reference_two_branches"),
        ({"dilations": (6, 12, 18, 24), "summed": (6, 12)}, "output_reference_two_branches"),
        ({"dilations": (6, 12, 18, 24)}, "output_all_four_branches"),
    ],
)
def test_classifier_golden(arguments, expected, golden):
    arrays = golden("dacs_aspp_classifier")
    classifier = ASPPClassifier(8, 5, **arguments)
    with torch.no_grad():
        for index, branch in enumerate(classifier.conv2d_list):
            branch.weight.copy_(arrays[f"weight_{index}"])
            branch.bias.copy_(arrays[f"bias_{index}"])
    features = arrays["input"].requires_grad_()

    logits = classifier([torch.rand(2, 3, 1, 1), features])

    assert torch.allclose(logits, arrays[expected], rtol=0, atol=1e-5)
    if expected == "output_reference_two_branches":
        logits.square().mean().backward()
        gradient = arrays["grad_input_of_mean_square_two_branches"]
        assert torch.allclose(features.grad, gradient, rtol=0, atol=1e-5)


def test_classifier_initialization():
    torch.manual_seed(0)
    classifier = ASPPClassifier(256, 19)

    for branch in classifier.conv2d_list:
        assert branch.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert abs(branch.weight.mean().item()) < 1e-3
        assert branch.bias.abs().max().item() <= 1 / (256 * 9) ** 0.5
        assert branch.bias.abs().max().item() > 0


@pytest.mark.parametrize(
    "arguments",
    [{"dilations": ()}, {"dilations": (6, 6)}, {"summed": (6, 6)}, {"summed": (18,)}, {"summed": ()}],
)
def test_classifier_refuses_impossible_dilations(arguments):
    with pytest.raises(ValueError, match=r"Dilations of the classifier: found branches .*expected distinct"):
        ASPPClassifier(8, 5, **arguments)


def test_one_plan_builds_as_many_classifiers_as_are_wanted():
    plan = ASPP((18,), branches=(6, 18))

    first, second = (plan.build((2, 8), (4, 8), 5) for _ in range(2))

    assert list(first.state_dict()) == [
        f"conv2d_list.{branch}.{kind}" for branch in (0, 1) for kind in ("weight", "bias")
    ]
    assert first.summed == (18,)
    assert first.conv2d_list[1].weight.shape == (5, 8, 3, 3)
    assert first.conv2d_list[1].weight.data_ptr() != second.conv2d_list[1].weight.data_ptr()


@pytest.mark.parametrize(
    ("dilations", "note"),
    [
        ((6, 12), "ASPP branches: 6, 12 (two of four, reference)"),
        ((6, 12, 18, 24), "ASPP branches: 6, 12, 18, 24 (all four)"),
        ((1, 3), "ASPP branches: 1, 3"),
    ],
)
def test_the_summed_branches_are_noted(dilations, note):
    assert ASPP(list(dilations), branches=(1, 3, 6, 12, 18, 24)).notes() == [note]
