import pytest
import torch
from lightning.pytorch import Trainer

from lightning_uda.methods import DACS
from lightning_uda.step import Labels, Step
from lightning_uda.terms import FeatureDistance
from lightning_uda.terms.feature_distance import cells_of, feature_distance
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET

CAMVID_THINGS = (6, 8, 9, 10)


def of_golden(g):
    return cells_of(
        g["gt"][:, 0].long(), g["feat"].shape[-2:], g["thing_classes"].tolist(), float(g["min_ratio"]), num_classes=19
    )


def test_cells_of_things_are_the_reference(golden):
    g = golden("t2sda_daformer_feat_dist")
    assert torch.equal(of_golden(g), g["mask"][:, 0])


def test_the_distance_and_its_gradient_are_the_reference(golden):
    g = golden("t2sda_daformer_feat_dist")
    features = g["feat"].requires_grad_()
    loss = float(g["lam"]) * feature_distance(features, g["feat_imnet"], of_golden(g))
    assert loss.item() == pytest.approx(g["loss"].item(), rel=1e-5)
    loss.backward()
    assert torch.allclose(features.grad, g["grad_feat"].float(), rtol=1e-5, atol=1e-7)
    assert feature_distance(features, g["feat_imnet"]).item() == pytest.approx(
        g["distance_all_pixels"].item(), rel=1e-5
    )


def test_without_a_cell_the_distance_is_0_with_a_graph():
    features = torch.randn(2, 8, 3, 4, requires_grad=True)
    loss = feature_distance(features, torch.randn(2, 8, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert features.grad.count_nonzero() == 0


def test_equal_features_have_finite_gradients():
    features = torch.randn(2, 8, 3, 4, requires_grad=True)
    for distance in ("l2", "cosine"):
        loss = feature_distance(features, features.detach().clone(), distance=distance)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert features.grad.isfinite().all()


def test_the_cosine_is_blind_to_lengths():
    features, others = torch.randn(2, 8, 3, 4), torch.randn(2, 8, 3, 4)
    expected = 1 - torch.nn.functional.cosine_similarity(features, others, dim=1).mean()
    assert feature_distance(3 * features, others, distance="cosine").item() == pytest.approx(expected.item(), rel=1e-5)


def test_cells_of_maps_that_are_no_multiple_of_the_grid():
    mask = torch.full((1, 11, 7), 255)
    mask[:, :5, :3] = 2
    cells = cells_of(mask, (2, 2), [2], 0.75, num_classes=3)
    assert cells.tolist() == [[[True, False], [False, False]]]
    assert not cells_of(mask, (2, 2), [0, 1], 0.0, num_classes=3).any()  # void never counts


def trained(term, steps=2, **options):
    module = DACS(network=tiny_network(), label_space="camvid", terms={"distance": term}, **options)
    trainer = Trainer(max_steps=steps, log_every_n_steps=1, **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None))
    return module, trainer.logged_metrics


def test_the_reference_is_the_network_before_training_frozen_and_not_saved():
    start = tiny_network().state_dict()
    module, logged = trained(FeatureDistance(classes=None, weight=0.1))
    reference = module.terms["distance"]._reference[0]
    assert all(torch.equal(tensor, start[name]) for name, tensor in reference.state_dict().items())
    assert not torch.equal(module.student.backbone[0].weight, reference.backbone[0].weight)
    module.train()
    assert not reference.training
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not any("reference" in name for name in module.state_dict())
    assert logged["train/loss_distance"] > 0


def test_random_weights_are_warned_about():
    module, _ = trained(FeatureDistance(classes=None), steps=1)
    module.trainer.optimizers = module.trainer.optimizers or [torch.optim.SGD(module.parameters(), 1.0)]
    assert any("features near those of random weights" in note for note in module.notes())
    network = tiny_network()
    network.load_state_dict(network.state_dict())
    term = FeatureDistance(classes=None)
    term.prepare(network)
    assert term.notes() == []


def test_classes_that_the_network_lacks_are_refused():
    with pytest.raises(ValueError, match="the network has 11"):
        FeatureDistance().prepare(tiny_network())
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        FeatureDistance(min_share=2)
    with pytest.raises(ValueError, match="numbers from 0 to 254"):
        FeatureDistance(classes=(3, 255))


def test_classes_need_labels():
    term = FeatureDistance(classes=CAMVID_THINGS)
    student = tiny_network()
    term.prepare(student)
    step = Step({}, torch.Generator(), student)
    step.look("source", torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="found no labels on the view 'source'"):
        term(step)
    step.look("labelled", torch.rand(1, 3, 16, 16), Labels(torch.full((1, 16, 16), 8)))
    term.of = "labelled"
    assert term(step).isfinite()
