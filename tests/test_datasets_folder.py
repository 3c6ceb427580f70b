"""Folders of class folders, and EuroSAT with its download: what is listed, and what is refused."""

import hashlib
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from zips import pack, picture, serving, unpack

from samtl.datasets import eurosat, resolve
from samtl.errors import InputError, ResourceError
from samtl.images.codecs import decode


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
    told = {one.what: (one.count, one.examples) for one in dataset.left_out}
    assert told == {
        ".gif files": (2, ("city/a.gif", "city/b.GIF")),
        ".heic files": (1, ("water/c.heic",)),
        ".txt files": (1, ("water/d.txt",)),
    }
    assert dataset.read("water/3.png") == picture(2)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("My Photos", "folder-My-Photos"), ("a.b_c-1", "folder-a.b_c-1"), ("Wälder", "folder-W-lder"),
     ("...", "folder-images"), ("日本", "folder-images"), ("-x-", "folder-x"), ("n" * 200, "folder-" + "n" * 100)],
)  # fmt: skip
def test_the_name_is_the_folders_own(tmp_path, folder, name):
    root = add(tmp_path / "deep" / folder, "a/1.png", "b/1.png")
    assert listed(root).name == listed(f"{root}/../{folder}/.").name == name


def test_parts_are_read_as_parts(tmp_path):
    """Fault: `train`, `val` and `test` were taken for classes."""
    tops = [f"{part}/{name}" for part in ("train", "Val", "test") for name in ("city", "water")]
    files = {f"{top}/{i}.png": picture(i) for top in tops for i in (0, 1)}
    dataset = listed(unpack(tmp_path, files))
    assert dataset.classes == ("city", "water")
    assert dataset.sample_ids == tuple(files)
    assert dataset.labels == (0, 0, 1, 1) * 3
    assert dataset.parts == ("train",) * 4 + ("validation",) * 4 + ("test",) * 4
    assert dataset.read("test/city/1.png") == picture(1)


def test_parts_in_class_folders_are_read_as_parts(tmp_path):
    """Fault: the published split was dropped without a word."""
    files = [f"{name}/{part}/1.png" for name in "ab" for part in ("Training", "test")]
    dataset = listed(add(tmp_path, *files))
    assert (dataset.sample_ids, dataset.labels) == (tuple(files), (0, 0, 1, 1))
    assert dataset.parts == ("train", "test") * 2
    add(tmp_path, "a/more/1.png")
    dataset = listed(tmp_path)
    assert (len(dataset), dataset.parts) == (5, ())
    assert [reading.endswith("'Training', 'more', 'test'") for reading in dataset.readings] == [
        True
    ]


@pytest.mark.parametrize("twin", ["City", " city", "CITY "])
def test_class_folders_that_look_alike_are_refused(root, twin):
    """Fault: they were two classes."""
    add(root, f"{twin}/1.png")
    with pytest.raises(InputError, match="upper and lower case") as caught:
        listed(root)
    assert f"{twin!r}" in str(caught.value)


def test_images_without_folders_have_no_labels(tmp_path):
    dataset = listed(add(tmp_path, "2.png", "10.png", "1.jpg", "notes.txt"))
    assert (dataset.classes, dataset.labels) == ((), (-1, -1, -1))
    assert dataset.sample_ids == ("1.jpg", "2.png", "10.png")
    found = dataset.understood()
    assert (found.unlabelled, found.classes) == (3, {})
    assert [str(one) for one in found.left_out] == ["1 .txt files"]


@pytest.mark.parametrize("suffix", [".jp2", ".jfif", ".JPE", ".j2k"])
def test_less_usual_endings_are_read(root, suffix):
    """Fault: they were left out without a word."""
    form = "JPEG2000" if "2" in suffix else "JPEG"
    unpack(root, {f"city/4{suffix}": picture(7, form=form)})
    dataset = listed(root)
    assert (dataset.sample_ids[-3], dataset.left_out) == (f"city/4{suffix}", ())
    assert decode(dataset.read(f"city/4{suffix}"))[0, 0].tolist() == [7, 7, 7]


