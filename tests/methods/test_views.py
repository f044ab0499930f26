"""The names of views that methods declare, so that a term that reads another is refused before training."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_uda.__main__ import main
from lightning_uda.methods import DACS, EHTDI, SelfTraining
from lightning_uda.step import Step
from lightning_uda.terms import ConfidentPaste, FeatureMMD, Pull
from lightning_uda.translation import BlendJitter, RandomResizedCrop
from tests.fixtures.choices import few_of
from tests.fixtures.stages import METHODS, write_config
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET
from tests.methods.test_step_costs import METHODS as CLASSES
from tests.methods.test_step_costs import Leaf, batch

WITH_MORE = {EHTDI: {"crop": RandomResizedCrop(size=(64, 64)), "second_augmentation": BlendJitter()}}


@pytest.mark.parametrize("method", CLASSES)
def test_declared_views_are_those_of_a_step_with_all_that_is_optional(method):
    module = method(network=Leaf(), label_space="cityscapes", **WITH_MORE.get(method, {}))
    teacher = getattr(module, "teacher", None)
    step = Step(batch("cpu"), torch.Generator().manual_seed(0), module.student, teacher=teacher)
    module.algorithm(step)
    assert {name for name in step.views if name not in module.terms} == set(method.views)


def test_the_view_of_self_training_is_its_union():
    assert SelfTraining.views == SelfTraining.streams == ("union",)


@pytest.mark.parametrize("method", few_of(METHODS, "DACS", "SelfTraining"))
def test_a_term_that_reads_an_unknown_view_is_refused_before_a_run_folder_is_there(method, tmp_path):
    options = ["--model.terms.x", "FeatureMMD", "--model.terms.x.between", "[source,nowhere]"]
    with pytest.raises((SystemExit, ValueError), match=r"found no view '(nowhere|source)'; the method's step has \["):
        main(["fit", "--config", write_config(tmp_path, method), *options])
    assert not (tmp_path / method).exists()


class Own(DACS):
    """Has views of its own, which it doesn't declare."""

    def algorithm(self, step):
        super().algorithm(step)
        step.offer("own", step.views["source"].image)


def test_views_that_a_method_of_ones_own_does_not_declare_are_found_in_its_step():
    module = Own(network=tiny_network(), label_space="camvid", terms={"x": FeatureMMD(between=("source", "own"))})
    Trainer(max_steps=1, **QUIET).fit(module, datamodule=tiny_data(val=None))
    assert torch.isfinite(module.student.classifier.weight).all()


def test_terms_read_what_other_terms_show():
    paste = ConfidentPaste(tau=0.0, unjittered=("mixed_weak", "source"))
    terms = {"htcm": paste, "x": FeatureMMD(between=("htcm", "htcm_weak")), "pull": Pull(weight=0.1)}
    module = DACS(network=tiny_network(), label_space="camvid", terms=terms)
    Trainer(max_steps=1, **QUIET).fit(module, datamodule=tiny_data(val=None))
    assert torch.isfinite(module.student.classifier.weight).all()
