import zipfile
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lightning_uda.callbacks import (
    AnonymizedTrainIds,
    CityscapesLabelIds,
    Colors,
    Prediction,
    PredictionWriter,
    RawIds,
    TrainIds,
)
from lightning_uda.data.dataset import Frame
from lightning_uda.datasets import ACDC
from lightning_uda.label_spaces import CAMVID, CITYSCAPES, CITYSCAPES16
from tests.fixtures.media import read, read_video
from tests.fixtures.official_layouts import make_acdc


class Module(pl.LightningModule):
    label_space = CITYSCAPES
    predicted = 0

    def predict_step(self, batch, batch_idx):
        self.predicted += 1
        return batch


def batches():
    first = torch.zeros(2, 4, 6, dtype=torch.uint8)
    first[0, 1, 2] = 18
    second = torch.full((1, 5, 3), 13, dtype=torch.uint8)
    return [{"pred": first, "name": ["aachen_0", "aachen_1"]}, {"pred": second, "name": ["bonn_0"]}]


def predict(folder, data=None, module=None, **kwargs):
    module = module or Module()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[PredictionWriter(folder, **kwargs)], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.predict(module, DataLoader(data or batches(), batch_size=None), return_predictions=False)
    return module


def test_ids_and_colors_at_the_original_sizes(tmp_path):
    predict(tmp_path / "new" / "predictions")
    written = {path.relative_to(tmp_path / "new/predictions").as_posix() for path in tmp_path.rglob("*.png")}
    assert written == {f"{kind}/{name}.png" for kind in ("color", "id") for name in ("aachen_0", "aachen_1", "bonn_0")}
    ids = Image.open(tmp_path / "new/predictions/id/aachen_0.png")
    assert ids.mode == "L"
    np.testing.assert_array_equal(np.asarray(ids), batches()[0]["pred"][0].numpy())
    color = np.asarray(Image.open(tmp_path / "new/predictions/color/aachen_0.png"))
    assert color.shape == (4, 6, 3)
    assert tuple(color[1, 2]) == CITYSCAPES.palette[18]
    assert tuple(color[0, 0]) == CITYSCAPES.palette[0]
    assert np.asarray(Image.open(tmp_path / "new/predictions/id/bonn_0.png")).shape == (5, 3)


def test_earlier_predictions_are_not_overwritten(tmp_path):
    predict(tmp_path)
    before = (tmp_path / "id/aachen_0.png").read_bytes()
    other = [{"pred": torch.ones(1, 4, 6, dtype=torch.uint8), "name": ["aachen_0"]}]
    with pytest.raises(FileExistsError, match=r"color already holds 3 PNG files.*give another output_dir"):
        predict(tmp_path, other)
    assert (tmp_path / "id/aachen_0.png").read_bytes() == before


def test_refused_before_anything_is_predicted(tmp_path, monkeypatch):
    (tmp_path / "id").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "id" / "bonn_0.png")
    monkeypatch.setattr(Module, "predict_step", lambda *_: pytest.fail("predicted before the check"))
    with pytest.raises(FileExistsError, match="id already holds 1 PNG files"):
        predict(tmp_path)


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "id").mkdir()
    assert predict(tmp_path).predicted == 2


def test_two_images_of_one_name_are_refused(tmp_path):
    data = [{"pred": torch.zeros(2, 4, 6, dtype=torch.uint8), "name": ["same", "same"]}]
    with pytest.raises(ValueError, match="Two images are named 'same'"):
        predict(tmp_path, data)


def test_other_stages_need_no_folder(tmp_path):
    (tmp_path / "id").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "id" / "bonn_0.png")
    PredictionWriter(tmp_path).setup(None, None, "fit")
    assert not (tmp_path / "color").exists()


FRAME = "frankfurt/frankfurt_000000_000294_leftImg8bit"


def submission(**kwargs):
    return [CityscapesLabelIds(zip=True, **kwargs)]


def frames(*names, size=(1024, 2048), value=13):
    return [{"pred": torch.full((1, *size), value, dtype=torch.uint8), "name": [name]} for name in names]


