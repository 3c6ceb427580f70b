"""Images that hang, crash or bomb their decoder cost their own row."""

import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import stubs
from PIL import Image

from samtl.errors import ResourceError
from samtl.images import codecs as images
from samtl.images import decoder_process
from samtl.images.codecs import BadImage
from samtl.images.decoder_process import (
    Decoder,
    decode_mask,
    prepare,
    prepare_here,
)

HANGING = """
import samtl.images.decoder_process as d, sys, os, time
real = d.prepare_here
def prepare_here(data, image_size):
    if data.startswith(b"hang"):
        while True: pass
    if data.startswith(b"crash"):
        os.kill(os.getpid(), 11)
    if data.startswith(b"leave"):
        os._exit(3)
    if data.startswith(b"bomb"):
        return bytearray(4 * 2**30)
    if data.startswith(b"grow"):
        kept = []
        while True: kept.append(bytes(2**20))
    if data.startswith(b"print"):
        print("to nobody"); sys.stdout.flush(); os.write(1, b"nor this")
        data = data[5:]
    return real(data, image_size)
d.prepare_here = prepare_here
def decode_mask(data, lookup):
    if data.startswith(b"crash"):
        os.kill(os.getpid(), 11)
d.images.decode_mask = decode_mask
"""


@pytest.fixture
def none_idle():
    decoder_process._end_all()
    yield
    decoder_process._end_all()


@pytest.fixture
def odd(monkeypatch, none_idle):
    """Processes that do what certain files say."""
    start = decoder_process._START.replace("; from samtl", f"; exec({HANGING!r}); from samtl")
    monkeypatch.setattr(decoder_process, "_START", start)


def same(one, other):
    return (
        one.size == other.size
        and np.array_equal(one.pixels, other.pixels)
        and np.array_equal(one.statistics, other.statistics)
    )


@pytest.mark.parametrize("shape", [(20, 20), (7, 31), (300, 200)])
@pytest.mark.parametrize("side", [16, 64, 256])
def test_what_comes_back_is_what_would_be_made_here(shape, side):
    data = stubs.png(3, shape)
    prepared = prepare(data, side)
    assert same(prepared, prepare_here(data, side))
    assert prepared.size == shape
    assert max(prepared.pixels.shape[:2]) == side
    prepared.pixels[:] = 0  # it is the caller's own


def test_one_process_serves_many(none_idle):
    prepare(stubs.png(0), 16)
    first = [decoder._process.pid for decoder in decoder_process._idle]
    for i in range(20):
        prepare(stubs.png(i), 16)
        with pytest.raises(BadImage):
            prepare(b"no image", 16)
    assert [decoder._process.pid for decoder in decoder_process._idle] == first
    assert len(first) == 1


