"""The command line as a user meets it: what it prints, what it writes, and how it ends."""

import errno
import inspect
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import forking
import pytest
import stubs
from samtl.cli import app, main
from typer.main import get_command

import samtl

STORE = "cache/folder-images.tiny.64.zarr"
EMBED = ("embed", "--encoder", "tiny", "--dataset", "folder:images")
VERBS = ("embed", "fit-head", "fit-baseline", "predict", "sweep", "verify")


def untouched(path):
    return not path.exists() or not list(path.rglob("*"))


@pytest.fixture(scope="module")
def commands():
    """Each verb as typer sees it, by name."""
    group = get_command(app)
    bench = group.commands.pop("bench")
    found = {name: group.resolve_command(None, [name])[1] for name in group.commands}
    return found | {f"bench {n}": bench.resolve_command(None, [n])[1] for n in bench.commands}


def test_every_option_is_described_and_every_switch_can_be_turned_off(commands):
    """`--no-X` is the opposite of `--X`, and not another name of it."""
    switches = set()
    for verb, command in commands.items():
        assert command.help, verb
        for option in command.params:
            assert option.help, (verb, option.name)
            assert not re.search(r"\bAs for|`?samtl\.|ndarray", option.help), (verb, option.name)
            flag = option.name.replace("_", "-")
            if any(name.startswith("--no-") for name in (*option.opts, *option.secondary_opts)):
                assert (option.opts, option.secondary_opts) == ([f"--{flag}"], [f"--no-{flag}"])
                switches.add((verb, flag))
    assert ("embed", "check-images") in switches


def test_a_verb_has_the_options_of_its_function(commands):
    helps = {verb: {p.name: p.help for p in command.params} for verb, command in commands.items()}
    functions = {verb: getattr(samtl, verb.replace("-", "_")) for verb in VERBS}
    functions |= {"report": samtl.make_report, "reproduce": samtl.reproduce}
    for verb, function in functions.items():
        signature = inspect.signature(function).parameters
        assert len([name for name in helps[verb] if name in signature]) >= len(signature) - 5
    assert helps["embed"]["limit"] in " ".join(samtl.embed.__doc__.split())
    # A reference to another verb's parameter is followed.
    assert helps["embed"]["limit"] in helps["fit-baseline"]["limit"]


# Bad input


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """A folder with images, a store of them and a run on it."""
    folder = shutil.copytree(place, tmp_path_factory.mktemp("trained") / "place")
    samtl.fit_head(folder / STORE, "logreg", 0.25, out=folder).path.rename(folder / "run")
    return folder


# What is typed, and what the message names
BAD = {
    "emebd": "embed",
    "embed --limit -3": "--limit",
    "embed --image-size many": "--image-size",
    "embed --dataset folder:nowhere --encoder tiny": "nowhere",
    "embed --dataset folder:images --encoder tiny --tiers pooled,thick": "--tiers",
    "embed --dataset folder:images --encoder tiny --json no/such/e.json": "no/such/e.json",
    "ls encoder": "encoders",
    "info images": "images",
    "fit-head --lr -1": "--lr",
    "fit-head --epochs 0": "epochs",
    "fit-head --set epocs=3": "epochs",
    "fit-head --set epochs": "NAME=VALUE",
    "fit-head --set lr=1 --lr 1": "--lr",
    "fit-head --calibrate --head ridge": "calibrate",
    "fit-head --split 0.01": "0.01",
    "fit-head --cache nowhere": "nowhere",
    "predict --run run": "--from-store",
    "predict --run run --images images --cache cache": "--from-store",
    "verify --quick --deep": "--deep",
    "sweep --unknown": "--unknown",
    "sweep --seed 3": "did you mean --seeds",
    "fit-head --model mlp": "known are --head,",
    "fit --head mlp": "did you mean fit-head",
}
OTHER = {
    "predict --run run --images images --checkpoint random:1": "encoder.weights_sha256",
    f"embed --dataset synthetic:3 --encoder tiny --out {STORE}": "dataset",
}


@pytest.mark.parametrize(("line", "named"), (BAD | OTHER).items())
def test_bad_input_writes_nothing(run, encoders, trained, monkeypatch, line, named):
    monkeypatch.chdir(trained)
    before = stubs.contents(trained)
    code, _, errors = run(*line.split())
    assert code == (3 if line in OTHER else 2)
    assert named in re.sub(r"[\s│]+", " ", errors)
    assert stubs.contents(trained) == before


