"""Folders of class folders: what is listed, and what is refused with how it ought to be."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zips import picture

from samtl.datasets import resolve
from samtl.datasets.listing import natural
from samtl.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Two classes of two images."""
    root = tmp_path / "My Photos"
    for name in ("water", "city"):
        for i in (1, 2):
            add(root, f"{name}/{i}.png", picture(i))
    return root


def add(root, path, data=b"x"):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def listed(root):
    return resolve(f"folder:{root}")


class TestListing:
    def test_classes_are_alphabetical_and_files_in_natural_order(self, root):
        for i in (10, 9, 100):
            add(root, f"city/{i}.png")
        dataset = listed(root)
        assert dataset.classes == ("city", "water")
        assert dataset.sample_ids == (
            "city/1.png", "city/2.png", "city/9.png", "city/10.png", "city/100.png",
            "water/1.png", "water/2.png",
        )  # fmt: skip
        assert dataset.labels == (0, 0, 0, 0, 0, 1, 1)

    def test_images_in_other_formats_are_counted_and_named(self, root):
        """Fault: they were left out without a word."""
        for path in ("city/a.gif", "city/b.GIF", "water/c.heic", "water/d.txt", "water/.e.gif"):
            add(root, path)
        dataset = listed(root)
        assert len(dataset) == 4
        assert "2 .gif files" in dataset.note
        assert "1 .heic files" in dataset.note
        assert ".txt" not in dataset.note

    def test_hidden_files_and_folders_are_left_out(self, root):
        for path in ("city/.a.png", "city/.git/b.png", ".cache/c.png", "__MACOSX/city/d.png",
                     ".DS_Store", ".hidden.png", "city/._1.png"):  # fmt: skip
            add(root, path)
        dataset = listed(root)
        assert dataset.classes == ("city", "water")
        assert len(dataset) == 4

    @pytest.mark.parametrize(
        ("folder", "name"),
        [("My Photos", "folder-My-Photos"), ("a.b_c-1", "folder-a.b_c-1"), ("Wälder", "folder-W-lder"),
         ("...", "folder-images"), ("日本", "folder-images"), ("-x-", "folder-x"), ("n" * 200, "folder-" + "n" * 100)],
    )  # fmt: skip
    def test_the_name_is_the_folders_own(self, tmp_path, folder, name):
        for label in "ab":
            add(tmp_path / "deep" / folder, f"{label}/1.png")
        assert listed(tmp_path / "deep" / folder).name == name
        assert listed(f"{tmp_path}/deep/{folder}/../{folder}/.").name == name


class TestParts:
    """Fault: `train`, `val` and `test` were taken for classes."""

    @pytest.fixture
    def parted(self, tmp_path):
        for part, count in (("train", 3), ("Val", 1), ("test", 2)):
            for name in ("water", "city"):
                for i in range(count):
                    add(tmp_path / "data", f"{part}/{name}/{i}.png", picture(i))
        return tmp_path / "data"

    def test_are_read_as_parts(self, parted):
        dataset = listed(parted)
        assert dataset.classes == ("city", "water")
        assert dataset.sample_ids[:2] == ("train/city/0.png", "train/city/1.png")
        assert dataset.sample_ids[-1] == "test/water/1.png"
        for sample_id, label, part in zip(
            dataset.sample_ids, dataset.labels, dataset.parts, strict=True
        ):
            top, name, _ = sample_id.split("/")
            assert name == dataset.classes[label]
            assert part == {"train": "train", "Val": "validation", "test": "test"}[top]
        assert dataset.read("test/city/1.png") == picture(1)

    @pytest.mark.parametrize("path", ["test/forest/1.png", "train/1.png"])
    def test_classes_that_differ_and_loose_images_are_refused(self, parted, path):
        add(parted, path)
        with pytest.raises(InputError, match=path.split("/")[-2]):
            listed(parted)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (None, "is no folder"),
        ([], "sub-folders"),
        (["a/1.png"], "'a'"),
        (["a/1.png", "b/1.png", "1.png"], r"'1\.png'"),
        (["a/1.png", "a/b/2.png"], "'a'"),
        (["a/1.png", "b/notes.txt"], "'b'"),
    ],
)
def test_other_layouts_are_refused_with_the_one_expected(tmp_path, files, named):
    root = tmp_path / "data"
    if files is not None:
        root.mkdir()
        for name in files:
            add(root, name)
    with pytest.raises(InputError, match=named) as caught:
        listed(root)
    assert "PATH/<class>/*.jpg" in str(caught.value)
    assert str(root) in str(caught.value)


def test_one_folder_is_named(root):
    for spec in ("folder", "folder:"):
        with pytest.raises(InputError, match="neither"):
            resolve(spec)
    with pytest.raises(InputError, match="both"):
        resolve(f"folder:{root}", root)
    with pytest.raises(InputError, match="is no folder"):
        listed(root / "city" / "1.png")


class TestHostileFiles:
    @pytest.mark.parametrize(
        "name", [b"a\nb.png", b"caf\xe9.png", b"a\x1bb.png", "a\u202eb.png".encode()]
    )
    def test_names_that_cannot_be_stored(self, root, name):
        with open(os.fsencode(root / "city") + b"/" + name, "wb"):  # noqa: PTH123
            pass
        with pytest.raises(InputError, match="rename, replace or remove it") as caught:
            listed(root)
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()

    def test_links_inside_the_folder_are_followed(self, root):
        (root / "city/3.png").symlink_to("2.png")
        (root / "water/3.png").symlink_to(root / "city" / "2.png")
        dataset = listed(root)
        assert len(dataset) == 6
        assert dataset.read("water/3.png") == picture(2)

    @pytest.mark.parametrize(
        ("place", "target", "said"),
        [
            ("city/3.png", None, "not a regular file"),
            ("city/3.png", "nothing.png", "not a regular file"),
            ("city/3.png", "../../secret.png", "leads out"),
            ("third", "water", "link to a folder"),
            ("city/sub", "../water", "link to a folder"),
            ("third", "..", "link to a folder"),
        ],
    )
    def test_pipes_and_other_links_are_refused(self, root, tmp_path, place, target, said):
        add(tmp_path, "secret.png")
        if target is None:
            os.mkfifo(root / place)
        else:
            (root / place).symlink_to(target)
        with pytest.raises(InputError, match=f"'{place}'.*{said}"):
            listed(root)

    def test_a_file_that_became_a_pipe_is_not_waited_for(self, root):
        dataset = listed(root)
        (root / "city/1.png").unlink()
        os.mkfifo(root / "city/1.png")
        with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="not a regular file"):
            pool.submit(dataset.read, "city/1.png").result(10)

    @pytest.mark.parametrize(
        "sample_id", ["../secret", "/etc/passwd", "city/../../secret", "city/1.png"]
    )
    def test_ids_and_files_that_became_links_do_not_lead_out(self, root, tmp_path, sample_id):
        dataset = listed(root)
        add(tmp_path, "secret")
        (root / "city/1.png").unlink()
        (root / "city/1.png").symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match="leads out"):
            dataset.read(sample_id)


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_count_as_numbers(numbers):
    names = [f"tile_{n}.jpg" for n in numbers]
    assert sorted(names, key=natural) == [f"tile_{n}.jpg" for n in sorted(numbers)]