def test_what_the_test_server_wants(tmp_path):
    predict(tmp_path, frames(FRAME, "lindau_000001_000019"), outputs=submission())
    names = ["frankfurt/frankfurt_000000_000294_pred_labelIds.png", "lindau_000001_000019_pred_labelIds.png"]
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert written == ["label_ids.zip", *(f"label_ids/{name}" for name in names)]
    with zipfile.ZipFile(tmp_path / "label_ids.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == names
        with archive.open(names[0]) as file:
            image = Image.open(file)
            assert (image.mode, image.size) == ("L", (2048, 1024))
            assert np.unique(np.asarray(image)).tolist() == [26]


@pytest.mark.parametrize(("space", "key"), [(CITYSCAPES, "19"), (CITYSCAPES16, "16")])
def test_label_ids_are_those_of_the_published_tables(golden, space, key):
    expected = golden("cbst_label_luts").numpy(f"train{key}_to_cityscapes_id")
    train_ids = np.arange(space.num_classes, dtype=np.uint8)[None]
    written = CityscapesLabelIds(size=None).encode(Prediction(train_ids), space)
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written[0], expected)


def test_all_outputs_of_one_run(tmp_path):
    outputs = [TrainIds(), Colors(), CityscapesLabelIds(size=None)]
    predict(tmp_path, outputs=outputs)
    assert {path.parent.name: path.name for path in sorted(tmp_path.rglob("bonn_0*.png"))} == {
        "color": "bonn_0.png", "id": "bonn_0.png", "label_ids": "bonn_0_pred_labelIds.png",
    }  # fmt: skip
    assert not list(tmp_path.glob("*.zip"))


def test_what_the_servers_of_acdc_and_dark_zurich_want(tmp_path):
    make_acdc(tmp_path / "acdc")
    data = ACDC(str(tmp_path / "acdc"), "test", labelled=False, conditions=["night"])
    images = [Path(data.image_file(i)).name for i in range(len(data))]
    frames_of = [
        {"pred": torch.full((1, 2, 3), 18, dtype=torch.uint8), "name": [data.name(i)]} for i in range(len(data))
    ]
    predict(tmp_path / "out", frames_of, outputs=[AnonymizedTrainIds(zip=True)])
    with zipfile.ZipFile(tmp_path / "out/labelTrainIds.zip") as archive:
        assert archive.namelist() == sorted(images)
        with archive.open(images[0]) as file:
            assert np.unique(np.asarray(Image.open(file))).tolist() == [18]
    module = Module()
    module.label_space = CITYSCAPES16
    with pytest.raises(
        ValueError, match=r"found the 16 classes of label space 'cityscapes16'; expected Cityscapes' 19"
    ):
        predict(tmp_path / "new", module=module, outputs=[AnonymizedTrainIds()])
    assert module.predicted == 0


def test_predictions_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"prediction of 512 x 1024 .* expects 1024 x 2048.*original images"):
        predict(tmp_path, frames(FRAME, size=(512, 1024)), outputs=submission())


def test_classes_without_a_cityscapes_id_are_refused_before_anything_is_predicted(tmp_path):
    module = Module()
    module.label_space = CAMVID
    with pytest.raises(ValueError, match=r"label space 'camvid' has classes \['Sky'.* no Cityscapes id"):
        predict(tmp_path / "new", module=module, outputs=submission())
    assert module.predicted == 0
    assert not (tmp_path / "new").exists()


def test_an_interrupted_run_leaves_no_zip(tmp_path, monkeypatch):
    data = [*frames("a", size=(4, 6)), {"pred": None, "name": ["b"]}]
    with pytest.raises(AttributeError):
        predict(tmp_path, data, outputs=submission(size=None))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a_pred_labelIds.png"]

    def stopped(self, filename, *args, **kwargs):
        write(self, filename, *args, **kwargs)
        raise KeyboardInterrupt

    write = zipfile.ZipFile.write
    monkeypatch.setattr(zipfile.ZipFile, "write", stopped)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(tmp_path / "again", frames("a", size=(4, 6)), outputs=submission(size=None))
    assert [path.name for path in (tmp_path / "again").rglob("*") if path.is_file()] == ["a_pred_labelIds.png"]


