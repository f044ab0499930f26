from decimal import Decimal

import numpy as np
import pytest

from lightning_uda.self_training.portion import (
    PortionPolicy,
    SourcePerTarget,
    SourcePortion,
    learning_rate_factor,
)


def policy(row):
    return PortionPolicy(*(round(float(value), 6) for value in row))


def test_portions_are_the_reference_and_exact(golden):
    g = golden("cbst_schedule")
    for row, expected in zip(g.numpy("tgt_cfg"), g.numpy("p_recommended"), strict=True):
        portions = [policy(row).portion(i) for i in range(len(expected))]
        assert np.abs(np.array(portions, float) - expected).max() <= 1e-12
        assert max(portions) == Decimal("0.5")
    assert [str(PortionPolicy().portion(i)) for i in (0, 4, 9)] == ["0.20", "0.40", "0.50"]
    assert [PortionPolicy(0.1, 0.1, 0.5).count(2, total) for total in (10, 1000, 999)] == [3, 300, 299]


def test_a_portion_may_be_0_for_all_rounds_or_the_first():
    assert [PortionPolicy("0", "0", "0").portion(i) for i in (0, 7)] == [0, 0]
    assert [PortionPolicy(0, 0.05, 0.08).portion(i) for i in range(3)] == [0, Decimal("0.05"), Decimal("0.08")]
    assert PortionPolicy(0, 0, 0).count(0, 10**9) == 0


def test_source_counts_are_the_reference(golden):
    g = golden("cbst_schedule")
    rows = zip(g.numpy("src_cfg"), g.numpy("src_portion_recommended"), g.numpy("src_count_recommended"), strict=True)
    for row, portions, counts in rows:
        subset = SourcePortion(policy(row[:3]))
        found = [subset.count(i, int(row[3]), 505) for i in range(len(counts))]
        assert found == counts.tolist()
        assert np.abs([float(subset.portion.portion(i)) for i in range(len(counts))] - portions).max() <= 1e-12
    assert SourcePortion().count(0, 24966, 2975) == 748


def test_nested_subsets_grow_and_fresh_ones_differ():
    nested, fresh = SourcePortion(), SourcePortion(nested=False)
    first, second = (set(nested.draw(i, 2000, 100, seed=3).tolist()) for i in (0, 1))
    assert (len(first), len(second)) == (60, 65)
    assert first < second
    assert set(fresh.draw(0, 2000, 100, seed=3).tolist()) == first
    assert not first <= set(fresh.draw(1, 2000, 100, seed=3).tolist())
    assert np.array_equal(nested.draw(1, 2000, 100, seed=3), nested.draw(1, 2000, 100, seed=3))
    assert set(nested.draw(0, 2000, 100, seed=4).tolist()) != first


def test_a_ratio_counts_source_images_by_target_images():
    subset = SourcePerTarget(1.5)
    assert [subset.count(i, 24966, 2975) for i in (0, 3)] == [4462, 4462]
    assert subset.count(0, 100, 2975) == 100
    assert SourcePerTarget(0.01).count(0, 100, 5) == 1
    assert len(set(subset.draw(0, 100, 20, seed=0).tolist())) == 30


def test_learning_rates_are_the_reference(golden):
    g = golden("cbst_schedule")
    rates = [float(g["lr_base"]) * learning_rate_factor(i) for i in range(12)]
    assert np.allclose(rates, g.numpy("lr_per_round"), rtol=1e-12, atol=0)
    assert learning_rate_factor(5, 1.0) == 1.0


@pytest.mark.parametrize(
    "values", [("-0.1", "0.05", "0.5"), ("0.6", "0.05", "0.5"), ("0.2", "-0.1", "0.5"), (0.2, 0.1, 1.5)]
)
def test_portions_out_of_order_are_refused(values):
    with pytest.raises(ValueError, match=r"expected 0 <= initial <= maximum <= 1"):
        PortionPolicy(*values)


@pytest.mark.parametrize("value", ["a fifth", 1 / 3, "nan", "inf"])
def test_portions_that_are_no_exact_decimals_are_refused(value):
    with pytest.raises(ValueError, match=r"found initial=.*at most 6 decimals"):
        PortionPolicy(value)


def test_a_ratio_of_nothing_is_refused():
    with pytest.raises(ValueError, match="ratio: found 0"):
        SourcePerTarget(0)
