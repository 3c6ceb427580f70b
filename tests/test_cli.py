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
from pathlib import Path

import pytest
import stubs
from samtl.cli import app, main
from typer.main import get_command

import samtl
from samtl.study import reproduce

ROOT = Path(__file__).parent.parent


def untouched(path):
    return not path.exists() or not list(path.rglob("*"))


def commands():
    """Each verb as typer sees it."""
    group = get_command(app)
    for name in [name for name in group.commands if name != "bench"]:
        yield name, group.resolve_command(None, [name])[1]
    for name in (bench := group.commands["bench"]).commands:
        yield f"bench {name}", bench.resolve_command(None, [name])[1]


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


def test_every_option_is_described_for_readers_of_the_help():
    for verb, command in commands():
        assert command.help, verb
        for parameter in command.params:
            text = parameter.help
            assert text, (verb, parameter.name)
            assert not re.search(r"\bAs for|`?samtl\.|ndarray", text), (verb, parameter.name)


def test_a_verb_has_the_options_of_its_function():
    helps = {verb: {p.name: p.help for p in command.params} for verb, command in commands()}
    assert {*VERBS, "info", "ls", "compact", "demo"} <= helps.keys()
    for verb, function in VERBS.items():
        signature = inspect.signature(function).parameters
        assert len([name for name in helps[verb] if name in signature]) >= len(signature) - 5
    assert helps["embed"]["limit"] in " ".join(samtl.embed.__doc__.split())
    # A reference to another verb's parameter is followed.
    assert helps["embed"]["limit"] in helps["fit-baseline"]["limit"]


def test_every_switch_can_be_turned_off():
    """`--no-X` is the opposite of `--X`, and not another name of it."""
    switches = [
        (verb, option)
        for verb, command in commands()
        for option in command.params
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


def test_bench_needs_a_checkout(run, monkeypatch):
    monkeypatch.setattr("samtl.cli.bench._CHECKOUT", Path("nowhere"))
    code, _, errors = run("bench", "store")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "clone" in errors


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
    args = (*EMBED, "--tiers", "pooled", "--image-size")
    assert "tiny at 128 pixels" in run(*args, "128")[1]
    (store,) = Path("cache").glob("*.128.zarr")
    assert samtl.open(store).identity["image_size"] == 128
    code, _, errors = run(*args, "100")
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


def test_info(run, embedded):
    code, output, _ = run("info", "--json", "i.json")
    assert code == 0
    told = json.loads(Path("i.json").read_text())
    assert told["rows"] == told["ok"] == 24
    assert told["per_class"] == {"field": 12, "town": 12}
    assert told["tiers"] == ["pooled", "grid", "dense"]
    assert {a["name"]: a["rows"] for a in told["arrays"]}["pooled"] == 24
    assert told["fingerprint"] in output
    (store,) = Path("cache").glob("*.zarr")
    assert run("info", store)[0] == run("info", "--cache", store)[0] == 0
    for verb in ("info", "verify", "compact"):  # both name a store
        code, _, errors = run(verb, store, "--cache", store)
        assert code == 2
        assert "--cache" in errors


def test_ls(run, encoders, folder):
    code, output, _ = run("ls", "--json", "l.json")
    assert code == 0
    told = json.loads(Path("l.json").read_text())
    for kind, name in (("datasets", "eurosat"), ("encoders", "tiny"), ("heads", "logreg")):
        assert name in output
        assert name in [entry["name"] for entry in told[kind]]
    assert told["stores"] == []
    for name in ("good", "bad"):
        run(*EMBED, "--tiers", "pooled", "--out", f"cache/{name}.zarr")
    Path("cache/bad.zarr/fingerprint.json").write_text("{")
    code, output, _ = run("ls", "stores", "--json", "l.json")
    assert code == 0
    for text in ("24/24", "untrained", "cache/bad.zarr", "cannot be opened"):
        assert text in output
    bad, good = json.loads(Path("l.json").read_text())["stores"]
    assert (bad["rows"], good["rows"]) == ("", "24/24")
    assert "logreg" not in run("ls", "encoders")[1]


def test_which_store_is_meant(run, encoders, folder):
    code, _, errors = run("info")
    assert code == 2
    assert "cache" in errors
    for name in ("a", "b"):
        run(*EMBED, "--tiers", "pooled", "--out", f"cache/{name}.zarr")
    code, _, errors = run("info")
    assert code == 2
    assert "--cache cache/a.zarr" in errors
    assert "--cache cache/b.zarr" in errors


EMBED = ("embed", "--encoder", "tiny", "--dataset", "folder:images")

BAD_INPUT = {
    "unknown verb": (("emebd",), "embed"),
    "unknown dataset": (("embed", "--dataset", "eurosta", "--encoder", "tiny"), "eurosat"),
    "unknown kind": (("ls", "encoder"), "encoders"),
    "missing root": (("embed", "--dataset", "folder:nowhere", "--encoder", "tiny"), "nowhere"),
    "empty folder": (("embed", "--dataset", "folder:empty", "--encoder", "tiny"), "empty"),
    "unknown tier": ((*EMBED, "--tiers", "pooled,thick"), "--tiers"),
    "batch size": ((*EMBED, "--batch-size", "0"), "--batch-size"),
    "too many per class": ((*EMBED, "--per-class", "99"), "12"),
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


def test_too_little_disk(run, encoders, folder, monkeypatch):
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 1000})(),
    )
    code, _, errors = run("embed", "--dataset", f"folder:{folder}", "--encoder", "tiny")
    assert code == 5
    assert "1000 B" in errors
    assert untouched(Path("cache"))


