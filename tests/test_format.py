"""FORMAT.md says enough: a reader written from the page alone, without samtl, reads every row and refuses damage."""

import hashlib
import json
import re
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
from made import SPECS, make, relisted

from samtl.store.reader import open_store

PAGE = Path(__file__).parent.parent / "FORMAT.md"
ARRAYS = ("dense", "grid", "pooled", "image_stats", "original_size", "mask")


@pytest.fixture
def store(tmp_path):
    path = make(tmp_path / "a.zarr", arrays=("pooled", "mask"), bad=(5, 20))
    return make(path, arrays=ARRAYS, bad=(5, 20))  # the others, by records of their own


def canonical(content):
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def unsealed(path):
    content = json.loads(path.read_bytes())
    checksum = content.pop("checksum")
    if hashlib.sha256(canonical(content)).hexdigest() != checksum:
        raise ValueError(f"{path.name} is damaged")
    return content, checksum


class Reader:
    """By the page."""

    def __init__(self, store):
        self.store = store
        self.identity, _ = unsealed(store / "fingerprint.json")
        if self.identity["fingerprint"]["format"] != 2:
            raise ValueError("another format")
        names = (
            re.fullmatch(r"(\d+)\.(\d+)\.json", path.name) for path in (store / "log").iterdir()
        )
        places = sorted((int(name[1]), int(name[2])) for name in names if name)
        newest = max((store / "samples").glob("*.parquet"))
        table, raw = pq.read_table(newest), newest.read_bytes()
        about = json.loads(table.schema.metadata[b"samtl"])
        found = hashlib.sha256(raw.replace(about["digest"].encode(), 64 * b"0")).hexdigest()
        if found != about["digest"] or about["store_id"] != self.identity["store_id"]:
            raise ValueError("damaged")
        self.table, self.committed, checksums = table.to_pylist(), {}, []
        for block, sequence in places:
            record, checksum = unsealed(store / f"log/{block}.{sequence}.json")
            if record["fingerprint"] != self.identity["sha256"]:
                raise ValueError("another store's")
            if sequence and (block, sequence - 1) not in places:
                raise ValueError("a record is missing")
            checksums.append(checksum)
            self.committed.update({(array, block): record for array in record["arrays"]})
        text = "".join(sorted(checksums)) + about["digest"]
        self.snapshot = hashlib.sha256(text.encode()).hexdigest()

    def row(self, array, row):
        size = self.identity["block_rows"]
        block, position = divmod(row, size)
        record, spec = self.committed[array, block], self.identity["arrays"][array]
        if record["status"][position] != "ok":
            return None
        shard, dtype = record["arrays"][array], np.dtype(spec["dtype"]).newbyteorder("<")
        name = ".".join([f"{array}/c", str(block), *"0" * len(spec["row_shape"])])
        data = (self.store / name).read_bytes()
        length = int(np.prod(spec["row_shape"])) * dtype.itemsize
        start = 32 + position * (length + 4)
        found = data[start : start + length]
        if len(data) != shard["size"] or google_crc32c.value(found) != shard["crc32c"][position]:
            raise ValueError("damaged")
        # Not needed to read a row, and on the page.
        assert int.from_bytes(data[start + length :][:4], "little") == shard["crc32c"][position]
        index = data[-16 * size - 4 : -4]
        assert struct.unpack_from("<QQ", index, 16 * position) == (start, length + 4)
        assert google_crc32c.value(index) == int.from_bytes(data[-4:], "little")
        names = ["fingerprint", "block", "status", "image_sha256"]
        key = {name: record[name] for name in [*names, *["mask_sha256"] * (array == "mask")]}
        assert data[:32] == hashlib.sha256(canonical(key)).digest()
        return np.frombuffer(found, dtype).reshape(spec["row_shape"])


def agree(store):
    theirs, ours = Reader(store), open_store(store)
    lines = [(line["sample"], line["label"]) for line in theirs.table]
    assert lines == list(zip(ours.sample_ids, ours.labels.tolist(), strict=True))
    assert theirs.snapshot == ours.snapshot
    assert {array for array, _ in theirs.committed} == set(ours.arrays) == set(ARRAYS)
    valid = ours.valid()
    assert 0 < valid.sum() < len(ours)
    for array in ARRAYS:
        for at, line in enumerate(theirs.table):
            found = theirs.row(array, line["row"])
            assert (found is not None) == valid[at]
            if found is not None:
                np.testing.assert_array_equal(found, ours.row(array, at))
                assert line["image_sha256"].hex() == ours.image_sha256(at)
    image = theirs.committed["pooled", 0]["image_sha256"][7]
    name = hashlib.sha256((theirs.identity["sha256"] + image).encode()).hexdigest()
    assert name == ours.key(ours.sample_ids.index("i7"))


def test_a_reader_of_the_page_reads_every_row(store):
    agree(store)
    agree(relisted(store, keep=range(4, 38)))


def test_what_it_must_refuse(store):
    shard, record = store / "pooled" / "c.0.0", store / "log" / "1.0.json"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(ValueError, match="damaged"):
        Reader(store).row("pooled", 0)
    record.write_bytes(record.read_bytes().replace(b'"ok"', b'"no"', 1))
    with pytest.raises(ValueError, match="damaged"):
        Reader(store)


def test_the_page_names_every_array_and_field(store):
    page = PAGE.read_text()
    for name, spec in SPECS.items():
        assert re.search(rf"^\| `{name}` \| .* \| {spec.dtype} \| {spec.fill} \|", page, re.M), name
    told = set(re.findall(r"`([a-z_0-9]+)`", page))
    identity, record = (unsealed(store / path)[0] for path in ("fingerprint.json", "log/0.0.json"))
    table = pq.read_table(store / "samples" / "000000.parquet")
    about = json.loads(table.schema.metadata[b"samtl"])
    coordinates = json.loads((store / "zarr.json").read_bytes())["attributes"]["coordinates"]
    for names in (
        identity, identity["fingerprint"], identity["arrays"]["pooled"], record, about,
        table.column_names, coordinates.split(),
    ):  # fmt: skip
        assert set(names) <= told
