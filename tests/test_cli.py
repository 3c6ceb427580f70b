"""The command line as a user meets it: what it prints, what it writes, and how it ends."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import stubs
import torch
from PIL import Image

import samtl
from samtl.datasets import folder as folder_module

ROOT = Path(__file__).parent.parent
main = next(e for e in entry_points(group="console_scripts") if e.name == "samtl").load()


def untouched(path):
    return not path.exists() or not list(path.rglob("*"))


def test_help_names_every_verb(run):
    code, output, _ = run("--help")
    assert code == 0
    for verb in (
        "embed",
        "fit-head",
        "predict",
        "sweep",
        "report",
        "reproduce",
        "info",
        "ls",
        "demo",
    ):
        assert verb in output
    assert "Exit codes" in output


@pytest.mark.parametrize(
    "verb",
    [
        "embed",
        "fit-head",
        "fit-baseline",
        "predict",
        "sweep",
        "report",
        "reproduce",
        "info",
        "ls",
        "bench heads",
        "demo",
    ],
)
def test_every_option_is_in_the_readme(run, verb):
    _, output, _ = run(*verb.split(), "--help")
    options = set(re.findall(r"--[a-z][a-z-]+", output)) - {"--help", "--no-allow-partial"}
    text = (ROOT / "README.md").read_text()
    assert options
    assert not [option for option in options if option not in text]


def test_version(run):
    assert run("--version")[1].strip() == f"samtl {samtl.__version__}"


def test_embed_prints_the_plan_then_the_result(run, encoders, folder):
    code, output, _ = run(
        "embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--json", "e.json"
    )
    assert code == 0
    for told in (
        "24 rows",
        "pooled",
        "grid",
        "dense",
        "free",
        "img/s",
        "untrained",
        "peak memory",
    ):
        assert told in output
    written = json.loads(Path("e.json").read_text())
    store = samtl.open(written["store"])
    assert store.path == Path("cache/folder-images.tiny.1024.zarr") or store.path.parent == Path(
        "cache"
    )
    assert written["rows"] == written["encoded"] == len(store) == 24
    assert written["fingerprint"] == store.fingerprint
    assert written["untrained"] is True
    assert written["quarantined"] == []


def test_embed_at_another_image_size(run, encoders, folder):
    args = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--image-size", "128")
    code, output, _ = run(*args)
    assert code == 0
    assert "tiny at 128 pixels" in output
    (store,) = Path("cache").glob("*.128.zarr")
    assert samtl.open(store).identity["image_size"] == 128
    assert "tiny at 128 pixels" in run("info")[1]
    code, _, errors = run(*args[:-1], "100")
    assert code == 2
    assert "--image-size must be a multiple of 16 from 16 to 2048" in errors


def test_dry_run_writes_nothing(run, encoders, folder):
    code, output, _ = run(
        "embed",
        "--dataset",
        f"folder:{folder}",
        "--encoder",
        "tiny",
        "--dry-run",
        "--json",
        "p.json",
    )
    assert code == 0
    assert "24 rows" in output
    assert untouched(Path("cache"))
    assert encoders.images == 0
    assert json.loads(Path("p.json").read_text())["pending_rows"] == 24


def test_bad_images_are_listed_and_end_with_1(run, encoders, folder):
    (folder / "field" / "zero.png").write_bytes(b"")
    (folder / "town" / "text.jpg").write_bytes(b"no image")
    args = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--json", "e.json")
    code, output, errors = run(*args)
    assert code == 1
    assert "2 of 26 rows are quarantined" in output
    assert "field/zero.png: empty" in output
    assert "town/text.jpg: not_an_image" in output
    assert "field/zero.png" in errors  # told when it happens, too
    bad = {q["sample_id"]: q["code"] for q in json.loads(Path("e.json").read_text())["quarantined"]}
    assert bad == {"field/zero.png": "empty", "town/text.jpg": "not_an_image"}
    code, output, _ = run("info")
    assert code == 1
    assert "24 embedded, 2 quarantined, 0 missing" in output
    code, output, _ = run(*args)
    assert code == 1
    assert "nothing left to do" in output


def test_info_as_json(run, encoders, folder):
    run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--tiers", "pooled")
    code, output, _ = run("info", "--json", "i.json")
    assert code == 0
    told = json.loads(Path("i.json").read_text())
    assert told["rows"] == told["ok"] == 24
    assert told["per_class"] == {"field": 12, "town": 12}
    assert told["tiers"] == ["pooled"]
    assert {a["name"]: a["rows"] for a in told["arrays"]}["pooled"] == 24
    assert told["fingerprint"] in output


def test_ls(run, encoders, folder):
    code, output, _ = run("ls")
    assert code == 0
    for name in (
        "eurosat",
        "folder",
        "synthetic",
        "sam_vit_b",
        "sam_vit_h",
        "tiny",
        "logreg",
        "mlp",
        "no stores",
    ):
        assert name in output
    run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    _, output, _ = run("ls", "stores")
    assert "24/24" in output
    assert "untrained" in output
    assert "nearest" not in run("ls", "encoders")[1]


def test_a_damaged_store_does_not_hide_the_others(run, encoders, folder):
    run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", "cache/good.zarr")
    run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", "cache/bad.zarr")
    Path("cache/bad.zarr/fingerprint.json").write_text("{")
    code, output, _ = run("ls", "stores")
    assert code == 0
    assert "24/24" in output
    assert "cannot be opened" in output


def test_which_store_is_meant(run, encoders, folder):
    code, _, errors = run("info")
    assert code == 2
    assert "there is no store in cache" in errors
    for name in ("a", "b"):
        run(
            "embed",
            "--dataset",
            f"folder:{folder}",
            "--encoder",
            "tiny",
            "--out",
            f"cache/{name}.zarr",
        )
    code, _, errors = run("info")
    assert code == 2
    assert "--cache cache/a.zarr" in errors
    assert "--cache cache/b.zarr" in errors
    assert run("info", "--cache", "cache/a.zarr")[0] == 0
    assert run("info", "cache/b.zarr")[0] == 0


EMBED = ("embed", "--encoder", "tiny", "--dataset", "folder:images")

BAD_INPUT = {
    "unknown verb": (("emebd",), "embed"),
    "unknown dataset": (("embed", "--dataset", "eurosta", "--encoder", "tiny"), "did you mean eurosat"),
    "unknown encoder": (("embed", "--dataset", "folder:images", "--encoder", "sam_vit_x"), "did you mean sam_vit_"),
    "unknown kind": (("ls", "encoder"), "did you mean encoders?"),
    "missing root": (("embed", "--dataset", "folder:nowhere", "--encoder", "tiny"), "nowhere"),
    "missing eurosat root": (("embed", "--root", "nowhere", "--encoder", "tiny"), "nowhere"),
    "empty folder": (("embed", "--dataset", "folder:empty", "--encoder", "tiny"), "empty"),
    "unknown tier": ((*EMBED, "--tiers", "pooled,thick"), "--tiers"),
    "batch size": ((*EMBED, "--batch-size", "0"), "--batch-size"),
    "too many per class": ((*EMBED, "--per-class", "99"), "field has 12"),
    "limit": ((*EMBED, "--limit", "0"), "--limit"),
    "device": ((*EMBED, "--device", "gpu"), "--device must be"),
    "dtype": ((*EMBED, "--dtype", "int8"), "--dtype must be"),
    "seed of weights": ((*EMBED, "--checkpoint", "random:x"), "random:SEED"),
    "missing checkpoint": ((*EMBED, "--checkpoint", "w.pth"), "no such file"),
    "nowhere for the JSON": ((*EMBED, "--json", "no/such/folder/e.json"), "in a folder that exists"),
    "not a store": (("info", "images"), "no store in images"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_message_and_exit_code_2(run, folder, case):
    args, told = BAD_INPUT[case]
    Path("empty").mkdir()
    code, _, errors = run(*args)
    assert code == 2
    assert told in re.sub(r"\s+", " ", errors)
    assert untouched(Path("cache"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(run, folder):
    code, _, errors = run(
        "embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--device", "cuda"
    )
    assert code == 2
    assert "--device cuda needs CUDA" in errors
    assert untouched(Path("cache"))


def test_a_checkpoint_of_another_architecture(run, folder):
    torch.save({"pos_embed": torch.zeros(1, 64, 64, 768)}, "b.pth")
    code, _, errors = run(
        "embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--checkpoint", "b.pth"
    )
    assert code == 2
    assert "is not of the architecture tiny" in errors
    assert untouched(Path("cache"))


def test_too_little_disk(run, encoders, folder, monkeypatch):
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 1000})(),
    )
    code, _, errors = run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    assert code == 5
    assert "GiB free" in errors
    assert untouched(Path("cache"))


def test_a_store_of_another_making_is_refused_field_by_field(run, encoders, folder):
    args = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", "s.zarr")
    assert run(*args)[0] == 0
    before = stubs.contents(Path("s.zarr"))
    code, _, errors = run(*args, "--checkpoint", "random:5")
    assert code == 3
    assert "encoder.weights_sha256" in errors
    code, _, errors = run(*args, "--dtype", "float32")
    if samtl.open("s.zarr").identity["compute_dtype"] != "float32":
        assert code == 3
        assert "compute_dtype: the store has bfloat16, asked for is float32" in errors
    code, _, errors = run(
        "embed", "--dataset", "synthetic:3", "--encoder", "tiny", "--out", "s.zarr"
    )
    assert code == 3
    assert "dataset: the store has folder-images, asked for is synthetic" in errors
    after = stubs.contents(Path("s.zarr"))
    assert {k: v for k, v in after.items() if not k.startswith(".")} == {
        k: v for k, v in before.items() if not k.startswith(".")
    }


SLOW_EMBED = """
    import sys
    sys.path.insert(0, {tests!r})
    import stubs
    stubs.install(stubs.StubEncoders(seconds={seconds}))
    from importlib.metadata import entry_points
    main = next(e for e in entry_points(group="console_scripts") if e.name == "samtl").load()
    sys.argv = ["samtl", "embed", "--dataset", "synthetic:20", "--encoder", "tiny", "--out", "s.zarr"]
    main()
