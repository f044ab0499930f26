"""A few labelled target images, with any method."""

import pytest
import torch

from lightning_uda.__main__ import main
from lightning_uda.methods import SourceOnly
from lightning_uda.tables import read_rows
from lightning_uda.terms import Supervised
from tests.fixtures.stages import write_config
from tests.methods.test_step_costs import Leaf, batch

FEW = ["--data.labelled_target", "tests.fixtures.tiny.TinyDataset", "--data.labelled_target.seed", "9"]
TERM = ["--model.terms.few", "Supervised"]


def test_the_loss_is_that_of_the_labelled_images():
    module = SourceOnly(network=Leaf(), label_space="cityscapes", terms={"few": Supervised(weight=0.5)})
    module.log_step = lambda values: None
    assert module.streams == ("source", "labelled_target")
    assert SourceOnly.streams == ("source",)
    data = batch("cpu")
    data["labelled_target"] = {"image": data["template"]["image"], "mask": data["template"]["mask"]}
    loss = module.training_step(data, 0)
    logits = torch.nn.functional.interpolate(
        module.student.answers[0], (64, 64), mode="bilinear", align_corners=module.student.align_corners
    )
    source, few = (
        torch.nn.functional.cross_entropy(logits, data[name]["mask"].long()) for name in ("source", "labelled_target")
    )
    torch.testing.assert_close(loss, source + 0.5 * few)


@pytest.mark.parametrize("method", ["DACS", "DSP"])
def test_one_image_is_enough_for_any_method(method, tmp_path):
    options = ["--data.labelled_target.length", "1", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    main(["fit", "--config", write_config(tmp_path, method), *FEW, *TERM, *options])
    rows = read_rows(tmp_path / method / "version_0/metrics.csv")
    losses = [float(row["train/loss_few"]) for row in rows if row.get("train/loss_few")]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TERM, "data.labelled_target isn't set, but this run needs it"),
        ([*FEW, "--data.labelled_target.has_labels", "false", *TERM], "data.labelled_target has no labels"),
        ([*TERM, "--model.terms.few.of", "fewest"], "needs the stream 'fewest', but nobody supplies it"),
    ],
)
def test_what_is_missing_is_said_before_training(options, message, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", write_config(tmp_path, "SourceOnly"), *options])
    assert message in str(end.value)
