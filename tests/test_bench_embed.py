"""The bench of passes makes real ones, of every choice of tiers; how long they take is no matter of a test."""

import pytest

from benchmarks import embed as bench
from benchmarks.embed import bench_embed
from samtl.embed import api as embedding
from samtl.encoders import sam
from samtl.errors import InputError


def test_every_choice_is_a_pass_beside_the_encoder_alone(tmp_path, monkeypatch):
    passes, seen, forward = [], [], sam.Encoder.forward

    def embed(dataset, encoder, **options):
        result = embedding.embed(dataset, encoder, **options)
        passes.append((options["tiers"], result.rows, result.encoded, result.missing))
        return result

    monkeypatch.setattr(bench, "embed", embed)
    monkeypatch.setattr(
        sam.Encoder, "forward", lambda self, x: seen.append(len(x)) or forward(self, x)
    )
    options = {"image_size": 64, "batch_size": 3, "limit": 5, "rounds": 1, "out": tmp_path}
    rows = bench_embed("tiny", dataset="synthetic:2", device="cpu", **options)
    choices = [["pooled"], ["pooled", "grid"], ["pooled", "grid", "dense"]]
    assert passes == [(tiers, 5, 5, 0) for tiers in (*choices, *choices[::-1])]
    # The encoder alone sees every image in each round.
    assert [n for n in seen if n > 1] == [3, 2, 3, 2]
    assert [row.name for row in rows] == [
        "embed/pooled", "embed/pooled+grid16", "embed/pooled+grid16+dense", "encoder-alone",
    ]  # fmt: skip
    for row in rows[:-1]:
        assert (row.unit, row.vs) == ("s", "encoder-alone")
        assert row.ratio == pytest.approx(row.value / rows[-1].value)
    assert not list(tmp_path.iterdir())
    passes.clear()
    rows = bench_embed("tiny", dataset="synthetic:2", device="cpu", tiers=["grid"], **options)
    assert passes == [(["grid"], 5, 5, 0)] * 2
    assert [row.name for row in rows] == ["embed/grid16", "encoder-alone"]
    for wrong in ({"dataset": "no-such"}, {"tiers": ["pooled+dens"]}):
        with pytest.raises(InputError):
            bench_embed("tiny", device="cpu", out=tmp_path, **wrong)