PARTED = [f"{part}/{name}/1.png" for part in ("train", "test") for name in ("a", "b")]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ([], "is no folder"),
        ([".hidden"], "sub-folders"),
        (["notes.txt"], "sub-folders"),
        (["a/1.png"], "'a'"),
        (["a/1.png", "b/1.png", "1.png"], r"'1\.png'"),
        (["a/1.png", "a/b/2.png"], "'a'"),
        (["a/1.png", "b/notes.txt"], "'b'"),
        ([*PARTED, "test/c/1.png"], "'c'"),
        ([*PARTED, "other/a/1.png"], "'other'"),
        (["top/a/1.png", "top/b/1.png"], "folder:.*top"),
        ([*PARTED, "train/2.png"], r"'2\.png'"),
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
        ("folder:city", "~/nothing", "is no folder"),
        ("folder:../..", "~/My Photos", "is not in"),
        ("folder", "~/My Photos/city/1.png", "is no folder"),
    ],
)
def test_one_folder_is_named(root, tmp_path, monkeypatch, spec, place, said):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(resolve("folder", "~/My Photos")) == len(resolve("folder:~/My Photos")) == 4
    with pytest.raises(InputError, match=said):
        resolve(spec, place)


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
        ("third", "../other", "leads out"),
        ("third", "water", "link to a folder"),
        ("city/sub", "../water", "link to a folder"),
        ("third", "..", "link to a folder"),
        *((f"city/{name}.png", "2.png", "invisible") for name in ("a\nb", "a\x1bb", "a\u202eb")),
        (os.fsdecode(b"city/caf\xe9.png"), "2.png", "not UTF-8"),
    ],
)
def test_pipes_other_links_and_names_that_cannot_be_stored_are_refused(
    root, tmp_path, place, target, said
):
    add(tmp_path, "secret.png", "other/1.png")
    put(root / place, target)
    with pytest.raises(InputError, match="; rename, replace or remove it") as caught:
        listed(root)
    assert str(caught.value).startswith(ascii(place))
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


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


@pytest.fixture
def repository(tmp_path):
    """Make a folder whose data are links to files and folders beside it, as version control of data makes it."""
    files = {f".cache/{i}": picture(i) for i in range(4)} | {"real/water/9.png": picture(9)}
    unpack(tmp_path / "repository", files)
    (tmp_path / "repository/data/city").mkdir(parents=True)
    for i in range(4):
        (tmp_path / f"repository/data/city/{i}.png").symlink_to(f"../../.cache/{i}")
    (tmp_path / "repository/data/water").symlink_to("../real/water")
    return tmp_path / "repository"


def test_links_are_followed_in_the_folder_that_is_named(repository, tmp_path):
    """Fault: they were refused wherever they led to."""
    with pytest.raises(InputError, match="--root"):
        listed(repository / "data")
    for name in ("data", repository / "data"):
        dataset = resolve(f"folder:{name}", repository)
        assert dataset.name == "folder-data"
        ids = (*(f"city/{i}.png" for i in range(4)), "water/9.png")
        assert dataset.sample_ids == ids
        assert [dataset.read(sample_id) for sample_id in ids] == [
            picture(i) for i in (0, 1, 2, 3, 9)
        ]
    for odd in ("../real/water/9.png", "../.cache/1"):
        with pytest.raises(InputError, match="leads out"):
            dataset.read(odd)
    (repository / "data/city/1.png").unlink()
    (repository / "data/city/1.png").symlink_to(add(tmp_path, "secret.png") / "secret.png")
    with pytest.raises(InputError, match="leads out"):
        dataset.read("city/1.png")
    with pytest.raises(InputError, match="leads out"):
        resolve("folder:data", repository)


@pytest.mark.parametrize(
    "links",
    [{"data/water/up": "../.."}, {"real/water/on": "../a", "real/a/back": "../water"}, {"real/water/a": "../../data"}],
)  # fmt: skip
def test_no_circle_of_links_is_followed(repository, links):
    for place, target in links.items():
        (repository / place).parent.mkdir(exist_ok=True)
        (repository / place).symlink_to(target)
    with pytest.raises(InputError, match="listed already"):
        resolve("folder:data", repository)


# EuroSAT

LAYOUTS = ("eurosat/2750", "EuroSAT_RGB")

FILES = {
    f"{name}/{name}_{i}.jpg": picture(10 * i + len(name), form="JPEG")
    for name in eurosat.COUNTS
    for i in (10, 9, 1, 2)
}
OTHERS = "License.txt Forest/.x.jpg Forest/list.txt __MACOSX/Forest/._Forest_1.jpg .git/x.jpg"


