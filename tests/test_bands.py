"""Encoders take the bands that they ask for by name, in the units that they are in, from images of any dtype."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.io import MemoryFile
from stubs import png

import samtl
from samtl.datasets import Dataset, eurosat_ms, resolve
from samtl.encoders import sam
from samtl.encoders.base import OWN
from samtl.errors import InputError, MismatchError
from samtl.images.bands import (
    BYTES,
    FRACTION,
    REFLECTANCE,
    RGB,
    SENTINEL_2,
    UNITS,
    Bands,
    Reading,
    common_names,
)
from samtl.images.codecs import BadImage, prepare, statistics

NAMES = ("blue", "green", "red", "nir")


def tif(values):
    """Write (bands, height, width) as a GeoTIFF."""
    count, height, width = values.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore")  # that it lies nowhere
        with memory.open(
            driver="GTiff", count=count, height=height, width=width, dtype=values.dtype
        ) as file:
            file.write(values)
        return memory.read()


def tile(seed, bands=4, dtype="uint16", side=20):
    return np.random.default_rng(seed).integers(0, 2750, (bands, side, side)).astype(dtype)


def scene(n=6, bands=NAMES, units=REFLECTANCE, make=tile, name="chips"):
    files = {f"{i}.tif": tif(make(i, len(bands))) for i in range(n)}
    labels = tuple(i % 2 for i in range(n))
    return Dataset(
        name, ("a", "b"), tuple(files), labels, files.__getitem__, bands=bands, units=units
    )


def embed(dataset, **options):
    options = {
        "encoder": "tiny",
        "image_size": 64,
        "tiers": ("pooled",),
        "dtype": "float32",
        "out": "stores",
    } | options
    return samtl.embed(dataset, device="cpu", **options)


@given(st.permutations(list(SENTINEL_2)))
def test_names_of_a_sensor_are_common_names(names):
    assert common_names(names) == tuple(SENTINEL_2[name] for name in names)
    shorter = [name.replace("B0", "B").lower() for name in names]
    assert common_names(shorter) == common_names([*common_names(names)]) == common_names(names)


@pytest.mark.parametrize("names", [("red", "B04"), ("red", "RED"), ("",), ()])
def test_bands_are_named_once(names):
    with pytest.raises(InputError):
        common_names(names)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_values_come_as_they_are_stored(dtype):
    values = (tile(0) % 200).astype(dtype)
    found = prepare(tif(values), 20, Reading(4, (2, 0)))
    np.testing.assert_array_equal(found.pixels, values[[2, 0]].transpose(1, 2, 0))
    assert (found.pixels.dtype, found.size) == (np.float32, (20, 20))
    flat = values[[2, 0]].reshape(2, -1).astype(float)
    expected = np.stack([flat.mean(1), flat.std(1), flat.min(1), flat.max(1)])
    np.testing.assert_allclose(found.statistics.reshape(4, 2), expected, rtol=1e-6)


def test_resizing_is_that_of_pictures():
    picture = png(3, (30, 12))
    rgb = np.asarray(Image.open(io.BytesIO(picture)))
    for size in (8, 30, 64):
        bands = prepare(tif(rgb.transpose(2, 0, 1)), size, Reading(3)).pixels
        assert np.abs(bands - prepare(picture, size).pixels).max() <= 1  # these are rounded, twice


def test_some_bands_of_a_picture():
    whole, some = prepare(png(1), 16), prepare(png(1), 16, Reading(0, (2, 0)))
    np.testing.assert_array_equal(some.pixels, whole.pixels[..., [2, 0]])
    described = statistics(np.asarray(Image.open(io.BytesIO(png(1)))))
    np.testing.assert_array_equal(some.statistics.reshape(4, 2), described.reshape(4, 3)[:, [2, 0]])


@pytest.mark.parametrize(
    "data", [tif(tile(0, 3)), tif(np.full((4, 9, 9), np.nan, "float32")), png(0), b"II*\0 cut"]
)
def test_files_without_these_bands_are_refused(data):
    with pytest.raises(BadImage):
        prepare(data, 16, Reading(4))


def test_an_encoder_takes_its_bands_by_name():
    """Of shuffled bands and of others beside them the same ones are taken."""
    plain = embed(scene(bands=("red", "green", "blue"), name="rgb"))
    swapped = scene(
        bands=("nir", *reversed(RGB)),
        make=lambda seed, n: np.concatenate([tile(99, 1), tile(seed, 3)[::-1]]),
        name="nbgr",
    )
    found = embed(swapped)
    assert found.plan.bands == RGB
    (x, _), (y, _) = (samtl.open(r.store).features("pooled") for r in (plain, found))
    np.testing.assert_array_equal(x, y)
    assert samtl.open(found.store).identity["units"] == REFLECTANCE


def test_reflectance_looks_to_an_encoder_like_a_picture_of_it():
    """The picture is made as EuroSAT's is: 0 to 2750 become 0 to 255."""
    values = tile(7, 3)
    whole = np.round(values * (255 / 2750)).astype(np.uint8)
    pixels = [whole.transpose(1, 2, 0), values.transpose(1, 2, 0).astype(np.float32)]
    pictures, reflectance = (
        sam.Encoder("tiny", "random:0", "cpu", "float32", 64, bands=Bands(RGB, units)).encode([x])
        for x, units in zip(pixels, (BYTES, REFLECTANCE), strict=True)
    )
    distance = np.linalg.norm(pictures["pooled"] - reflectance["pooled"])
    assert distance < 0.02 * np.linalg.norm(pictures["pooled"])
    bright = pixels[1] + 50_000  # clouds are white
    encoder = sam.Encoder("tiny", "random:0", "cpu", "float32", 64, bands=Bands(RGB, REFLECTANCE))
    white = [np.full_like(bright, 2750), bright]
    np.testing.assert_array_equal(*(encoder.encode([x])["pooled"] for x in white))


