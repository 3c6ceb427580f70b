"""Folders of class folders: what is listed, and what is refused with how it ought to be."""

import io
import os
import pickle
import socket
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samtl.datasets import listing as _listing
from samtl.datasets import resolve
from samtl.errors import InputError
from samtl.images import codecs as images
from samtl.images.codecs import BadImage


def image_bytes(value=0, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    """Two classes of two images."""
    root = tmp_path / "My Photos"
    for name in ("water", "city"):
        for i in (1, 2):
            add(root, f"{name}/{i}.png", image_bytes(i))
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

    def test_root_and_argument_mean_the_same(self, root):
        by_root, by_argument = resolve("folder", root), listed(root)
        assert by_root == by_argument

    def test_all_formats_in_any_case_and_nothing_else(self, root):
        wanted = ["a.jpg", "b.JPEG", "c.Png", "d.webp", "e.TIF", "f.tiff", "g.bmp"]
        for name in [*wanted, "h.gif", "i.txt", "j.jpg.txt", "k", "l.npy", "png"]:
            add(root, f"city/{name}")
        got = [i.removeprefix("city/") for i in listed(root).sample_ids if i.startswith("city/")]
        assert got == ["1.png", "2.png", *wanted]

    def test_hidden_files_and_folders_are_left_out(self, root):
        for path in ("city/.a.png", "city/.git/b.png", ".cache/c.png", "__MACOSX/city/d.png",
                     ".DS_Store", ".hidden.png", "city/._1.png"):  # fmt: skip
            add(root, path)
        dataset = listed(root)
        assert dataset.classes == ("city", "water")
        assert len(dataset) == 4

    def test_folders_in_a_class_count_to_it(self, root):
        add(root, "city/2019/10/b.png", image_bytes(7))
        add(root, "city/2019/9/a.png")
        dataset = listed(root)
        assert dataset.sample_ids[2:4] == ("city/2019/9/a.png", "city/2019/10/b.png")
        assert dataset.read("city/2019/10/b.png") == image_bytes(7)
        assert dataset.labels[:4] == (0, 0, 0, 0)

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

    def test_relative_paths(self, root, monkeypatch):
        monkeypatch.chdir(root)
        assert listed(".").name == "folder-My-Photos"
        monkeypatch.chdir(root.parent)
        assert len(listed("My Photos")) == 4

    def test_spaces_and_other_alphabets_are_fine(self, root):
        add(root, "Wälder & Wiesen/Bild 1 (größer).png", image_bytes(9))
        assert listed(root).read("Wälder & Wiesen/Bild 1 (größer).png") == image_bytes(9)

    def test_listing_opens_no_image(self, root, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("opened")

        monkeypatch.setattr(_listing.os, "open", refuse)
        assert len(listed(root)) == 4


class TestWrongLayouts:
    @pytest.mark.parametrize("spec", ["folder", "folder:"])
    def test_no_folder_named(self, spec):
        with pytest.raises(InputError, match="named by folder:PATH or by --root, got neither"):
            resolve(spec)

    def test_two_folders_named(self, root):
        with pytest.raises(InputError, match="got both"):
            resolve(f"folder:{root}", root)

    @pytest.mark.parametrize(
        ("prepare", "match"),
        [
            (lambda root: None, "does not exist"),
            (lambda root: root.write_bytes(b"x"), "is a file"),
            (lambda root: root.mkdir(), "has no sub-folder"),
            (lambda root: add(root, "a/1.png"), "only one sub-folder, 'a'"),
            (
                lambda root: [add(root, n) for n in ("a/1.png", "b/1.png", "1.png")],
                "such as '1.png'",
            ),
            (
                lambda root: [add(root, f"a/{n}") for n in ("1.png", "b/2.png")],
                "only one sub-folder",
            ),
            (lambda root: [add(root, n) for n in ("a/1.png", "b/notes.txt")], "no image in 'b'"),
        ],
    )
    def test_the_message_says_which_layout_is_expected(self, tmp_path, prepare, match):
        prepare(tmp_path / "data")
        with pytest.raises(InputError, match=match) as caught:
            listed(tmp_path / "data")
        assert "PATH/<class>/*.jpg" in str(caught.value)
        assert str(tmp_path / "data") in str(caught.value)

    def test_a_path_too_long_to_ask_for(self):
        with pytest.raises(InputError, match=r"cannot be looked at|does not exist"):
            listed("x" * 5000)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
    def test_a_folder_that_may_not_be_listed(self, root):
        (root / "city").chmod(0)
        try:
            with pytest.raises(InputError, match="cannot be listed"):
                listed(root)
        finally:
            (root / "city").chmod(0o755)


class TestHostileFiles:
    @pytest.mark.parametrize(
        "name", [b"a\nb.png", b"caf\xe9.png", b"a\x1bb.png", "a\u202eb.png".encode()]
    )
    def test_names_that_cannot_be_stored(self, root, name):
        with open(os.fsencode(root / "city") + b"/" + name, "wb"):  # noqa: PTH123
            pass
        with pytest.raises(InputError, match="rename or remove it") as caught:
            listed(root)
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()

    def test_folders_with_such_names(self, root):
        add(root, "ci\nty/1.png")
        with pytest.raises(InputError, match="line break"):
            listed(root)
        (root / "ci\nty").rename(root / "city" / "a\nb")
        with pytest.raises(InputError, match="line break"):
            listed(root)

    def test_a_pipe_is_refused_and_never_opened(self, root):
        os.mkfifo(root / "city" / "3.png")
        with pytest.raises(InputError, match=r"'city/3\.png'.*not a regular file"):
            listed(root)

    def test_sockets_and_devices_are_refused(self, root, monkeypatch):
        monkeypatch.chdir(root / "city")  # a socket's address may have 107 bytes at most
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("3.png")
            with pytest.raises(InputError, match="not a regular file"):
                listed(root)
        (root / "city/3.png").unlink()
        (root / "city/null.png").symlink_to("/dev/null")
        with pytest.raises(InputError, match="link to no file"):
            listed(root)

    def test_what_is_not_named_like_an_image_may_be_anything(self, root):
        os.mkfifo(root / "city" / "control")
        (root / "city" / "readme").symlink_to("/etc/passwd")
        assert len(listed(root)) == 4

    def test_links_inside_the_folder_are_followed(self, root):
        (root / "city/3.png").symlink_to("2.png")
        (root / "water/3.png").symlink_to(root / "city" / "2.png")
        dataset = listed(root)
        assert len(dataset) == 6
        assert dataset.read("water/3.png") == image_bytes(2)

    def test_links_that_leave_it_are_refused(self, root, tmp_path):
        add(tmp_path, "elsewhere/secret.png")
        (root / "city/3.png").symlink_to(tmp_path / "elsewhere/secret.png")
        with pytest.raises(InputError, match="leads out"):
            listed(root)

    @pytest.mark.parametrize("target", ["nowhere.png", "3.png"])
    def test_links_that_lead_nowhere_are_refused(self, root, target):
        (root / "city/3.png").symlink_to(target)
        with pytest.raises(InputError, match="link to no file"):
            listed(root)

    @pytest.mark.parametrize("place", ["third", "city/sub"])
    @pytest.mark.parametrize("inside", [True, False])
    def test_links_to_folders_are_not_followed(self, root, tmp_path, place, inside):
        add(tmp_path, "elsewhere/1.png")
        (root / place).symlink_to(root / "water" if inside else tmp_path / "elsewhere")
        with pytest.raises(InputError, match="link to a folder"):
            listed(root)

    def test_a_loop_ends(self, root):
        (root / "city/again").symlink_to(root)
        with pytest.raises(InputError, match="link to a folder"):
            listed(root)

    def test_the_folder_itself_may_be_a_link(self, root, tmp_path):
        (tmp_path / "link").symlink_to(root)
        dataset = listed(tmp_path / "link")
        assert dataset.read("city/1.png") == image_bytes(1)


class TestReading:
    def test_bytes_are_those_of_the_file(self, root):
        dataset = listed(root)
        assert images.decode(dataset.read("water/2.png")).tolist() == np.full((4, 5, 3), 2).tolist()

    def test_it_can_be_sent_to_another_process(self, root):
        dataset = pickle.loads(pickle.dumps(listed(root)))
        assert dataset.read("city/1.png") == image_bytes(1)

    def test_a_file_that_went_away(self, root):
        dataset = listed(root)
        (root / "city/1.png").unlink()
        with pytest.raises(FileNotFoundError):
            dataset.read("city/1.png")

    def test_a_file_that_became_a_link_out(self, root, tmp_path):
        dataset = listed(root)
        add(tmp_path, "secret")
        (root / "city/1.png").unlink()
        (root / "city/1.png").symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match="leads out"):
            dataset.read("city/1.png")

    def test_a_file_that_became_a_pipe_is_not_waited_for(self, root):
        dataset = listed(root)
        (root / "city/1.png").unlink()
        os.mkfifo(root / "city/1.png")
        done = threading.Event()

        def read():
            with pytest.raises(InputError, match="not a regular file"):
                dataset.read("city/1.png")
            done.set()

        threading.Thread(target=read, daemon=True).start()
        assert done.wait(10)

    @pytest.mark.parametrize("sample_id", ["../secret", "/etc/passwd", "city/../../secret"])
    def test_ids_do_not_lead_out(self, root, tmp_path, sample_id):
        add(tmp_path, "secret")
        with pytest.raises(InputError, match="leads out"):
            listed(root).read(sample_id)

    def test_a_large_file_is_not_read(self, root):
        with (root / "city/1.png").open("wb") as file:
            file.truncate(images.MAX_BYTES + 1)  # a hole: takes no room
        with pytest.raises(BadImage, match=r"512\.0 MiB") as caught:
            listed(root).read("city/1.png")
        assert caught.value.code == "too_large"

    def test_the_limit_itself_is_read(self, root):
        path = root / "city/1.png"
        assert _listing.read_regular(path, limit=path.stat().st_size) == image_bytes(1)
        with pytest.raises(BadImage):
            _listing.read_regular(path, limit=path.stat().st_size - 1)


class TestNaturalOrder:
    @given(st.lists(st.integers(0, 10**6), unique=True))
    def test_numbers_count_as_numbers(self, numbers):
        names = [f"tile_{n}.jpg" for n in numbers]
        assert sorted(names, key=_listing.natural) == [f"tile_{n}.jpg" for n in sorted(numbers)]

    @given(
        st.lists(st.text("a1_.0B²٣", max_size=6), unique=True), st.randoms(use_true_random=False)
    )
    def test_it_is_a_total_order(self, names, random):
        once = sorted(names, key=_listing.natural)
        random.shuffle(names)
        assert sorted(names, key=_listing.natural) == once
