"""Which store is meant when none is named."""

from pathlib import Path

import pytest

from samtl.errors import InputError
from samtl.store.find import cache_folder, locate, stores_in
from samtl.store.fingerprint import FILE


def make(path):
    path.mkdir(parents=True)
    (path / FILE).touch()
    return path


def test_the_only_store_in_the_cache_is_meant():
    store = make(Path("cache/one.zarr"))
    Path("cache/README.md").touch()
    Path("cache/other").mkdir()
    assert locate() == store


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    assert cache_folder() == Path("cache")
    monkeypatch.setenv("SAMTL_CACHE", str(tmp_path / "elsewhere"))
    assert locate(make(tmp_path / "elsewhere" / "a.zarr").parent) == locate()


def test_a_store_or_its_folder_may_be_named(tmp_path):
    store = make(tmp_path / "x" / "one.zarr")
    assert locate(store) == locate(str(store.parent)) == store


def test_of_several_stores_one_must_be_chosen(tmp_path):
    stores = [make(tmp_path / name) for name in ("b.zarr", "a.zarr")]
    assert stores_in(tmp_path) == sorted(stores)
    with pytest.raises(InputError, match="several stores") as caught:
        locate(tmp_path)
    for store in stores:
        assert f"--cache {store}" in str(caught.value)


def test_no_store_is_told_with_what_to_do():
    with pytest.raises(InputError, match="no store in cache; make one with samtl embed"):
        locate()
