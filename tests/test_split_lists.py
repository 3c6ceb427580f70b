"""Lists of names find their samples; published ones are those that were published."""

import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest

from samtl.datasets import resolve
from samtl.errors import InputError, ResourceError
from samtl.splits import published as split_lists
from samtl.splits.published import parts_of, read_lists, torchgeo

IDS = ["a/1.jpg", "a/2.jpg", "b/2.jpg", "b/3.v2.jpg"]


def test_names_are_ids_or_what_is_left_of_them():
    lists = {"train": ["1.tif", "x/y/3.v2.tif"], "test": ["a/2.jpg"]}
    assert parts_of(lists, IDS, "the lists", "here") == ["train", "test", "", "train"]


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"train": ["9.jpg", "1.jpg", "8.jpg"]}, "name 2 samples, of 3, .* in here, such as '9.jpg'"),
        ({"train": ["2.jpg"]}, r"'2\.jpg', which may be 'a/2\.jpg' or 'b/2\.jpg' of here: name"),
        ({"train": ["1.jpg"], "test": ["a/1.jpg"]}, "'a/1.jpg' more than once, in train and in test"),
        ({"train": ["1", "1"]}, "'a/1.jpg' more than once, in train and in train"),
    ],
)  # fmt: skip
def test_names_that_are_of_no_one_sample_are_refused(lists, said):
    with pytest.raises(InputError, match=said):
        parts_of(lists, IDS, "the lists", "here")


def test_a_list_has_a_name_on_each_line(tmp_path):
    (tmp_path / "s-train.txt").write_bytes("\ufeffone é.jpg\r\ntwo.jpg\r\n\r\n".encode())
    (tmp_path / "s-val.txt").write_text("  three.jpg  ")
    (tmp_path / "s-test.txt").write_text("")
    assert read_lists(tmp_path / "s") == {
        "train": ["one é.jpg", "two.jpg"],
        "validation": ["three.jpg"],
        "test": [],
    }
    (tmp_path / "s-test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        InputError,
        match=r"s-test\.txt cannot be read \(UnicodeDecodeError\): expected are .* s-train\.txt, s-val",
    ):
        read_lists(tmp_path / "s")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Lists on a server of our own, whose hashes are known; gives (folder that is served, what was asked for)."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()
    known = {}
    for name in split_lists.SHA256:
        content = f"image of {name}.jpg\n".encode()
        (folder / name).write_bytes(content)
        known[name] = hashlib.sha256(content).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SAMTL_DATA_CACHE", str(tmp_path / "downloads"))
    monkeypatch.setattr(split_lists, "SHA256", known)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(split_lists, "BASE_URL", f"http://127.0.0.1:{running.server_port}/")
        yield folder, asked
        running.shutdown()
        thread.join()


def test_lists_are_fetched_once(served, tmp_path):
    _, asked = served
    for name, prefix in split_lists.TORCHGEO.items():
        lists = torchgeo(name)
        assert lists["train"] == [f"image of {prefix}-train.txt.jpg"]
        assert lists["validation"] == [f"image of {prefix}-val.txt.jpg"]
        assert lists["test"] == [f"image of {prefix}-test.txt.jpg"]
        assert torchgeo(name) == lists
    assert len(asked) == 6
    assert len(list((tmp_path / "downloads").iterdir())) == 6


def test_a_damaged_copy_is_fetched_again(served, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "eurosat-val.txt").write_text("cut sh")
    assert torchgeo("torchgeo")["validation"] == ["image of eurosat-val.txt.jpg"]


def test_other_bytes_are_refused(served, tmp_path):
    folder, _ = served
    (folder / "eurosat-train.txt").write_text("something else")
    with pytest.raises(InputError, match=r"eurosat-train\.txt does not have the sha256 .* put it"):
        torchgeo("torchgeo")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_what_is_not_there_is_the_networks_fault(served):
    folder, _ = served
    (folder / "eurosat-spatial-test.txt").unlink()
    with pytest.raises(
        ResourceError, match=r"could not download .*spatial-test\.txt \(HTTPError\)"
    ):
        torchgeo("torchgeo-spatial")


def test_nobody_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(split_lists, "BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("SAMTL_DATA_CACHE", str(tmp_path))
    with pytest.raises(ResourceError, match=r"get eurosat-train\.txt elsewhere and put it into"):
        torchgeo("torchgeo")


def test_all_published_hashes_are_known():
    prefixes = split_lists.TORCHGEO.values()
    names = [path.name for p in prefixes for path in split_lists.list_files(p).values()]
    assert sorted(names) == sorted(split_lists.SHA256)
    assert all(len(digest) == 64 for digest in split_lists.SHA256.values())


@pytest.mark.data
def test_the_names_of_the_real_images_are_those_of_the_lists():
    if "SAMTL_DATA" not in os.environ:
        pytest.skip("SAMTL_DATA is unset: no folder with EuroSAT.zip to read")
    dataset = resolve("eurosat", Path(os.environ["SAMTL_DATA"]) / "EuroSAT.zip")
    names = [sample.split("/")[1].replace(".jpg", ".tif") for sample in dataset.sample_ids]
    lists = {"train": names[::2], "test": names[1::2]}
    parts = parts_of(lists, dataset.sample_ids, "the lists", "eurosat")
    assert parts == ["train", "test"] * 13_500
