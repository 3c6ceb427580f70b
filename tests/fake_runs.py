"""Run folders as a fit writes them, with figures that are made up but fit together."""

import csv
import hashlib

import numpy as np
from toys import blobs

from samtl._io import digest
from samtl.experiment.run import Run, RunFolder, SplitName
from samtl.experiment.tables import mask_name, write_mask
from samtl.images.transforms import IGNORE, mask_square, resized_shape
from samtl.metrics import classification, segmentation
from samtl.metrics.classification import Score
from samtl.report.load import read_comparisons

CLASSES = ("Crop", 'For"est,', "River")
TIERS = {"logreg": "pooled", "mlp": "pooled", "conv": "grid", "vit": "grid"}
SKILL = {"floor": 0.6, "logreg": 0.75, "mlp": 0.77, "conv": 0.83, "vit": 0.87, "cnn": 0.95}
SIZE = 64  # the resolution of masks
STORE = {
    "store": "toy.tiny.64", "store_path": "toy.tiny.64.zarr", "fingerprint": "f" * 64, "snapshot": "5" * 64,
    "encoder": "tiny", "weights": "official", "identity": {"image_size": 64},
    "floor_model": "the most frequent class everywhere",
}  # fmt: skip


def a_run(
    parent, name="mlp", seed=0, share=0.2, *, ids=100, classes=CLASSES, left_out=0, salt="",
    wrong=None, **given,
):  # fmt: skip
    """Write the run of a classification, and return its path.

    `ids` are the samples, or how many; a label fraction leaves `left_out` of them out. Another `salt` holds out others.
    `wrong` has the predictions that are not right, by id; by default as many as the model's skill leaves. `given` are
    fields of the record.
    """
    k = len(classes)
    names = [f"{classes[i % k]}/{i:03d}.png" for i in range(ids)] if isinstance(ids, int) else ids
    n_test = round(len(names) * share)
    order = np.random.default_rng([seed, len(names), *salt.encode()]).permutation(len(names))
    test = sorted(order[:n_test].tolist())
    truth = np.array(test) % k
    if wrong is None:
        random = np.random.default_rng([seed, len(name), ord(name[0])])
        missed = random.random(n_test) > SKILL.get(name, 0.8) - share / 4
        guess = np.where(missed, random.integers(0, k, n_test), truth)
    else:
        guess = np.array([wrong.get(names[i], label) for i, label in zip(test, truth, strict=True)])
    matrix = classification.confusion(truth, guess, k)
    scores = {"accuracy": classification.accuracy, "macro_f1": classification.macro_f1}
    metrics = {key: interval(float(score(matrix))) for key, score in scores.items()}
    held_out = {names[i]: classes[i % k] for i in test}
    rows = [(names[i], classes[a], classes[b]) for i, a, b in zip(test, truth, guess, strict=True)]
    kind = given.pop("split_name", "label" if left_out else "holdout")
    split = a_split(kind, share, seed, f"{test}{left_out}")
    about = {"task": "classification", "classes": classes, "features": TIERS.get(name, "pixels")}
    if name == "floor":
        about["also"] = {"knn": metrics}
    with RunFolder(parent) as folder:
        chances = np.random.default_rng(seed).uniform(0.5, 1, n_test)
        rows = [(*row, chance) for row, chance in zip(rows, chances, strict=True)]
        folder.write_csv("predictions.csv", ["sample_id", "label", "predicted", "confidence"], rows)
        sizes = (len(names) - n_test - left_out, n_test, left_out)
        return record(folder, name, split, sizes, held_out, matrix, metrics, about | given)


