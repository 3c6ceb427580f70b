"""Files that are there whole or not at all."""

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from samtl.store import durable


@pytest.fixture
def calls(monkeypatch):
    """Record what is made durable, in order, by the names that it has at that moment."""
    log = []
    fsync, link, replace = os.fsync, os.link, Path.replace

    def record_fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        log.append(f"fsync {kind} {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def record_link(source, target):
        log.append(f"link {Path(source).name} {Path(target).name}")
        link(source, target)

    def record_replace(source, target):
        log.append(f"replace {source.name} {target.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "link", record_link)
    monkeypatch.setattr(Path, "replace", record_replace)
    return log


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, calls):
    durable.publish(tmp_path / "a", [b"one", memoryview(b"two")])
    temporary = calls[0].split()[-1]
    assert temporary.startswith(durable.TEMPORARY)
    assert calls == [
        f"fsync file {temporary}",
        f"link {temporary} a",
        f"fsync folder {tmp_path.name}",
    ]
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert names(tmp_path) == ["a"]


def test_a_name_that_is_taken_is_left_as_it_is(tmp_path):
    durable.publish(tmp_path / "a", [b"first"])
    with pytest.raises(FileExistsError):
        durable.publish(tmp_path / "a", [b"second"])
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_of_many_writers_one_wins(tmp_path):
    def write(number):
        try:
            durable.publish(tmp_path / "a", [str(number).encode()] * 1000)
        except FileExistsError:
            return None
        return str(number) * 1000

    with ThreadPoolExecutor(8) as pool:
        won = [text for text in pool.map(write, range(8)) if text]
    assert won == [(tmp_path / "a").read_text()]
    assert names(tmp_path) == ["a"]


def pieces_until_the_disk_is_full():
    yield b"some"
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        durable.publish(tmp_path / "a", pieces_until_the_disk_is_full())
    assert names(tmp_path) == []


@pytest.mark.parametrize("function", ["fsync", "link"])
def test_a_call_that_fails_leaves_nothing(tmp_path, monkeypatch, function):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        durable.publish(tmp_path / "a", [b"some"])
    assert names(tmp_path) == []


def test_an_interrupt_while_writing_leaves_nothing(tmp_path):
    def interrupted():
        yield b"some"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        durable.publish(tmp_path / "a", interrupted())
    assert names(tmp_path) == []


def test_replacing_is_on_disk_before_it_shows(tmp_path, calls):
    (tmp_path / "a").write_bytes(b"old")
    durable.replace(tmp_path / "a", b"new")
    temporary = calls[0].split()[-1]
    assert calls == [
        f"fsync file {temporary}",
        f"replace {temporary} a",
        f"fsync folder {tmp_path.name}",
    ]
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_replacement_keeps_the_old_file(tmp_path, monkeypatch, function):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(function, fail)
    with pytest.raises(OSError, match="Input/output"):
        durable.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_every_folder_on_the_way_is_made_durable(tmp_path, calls):
    durable.make_folder(tmp_path / "a" / "b")
    durable.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert calls == [f"fsync folder {tmp_path.name}", "fsync folder a"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_takes_the_place_of_an_older_one(tmp_path, there):
    new, place = tmp_path / ".tmp-new", tmp_path / "place"
    new.mkdir()
    (new / "a").write_text("new")
    if there:
        place.mkdir()
        (place / "b").write_text("old")
    durable.replace_folder(new, place)
    assert names(tmp_path) == ["place"]
    assert names(place) == ["a"]


def test_an_older_folder_is_there_again_where_the_new_one_cannot_take_its_place(
    tmp_path, monkeypatch
):
    new, place = tmp_path / ".tmp-new", tmp_path / "place"
    for folder in (new, place):
        folder.mkdir()
        (folder / folder.name).write_text("")
    rename = Path.rename

    def refused(source, target):
        if source == new:
            raise OSError(errno.EACCES, "no")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refused)
    monkeypatch.setattr(durable, "_exchange", lambda one, other: False)
    with pytest.raises(OSError, match="no"):
        durable.replace_folder(new, place)
    assert names(tmp_path) == [".tmp-new", "place"]
    assert names(place) == ["place"]


@pytest.mark.parametrize("at_once", [True, False])
def test_an_older_folder_goes_when_the_new_one_is_in_its_place(tmp_path, monkeypatch, at_once):
    place = tmp_path / "place"
    new = durable.beside(place)
    for folder in (new, place):
        folder.mkdir()
        (folder / folder.name).write_text("")
    if not at_once:
        monkeypatch.setattr(durable, "_exchange", lambda one, other: False)
    durable.replace_folder(new, place)
    assert names(tmp_path) == ["place"]
    assert names(place) == [".tmp-place"]


def test_an_older_folder_that_a_killed_process_left_is_not_in_the_way(tmp_path, monkeypatch):
    place = tmp_path / "place"
    new = durable.beside(place)
    for folder in (new, place, tmp_path / ".tmp-place-old"):
        folder.mkdir()
        (folder / "a").write_text(folder.name)
    monkeypatch.setattr(durable, "_exchange", lambda one, other: False)
    durable.replace_folder(new, place)
    assert names(tmp_path) == ["place"]
    assert (place / "a").read_text() == ".tmp-place"


def test_what_was_half_written_is_never_put_in_a_place(tmp_path):
    """One process was killed when all was done but to clear up, the next while it wrote, and then the folder went."""
    place = tmp_path / "place"
    for folder in (place, tmp_path / ".tmp-place-old"):
        folder.mkdir()
    durable.clear_beside(place).mkdir()
    place.rmdir()
    durable.recover_folder(place)
    assert names(tmp_path) == [".tmp-place"]


def test_a_folder_is_put_back_that_a_killed_process_left_beside_its_place(tmp_path):
    place = tmp_path / "place"
    durable.recover_folder(place)
    assert names(tmp_path) == []
    new = durable.beside(place)
    new.mkdir()
    durable.recover_folder(place)  # it may not be whole
    assert names(tmp_path) == [".tmp-place"]
    (tmp_path / ".tmp-place-old").mkdir()
    durable.recover_folder(place)
    assert names(tmp_path) == ["place"]
