"""Loaders given documents that somebody else wrote, led by what the code does with them; run as a program by atheris.

`python fuzzing.py TARGET FOLDER RUNS [options of libFuzzer]`: the folder is that of a store or a saved head, and is
changed. Whatever a document says, nothing but `SamtlError` may come; anything else ends the program with another code
than 0.
"""

import itertools
import json
import os
import random
import sys
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["samtl.store", "samtl.heads"]):
    from samtl.heads.io import load
    from samtl.store.format import KEY_BYTES
    from samtl.store.reader import open_store
    from samtl.store.state import load_state
    from samtl.store.storage import open_storage
    from samtl.store.verify import check

from test_torture_fuzz import damaged, mutated, sealed

from samtl._io import crc32c
from samtl.errors import DamageError, SamtlError


def state(folder):
    """What the store is."""
    return load_state(open_storage(folder))


def metadata(folder):
    """What plain Zarr readers would be shown."""
    check(folder, "quick")
    open_store(folder).zarr()


ROWS = {}  # filled while the shard is whole


def rows(folder):
    """Every row of a block, each time anew: what was committed, or a message."""
    store = open_store(folder)
    for row in range(16):
        found = None
        with suppress(DamageError):
            found = store.row("pooled", row).tobytes()
        assert found is None or found == ROWS.setdefault(row, found), row


# What is changed, and what is done with it.
TARGETS = {
    "identity": ("fingerprint.json", state),
    "table": ("samples/000001.parquet", state),
    "record": ("log/1.0.json", state),
    "group": ("zarr.json", metadata),
    "array": ("pooled/zarr.json", metadata),
    "shard": ("pooled/c.0.0", rows),
    "head": ("head.json", load),
    "tensors": ("head.safetensors", load),
}


def main():
    target, folder, runs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    done = itertools.count(1)
    name, use = TARGETS[target]
    path = folder / name
    raw = path.read_bytes()

    def close(data):
        """Give a document a checksum that fits; a shard the size that was committed, and its first row a checksum."""
        if target in ("identity", "record"):
            with suppress(ValueError, RecursionError):
                return sealed(json.loads(data))
        if target == "shard":
            data, stop = data[: len(raw)].ljust(len(raw), b"\0"), KEY_BYTES + 20
            crc = crc32c(data[KEY_BYTES:stop]).to_bytes(4, "little")
            return data[:stop] + crc + data[stop + 4 :]
        return bytes(data)

    def one(data):
        path.write_bytes(close(data))
        with suppress(SamtlError):
            use(folder)
            os.write(taken, b".")
        if next(done) == runs:
            # libFuzzer would call exit(), which waits for a thread of pyarrow that waits for the interpreter.
            os.write(sys.stderr.fileno(), f"Done {runs} runs".encode())
            os._exit(0)

    def changed(data, most, seed):
        chance = random.Random(seed)
        way = chance.randrange(4)
        if way == 0 and name.endswith(".json"):
            with suppress(ValueError, RecursionError):
                return json.dumps(mutated(json.loads(data or raw), chance)).encode()[:most]
        if way == 1 and data:
            return damaged(data, chance)[:most]
        return atheris.Mutate(data or raw, most)

    use(folder)  # as it is, it is whole
    taken = os.open(folder.parent / "taken", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    corpus = folder.parent / "corpus"
    corpus.mkdir()
    (corpus / "whole").write_bytes(raw)
    options = [sys.argv[0], f"-max_len={2 * len(raw)}", "-timeout=10", *sys.argv[4:], str(corpus)]
    atheris.Setup(options, one, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
