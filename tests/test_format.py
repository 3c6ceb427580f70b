"""FORMAT.md says enough: a reader written from the page alone, without samtl, reads every row and refuses damage."""

import hashlib
import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from samtl.store.layout import array_specs
from stubs import StubEncoders, install, toy_dataset
from stubs import png as stubs_png

from samtl.embed.api import embed
from samtl.store.reader import open_store

PAGE = Path(__file__).parent.parent / "FORMAT.md"
DTYPES = {"dense": "<f2", "grid": "<f2", "pooled": "<f4", "image_stats": "<f4", "original_size": "<i4",
          "mask": "u1", "label": "<i4"}  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch):
    install(StubEncoders(), monkeypatch.setattr)
    dataset = toy_dataset(37, bad={5: "truncated", 20: "empty"})
    path = embed(dataset, "stub", out=tmp_path / "a.zarr", device="cpu", tiers=["pooled"]).store
    embed(dataset, "stub", out=path, device="cpu")  # the other tiers, by records of their own
    return path


def unsealed(path):
    content = json.loads(path.read_bytes())
    checksum = content.pop("checksum")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise ValueError(f"{path.name} is damaged")
    return content, checksum


class Reader:
    """By the page's last section."""

    def __init__(self, store):
        self.store = store
        identity, _ = unsealed(store / "fingerprint.json")
        if identity["fingerprint"]["format"] != 1:
            raise ValueError("another format")
        self.identity = identity
        newest = max(int(path.stem) for path in (store / "rows").glob("[0-9]*.json"))
        self.rows, list_checksum = unsealed(store / "rows" / f"{newest}.json")
        self.n = len(self.rows["sample_ids"])
        spans = self.rows.get("spans", [[0, self.n]])
        gone = self.rows.get("superseded", [])
        self.current = [row for span in spans for row in range(*span) if row not in gone]
        side = identity["fingerprint"]["image_size"] // 16
        cells = min(16, side)
        self.shapes = {
            "dense": (256, side, side), "grid": (256, cells, cells),
            "pooled": (len(identity["columns"]["pooled"]),), "image_stats": (12,), "original_size": (2,),
            "mask": (16 * side, 16 * side), "label": (), "sample_id": (),
        }  # fmt: skip
        places = []
        for path in (store / "log").iterdir():
            match = re.fullmatch(r"(\d+)(?:\.(\d+))?\.json", path.name)
            if match:
                places.append((int(match[1]), int(match[2] or 0), path))
        self.committed = {}
        checksums = []
        for block, _, path in sorted(places):
            record, checksum = unsealed(path)
            if record["fingerprint"] != identity["sha256"]:
                raise ValueError("another store's")
            first = record["first_row"]
            stop = next(stop for start, stop in spans if start <= first < stop)
            if len(record["status"]) != min(16, stop - first):
                raise ValueError("another number of rows")
            checksums.append(checksum)
            for array in record["withdrawn"]:
                self.committed.pop((array, block), None)
            for array in record["files"]:
                self.committed[array, block] = record
        text = "".join(sorted(checksums)) + (list_checksum if newest else "")
        self.snapshot = hashlib.sha256(text.encode()).hexdigest()

    def row(self, array, row):
        block, position = divmod(row, 16)
        if ("sample_id", block) in self.committed:
            name = self.rows["sample_ids"][row].encode()
            framed = struct.pack("<II", 1, len(name)) + name
            of_block = self.committed["sample_id", block]["files"]["sample_id"]["crc32c"]
            if google_crc32c.value(framed) != of_block[position]:
                raise ValueError("another store's list")
        record = self.committed[array, block]
        if record["status"][position] != "ok":
            return None
        file = record["files"][array]
        data = (self.store / file["path"]).read_bytes()
        index, checksum = data[-260:-4], data[-4:]
        if len(data) != file["size"] or google_crc32c.value(index) != int.from_bytes(
            checksum, "little"
        ):
            raise ValueError("damaged")
        offset, length = struct.unpack_from("<QQ", index, 16 * position)
        found, trailer = (
            data[offset : offset + length - 4],
            data[offset + length - 4 : offset + length],
        )
        expected = file["crc32c"][position]
        if google_crc32c.value(found) != expected or int.from_bytes(trailer, "little") != expected:
            raise ValueError("damaged")
        if array == "sample_id":
            one, size = struct.unpack_from("<II", found)
            assert (one, size) == (1, len(found) - 8)
            return found[8:].decode()
        return np.frombuffer(found, DTYPES[array]).reshape(self.shapes[array])


