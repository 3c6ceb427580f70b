"""Labels that are sets of classes, or numbers: as arrays, and in splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samtl.errors import InputError
from samtl.splits import Samples, fold, holdout
from samtl.splits.draw import fewer
from samtl.splits.labels import class_counts, known, label_array, label_texts, no_label, strata_of


def samples(labels, task="multilabel", k=3, groups=()):
    found = label_array(task, labels, k)
    ids = tuple(f"i{i}" for i in range(len(labels)))
    classes = tuple("abc"[:k]) if task == "multilabel" else ("level",)
    return Samples("here", task, ids, classes, found, known(found), groups)


def test_labels_as_arrays_and_texts():
    several = label_array("multilabel", [(0, 2), (), None], 3)
    assert several.tolist() == [[1, 0, 1], [0, 0, 0], [-1, -1, -1]]
    assert known(several).tolist() == [True, True, False]
    assert label_texts(several, "abc") == ["a;c", "", ""]
    assert class_counts(several, "abc") == {"a": 1, "b": 0, "c": 1}
    numbers = label_array("regression", [0.5, None, float("nan")], 1)
    assert known(numbers).tolist() == [True, False, False]
    assert label_texts(numbers, ["level"]) == ["0.5", "", ""]
    assert class_counts(numbers, ["level"]) == {}
    classes = label_array("classification", [1, -1], 2)
    assert (known(classes).tolist(), label_texts(classes, "ab")) == ([True, False], ["b", ""])
    for task in ("multilabel", "regression", "classification", "segmentation"):
        assert not known(label_array(task, [no_label(task)], 3)).any()
    for wrong in ((3,), (-1, 0)):
        with pytest.raises(IndexError):
            label_array("multilabel", [wrong], 3)


def test_a_sample_belongs_to_its_rarest_class():
    labels = [(0,)] * 6 + [(0, 1)] * 4 + [(1, 2)] * 3 + [()] * 3
    strata = strata_of(label_array("multilabel", labels, 3))
    assert strata.tolist() == [0] * 6 + [1] * 4 + [2] * 3 + [3] * 3
    # Two samples of class 2 are not enough for three parts.
    assert strata_of(label_array("multilabel", labels[:-4] + [()] * 3, 3)).tolist()[-5:] == [3] * 5


@given(st.integers(0, 99), st.sampled_from([0.1, 0.2, 0.5]))
def test_rare_classes_are_in_every_part_and_others_keep_their_share(seed, share):
    random = np.random.default_rng(seed)
    rare = [(0, 2)] * 3  # one for each part
    common = [tuple(np.flatnonzero(random.random(2) < 0.5).tolist()) for _ in range(97)]
    of = samples(rare + common)
    split = holdout(of, share, seed)
    parts = split.train, split.validation, split.test
    assert len(split.test) == round(100 * share)
    counts = [int((of.labels[part, 2] > 0).sum()) for part in parts]
    assert counts == [1, 1, 1] if share < 0.5 else counts[0] == 1
    assert np.sort(np.concatenate(parts)).tolist() == list(range(100))
    held = sum(len(fold(of, i, 4, seed).test) for i in range(1, 5))
    assert held == 100


def test_numbers_and_unknown_labels():
    of = samples([float(i) for i in range(18)] + [None, float("nan")], "regression", 1)
    split = holdout(of, 0.5, 1)
    assert (len(split.test), len(split.seen)) == (9, 9)
    assert not {18, 19} & {*split.test, *split.seen}
    few = fewer(of, split, 1, count=5)
    assert (len(few.train), len(few.validation)) == (
        4,
        1,
    )  # of all samples, since there is no class
    with pytest.raises(InputError):
        holdout(samples([None, float("nan"), 1.0], "regression", 1), 0.5)


def test_groups_stay_whole():
    groups = tuple(f"g{i // 5}" for i in range(40))
    of = samples([(i % 3,) if i % 4 else () for i in range(40)], groups=groups)
    split = holdout(of, 0.25)
    assert not {groups[i] for i in split.test} & {groups[i] for i in split.seen}
