"""What people pass in Python: objects in the place of paths, numbers of numpy, one name or a list."""

import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import stubs
from fake_runs import read_csv

import samtl
from samtl.errors import InputError, UnknownName

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    return samtl.open(stubs.embedded(place, stubs.toy_dataset(36), 64, ["pooled"]))


@pytest.fixture
def run(store):
    return samtl.fit_head(store, "logreg", 0.25)


def test_a_run_stands_for_its_folder(store, run, tmp_path):
    again = samtl.fit_head(store, "logreg", same_split_as=run)
    assert again.split == run.split
    assert again.given["same_split_as"] == str(run.path)
    table = samtl.predict(run, from_store=store).table
    assert len(read_csv(table)) == len(store)
    assert samtl.load_head(run).predict(store).shape == (36,)
    assert Path(run) == run.path
    pytest.importorskip("matplotlib")
    assert samtl.make_report([run], tmp_path / "report").runs == 1


def test_a_store_stands_for_its_folder(store, tmp_path):
    assert samtl.verify(store).exit_code == 0
    result = samtl.sweep(store, "logreg", 0.25, np.int64(1), tmp_path / "a", jobs=1)
    assert (result.done, len(result.failed)) == (1, 0)
    same = samtl.sweep([store], ["logreg"], [0.25], [0], tmp_path / "a", jobs=1)
    assert (same.done, same.skipped) == (0, 1)


def test_numbers_may_be_those_of_numpy(store, encoders, tmp_path):
    run = samtl.fit_head(store, "logreg", np.float64(0.25), np.int64(3))
    assert run.path.name == samtl.fit_head(store, "logreg", 0.25, 3, tmp_path / "other").path.name
    sizes = {"image_size": np.int64(64), "limit": np.int32(6)}
    result = samtl.embed(stubs.toy_dataset(), "stub", out=tmp_path, tiers="pooled,grid", **sizes)
    store = samtl.open(result.store)
    assert (len(store), store.tiers) == (6, ("pooled", "grid"))


def test_a_run_is_shown_in_a_line_and_in_a_notebook(run):
    assert re.fullmatch(
        r"<samtl run \S+: logreg on \S+, 9 held out, accuracy .+% \[.+\]>", repr(run)
    )
    assert "floor" in run._repr_html_()
    assert "balanced accuracy" in run._repr_html_()


def test_what_is_misspelt_is_found():
    assert {"embed", "open", "load_head", "from_torch"} <= {*dir(samtl)}
    assert not {"Any", "os", "sys", "importlib", "annotations"} & {*dir(samtl)}
    with pytest.raises(AttributeError) as caught:
        samtl.fit_heads  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("fit_heads", sys.modules["samtl"])
    with pytest.raises(InputError, match="folder:"):
        samtl.embed(Path())


def test_every_public_function_says_what_it_takes_and_gives():
    for name in samtl.__all__:
        made = getattr(samtl, name)
        assert inspect.getdoc(made)
        if inspect.isfunction(made):
            parameters = inspect.signature(made).parameters.values()
            assert all(one.annotation is not inspect.Parameter.empty for one in parameters)
            assert inspect.signature(made).return_annotation is not inspect.Signature.empty


def test_names_of_a_store_are_explained(store):
    with pytest.raises(InputError, match="pooled"):
        store.features("poold")
    with pytest.raises(UnknownName, match="class0/0000"):
        store["class0/000.png"]
    with pytest.raises(InputError, match="one store"):
        samtl.fit_head([store])
    with pytest.raises(InputError, match="0 to 35"):
        store[36]
