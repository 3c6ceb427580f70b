"""`samtl embed --dry-run`: what was understood and what it will cost, on one screen."""

import shutil

import pytest
from samtl.cli import render
from stubs import image_folder, png

from samtl.embed import copies

EMBED = (
    *("embed", "--encoder", "tiny", "--image-size", "64", "--checkpoint", "random:0"),
    *("--out", "a.zarr"),
)


@pytest.fixture
def planned(told, monkeypatch, tmp_path):
    """Print the plan of a dataset on a screen of 80 columns: its values as JSON, and the lines by what they say."""
    monkeypatch.setattr(render.out, "width", 80)

    def planned(*options):
        code, plan, output = told(*EMBED, *options, "--dry-run")
        assert code == 0
        assert not (tmp_path / "a.zarr").exists()
        lines = [line.rstrip() for line in output.splitlines()]
        assert len(lines) <= 23
        assert max(map(len, lines)) <= 80
        text = "\n".join(lines)
        return plan, " ".join(text.split())

    return planned


def test_classes_copies_and_what_was_chosen(planned, tmp_path):
    folder = image_folder(tmp_path / "images")
    shutil.copy(folder / "field/0.png", folder / "field/copy.png")
    shutil.copy(folder / "field/1.png", folder / "town/copy.png")
    (folder / "field/notes.txt").write_text("mine")
    (folder / "town/later.gif").write_bytes(b"GIF89a")
    plan, text = planned("--dataset", "folder:images")
    assert plan["copies"] == {"compared": 26, "copies": 2, "relabelled": 1}
    assert plan["seconds"] > 0
    for said in (
        "26 images for classification",
        "2: field 13, town 13",
        "RGB in 13 that were looked at",
        "2 are copies of others, 1 of them with another label",
        ".gif",
        "float32 on cpu, engine fast, batch size",
        "--tiers: for classification",
        "pooled 11",
        "to write",
        "images a second, from one batch",
        "weights untrained (random:0)",
        "a.zarr (new)",
    ):
        assert said in text.replace("bfloat16", "float32"), text


def test_copies_are_told_once_unless_the_pass_finds_more(run, monkeypatch, tmp_path):
    folder = image_folder(tmp_path / "images")
    shutil.copy(folder / "field/0.png", folder / "field/copy.png")
    told = "1 is a copy of another"
    command = (*EMBED, "--dataset", "folder:images")
    assert [run(*command)[1].count(told) for _ in range(2)] == [1, 1]
    monkeypatch.setattr(copies, "SECONDS", -1)  # one image is compared
    code, output, _ = run(*command, "--limit", "25", "--out", "b.zarr")
    assert (code, "no two of the 1 compared" in output, output.count(told)) == (0, True, 1)


def test_masks(planned):
    plan, text = planned("--dataset", "synthetic-roads:6")
    assert plan["task"] == "segmentation"
    assert plan["tiers"] == ["pooled", "grid", "dense"]
    assert "images for segmentation" in text
    assert "background 8" in text
    assert plan["understood"]["pixels"]["road"] > 0


def test_parts_groups_and_a_store_that_is_there(run, planned, tmp_path):
    for number, part in enumerate(("train", "val", "test")):
        image_folder(tmp_path / "parted" / part)
        for i in range(12):
            path = tmp_path / "parted" / part / "field" / f"{i}.png"
            path.write_bytes(png(12 * number + i))
    dataset = ("--dataset", "folder:parted", "--device", "cpu", "--dtype", "float32")
    plan, text = planned(*dataset, "--group-by", r"(\w+)/\w+/")
    assert "train 24, validation 24, test 24" in text
    assert "3, which no split divides" in text
    assert plan["understood"]["groups"] == 3
    assert "--device" not in text
