"""The features of a sweep are read once, and are those that a single fit reads."""

from dataclasses import replace

import numpy as np
import pytest
from stubs import embedded
from toys import blobs, stripes

from samtl.errors import InputError
from samtl.experiment import features as feed
from samtl.experiment.features import Data
from samtl.store.maintenance import compact
from samtl.store.reader import Store, open_store

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small store whose features tell what is to be told."""
    return embedded(tmp_path_factory.mktemp("store"), stripes(60), 64, ("pooled",))


@pytest.mark.parametrize("features", [None, "mean,block*"])
def test_held_features_are_those_that_are_read(path, features):
    store = open_store(path)
    held, plain = (Data(store, "pooled", features, None, False) for _ in range(2))
    held.hold()
    rows = np.array([41, 3, 3, 17])
    for array in (None, "image_stats"):
        found, expected = held.features(rows, array), plain.features(rows, array)
        np.testing.assert_array_equal(found, expected)
        # Products of other layouts differ in the last digit.
        assert found.flags.c_contiguous
        assert expected.flags.c_contiguous


def test_held_features_are_read_once(path, monkeypatch):
    data = Data(open_store(path), "pooled", None, None, False)
    data.hold()
    expected = data.features(np.arange(5))
    monkeypatch.setattr(Store, "read", None)
    data.hold()
    np.testing.assert_array_equal(data.features(np.arange(5)), expected)


def test_what_is_too_large_is_not_held(path, monkeypatch):
    monkeypatch.setattr(feed, "HELD_BYTES", 100)
    data = Data(open_store(path), "pooled", None, None, False)
    data.hold()
    assert data._held is None


def test_rows_that_are_not_there_yet_are_not_held(tmp_path):
    path = embedded(tmp_path, stripes(60), 64, ("pooled",))
    for record in (path / "log").glob("3*.json"):
        record.unlink()
    data = Data(open_store(path), "pooled", None, None, True)
    data.hold()
    rows = np.flatnonzero(data.samples.usable)
    assert len(rows) == 48
    np.testing.assert_array_equal(data.features(rows), open_store(path).read("pooled", rows))


def test_held_features_that_are_no_numbers_are_named(path):
    data = Data(open_store(path), "pooled", "std,mean", None, False)
    data.hold()
    data._held[:, -1] = np.nan
    with pytest.raises(InputError, match=r"pooled of sample '.*' is not finite in column 'std_2'"):
        data.features(np.array([7]))


def test_samples_are_named_for_each_array_whatever_head_reads_which(path, tmp_path):
    both = embedded(tmp_path, stripes(60), 64, ("pooled", "grid"))
    alone = Data(open_store(path), "pooled", None, None, False).digests
    first, second = (
        Data(open_store(both), array, None, None, False).digests for array in ("pooled", "grid")
    )
    assert alone.keys() == {"pooled"}
    assert first == second == {"pooled": alone["pooled"], "grid": alone["pooled"]}


def test_samples_are_named_by_their_masks_too(tmp_path):
    def named(dataset):
        path = embedded(tmp_path, dataset, 64, ("dense",))
        return Data(open_store(path), "dense", None, None, False).digest

    data = blobs(20, classes=2)
    masks = data.read_mask
    first = named(data)
    one = data.sample_ids[3]
    other = {**masks.content, one: np.roll(masks.content[one], 3, 1)}
    assert named(replace(data, read_mask=other.__getitem__)) != first
    assert named(data) == first
    # What changes no sample does not change their name.
    fewer = replace(data, sample_ids=data.sample_ids[:-1], labels=data.labels[:-1])
    third = named(fewer)
    compact(tmp_path / "blobs.zarr")
    assert named(fewer) == third
    grouped = replace(fewer, groups=tuple(name[:1] for name in fewer.sample_ids))
    assert named(grouped) == third