def test_an_earlier_zip_is_not_overwritten(tmp_path):
    (tmp_path / "label_ids.zip").write_bytes(b"earlier")
    module = Module()
    with pytest.raises(FileExistsError, match=r"label_ids\.zip is already there"):
        predict(tmp_path, module=module, outputs=submission(size=None))
    assert module.predicted == 0
    assert (tmp_path / "label_ids.zip").read_bytes() == b"earlier"


def test_names_that_differ_by_the_ending_alone_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Two images are named 'a_leftImg8bit'"):
        predict(tmp_path, frames("a", "a_leftImg8bit", size=(4, 6)), outputs=submission(size=None))


@pytest.mark.parametrize("outputs", [[], [Colors(), Colors()]])
def test_outputs_need_folders_of_their_own(tmp_path, outputs):
    with pytest.raises(ValueError, match=r"expected at least one, each of its own"):
        PredictionWriter(tmp_path, outputs)


def clip(frames=3, size=(32, 48), **more):
    data = [
        {
            "pred": torch.full((1, *size), number, dtype=torch.uint8),
            "name": [f"a/{number:06d}"],
            "frame": [Frame("a", number, frames, 10.0)],
        }
        for number in range(3)
    ]
    return [{**one, **more} for one in data]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_videos_for_the_eye_and_frames_for_programs(tmp_path, capsys):
    predict(tmp_path, clip())
    assert files(tmp_path) == ["color/a.mp4", *(f"id/a/{number:06d}.png" for number in range(3))]
    assert f"predictions of 1 video (3 frames): {tmp_path / 'id'}, {tmp_path / 'color'}\n" in capsys.readouterr().out
    rate, frames = read_video(tmp_path / "color/a.mp4")
    assert (rate, len(frames)) == (10.0, 3)
    for number, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - CITYSCAPES.palette[number]).max() < 12
    with pytest.raises(FileExistsError, match="color already holds 1 videos"):
        predict(tmp_path, clip(), outputs=[Colors()])


@pytest.mark.parametrize(("size", "videos"), [((25, 48), True), ((32, 33), True), ((32, 48), False)])
def test_frames_where_a_video_cannot_hold_them_or_is_not_wanted(tmp_path, size, videos):
    predict(tmp_path, clip(size=size), outputs=[Colors()], videos=videos)
    assert files(tmp_path) == [f"color/a/{number:06d}.png" for number in range(3)]
    assert read(tmp_path / "color/a/000000.png").shape == (*size, 3)


def test_a_video_is_there_when_it_is_whole_or_as_far_as_was_asked_for(tmp_path):
    with pytest.raises(AttributeError):
        predict(tmp_path / "broken", [*clip()[:2], {"pred": None, "name": ["b"]}], outputs=[Colors()])
    assert files(tmp_path / "broken") == []
    predict(tmp_path / "part", clip()[:2], outputs=[Colors()])
    assert files(tmp_path / "part") == ["color/a.mp4"]
    assert len(read_video(tmp_path / "part/color/a.mp4")[1]) == 2


def test_a_computer_without_the_codec_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr("cv2.VideoWriter.isOpened", lambda self: False)
    with pytest.raises(OSError, match=r"can't write this video here\. Give --frames"):
        predict(tmp_path, clip(), outputs=[Colors()])


def test_raw_ids_need_one_for_each_class(tmp_path):
    expected = "no raw id stands for the classes .*Bicyclist"
    with pytest.raises(ValueError, match=expected):
        RawIds().check(CAMVID)
    prediction = Prediction(np.array([[0, 18]], dtype=np.uint8))
    RawIds().check(CITYSCAPES)
    assert RawIds().encode(prediction, CITYSCAPES).tolist() == [[7, 33]]
    ids = {3: "road", 9: None, **{20 + i: name for i, name in enumerate(CITYSCAPES.classes)}}
    assert RawIds(ids).encode(prediction, CITYSCAPES).tolist() == [[3, 38]]
