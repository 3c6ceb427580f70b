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
    "durable",
    "documents",
    "log",
    "writer",
    "reader",
    "verify",
    "agreement",
    "remote",
    "lease",
    "fetched",
)

# What is taken out: the file, the code, and what stands in its place.
MUTANTS = {
    "sync of the bytes": ("durable.py", "os.fsync(file.fileno())", "pass"),
    "sync of the name": (
        "durable.py", "unlink(missing_ok=True)\n    sync_folder(path.parent)", "unlink(missing_ok=True)",
    ),
    "sync of a replaced name": (
        "durable.py", "        raise\n    sync_folder(path.parent)\n", "        raise\n",
    ),
    "sync of a new folder": (
        "durable.py", "    path.mkdir(exist_ok=True)\n    sync_folder(path.parent)", "    path.mkdir(exist_ok=True)",
    ),
    "a name is given once": (
        "durable.py", "os.link(temporary, path)", "path.unlink(missing_ok=True); os.link(temporary, path)",
    ),
    "a temporary name first": (
        "durable.py", 'temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"\n', "temporary = path\n",
    ),
    "checksum of a document": ("documents.py", "if not intact:", "if False:"),
    "place of a record": (
        "log.py", 'if record_name(record.block, record.sequence) != f"{LOG}/{name}":', "if False:",
    ),
    "no record is missing": ("log.py", "if record.sequence != expected.get(record.block, 0):", "if False:"),
    "what the disk gives back": (
        "writer.py", 'if crc32c(row) != expected or trailer != expected.to_bytes(4, "little"):', "if False:",
    ),
    "one writer": (
        "writer.py", '"\n    try:\n        lock.acquire()\n', '"\n    try:\n        pass\n',
    ),
    "identity": (
        "writer.py", "    if found:\n        raise MismatchError(", "    if False:\n        raise MismatchError(",
    ),
    "checksum of a row": (
        "reader.py", "if start == stop or crc32c(data) != file.crc32c[position]:", "if start == stop:",
    ),
    "size of a shard": ("reader.py", "if len(mapped) != committed_file.size or", "if"),
    "record of another store": (
        "reader.py", "if record.fingerprint != self.fingerprint or len(record.status) != len(rows):", "if False:",
    ),
    "samples of another store": ("reader.py", "if block not in self._named:", "if False:"),
    "samples of another store, verified": (
        "verify.py", "    if others:\n        found.findings", "    if False:\n        found.findings",
    ),
    "samples of another store, written to": (
        "agreement.py", "    if others:\n        raise DamageError(", "    if False:\n        raise DamageError(",
    ),
    "records of another store, written to": ("agreement.py", "        if told:\n", "        if False:\n"),
    "they are looked at under the lock": (
        "writer.py", "        require_own(path, records,", "        (lambda *args: None)(path, records,",
    ),
    "an older list": (
        "agreement.py", "    if told and newest(store) == listed.path:", "    if False:",
    ),
    "an older list, verified": ("verify.py", "    if older:", "    if False:"),
    "rows of two images": ("verify.py", "in other_images(state):", "in ():"),
    "the image of a row": ("log.py", "        if record.status[position] == OK:\n", "        if True:\n"),
    "a list before any record": ("rows.py", "    read_rows(store)  # there was none", "    return False  #"),
    "labels of before a change": ("reader.py", "            del labels[block]", "            pass"),
    "labels of before a change, verified": ("verify.py", "        del labels[block]", "        pass"),
    "checksum of an index": (
        "layout.py", 'if end < 0 or crc32c(packed) != int.from_bytes(shard[-4:], "little"):', "if end < 0:",
    ),
    "checksum of a row, verified": (
        "verify.py", 'if crc32c(row) != expected or trailer != expected.to_bytes(4, "little"):', "if False:",
    ),
    "sha256 of a shard, verified": (
        "verify.py", "if deep and hashlib.sha256(data).hexdigest() != file.sha256:", "if False:",
    ),
    "an object is created once": (
        "remote.py", 'mode: PutMode = "create" if version is None', 'mode: PutMode = "overwrite" if version is None',
    ),
    "an answer that was lost": ("remote.py", "if there == content:", "if False:"),
    "an object of another": (
        "remote.py", "raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))", "return now",
    ),
    "a server that overwrites": (
        "lease.py", "if _overwrites(probe, None):", "if False:",
    ),
    "a server that looks at no version": (
        "lease.py", "if _overwrites(probe, first):", "if False:",
    ),
    "a hold of another": (
        "lease.py", "if not content.get(RELEASED) and abs(now - renewed) <= SECONDS + 1:", "if False:",
    ),
    "a hold that ended": (
        "lease.py", "        if self._over():\n            raise", "        if False:\n            raise",
    ),
    "a hold is asked for": (
        "remote.py", "self._require_held()\n            failed", "failed",
    ),
    "size of an object": ("remote.py", "if most is None or size <= most:", "if True:"),
    "what is kept wrongly": (
        "reader.py", "shard.pieces([(start, stop)], anew=True)", "shard.pieces([(start, stop)])",
    ),
    "what another thread keeps wrongly": (
        "fetched.py", "if anew:\n            return None\n        kept", "kept",
    ),
}  # fmt: skip


def with_mutant(folder, name):
    """Copy the package and its tests, one step taken out, or none."""
    for part in ("samtl", "tests", "pyproject.toml"):
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / part)
    if name is None:
        return folder
    file, code, instead = MUTANTS[name]
    path = folder / "samtl" / "store" / file
    text = path.read_text()
    assert text.count(code) == 1, f"{file} has changed: {code!r} is there {text.count(code)} times"
    path.write_text(text.replace(code, instead))
    return folder


@pytest.mark.parametrize("name", MUTANTS)
def test_each_step_is_where_it_is_looked_for(name):
    file, code, _ = MUTANTS[name]
    assert (ROOT / "samtl" / "store" / file).read_text().count(code) == 1


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
         *(f"tests/test_store_{test}.py" for test in TESTS)],
        cwd=folder, env={**os.environ, "PYTHONPATH": f"{folder}:{folder / 'tests'}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