def test_threads_have_one_each(none_idle):
    files = [stubs.png(i, (40, 40)) for i in range(60)]
    found = [None] * 60

    def work(mine):
        for i in mine:
            found[i] = prepare(files[i], 64)

    threads = [threading.Thread(target=work, args=(range(k, 60, 4),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(one, prepare_here(data, 64)) for one, data in zip(found, files, strict=True))
    assert 1 <= len(decoder_process._idle) <= 4


def test_refusals_are_those_of_the_decoder():
    for data in (b"", b"nothing", stubs.png(1)[:60], stubs.huge_png()):
        with pytest.raises(BadImage) as there:
            prepare(data, 16)
        with pytest.raises(BadImage) as here:
            images.decode(data)
        assert (there.value.code, there.value.reason) == (here.value.code, here.value.reason)


@pytest.mark.parametrize(
    ("data", "code", "told"),
    [
        (b"crash", "undecodable", "ended by signal 11, 2 times"),
        (b"leave", "undecodable", "ended with code 3, 2 times"),
        (b"bomb", "too_large", "in 1536 MiB"),
        (b"grow", "too_large", "in 1536 MiB"),
    ],
)
def test_what_ends_the_process_is_the_images_fault(odd, data, code, told):
    with pytest.raises(BadImage, match=told) as caught:
        prepare(data, 16)
    assert caught.value.code == code
    assert same(prepare(stubs.png(2), 16), prepare_here(stubs.png(2), 16))


def test_a_file_has_its_time(odd, monkeypatch):
    monkeypatch.setattr(decoder_process, "SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(BadImage, match="ended when its time was over; replace it"):
        prepare(b"hang", 16)
    assert time.monotonic() - begun < 60
    assert same(prepare(stubs.png(2), 16), prepare_here(stubs.png(2), 16))


def test_time_is_counted_for_each_file(odd, monkeypatch):
    """A process that has served for long has not used up the time of the next file."""
    monkeypatch.setattr(decoder_process, "SECONDS", 1)
    data = stubs.png(0, (1500, 1500))
    begun = time.process_time()
    first = prepare(data, 16)
    (decoder,) = decoder_process._idle
    while _used(decoder) < 3:
        assert same(prepare(data, 16), first)
    assert decoder_process._idle == [decoder]
    assert time.process_time() - begun < 30


def _used(decoder):
    fields = Path(f"/proc/{decoder._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_what_the_machine_ends_is_not_the_images_fault(none_idle, monkeypatch, number):
    """As where memory runs out: the pass stops, and no row is put aside."""
    start = decoder_process._START.replace(
        "; from samtl",
        "; import os, signal, samtl.images.decoder_process as d; "
        f"d._answer = lambda *a: (signal.signal({int(number)}, 0) if {int(number)} != 9 else 0, "
        f"os.kill(os.getpid(), {int(number)})); from samtl",
    )
    monkeypatch.setattr(decoder_process, "_START", start)
    with pytest.raises(ResourceError, match=f"ended by signal {int(number)}, as when memory"):
        prepare(stubs.png(0), 16)


def test_signals_for_its_parent_do_not_end_it(none_idle):
    prepare(stubs.png(0), 16)
    (decoder,) = decoder_process._idle
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(decoder._process.pid, number)
    assert same(prepare(stubs.png(1), 16), prepare_here(stubs.png(1), 16))
    assert decoder_process._idle == [decoder]


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"[]\n", b"7\n", b"{}\n", b"no json\n", b'{"code": "invented", "reason": ""}\n',
        b'{"shape": [1000000, 1000000, 3], "size": [1, 1]}\n', b'{"shape": [16, 16, 3], "size": [1]}\n',
        b'{"shape": [16, 16, 4], "size": [9, 9]}\n', b'{"shape": [16, 0, 3], "size": [9, 9]}\n',
        b'{"shape": [16, 16, 3], "size": [true, 9]}\n', b'{"shape": [16, 16, 3], "size": [9, 9]}\nshort',
        b"1" * 70_000,
    ],
)  # fmt: skip
def test_no_answer_is_believed_unseen(none_idle, monkeypatch, answer):
    """A file may have made anything of the process that read it."""
    told = repr(answer).replace("{", "{{").replace("}", "}}")
    start = decoder_process._START.replace(
        "; from samtl",
        "; import sys, samtl.images.decoder_process as d; "
        f"d._answer = lambda answers, *a: (answers.write({told}), answers.flush(), sys.exit(5)); from samtl",
    )
    monkeypatch.setattr(decoder_process, "_START", start)
    with pytest.raises(BadImage, match=r"ended with code [05], 2 times"):
        prepare(stubs.png(0), 16)


def test_one_that_never_answers_is_stopped(none_idle, monkeypatch):
    monkeypatch.setattr(decoder_process, "PATIENCE", 0.3)
    start = decoder_process._START.replace(
        "; from samtl",
        "; import time, samtl.images.decoder_process as d; d._answer = lambda *a: time.sleep(100); from samtl",
    )
    monkeypatch.setattr(decoder_process, "_START", start)
    with pytest.raises(BadImage, match=r"was stopped after 0 s"):
        prepare(stubs.png(0), 16)
    assert decoder_process._idle == []


def test_what_libraries_print_is_no_answer(odd, capfd):
    data = stubs.png(5)
    assert same(prepare(b"print" + data, 16), prepare_here(data, 16))
    assert capfd.readouterr().out == ""


def test_one_that_was_killed_between_two_files_is_replaced(none_idle):
    prepare(stubs.png(0), 16)
    (decoder,) = decoder_process._idle
    os.kill(decoder._process.pid, signal.SIGKILL)
    decoder._process.wait()
    assert same(prepare(stubs.png(1), 16), prepare_here(stubs.png(1), 16))


def test_one_without_work_ends_by_itself(none_idle, monkeypatch):
    monkeypatch.setattr(decoder_process, "IDLE", 0.2)
    prepare(stubs.png(0), 16)
    (decoder,) = decoder_process._idle
    assert decoder._process.wait(30) == 0
    assert same(prepare(stubs.png(1), 16), prepare_here(stubs.png(1), 16))


def test_it_ends_with_the_process_that_it_serves(tmp_path):
    code = (
        "import sys, os, signal\n"
        "from samtl import decoder_process\n"
        "decoder_process.prepare(bytes.fromhex(sys.argv[2]), 16)\n"
        "print(decoder_process._idle[0]._process.pid, flush=True)\n"
        "if sys.argv[1] == 'killed': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for how in ("killed", "ended"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, how, stubs.png(0).hex()],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if how == "killed" else 0), done.stderr
        assert done.stderr == ""
        for _ in range(200):
            if not Path(f"/proc/{int(done.stdout)}").exists():
                break
            time.sleep(0.05)
        else:
            pytest.fail("the process is still there")


def test_ctrl_c_does_not_reach_it(none_idle):
    prepare(stubs.png(0), 16)
    (decoder,) = decoder_process._idle
    os.kill(decoder._process.pid, signal.SIGINT)
    time.sleep(0.1)
    assert decoder.alive


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_its_own(none_idle):
    prepare(stubs.png(0), 16)
    child = os.fork()
    if child == 0:
        right = same(prepare(stubs.png(1), 16), prepare_here(stubs.png(1), 16))
        gc.collect()
        decoder_process._end_all()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (decoder,) = decoder_process._idle
    assert decoder.alive
    assert same(prepare(stubs.png(1), 16), prepare_here(stubs.png(1), 16))


def test_where_none_can_be_started_no_image_is_blamed(none_idle, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(ResourceError, match="no process can be started"):
        prepare(stubs.png(0), 16)
    monkeypatch.undo()
    monkeypatch.setattr(decoder_process, "_START", "import sys; sys.exit(9)")
    with pytest.raises(ResourceError, match="ended with code 9 before it began"):
        prepare(stubs.png(0), 16)


def test_within_another_program_it_decodes_here(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(decoder_process, "Decoder", None)
    assert prepare(stubs.png(0), 16).size == (20, 20)


def test_its_start_is_light():
    """Neither torch nor zarr: it starts in a moment, and its memory is that of an image."""
    code = (
        "import sys, samtl.images.decoder_process\n"
        "print([m for m in ('torch', 'sklearn', 'zarr', 'scipy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_decoder_that_was_ended_can_be_ended_again():
    decoder = Decoder()
    decoder.end()
    decoder.end()
    assert not decoder.alive


@pytest.mark.parametrize("lookup", [False, True])
def test_masks_are_decoded_there_too(none_idle, lookup):
    values = np.random.default_rng(0).integers(0, 256, (31, 17), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    mask = decode_mask(file.getvalue(), lookup=lookup)
    assert np.array_equal(mask, values)
    assert mask.flags.writeable
    (decoder,) = decoder_process._idle
    assert same(prepare(stubs.png(1), 16), prepare_here(stubs.png(1), 16))
    for data in (b"", b"no mask", stubs.png(1)):
        with pytest.raises(BadImage) as there:
            decode_mask(data)
        with pytest.raises(BadImage) as here:
            images.decode_mask(data)
        assert (there.value.code, there.value.reason) == (here.value.code, here.value.reason)
    assert decoder_process._idle == [decoder]


def test_a_mask_that_crashes_its_decoder(odd):
    with pytest.raises(BadImage, match="ended by signal 11, 2 times"):
        decode_mask(b"crash")


def test_masks_within_another_program(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(BadImage):
        decode_mask(b"no mask")
