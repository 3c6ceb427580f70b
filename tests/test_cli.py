"""The command line as a user meets it: what it prints, what it writes, and how it ends."""

import errno
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stubs
import torch
from PIL import Image
from samtl.cli import app, main
from typer.main import get_command

import samtl
from samtl.datasets import folder as folder_module
from samtl.study import reproduce

ROOT = Path(__file__).parent.parent


def untouched(path):
    return not path.exists() or not list(path.rglob("*"))


def test_help_names_every_verb(run):
    code, output, _ = run("--help")
    assert code == 0
    for verb in (*VERBS, "info", "ls", "compact", "demo", "bench"):
        assert verb in output


def commands():
    """Each verb with its parameters, as typer sees them."""
    group = get_command(app)
    for name in [name for name in group.commands if name != "bench"]:
        yield name, group.resolve_command(None, [name])[1].params
    for name in (bench := group.commands["bench"]).commands:
        yield f"bench {name}", bench.resolve_command(None, [name])[1].params


VERBS = {
    "embed": samtl.embed,
    "fit-head": samtl.fit_head,
    "fit-baseline": samtl.fit_baseline,
    "predict": samtl.predict,
    "sweep": samtl.sweep,
    "report": samtl.make_report,
    "reproduce": reproduce,
    "verify": samtl.verify,
}


def test_every_option_is_described_as_in_the_library():
    for verb, parameters in commands():
        assert all(parameter.help for parameter in parameters), verb
        if verb in VERBS:
            signature = inspect.signature(VERBS[verb]).parameters
            text = " ".join(inspect.getdoc(VERBS[verb]).split())
            shared = [p for p in parameters if p.name in signature]
            assert len(shared) >= len(signature) - 5
            own = {"json", "seeds", "features", "sources", "study", "store", "from_store"}
            assert not [p.name for p in shared if p.help not in text and p.name not in own], verb


def test_every_switch_can_be_turned_off():
    """`--no-X` is the opposite of `--X`, and not another name of it."""
    switches = [
        (verb, option)
        for verb, parameters in commands()
        for option in parameters
        if any(name.startswith("--no-") for name in (*option.opts, *option.secondary_opts))
    ]
    assert {(verb, option.name) for verb, option in switches} >= {
        ("embed", "check_images"), ("sweep", "warm_start"),
    }  # fmt: skip
    for verb, option in switches:
        assert option.opts == [f"--{option.name.replace('_', '-')}"], verb
        assert option.secondary_opts == [f"--no-{option.name.replace('_', '-')}"], verb


@pytest.mark.parametrize(
    "args",
    [
        ("fit-head", "--seed", "-1"),
        ("fit-head", "--lr", "-1"),
        ("fit-head", "--epochs", "0"),
        ("embed", "--limit", "-3"),
        ("embed", "--image-size", "many"),
        ("verify", "--recompute", "-1"),
        ("sweep", "--jobs", "-1"),
        ("sweep", "--jobs", "0"),
        ("sweep", "--unknown"),
    ],
)
def test_values_out_of_range(run, embedded, args):
    code, _, errors = run(*args)
    assert code == 2
    assert args[1] in errors or args[1].strip("-") in errors
    assert untouched(Path("runs"))


def test_a_terminal_without_the_characters_of_a_name():
    code = "from samtl.cli.render import say; from samtl.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "info", "Ünlü.zarr"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert result.returncode == 2
    assert b"?nl?.zarr" in result.stderr
    assert b"Traceback" not in result.stderr


def test_version(run):
    assert run("--version")[1].strip() == f"samtl {samtl.__version__}"


def test_embed_prints_the_plan_then_the_result(run, encoders, folder):
    args = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--json", "e.json")
    code, output, _ = run(*args)
    assert code == 0
    for text in ("24 rows", "pooled", "grid", "dense", "free", "img/s", "untrained"):
        assert text in output
    written = json.loads(Path("e.json").read_text())
    store = samtl.open(written["store"])
    assert store.path.parent == Path("cache")
    assert written["rows"] == written["encoded"] == len(store) == 24
    assert written["fingerprint"] == store.fingerprint
    assert (written["untrained"], written["quarantined"]) == (True, [])


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
    assert "--image-size" in errors


