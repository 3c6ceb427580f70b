"""A report of every task says what its models predict, and how well."""

from itertools import product

import pytest
from fake_runs import read_csv
from stubs import embedded
from sweeps import FAST
from toys import numbers, several

from samtl.experiment.fit import fit_baseline, fit_head
from samtl.report.api import make_report

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("data", "head", "score", "figures"),
    [
        (several(60), "logreg", "macro average precision", {"classes", "samples"}),
        (numbers(60), "ridge", "R²", {"numbers", "samples"}),
    ],
    ids=["multilabel", "regression"],
)
def test_a_report_of_other_tasks(tmp_path, data, head, score, figures):
    store, out = embedded(tmp_path, data, 64, ("pooled",)), tmp_path / "runs"
    for seed, name in product((0, 1), (head, "mlp")):
        fit_head(store, name, 0.25, seed=seed, params=FAST.get(name, {}), out=out)
    fit_baseline(data, "floor", 0.25, out=out)
    result = make_report(out, tmp_path / "report", dataset=data)
    assert any(line.startswith("Best head: ") and score in line for line in result.lines)
    files = {path.stem for path in (result.folder / "figures").glob("*.png")}
    assert figures | {"training-curves"} <= files
    assert not {"reliability", "confusions-1"} & files
    (pair,) = read_csv(result.folder / "figures" / "differences.csv")[:1]
    assert {pair["model"], pair["other model"]} <= {head, "mlp", "floor (image statistics)"}
    samples = read_csv(result.folder / "figures" / "samples.csv")
    assert len({row["class"] for row in samples}) == 3
