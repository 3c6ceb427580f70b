"""A store without one of its safety steps is not one that passes the tests: each is taken out, and a test must fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ALL = bool(os.environ.get("SAMTL_TORTURE"))
ROOT = Path(__file__).parent.parent
# What is taken out of a file, with what stands in its place; by default a condition is never true, a line does nothing.
MUTANTS = {
    "_io.py": [
        "os.fsync(file.fileno())",
        ("find it.\n        sync_folder(path.parent)", "find it."),
        ("find it.\n        sync_folder(path.parent)", "find it.\n    sync_folder(path.parent)"),  # of a taken name
        ("path.mkdir(exist_ok=True)\n        sync_folder(path.parent)", "path.mkdir(exist_ok=True)"),
        ("pieces, os.link)", "pieces, os.replace)"),
        ('temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"\n', "temporary = path\n"),
        "if hashlib.sha256(rest).hexdigest() != checksum:",
    ],
    "store/storage/__init__.py": [
        ('self.create(name, [b"2"])\n                raise', "return\n                raise"),
    ],
    "store/log.py": [
        ("(record.block, record.sequence) != (block, sequence)", "False"),
        ("or record.fingerprint != identity.sha256", "or False"),
        "if record.sequence != self.next(block):",
    ],
    "store/samples.py": [
        ("if about.store_id != identity.store_id or", "if False and"),
        ("if hashlib.sha256(blank).hexdigest() != about.digest or", "if"),
    ],
    "store/state.py": [
        "if told > table.about.number:",
        ("    told = read_root(storage).table\n", "    told = 0\n"),
    ],
    "store/format.py": [
        "if shard[stop : stop + 4] != packed(found[-1]):",
        ("shard[start:] == end", "True"),
    ],
    "store/writer.py": [
        "if shard[:KEY_BYTES] != key:",
        "if expected is not None and found != expected:",
        "if damaged or not whole:",
        ("require_same(state.identity, identity.fingerprint, storage.url)\n    storage", "pass\n    storage"),
        "storage.probe()\n",
        "storage.settle(log.LOG)\n",
        "storage.settle(log.LOG, samples.FOLDER)\n",
    ],
    "store/reader/shards.py": [
        ("if np.array_equal(sums, state.crc32c[places]):", "if True:"),
        "if len(shard) != size:",
        ("for anew in (False, True):", "for anew in (False,):"),
    ],
    "store/verify.py": [
        ("at in wrong or sums[at] != array.crc32c[r]", "False"),
        "if not whole:",
        "if data[:KEY_BYTES] != self.keys[spec.name, block]:",
        ('if self.level == "deep" and hashlib', "if False and hashlib"),
        "if found.findings and _listed(storage) != before:",
    ],
    "store/maintenance.py": ["if one.what in LISTS:", (".get(name) == FOLDER:", ".get(name) == -2:")],
    "store/storage/object_store.py": [
        ("name, content, mode=mode, use", 'name, content, mode="overwrite", use'),
        ("if self.read(name) == content:", "if False:"),  # an answer that was lost
        ('raise FileExistsError(f"{self.url}/{name} exists")', "return"),
        'require_size(f"{self.url}/{name}", found.meta["size"], most)',
        ('b"" if anew else cache.get(', "cache.get("),
    ],
}  # fmt: skip
CASES = [
    (file, *(one if isinstance(one, tuple) else (one, "if False:" if one[:3] == "if " else "pass\n")))
    for file, steps in MUTANTS.items()
    for one in steps
]  # fmt: skip


@pytest.mark.parametrize(("file", "code", "instead"), CASES, ids=lambda text: text[:50])
def test_each_step_is_where_it_is_looked_for(file, code, instead):
    assert (ROOT / "samtl" / file).read_text().count(code) == 1


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="make torture takes every step out")
@pytest.mark.parametrize(
    ("file", "code", "instead"), [("_io.py", "", ""), *CASES], ids=lambda text: text[:50]
)
def test_a_test_of_the_store_fails_without(tmp_path, file, code, instead):
    """And none fails of a whole copy, or the others might fail for another reason."""
    parts = ("samtl", "cli", "recipes", "benchmarks", "tests", "pyproject.toml")
    subprocess.run(["cp", "-r", *(ROOT / part for part in parts), tmp_path], check=True)
    path = tmp_path / "samtl" / file
    path.write_text(path.read_text().replace(code, instead))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         "tests/test_io.py", *tmp_path.glob("tests/test_store_*.py")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{tmp_path / 'tests'}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == bool(code), done.stdout[-2000:]
    assert "failed" in done.stdout or not code