def test_dry_run_writes_nothing(run, encoders, folder):
    args = ("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--dry-run")
    code, output, _ = run(*args, "--json", "p.json")
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
    for text in ("field/zero.png: empty", "town/text.jpg: not_an_image"):
        assert text in output
        assert text in errors  # when it happens, too
    bad = {q["sample_id"]: q["code"] for q in json.loads(Path("e.json").read_text())["quarantined"]}
    assert bad == {"field/zero.png": "empty", "town/text.jpg": "not_an_image"}
    code, output, _ = run("info", "--json", "i.json")
    assert code == 1
    info = json.loads(Path("i.json").read_text())
    assert (info["ok"], len(info["quarantined"]), info["missing"]) == (24, 2, 0)
    assert run(*args)[0] == 1
    assert json.loads(Path("e.json").read_text())["encoded"] == 0


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
    for name in ("eurosat", "folder", "synthetic", "sam_vit_b", "tiny", "logreg", "floor"):
        assert name in output
    run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    _, output, _ = run("ls", "stores")
    assert "24/24" in output
    assert "untrained" in output
    assert "logreg" not in run("ls", "encoders")[1]


def test_a_damaged_store_does_not_hide_the_others(run, encoders, folder):
    run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", "cache/good.zarr")
    run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--out", "cache/bad.zarr")
    Path("cache/bad.zarr/fingerprint.json").write_text("{")
    code, output, _ = run("ls", "stores")
    assert code == 0
    assert "24/24" in output
    assert "cache/bad.zarr" in output


def test_which_store_is_meant(run, encoders, folder):
    code, _, errors = run("info")
    assert code == 2
    assert "cache" in errors
    for name in ("a", "b"):
        run(*EMBED, "--out", f"cache/{name}.zarr")
    code, _, errors = run("info")
    assert code == 2
    assert "--cache cache/a.zarr" in errors
    assert "--cache cache/b.zarr" in errors
    assert run("info", "--cache", "cache/a.zarr")[0] == 0
    assert run("info", "cache/b.zarr")[0] == 0


EMBED = ("embed", "--encoder", "tiny", "--dataset", "folder:images")

BAD_INPUT = {
    "unknown verb": (("emebd",), "embed"),
    "unknown dataset": (("embed", "--dataset", "eurosta", "--encoder", "tiny"), "eurosat"),
    "unknown encoder": (("embed", "--dataset", "folder:images", "--encoder", "sam_vit_x"), "sam_vit_"),
    "unknown kind": (("ls", "encoder"), "encoders"),
    "missing root": (("embed", "--dataset", "folder:nowhere", "--encoder", "tiny"), "nowhere"),
    "missing eurosat root": (("embed", "--root", "nowhere", "--encoder", "tiny"), "nowhere"),
    "empty folder": (("embed", "--dataset", "folder:empty", "--encoder", "tiny"), "empty"),
    "unknown tier": ((*EMBED, "--tiers", "pooled,thick"), "--tiers"),
    "batch size": ((*EMBED, "--batch-size", "0"), "--batch-size"),
    "too many per class": ((*EMBED, "--per-class", "99"), "12"),
    "limit": ((*EMBED, "--limit", "0"), "--limit"),
    "device": ((*EMBED, "--device", "gpu"), "--device"),
    "dtype": ((*EMBED, "--dtype", "int8"), "--dtype"),
    "seed of weights": ((*EMBED, "--checkpoint", "random:x"), "random:SEED"),
    "missing checkpoint": ((*EMBED, "--checkpoint", "w.pth"), "w.pth"),
    "nowhere for the JSON": ((*EMBED, "--json", "no/such/folder/e.json"), "no/such/folder/e.json"),
    "not a store": (("info", "images"), "images"),
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
    assert "--device cuda" in errors
    assert untouched(Path("cache"))


def test_a_checkpoint_of_another_architecture(run, folder):
    torch.save({"pos_embed": torch.zeros(1, 64, 64, 768)}, "b.pth")
    code, _, errors = run(
        "embed", "--dataset", f"folder:{folder}", "--encoder", "tiny", "--checkpoint", "b.pth"
    )
    assert code == 2
    assert "b.pth" in errors
    assert "tiny" in errors
    assert untouched(Path("cache"))


def test_too_little_disk(run, encoders, folder, monkeypatch):
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 1000})(),
    )
    code, _, errors = run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    assert code == 5
    assert "1000 B" in errors
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
        assert "compute_dtype" in errors
    code, _, errors = run(
        "embed", "--dataset", "synthetic:3", "--encoder", "tiny", "--out", "s.zarr"
    )
    assert code == 3
    assert "dataset" in errors
    after = stubs.contents(Path("s.zarr"))
    assert after == before


