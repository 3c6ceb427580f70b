"""Images listed in a table: which columns are read, what they mean, and what is refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from zips import picture, unpack

from samtl.datasets import resolve
from samtl.errors import InputError, UnknownName

NAMES = ("a.png", "b/c.png", "d, e.png", "f.png")


@pytest.fixture
def root(tmp_path):
    return unpack(tmp_path / "data", {name: picture(i) for i, name in enumerate(NAMES)})


def listed(root, text, options="", name="land.csv", top=None):
    """The dataset of a table beside the images."""
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return resolve(f"table:{root / name}{options}", top)


TEXT = 'path,label,scene\na.png,water,1\nb/c.png,city,1\n"d, e.png",city,2\nf.png,,2\n'


def test_columns_are_found_by_their_names(root):
    dataset = listed(root, TEXT)
    assert dataset.name == "table-land"
    assert dataset.sample_ids == NAMES
    assert dataset.classes == ("city", "water")
    assert dataset.labels == (1, 0, 0, -1)
    assert dataset.groups == ("1", "1", "2", "2")
    assert dataset.read("b/c.png") == picture(1)
    assert dataset.understood().unlabelled == 1
    assert dataset.readings == (
        "columns of the table: path from 'path', label from 'label', group from 'scene'",
    )


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("\n", "\r\n"),
        "\ufeff" + TEXT,
        TEXT.replace(",", ";").replace("d; e", "d, e"),
        TEXT.replace(",", "\t").replace("d\t e", "d, e"),
        TEXT.replace("\n", "\n\n"),
        TEXT.replace(",", " , ").replace("d , ", "d,").removesuffix("\n"),
        "\r\n" + TEXT.replace("\n", "\r\n"),
    ],
    ids=["crlf", "bom", "semicolon", "tab", "empty lines", "spaces", "empty first line"],
)
def test_dialects_say_the_same(root, text):
    assert listed(root, text).labels == listed(root, TEXT).labels
    assert listed(root, text).sample_ids == NAMES


def test_columns_can_be_chosen(root):
    text = "file,image,kind,part\nx,a.png,0,train\nx,b/c.png,1,val\nx,f.png,1,Test\n"
    with pytest.raises(InputError, match="file, image"):
        listed(root, text)
    with pytest.raises(UnknownName, match=r"did you mean kind\?"):
        listed(root, text, "?path=image&label=kinds")
    dataset = listed(root, text, "?path=image&label=kind")
    assert dataset.name == "table-land-kind"
    assert dataset.parts == ("train", "validation", "test")


def test_a_column_of_something_else_is_no_part(root):
    text = "path,label,split\na.png,x,0\nf.png,y,1\n"
    dataset = listed(root, text)
    assert not dataset.parts
    assert "'split' is not used" in dataset.readings[-1]
    with pytest.raises(InputError, match="'0', '1'"):
        listed(root, text, "?part=split")


def test_paths_are_relative_to_the_root_or_absolute(root, tmp_path):
    text = f"path,label\n{root / 'a.png'},x\n./b/../b/c.png,y\nb\\..\\f,x\n"
    dataset = listed(root, text)
    assert dataset.sample_ids == ("a.png", "b/c.png", "f.png")
    above = listed(tmp_path, "path,label\na.png,x\nf.png,y\n", top=root)
    assert above.sample_ids == ("a.png", "f.png")


def test_parquet_keeps_its_types(root):
    columns = {"filename": NAMES, "class": [1.0, 2.0, float("nan"), None], "site": [7, 7, 8, 8]}
    pq.write_table(pa.table(columns), root / "land.parquet")
    dataset = resolve(f"table:{root / 'land.parquet'}")
    assert dataset.name == "table-land-class"
    assert (dataset.classes, dataset.labels) == (("1", "2"), (0, 1, -1, -1))
    assert dataset.groups == ("7", "7", "8", "8")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([f"x{i}.png,{i % 2}" for i in range(7)], "7 lead to no file .*'x4.png' and 2 more"),
        (["a.png,0", "../data/../../a.png,1"], "1 lead out"),
        (["a.png,0", "/etc/passwd,1"], "1 lead out"),
        (["a.png,0", "out.png,1"], "1 lead out"),
        (["a.png,0", "away/d.png,1"], "1 lead out"),
        (["a.png,0", "b,1"], "1 lead to something other"),
        (["a.png,0", ",1"], "1 are empty"),
        (["a.png,0", "./a.png,1", "f.png,1"], "2 stand in several rows"),
        (["a.png,", "f.png,"], "at least 2 classes"),
        (["a.png,x", "f.png,x"], "at least 2 classes"),
        (["a.png,x", "f.png,X"], "upper and lower case"),
        (["a.png,0.25", "f.png,1.5"], r"'0\.25', '1\.5'.*\?target=label"),
        (["a.png,0,1"], "Expected 2 columns, got 3"),
        ([], "no rows"),
    ],
)
def test_rows_that_are_refused(root, tmp_path, rows, told):
    (root / "out.png").symlink_to(unpack(tmp_path, {"z.png": picture()}) / "z.png")
    (root / "away").symlink_to(unpack(tmp_path / "other", {"d.png": picture()}))
    with pytest.raises(InputError, match=told):
        listed(root, "\n".join(["path,label", *rows, ""]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label,path\na.png,0,1\n", "several columns called 'path'"),
        ("a.png,0\nf.png,1\n", "no header"),
        ("x,y\na.png,0\n", "of the path, its columns are x, y"),
        ("path,y\na.png,0\n", "of the label"),
        ("path,label\na.png,Wäl\n".encode("latin-1"), "UTF-8"),
        ("path,label,group\na.png,0,1\nf.png,1,\n", "1 of 2 have none"),
        ("", "."),
    ],
)
def test_tables_that_are_refused(root, text, told):
    with pytest.raises(InputError, match=told):
        listed(root, text)


def test_other_files_are_refused(root):
    for name in ("nothing.csv", "", "a.png", "?path=x"):
        with pytest.raises(InputError):
            resolve(f"table:{root / name if name.endswith('g') else name}")
    with pytest.raises(InputError, match="parquet"):
        listed(root, "no parquet", name="x.parquet")


def test_numbers_are_classes_only_if_they_look_like_it(root):
    files = unpack(root, {f"{i}.png": picture(i) for i in range(30)})

    def of(values):
        rows = [f"{i}.png,{value}" for i, value in enumerate(values)]
        return listed(files, "\n".join(["path,label", *rows, ""]))

    assert of([f"{i % 12}.0" for i in range(30)]).classes == tuple(map(str, range(12)))
    assert of([i % 12 for i in range(30)]).classes == tuple(map(str, range(12)))
    with pytest.raises(InputError, match=r"\?target=label"):
        of(range(1000, 1030))


def test_lists_of_labels_are_noticed(root):
    dataset = listed(root, "path,label\na.png,x\nf.png,y\nb/c.png,x;y\n")
    assert dataset.classes == ("x", "x;y", "y")
    assert "?separator=;" in dataset.readings[-1]


SEVERAL = "path,tags\na.png,haze primary\nb/c.png,primary\nf.png,\n"


def test_several_classes_stand_in_one_column(root):
    dataset = listed(root, SEVERAL, "?separator= ")
    assert dataset.task == "multilabel"
    assert (dataset.classes, dataset.labels) == (("haze", "primary"), ((0, 1), (1,), None))
    assert dataset.truth.tolist() == [[1, 1], [0, 1], [-1, -1]]
    found = dataset.understood()
    assert (found.classes, found.unlabelled) == ({"haze": 1, "primary": 2}, 1)
    columns = {"path": NAMES[:3], "tags": [["haze", "primary"], ["primary"], []]}
    pq.write_table(pa.table(columns), root / "land.parquet")
    assert resolve(f"table:{root / 'land.parquet'}").labels == ((0, 1), (1,), ())


def test_several_classes_stand_in_columns_of_their_own(root):
    text = "path,haze,primary,x\na.png,1,1,7\nb/c.png,0,true,7\nf.png,0,0.0,7\nd,,1,7\n".replace(
        "\nd,", '\n"d, e.png",'
    )
    dataset = listed(root, text, "?labels=haze,primary")
    assert (dataset.classes, dataset.labels) == (("haze", "primary"), ((0, 1), (1,), (), None))
    assert dataset.task == "multilabel"
    with pytest.raises(InputError, match="'7'"):
        listed(root, text, "?labels=haze,x")
    with pytest.raises(UnknownName):
        listed(root, text, "?labels=haze,primer")
    with pytest.raises(InputError, match="at least 2"):
        listed(root, text, "?labels=haze")


def test_numbers_to_be_predicted(root):
    text = "path,ndvi,x\na.png,0.5,a\nb/c.png,-1e-1,b\nf.png,NaN,b\n"
    dataset = listed(root, text, "?target=ndvi")
    assert (dataset.task, dataset.classes, dataset.name) == (
        "regression",
        ("ndvi",),
        "table-land-ndvi",
    )
    assert dataset.labels[:2] == (0.5, -0.1)
    assert dataset.understood().unlabelled == 1
    assert "2 numbers from -0.1 to 0.5, mean 0.2" in dataset.readings[1]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["1,5", "2", "3"], "1 of 3 cells"),
        (["x", "y", "3"], "'x', 'y'"),
        (["1", "inf", "3"], "1 of 3 cells"),
        (["1e999", "2", "3"], "finite"),
        (["2", "2", ""], "different"),
        (["", "", ""], "different"),
    ],
)
def test_targets_that_are_refused(root, values, told):
    rows = [f'{name};"{v}"' for name, v in zip(["a.png", "f.png", "b/c.png"], values, strict=True)]
    with pytest.raises(InputError, match=told):
        listed(root, "\n".join(["path;t", *rows]), "?target=t")


@pytest.mark.parametrize(
    "options", ["target=t&label=t", "labels=a,b&target=t", "labels=a&separator=;"]
)
def test_labels_are_of_one_kind(root, options):
    with pytest.raises(InputError, match="one of them"):
        listed(root, "path,t\na.png,1\nf.png,2\n", f"?{options}")