def test_bench_needs_a_checkout(run, monkeypatch):
    monkeypatch.setattr("samtl.cli.bench._CHECKOUT", Path("nowhere"))
    code, _, errors = run("bench", "store")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "clone" in errors


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 5), (errno.EIO, 5), (errno.EACCES, 2), (errno.ENOENT, 2), (None, 70)],
)
def test_errors_of_the_drive_and_of_samtl_itself(monkeypatch, capsys, number, code):
    """Python's own exit code for an uncaught error is 1, which means "done, with quarantined rows" here."""
    error = OSError(number, os.strerror(number), "it") if number else ZeroDivisionError("it")

    def refuse(place):
        raise error

    monkeypatch.setattr("samtl.store.storage.locate", refuse)
    monkeypatch.setattr(sys, "argv", ["samtl", "info"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    errors = capsys.readouterr().err
    assert ("ZeroDivisionError: it" if code == 70 else f"it: {error.strerror}; check") in errors
    assert ("Traceback" in errors) == (code == 70)


def test_version(run):
    assert run("--version")[1].strip() == f"samtl {samtl.__version__}"


# Stores


def test_embed_prints_the_plan_then_the_result(told, encoders, folder):
    code, plan, output = told(*EMBED, "--dry-run")
    assert (code, plan["pending_rows"], encoders.images) == (0, 24, 0)
    assert "24 images" in output
    assert untouched(Path("cache"))
    code, written, output = told(*EMBED)
    assert code == 0
    for text in ("24 rows", "img/s", "untrained"):
        assert text in output
    store = samtl.open(written["store"])
    assert store.path.parent == Path("cache")
    assert written["rows"] == written["encoded"] == len(store) == 24
    assert written["fingerprint"] == store.fingerprint
    assert (written["untrained"], written["quarantined"]) == (True, [])
    told(*EMBED, "--tiers", "pooled", "--image-size", "128")
    assert samtl.open("cache/folder-images.tiny.128.zarr").identity["image_size"] == 128


def test_bad_images_are_listed_and_end_with_1(run, told, encoders, folder):
    bad = {"field/zero.png": "empty", "town/text.jpg": "not_an_image"}
    (folder / "field" / "zero.png").write_bytes(b"")
    (folder / "town" / "text.jpg").write_bytes(b"no image")
    code, output, errors = run(*EMBED)
    assert code == 1
    for name, reason in bad.items():
        assert f"{name}: {reason}" in output
        assert f"{name}: {reason}" in errors  # when it happens, too
    code, info, _ = told("info")
    assert (code, info["ok"], len(info["quarantined"]), info["missing"]) == (1, 24, 2, 0)
    code, again, _ = told(*EMBED)
    assert (code, again["encoded"]) == (1, 0)
    assert {one["sample_id"]: one["code"] for one in again["quarantined"]} == bad


def test_images_without_labels_are_for_predictions(run, encoders, folder):
    for path in [*folder.glob("*/*.png")]:
        path.rename(folder / f"{path.parent.name}-{path.name}")
    for path in ("field", "town"):
        (folder / path).rmdir()
    code, output, _ = run(*EMBED)
    assert (code, "fit-head" in output, "samtl predict" in output) == (0, False, True)


def test_info(run, told, embedded):
    code, info, output = told("info")
    assert (code, info["rows"], info["ok"]) == (0, 24, 24)
    assert info["per_class"] == {"field": 12, "town": 12}
    assert info["tiers"] == ["pooled", "grid"]
    assert {a["name"]: a["rows"] for a in info["arrays"]}["pooled"] == 24
    assert info["fingerprint"] in output
    assert run("info", STORE)[0] == run("info", "--cache", STORE)[0] == 0
    for verb in ("info", "verify", "compact"):  # both name a store
        code, _, errors = run(verb, STORE, "--cache", STORE)
        assert (code, "--cache" in errors) == (2, True)


def test_ls_and_which_store_is_meant(run, told, encoders, folder):
    code, listed, _ = told("ls")
    assert code == 0
    for kind, name in (("datasets", "eurosat"), ("encoders", "tiny"), ("heads", "logreg")):
        assert name in [entry["name"] for entry in listed[kind]]
    assert listed["stores"] == []
    code, _, errors = run("info")
    assert (code, "cache" in errors) == (2, True)
    for name in ("good", "bad"):
        run(*EMBED, "--tiers", "pooled", "--out", f"cache/{name}.zarr")
    code, _, errors = run("info")
    assert code == 2
    assert {"cache/good.zarr", "cache/bad.zarr"} <= set(re.findall(r"--cache (\S+zarr)", errors))
    Path("cache/bad.zarr/fingerprint.json").write_text("{")
    code, listed, _ = told("ls", "stores")
    (bad, good), kinds = listed["stores"], {*listed}
    assert (code, kinds, bad["rows"], good["rows"]) == (0, {"stores"}, "", "24/24")
    assert "cannot be opened" in bad["weights"]
    assert "untrained" in good["weights"]


def test_verify_and_repair(run, told, embedded):
    code, found, _ = told("verify")
    assert (code, found["findings"]) == (0, [])
    damaged = Path(shutil.copytree(STORE, "damaged.zarr"))
    shard = next(damaged.glob("pooled/c.*"))
    shard.write_bytes(shard.read_bytes()[::-1])
    code, found, output = told("verify", damaged)
    assert (code, found["findings"][0]["array"]) == (2, "pooled")
    assert "--repair" in output
    assert run("verify", damaged, "--quick")[0] == 0
    assert run("verify", damaged, "--repair")[0] == 1
    code, found, _ = told("verify", damaged, "--deep")
    assert (code, found["missing"]) == (1, 16)


def test_verify_with_the_images(told, embedded, folder):
    def verified(*options):
        code, found, _ = told("verify", "--dataset", "folder:images", *options)
        return code, len(found["recomputed"]), Counter(one["what"] for one in found["images"])

    assert verified("--deep", "--recompute", "24") == (0, 24, {})
    (folder / "town" / "0.png").write_bytes((folder / "town" / "1.png").read_bytes())
    assert verified("--deep") == (3, 0, {"changed": 1})
    (folder / "town").rename(folder / "city")
    assert verified("--recompute", "24") == (0, 12, {})
    assert verified("--deep") == (3, 0, {"gone": 12})


def test_compact_drops_rows_that_are_not_listed(run, told, embedded, folder):
    (folder / "town" / "0.png").unlink()
    assert run(*EMBED)[0] == 0
    assert "compact" in run("info")[1]
    code, done, _ = told("compact")
    assert (code, done["rewritten"], done["dropped"], done["rows"]) == (0, True, 1, 23)
    assert "compact" not in run("info")[1]
    code, done, _ = told("compact")
    assert (code, done["rewritten"]) == (0, False)


# --out

# What a verb makes by default, and with `--out` in a folder that holds something else or under a name of its own; and
# how many there are after the second time.
PLACES = [
    ("embed --dataset folder:images --encoder tiny", "cache/*.zarr", "mine", "mine/*.zarr", 1),
    ("embed --dataset folder:images --encoder tiny", "cache/*.zarr", "a.zarr", "a.zarr", 1),
    ("fit-head --head logreg --split 0.25", "runs/*-logreg-*", "mine", "mine/*-logreg-*", 2),
    ("fit-baseline --baseline floor --dataset folder:images", "runs/*-floor-*", "mine", "mine/*-floor-*", 2),
    ("sweep --heads logreg --splits 0.25 --jobs 1", "runs/sweep-*", "mine", "mine/sweep-*", 1),
    ("report run", "report*", "mine", "mine/report*", 1),
    ("predict --run run --from-store", "predictions/*.csv", "mine", "mine/*.csv", 2),
    ("predict --run run --from-store", "predictions/*.csv", "a.csv", "a*.csv", 2),
]  # fmt: skip


@pytest.mark.parametrize(("line", "usual", "out", "asked", "count"), PLACES)
def test_out_is_a_folder_that_a_verb_writes_into(
    run, encoders, trained, tmp_path, monkeypatch, line, usual, out, asked, count
):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    Path("mine").mkdir()
    Path("mine", "notes.txt").write_text("months of work")
    for options, pattern in ((), usual), (("--out", out), asked):
        for _ in range(2):
            code, output, errors = run(*line.split(), *options)
            assert code == 0, errors
        assert len(list(Path().glob(pattern))) == count
        told = re.search(r"is there already|was there, and is kept", output)
        assert bool(told) == (count == 2)
    assert Path("mine", "notes.txt").read_text() == "months of work"


# Signals


def slow_embed(seconds, until):
    """Start an embedding that takes some seconds for each image, and wait for a file of its store."""
    args = ("embed", "--dataset", "synthetic:20", "--encoder", "tiny", "--out", "s.zarr")
    process = forking.samtl(*args, seconds=seconds)
    deadline = time.monotonic() + 60
    while not list(Path("s.zarr").glob(until)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("where", "args"),
    [
        ("samtl.experiment.trial.tables.write_split", "fit-head --head logreg --split 0.25"),
        ("samtl.report.api.render", "report run"),
        ("samtl.experiment.output.Output.write", "predict --run run --from-store"),
    ],
)
def test_a_signal_leaves_nothing_half_written(run, trained, monkeypatch, number, where, args):
    def stop(*given, **options):
        signal.raise_signal(number)

    monkeypatch.chdir(trained)
    monkeypatch.setattr(where, stop)
    before = stubs.contents(trained)
    code, _, errors = run(*args.split())
    assert code == 128 + number, errors
    assert stubs.contents(trained) == before
    assert not list(trained.rglob(".tmp-*"))


def test_a_signal_ends_the_pass_after_the_block_in_flight(told, encoders):
    process = slow_embed(0.05, "log/*.json")
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    store = samtl.open("s.zarr")
    done = len(store) - store.missing
    assert 0 < done < len(store)
    assert done % 16 == 0
    assert not [p for p in Path("s.zarr").rglob("*") if p.name.startswith(".tmp-")]
    args = ("embed", "--dataset", "synthetic:20", "--encoder", "tiny", "--out", "s.zarr")
    code, again, _ = told(*args)
    assert (code, again["encoded"], again["missing"]) == (0, len(store) - done, 0)


def test_a_second_signal_stops_at_once():
    process = slow_embed(0.5, "zarr.json")
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    process.join(6)  # the block in flight alone would take 8 seconds
    assert process.exitcode == 130
    assert "Traceback" not in Path("errors").read_text()


# Fits and predictions


def test_fit_head_prints_scores_beside_the_floor(told, embedded):
    code, fit, output = told("fit-head", "--head", "mlp", "--epochs", "3", "--split", "0.25")
    assert code == 0
    for text in ("accuracy", "95 % interval", "floor", "untrained", "6 held out"):
        assert text in output
    assert {"metrics", "floor", "split", "fingerprint", "run", "seconds"} <= fit.keys()
    for score in fit["metrics"].values():
        assert score["low"] <= score["value"] <= score["high"]
    assert fit["split"]["share"] == 0.25
    folder = Path(fit["run"])
    assert folder.parent == Path("runs")
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "split.json", "metrics.json", "confusion.csv", "curves.csv",
        "predictions.csv", "head.safetensors", "head.json",
    }  # fmt: skip
    assert f"run: {folder}" in output


def test_a_store_that_is_unfinished_or_damaged_is_refused(run, told, embedded):
    store = Path(STORE)
    (store / "log" / "1.0.json").unlink()
    code, _, errors = run("fit-head", "--head", "logreg")
    assert (code, "8 of 24 rows" in errors) == (2, True)
    code, fit, _ = told("fit-head", "--head", "logreg", "--allow-partial")
    assert (code, fit["left_out_because"]["missing"]) == (0, 8)
    shutil.rmtree("runs")
    shard = store / "pooled" / "c.0.0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    code, _, errors = run("fit-head", "--head", "logreg", "--allow-partial")
    assert (code, "pooled/c.0.0" in errors) == (2, True)
    assert untouched(Path("runs"))


def test_predict_lists_bad_images_and_takes_the_only_store(run, told, encoders, trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    predict = ("predict", "--run", "run")
    code, done, output = told(*predict, "--images", "images")
    assert (code, done["rows"]) == (0, 24)
    for text in ("field", "town", "untrained", "predictions.csv"):
        assert text in output
    assert len(Path("predictions/predictions.csv").read_text().splitlines()) == 25
    code, _, output = told(*predict, "--images", "images")
    assert (code, "--overwrite" in output) == (0, True)
    Path("images/field/zero.png").write_bytes(b"")
    code, done, output = told(*predict, "--images", "images", "--overwrite")
    assert (code, done["rows"]) == (1, 24)
    assert [(bad["image"], bad["code"]) for bad in done["skipped"]] == [("field/zero.png", "empty")]
    assert "field/zero.png: empty" in output
    assert run(*predict, "--from-store", "--out", "stored.csv")[0] == 0
    assert Path("stored.csv").read_text().startswith("sample_id,predicted,p_field,p_town\n")
