import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_uda.data import cache
from lightning_uda.data.cache import CachedDataset, build_caches
from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.streams import LabelReader, Stream
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.datasets.folder import FolderDataset, ImageFolder
from lightning_uda.files import locked, parallel_map
from lightning_uda.label_spaces import CAMVID, CAMVID_IDS
from lightning_uda.resize import resize_image, resize_label
from tests.fixtures.make_folder_dataset import make_good
from tests.fixtures.tiny import TinyDataset

SIZE = (18, 24)
FORMATS = ("png", "memmap")
FORK = multiprocessing.get_context("fork")


class Recorded(TinyDataset):
    """Notes in a file which images are read, and breaks at one of them if told to."""

    def __init__(self, log, broken=None, **kwargs):
        super().__init__(**kwargs)
        self._log, self._broken = log, broken

    def load_image(self, index):
        if index == self._broken:
            raise DatasetError(f"image {index} can't be read")
        with self._log.open("a") as file:
            file.write(f"{index}\n")
        return super().load_image(index)

    @property
    def read(self):
        return sorted(map(int, self._log.read_text().split())) if self._log.exists() else []


def files(folder, suffix):
    return sorted(folder.rglob(f"*{suffix}"))


def build(dataset, folder, **kwargs):
    cached = CachedDataset(dataset, folder, SIZE, **kwargs)
    build_caches([cached], workers=0, progress=False)
    return cached


