"""A split that was written down is found again; lists of names find their samples."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import samples_of
from zips import serving

from samtl import splits
from samtl.errors import DamageError, InputError, ResourceError
from samtl.splits import given as given_module
from samtl.splits import parse, read_split, read_split_file, select
from samtl.splits.given import listed, torchgeo


def samples(n=60, **about):
    ids = [f"{'abc'[i % 3]}/{i:03d}.jpg" for i in range(n)]
    return replace(samples_of(ids, np.arange(n) % 3, ["a", "b", "c"]), **about)


def moved(some, order):
    order = np.array(order)
    ids = tuple(some.ids[i] for i in order)
    return replace(some, ids=ids, labels=some.labels[order], usable=some.usable[order], groups=())


def as_json(some, text, **more):
    record = splits.record_of(some.ids, select(some, parse(text), 3))
    return json.dumps({name: getattr(record, name) for name in record.__struct_fields__} | more)


def chosen(path, some=None):
    return select(some or samples(), parse(f"file:{path}"), 99)


def names(some, split):
    return {part: {some.ids[i] for i in getattr(split, part)} for part in splits.PARTS}


@given(
    st.sampled_from(["0.2", "label:0.4@fold:2/5", "shots:4@0.3"]),
    st.sampled_from(["classification", "segmentation"]),
    st.booleans(),
    st.permutations(range(60)),
)
def test_a_recorded_split_is_found_again_in_any_order(tmp_path_factory, text, task, grouped, order):
    groups = tuple(f"scene{i // 6}" for i in range(60)) if grouped and "shots" not in text else ()
    some = samples(usable=np.arange(60) % 9 != 4, task=task, groups=groups)
    split, file = select(some, parse(text), 3), tmp_path_factory.mktemp("run") / "split.json"
    file.write_text(as_json(some, text))
    again = chosen(file, moved(some, order))
    assert again == split
    assert names(moved(some, order), again) == names(some, split)


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"digest": "0" * 64}, InputError, "other samples"),
        ({"left_out": ["who.jpg"]}, InputError, "1 of the .* 'who.jpg'"),
        ({"validation": []}, InputError, "for validation and held out, got 48, 0 and 12"),
        ({"share": "much"}, DamageError, "share"),
        ({"held_out": [1, 2]}, DamageError, "held_out"),
        ({"file": "gone.json"}, InputError, r"gone\.json"),
    ],
)
def test_a_split_file_that_is_not_right_is_refused(tmp_path, more, kind, said):
    (tmp_path / "a.json").write_text(as_json(samples(), "0.2", **more))
    with pytest.raises(InputError, match=said) as caught:
        chosen(tmp_path / "a.json")
    assert caught.type is kind


def test_a_record_of_other_samples_is_refused(tmp_path):
    some, file = samples(), tmp_path / "a.json"
    file.write_text(as_json(some, "0.2"))
    split = select(some, parse("0.2"), 3)
    for gone in (split.test[0], split.train[0]):
        with pytest.raises(InputError, match="other samples"):
            chosen(file, moved(some, np.setdiff1d(np.arange(60), gone)))
    with pytest.raises(InputError, match=r"1 samples without a label .*'b/007\.jpg'"):
        chosen(file, samples(usable=np.arange(60) != 7))


@pytest.fixture
def shared(tmp_path):
    """Write the run of a sweep, whose lists of ids are kept once beside the runs."""

    def write(**more):
        run, text = tmp_path / "cells" / "run", as_json(samples(), "0.2")
        run.mkdir(parents=True)
        (tmp_path / "splits").mkdir()
        for place in ("splits/s.json", "s.json"):
            (tmp_path / place).write_text(text)
        own = {name: v for name, v in json.loads(text).items() if not isinstance(v, list)}
        own |= {"file": "../../splits/s.json", **more}
        (run / "split.json").write_text(json.dumps(own))
        return run

    return write


def test_the_split_of_a_sweep_is_read_from_where_it_is_kept(shared, tmp_path, monkeypatch):
    run = shared(seed=5)
    whole = read_split_file(tmp_path / "splits" / "s.json")
    monkeypatch.chdir(run)
    for where in (run, "."):
        found = read_split(where)
        assert (found.seed, found.digest, found.held_out) == (5, whole.digest, whole.held_out)


@pytest.mark.parametrize(
    "more",
    [{"digest": "d"}, {"validation_digest": "v"}, {"file": "../s.json"}, {"file": ".."}, {"share": None},
     {"file": "../../s.json"}, {"file": "/dev/zero"}],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_a_shared_split_that_is_not_that_of_the_run_is_refused(shared, more):
    with pytest.raises(InputError, match=f"{next(iter(more))}|not there"):
        read_split(shared(**more))


def test_lists_name_the_parts_by_ids_or_their_stems(tmp_path):
    train, test = "\ufeff1.tif\r\nx/y/3.v2.tif\r\n\r\n7", "a/2.jpg\n5.png\n6"
    for part, text in (("train", train), ("val", "  4 é "), ("test", test)):
        (tmp_path / f"mine-{part}.txt").write_text(text, encoding="utf-8")
    ids = ["a/1.jpg", "a/2.jpg", "b/2.jpg", "b/3.v2.jpg", "4 é.png", "5.png", "6.png", "7.png"]
    some = samples_of(ids)
    split = chosen(tmp_path / "mine", replace(some, usable=np.arange(8) != 5))
    assert names(some, split) == {
        "train": {"a/1.jpg", "b/3.v2.jpg", "7.png"}, "validation": {"4 é.png"}, "test": {"a/2.jpg", "6.png"}
    }  # fmt: skip
    about = (split.name, split.share, split.validation_share, split.seed)
    assert about == ("file", 2 / 6, 1 / 4, 0)
    (tmp_path / "mine-test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"mine-test\.txt .*UnicodeDecodeError"):
        chosen(tmp_path / "mine")
    (tmp_path / "mine-val.txt").unlink()
    with pytest.raises(InputError, match=r"mine-val\.txt .*FileNotFoundError"):
        chosen(tmp_path / "mine")
    with pytest.raises(InputError, match=r"nothing: .*nothing-train\.txt"):
        chosen(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"train": ["9.jpg", "1.jpg", "8.jpg"]}, "2 samples .* '9.jpg'.*--limit"),
        ({"train": ["2.jpg"]}, r"'2\.jpg', which may be 'a/2\.jpg' or 'b/2\.jpg'"),
        ({"train": ["1.jpg"], "test": ["a/1.jpg"]}, "'a/1.jpg' twice, in train and in test"),
    ],
)
def test_names_that_are_not_of_one_sample_are_refused(lists, said):
    with pytest.raises(InputError, match=said):
        listed(samples_of(["a/1.jpg", "a/2.jpg", "b/2.jpg"]), lists, "the lists", "mine")


def test_published_lists_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    folder, downloads, known = tmp_path / "served", tmp_path / "downloads", {}
    folder.mkdir()
    for name in given_module.SHA256:
        content = f"image of {name}.jpg\n".encode()
        (folder / name).write_bytes(content)
        known[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SAMTL_DATA_CACHE", str(downloads))
    monkeypatch.setattr(given_module, "SHA256", known)
    with serving(folder) as (url, asked):
        monkeypatch.setattr(given_module, "BASE_URL", url)
        for _ in range(2):
            for name, prefix in given_module.TORCHGEO.items():
                assert list(torchgeo(name).values()) == [
                    [f"image of {prefix}-{part}.txt.jpg"] for part in ("train", "val", "test")
                ]
        assert len(asked) == len(list(downloads.iterdir())) == 6
        (downloads / "eurosat-val.txt").write_text("cut sh")
        assert torchgeo("torchgeo")["validation"] == ["image of eurosat-val.txt.jpg"]
        for name in ("eurosat-train.txt", "eurosat-spatial-test.txt"):
            (downloads / name).unlink()
        (folder / "eurosat-train.txt").write_text("something else")
        with pytest.raises(InputError, match=r"eurosat-train\.txt \(its hash is not sha256"):
            torchgeo("torchgeo")
        (folder / "eurosat-spatial-test.txt").unlink()
        with pytest.raises(ResourceError, match=r"spatial-test\.txt"):
            torchgeo("torchgeo-spatial")
    assert len(list(downloads.iterdir())) == 4


def test_lists_of_a_dataset_are_not_downloaded_for_another(monkeypatch):
    """Not for a folder of one's own, nor for a part of EuroSAT: some that they list would be missing."""
    monkeypatch.setattr(given_module, "download", lambda *args: pytest.fail("it began a download"))
    some = [f"Forest/Forest_{i}.jpg" for i in range(1, 61)]
    for ids in (samples().ids, some):
        for text in (*given_module.TORCHGEO, "label:0.5@torchgeo"):
            with pytest.raises(InputError, match="EuroSAT"):
                select(replace(samples(), ids=tuple(ids)), parse(text), 0)
    monkeypatch.setattr(given_module, "IMAGES", 60)
    with pytest.raises(pytest.fail.Exception):
        select(replace(samples(), ids=tuple(some)), parse("torchgeo"), 0)
