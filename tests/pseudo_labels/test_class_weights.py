import pytest
import torch

from lightning_uda.pseudo_labels import DynamicClassWeights, FixedClassWeights, class_counts, dynamic_weights


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 2.0])
def test_dynamic_weights_are_the_reference(golden, beta):
    g = golden("t2sda_drw")
    found = DynamicClassWeights(beta)(g["label_all"], g["conf_map"], 19)
    torch.testing.assert_close(found.double(), g[f"wstar_all_{beta}"], rtol=0, atol=1e-6)


def test_beta_is_an_exponent_and_the_denominator_cancels(golden):
    """Trap of the pseudo-code: a factor beta would give the weights of beta = 1, the minimum those of the maximum."""
    g = golden("t2sda_drw")
    doubt = 1 - g["conf_all"]
    by_factor = 0.5 * doubt / doubt.sum() / 0.5
    found = dynamic_weights(g["label_all"], g["conf_map"], 19)
    assert (found - by_factor).abs().max() > 1e-3
    torch.testing.assert_close(by_factor, g["wstar_all_1.0"])
    by_minimum = (doubt / doubt.min()) ** 0.5
    torch.testing.assert_close(found.double(), by_minimum / by_minimum.sum(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("absent", "name"), [("mean", "mean"), ("zero", "conf0"), ("skip", "drop")])
def test_classes_that_are_never_predicted_are_treated_as_asked(golden, absent, name):
    g = golden("t2sda_drw")
    found = DynamicClassWeights(absent=absent)(g["label_absent"], g["conf_map"], 19)
    torch.testing.assert_close(found.double(), g[f"wstar_absent_{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("absent", ["mean", "zero", "skip"])
def test_a_teacher_that_is_certain_of_all_weighs_all_alike(absent):
    labels = torch.arange(4).view(1, 2, 2)
    found = dynamic_weights(labels, torch.ones(1, 2, 2), 4, absent=absent)
    assert torch.equal(found, torch.full((4,), 0.25))


@pytest.mark.parametrize(("absent", "expected"), [("mean", [0.25] * 4), ("skip", [0.5, 0.5, 0, 0])])
def test_certain_classes_beside_absent_ones_are_finite(absent, expected):
    found = dynamic_weights(torch.tensor([[[0, 1, 0, 1]]]), torch.ones(1, 1, 4), 4, absent=absent)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_void_alone_weighs_all_alike():
    void = torch.full((1, 2, 2), 255, dtype=torch.uint8)
    for absent in ("mean", "zero", "skip"):
        found = dynamic_weights(void, torch.rand(1, 2, 2), 3, absent=absent)
        torch.testing.assert_close(found, torch.full((3,), 1 / 3))


def test_means_of_many_pixels_are_exact():
    """A sum of two million float32 values in turn would be off by more."""
    confidence = torch.full((2, 1024, 1024), 0.9)
    confidence[:, :, 512:] = 0.1
    labels = (torch.arange(1024) >= 512).long().expand(2, 1024, 1024)
    found = dynamic_weights(labels, confidence, 2, beta=1)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.9]), rtol=0, atol=1e-7)


def test_static_weights_are_the_reference(golden):
    g = golden("t2sda_drw")
    found = FixedClassWeights()(g["label_all"], g["conf_map"], 19)
    torch.testing.assert_close(found.double(), g["srw_normalised"], rtol=0, atol=1e-6)


def test_weights_must_be_one_for_each_class():
    FixedClassWeights().check(19)
    DynamicClassWeights().check(5)
    with pytest.raises(ValueError, match="found 19 weights for 16 classes"):
        FixedClassWeights().check(16)


@pytest.mark.parametrize("weights", [[], [1, -1], [0, 0], [float("nan")]])
def test_weights_below_zero_or_of_no_sum_are_refused(weights):
    with pytest.raises(ValueError, match=r"FixedClassWeights.*found"):
        FixedClassWeights(weights)


@pytest.mark.parametrize("settings", [{"beta": -1}, {"beta": float("nan")}, {"absent": "never"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"DynamicClassWeights.*found"):
        DynamicClassWeights(**settings)


def test_counts_are_of_classes_and_then_of_void():
    labels = torch.tensor([[[0, 2, 2, 255, 3, 7]]], dtype=torch.uint8)
    assert class_counts(labels, 4).tolist() == [1, 0, 2, 1, 2]


def test_nothing_is_read_back_from_the_device():
    labels, confidence = torch.empty(2, 4, 4, dtype=torch.int64, device="meta"), torch.empty(2, 4, 4, device="meta")
    for weighting in (DynamicClassWeights(), DynamicClassWeights(absent="zero"), FixedClassWeights()):
        assert weighting(labels, confidence, 19).shape == (19,)