def test_a_store_of_another_making_is_refused_field_by_field(run, embedded):
    store = next(Path("cache").glob("*.zarr"))
    before = stubs.contents(store)
    for change, told in (
        (("--checkpoint", "random:5"), "encoder.weights_sha256"),
        (("--dataset", "synthetic:3"), "dataset"),
    ):
        code, _, errors = run(*EMBED, "--out", store, *change)
        assert code == 3
        assert told in errors
    assert stubs.contents(store) == before


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


def wait_for(pattern):
    deadline = time.monotonic() + 60
    while not list(Path().glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_ends_the_pass_after_the_block_in_flight(run, encoders):
    process = start_slow_embed()
    wait_for("s.zarr/log/*.json")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    store = samtl.open("s.zarr")
    done = len(store) - store.missing
    assert 0 < done < len(store)
    assert done % 16 == 0
    assert not [p for p in Path("s.zarr").rglob("*") if p.name.startswith(".tmp-")]
    args = ("embed", "--dataset", "synthetic:20", "--encoder", "tiny", "--out", "s.zarr")
    code, output, _ = run(*args)
    assert code == 0
    assert f"{len(store) - done} still to do" in output
    assert samtl.open("s.zarr").missing == 0


def test_a_second_signal_stops_at_once():
    process = start_slow_embed(seconds=0.5)
    wait_for("s.zarr/zarr.json")
    time.sleep(0.5)
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


def test_fit_head_prints_scores_beside_the_floor(run, embedded):
    args = ("fit-head", "--head", "mlp", "--epochs", "3", "--split", "0.25", "--json", "f.json")
    code, output, _ = run(*args)
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


PREDICT = ("predict", "--run", "RUN")


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("fit-head", "--split", "1.5"), 2, "1.5"),
        (("fit-head", "--split", "0.01"), 2, "0.01"),
        (("fit-head", "--split", "half"), 2, "half"),
        (("fit-head", "--head", "mpl"), 2, "mlp"),
        (("fit-head", "--cache", "nowhere"), 2, "nowhere"),
        (PREDICT, 2, "--from-store"),
        ((*PREDICT, "--images", "images", "--from-store"), 2, "--from-store"),
        ((*PREDICT, "--images", "images", "--cache", "cache"), 2, "--from-store"),
        ((*PREDICT, "--images", "images", "--checkpoint", "random:1"), 3, "encoder.weights_sha256"),
        ((*PREDICT, "--images", "images", "--device", "gpu"), 2, "--device"),
        (("predict", "--run", "images", "--images", "images"), 2, "images is no run"),
        (("verify", "--quick", "--deep"), 2, "--deep"),
        (("verify", "--recompute", "1"), 2, "--dataset"),
        (("verify", "--dataset", "synthetic:4"), 2, "--deep"),
        (("verify", "nowhere"), 2, "nowhere"),
    ],
)
def test_bad_input_beside_a_store_and_a_run(run, trained, args, code, told):
    before = {path.name for path in Path().iterdir()}
    ended, _, errors = run(*(trained if arg == "RUN" else arg for arg in args))
    assert ended == code
    assert told in re.sub(r"[\s│]+", " ", errors)
    assert {path.name for path in Path().iterdir()} == before


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
    ("number", "code"), [(errno.ENOSPC, 5), (errno.EIO, 5), (errno.EACCES, 2), (errno.ENOENT, 2)]
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
