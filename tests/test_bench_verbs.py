"""`samtl bench verbs` times what it says, and `samtl bench images` decodes the same images on both sides."""

import sys

import numpy as np
import pytest

from benchmarks import images, verbs
from samtl.errors import ResourceError
from samtl.images.codecs import prepare


def test_verbs_are_timed_on_one_finished_store(run, monkeypatch, tmp_path, one_thread):
    told, fits = [], []

    def seconds(first, *arguments):
        if first == "-m":
            code, output, errors = run(*arguments[1:])
            assert code == 0, errors
            (told if arguments[1] == "embed" else fits).append(output)
        else:
            monkeypatch.setattr(sys, "argv", ["-c", *arguments[1:]])
            exec(arguments[0])
            fits.append("python")
        return float(len(told) + len(fits))

    monkeypatch.setattr(verbs, "_seconds", seconds)
    rows = verbs.bench_verbs("synthetic:20", rounds=1, out=tmp_path)
    assert [row.name for row in rows] == ["embed-again/160", "embed-again/160/reading", "fit/cli"]
    assert [row.vs for row in rows] == ["", "", "fit-python"]
    assert all("160 images for classification, 0 to do" in output for output in told)
    assert (len(told), len(fits), fits.count("python")) == (4, 4, 2)
    assert not list(tmp_path.glob("samtl-bench-*"))


def test_a_verb_that_fails_is_no_figure():
    with pytest.raises(ResourceError, match="no such thing"):
        verbs._seconds("-c", "raise SystemExit('no such thing')")


def test_both_sides_decode_the_same_pixels():
    files = images._jpegs(96, 8)
    assert len(files) == images.IMAGES
    np.testing.assert_array_equal(prepare(files[0], 64).pixels, images._plain(files[0], 64))
    rows = images.bench_images(64, rounds=1)
    assert len(rows) == len(images.NOISE)
    assert all(row.vs == "pillow" and row.ratio > 0 for row in rows)
