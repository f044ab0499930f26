import multiprocessing
import os
import pickle
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lightning_uda.data.check import require_usable, scan
from lightning_uda.data.dataset import SizeLimit
from lightning_uda.datasets import BDD100K, GTA5, NTHU, SYNTHIA, Cityscapes, DatasetError
from lightning_uda.datasets.storage import Part, Storage, StoredFile, with_void
from lightning_uda.label_spaces import CITYSCAPES
from tests.fixtures import official_layouts as layouts

PART = Part("images", "images", r"(?P<name>[^/]+)\.png", "a.png", "a.zip")


def make(kind, root, out):
    """Writes a set twice, unpacked and as archives; gives what a reader has to read and how to make the reader."""
    if kind == "GTA5":
        made, archives, reader = layouts.make_gta5(root), layouts.GTA5_ARCHIVES, GTA5
    elif kind == "SYNTHIA":
        made, archives, reader = layouts.make_synthia(root), layouts.SYNTHIA_ARCHIVES, SYNTHIA
    elif kind == "Cityscapes":
        made, archives, reader = layouts.make_cityscapes(root)["train"], layouts.CITYSCAPES_ARCHIVES, Cityscapes
    elif kind == "BDD100K":
        made, archives, reader = layouts.make_bdd100k(root)["train"], layouts.BDD100K_ARCHIVES, BDD100K
    elif kind == "BDD100K 2018":
        made, archives, reader = layouts.make_bdd100k(root, 2018)["train"], layouts.BDD100K_2018_ARCHIVES, BDD100K
    else:
        made, archives = layouts.make_nthu(root)["rio"], layouts.NTHU_ARCHIVES

        def reader(root, **rest):
            return NTHU(root, "rio", **rest)

    layouts.pack(root, out, archives, zipfile.ZIP_DEFLATED if kind == "SYNTHIA" else zipfile.ZIP_STORED)
    return made, reader


KINDS = ["GTA5", "SYNTHIA", "Cityscapes", "BDD100K", "BDD100K 2018", "NTHU"]


@pytest.fixture(scope="module", params=KINDS)
def official(request, tmp_path_factory):
    top = tmp_path_factory.mktemp("official")
    return *make(request.param, top / "unpacked", top / "zipped"), top / "unpacked", top / "zipped"


@pytest.fixture(params=["unpacked", "zipped"])
def root(official, request):
    return official[2] if request.param == "unpacked" else official[3]


