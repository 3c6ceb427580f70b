"""What is damaged is withdrawn, exactly that is redone by the next pass, and nothing is thrown away."""

import random
import shutil
from pathlib import Path

import pytest
from stubs import StubEncoders, everything, install, stub_store, toy_dataset
from test_store_verify import ROWS, content
from test_torture_rot import DAMAGES

from samtl.embed.api import embed
from samtl.errors import DamageError, InputError
from samtl.store import documents
from samtl.store.fingerprint import FILE
from samtl.store.reader import open_store
from samtl.store.repair import ASIDE, repair
from samtl.store.verify import check


@pytest.fixture
def encoders(monkeypatch):
    return install(StubEncoders(), monkeypatch.setattr)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return stub_store(tmp_path_factory.mktemp("repair"), ROWS)


@pytest.fixture
def store(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "a.zarr"))


def again(store):
    return embed(toy_dataset(ROWS), "stub", out=store, device="cpu")


def test_a_damaged_row_costs_its_block_and_no_other(store, original, encoders):
    path = store / "pooled" / "c.1.0"
    path.write_bytes(path.read_bytes()[::-1])
    done = repair(store, check(store))
    assert done.withdrawn == {1: ["pooled"]}
    assert (done.blocks, done.rewritten, done.set_aside) == (1, [], [])
    assert open_store(store).missing == 16
    before = encoders.images
    assert again(store).encoded == 16
    assert encoders.images - before == 16
    assert check(store, "deep").findings == []
    assert everything(open_store(store)) == everything(open_store(original))


def test_a_folder_in_the_place_of_a_shard_is_not_removed(store, encoders):
    path = store / "pooled" / "c.1.0"
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("of somebody")
    before = sorted((store / "log").iterdir())
    assert check(store).findings[0].told == "a folder is in its place"
    with pytest.raises(DamageError, match=r"c\.1\.0 is a folder.*move it elsewhere"):
        repair(store, check(store))
    assert sorted((store / "log").iterdir()) == before
    assert (path / "notes.txt").exists()
    path.rename(store.parent / "elsewhere")
    assert repair(store, check(store)).withdrawn == {1: ["pooled"]}
    path.mkdir()  # it comes after the withdrawal
    with pytest.raises(DamageError, match=r"c\.1\.0 is a folder.*move it elsewhere"):
        again(store)
    path.rmdir()
    assert again(store).encoded == 16
    assert check(store, "deep").findings == []


def test_only_the_damaged_arrays_are_withdrawn(store, encoders):
    (store / "label" / "c.0").unlink()
    (store / "grid" / "c.0.0.0.0").write_bytes(b"")
    done = repair(store, check(store, "quick"))
    assert {block: sorted(arrays) for block, arrays in done.withdrawn.items()} == {
        0: ["grid", "label"]
    }
    whole = (store / "pooled" / "c.0.0").stat().st_ino
    again(store)
    assert (store / "pooled" / "c.0.0").stat().st_ino == whole
    assert check(store).findings == []


def test_a_damaged_record_is_set_aside_with_those_after_it(store, original, encoders):
    record = documents.unseal(store / "log" / "1.json")
    record.pop("checksum")
    later = {**record, "sequence": 1, "files": {}, "withdrawn": ["label"]}
    (store / "log" / "1.1.json").write_bytes(documents.seal(later))
    (store / "log" / "1.json").write_bytes(b"nonsense")
    done = repair(store, check(store))
    assert done.set_aside == ["log/1.1.json", "log/1.json"]
    assert done.blocks == 1
    assert (store / ASIDE / "1.json.0").read_bytes() == b"nonsense"
    assert again(store).encoded == 16
    assert everything(open_store(store)) == everything(open_store(original))
    (store / "log" / "1.json").write_bytes(b"more of it")
    repair(store, check(store))
    assert (store / ASIDE / "1.json.1").read_bytes() == b"more of it"
    assert (store / ASIDE / "1.json.0").read_bytes() == b"nonsense"


def test_what_is_no_record_leaves_the_log(store, original):
    (store / "log" / "notes.txt").write_text("do not lose me")
    done = repair(store, check(store))
    assert done.blocks == 0
    assert (store / ASIDE / "notes.txt.0").read_text() == "do not lose me"
    assert everything(open_store(store)) == everything(open_store(original))


def test_metadata_is_written_again(store, original):
    expected = {path: path.read_bytes() for path in store.rglob("zarr.json")}
    (store / "zarr.json").write_text("{")
    (store / "pooled" / "zarr.json").unlink()
    done = repair(store, check(store))
    assert sorted(done.rewritten) == ["pooled/zarr.json", "zarr.json"]
    assert done.blocks == 0
    assert {path: path.read_bytes() for path in store.rglob("zarr.json")} == expected
    assert check(store, "deep").findings == []


def test_an_array_whose_folder_is_gone(store, original, encoders):
    shutil.rmtree(store / "grid")
    done = repair(store, check(store))
    assert sorted(done.withdrawn) == [0, 1, 2]
    assert check(store).findings == []
    assert open_store(store).wanted_tiers == ("pooled", "grid", "dense")
    assert again(store).missing == 0
    assert everything(open_store(store)) == everything(open_store(original))


def test_metadata_whose_place_is_taken_by_a_folder(store):
    (store / "pooled" / "zarr.json").unlink()
    (store / "pooled" / "zarr.json").mkdir()
    with pytest.raises(DamageError, match=r"zarr\.json is a folder.*move it elsewhere"):
        repair(store, check(store))


def test_metadata_of_an_array_that_nothing_is_committed_of(store, original, encoders):
    """A repair that leaves a finding would do the same again and again."""
    for path in (store / "log").iterdir():
        path.unlink()
    (store / "pooled" / "zarr.json").unlink()
    assert [one.path for one in check(store).findings] == ["zarr.json"]
    assert repair(store, check(store)).rewritten == ["zarr.json"]
    assert check(store).findings == []
    assert again(store).encoded == ROWS
    assert check(store, "deep").findings == []
    assert everything(open_store(store)) == everything(open_store(original))


@pytest.mark.parametrize("name", [FILE, "rows/0.json"])
def test_what_everything_refers_to_cannot_be_repaired(store, name):
    (store / name).write_bytes(b"{}")
    with pytest.raises(DamageError, match="copy"):
        repair(store, check(store))


def test_nothing_is_done_to_a_whole_store(store):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.rglob("*")}
    done = repair(store, check(store))
    assert (done.rewritten, done.set_aside, done.withdrawn) == ([], [], {})
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.rglob("*")} == before


@pytest.mark.parametrize("seed", range(6))
def test_after_any_damage_a_repair_and_a_pass_give_the_same_rows(store, original, encoders, seed):
    """Several damages at once, but to the two lists that cannot be had again."""
    chance = random.Random(seed)
    files = [p for p in content(store) if p.name != FILE and p.parent.name != "rows"]
    for path in chance.sample(files, 4):
        if path.exists():
            others = [damage for damage in DAMAGES if damage.__name__ != "a_folder"]
            chance.choice(others)(path, chance)
    try:
        checked = check(store)
    except InputError:
        pytest.skip("it is no store any more")
    repair(store, checked)
    assert check(store).findings == []
    again(store)
    assert check(store, "deep").findings == []
    assert everything(open_store(store)) == everything(open_store(original))
