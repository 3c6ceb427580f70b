"""Self-supervised training of the small encoder at a miniature scale: views, losses, the run and its result."""

import hashlib
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from recipes.pretrain import __main__ as command
from recipes.pretrain import state as _state
from recipes.pretrain.images import read_images
from recipes.pretrain.network import Network
from recipes.pretrain.objective import vicreg
from recipes.pretrain.recipe import Recipe, Stage
from recipes.pretrain.training import LOG, Training
from recipes.pretrain.views import at_points, cut, draw_crops, normalised, shared_points
from samtl.encoders import sam
from samtl.errors import InputError, SamtlError
from samtl.images.transforms import resize_longest_side

ROOT = Path(__file__).parent.parent
STAGES = Stage.parse("4:6:4:0.5-0.9"), Stage.parse("5:3:2")
MINIATURE = Recipe(stages=STAGES, pixels=16, wide=16, seed=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_whole_view_is_what_the_encoder_is_given():
    """As Pillow enlarges it, but for the rounding to whole numbers."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].expand(60, -1, -1, -1).float()
    crops = draw_crops(60, 1, 1, generator())
    upright = (crops.turn == torch.eye(2)).all(dim=(1, 2)).nonzero()[0, 0]
    view = cut(images, crops, 64)[upright]
    wanted = torch.from_numpy(resize_longest_side(pixels, 64).copy()).permute(2, 0, 1).float()
    assert (view - wanted).abs().max() <= 1


def test_shared_points_show_the_same_place():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="ij")
    wave = torch.sin(2 * x + y)  # smooth, and nowhere the same under a flip or a turn
    images = torch.stack([x, y, wave]).expand(40, 3, 33, 33)
    one, other = (draw_crops(40, 0.5, 0.8, generator(seed)) for seed in (1, 2))
    points = shared_points(one, other, 20, generator())
    for where in points:
        assert where.abs().max() <= 1 + 1e-5
    found = [at_points(cut(images, c, 256), p) for c, p in zip((one, other), points, strict=True)]
    # At a view's edge the half pixel beyond is repeated.
    torch.testing.assert_close(found[0], found[1], atol=0.05, rtol=0)
    assert (found[0] - found[1]).abs().mean() < 0.002


@pytest.fixture(scope="module")
def network():
    """All of whose parameters count."""
    made = Network("tiny")
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return made


@pytest.mark.parametrize(("tokens", "corner"), [(15, (0, 0)), (5, (7, 59))])
def test_a_view_goes_through_segment_anythings_encoder_of_its_size(network, tokens, corner):
    """Outputs, means at the taps, and gradients; 15 tokens are more than a window, so that there is padding."""
    small = sam.build("tiny", 16 * tokens)
    here = (slice(None), *(slice(start, start + tokens) for start in corner))
    distances = slice(64 - tokens, 63 + tokens)  # of 64 tokens' table
    state = network.encoder.state_dict()
    parts = {"pos_embed": here}
    for name, wanted in small.state_dict().items():
        if "rel_pos" in name and len(state[name]) != len(wanted):
            parts[name] = distances
    small.load_state_dict({name: t[parts.get(name, ...)] for name, t in state.items()})
    x = normalised(torch.rand(2, 3, 16 * tokens, 16 * tokens, generator=generator()))
    seen = {}
    small.blocks[2].register_forward_hook(lambda m, i, out: seen.setdefault("x", out))
    weight = torch.randn(256, tokens, tokens, generator=generator(1))
    expected = small(x)
    (expected * weight).sum().backward()
    theirs = {name: p.grad for name, p in small.named_parameters()}
    for recompute in (False, True):
        network.zero_grad()
        dense, means = network(x, corner, recompute=recompute)
        torch.testing.assert_close(dense, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(means[0], seen["x"].mean(dim=(1, 2)), rtol=1e-3, atol=1e-4)
        (dense * weight).sum().backward()
        for name, parameter in network.encoder.named_parameters():
            got = parameter.grad[parts.get(name, ...)]
            assert (got - theirs[name]).norm() <= 1e-3 * theirs[name].norm(), name


def test_what_is_hidden_is_not_seen(network):
    x = normalised(torch.rand(1, 3, 64, 64, generator=generator()))
    other = x.clone()
    other[:, :, 16:32, 32:48] = 0
    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[0, 1, 2] = True
    torch.testing.assert_close(network(x, hidden=hidden)[0], network(other, hidden=hidden)[0])
    assert not torch.allclose(network(x)[0], network(other)[0])


def test_the_loss_is_the_papers():
    both = torch.randn(2, 12, 5, generator=generator())
    found = vicreg(*both)
    covariances = [np.cov(z.numpy(), rowvar=False) for z in both]
    deviations = np.sqrt([np.diag(c) + 1e-4 for c in covariances])
    spread = np.maximum(0, 1 - deviations).mean()
    entangled = sum((c**2).sum() - (np.diag(c) ** 2).sum() for c in covariances) / 5
    apart = ((both[0] - both[1]) ** 2).mean()
    np.testing.assert_allclose(found.invariance, apart, rtol=1e-5)
    np.testing.assert_allclose(found.variance, spread, rtol=1e-4)
    np.testing.assert_allclose(found.covariance, entangled, rtol=1e-4)
    np.testing.assert_allclose(found.total, 25 * apart + 25 * spread + entangled, rtol=1e-4)


def test_images_are_read_without_labels_and_bad_ones_left_out(tmp_path):
    images, digest, left_out = read_images("synthetic:1", pixels=32)
    assert (images.shape[1:], images.dtype, left_out) == ((3, 32, 32), torch.uint8, 0)
    assert read_images("synthetic:1", pixels=32)[1] == digest
    fewer, other, _ = read_images("synthetic:1", pixels=32, limit=4)
    assert torch.equal(fewer, images[:4])
    assert other != digest
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 10)).save(tmp_path / name / "0.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"no image")
    images, _, left_out = read_images(f"folder:{tmp_path}", pixels=20)
    assert (images.shape, left_out) == ((2, 3, 20, 20), 1)
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(InputError, match="1 images that can be used"):
        read_images(f"folder:{tmp_path}", pixels=20)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=generator())


def begun(images, out, recipe=MINIATURE):
    return Training(images, "digest", recipe, out, torch.device("cpu"))


def tensors(out):
    return _state.read_tensors(out / _state.FILE)[0]


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert begun(images, out).run()
    return out


def test_a_run_that_is_stopped_comes_to_the_same(images, uninterrupted, tmp_path):
    assert MINIATURE.stages == (Stage(4, 6, 4, 0.5, 0.9), Stage(5, 3, 2))
    for after in (2, 1, 3):  # in the first stage, in it again, in the second
        asked = iter(range(100))
        begun(images, tmp_path).run(lambda: next(asked) >= after)  # noqa: B023
    assert begun(images, tmp_path).done
    mine = tensors(tmp_path)
    torch.testing.assert_close(mine, tensors(uninterrupted), rtol=0, atol=0)
    assert len(mine) == 3 * len(list(begun(images, tmp_path).learner.parameters())) + 12
    logs = [(out / LOG).read_text().splitlines() for out in (tmp_path, uninterrupted)]
    lines = [json.loads(log[-1]) for log in logs]
    assert lines[0] | {"seconds": 0} == lines[1] | {"seconds": 0}
    assert (lines[1]["step"], lines[1]["images"]) == (6, 30)


@pytest.mark.slow
def test_a_run_learns(tmp_path):
    """A few images, seen often: their views come closer, and do not collapse."""
    coarse = torch.rand(16, 3, 3, 3, generator=generator(4))
    data = (255 * interpolate(coarse, (16, 16), mode="bilinear")).to(torch.uint8)
    way = {"pixels": 16, "wide": 32, "learning_rate": 2e-3, "hidden_often": 0.0}
    training = begun(data, tmp_path, Recipe(stages=(Stage(4, 8, 12),), **way))
    first = training._learn(0, training.recipe.stages[0], 0, logged=True)
    training.run()
    last = json.loads((tmp_path / LOG).read_text().splitlines()[-1])
    assert last["loss"] < 0.95 * first["loss"]
    assert last["global_variance"] < first["global_variance"]
    assert last["rank"] > 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda kept, about: about["recipe"].update(seed=4), "another recipe.*seed 4 where 3 was"),
        (lambda kept, about: about.update(images="others"), "other images"),
        (lambda kept, about: about.update(step="six"), "remove it to begin anew"),
        (lambda kept, about: kept.pop(min(kept)), "remove it to begin anew"),
        (None, "remove it to begin anew"),  # cut short
    ],
)
def test_a_state_that_does_not_fit_is_refused(images, uninterrupted, tmp_path, change, said):
    path = tmp_path / _state.FILE
    kept, about = _state.read_tensors(uninterrupted / _state.FILE)
    if change is not None:
        change(kept, about)
    _state.write_tensors(path, kept, about)
    if change is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=said):
        begun(images, tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(images, tmp_path):
    training = begun(images, tmp_path)
    training.save()
    with torch.no_grad():
        next(training.learner.network.encoder.neck.parameters()).fill_(math.nan)
    before = (tmp_path / _state.FILE).read_bytes()
    with pytest.raises(SamtlError, match="smaller --learning-rate"):
        training.run()
    assert (tmp_path / _state.FILE).read_bytes() == before


ARGUMENTS = ["--dataset", "synthetic:2", "--stage", "4:4:2", "--pixels", "16", "--wide", "8", "--device", "cpu",
             "--dtype", "float32"]  # fmt: skip


def test_the_command_gives_a_checkpoint_and_rests_when_told_to(tmp_path, capsys):
    made = tmp_path / "run"
    arguments = [*ARGUMENTS, "--out", str(made)]
    assert command.main([*arguments, "--minutes", "1e-9"]) == 0
    assert "stopped after step 0 of 2" in capsys.readouterr().err
    # What there is can be used already, and says that it is not the whole of it.
    assert not sam.load("tiny", str(made / "tiny.safetensors"))[1].untrained
    assert "UNFINISHED, 0 steps of 2" in (made / "MODEL_CARD.md").read_text()
    assert command.main(arguments) == 0
    model, weights = sam.load("tiny", str(made / "tiny.safetensors"))
    assert (weights.description, weights.untrained) == ("file tiny.safetensors", False)
    learnt = tensors(made)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, learnt[f"model.network.encoder.{name}"].half().float()), name
    card = (made / "MODEL_CARD.md").read_text()
    assert hashlib.sha256((made / "tiny.safetensors").read_bytes()).hexdigest() in card
    for part in ("It is not SAM", "transductive", "never their labels", '"seed": 0', "| 2 steps"):
        assert part in card
    assert "UNFINISHED" not in card


STAGES_THAT_ARE_NONE = "", "28:512", "3:8:1", "28:8:5:0.9-0.6", "28:8:5:0.5", "a:b:c"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--dataset", "nothing"], "no dataset is called"),
        *((["--stage", text], "expected TOKENS:BATCH:STEPS") for text in STAGES_THAT_ARE_NONE),
        (["--dtype", "float16"], "--dtype must be"),
        (["--device", "gpu"], "--device must be"),
        (["--pixels", "2"], "--pixels must be at least 8"),
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--learning-rate", "nan"], "--learning-rate must be between"),
        (["--out", __file__], "cannot be a folder"),
    ],
)
def test_what_a_user_can_get_wrong(tmp_path, capsys, more, said):
    assert command.main([*ARGUMENTS, "--out", str(tmp_path / "run"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_ends_it_and_it_goes_on(tmp_path):
    code = "from recipes.pretrain import __main__ as command, training; training.LOG_EVERY = 2; "
    code += "raise SystemExit(command.main())"
    arguments = [*ARGUMENTS, "--stage", "4:4:9999", "--out", str(tmp_path)]
    started, kept = [sys.executable, "-c", code, *arguments], 0
    for number, line in ((signal.SIGTERM, "step 2 of"), (signal.SIGINT, "going on after step")):
        with subprocess.Popen(started, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
            told = next(told for told in iter(process.stderr.readline, "") if line in told)
            assert f"going on after step {kept} of" in told or not kept
            process.send_signal(number)
            assert "the same command goes on" in process.stderr.read()
        assert process.returncode == 128 + number
        step = _state.read_tensors(tmp_path / _state.FILE)[1]["step"]
        assert step >= max(kept, 2)
        kept = step
