"""A store without one of its safety steps is not one that passes the tests: each is taken out, and a test must fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL = bool(os.environ.get("SAMTL_TORTURE"))
TESTS = (
    "io",
    "store_storage",
    "store_object_store",
    "store_samples",
    "store_format",
    "store_log",
    "store_writer",
    "store_reader",
    "store_verify",
    "store_maintenance",
)

# What is taken out: the file, the code, and what stands in its place.
MUTANTS = {
    "sync of the bytes": ("_io.py", "os.fsync(file.fileno())", "pass"),
    "sync of the name": (
        "_io.py", "unlink(missing_ok=True)\n    sync_folder(path.parent)", "unlink(missing_ok=True)",
    ),
    "sync of a replaced name": (
        "_io.py", "        raise\n    sync_folder(path.parent)\n", "        raise\n",
    ),
    "sync of a new folder": (
        "_io.py", "path.mkdir(exist_ok=True)\n        sync_folder(path.parent)", "path.mkdir(exist_ok=True)",
    ),
    "a name is given once": (
        "_io.py", "os.link(temporary, path)", "path.unlink(missing_ok=True); os.link(temporary, path)",
    ),
    "a temporary name first": (
        "_io.py", 'temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"\n', "temporary = path\n",
    ),
    "checksum of a document": (
        "_io.py", 'if hashlib.sha256(rest).hexdigest() != checksum:', "if False:",
    ),
    "sync of another writer's name": (
        "store/storage.py", "_io.sync_folder(path.parent)\n                raise", "raise",
    ),
    "a disk that overwrites": (
        "store/storage.py", 'self.create(name, [b"2"])\n                raise', "return\n                raise",
    ),
    "place of a record": (
        "store/log.py", "(record.block, record.sequence) != (block, sequence)", "False",
    ),
    "record of another store": ("store/log.py", "or record.fingerprint != identity.sha256", "or False"),
    "no record is missing": ("store/log.py", "if record.sequence != self.next(block):", "if False:"),
    "table of another store": ("store/samples.py", "if about.store_id != identity.store_id or", "if False and"),
    "digest of a table": ("store/samples.py", "if hashlib.sha256(blank).hexdigest() != about.digest or", "if"),
    "an older table": ("store/state.py", "if told > table.about.number:", "if False:"),
    "the metadata is read first": (
        "store/state.py", "    told = read_root(storage).table\n", "    told = 0\n",
    ),
    "key of a shard": ("store/writer.py", "if shard[:KEY_BYTES] != key:", "if False:"),
    "what the disk gives back": ("store/writer.py", "if expected is not None and found != expected:", "if False:"),
    "rows of a shard that was there": (
        "store/format.py", "if shard[stop : stop + 4] != packed(found[-1]):", "if False:",
    ),
    "index of a shard that was there": (
        "store/format.py", "shard[size - len(end) :] == end", "True",
    ),
    "size of a shard that was there": ("store/format.py", "len(shard) == size and", ""),
    "a shard that was there": ("store/writer.py", "if damaged or not whole:", "if False:"),
    "another fingerprint": (
        "store/writer.py",
        "require_same(state.identity, identity.fingerprint, storage.url)\n    storage",
        "pass\n    storage",
    ),
    "a place that cannot create": ("store/writer.py", "    storage.probe()\n", ""),
    "checksum of a row": (
        "store/reader.py", "if np.array_equal(sums, state.crc32c[places]):", "if True:",
    ),
    "size of a shard": ("store/reader.py", "if len(shard) != size:", "if False:"),
    "rows that are kept wrongly": ("store/reader.py", "for anew in (False, True):", "for anew in (False,):"),
    "checksum of a row, verified": (
        "store/verify.py", "at in wrong or sums[at] != array.crc32c[r]", "False",
    ),
    "index of a shard, verified": (
        "store/verify.py", "        if not whole:", "        if False:",
    ),
    "key of a shard, verified": ("store/verify.py", "if data[:KEY_BYTES] != self.keys[spec.name, block]:", "if False:"),
    "sha256 of a shard, verified": (
        "store/verify.py", 'if self.level == "deep" and hashlib', "if False and hashlib",
    ),
    "a pass that writes meanwhile": (
        "store/verify.py", "if found.findings and _listed(storage) != before:", "if False:",
    ),
    "a repair of the lists": ("store/maintenance.py", "if one.what in LISTS:", "if False:"),
    "somebody's folder": ("store/maintenance.py", ".get(name) == IS_FOLDER:", ".get(name) == -2:"),
    "an object is created once": (
        "store/object_store.py", "name, content, mode=mode, use", 'name, content, mode="overwrite", use',
    ),
    "an answer that was lost": ("store/object_store.py", "if self.read(name) == content:", "if False:"),
    "an object of another": (
        "store/object_store.py", 'raise FileExistsError(f"{self.url}/{name} exists")', "return",
    ),
    "size of an object": ("store/object_store.py", 'if found.meta["size"] <= most:', "if True:"),
    "what is kept wrongly": (
        "store/object_store.py", 'b"" if anew else cache.get(', "cache.get(",
    ),
}  # fmt: skip


def with_mutant(folder, name):
    """Copy the package and its tests, one step taken out, or none."""
    for part in ("samtl", "cli", "recipes", "benchmarks", "tests", "pyproject.toml"):
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / part)
    if name is None:
        return folder
    file, code, instead = MUTANTS[name]
    path = folder / "samtl" / file
    text = path.read_text()
    assert text.count(code) == 1, f"{file} has changed: {code!r} is there {text.count(code)} times"
    path.write_text(text.replace(code, instead))
    return folder


@pytest.mark.parametrize("name", MUTANTS)
def test_each_step_is_where_it_is_looked_for(name):
    file, code, _ = MUTANTS[name]
    assert (ROOT / "samtl" / file).read_text().count(code) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_test_fails_without(name, tmp_path):
    if not ALL:
        pytest.skip("make torture takes every step out")
    done = run_tests_of(with_mutant(tmp_path, name))
    assert done.returncode == 1, done.stdout[-2000:]
    assert "failed" in done.stdout


@pytest.mark.slow
def test_with_all_of_them_none_fails(tmp_path):
    """Or those above might fail for another reason."""
    if not ALL:
        pytest.skip("make test has run these tests")
    done = run_tests_of(with_mutant(tmp_path, None))
    assert done.returncode == 0, done.stdout[-2000:]


def run_tests_of(folder):
    """Run the store's tests on a copy."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         *(f"tests/test_{test}.py" for test in TESTS)],
        cwd=folder, env={**os.environ, "PYTHONPATH": f"{folder}:{folder / 'tests'}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
