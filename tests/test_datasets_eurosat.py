"""EuroSAT in both official layouts, packed and unpacked, and the download that never trusts."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
from zips import pack, picture, serving, unpack

from samtl.datasets import eurosat, resolve
from samtl.errors import InputError, ResourceError
from samtl.images.codecs import decode

LAYOUTS = ("eurosat/2750", "EuroSAT_RGB")

FILES = {
    f"{name}/{name}_{i}.jpg": picture(10 * i + len(name), form="JPEG")
    for name in eurosat.COUNTS
    for i in (10, 9, 1, 2)
}
OTHERS = (
    "License.txt Forest/.Forest_3.jpg Forest/list.txt __MACOSX/Forest/._Forest_1.jpg .git/x.jpg"
)


def below(top, files=FILES):
    return {f"{top}/{name}" if top else name: data for name, data in files.items()}


@pytest.mark.parametrize("make", [pack, unpack])
@pytest.mark.parametrize("top", [*LAYOUTS, "2750", ""])
def test_all_layouts_give_the_same_dataset(tmp_path, top, make):
    files = FILES | dict.fromkeys(OTHERS.split(), b"x")
    dataset = resolve("eurosat", make(tmp_path / "data", below(top, files)))
    assert (dataset.name, dataset.classes) == ("eurosat", tuple(eurosat.COUNTS))
    ids = [f"{name}/{name}_{i}.jpg" for name in eurosat.COUNTS for i in (1, 2, 9, 10)]
    assert dataset.sample_ids == tuple(ids)
    assert [dataset.classes[label] for label in dataset.labels] == [i.split("/")[0] for i in ids]
    copy = pickle.loads(pickle.dumps(dataset))
    assert {i: copy.read(i) for i in ids} == FILES
    assert dataset.note == "not the whole of EuroSAT: 40 of 27,000 images"


@pytest.mark.parametrize("make", [pack, unpack])
@pytest.mark.parametrize(
    ("files", "named"),
    [
        (below(LAYOUTS[0], FILES | {"Desert/1.jpg": b"x"}), "Desert"),
        (below(LAYOUTS[0], {"River/River_1.tif": b"13 bands", "Forest/1.jpg": b"x"}), "River"),
        (below("elsewhere"), "EuroSAT_RGB/<Class>"),
        (below("eurosat/2750/deeper"), "EuroSAT_RGB/<Class>"),
    ],
    ids=["unknown class", "empty class", "elsewhere", "deeper"],
)
def test_other_layouts_are_refused(tmp_path, make, files, named):
    with pytest.raises(InputError, match=named):
        resolve("eurosat", make(tmp_path / "data", files))


def test_the_official_counts(tmp_path, monkeypatch):
    assert sum(eurosat.COUNTS.values()) == 27_000
    assert list(eurosat.COUNTS) == sorted(eurosat.COUNTS)
    monkeypatch.setattr(eurosat, "COUNTS", dict.fromkeys(eurosat.COUNTS, 4))
    assert resolve("eurosat", pack(tmp_path / "a.zip", below(LAYOUTS[0]))).note == ""


def test_other_roots_are_refused(tmp_path):
    pack(tmp_path / "EuroSAT.zip", below(LAYOUTS[0]))
    with pytest.raises(InputError, match=r"EuroSAT\.zip: name that file"):
        resolve("eurosat", tmp_path)
    (tmp_path / "a.zip").write_bytes(b"<html>404</html>")
    for path in ("a.zip", "none"):
        with pytest.raises(InputError, match=path):
            resolve("eurosat", tmp_path / path)
    with pytest.raises(InputError, match="'rgb'"):
        resolve("eurosat:rgb")


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Put up one archive for each layout; its argument says which of the known hashes are true."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SAMTL_DATA_CACHE", str(tmp_path / "downloads"))
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as (url, asked):

        def offer(*right):
            sources = {}
            for name, top, is_right in zip(("one.zip", "two.zip"), LAYOUTS, right, strict=True):
                data = pack(tmp_path / "served" / name, below(top)).read_bytes()
                known = hashlib.sha256(data if is_right else b"other").hexdigest()
                sources[url + name] = f"sha256:{known}"
            monkeypatch.setattr(eurosat, "SOURCES", sources)
            return asked

        yield offer


def downloads(tmp_path):
    return sorted(path.name for path in (tmp_path / "downloads").glob("*"))


def test_the_first_address_is_asked_once(offer, tmp_path, capfd):
    asked = offer(True, True)
    with pytest.raises(InputError, match=r"download http.* by hand"):
        resolve("eurosat", download=False)
    assert asked == []
    first = resolve("eurosat")
    assert first.read("River/River_1.jpg") == FILES["River/River_1.jpg"]
    assert resolve("eurosat", download=False).sample_ids == first.sample_ids
    assert asked == ["/one.zip"]
    assert downloads(tmp_path) == ["one.zip"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("trouble", ["missing", "wrong"])
def test_the_second_address_helps_out(offer, tmp_path, trouble):
    asked = offer(trouble != "wrong", True)
    if trouble == "missing":
        (tmp_path / "served/one.zip").unlink()
    for _ in range(2):
        assert len(resolve("eurosat")) == len(FILES)
    assert asked == ["/one.zip", "/two.zip"]
    assert downloads(tmp_path) == ["two.zip"]


def test_wrong_bytes_everywhere_are_refused(offer, tmp_path):
    offer(False, False)
    with pytest.raises(InputError, match="hash is not sha256") as caught:
        resolve("eurosat")
    for text in ("/one.zip", "/two.zip", "by hand", "--root"):
        assert text in str(caught.value)
    assert downloads(tmp_path) == []
    for path in (tmp_path / "served").iterdir():
        path.unlink()
    with pytest.raises(ResourceError, match="404"):
        resolve("eurosat")


@pytest.mark.data
def test_the_real_images():
    if "SAMTL_DATA" not in os.environ:
        pytest.skip("SAMTL_DATA is unset: no folder with EuroSAT.zip to read")
    dataset = resolve("eurosat", Path(os.environ["SAMTL_DATA"]) / "EuroSAT.zip")
    assert len(dataset) == 27_000
    assert dataset.note == ""
    counts = {name: dataset.labels.count(i) for i, name in enumerate(dataset.classes)}
    assert counts == eurosat.COUNTS
    assert dataset.sample_ids[9] == "AnnualCrop/AnnualCrop_10.jpg"
    for sample_id in dataset.sample_ids[::2999]:
        pixels = decode(dataset.read(sample_id))
        assert pixels.shape == (64, 64, 3)
        assert pixels.std() > 0