def test_a_reader_of_the_page_reads_every_row(store):
    theirs, ours = Reader(store), open_store(store)
    assert theirs.snapshot == ours.snapshot
    assert theirs.n == len(ours)
    assert {array for array, _ in theirs.committed} == set(ours.arrays)
    valid = ours.valid()
    assert 0 < valid.sum() < len(ours)
    for array in ours.arrays:
        rows = ours.read(array)
        for row in range(len(ours)):
            found = theirs.row(array, row)
            assert (found is not None) == valid[row]
            if found is not None:
                np.testing.assert_array_equal(found, rows[row])
    row = 7
    image = theirs.committed["label", 0]["image_sha256"][row]
    name = hashlib.sha256((theirs.identity["sha256"] + image).encode()).hexdigest()
    assert name == ours.key(row)


def test_after_a_change_it_reads_the_rows_that_count(store, monkeypatch):
    now = toy_dataset(41, bad={5: "truncated", 7: stubs_png(999)})
    labels = (2, *now.labels[1:])
    embed(replace(now, labels=labels), "stub", out=store, device="cpu")
    theirs, ours = Reader(store), open_store(store)
    assert theirs.snapshot == ours.snapshot
    assert [theirs.rows["sample_ids"][row] for row in theirs.current] == list(ours.sample_ids)
    assert len(theirs.current) == 41 < theirs.n
    for array in ours.arrays:
        rows = ours.read(array)
        for row, place in enumerate(theirs.current):
            found = theirs.row(array, place)
            assert (found is None) == (ours.sample_ids[row] in {now.sample_ids[5]})
            if found is not None:
                np.testing.assert_array_equal(found, rows[row])
    place = theirs.current[ours.sample_ids.index(now.sample_ids[0])]
    assert theirs.row("label", place) == 2


def test_what_it_must_refuse(store):
    shard = store / "pooled" / "c.0.0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        Reader(store).row("pooled", 0)
    record = store / "log" / "1.json"
    record.write_bytes(record.read_bytes().replace(b'"ok"', b'"no"', 1))
    with pytest.raises(ValueError, match="damaged"):
        Reader(store)


def test_a_list_of_other_rows_is_refused(store):
    path = store / "rows" / "0.json"
    content, _ = unsealed(path)
    content["sample_ids"][:2] = reversed(content["sample_ids"][:2])
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({**content, "checksum": checksum}))
    for row in (0, 1):
        with pytest.raises(ValueError, match="another store's list"):
            Reader(store).row("pooled", row)
    assert Reader(store).row("pooled", 2) is not None


def test_the_page_names_every_array_and_field(store):
    page = PAGE.read_text()
    specs = array_specs(4, {"pooled": ["a"], "image_stats": ["b"]})
    for name, spec in specs.items():
        assert re.search(rf"^\| `{name}` \| .* \| {spec.dtype} \|", page, re.MULTILINE), name
    told = set(re.findall(r"`([a-z_0-9]+)`", page))
    now = toy_dataset(41, bad={5: "truncated", 20: "empty"})
    for path in ("fingerprint.json", "rows/0.json", "log/0.json", "rows/1.json"):
        if path == "rows/1.json":
            embed(now, "stub", out=store, device="cpu")
        content, _ = unsealed(store / path)
        assert set(content) <= told, path
    identity, _ = unsealed(store / "fingerprint.json")
    assert set(identity["fingerprint"]) <= told
