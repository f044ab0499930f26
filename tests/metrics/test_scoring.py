import pytest
import torch

from lightning_uda.label_spaces import CAMVID, CITYSCAPES, NTHU_MERGED, NTHU_MERGED_TRAIN_AS_BUS
from lightning_uda.metrics import Confusion, Scoring, iou_per_class, mean_iou


@pytest.mark.parametrize(("merged", "key"), [(NTHU_MERGED, ""), (NTHU_MERGED_TRAIN_AS_BUS, "_train_as_bus")])
def test_the_thirteen_classes_of_nthu(golden, merged, key):
    arrays = golden("cbst_nthu")
    to_19 = torch.full((256,), 255)
    to_19[:13] = torch.tensor(CITYSCAPES.subset_indices("13"))
    metric = Scoring(merged=merged).new_confusion(CITYSCAPES)
    for truth, pred in zip(arrays["gt13"], arrays["pred19"], strict=True):
        metric.update(pred[None].long(), to_19[truth[None].long()])
    iou = iou_per_class(metric.compute())
    thirteen = CITYSCAPES.subset_indices("13")
    torch.testing.assert_close(iou[thirteen], arrays[f"iou{key}"], rtol=0, atol=1e-12)
    assert float(mean_iou(iou, thirteen)) == pytest.approx(float(arrays[f"miou{key}"]), rel=0, abs=1e-12)


def test_without_merging_the_matrix_holds_what_was_counted():
    metric = Scoring().new_confusion(CITYSCAPES)
    metric.update(torch.tensor([[3, 2, 5]]), torch.tensor([[3, 2, 255]]))
    assert metric.compute().sum() == 2
    assert metric.compute()[3, 3] == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_of_any_type_are_counted_and_left_as_they_are(dtype):
    pred, truth = torch.tensor([[1, 18], [0, 0]], dtype=dtype), torch.tensor([[18, 255], [19, 18]], dtype=dtype)
    kept, metric = (pred.clone(), truth.clone()), Confusion(19)
    metric.update(pred, truth)
    assert metric.compute().nonzero().tolist() == [[18, 0], [18, 1]]
    assert torch.equal(pred, kept[0])
    assert torch.equal(truth, kept[1])


def test_each_image_of_a_batch_is_scored_over_the_classes_of_its_labels():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 4, (5, 6, 7), generator=generator)
    pred = torch.randint(0, 5, (5, 6, 7), generator=generator)
    truth[2], truth[3][truth[3] == 1], truth[:, 0] = 255, 255, 255
    metric = Confusion(5, merged={4: 0})
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(pred[part], truth[part])
    scores = metric.batch_mious()
    merged = pred.masked_fill(pred == 4, 0)
    expected = [[int(((truth == t) & (merged == p)).sum()) for p in range(5)] for t in range(5)]
    assert metric.compute().tolist() == expected
    assert scores.isnan().tolist() == [True, False, False]
    for image, score in zip((3, 4), scores[1:], strict=True):
        valid = truth[image] != 255
        ious = []
        for c in truth[image][valid].unique():
            label, guess = (truth[image] == c)[valid], (merged[image] == c)[valid]
            ious.append(float((label & guess).sum() / (label | guess).sum()))
        assert float(score) == pytest.approx(sum(ious) / len(ious), rel=1e-6)


def test_labels_of_a_scope_are_void_where_it_does_not_count():
    mask = torch.tensor([[[0, 0, 0, 1, 255, 0, 0, 0]]])
    found = dict(Scoring([(1, 4)], border=1).labels(mask))
    assert list(found) == [None, "at_1x4", "within_1px_of_borders", "beyond_1px_of_borders"]
    assert found[None] is mask
    assert found["at_1x4"].tolist() == [[[0, 1, 0, 0]]]
    assert found["within_1px_of_borders"].tolist() == [[[255, 255, 0, 1, 255, 255, 255, 255]]]
    assert found["beyond_1px_of_borders"].tolist() == [[[0, 0, 255, 255, 255, 0, 0, 0]]]


def test_without_a_border_nothing_is_looked_for(monkeypatch):
    monkeypatch.setattr("lightning_uda.metrics.scoring.near_borders", None)
    assert [scope for scope, _ in Scoring([(1, 4)]).labels(torch.zeros(1, 2, 8))] == [None, "at_1x4"]
    assert Scoring([(1, 4)]).scopes == ["at_1x4"]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"Scoring.\w+: found .*0, 4.*, expected numbers from 1"):
        Scoring(sizes=[[0, 4]])
    for sizes in ([[512, 1024], [512, 1024]], [[512]]):
        with pytest.raises(ValueError, match="expected distinct pairs of height and width"):
            Scoring(sizes)
    for border in (0, -3):
        with pytest.raises(ValueError, match=rf"border: found {border}, expected a number from 1"):
            Scoring(border=border)
    with pytest.raises(ValueError, match=r"`merged` names \['building', 'wall'\].* label space 'camvid'"):
        Scoring(merged={"wall": "building"}).new_confusion(CAMVID)