@pytest.mark.parametrize("cache_format", FORMATS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_cache_changes_no_pixel_of_any_kind_of_file(tmp_path, cache_format, interpolation):
    make_good(tmp_path / "set")
    dataset = FolderDataset(str(tmp_path / "set"))
    cached = build(dataset, tmp_path / "cache", interpolation=interpolation, labels=True, cache_format=cache_format)
    assert len(files(tmp_path / "cache", {"png": ".png", "memmap": ".raw"}[cache_format])) == 2 * len(dataset) > 20
    shutil.rmtree(tmp_path / "set")
    make_good(tmp_path / "set")
    for index in range(len(dataset)):
        assert cached.name(index) == dataset.name(index)
        assert np.array_equal(cached.load_image(index), resize_image(dataset.load_image(index), SIZE, interpolation))
        assert np.array_equal(cached.load_label(index), resize_label(dataset.load_label(index), SIZE))


@pytest.mark.parametrize("cache_format", FORMATS)
def test_training_samples_are_the_same_with_and_without_a_cache(tmp_path, cache_format):
    dataset = TinyDataset()
    cached = build(dataset, tmp_path, interpolation="bicubic", labels=True, cache_format=cache_format)
    transform = TrainTransform(SIZE, "bicubic", crop=(8, 12), horizontal_flip=0.5)
    table = CAMVID.lookup_table(CAMVID_IDS)
    plain, ours = (Stream("source", each, transform, 0, LabelReader(each, table)) for each in (dataset, cached))
    for position in range(20):
        expected, found = plain.sample(position), ours.sample(position)
        assert np.array_equal(found["image"], expected["image"])
        assert np.array_equal(found["mask"], expected["mask"])


def test_label_maps_that_are_not_asked_for_are_not_opened_and_stay_native(tmp_path):
    build(TinyDataset(has_labels=False), tmp_path)
    cached = build(TinyDataset(), tmp_path)
    assert cached.load_label(3).shape == (24, 32)
    assert np.array_equal(cached.load_label(3), TinyDataset().load_label(3))
    assert len(list(tmp_path.iterdir())) == 1  # the images of both are one folder


def resident_bytes(name):
    """Bytes of a mapped file that this process has touched, by the kernel's account."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if name in line:
            return next(1024 * int(fields.split()[1]) for fields in lines if fields.startswith("Rss:"))
    raise AssertionError(f"{name} isn't mapped")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs the kernel's account of mapped pages")
def test_of_a_memory_mapped_image_only_the_crop_is_read(tmp_path):
    size = (2000, 2400)
    cached = CachedDataset(TinyDataset(length=1, size=size), tmp_path, size, cache_format="memmap")
    build_caches([cached], workers=0, progress=False)
    image = cached.load_image(0)
    crop, _ = TrainTransform(size, crop=(32, 32), horizontal_flip=0.5)(image, None, 0)
    assert crop.shape == (32, 32, 3)
    assert 0 < resident_bytes("000000.raw") < image.nbytes / 4  # the kernel maps up to 2 MB at once
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 0


def test_a_cached_dataset_can_be_sent_to_workers(tmp_path):
    cached = build(TinyDataset(), tmp_path, labels=True)
    again = pickle.loads(pickle.dumps(cached))
    assert np.array_equal(again.load_image(2), cached.load_image(2))
    files(tmp_path, ".png")[12].unlink()
    assert np.array_equal(again.load_label(2), resize_label(TinyDataset().load_label(2), SIZE))


def test_a_second_build_reads_nothing(tmp_path):
    log = tmp_path / "log"
    build(Recorded(log), tmp_path / "cache")
    assert set(Recorded(log).read) == set(range(10))
    log.unlink()
    again = build(Recorded(log), tmp_path / "cache")
    again.load_image(3)
    assert Recorded(log).read == []


def test_an_interrupted_build_leaves_whole_files_and_is_resumed(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "cache"
    whole = CachedDataset(Recorded(log), folder, SIZE)
    with pytest.raises(DatasetError, match="image 6 can't be read"):
        parallel_map(CachedDataset(Recorded(log, broken=6), folder, SIZE).stores[0].make, range(10), "", 1, False)
    log.unlink()
    whole.stores[0].folder.mkdir(parents=True)
    for index in (0, 1, 2, 5):
        whole.stores[0].write(index)
    (whole.stores[0].folder / "000003.png.77.part").write_bytes(b"half of a fi")
    log.unlink()
    build_caches([whole], workers=0, progress=False)
    assert set(Recorded(log).read) == {3, 4, 6, 7, 8, 9}
    assert {path.name for path in whole.stores[0].folder.iterdir()} == {
        "build.lock",
        *(f"{index:06d}.png" for index in range(10)),
    }


def test_a_reader_that_fails_stops_the_build_and_keeps_what_is_done(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "cache"
    with pytest.raises(DatasetError, match="image 7 can't be read"):
        build_caches([CachedDataset(Recorded(log, broken=7), folder, SIZE)], workers=0, progress=False)
    assert [path.stem for path in files(folder, ".png")][:3] == ["000000", "000001", "000002"]
    assert files(folder, ".part") == []
    done = len(files(folder, ".png"))
    log.unlink()
    build_caches([CachedDataset(Recorded(log), folder, SIZE)], workers=0, progress=False)
    assert len(set(Recorded(log).read)) == 10 - done
    assert len(files(folder, ".png")) == 10


@pytest.mark.parametrize("workers", [2, None])
def test_processes_share_a_build_and_leave_the_random_numbers_alone(tmp_path, workers):
    log, state = tmp_path / "log", torch.get_rng_state()
    cached = CachedDataset(Recorded(log), tmp_path / "cache", SIZE, labels=True)
    build_caches([cached], workers, progress=False)
    assert len(files(tmp_path, ".png")) == 20
    assert all(np.array_equal(cached.load_image(i), resize_image(TinyDataset().load_image(i), SIZE)) for i in range(10))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_error_of_a_process_is_raised_with_its_own_message(tmp_path):
    with pytest.raises(DatasetError) as error:
        build_caches([CachedDataset(Recorded(tmp_path / "log", broken=7), tmp_path, SIZE)], 2, progress=False)
    assert str(error.value) == "image 7 can't be read"


@pytest.mark.parametrize("cache_format", FORMATS)
@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"junk" + data, None])
def test_damaged_and_missing_files_are_read_from_the_dataset(tmp_path, caplog, cache_format, damage):
    cached = build(TinyDataset(), tmp_path, labels=True, cache_format=cache_format)
    paths = files(tmp_path, {"png": ".png", "memmap": ".raw"}[cache_format])
    whole = {path: path.read_bytes() for path in paths}
    for path, data in whole.items():
        path.unlink() if damage is None else path.write_bytes(damage(data))
    for _ in range(2):
        for index in range(len(cached)):
            assert np.array_equal(cached.load_image(index), resize_image(TinyDataset().load_image(index), SIZE))
            assert np.array_equal(cached.load_label(index), resize_label(TinyDataset().load_label(index), SIZE))
    if damage is None:
        assert not any(path.exists() for path in paths)
        assert caplog.messages == []
    else:  # made again, with one warning for the images and one for the label maps
        assert {path: path.read_bytes() for path in paths} == whole
        assert [str(folder) in line for folder, line in zip(folders(cached), caplog.messages, strict=True)] == [
            True
        ] * 2


@pytest.mark.parametrize("position", [20, 24, 25, 200])  # width, depth and kind in the header; pixels
def test_one_changed_byte_in_a_cached_png_is_noticed_and_mended(tmp_path, caplog, position):
    cached = build(TinyDataset(), tmp_path)
    path = files(tmp_path, ".png")[3]
    whole = path.read_bytes()
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
    assert np.array_equal(cached.load_image(3), resize_image(TinyDataset().load_image(3), SIZE))
    assert path.read_bytes() == whole
    assert "000003.png is damaged" in caplog.text


def test_a_damaged_file_that_cannot_be_mended_does_no_harm(tmp_path, monkeypatch):
    cached = build(TinyDataset(), tmp_path)
    path = files(tmp_path, ".png")[3]
    path.write_bytes(b"junk")

    def refuse(path, write):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "replace_file", refuse)
    assert np.array_equal(cached.load_image(3), resize_image(TinyDataset().load_image(3), SIZE))
    assert path.read_bytes() == b"junk"


@pytest.mark.parametrize("content", [b"", None])
def test_empty_and_missing_files_are_made_again(tmp_path, content):
    build(TinyDataset(), tmp_path)
    path = files(tmp_path, ".png")[4]
    path.unlink() if content is None else path.write_bytes(content)
    build(TinyDataset(), tmp_path)
    assert np.array_equal(np.asarray(Image.open(path)), resize_image(TinyDataset().load_image(4), SIZE))


def test_a_file_of_another_process_that_vanishes_while_the_folder_is_read_is_no_error(tmp_path):
    build(TinyDataset(), tmp_path)
    path = files(tmp_path, ".png")[4]
    path.unlink()
    path.with_name(f"{path.name}.1.part").symlink_to(tmp_path / "renamed meanwhile")  # listed, but can't be looked at
    build(TinyDataset(), tmp_path)
    assert path.stat().st_size


def folders(cached):
    return [store.folder for store in cached.stores]


def test_size_method_form_and_content_each_have_a_folder_of_their_own(tmp_path):
    variants = [
        CachedDataset(TinyDataset(), tmp_path, SIZE),
        CachedDataset(TinyDataset(), tmp_path, SIZE[::-1]),
        CachedDataset(TinyDataset(), tmp_path, SIZE, "bicubic"),
        CachedDataset(TinyDataset(), tmp_path, SIZE, cache_format="memmap"),
        CachedDataset(TinyDataset(seed=1), tmp_path, SIZE),
        CachedDataset(TinyDataset(length=9), tmp_path, SIZE),
        CachedDataset(Recorded(tmp_path / "log"), tmp_path, SIZE),
    ]
    assert len({folders(cached)[0] for cached in variants}) == len(variants)
    assert "TinyDataset-images-18x24-bicubic-png-" in folders(variants[2])[0].name


def make_set(root, count=4):
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(root / "images" / f"{index}.png")
        Image.fromarray(rng.integers(0, 3, (20, 30), np.uint8)).save(root / "labels" / f"{index}.png")


def test_a_changed_file_or_list_makes_a_new_cache_but_another_place_or_class_map_does_not(tmp_path):
    make_set(tmp_path / "a")

    def folder_set(root="a", **kwargs):
        dataset = FolderDataset(str(tmp_path / root), **{"class_map": {0: "Sky", 1: None, 2: "Car"}, **kwargs})
        return folders(CachedDataset(dataset, tmp_path / "cache", SIZE, labels=True))

    first = folder_set()
    assert folder_set(class_map={0: "Car", 1: "Sky", 2: None}) == first
    (tmp_path / "a" / "list.txt").write_text("3\n1\n0\n2\n")
    assert not set(folder_set(split="list.txt")) & set(first)
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # keeps the files' times
    assert folder_set("b") == first
    stat = (tmp_path / "a" / "labels" / "2.png").stat()
    os.utime(tmp_path / "a" / "labels" / "2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert [new == old for new, old in zip(folder_set(), first, strict=True)] == [True, False]
    Image.new("RGB", (30, 20)).save(tmp_path / "a" / "images" / "0.png")
    assert [new == old for new, old in zip(folder_set(), first, strict=True)] == [False, False]


def test_a_file_in_an_archive_is_stamped_by_the_archive(tmp_path):
    archive = tmp_path / "set.zip"

    class Zipped(TinyDataset):
        def image_file(self, index):
            return f"{archive}/inside/{index}.png"

    archive.write_bytes(b"12345")
    first = Zipped().fingerprint()
    assert Zipped().fingerprint() == first
    archive.write_bytes(b"123456")
    assert Zipped().fingerprint() != first


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 20_000))
    big = CachedDataset(TinyDataset(), tmp_path / "cache", (18, 24), cache_format="memmap", labels=True)
    small = CachedDataset(TinyDataset(length=2), tmp_path / "cache", (18, 24), cache_format="memmap")
    with pytest.raises(DatasetError) as error:
        build_caches([small, big], progress=False)
    # 2 x 1296 bytes and 10 x (1296 + 432), and a tenth: each fits alone
    assert "2 images of 18 x 24, 10 images of 18 x 24, 10 label maps of 18 x 24" in str(error.value)
    assert "but only 0.0 MB are free" in str(error.value)
    assert not (tmp_path / "cache").exists()
    build_caches([small], workers=0, progress=False)
    build_caches([big], workers=0, progress=False)
    assert len(files(tmp_path, ".raw")) == 22


@pytest.mark.parametrize("cache_format", FORMATS)
def test_the_estimate_is_close_to_what_is_written(tmp_path, cache_format):
    cached = CachedDataset(TinyDataset(length=30), tmp_path, SIZE, cache_format=cache_format)
    needed = cached.stores[0].bytes_needed()
    build_caches([cached], workers=0, progress=False)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.*"))
    assert 0.9 * needed < 1.1 * written < 1.2 * needed


def test_a_disk_that_fills_up_while_writing_is_explained(tmp_path, monkeypatch):
    def full(path, data):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DatasetError, match=r"can't be written .*No space left.* are free\. Make room"):
        build(TinyDataset(), tmp_path)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["build.lock"]


def test_a_cache_folder_that_is_a_file_is_explained(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DatasetError, match=r"the cache can't be written .*choose another `cache_dir`"):
        build(TinyDataset(), tmp_path / "cache")


def test_two_processes_share_one_build(tmp_path):
    log = tmp_path / "log"

    def run():
        # the estimate of needed space reads images too, so it's left out here
        cache._require_space = lambda stores: None
        build_caches([CachedDataset(Recorded(log, length=40), tmp_path / "cache", SIZE)], workers=2, progress=False)

    processes = [FORK.Process(target=run) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert Recorded(log).read == list(range(40))
    assert len(files(tmp_path, ".png")) == 40


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    path = tmp_path / "some.lock"
    holds, wants = FORK.Event(), FORK.Event()

    def hold():
        with locked(path):
            holds.set()
            signal.pause()

    def want():
        with locked(path):
            wants.set()

    holder, waiter = FORK.Process(target=hold), FORK.Process(target=want)
    holder.start()
    assert holds.wait(30)
    waiter.start()
    assert not wants.wait(0.3)
    os.kill(holder.pid, signal.SIGKILL)
    assert wants.wait(30)
    holder.join(30)
    waiter.join(30)


def test_parallel_map_keeps_the_order_and_stops_at_the_first_error():
    assert parallel_map(lambda i: i * i, range(50), "", 4, False) == [i * i for i in range(50)]
    done = []

    def fail(index):
        done.append(index)
        time.sleep(0.01)
        if index == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        parallel_map(fail, range(1000), "", 1, False)
    assert len(done) < 1000


def test_messages_and_checks_are_those_of_the_dataset(tmp_path):
    make_set(tmp_path / "a")
    dataset = FolderDataset(str(tmp_path / "a"), class_map={0: "Sky", 1: "Car"})
    cached = CachedDataset(dataset, tmp_path / "cache", SIZE)
    assert cached.image_file(1) == str(Path(tmp_path, "a", "images", "1.png"))
    assert cached.label_file(1) == str(Path(tmp_path, "a", "labels", "1.png"))
    assert cached.check() == dataset.check() != []
    assert cached.check(labels=False) == []
    assert (cached.strict_ids, cached.has_labels, cached.class_ids) == (True, True, dataset.class_ids)
    assert not CachedDataset(ImageFolder(str(tmp_path / "a" / "images")), tmp_path, SIZE).has_labels
    assert cached.fingerprint() != CachedDataset(dataset, tmp_path, SIZE, labels=True).fingerprint()