"""


def start_slow_embed(seconds=0.05):
    code = textwrap.dedent(SLOW_EMBED.format(tests=str(ROOT / "tests"), seconds=seconds))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_a_record(store):
    deadline = time.monotonic() + 60
    while not list((store / "log").glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_pass_after_the_block_in_flight(number, expected):
    process = start_slow_embed()
    wait_for_a_record(Path("s.zarr"))
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == expected
    assert "stopping after the block in flight" in errors
    assert "the same command goes on from there" in output
    store = samtl.open("s.zarr")
    done = len(store) - store.missing
    assert 0 < done < len(store)
    assert done % 16 == 0
    assert not [p for p in Path("s.zarr").rglob("*") if p.name.startswith(".tmp-")]
    again = start_slow_embed()
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert f"{len(store) - done} of them still to do" in output
    assert samtl.open("s.zarr").missing == 0


def test_a_second_signal_stops_at_once():
    process = start_slow_embed(seconds=0.5)
    deadline = time.monotonic() + 60
    while not Path("s.zarr/zarr.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=6)  # the block in flight alone would take 8 seconds
    assert process.returncode == 130
    assert "error: stopped; what was committed before is kept" in errors


def test_a_second_writer_leaves_with_code_4():
    process = start_slow_embed()
    wait_for_a_record(Path("s.zarr"))
    other = start_slow_embed()
    _, errors = other.communicate(timeout=60)
    assert other.returncode == 4
    assert f"process {process.pid}" in errors
    process.kill()
    process.communicate()


def test_a_defect_is_not_taken_for_a_finished_pass(monkeypatch, capsys):
    """Python's own exit code for an uncaught error is 1, which means "done, with quarantined rows" here."""

    def broken(path):
        raise ZeroDivisionError

    monkeypatch.setattr("samtl.store.storage.locate", broken)
    monkeypatch.setattr(sys, "argv", ["samtl", "info"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 70
    assert "please report it" in capsys.readouterr().err


def test_sixteen_bit_images_are_quarantined_with_advice(run, encoders, folder):
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(folder / "field" / "deep.tif")
    code, output, _ = run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    assert code == 1
    assert "field/deep.tif: unsupported_mode" in output


@pytest.mark.parametrize("head", ["logreg", "mlp"])
def test_fit_head_prints_scores_beside_the_floor(run, embedded, head):
    code, output, _ = run("fit-head", "--head", head, "--split", "0.25", "--json", "f.json")
    assert code == 0
    for told in (
        "accuracy",
        "95 % interval",
        "floor",
        "untrained",
        "14 images to train on",
        "6 held out",
    ):
        assert told in output
    told = json.loads(Path("f.json").read_text())
    assert {"metrics", "floor", "split", "fingerprint", "run", "seconds"} <= told.keys()
    for score in told["metrics"].values():
        assert score["low"] <= score["value"] <= score["high"]
    assert told["split"]["share"] == 0.25
    folder = Path(told["run"])
    assert folder.parent == Path("runs")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "split.json", "metrics.json", "confusion.csv", "curves.csv",
        "predictions.csv", "head.safetensors", "head.json",
    }  # fmt: skip
    assert f"run: {folder}" in output


def test_runs_are_never_overwritten(run, embedded):
    for _ in range(3):
        assert run("fit-head", "--head", "logreg")[0] == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert len(names) == 3
    assert names[1] == f"{names[0]}.2"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--split", "1.5"), "--split 1.5: a held-out share lies between 0 and 1"),
        (("--split", "0"), "--split 0: a held-out share lies between 0 and 1"),
        (("--split", "0.01"), "choose a share from"),
        (("--head", "mpl"), "did you mean mlp?"),
        (("--cache", "nowhere"), "there is no store in nowhere"),
        (("--split", "half"), "no split is called 'half': known are 0.2, shipped, fold:1/5"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
    ],
)
def test_fit_head_on_bad_input(run, embedded, args, told):
    code, _, errors = run("fit-head", *args)
    assert code == 2
    assert told in re.sub(r"[\s│]+", " ", errors)
    assert untouched(Path("runs"))