SLOW_EMBED = """
    import sys
    sys.path.insert(0, {tests!r})
    import stubs
    stubs.install(stubs.StubEncoders(seconds={seconds}))
    from samtl.cli import main
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
    process.communicate(timeout=60)
    assert process.returncode == expected
    store = samtl.open("s.zarr")
    done = len(store) - store.missing
    assert 0 < done < len(store)
    assert done % 16 == 0
    assert not [p for p in Path("s.zarr").rglob("*") if p.name.startswith(".tmp-")]
    again = start_slow_embed(0)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert f"{len(store) - done} still to do" in output
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
    assert "Traceback" not in errors


def test_a_defect_is_not_taken_for_a_finished_pass(monkeypatch, capsys):
    """Python's own exit code for an uncaught error is 1, which means "done, with quarantined rows" here."""

    def broken(path):
        raise ZeroDivisionError

    monkeypatch.setattr("samtl.store.storage.locate", broken)
    monkeypatch.setattr(sys, "argv", ["samtl", "info"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_sixteen_bit_images_are_quarantined(run, encoders, folder):
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(folder / "field" / "deep.tif")
    code, output, _ = run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    assert code == 1
    assert "field/deep.tif: unsupported_mode" in output


@pytest.mark.parametrize("head", ["logreg", "mlp"])
def test_fit_head_prints_scores_beside_the_floor(run, embedded, head):
    code, output, _ = run("fit-head", "--head", head, "--split", "0.25", "--json", "f.json")
    assert code == 0
    for text in ("accuracy", "95 % interval", "floor", "untrained", "6 held out"):
        assert text in output
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
        (("--split", "1.5"), "1.5"),
        (("--split", "0"), "--split 0"),
        (("--split", "0.01"), "0.01"),
        (("--head", "mpl"), "mlp"),
        (("--cache", "nowhere"), "nowhere"),
        (("--split", "half"), "half"),
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
    assert "town" in errors


def test_an_unfinished_store_is_refused_unless_allowed(run, embedded):
    store = next(Path("cache").glob("*.zarr"))
    (store / "log" / "1.0.json").unlink()
    code, _, errors = run("fit-head", "--head", "logreg")
    assert code == 2
    assert "8 of 24 rows" in errors
    code, output, _ = run("fit-head", "--head", "logreg", "--allow-partial")
    assert code == 0
    assert "8 rows" in output


def test_a_damaged_store_ends_with_2(run, embedded):
    shard = next(Path("cache").glob("*.zarr")) / "pooled" / "c.0.0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    code, _, errors = run("fit-head", "--head", "logreg")
    assert code == 2
    assert "pooled/c.0.0" in errors
    assert untouched(Path("runs"))


@pytest.fixture
def trained(run, embedded):
    """A run on the store of 24 images."""
    assert run("fit-head", "--head", "logreg", "--json", "f.json")[0] == 0
    return json.loads(Path("f.json").read_text())["run"]


def test_predict_prints_classes_and_lists_bad_images(run, trained, folder):
    code, output, _ = run("predict", "--run", trained, "--images", folder, "--json", "p.json")
    assert code == 0
    for text in ("field", "town", "24 images", "untrained", "predictions.csv"):
        assert text in output
    assert len(Path("predictions.csv").read_text().splitlines()) == 25
    (folder / "field" / "zero.png").write_bytes(b"")
    args = ("predict", "--run", trained, "--images", folder, "--json", "p.json")
    code, _, errors = run(*args)
    assert code == 2
    assert "--overwrite" in errors
    code, output, _ = run(*args, "--overwrite")
    assert code == 1
    assert "field/zero.png: empty" in output
    told = json.loads(Path("p.json").read_text())
    assert told["rows"] == 24
    assert [bad["image"] for bad in told["skipped"]] == ["field/zero.png"]


def test_predict_from_the_only_store(run, trained, folder):
    code, output, _ = run("predict", "--run", trained, "--from-store", "--out", "stored.csv")
    assert code == 0
    assert "stored.csv" in output
    assert Path("stored.csv").read_text().startswith("sample_id,predicted,p_field,p_town\n")


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ((), 2, "--from-store"),
        (("--images", "images", "--from-store"), 2, "--from-store"),
        (("--images", "images", "--cache", "cache"), 2, "--from-store"),
        (("--images", "images", "--checkpoint", "random:1"), 3, "encoder.weights_sha256"),
        (("--images", "nowhere"), 2, "nowhere"),
        (("--images", "images", "--device", "gpu"), 2, "--device"),
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
    assert str(folder) in errors.replace("\n", "")


@pytest.mark.parametrize("verb", ["info", "verify", "compact"])
def test_a_store_is_named_once(run, embedded, verb):
    code, _, errors = run(verb, "cache", "--cache", "cache")
    assert (code, "--cache cache" in errors) == (2, True)


def test_verify_and_repair(run, embedded):
    (store,) = Path("cache").glob("*.zarr")
    code, output, _ = run("verify", "--json", "v.json")
    assert (code, json.loads(Path("v.json").read_text())["findings"]) == (0, [])
    damaged = Path(shutil.copytree(store, "damaged.zarr"))
    shard = next(damaged.glob("pooled/c.*"))
    shard.write_bytes(shard.read_bytes()[::-1])
    code, output, _ = run("verify", damaged, "--json", "v.json")
    assert code == 2
    assert "pooled/c." in output
    assert "--repair" in output
    assert json.loads(Path("v.json").read_text())["findings"][0]["array"] == "pooled"
    assert run("verify", damaged, "--quick")[0] == 0
    assert run("verify", damaged, "--repair")[0] == 1
    assert run("verify", damaged, "--deep", "--json", "v.json")[0] == 1
    assert json.loads(Path("v.json").read_text())["missing"] == 16


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EROFS, 5), (errno.ENOSPC, 5), (errno.EIO, 5), (errno.EACCES, 2), (errno.ENOENT, 2)],
)
def test_an_error_of_the_drive_names_the_path(run, monkeypatch, number, code):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), "some/path")

    monkeypatch.setattr("samtl.store.storage.locate", refuse)
    ended, _, errors = run("info")
    assert ended == code
    assert f"{os.strerror(number)}: some/path" in errors