def test_what_is_chosen_is_in_the_fingerprint_and_goes_on():
    begun = embed(scene(), bands="nir,red,green", limit=3, out="a.zarr")
    store = samtl.open(begun.store)
    assert store.identity["bands"] == ["nir", "red", "green"]
    assert list(store.columns("image_stats"))[:3] == ["mean_nir", "mean_red", "mean_green"]
    again = embed(scene(), out="a.zarr")  # as it was begun
    assert (again.plan.bands, again.rows) == (("nir", "red", "green"), 6)
    with pytest.raises(MismatchError):
        embed(scene(), bands="red,green,blue", out="a.zarr")
    other = embed(scene(), bands=("B08", "B04", "B03"))
    assert other.store != embed(scene()).store


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bands": "swir1,red,green"}, "swir1"),
        ({"bands": "red,nir"}, "three bands"),
        ({"bands": "red,red,nir"}, "once"),
    ],
)
def test_bands_that_cannot_be_taken(options, named):
    with pytest.raises(InputError, match=named):
        embed(scene(), **options)


def test_images_without_the_bands_of_an_encoder():
    with pytest.raises(InputError, match="no red"):
        embed(scene(bands=("nir", "green", "blue", "swir1")))


def test_baselines_and_reports_see_a_picture_of_them():
    dataset = scene(24)
    values = tile(5)[[2, 1, 0]].transpose(1, 2, 0)
    picture = dataset.picture("5.tif")
    assert picture.dtype == np.uint8
    assert np.abs(picture - values * (255 / 2750)).max() <= 0.5
    run = samtl.fit_baseline(dataset, baseline="floor", split=0.5, out="runs")
    assert run.n_test == 12
    with pytest.raises(InputError, match="red"):
        scene(bands=("nir", "green", "blue", "swir1")).picture("5.tif")
    drawn = resolve("synthetic:8")
    assert drawn.picture(drawn.sample_ids[0]).shape == (256, 256, 3)


def test_units_are_known_ones():
    with pytest.raises(InputError, match="radiance"):
        scene(units="radiance")
    assert {BYTES, REFLECTANCE} < set(UNITS)
    with pytest.raises(InputError, match="reflectance"):
        scene(units=REFLECTANCE).taking(RGB, BYTES)