def below(top, files=FILES):
    return {f"{top}/{name}" if top else name: data for name, data in files.items()}


@pytest.mark.parametrize("make", [pack, unpack])
@pytest.mark.parametrize("top", [*LAYOUTS, "2750", ""])
def test_all_layouts_of_eurosat_give_the_same_dataset(tmp_path, top, make):
    files = FILES | dict.fromkeys(OTHERS.split(), b"x")
    dataset = resolve("eurosat", make(tmp_path / "data", below(top, files)))
    assert dataset.root == (tmp_path / "data" / top if make is unpack else None)
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
)
def test_other_layouts_of_eurosat_are_refused(tmp_path, make, files, named):
    with pytest.raises(InputError, match=named):
        resolve("eurosat", make(tmp_path / "data", files))


def test_the_official_counts_of_eurosat(tmp_path, monkeypatch):
    assert sum(eurosat.COUNTS.values()) == 27_000
    assert list(eurosat.COUNTS) == sorted(eurosat.COUNTS)
    monkeypatch.setattr(eurosat, "COUNTS", dict.fromkeys(eurosat.COUNTS, 4))
    assert resolve("eurosat", pack(tmp_path / "a.zip", below(LAYOUTS[0]))).note == ""


def test_other_roots_of_eurosat_are_refused(tmp_path):
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
    """Put up an archive of each layout that is "right", "wrong" (of another hash) or "missing"."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SAMTL_DATA_CACHE", str(tmp_path / "downloads"))
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as (url, asked):

        def offer(*kinds):
            sources = {}
            for name, top, kind in zip(("one.zip", "two.zip"), LAYOUTS, kinds, strict=True):
                path = pack(tmp_path / "served" / name, below(top))
                known = b"other" if kind == "wrong" else path.read_bytes()
                sources[url + name] = f"sha256:{hashlib.sha256(known).hexdigest()}"
                if kind == "missing":
                    path.unlink()
            archive = replace(eurosat.ARCHIVE, sources=sources)
            monkeypatch.setattr(eurosat, "ARCHIVE", archive)
            return asked

        yield offer


@pytest.mark.parametrize("kind", ["right", "wrong", "missing"])
def test_the_first_address_with_the_right_bytes_is_asked_once(offer, tmp_path, capfd, kind):
    asked = offer(kind, "right")
    with pytest.raises(InputError, match=r"download http.* by hand"):
        resolve("eurosat", download=False)
    assert asked == []
    for download in (True, True, False):
        dataset = resolve("eurosat", download=download)
        assert {i: dataset.read(i) for i in dataset.sample_ids} == FILES
    assert asked == (["/one.zip"] if kind == "right" else ["/one.zip", "/two.zip"])
    kept = "one.zip" if kind == "right" else "two.zip"
    assert [*(tmp_path / "downloads").iterdir()] == [tmp_path / "downloads" / kept]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [("wrong", InputError, "hash is not sha256"), ("missing", ResourceError, "404")],
)
def test_wrong_bytes_and_no_bytes_everywhere_are_refused(offer, tmp_path, kind, error, said):
    offer(kind, kind)
    with pytest.raises(error, match=said) as caught:
        resolve("eurosat")
    for text in ("/one.zip", "/two.zip", "by hand", "--root"):
        assert text in str(caught.value)
    assert list((tmp_path / "downloads").glob("*")) == []


@pytest.mark.data
def test_real_images_of_eurosat():
    if "SAMTL_DATA" not in os.environ:
        pytest.skip("SAMTL_DATA is unset: no folder with EuroSAT.zip to read")
    dataset = resolve("eurosat", Path(os.environ["SAMTL_DATA"]) / "EuroSAT.zip")
    assert (len(dataset), dataset.note) == (27_000, "")
    assert {n: dataset.labels.count(i) for i, n in enumerate(dataset.classes)} == eurosat.COUNTS
    assert dataset.sample_ids[9] == "AnnualCrop/AnnualCrop_10.jpg"
    for sample_id in dataset.sample_ids[::2999]:
        pixels = decode(dataset.read(sample_id))
        assert pixels.shape == (64, 64, 3)
        assert pixels.std() > 0
