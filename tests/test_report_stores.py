"""Pictures of stores: which samples are shown, what is near what, and what is said if a store cannot be read."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import a_run, the_one
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler
from stubs import embedded
from toys import Reads, blobs, numbers, several, stripes

from samtl.errors import DamageError
from samtl.report.figures import encoder_costs
from samtl.report.figures.plane import MOST_COLOURS, plane
from samtl.report.load import read_stores
from samtl.report.pictures import stores as pictures
from samtl.report.pictures.album import Album
from samtl.report.pictures.stores import embeddings
from samtl.store.reader import Store, open_store

pytestmark = pytest.mark.usefixtures("one_thread")
FIELDS = stripes(24)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Stores of the same images at two sizes, one with dense tokens and one with a grid of them only."""
    places = [tmp_path_factory.mktemp("stores") for _ in range(2)]
    found = [
        embedded(places[0], FIELDS, 64, ("dense", "pooled")),
        embedded(places[1], FIELDS, 128, ("grid", "pooled")),
    ]
    return dict(zip(("small", "large"), map(open_store, found), strict=True))


@pytest.fixture(scope="module")
def parts(two):
    """Everything drawn of both, by name."""
    found, notes = embeddings(two, Album(FIELDS))
    assert notes == []
    return {one.name: one for one in found}


def test_the_same_samples_of_every_store_are_shown(parts):
    assert [*parts] == ["map", "same-class", "neighbours-1", "neighbours-2", "tokens"]
    for name in ("map", "tokens"):
        each = [
            [r["sample_id"] for r in parts[name].rows if r["store"] == s]
            for s in ("small", "large")
        ]
        assert sorted(each[0]) == sorted(each[1])
    asked = [[row["sample_id"] for row in parts[f"neighbours-{i}"].rows] for i in (1, 2)]
    assert asked[0] == asked[1]
    assert len(parts["map"].rows) == 48
    classes = [row["class"] for row in parts["tokens"].rows]
    assert {classes.count(name) for name in FIELDS.classes} == {8}  # four images of each, by store
    assert all(part.note for part in parts.values())  # stubs are untrained
    assert {row["array"] for row in parts["tokens"].rows} == {"dense", "grid"}


def test_neighbours_are_those_of_the_standardised_features(two, parts):
    for row in parts["same-class"].rows:
        store = two[row["store"]]
        x = StandardScaler().fit_transform(store.read("pooled"))
        nearest = (cosine_similarity(x) - 9 * np.eye(24)).argmax(1)
        assert row["samples"] == 24
        same = 100 * (store.labels[nearest] == store.labels).mean()
        assert row["same class, %"] == pytest.approx(same)
        for one in parts["map"].rows:
            if one["store"] == row["store"]:
                place = store.row_of[one["sample_id"]]
                assert one["nearest"] == store.sample_ids[nearest[place]]
    first = parts["neighbours-1"].rows[:5]
    assert [row["place"] for row in first] == ["nearest", "second", "third", "fourth", "fifth"]
    assert [row["cosine"] for row in first] == sorted((r["cosine"] for r in first), reverse=True)


def test_copies_and_images_of_one_scene_are_no_neighbours(tmp_path):
    files = dict(FIELDS.read.content)
    ids = FIELDS.sample_ids
    files[ids[5]] = files[ids[4]]  # of another scene
    scenes = tuple(f"scene{i % 4}" for i in range(24))
    data = replace(FIELDS, read=Reads(files), groups=scenes)
    store = open_store(embedded(tmp_path, data, 64, ("pooled",)))
    (drawing, *_), _ = embeddings({"stub": store}, Album(None))
    of = dict(zip(ids, scenes, strict=True))
    pairs = {row["sample_id"]: row["nearest"] for row in drawing.rows}
    assert not [one for one, other in pairs.items() if of[one] == of[other]]
    assert (pairs[ids[4]], pairs[ids[5]]) != (ids[5], ids[4])
    data = replace(FIELDS, read=Reads(dict.fromkeys(ids, files[ids[0]])), name="copies")
    store = open_store(embedded(tmp_path, data, 64, ("pooled",)))
    (drawing, share), _ = embeddings(
        {"stub": store}, Album(None)
    )  # nothing varies, nothing is near
    assert {(row["x"], row["nearest"]) for row in drawing.rows} == {(0.0, "")}
    assert np.isnan(share.rows[0]["same class, %"])