@pytest.mark.parametrize(
    ("values", "likely"),
    [(1, ""), (1e-4, FRACTION), (255 / 2750, BYTES), (1000, "hardly"), (-1000.0, "hardly")],
)
def test_values_that_hardly_are_in_their_units_are_told(values, likely):
    dataset = scene(make=lambda seed, n: (tile(seed, n) * values).astype(np.float32))
    found = dataset.understood()
    assert ("hardly" in found.values) is bool(likely)
    assert found.values.endswith(likely if likely in UNITS else "")
    assert found.bands == {"blue, green, red, nir": 6}
    assert resolve("synthetic:8").understood().values == ""


def test_a_folder_a_table_and_masks_declare_their_bands(tmp_path):
    for i in range(4):
        path = tmp_path / "folder" / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tif(tile(i)))
        for kind, data in (
            ("images", tif(tile(i))),
            ("masks", tif(255 * (tile(i, 1, "uint8") % 2))),
        ):
            (tmp_path / "masks" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "masks" / kind / f"{i}.tif").write_bytes(data)
    lines = [f"folder/{'ab'[i % 2]}/{i}.tif,{'ab'[i % 2]}" for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines]))
    options = f"bands=B02,B03,B04,B08&units={REFLECTANCE}"
    for what in ("folder:folder", "masks:masks", "table:t.csv"):
        kind, _, place = what.partition(":")
        dataset = resolve(f"{kind}:{tmp_path / place}?{options}")
        assert (dataset.bands, dataset.units) == (NAMES, REFLECTANCE)
        assert embed(dataset).encoded == 4
        with pytest.raises(InputError):
            resolve(f"{kind}:{tmp_path / place}?bands=")


def test_predictions_on_images_with_these_bands(tmp_path):
    stored = embed(scene(40), bands="nir,red,green")
    run = samtl.fit_head(stored.store, head="logreg", split=0.5, out="runs")
    folder = tmp_path / "new"
    for i in range(4):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[i % 2] / f"{i}.tif").write_bytes(scene(4).read(f"{i}.tif"))
    options = f"bands=B02,B03,B04,B08&units={REFLECTANCE}"
    found = samtl.predict(run.path, f"{folder}?{options}", out="new.csv")
    assert (found.rows, "hardly" in found.values) == (4, False)
    for path in folder.rglob("*.tif"):
        path.write_bytes(tif((tile(0) / 10_000).astype(np.float32)))
    assert FRACTION in samtl.predict(run.path, f"{folder}?{options}", out="odd.csv").values
    with pytest.raises(InputError):
        samtl.predict(run.path, folder, out="other.csv")


def test_eurosat_with_all_bands(tmp_path):
    order = [SENTINEL_2[name] for name in eurosat_ms.ARCHIVE.bands]
    values = np.stack([np.full((64, 64), i, "uint16") for i in range(13)])
    top = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    with zipfile.ZipFile(tmp_path / "EuroSATallBands.zip", "w") as archive:
        for name in ("Forest", "River"):
            archive.writestr(f"{top}/{name}/{name}_1.tif", tif(values))
    dataset = resolve("eurosat-ms", tmp_path / "EuroSATallBands.zip")
    assert dataset.sample_ids == ("Forest/Forest_1.tif", "River/River_1.tif")
    assert (list(dataset.bands), dataset.units) == (order, REFLECTANCE)
    taken = dataset.taking(("nir_narrow", *RGB), REFLECTANCE)
    found = prepare(dataset.read("River/River_1.tif"), 64, taken.reading)
    assert found.statistics[:4].tolist() == [12, 3, 2, 1]


def test_fingerprints_of_pictures_are_as_before():
    spec = sam.spec("tiny")
    assert spec == sam.spec("tiny", None, OWN) == sam.spec("tiny", 1024, Bands())
    assert json.loads(json.dumps(spec.fingerprint("0", "float32")))["units"] == BYTES
    assert set(spec.scaling) == {"mean", "std"}
