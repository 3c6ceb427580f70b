"""Documents changed by chance, and loaders that are given them, led by what the code does; run as a program by atheris.

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

from samtl._io import crc32c, digest, seal
from samtl.errors import DamageError, SamtlError

ODD = (
    None, True, False, 0, 1, -1, 15, 16, 17, 2**31, 2**63, 2**70, -(2**40), 1.5, 1e300, "", "x", "0", "-1", "ok",
    "quarantined:", "quarantined:empty", "pooled", "label", "../../../etc/passwd", "/", "\0", "c" * 5000, "\ud800",
    [], {}, [[]], [None], [0], ["x"], [1] * 16, {"x": 1}, {"": []}, [{"name": "x"}],
)  # fmt: skip


def places(content, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*path, key))


def odd(chance):
    return json.loads(json.dumps(chance.choice(ODD)))


def mutated(content, chance):
    """A copy with something else in one to three places."""
    content = json.loads(json.dumps(content))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        path = chance.choice(list(places(content)))
        if not path:
            return odd(chance)
        inner, key, what = content, path[-1], chance.randrange(5)
        for outer in path[:-1]:
            inner = inner[outer]
        if what == 0:
            del inner[key]
        elif what == 1 and isinstance(inner, list):
            inner.insert(key, inner[key])
        elif what == 2 and isinstance(inner[key], int):
            inner[key] += chance.choice((-1, 1, 16, -16, 256))
        elif what == 3 and isinstance(inner, dict):
            inner[f"{key}x"] = inner.pop(key)
        else:
            inner[key] = odd(chance)
    return content


def sealed(content):
    """With a checksum that fits, and an identity's digest, if that can be."""
    if not isinstance(content, dict):
        return json.dumps(content).encode()
    content.pop("checksum", None)
    try:
        if "sha256" in content:
            content["sha256"] = digest(content.get("fingerprint"))
        return seal(content)
    except (ValueError, RecursionError):  # a lone surrogate, say, is no UTF-8
        return json.dumps(content).encode()


def damaged(raw, chance):
    """Bytes of a file with some changed, some cut, some doubled."""
    data = bytearray(raw)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(4)
        if what == 0 and at < len(data):
            data[at] = chance.randrange(256)
        elif what == 1:
            del data[at : at + chance.randrange(1, 50)]
        elif what == 2:
            data[at:at] = data[at : at + chance.randrange(1, 50)]
        else:
            data[at:at] = chance.choice((b"[", b"{", b'"', b"\0", b"1e999", b"NaN", b"\xff"))
    return bytes(data)


FILES = {
    "identity": "fingerprint.json",
    "table": "samples/000001.parquet",
    "record": "log/1.0.json",
    "group": "zarr.json",
    "array": "pooled/zarr.json",
    "shard": "pooled/c.0.0",
    "head": "head.json",
    "tensors": "head.safetensors",
}


def uses():
    """What is done with each file, imported now, so that atheris sees what happens in there."""
    from samtl.store.reader import open_store
    from samtl.store.state import load_state
    from samtl.store.storage import open_storage
    from samtl.store.verify import check

    committed = {}  # filled while the shard is whole

    def state(folder):
        load_state(open_storage(folder))

    def metadata(folder):
        """What plain Zarr readers would be shown."""
        check(folder, "quick")
        open_store(folder).zarr()

    def rows(folder):
        """Every row of a block, each time anew: what was committed, or a message."""
        store = open_store(folder)
        for row in range(16):
            found = None
            with suppress(DamageError):
                found = store.row("pooled", row).tobytes()
            assert found is None or found == committed.setdefault(row, found), row

    def head(folder):
        from samtl.heads.io import load

        load(folder)

    return dict(
        zip(FILES, (state, state, state, metadata, metadata, rows, head, head), strict=True)
    )


def main():
    import atheris

    target, folder, runs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    done = itertools.count(1)
    name = FILES[target]
    path = folder / name
    raw = path.read_bytes()
    with atheris.instrument_imports(include=["samtl.store", "samtl.heads"]):
        use = uses()[target]
        use(folder)  # as it is, it is whole

    def close(data):
        """Give a document a checksum that fits; a shard the size that was committed, and its first row a checksum."""
        if target in ("identity", "record"):
            with suppress(ValueError, RecursionError):
                return sealed(json.loads(data))
        if target == "shard":
            from samtl.store.format import KEY_BYTES

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

    taken = os.open(folder.parent / "taken", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    corpus = folder.parent / "corpus"
    corpus.mkdir()
    (corpus / "whole").write_bytes(raw)
    options = [sys.argv[0], f"-max_len={2 * len(raw)}", "-timeout=10", *sys.argv[4:], str(corpus)]
    atheris.Setup(options, one, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
