"""What a user writes after --split is one way to hold out samples, or is refused."""

import re

import numpy as np
import pytest

from samtl.errors import InputError
from samtl.splits import leaks, parse, parse_many
from samtl.splits.spec import FORMS


@pytest.mark.parametrize(
    ("written", "text", "kind"),
    [
        (" 2e-1 ", "0.2", "share"),
        (np.float64(0.3), "0.3", "share"),
        ("fold:01/5", "fold:1/5", "fold"),
        ("kfold:5", "kfold:5", "kfold"),
        ("label:1e-1@0.2", "label:0.1@0.2", "label"),
        ("label:0.1@torchgeo-spatial", "label:0.1@torchgeo-spatial", "label"),
        ("shots:05@shipped", "shots:5@shipped", "shots"),
        ("shots:5@file:a@b:c", "shots:5@file:a@b:c", "shots"),
        ("file:some where/a.json", "file:some where/a.json", "file"),
    ],
)
def test_there_is_one_way_to_write_it(written, text, kind):
    spec = parse(written)
    assert (spec.text, spec.kind) == (text, kind)
    assert parse(spec.text) == spec


def test_every_form_that_is_offered_is_one():
    specs = [parse(form) for form in FORMS]
    assert {spec.text for spec in specs if spec.draws} == {
        "0.2", "fold:1/5", "kfold:5", "label:0.1@0.2", "shots:5@0.2",
    }  # fmt: skip
    assert not parse("label:0.1@torchgeo").draws


@pytest.mark.parametrize(
    ("written", "said"),
    [
        *[(str(share), "between 0 and 1") for share in (0, 1, -0.2, float("nan"), float("inf"))],
        ("fold:1", "fold:1/5, got 'fold:1'"),
        ("fold:6/5", "fold:6/5: .* I from 1 to K"),
        ("kfold:1", "kfold:1: .* K from 2"),
        ("kfold:" + "9" * 5000, "like kfold:5"),
        ("label:1.2.3@0.2", "like label:0.1@0.2"),
        ("label:0@0.2", "label:0@0.2: .* above 0 and up to 1"),
        ("label:0.1@2", "between 0 and 1"),
        ("label:0.1@kfold:5", "label:0.1@kfold:5: after the @"),
        ("shots:5@label:0.1@0.2", "after the @"),
        ("shots:1@0.2", "K from 2"),
        ("file:", "like file:PATH"),
        *[(text, r"mean 0\.2\?") for text in ("80-20", "80/20", "20%", "20")],
        *[(text, r"0\.1,0\.2,\.\.\.,0\.9") for text in ("0.1-0.9", ".1:.9", "0.1...0.9")],
        ("0.05..0.5", r"0\.05,0\.10,\.\.\.,0\.5"),
        ("0.9-0.1", "known are"),
        ("80-30", "known are"),
    ],
)
def test_numbers_out_of_range_are_refused(written, said):
    with pytest.raises(InputError, match=said) as refused:
        parse(written)
    if meant := re.search("mean ([0-9.,]+)", str(refused.value)):
        assert parse_many(meant[1])


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("0.1,0.2,...,0.9", "0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9"),
        ("0.9, 0.7, ..., 0.1", "0.9 0.7 0.5 0.3 0.1"),
        ("shipped,0.1,0.15,...,0.25,0.5", "shipped 0.1 0.15 0.2 0.25 0.5"),
        ("0.1,0.2,...,0.4,0.45,...,0.55", "0.1 0.2 0.3 0.4 0.45 0.5 0.55"),
        ("label:0.25@0.2,label:.5@0.2,...,label:1@0.2", "label:0.25@0.2 label:0.5@0.2 label:0.75@0.2 label:1@0.2"),
        ("shots:2@0.2,shots:4@0.2,...,shots:8@0.2", "shots:2@0.2 shots:4@0.2 shots:6@0.2 shots:8@0.2"),
        ("kfold:2,shots:5@0.2", "fold:1/2 fold:2/2 shots:5@0.2"),
    ],
)  # fmt: skip
def test_a_list_may_continue_by_itself(text, specs):
    assert [spec.text for spec in parse_many(text)] == specs.split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.2,0.20", "0.2 is listed twice in '0.2,0.20'"),
        ("0.2,0.1,0.2,...,0.4", "0.2 is listed twice"),
        ("kfold:5,fold:3/5", "fold:3/5 is listed twice"),
        ("", "got ''"),
        ("0.1,,0.2", "got '0.1,,0.2'"),
        ("0.1,...,0.9", "two splits before it"),
        ("0.1,0.2,...", "two splits before it"),
        ("0.1,half", "'half'"),
        ("0.1,0.3,...,0.8", "equal steps"),
        ("0.1,0.2,...,0.1", "equal steps"),
        ("0.1,0.1000001,...,0.9", "at most 1000"),
        ("label:0.1@0.2,label:0.2@0.3,...,label:0.9@0.4", "one number"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse_many(text)


def test_lists_drawn_at_random_leak_and_others_do_not():
    assert leaks("torchgeo-label")
    assert not leaks("torchgeo-spatial")
    assert not leaks("file")
