from itertools import pairwise

import pytest

from lightning_uda.optim import Constant, Poly


def test_poly_is_the_reference(golden):
    g = golden("dacs_poly_lr")
    poly, base, steps = Poly(g["power"].item()), g["base_lr"].item(), g["max_iter"].item()
    for iteration, lr0, lr1 in zip(
        g["iteration"].tolist(), g["lr_group0"].tolist(), g["lr_group1"].tolist(), strict=True
    ):
        assert base * poly.factor(iteration, steps) == pytest.approx(lr0, rel=1e-12)
        assert 10 * base * poly.factor(iteration, steps) == pytest.approx(lr1, rel=1e-12)


def test_warm_up_rises_linearly_to_the_decay():
    poly = Poly(power=1.0, warmup_steps=10, warmup_ratio=0.1)
    rise = [poly.factor(step, 10**9) for step in range(11)]
    assert rise[0] == pytest.approx(0.1)
    assert [b - a for a, b in pairwise(rise)] == pytest.approx([0.09] * 10, abs=1e-6)
    assert poly.factor(500, 1000) == pytest.approx(0.5)


def test_factors_end_at_zero_and_stay_there():
    assert Poly().factor(100, 100) == 0 == Poly().factor(101, 100)
    assert Constant().factor(7, 10) == 1


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="expected a number from 0"):
        Poly(power=-1)