def test_a_class_too_small_to_split(run, encoders, folder):
    for image in sorted((folder / "town").iterdir())[1:]:
        image.unlink()
    run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    code, _, errors = run("fit-head")
    assert code == 2
    assert "class 'town', got 1" in errors


def test_an_unfinished_store_is_refused_unless_allowed(run, embedded):
    store = next(Path("cache").glob("*.zarr"))
    (store / "log" / "1.json").unlink()
    code, _, errors = run("fit-head", "--head", "logreg")
    assert code == 2
    assert "8 of 24 rows" in errors
    code, output, _ = run("fit-head", "--head", "logreg", "--allow-partial")
    assert code == 0
    assert "8 rows were left out" in output


def test_a_damaged_store_ends_with_2(run, embedded):
    shard = next(Path("cache").glob("*.zarr")) / "pooled" / "c.0.0"
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    code, _, errors = run("fit-head", "--head", "logreg")
    assert code == 2
    assert "fails its checksum" in errors
    assert untouched(Path("runs"))


@pytest.fixture
def trained(run, embedded):
    """A run on the store of 24 images."""
    assert run("fit-head", "--head", "logreg", "--json", "f.json")[0] == 0
    return json.loads(Path("f.json").read_text())["run"]


def test_predict_prints_classes_and_lists_bad_images(run, trained, folder):
    code, output, _ = run("predict", "--run", trained, "--images", folder, "--json", "p.json")
    assert code == 0
    for told in ("field", "town", "mean probability", "24 images", "untrained", "predictions.csv"):
        assert told in output
    assert len(Path("predictions.csv").read_text().splitlines()) == 25
    (folder / "field" / "zero.png").write_bytes(b"")
    args = ("predict", "--run", trained, "--images", folder, "--json", "p.json")
    code, _, errors = run(*args)
    assert code == 2
    assert "--overwrite" in errors
    code, output, _ = run(*args, "--overwrite")
    assert code == 1
    assert "1 of 25 images were skipped" in output
    assert "field/zero.png: empty" in output
    told = json.loads(Path("p.json").read_text())
    assert told["rows"] == 24
    assert [bad["image"] for bad in told["skipped"]] == ["field/zero.png"]