def test_verify_with_the_images(run, embedded, folder):
    def verified(*options):
        images = ("--dataset", f"folder:{folder}", "--json", "v.json")
        code, _, _ = run("verify", *images, *options)
        found = json.loads(Path("v.json").read_text())
        return code, len(found["recomputed"]), Counter(one["what"] for one in found["images"])

    assert verified("--deep", "--recompute", "24") == (0, 24, {})
    (folder / "town" / "0.png").write_bytes((folder / "town" / "1.png").read_bytes())
    assert verified("--deep") == (3, 0, {"changed": 1})
    (folder / "town").rename(folder / "city")
    assert verified("--recompute", "24") == (0, 12, {})
    assert verified("--deep") == (3, 0, {"gone": 12})


def test_verify_finds_another_class(run, embedded, monkeypatch):
    listed = folder_module.open_dataset

    def swapped(*arguments):
        return replace(listed(*arguments), classes=("town", "field"))

    monkeypatch.setattr(folder_module, "open_dataset", swapped)
    images = ("--deep", "--dataset", f"folder:{Path('images').resolve()}")
    code, output, _ = run("verify", *images)
    assert code == 3
    assert "relabelled town/" in output


def test_verify_on_bad_input(run, embedded):
    for arguments, text in (
        (("--quick", "--deep"), "--deep"),
        (("--recompute", "1"), "--dataset"),
        (("--dataset", "synthetic:4"), "--deep"),
        (("nowhere",), "nowhere"),
    ):
        code, _, error = run("verify", *arguments)
        assert code == 2
        assert text in error


def test_compact_drops_rows_that_are_not_listed(run, embedded, folder):
    (folder / "town" / "0.png").unlink()
    assert run(*EMBED)[0] == 0
    assert "compact" in run("info")[1]
    assert run("compact", "--json", "c.json")[0] == 0
    done = json.loads(Path("c.json").read_text())
    assert (done["rewritten"], done["dropped"], done["rows"]) == (True, 1, 23)
    assert "compact" not in run("info")[1]
    assert run("compact", "--json", "c.json")[0] == 0
    assert json.loads(Path("c.json").read_text())["rewritten"] is False