@pytest.mark.parametrize(
    ("data", "unit"),
    [(several(12), "classes"), (numbers(12), "level"), (blobs(6, 2), "class1, %"), (blobs(6), "foreground, %")],
    ids=["multilabel", "regression", "masks", "classes"],
)  # fmt: skip
def test_other_tasks_are_coloured_by_a_number(tmp_path, data, unit):
    store = open_store(embedded(tmp_path, data, 64, ("grid", "pooled")))
    found = {one.name: one for one in embeddings({"stub": store}, Album(data))[0]}
    assert [*found] == ["map", "neighbours-1", "tokens"]
    assert all(isinstance(row[unit], float) for row in found["map"].rows)
    assert found["map"].figure.axes[-1].get_ylabel() == unit
    assert len({row["sample_id"] for row in found["neighbours-1"].rows}) == 5
    values = {row["sample_id"]: row[unit] for row in found["map"].rows}
    if "%" in unit:
        name, value = next(iter(values.items()))
        mask = data.read_mask(name)
        assert value == pytest.approx(100 * (mask[mask != 255] > 0).mean(), abs=3)


def test_tokens_without_padding_have_the_same_colour_in_every_picture(two):
    ids = FIELDS.sample_ids
    found, share = pictures._coloured(two["small"], "dense", [*ids[:3], ids[1]])
    shapes = [(4, 4), (4, 3), (3, 4), (4, 3)]  # square, tall, wide
    assert [one.shape[:2] for one in found] == shapes
    assert np.array_equal(found[1], found[3])
    assert 0 < share <= 1


def test_without_images_there_are_tokens_alone_and_no_thumbnails(two):
    found = {one.name: one for one in embeddings({"one": two["small"]}, Album(None))[0]}
    assert [*found] == ["map", "same-class", "tokens"]
    assert len(found["tokens"].rows) == 12


def test_umap_places_samples_if_it_is_installed(two, monkeypatch):
    def made(**given):
        assert given["random_state"] == 0
        return SimpleNamespace(fit_transform=lambda x: x[:, :2] * 0 + 7)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=made))
    drawing = embeddings({"one": two["small"]}, Album(None))[0][0]
    assert {(row["x"], row["y"]) for row in drawing.rows} == {(7.0, 7.0)}
    assert "UMAP" in drawing.caption


def test_a_store_that_is_gone_or_damaged_is_named(two, tmp_path, monkeypatch):
    store = two["small"]
    about = {"store": "here", "store_path": str(store.path), "fingerprint": store.fingerprint}
    a_run(tmp_path, "mlp", **about)
    a_run(tmp_path, "logreg", store="gone", fingerprint="a" * 64)
    a_run(tmp_path, "knn", store="cloud", store_path="s3://bucket/store.zarr", fingerprint="b" * 64)
    a_run(tmp_path, "conv", **{**about, "fingerprint": "c" * 64})  # made anew since
    found, absent = read_stores(the_one(tmp_path))
    assert [one.path for one in found.values()] == [store.path]
    assert len(absent) == 3

    def damaged(*_):
        raise DamageError("row 3 of pooled")

    monkeypatch.setattr(Store, "read", damaged)
    drawn, notes = embeddings(found, Album(None))
    assert drawn == []
    assert "row 3 of pooled" in notes[0]


def test_few_samples_have_no_map_and_many_classes_share_a_colour(tmp_path):
    store = open_store(embedded(tmp_path, stripes(2, 2), 64, ("pooled",)))
    assert embeddings({"one": store}, Album(None)) == ([], [])
    names = [f"class{i:02d}" for i in range(MOST_COLOURS + 3)] * 2
    points = np.zeros((len(names), 2), np.float32)
    figure = plane({"one": (points, ("x", "y"))}, names, points[:, 0], "class", "")
    (legend,) = figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert len(said) == MOST_COLOURS + 1
    assert said[-1] == "others"
    three = dict.fromkeys("abc", (points, ("x", "y")))
    assert len(plane(three, None, points[:, 0], "level", "").axes) == 3 + 1  # that of the colours


def test_what_encoders_cost_stands_beside_the_best_score(two, tmp_path):
    for name, store in two.items():
        options = {"store": name, "encoder": name, "fingerprint": store.fingerprint}
        for head in ("mlp", "logreg"):
            a_run(tmp_path, head, store_path=str(store.path), **options)
    comparison = the_one(tmp_path)
    (part,) = encoder_costs(comparison, read_stores(comparison)[0])
    assert {row["encoder"]: row["image size"] for row in part.rows} == {"small": 64, "large": 128}
    for row in part.rows:
        store = two[row["encoder"]]
        size = sum(store.bytes_of(tier) for tier in store.tiers) / 24 / 1024
        assert row["KiB an image"] == pytest.approx(size)
        assert row["best model"].endswith(f"@ {row['encoder']}")
    assert encoder_costs(comparison, {"small": two["small"]}) == []
