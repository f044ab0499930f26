import pytest

from lightning_uda.self_training.plan import RoundPlan


def test_the_plan_of_rounds():
    plan = RoundPlan.of([1253, 1316, 1379], epochs_per_round=2, images_per_step=2)
    assert plan.first_steps == (0, 1253, 2569, 3948)  # the MXNet program drops each epoch's last batch: 3946
    assert [plan.round_of(step) for step in (0, 1252, 1253, 3947, 3948)] == [0, 0, 1, 2, 2]
    assert plan.positions(1) == (2506, 5138)
    assert RoundPlan.of([5], 1, 4).first_steps == (0, 2)


def test_rounds_that_a_checkpoint_knows_must_be_the_same():
    plan = RoundPlan.of([5, 5], 2, 2)
    for same in ([0, 5, 10], [0, 5], [0, 5, 10, 15]):
        plan.require_same(same, 2)
    for images in (2, None):
        with pytest.raises(
            ValueError, match=r"at the steps \[0, 6\], those of this run at \[0, 5, 10\].* the same data,"
        ):
            plan.require_same([0, 6], images)
    with pytest.raises(ValueError, match=r"Its steps had 4 images, those of this run have 2: choose .* is 4 again"):
        plan.require_same([0, 3, 6], 4)