def test_predict_from_the_only_store(run, trained, folder):
    code, output, _ = run("predict", "--run", trained, "--from-store", "--out", "stored.csv")
    assert code == 0
    assert "table: stored.csv" in output
    assert Path("stored.csv").read_text().startswith("sample_id,predicted,p_field,p_town\n")


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ((), 2, "give one of --images, --from-store"),
        (("--images", "images", "--from-store"), 2, "give one of --images, --from-store"),
        (("--images", "images", "--cache", "cache"), 2, "--cache names the store for --from-store"),
        (("--images", "images", "--checkpoint", "random:1"), 3, "encoder.weights_sha256"),
        (("--images", "nowhere"), 2, "does not exist"),
        (("--images", "images", "--device", "gpu"), 2, "--device must be"),
        (("--images", "images", "--batch-size", "0"), 2, "--batch-size"),
    ],
)
def test_predict_on_bad_input(run, trained, args, code, told):
    ended, _, errors = run("predict", "--run", trained, *args)
    assert ended == code
    assert told in re.sub(r"\s+", " ", errors)
    assert not Path("predictions.csv").exists()


def test_predict_without_a_run(run, folder):
    code, _, errors = run("predict", "--run", folder, "--images", folder)
    assert code == 2
    assert "is no run" in errors


def test_verify_and_repair(run, embedded):
    (store,) = Path("cache").glob("*.zarr")
    code, output, _ = run("verify", "--json", "v.json")
    assert (code, json.loads(Path("v.json").read_text())["findings"]) == (0, [])
    assert "whole" in output
    damaged = Path(shutil.copytree(store, "damaged.zarr"))
    shard = next(damaged.glob("pooled/c.*"))
    shard.write_bytes(shard.read_bytes()[::-1])
    code, output, _ = run("verify", str(damaged), "--json", "v.json")
    assert code == 2
    assert "pooled/c." in output
    assert "--repair" in output
    assert json.loads(Path("v.json").read_text())["findings"][0]["array"] == "pooled"
    assert run("verify", str(damaged), "--quick")[0] == 0
    code, output, _ = run("verify", str(damaged), "--repair")
    assert code == 1
    assert "embedded again" in output
    code, output, _ = run("verify", str(damaged), "--deep")
    assert code == 1
    assert "missing" in output