class Pairs(Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset.name(index), self.dataset.load_image(index), self.dataset.load_label(index)


def assert_holds(pairs, made):
    found = {name: (image, label) for name, image, label in pairs}
    assert list(found) == sorted(made)
    for name, (image, label) in made.items():
        assert found[name][0].dtype == found[name][1].dtype == np.uint8
        np.testing.assert_array_equal(found[name][0], image)
        np.testing.assert_array_equal(found[name][1], label)


def test_arrays_are_those_of_the_files(official, root):
    made, reader, *_ = official
    dataset = reader(str(root))
    assert len(dataset) == len(made)
    assert_holds((Pairs(dataset)[i] for i in range(len(dataset))), made)
    assert [dataset.image_size(i) for i in range(len(dataset))] == [made[name][0].shape[:2] for name in sorted(made)]
    assert dataset.check() == []


def read_by_workers(dataset, context):
    dataset.load_image(0)  # leaves an archive open, which the workers must not share
    loader = DataLoader(Pairs(dataset), batch_size=None, num_workers=2, multiprocessing_context=context)
    return [(name, np.asarray(image), np.asarray(label)) for name, image, label in loader]


def test_workers_read_the_same(official, root):
    made, reader, *_ = official
    assert_holds(read_by_workers(reader(str(root)), "fork"), made)


def test_spawned_workers_read_the_same(tmp_path):
    made = layouts.make_gta5(tmp_path / "made")
    layouts.pack(tmp_path / "made", tmp_path / "zipped", layouts.GTA5_ARCHIVES)
    assert_holds(read_by_workers(GTA5(str(tmp_path / "zipped")), "spawn"), made)


def test_without_labels_they_are_neither_needed_nor_opened(official, root, tmp_path, monkeypatch):
    made, reader, *_ = official
    opened = []
    read = Storage.read
    monkeypatch.setattr(
        Storage, "read", lambda self, file, *size, **limit: opened.append(str(file)) or read(self, file, *size, **limit)
    )
    dataset = reader(str(root), labelled=False)
    assert not dataset.has_labels
    np.testing.assert_array_equal(dataset.load_image(0), made[dataset.name(0)][0])
    assert dataset.check() == []
    reader(str(root)).check(labels=False)
    assert opened
    assert not [file for file in opened if "labels" in file.lower() or "gtfine" in file.lower()]
    for load in (dataset.load_label, dataset.label_file):
        with pytest.raises(DatasetError, match=r"made without labels \(`labelled: false`\)"):
            load(0)


def test_list_files_select_in_their_order_and_may_be_those_of_published_programs(official, root, tmp_path):
    made, reader, *_ = official
    first, last = sorted(made)[0], sorted(made)[-1]
    plain, published = tmp_path / "plain.txt", tmp_path / "published.txt"
    plain.write_text(f"# a subset\n{last}\n\n{first}\n")
    ending = Path(reader(str(root)).image_file(0)).name.removeprefix(first)
    published.write_text(f"some/folder/{last}{ending}\n")
    for columns in ("{0} labels/{1}_label.png", "{0}\tgtFine/{1}.png", "0 {0} {1}"):
        published.write_text(columns.format(f"some/folder/{last}{ending}", last) + "\n")
        assert [reader(str(root), split=str(published)).name(0)] == [last]
    dataset = reader(str(root), split=str(plain))
    assert [dataset.name(0), dataset.name(1)] == [last, first]
    np.testing.assert_array_equal(dataset.load_label(0), made[last][1])
    assert [reader(str(root), split=str(published)).name(0)] == [last]
    plain.write_text("nowhere\n")
    with pytest.raises(DatasetError, match="1 of 1 names have no image: nowhere"):
        reader(str(root), split=str(plain))
    with pytest.raises(DatasetError, match="list file `split` not found"):
        reader(str(root), split="nothing.txt")


def test_missing_pieces_are_named(official, tmp_path):
    _, reader, unpacked, _ = official
    (tmp_path / "readme.md").touch()
    with pytest.raises(DatasetError, match=rf"no .* images found; expected the folder .*{tmp_path} holds: readme\.md"):
        reader(str(tmp_path))
    with pytest.raises(DatasetError, match="dataset folder not found"):
        reader(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="this is a file, expected a folder"):
        reader(str(tmp_path / "readme.md"))
    dataset = reader(str(unpacked))
    image = Path(dataset.image_file(0))
    copy = tmp_path / image.relative_to(unpacked)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(image.read_bytes())
    with pytest.raises(DatasetError, match=r"no .* labels found; .* say `labelled: false`"):
        reader(str(tmp_path))
    assert len(reader(str(tmp_path), labelled=False)) == 1


def test_incomplete_labels_are_one_problem_beside_the_others(tmp_path):
    made = layouts.make_gta5(tmp_path)
    (tmp_path / "labels/00002.png").unlink()
    (tmp_path / "images/00001.png").write_bytes(b"")
    dataset = GTA5(str(tmp_path))
    what = "1 of 3 GTA5 images have no label in labels/: 00002. Expected one for each, named like 00001.png; "
    missing, empty = dataset.check()
    assert (missing.where, empty.where) == (str(tmp_path), str(tmp_path / "images/00001.png"))
    assert missing.what.startswith(what)
    assert "10_labels.zip missing? Add it, or list the labelled images in a `split` file." in missing.what
    assert dataset.check(labels=False) == [empty]
    with pytest.raises(DatasetError, match=re.escape(what)):
        dataset.load_label(1)
    np.testing.assert_array_equal(dataset.load_label(2), made["00003"][1])
    assert dataset.fingerprint() != GTA5(str(tmp_path), labelled=False).fingerprint()


def test_of_an_archive_of_labels_that_is_missing_the_check_says_it_once(tmp_path):
    layouts.make_gta5(tmp_path / "made", count=9)
    (tmp_path / "made/images/00009.png").unlink()
    archives = {"01_images.zip": ["images/*"], "01_labels.zip": ["labels/0000[12].png"]}
    layouts.pack(tmp_path / "made", tmp_path / "zipped", archives)
    report = scan(GTA5(str(tmp_path / "zipped")), CITYSCAPES, progress=False)
    assert (report.readable_images, report.readable_labels) == (8, 2)
    (problem,) = report.problems
    assert problem.what.startswith(
        "6 of 8 GTA5 images have no label in labels/: 00003, 00004, 00005, 00006, 00007 and 1"
    )


def test_labels_of_other_images_are_no_labels(tmp_path):
    layouts.make_gta5(tmp_path)
    for i in (1, 2, 3):
        (tmp_path / f"labels/0000{i}.png").rename(tmp_path / f"labels/1000{i}.png")
    message = (
        r"none of the 3 GTA5 images has a label in labels/; expected .* found 3 for others, such as 10001\. Add 01_l"
    )
    with pytest.raises(DatasetError, match=message):
        GTA5(str(tmp_path))


def test_folders_and_archives_may_be_mixed(tmp_path):
    made = layouts.make_gta5(tmp_path / "made")
    layouts.pack(tmp_path / "made", tmp_path / "mixed", layouts.GTA5_ARCHIVES)
    (tmp_path / "mixed/02_images.zip").unlink()
    (tmp_path / "mixed/02_images/images").mkdir(parents=True)
    (tmp_path / "made/images/00003.png").rename(tmp_path / "mixed/02_images/images/00003.png")
    dataset = GTA5(str(tmp_path / "mixed"))
    assert_holds((Pairs(dataset)[i] for i in range(3)), made)
    assert ".zip" not in dataset.image_file(2)
    assert dataset.image_file(0) == str(tmp_path / "mixed/01_images.zip/images/00001.png")


def test_unpacked_files_come_before_archives(tmp_path):
    layouts.make_gta5(tmp_path)
    layouts.pack(tmp_path, tmp_path, layouts.GTA5_ARCHIVES)
    assert ".zip" not in GTA5(str(tmp_path)).image_file(0)


def test_an_archive_cut_off_is_named(tmp_path):
    layouts.make_gta5(tmp_path / "made")
    layouts.pack(tmp_path / "made", tmp_path / "zipped", layouts.GTA5_ARCHIVES)
    archive = tmp_path / "zipped/01_images.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"01_images\.zip: not a whole zip archive .* a download that stopped"):
        GTA5(str(archive.parent))


def test_damage_inside_an_archive_is_named(tmp_path):
    layouts.make_gta5(tmp_path / "made")
    layouts.pack(tmp_path / "made", tmp_path / "zipped", layouts.GTA5_ARCHIVES)
    dataset = GTA5(str(tmp_path / "zipped"))
    archive, png = tmp_path / "zipped/02_labels.zip", (tmp_path / "made/labels/00003.png").read_bytes()
    data = bytearray(archive.read_bytes())
    data[data.index(png) + len(png) // 2] ^= 255
    archive.write_bytes(data)
    with pytest.raises(DatasetError, match=r"02_labels\.zip/labels/00003\.png: can't be read \(Bad CRC-32"):
        dataset.load_label(2)


@pytest.mark.parametrize(
    ("byte", "value", "said"), [(0, 1, "encrypted, password required"), (2, 9, "compression method is not supported")]
)
def test_archives_packed_in_other_ways_are_explained(tmp_path, byte, value, said):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("images/a.png", b"pixels")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # of the file and in the directory at the end
        data[data.index(header) + flags + byte] = value
    (tmp_path / "a.zip").write_bytes(data)
    storage = Storage(tmp_path)
    (file,) = storage.find(PART).values()
    with pytest.raises(DatasetError, match=rf"a\.zip/images/a\.png: can't be read \(.*{said}.*pack it again without a"):
        storage.read(file)


def test_a_member_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("images/a.png", bytes(30_000_000))
    storage = Storage(tmp_path)
    (file,) = storage.find(PART).values()
    tracemalloc.start()
    with pytest.raises(
        DatasetError, match=r"a\.zip/images/a\.png: found a file of 30\.0 MB, expected at most 4 MB \(4 b"
    ):
        storage.read(file, limit=SizeLimit(1))
    directory = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(directory.replace(struct.pack("<I", 30_000_000), struct.pack("<I", 1_000_000)))
    with pytest.raises(DatasetError, match=r"a\.zip/images/a\.png: can't be read \(Bad CRC"):  # it lies of its size
        Storage(tmp_path).read(file, limit=SizeLimit(1))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert len(Storage(tmp_path).read(file, 10)) == 10


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_can_only_be_unpacked_in_one_go_are_not(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as packed:
        packed.writestr("images/a.png", bytes(1000))
    storage = Storage(tmp_path)
    with pytest.raises(DatasetError, match=r"compression method is not supported: 1[24]\)\..* pack it again"):
        storage.read(storage.find(PART)["a"])


def test_pipes_among_files_and_archives_are_named_and_not_waited_for(tmp_path):
    layouts.make_gta5(tmp_path)
    for name in ("images/00001.png", "labels/00002.png"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    found = [(Path(problem.where).parent.name, problem.what) for problem in GTA5(str(tmp_path)).check()]
    assert found == [(kind, "this is a named pipe, expected a file. Take it away.") for kind in ("images", "labels")]
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(DatasetError, match=r"a\.zip: this is a named pipe"):
        GTA5(str(tmp_path))


def test_backslashes_in_an_archive_part_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        member = zipfile.ZipInfo("x")
        member.filename = "top\\images\\a.png"
        packed.writestr(member, b"pixels")
    storage = Storage(tmp_path)
    assert storage.read(storage.find(PART)["a"]) == b"pixels"


def test_of_copies_in_other_formats_always_the_same_is_taken(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for name in ("b.png", "a.png", "a.jpg"):
        (tmp_path / "images" / name).touch()
    part = Part("images", "images", r"(?P<name>[^/]+)\.(?:png|jpg)", "a.png", "a.zip")
    walk = os.walk
    for step in (1, -1):
        listed = [(place, folders, sorted(files)[::step]) for place, folders, files in walk(tmp_path / "images")]
        monkeypatch.setattr(os, "walk", lambda *_, listed=listed, **__: iter(listed))
        assert [Path(file.path).name for file in Storage(tmp_path).find(part).values()] == ["a.jpg", "b.png"]


def test_a_file_that_went_away_is_named(tmp_path):
    layouts.make_gta5(tmp_path)
    dataset = GTA5(str(tmp_path))
    (tmp_path / "images/00001.png").unlink()
    with pytest.raises(DatasetError, match=r"images/00001\.png: can't be read \("):
        dataset.load_image(0)


def test_check_finds_every_broken_file_without_decoding(tmp_path):
    layouts.make_cityscapes(tmp_path)
    images, labels = (tmp_path / tree / "train/aachen" for tree in ("leftImg8bit", "gtFine"))
    first, second = "aachen_000000_000019", "aachen_000001_000019"
    image = images / f"{first}_leftImg8bit.png"
    image.write_bytes(image.read_bytes()[:-20])
    (labels / f"{first}_gtFine_labelIds.png").write_bytes(b"")
    Image.new("L", (10, 10)).save(labels / f"{second}_gtFine_labelIds.png")
    bremen = tmp_path / "gtFine/train/bremen/bremen_000000_000019_gtFine_labelIds.png"
    Image.new("RGB", (64, 32)).save(bremen)
    problems = {Path(problem.where).name: problem.what for problem in Cityscapes(str(tmp_path)).check()}
    assert [*problems] == [
        f"{first}_leftImg8bit.png",
        f"{first}_gtFine_labelIds.png",
        f"{second}_gtFine_labelIds.png",
        bremen.name,
    ]
    for what, said in zip(
        problems.values(),
        ("cut off", "isn't a PNG file (empty)", "label is 10 x 10 (height x width), its image 32 x 64", "RGB colour"),
        strict=True,
    ):
        assert said in what
    report = scan(Cityscapes(str(tmp_path)), CITYSCAPES, progress=False)
    assert {Path(problem.where).name for problem in report.problems} == set(problems)
    with pytest.raises(DatasetError, match="cut off"):
        require_usable({"source": Cityscapes(str(tmp_path))}, {})


def test_an_empty_image_in_an_archive_is_found(tmp_path):
    layouts.make_gta5(tmp_path / "made")
    (tmp_path / "made/images/00001.png").write_bytes(b"")
    layouts.pack(tmp_path / "made", tmp_path / "zipped", layouts.GTA5_ARCHIVES)
    (problem,) = GTA5(str(tmp_path / "zipped")).check()
    assert problem.where.endswith("01_images.zip/images/00001.png")
    assert problem.what.startswith("empty file")


def test_a_set_that_isnt_complete_is_remarked_but_usable(tmp_path):
    layouts.make_gta5(tmp_path)
    report = scan(GTA5(str(tmp_path)), CITYSCAPES, progress=False)
    assert [warning.what for warning in report.warnings if warning.where == str(tmp_path)] == [
        "found 3 images; the whole set has 24966. Is a part or an archive missing?"
    ]
    require_usable({"source": GTA5(str(tmp_path))}, {"source": 3})
    (tmp_path / "list.txt").write_text("00001\n")
    assert GTA5(str(tmp_path), "list.txt").remarks() == []


@pytest.fixture
def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for i in range(40):
            packed.writestr(f"x/images/{i}.png", bytes([i]) * 50_000)
    return tmp_path


def test_archives_are_opened_anew_in_every_process(archive, monkeypatch):
    storage = Storage(archive)
    file = storage.find(PART)["7"]
    assert storage.read(file, 3) == bytes([7] * 3)
    first = storage._archive(file.archive)
    assert storage._archive(file.archive) is first
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert storage._archive(file.archive) is not first
    assert storage.read(file) == bytes([7]) * 50_000


def test_an_opened_storage_can_be_pickled(archive):
    storage = Storage(archive)
    file = storage.find(PART)["7"]
    storage.read(file)
    assert pickle.loads(pickle.dumps(storage)).read(pickle.loads(pickle.dumps(file))) == storage.read(file)


def _read_all(storage, files, wrong):
    for _ in range(5):
        for name, file in files.items():
            if storage.read(file) != bytes([int(name)]) * 50_000:
                wrong.value += 1


def test_forked_readers_dont_disturb_each_other(archive):
    storage = Storage(archive)
    files = storage.find(PART)
    storage.read(files["0"])
    context = multiprocessing.get_context("fork")
    wrong = context.Value("i", 0)
    readers = [context.Process(target=_read_all, args=(storage, files, wrong)) for _ in range(3)]
    for reader in readers:
        reader.start()
    _read_all(storage, files, wrong)
    for reader in readers:
        reader.join()
    assert wrong.value == 0
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


def test_a_replaced_archive_is_listed_anew(archive):
    assert len(Storage(archive).find(PART)) == 40
    with zipfile.ZipFile(archive / "a.zip", "w") as packed:
        packed.writestr("images/one.png", b"")
    os.utime(archive / "a.zip", ns=(1, 1))
    assert [*Storage(archive).find(PART)] == ["one"]


def test_hidden_files_folders_and_deep_trees_are_left_out(tmp_path):
    for folder in ("images", ".cache/images", "a/b/images", "a/b/c/images"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{folder.replace('/', '_')}.png").touch()
    (tmp_path / "images/._x.png").touch()
    (tmp_path / "images/x.txt").touch()
    (tmp_path / "images/.thumbs").mkdir()
    (tmp_path / "images/.thumbs/y.png").touch()
    assert Storage(tmp_path).find(PART) == {
        "a_b_images": StoredFile(str(tmp_path / "a/b/images/a_b_images.png")),
        "images": StoredFile(str(tmp_path / "images/images.png")),
    }


def test_folders_that_may_not_be_read_are_passed_by(archive, monkeypatch):
    (archive / "lost+found").mkdir()
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("lost+found"):
            raise PermissionError("no")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(Storage(archive).find(PART)) == 40


def test_known_void_ids_join_a_table_without_hiding_classes():
    assert with_void({1: "road"}, (0, 1, 255)) == {0: None, 1: "road", 255: None}
