"""What a user writes is one way to hold out samples, or is refused with what there is."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtl import splits
from samtl.errors import InputError, UnknownName
from samtl.splits import published as split_lists
from samtl.splits import spec as specs
from samtl.splits.spec import (
    Samples,
    SplitSpec,
    leaks,
    parse,
    parse_many,
    select,
)


def samples(n=60, task="classification", groups=(), parts=()):
    labels = np.arange(n) % 3 if task == "classification" else np.full(n, -1)
    return Samples(
        where="toy.zarr",
        task=task,
        ids=tuple(f"{'abc'[i % 3]}/{i:03d}.jpg" for i in range(n)),
        classes=("a", "b", "c"),
        labels=labels.astype(np.int64),
        usable=np.ones(n, dtype=bool),
        groups=groups,
        parts=parts,
    )


# What is written


@pytest.mark.parametrize(
    ("written", "spec", "kind"),
    [
        (0.2, "0.2", "share"),
        (".20", "0.2", "share"),
        (" 2e-1 ", "0.2", "share"),
        (np.float64(0.3), "0.3", "share"),
        ("shipped", "shipped", "shipped"),
        ("fold:01/5", "fold:1/5", "fold"),
        ("kfold:5", "kfold:5", "kfold"),
        ("label:0.10@0.20", "label:0.1@0.2", "label"),
        ("label:1@fold:1/5", "label:1@fold:1/5", "label"),
        ("label:0.1@torchgeo-spatial", "label:0.1@torchgeo-spatial", "label"),
        ("shots:05@shipped", "shots:5@shipped", "shots"),
        ("shots:5@file:a@b:c", "shots:5@file:a@b:c", "shots"),
        ("file:some where/a.json", "file:some where/a.json", "file"),
        ("torchgeo", "torchgeo", "torchgeo"),
    ],
)
def test_there_is_one_way_to_write_it(written, spec, kind):
    protocol = parse(written)
    assert (protocol.text, protocol.kind) == (spec, kind)
    assert parse(protocol.text) == protocol


def test_every_form_that_is_offered_is_one():
    assert {parse(form).kind for form in specs.FORMS} == {
        "share", "shipped", "fold", "kfold", "label", "shots", "file", "torchgeo",
        "torchgeo-spatial",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a fifth", "no split is called 'a fifth': known are 0.2, shipped, fold:1/5"),
        ("shiped", "did you mean shipped"),
        ("folds:1/5", "no split is called 'folds:1/5': did you mean"),
        ("", "no split is called ''"),
        ("torchgeo:x", "no split is called"),
        ("1", r"between 0 and 1 \(the held-out share\), got 1.0"),
        ("nan", "between 0 and 1"),
        ("fold:1", "--split fold is written like fold:1/5, got 'fold:1'"),
        ("fold:6/5", "got I = 6, K = 5"),
        ("fold:0/5", "got I = 0, K = 5"),
        ("kfold:1", "K from 2"),
        ("kfold:x", "written like kfold:5"),
        ("kfold:" + "9" * 5000, "written like kfold:5"),
        ("label:0.1", "written like label:0.1@0.2, got 'label:0.1'"),
        ("label:x@0.2", "written like label:0.1@0.2, got 'label:x@0.2'"),
        ("label:0@0.2", "above 0 and up to 1, got 0.0"),
        ("label:2@0.2", "above 0 and up to 1, got 2.0"),
        ("label:0.1@2", "between 0 and 1"),
        ("label:0.1@kfold:5", "'kfold:5' after the @ is several"),
        ("shots:5@label:0.1@0.2", "'label:0.1@0.2' after the @ is without some already"),
        ("shots:1@0.2", r"K from 2 \(of each class one to train on, one to validate"),
        ("shots:-3@0.2", "written like shots:5@0.2"),
        ("file:", "written like file:PATH"),
    ],
)
def test_what_is_no_protocol_is_refused(written, said):
    with pytest.raises(InputError, match=said):
        parse(written)
    assert issubclass(UnknownName, InputError)


def test_folds_are_named_each_for_itself():
    assert [p.text for p in parse("kfold:3").expand()] == ["fold:1/3", "fold:2/3", "fold:3/3"]
    for spec in ("0.2", "fold:2/3", "label:0.1@0.2"):
        assert parse(spec).expand() == [parse(spec)]


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("0.2", "0.2"),
        ("0.1,0.2,...,0.9", "0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9"),
        ("0.9, 0.7, ..., 0.1", "0.9 0.7 0.5 0.3 0.1"),
        ("shipped,0.1,0.15,...,0.25,0.5", "shipped 0.1 0.15 0.2 0.25 0.5"),
        ("0.1,0.2,...,0.3", "0.1 0.2 0.3"),
        ("0.1,0.2,...,0.4,0.45,...,0.55", "0.1 0.2 0.3 0.4 0.45 0.5 0.55"),
        ("label:0.25@0.2,label:.5@0.2,...,label:1@0.2", "label:0.25@0.2 label:0.5@0.2 label:0.75@0.2 label:1@0.2"),
        ("shots:2@0.2,shots:4@0.2,...,shots:8@0.2", "shots:2@0.2 shots:4@0.2 shots:6@0.2 shots:8@0.2"),
        ("kfold:2,shots:5@0.2", "fold:1/2 fold:2/2 shots:5@0.2"),
    ],
)  # fmt: skip
def test_a_list_may_go_on_by_itself(text, specs):
    assert [p.text for p in parse_many(text)] == specs.split()


@given(st.integers(1, 99), st.integers(1, 20), st.integers(1, 20))
def test_steps_are_exact(first, step, count):
    hundredths = [first + i * step for i in range(count + 2)]
    if hundredths[-1] > 99:
        return
    whole = [f"{n / 100:.2f}" for n in hundredths]
    short = [*whole[:2], "...", whole[-1]]
    assert parse_many(",".join(short)) == parse_many(",".join(whole))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.2,0.20", "the split 0.2 is given twice in '0.2,0.20'"),
        ("0.2,0.1,0.2,...,0.4", "the split 0.2 is given twice"),
        ("kfold:5,fold:3/5", "the split fold:3/5 is given twice"),
        ("", "a list of splits is written like"),
        ("0.1,,0.2", "a list of splits is written like"),
        ("0.1,...,0.9", "two splits before it and one after"),
        ("0.1,0.2,...", "two splits before it and one after"),
        ("0.1,0.2,...,...,0.9", "two splits before it and one after"),
        ("0.1,0.3,...,0.8", "from 0.3 none of 0.2 lead to 0.8"),
        ("0.1,0.2,...,0.1", "from 0.2 none of 0.1 lead to 0.1"),
        ("0.2,0.2,...,0.2", "differ"),
        ("0.2,0.2,...,0.4", "from 0.2 none of 0.0 lead to 0.4"),
        ("0.1,0.1000001,...,0.9", "at most 1000 of them"),
        ("label:0.1@0.2,label:0.2@0.3,...,label:0.9@0.4", "in one number in which the splits"),
        ("0.1,label:0.2@0.2,...,0.9", "in one number in which the splits"),
        ("0.1,half", "no split is called 'half'"),
        ("0.8,0.9,...,1.1", "between 0 and 1"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse_many(text)


# Who is held out


def test_each_is_what_splits_makes_of_it():
    some = samples()
    ids, labels, names = some.ids, some.labels, some.classes
    outer = splits.holdout(ids, labels, 0.2, 7, names)
    inner = splits.inner(outer, ids, labels, classes=names)
    assert select(some, parse(0.2), 7) == (outer, inner)
    assert select(some, parse("label:0.5@0.2"), 7) == splits.fewer(
        outer, inner, ids, labels, 0.5, 7
    )
    assert select(some, parse("shots:4@0.2"), 7) == splits.shots(outer, inner, ids, labels, 4, 7)
    fold = splits.fold(ids, labels, 2, 5, 7)
    assert select(some, parse("fold:2/5"), 7) == (fold, splits.inner(fold, ids, labels))
    for task in ("classification", "segmentation"):
        of = replace(samples(task=task), parts=tuple(splits.PARTS[i // 3 % 3] for i in range(60)))
        given = select(of, parse("shipped"), 7)
        assert given == splits.shipped(ids, of.parts)
        thinned = select(of, parse("label:0.3@shipped"), 7)
        assert thinned[0].test.tolist() == given[0].test.tolist()


@pytest.mark.parametrize("spec", ["0.3", "fold:2/4", "label:0.6@0.3", "shots:6@fold:1/3"])
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_no_part_shares_a_group_with_another(spec, task):
    some = samples(120, task, groups=tuple(f"scene{i // 6}" for i in range(120)))
    for seed in range(3):
        outer, inner = select(some, parse(spec), seed)
        of = [{some.groups[i] for i in part} for part in (outer.test, inner.test, inner.train)]
        assert len(of[0] | of[1] | of[2]) == sum(map(len, of))
        assert not leaks(outer.name)


def test_who_cannot_be_used_takes_no_part():
    some = replace(samples(), usable=np.arange(60) % 7 != 2)
    for spec in ("0.2", "fold:1/5", "label:0.5@0.2", "shots:3@0.2"):
        outer, inner = select(some, parse(spec), 1)
        rows = np.concatenate([outer.test, inner.test, inner.train])
        assert some.usable[rows].all()
        assert len(np.unique(rows)) == len(rows)


def test_several_splits_are_not_one():
    with pytest.raises(InputError, match=r"kfold:5 is 5 splits, .* such as fold:1/5, or run them"):
        select(samples(), parse("kfold:5"), 0)
    with pytest.raises(InputError, match=r"toy\.zarr comes with no split of its own"):
        select(samples(), parse("label:0.1@shipped"), 0)


def test_which_splits_leak():
    random = ("0.2", "fold:1/5", "label:0.5@0.2", "shots:4@0.2", "shots:4@fold:1/3")
    for spec in random:
        assert leaks(select(samples(), parse(spec), 0)[0].name)
    assert leaks("torchgeo")
    assert leaks("torchgeo-label")
    for name in ("grouped", "grouped-fold", "grouped-label", "shipped", "torchgeo-spatial", "file"):
        assert not leaks(name)


def test_only_what_is_drawn_has_groups():
    drawn = {p.text for p in map(parse, specs.FORMS) if p.draws}
    assert drawn == {"0.2", "fold:1/5", "kfold:5", "label:0.1@0.2", "shots:5@0.2"}
    assert not parse("label:0.1@torchgeo").draws
    assert SplitSpec("x", "share") != parse(0.2)


# Files


def write_lists(prefix, some, name=lambda sample: sample.split("/")[1], drop=()):
    """Lists of the parts of samples: the first half to train on, then validation, then held out."""
    of = {"train": range(30), "val": range(30, 42), "test": range(42, 60)}
    for ending, rows in of.items():
        names = [name(some.ids[i]) for i in rows if i not in drop]
        prefix.with_name(f"{prefix.name}-{ending}.txt").write_text("\n".join(names) + "\n")
    return f"file:{prefix}"


def test_lists_say_who_is_where(tmp_path):
    some = samples()
    spec = write_lists(tmp_path / "mine", some)
    outer, inner = select(some, parse(spec), 5)
    assert outer.test.tolist() == list(range(42, 60))
    assert inner.test.tolist() == list(range(30, 42))
    assert inner.train.tolist() == list(range(30))
    assert (outer.name, outer.share, outer.seed) == ("file", 0.3, 0)
    thinned, _ = select(some, parse(f"label:0.5@{spec}"), 5)
    assert thinned.name == "file-label"
    assert len(thinned.train) == 15 + 6


def test_who_is_on_no_list_or_cannot_be_used_is_left_out(tmp_path):
    some = replace(samples(), usable=np.arange(60) != 50)
    spec = write_lists(tmp_path / "mine", some, drop=(3, 33))
    outer, inner = select(some, parse(spec), 0)
    used = {*outer.test.tolist(), *inner.test.tolist(), *inner.train.tolist()}
    assert set(range(60)) - used == {3, 33, 50}


def test_lists_of_other_samples_are_refused(tmp_path):
    spec = parse(write_lists(tmp_path / "mine", samples()))
    with pytest.raises(
        InputError,
        match=r"mine-\*\.txt name 20 samples, of 60, that .*, such as '040\.jpg'.*--limit",
    ):
        select(samples(40), spec, 0)
    (tmp_path / "mine-val.txt").unlink()
    with pytest.raises(InputError, match=r"mine-val\.txt cannot be read \(FileNotFoundError\)"):
        select(samples(), spec, 0)
    with pytest.raises(
        InputError, match=r"there is no such file .*no nothing-train\.txt, nothing-"
    ):
        select(samples(), parse(f"file:{tmp_path / 'nothing'}"), 0)


def record(some, spec, **more):
    """What a run keeps of its split, for a file."""
    outer, inner = select(some, parse(spec), 3)
    used = {*outer.train.tolist(), *outer.test.tolist()}
    return {
        "name": outer.name,
        "share": outer.share,
        "seed": outer.seed,
        "digest": outer.digest,
        "validation_share": inner.share,
        "held_out": [some.ids[i] for i in outer.test],
        "validation": [some.ids[i] for i in inner.test],
        "left_out": [i for n, i in enumerate(some.ids) if n not in used],
        **more,
    }


def test_a_split_that_was_written_is_read(tmp_path):
    some = samples()
    path = tmp_path / "a.json"
    for spec in ("0.2", "label:0.4@fold:2/5"):
        path.write_text(json.dumps(record(some, spec)))
        assert select(some, parse(f"file:{path}"), 99) == select(some, parse(spec), 3)
    assert leaks(select(some, parse(f"file:{path}"), 0)[0].name)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"digest": "0" * 64}, "left to train and validate on are not those there"),
        ({"left_out": ["who.jpg"]}, "1 of the .* not here, the first is 'who.jpg'"),
        ({"validation": []}, "samples are needed to train on, for validation and held out"),
        ({"share": "much"}, r"a\.json is damaged: .*share"),
        ({"held_out": [1, 2]}, r"a\.json is damaged: .*held_out"),
        ({"file": "gone.json"}, r"a\.json names .*gone\.json, which does not exist"),
    ],
)
def test_a_split_file_that_is_not_right_is_refused(tmp_path, more, said):
    (tmp_path / "a.json").write_text(json.dumps(record(samples(), "0.2", **more)))
    with pytest.raises(InputError, match=said):
        select(samples(), parse(f"file:{tmp_path / 'a.json'}"), 0)


def test_samples_of_a_file_must_be_usable(tmp_path):
    some = samples()
    (tmp_path / "a.json").write_text(json.dumps(record(some, "0.2")))
    without = replace(some, usable=np.arange(60) != 7)
    with pytest.raises(InputError, match=r"has 1 samples that toy\.zarr holds no label or no"):
        select(without, parse(f"file:{tmp_path / 'a.json'}"), 0)


def test_published_lists_are_called_by_their_name(monkeypatch):
    some = samples()
    lists = {
        "train": [some.ids[i][2:-4] + ".tif" for i in range(30)],
        "validation": [some.ids[i][2:-4] + ".tif" for i in range(30, 45)],
        "test": [some.ids[i][2:-4] + ".tif" for i in range(45, 60)],
    }
    monkeypatch.setattr(split_lists, "torchgeo", lambda name: lists)
    for name in ("torchgeo", "torchgeo-spatial"):
        outer, inner = select(some, parse(name), 0)
        assert (outer.name, len(outer.test), len(inner.test)) == (name, 15, 15)
    with pytest.raises(InputError, match="the torchgeo lists name 20 samples, of 60, that are not"):
        select(samples(40), parse("torchgeo"), 0)
