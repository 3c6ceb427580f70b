"""Records and the list of rows belong together: nobody takes one store's list for another's, nor makes a new one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from samtl.cli import app
from stubs import StubEncoders, contents, install, toy_dataset
from test_changes import content as rows_by_id
from test_changes import dataset
from typer.testing import CliRunner

import samtl
from samtl.embed.api import embed
from samtl.embed.plan import plan as plan_of
from samtl.embed.verify import verify
from samtl.errors import DamageError, InputError, SamtlError
from samtl.store import documents
from samtl.store.agreement import (
    label_sums,
    older_list,
    other_labels,
    other_samples,
)
from samtl.store.layout import array_specs, crc32c
from samtl.store.log import committed, read_log
from samtl.store.reader import open_store
from samtl.store.repair import repair
from samtl.store.rows import Rows, has_rows, read_rows
from samtl.store.verify import LEVELS, check
from samtl.store.writer import StoreWriter, locked

OPTIONS = {"out": "a.zarr", "device": "cpu", "dtype": "float32"}
STORE = Path("a.zarr")


@pytest.fixture(autouse=True)
def encoders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return install(StubEncoders(), monkeypatch.setattr)


def made(of, **options):
    return embed(of, "stub", **OPTIONS, **options)


def run(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, " ".join(result.output.split())


class TestListThatIsGone:
    @pytest.mark.parametrize("changed", [False, True], ids=["first", "changed"])
    @pytest.mark.parametrize(
        "now", [dataset(40), dataset(40, i3=None), dataset(41, i3=None), dataset(60)],
        ids=["same", "fewer", "other", "more"],
    )  # fmt: skip
    def test_no_pass_makes_another(self, changed, now):
        made(dataset(40))
        if changed:
            made(dataset(41, i3=33))
        for path in (STORE / "rows").iterdir():
            path.unlink()
        before = contents(STORE, hidden=False)
        for attempt in (plan_of, embed):
            with pytest.raises(DamageError, match=r"rows holds no list of rows.*from a copy"):
                attempt(now, "stub", **OPTIONS)
        assert contents(STORE, hidden=False) == before

    def test_nor_one_that_began_before_it_was_gone(self, monkeypatch):
        """The plan was made while the list was there, and the lock was waited for."""
        from samtl.store import writer

        made(dataset(40))
        hold = writer.locked

        def locked_late(path):
            (path / "rows" / "0.json").unlink()
            return hold(path)

        monkeypatch.setattr(writer, "locked", locked_late)
        with pytest.raises(DamageError, match="no list of rows"):
            made(dataset(40))
        assert list((STORE / "rows").iterdir()) == []

    def test_before_any_record_it_is_only_not_there_yet(self):
        asked = iter([False, True])
        embed(dataset(40), "stub", **OPTIONS, should_stop=lambda: next(asked, True))
        for path in (STORE / "log").iterdir():
            path.unlink()
        (STORE / "rows" / "0.json").unlink()
        assert not has_rows(STORE)
        assert made(dataset(40)).missing == 0

    def test_before_any_record_nothing_is_damaged(self, monkeypatch):
        """A pass was killed between the fingerprint and the list."""
        from samtl.store import writer

        with monkeypatch.context() as patch:
            patch.setattr(writer.documents, "seal", killed_after(1, writer.documents.seal))
            with pytest.raises(ZeroDivisionError):
                made(dataset(40))
        assert [path.name for path in STORE.glob("[!.]*")] == ["fingerprint.json"]
        code, output = run("verify", STORE)
        assert (code, "run samtl embed to go on" in output) == (1, True)
        with pytest.raises(InputError, match="no row is in it yet: run samtl embed again"):
            open_store(STORE)
        assert made(dataset(40)).missing == 0

    def test_verify_says_so_and_that_no_repair_helps(self):
        made(dataset(40))
        (STORE / "rows" / "0.json").unlink()
        code, output = run("verify", STORE)
        assert code == 2
        assert "it holds no list of rows any more" in output
        assert "--repair cannot help" in output
        before = contents(STORE, hidden=False)
        code, output = run("verify", STORE, "--repair", "--json", "found.json")
        assert code == 2
        assert "not repaired" in output
        assert '"refused": "' in Path("found.json").read_text()
        assert contents(STORE, hidden=False) == before


def test_a_store_without_its_fingerprint_is_not_taken_for_another_folder():
    made(dataset(40))
    (STORE / "fingerprint.json").unlink()
    with pytest.raises(DamageError, match=r"fingerprint\.json is missing.*from a copy"):
        made(dataset(40))
    assert check(STORE).findings[0].told == "it is not there"


def killed_after(calls, real):
    left = [calls]

    def call(*args):
        left[0] -= 1
        return real(*args) if left[0] >= 0 else 1 / 0

    return call


class TestListOfAnotherStore:
    @pytest.fixture
    def forged(self):
        """Give a store with as many rows, whose list is that of other samples."""
        made(dataset(40))
        embed(dataset(41, i3=None), "stub", **{**OPTIONS, "out": "b.zarr"})
        shutil.copy("b.zarr/rows/0.json", STORE / "rows" / "0.json")

    @pytest.mark.parametrize("level", LEVELS)
    def test_verify_tells(self, forged, level):
        (found,) = check(STORE, level).findings
        assert (found.what, found.path) == ("rows", "rows/0.json")
        assert "committed as other samples" in found.told
        with pytest.raises(SamtlError, match="copy"):
            _repair()

    def test_no_row_is_handed_out(self, forged):
        store = open_store(STORE)
        with pytest.raises(InputError, match="not in"):  # they are not those of this list either
            store.read("label")
        for array in {*store.arrays} - {"label"}:
            with pytest.raises(DamageError, match="committed as other samples"):
                store.read(array)

    @pytest.mark.parametrize("now", [dataset(40), dataset(41, i3=None), dataset(50)])
    def test_no_pass_goes_on(self, forged, now):
        before = contents(STORE, hidden=False)
        told = []
        with pytest.raises(DamageError, match="committed as other samples"):
            embed(now, "stub", **OPTIONS, on_event=told.append)
        assert told == []  # no image was read, no plan made
        assert contents(STORE, hidden=False) == before

    def test_nor_one_whose_plan_was_made_before(self, monkeypatch):
        from samtl.store import writer

        made(dataset(40))
        embed(dataset(41, i3=None), "stub", **{**OPTIONS, "out": "b.zarr"})
        hold = writer.locked

        def locked_late(path):
            shutil.copytree("b.zarr/log", path / "log", dirs_exist_ok=True)
            return hold(path)

        monkeypatch.setattr(writer, "locked", locked_late)
        with pytest.raises(DamageError, match="committed as other samples"):
            made(dataset(40))

    def test_records_of_another_store_stop_a_pass_before_it_writes(self):
        made(dataset(40))
        embed(dataset(36), "stub", **{**OPTIONS, "out": "b.zarr"})
        shutil.copy("b.zarr/log/2.json", STORE / "log" / "2.json")  # of 4 rows, and the block has 8
        before = contents(STORE, hidden=False)
        with pytest.raises(DamageError, match=r"log/2\.json: it has 4 rows"):
            made(dataset(40, labels={"i1": 0}))
        assert contents(STORE, hidden=False) == before


def _repair():
    from samtl.store.repair import repair

    with locked(STORE):
        repair(STORE, check(STORE))


class TestLabelsOfBeforeAChange:
    @pytest.fixture
    def killed(self, monkeypatch):
        """Give a store whose pass died between the new list and its labels."""
        made(dataset(40))
        with monkeypatch.context() as patch:
            patch.setattr(StoreWriter, "relabel", lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                made(self.NOW)

    NOW = dataset(40, labels={"i0": 1, "i1": -1})

    @pytest.mark.parametrize("level", LEVELS)
    def test_verify_calls_their_rows_missing(self, killed, level):
        found = check(STORE, level)
        blocks = {row // 16 for row, name in enumerate(open_store(STORE).sample_ids)
                  if name in ("i0", "i1")}  # fmt: skip
        assert found.findings == []
        assert (found.relabelled, found.missing) == (2, sum(min(16, 40 - 16 * b) for b in blocks))
        assert verify(STORE, level).exit_code == 1

    def test_verify_says_why(self, killed):
        code, output = run("verify", STORE)
        assert code == 1
        assert "2 of them with the label of before a change" in output

    def test_they_are_not_handed_out(self, killed):
        store = open_store(STORE)
        assert store.missing == check(STORE).missing
        row = store.sample_ids.index("i0")
        with pytest.raises(InputError, match=r"not in a\.zarr yet"):
            store.row("label", row)
        assert store.labels[row] == 1

    def test_the_next_pass_says_that_it_writes_them_and_does(self, killed):
        assert plan_of(self.NOW, "stub", **OPTIONS).relabelled == 2
        assert made(self.NOW).encoded == 0
        found = check(STORE, "deep")
        assert (found.findings, found.missing, found.relabelled) == ([], 0, 0)
        store = open_store(STORE)
        assert store.read("label").tolist() == store.labels.tolist()
        assert {name: label for name, (label, _, _) in rows_by_id().items()}["i1"] == -1

    def test_so_it_is_where_an_older_list_came_back(self):
        """The list of a store that was never changed is the same in all but its labels."""
        now = dataset(40, labels={"i0": 1})
        made(now)
        embed(dataset(40), "stub", **{**OPTIONS, "out": "b.zarr"})
        shutil.copy("b.zarr/rows/0.json", STORE / "rows" / "0.json")
        assert (check(STORE).relabelled, check(STORE).findings) == (1, [])
        result = made(dataset(40))
        assert (result.encoded, result.missing) == (0, 0)
        found = check(STORE, "deep")
        assert (found.relabelled, found.missing, found.findings) == (0, 0, [])
        store = open_store(STORE)
        assert store.read("label").tolist() == store.labels.tolist()

    def test_a_change_while_it_is_looked_at_is_none(self, monkeypatch):
        """The list is read, another process writes all labels anew, and then the log is read."""
        from samtl.store import reader
        from samtl.store import verify as verifying

        made(dataset(40))
        real, now = read_rows, []

        def read_late(path):
            listed = real(path)
            if now:
                made(now.pop())
            return listed

        for module in (reader, verifying):
            monkeypatch.setattr(module, "read_rows", read_late)
        now.append(self.NOW)
        found = check(STORE)
        assert (found.relabelled, found.missing, found.ok, now) == (0, 0, 40, [])
        now.append(dataset(40))
        store = open_store(STORE)
        assert (store.missing, now) == (0, [])
        assert store.read("label").tolist() == store.labels.tolist()

    def test_so_it_is_where_the_records_of_new_labels_are_lost(self):
        made(dataset(40))
        made(self.NOW)
        for path in (STORE / "log").glob("*.*.json"):
            path.unlink()
        assert check(STORE).relabelled == 2
        assert plan_of(self.NOW, "stub", **OPTIONS).relabelled == 2
        made(self.NOW)
        assert check(STORE, "deep").missing == 0


def test_sums_are_those_of_the_records():
    made(replace(toy_dataset(21), labels=(-1, *toy_dataset(21).labels[1:])))
    listed, state = read_rows(STORE), committed(read_log(STORE))
    specs = array_specs(64, {"pooled": [], "image_stats": []})
    assert label_sums(listed, specs["label"]).tolist() == [
        sum_ for block in (0, 1) for sum_ in state["label"][block].files["label"].crc32c
    ]
    assert crc32c(b"\xff\xff\xff\xff") in label_sums(listed, specs["label"])
    assert other_labels(listed, specs["label"], state["label"]) == {}
    assert other_samples(listed, specs["sample_id"], state["sample_id"]) == []
    others = replace(
        listed, labels=(*listed.labels[:20], 1 - listed.labels[20] % 2), sample_ids=("x", *listed.sample_ids[1:])
    )  # fmt: skip
    assert other_labels(others, specs["label"], state["label"]) == {1: (20,)}
    assert other_samples(others, specs["sample_id"], state["sample_id"]) == [0]


def test_a_list_that_is_too_short_is_for_others_to_tell():
    made(dataset(40))
    short = Rows("toy", ("even", "odd"), ("i0",), (0,))
    state = committed(read_log(STORE))
    specs = array_specs(64, {"pooled": [], "image_stats": []})
    assert other_labels(short, specs["label"], state["label"]) == {}
    (STORE / "rows" / "0.json").write_bytes(documents.seal(short.to_dict()))
    assert "record" in {one.what for one in check(STORE).findings}
    with pytest.raises(DamageError):
        samtl.open(STORE)


def test_an_older_list_of_rows_is_refused():
    """Rows would count again that do not."""
    made(dataset())
    made(dataset(i7=None))
    older = (STORE / "rows" / "1.json").read_bytes()
    result = made(dataset(i7=None, i8=None))
    newer = STORE / "rows" / "2.json"
    kept = newer.rename(newer.with_name("kept"))
    newer.with_name("1.json").write_bytes(older)
    told = "older than what is committed"
    (finding,) = [one for one in check(result.store).findings if one.what == "rows"]
    assert told in finding.told
    verified = verify(result.store, repair_it=True)
    assert (verified.exit_code, verified.repaired) == (2, None)
    assert "from a copy of the store" in verified.refused
    with pytest.raises(DamageError, match=told):
        open_store(STORE)
    with pytest.raises(DamageError, match=told):
        made(dataset(i7=None, i8=None))
    kept.rename(newer)
    newer.with_name("1.json").unlink()
    assert verify(result.store).exit_code == 0
    assert len(open_store(STORE)) == 18


def test_a_generation_alone_tells_nothing():
    """It may be a digit that is damaged: then the metadata is, and can be written anew."""
    made(dataset())
    path = made(dataset(i7=None)).store / "zarr.json"
    content = json.loads(path.read_bytes())
    content["attributes"]["samtl"]["generation"] = 3
    path.write_text(json.dumps(content))
    assert [one.what for one in check(STORE).findings] == ["metadata"]
    assert verify(STORE, repair_it=True).repaired.rewritten == ["zarr.json"]
    for odd in (None, [], "3", {"attributes": {"samtl": {"generation": True, "superseded": []}}}):
        path.write_text(json.dumps(odd))
        assert older_list(STORE, read_rows(STORE)) == ""
        assert len(open_store(STORE)) == 19


def test_rows_of_two_images_are_found(monkeypatch):
    """No pass commits them; what mixes copies of a store may."""
    store = made(dataset(), tiers=["pooled"]).store
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "earlier_image", lambda self, row: "")
        made(dataset(i4=44), tiers=["grid"], check_images=False)
    row = open_store(store).sample_ids.index("i4")
    for level in ("quick", "rows", "deep"):
        (finding,) = check(store, level).findings
        assert (finding.what, finding.array, finding.damaged_rows) == ("row", "grid", (row,))
    with locked(store):
        assert repair(store, check(store)).withdrawn == {row // 16: ["grid"]}
    made(dataset(i4=44), tiers=["grid"], check_images=False)
    assert check(store).findings == []
    assert not open_store(store).valid("grid")[row]