def a_mask_run(parent, name="conv", seed=0, share=0.25, *, data=None, shift=1, **given):
    """Write the run of a segmentation whose masks are the true ones, moved by columns: `shift`, or one for each.

    "nothing" is no foreground at all, and "half" is the first foreground class in the upper half.
    """
    data = data or blobs(24)
    n_test = round(len(data) * share)
    test = sorted(np.random.default_rng(seed).permutation(len(data))[:n_test].tolist())
    shifts = shift if isinstance(shift, range) else [shift] * n_test
    with RunFolder(parent) as folder:
        matrices, truths, rows, pixels = [], {}, [], []
        for place, (i, moved) in enumerate(zip(test, shifts, strict=True)):
            sample_id, mask = data.sample_ids[i], data.read_mask(data.sample_ids[i])
            height, width = resized_shape(*mask.shape, SIZE)
            truth = mask_square(mask, SIZE)[:height, :width]
            if isinstance(moved, int):
                guess = np.roll(np.where(truth == IGNORE, 0, truth), moved, axis=1).astype(np.uint8)
            else:
                guess = np.zeros((height, width), dtype=np.uint8)
                guess[: height // 2 * (moved == "half")] = 1
            matrices.append(segmentation.confusion(truth, guess, len(data.classes)))
            truths[sample_id] = hashlib.sha256(mask.tobytes()).hexdigest()
            file = f"masks/{mask_name(place, sample_id)}"
            write_mask(folder.path / file, guess)
            scores = segmentation.scores(matrices[-1])
            rows.append([sample_id, file, *(f"{value:.6g}" for value in scores.values())])
            for label, counts in zip(
                data.classes, segmentation.class_counts(matrices[-1]), strict=True
            ):
                pixels.append([sample_id, label, *counts])
        folder.write_csv("images.csv", ["sample_id", "mask", *scores], rows)
        folder.write_csv("pixels.csv", ["sample_id", "class", "true", "predicted", "both"], pixels)
        metrics = segmentation.score(np.stack(matrices))
        split = a_split(given.pop("split_name", "holdout"), share, seed, str(test))
        about = {"task": "segmentation", "classes": data.classes, "dataset": data.name}
        about |= {"resolution": SIZE, "features": "dense" if name in TIERS else "pixels"}
        sizes, total = (len(data) - n_test, n_test, 0), sum(matrices)
        return record(folder, name, split, sizes, truths, total, metrics, about | given)


def record(folder, name, split, sizes, held_out, matrix, metrics, given):
    """Write the curves and the record of a fit; sizes are of the samples learnt from, held out and left out."""
    columns = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    header = ["epoch", "scaling", *columns]
    rows = [(i, "x", 2 / i, 1 - 1 / (1 + i), 2.5 / i, 1 - 1.1 / (1 + i)) for i in (1, 2, 3)]
    if name in ("logreg", "floor"):
        header, rows = ("C", "loss"), [(1, 0.5)]
    folder.write_csv("curves.csv", header, rows)
    learnt, n_test, left_out = sizes
    seconds = 30.0 * len(name) + split.seed
    key = [given["task"], given["classes"], given.get("resolution", 0), sorted(held_out.items())]
    fields = {
        "kind": "baseline", "name": name, "seed": split.seed, "split": split, "validation": split,
        "n_train": learnt - learnt // 5, "n_validation": learnt // 5, "n_test": n_test,
        "left_out_because": {"quarantined": 3, "not_in_the_split": left_out}, "comparison_key": digest(key),
        "params": {"lr": 0.1, "epochs": None, "random_state": split.seed}, "dataset": "toy",
        "samples_digest": f"{sum(sizes)} samples", "versions": {"samtl": "0.1.0", "numpy": "2.4"}, "given": {},
        "metrics": metrics, "confusion": matrix, "also": {}, "floor": None, "floor_missing": "",
        "training": {"epochs": 3, "best_epoch": 2, "samples_per_second": 123.4},
        "seconds": {"read": 1.0, "fit": seconds, "total": seconds + 5}, "peak_memory": 2**29,
        "finished": f"2026-01-01T00:{len(list(folder.parent.glob('*'))):02d}:00+00:00",
    }  # fmt: skip
    if name in TIERS:
        fields |= {**STORE, "kind": "head", "floor": {key: interval(0.3) for key in metrics}}
    return folder.record(Run(**fields | given).with_digest()).path


def a_split(name, share, seed, who):
    return SplitName(name, share, seed, hashlib.sha256(f"{name} {seed} {who}".encode()).hexdigest())


def interval(value):
    return Score(value, value - 0.02, value + 0.02)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def the_one(*sources):
    """Read runs that may all be compared."""
    (comparison,) = read_comparisons(sources)
    return comparison
