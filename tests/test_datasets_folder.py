"""Folders of class folders: what is listed, and what is refused with how it ought to be."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from zips import picture, unpack

from samtl.datasets import resolve
from samtl.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Two classes of two images."""
    files = {f"{name}/{i}.png": picture(i) for name in ("water", "city") for i in (1, 2)}
    return unpack(tmp_path / "My Photos", files)


def add(root, *paths):
    return unpack(root, dict.fromkeys(paths, b"x"))


def listed(root):
    return resolve(f"folder:{root}")


HIDDEN = ".cache/c.png __MACOSX/city/d.png .DS_Store .e.png city/.a.png city/.git/b.png city/._1.png water/.e.gif"


def test_classes_are_alphabetical_and_files_in_natural_order(root):
    """Fault: images in other formats were left out without a word."""
    add(root, *(f"city/{i}.png" for i in (10, 9, 100)), *HIDDEN.split())
    add(root, "city/a.gif", "city/b.GIF", "water/c.heic", "water/d.txt")
    (root / "city/3.png").symlink_to("2.png")
    (root / "water/3.png").symlink_to(root / "city/2.png")
    dataset = listed(root)
    assert dataset.classes == ("city", "water")
    names = [f"city/{i}.png" for i in (1, 2, 3, 9, 10, 100)] + [f"water/{i}.png" for i in (1, 2, 3)]
    assert dataset.sample_ids == tuple(names)
    assert dataset.labels == (0, 0, 0, 0, 0, 0, 1, 1, 1)
    assert dataset.note.endswith(": 2 .gif files, 1 .heic files")
    assert dataset.read("water/3.png") == picture(2)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("My Photos", "folder-My-Photos"), ("a.b_c-1", "folder-a.b_c-1"), ("Wälder", "folder-W-lder"),
     ("...", "folder-images"), ("日本", "folder-images"), ("-x-", "folder-x"), ("n" * 200, "folder-" + "n" * 100)],
)  # fmt: skip
def test_the_name_is_the_folders_own(tmp_path, folder, name):
    root = add(tmp_path / "deep" / folder, "a/1.png", "b/1.png")
    assert listed(root).name == listed(f"{root}/../{folder}/.").name == name


@pytest.fixture
def parted(tmp_path):
    tops = [f"{part}/{name}" for part in ("train", "Val", "test") for name in ("water", "city")]
    return unpack(tmp_path / "data", {f"{top}/{i}.png": picture(i) for top in tops for i in (0, 1)})


def test_parts_are_read_as_parts(parted):
    """Fault: `train`, `val` and `test` were taken for classes."""
    dataset = listed(parted)
    assert dataset.classes == ("city", "water")
    tops = [f"{part}/{name}" for part in ("train", "Val", "test") for name in dataset.classes]
    assert dataset.sample_ids == tuple(f"{top}/{i}.png" for top in tops for i in (0, 1))
    assert dataset.labels == (0, 0, 1, 1) * 3
    assert dataset.parts == ("train",) * 4 + ("validation",) * 4 + ("test",) * 4
    assert dataset.read("test/city/1.png") == picture(1)


@pytest.mark.parametrize("path", ["test/forest/1.png", "train/1.png"])
def test_classes_that_differ_and_loose_images_are_refused(parted, path):
    with pytest.raises(InputError, match=path.split("/")[-2]):
        listed(add(parted, path))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ([], "is no folder"),
        ([".hidden"], "sub-folders"),
        (["a/1.png"], "'a'"),
        (["a/1.png", "b/1.png", "1.png"], r"'1\.png'"),
        (["a/1.png", "a/b/2.png"], "'a'"),
        (["a/1.png", "b/notes.txt"], "'b'"),
    ],
)
def test_other_layouts_are_refused_with_the_one_expected(tmp_path, files, named):
    root = add(tmp_path / "data", *files)
    with pytest.raises(InputError, match=named) as caught:
        listed(root)
    assert "PATH/<class>/*.jpg" in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "place", "said"),
    [
        ("folder", None, "neither"),
        ("folder:", None, "neither"),
        ("folder:~/My Photos", "~/My Photos", "both"),
        ("folder", "~/My Photos/city/1.png", "is no folder"),
    ],
)
def test_one_folder_is_named(root, tmp_path, monkeypatch, spec, place, said):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(resolve("folder", "~/My Photos")) == len(resolve("folder:~/My Photos")) == 4
    with pytest.raises(InputError, match=said):
        resolve(spec, place)


@pytest.mark.parametrize(
    "name", [b"a\nb.png", b"caf\xe9.png", b"a\x1bb.png", "a\u202eb.png".encode()]
)
def test_names_that_cannot_be_stored_are_refused(root, name):
    add(root, os.fsdecode(b"city/" + name))
    with pytest.raises(InputError, match="rename, replace or remove it") as caught:
        listed(root)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


def put(path, target):
    """Make a link, or a pipe if it has no target."""
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)


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
def test_pipes_and_other_links_are_refused(root, tmp_path, place, target, said):
    add(tmp_path, "secret.png")
    put(root / place, target)
    with pytest.raises(InputError, match=f"'{place}'.*{said}"):
        listed(root)


@pytest.mark.parametrize(
    ("sample_id", "target", "said"),
    [
        ("city/1.png", None, "not a regular file"),
        ("city/1.png", "../../secret", "leads out"),
        *((name, "2.png", "leads out") for name in ("../secret", "/etc/passwd", "city/../../secret")),
    ],
)  # fmt: skip
def test_ids_and_files_that_changed_lead_nowhere_and_no_pipe_is_waited_for(
    root, tmp_path, sample_id, target, said
):
    dataset = listed(root)
    add(tmp_path, "secret")
    (root / "city/1.png").unlink()
    put(root / "city/1.png", target)
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match=said):
        pool.submit(dataset.read, sample_id).result(10)
