"""Every method in 16 bits: its gradients, and many steps."""

import math

import pytest
import torch

from lightning_uda.__main__ import main
from lightning_uda.tables import read_rows
from tests.fixtures.stages import METHODS, write_config

HALF = ["bf16-mixed", "bf16-true"]


GPU = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gradient(folder, method, precision, *device):
    path = folder / f"{precision}{len(device)}.pt"
    options = ["--trainer.callbacks+=tests.fixtures.gradients.SaveGradients", f"--trainer.callbacks.path={path}"]
    main(["fit", "--config", write_config(folder, method), "--trainer.precision", precision, *options, *device])
    return torch.load(path, weights_only=True, map_location="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_mixed_precision_point_where_those_of_float32_do(method, tmp_path):
    expected, *others = (gradient(tmp_path, method, precision) for precision in ("32-true", *HALF))
    cosines = [float(torch.cosine_similarity(expected, other, dim=0)) for other in others]
    print(method, [round(cosine, 5) for cosine in cosines])
    assert min(cosines) >= 0.99


@pytest.mark.slow
@needs_gpu
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_a_gpu_are_those_of_the_cpu(method, tmp_path):
    expected = gradient(tmp_path, method, "32-true")
    others = [gradient(tmp_path, method, precision, *GPU) for precision in ("32-true", "bf16-mixed", "16-mixed")]
    cosines = [float(torch.cosine_similarity(expected, other, dim=0)) for other in others]
    print(method, [round(cosine, 5) for cosine in cosines])
    assert min(cosines) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "device"), [*((half, []) for half in HALF), pytest.param("16-mixed", GPU, marks=needs_gpu)]
)
@pytest.mark.parametrize("method", METHODS)
def test_two_hundred_steps_stay_finite(method, precision, device, tmp_path):
    options = ["--trainer.precision", precision, "--trainer.callbacks", "null", *device]
    if method == "SelfTraining":
        options += ["--model.rounds.epochs_per_round", "25"]
    else:
        options += ["--trainer.max_steps", "200", "--trainer.val_check_interval", "200"]
    main(["fit", "--config", write_config(tmp_path, method), *options])
    rows = read_rows(tmp_path / method / "version_0/metrics.csv")
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == 200 if method != "SelfTraining" else len(losses) >= 100
    assert all(math.isfinite(loss) for loss in losses)