@pytest.mark.parametrize(
    ("number", "code", "remedy"),
    [
        (errno.EROFS, 5, "mount that drive for writing, or work on a copy elsewhere"),
        (errno.ENOSPC, 5, "make room there and start again"),
        (errno.EIO, 5, ""),
        (errno.EACCES, 2, "whoever runs samtl must have the right to that"),
    ],
)
def test_what_a_drive_refuses_is_told_with_a_remedy(
    run, embedded, monkeypatch, number, code, remedy
):
    (store,) = Path("cache").glob("*.zarr")
    opened, shard = os.open, store / "pooled" / "c.0.0"
    shard.write_bytes(bytes(shard.stat().st_size))

    def refuse(path, *options, **named):
        if str(path).endswith(".lock"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *options, **named)

    monkeypatch.setattr(os, "open", refuse)
    ended, _, errors = run("verify", store, "--repair")
    assert ended == code
    told = f"{os.strerror(number)}: {store.resolve() / '.lock'}"
    assert (f"{told}; {remedy}" if remedy else told) in " ".join(errors.split())


def test_verify_says_how_many_rows_it_recomputed(run, embedded, folder):
    images = ("--dataset", f"folder:{folder}", "--recompute", "24", "--json", "v.json")
    code, output, _ = run("verify", *images)
    assert (code, "24 of 24 rows asked for" in output) == (0, True)
    (folder / "town").rename(folder / "city")
    code, output, _ = run("verify", *images)
    assert (code, "12 of 24 rows asked for; no more have" in output) == (0, True)
    told = json.loads(Path("v.json").read_text())
    assert (len(told["recomputed"]), told["recompute"]) == (12, 24)
    (folder / "field").rename(folder / "meadow")
    code, _, errors = run("verify", *images)
    assert (code, "can be recomputed" in errors) == (3, True)
    (store,) = Path("cache").glob("*.zarr")
    next(store.glob("pooled/c.*")).unlink()
    code, output, _ = run("verify", *images)
    assert (code, "0 of 24 rows asked for" in output) == (2, True)


def test_verify_says_what_to_do_about_another_class(run, embedded, monkeypatch):
    listed = folder_module.open_dataset

    def swapped(*arguments):
        return replace(listed(*arguments), classes=("town", "field"))

    images = ("verify", "--deep", "--dataset", f"folder:{Path('images').resolve()}")
    code, output, _ = run(*images)
    assert code == 0
    assert "24 compared, 0 not what they were" in output
    assert "another class" not in output
    monkeypatch.setattr(folder_module, "open_dataset", swapped)
    code, output, _ = run(*images)
    assert code == 3
    assert "24 compared, 0 not what they were, 24 of another class or part" in output
    assert "relabelled town/" in output
    assert "run samtl embed, which takes these" in output
    (Path("images") / "town" / "0.png").unlink()
    code, output, _ = run(*images)
    assert code == 3
    assert "24 compared, 1 not what they were, 23 of another class or part" in output
    assert "images are not those that it was made from; classes" in output


def test_verify_on_bad_input(run, embedded):
    for arguments, told in (
        (("--quick", "--deep"), "give one of them"),
        (("--recompute", "1"), "--dataset"),
        (("--dataset", "synthetic:4"), "--deep and --recompute only: add one of them"),
    ):
        code, _, error = run("verify", *arguments)
        assert code == 2
        assert told in error
    code, _, error = run("verify", "nowhere")
    assert code == 2
    assert "no store" in error
