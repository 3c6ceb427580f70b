"""Weights come from where they are said to come from, and nothing in a file is ever run."""

import hashlib
import http.server
import os
import pickle
import threading

import pytest
import torch
from safetensors.torch import save_file

from samtl.encoders import sam
from samtl.encoders import sources as _weights
from samtl.encoders.sources import Official, load_weights, tensors_digest
from samtl.errors import InputError, ResourceError


@pytest.fixture
def model():
    return sam.build("tiny")


@pytest.fixture(scope="module")
def donor():
    made = sam.build("tiny")
    load_weights(made, "random:3", None, "tiny")
    return made


def test_a_seed_names_the_same_bits_everywhere(model):
    weights = load_weights(model, "random:0", None, "tiny")
    assert weights.untrained
    assert weights.description == "untrained (random:0)"
    # Made with integer generator output and exact products alone, so this holds on every machine.
    assert weights.sha256 == "099df50a906c83a11f1df93f3c7da4332214737ef7668798da4c63bcaa87cc9c"


def test_seeds_differ(model, donor):
    assert load_weights(model, "random:4", None, "tiny").sha256 != tensors_digest(donor)


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5"])
def test_a_seed_is_a_number(model, seed):
    with pytest.raises(InputError, match="random:SEED needs a whole number"):
        load_weights(model, f"random:{seed}", None, "tiny")


@pytest.mark.parametrize("kind", ["encoder alone", "whole SAM", "safetensors", "half precision"])
def test_files_of_the_architecture(model, donor, tmp_path, kind):
    state = donor.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "whole SAM":
        state = {f"image_encoder.{k}": t for k, t in state.items()}
        state["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    if kind == "half precision":
        state = {k: t.half().float() for k, t in state.items()}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    weights = load_weights(model, str(path), None, "tiny")
    assert not weights.untrained
    assert weights.description == f"file {path.name}"
    if kind != "half precision":
        assert weights.sha256 == tensors_digest(donor)
    torch.testing.assert_close(
        model.state_dict()["pos_embed"], donor.state_dict()["pos_embed"], rtol=1e-3, atol=1e-4
    )


def test_another_architecture_is_refused(model, tmp_path):
    with torch.device("meta"):
        shapes = {k: t.shape for k, t in sam.build("sam_vit_b").state_dict().items()}
    path = tmp_path / "b.pth"
    torch.save({k: torch.zeros(1).expand(shape) for k, shape in shapes.items()}, path)
    before = tensors_digest(model)
    with pytest.raises(
        InputError, match=r"not of the architecture tiny: .*do not belong.*another shape"
    ):
        load_weights(model, str(path), None, "tiny")
    assert tensors_digest(model) == before


def test_a_missing_file(model):
    with pytest.raises(InputError, match="no such file"):
        load_weights(model, "nowhere.pth", None, "tiny")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_an_unreadable_file(model, tmp_path, content):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pth"):
        load_weights(model, str(path), None, "tiny")


class Exploit:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_not_run(model, tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "evil.pth"
    if zipped:
        torch.save({"pos_embed": Exploit()}, path)
    else:
        path.write_bytes(pickle.dumps({"pos_embed": Exploit()}))
    with pytest.raises(InputError, match="it was not run"):
        load_weights(model, str(path), None, "tiny")
    assert not (tmp_path / "ran").exists()


def test_something_else_than_a_state_dict(model, tmp_path):
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="must hold a state dict"):
        load_weights(model, str(path), None, "tiny")


@pytest.fixture
def published(donor, tmp_path, monkeypatch):
    """An official checkpoint on a server of our own; gives (Official, folder that is served)."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save(donor.state_dict(), folder / "tiny_official.pth")
    content = (folder / "tiny_official.pth").read_bytes()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(_weights, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path / "weights"))
        yield (
            Official("tiny_official.pth", len(content), hashlib.sha256(content).hexdigest()),
            folder,
        )
        server.shutdown()


def test_download_verifies_and_is_kept(model, donor, published, tmp_path):
    official, folder = published
    weights = load_weights(model, "official", official, "tiny")
    assert weights.description == "official tiny_official.pth"
    assert not weights.untrained
    assert weights.sha256 == tensors_digest(donor)
    (folder / official.file).unlink()  # the second time it must come from the disk
    assert load_weights(model, "official", official, "tiny") == weights
    assert (tmp_path / "weights" / official.file).is_file()


def test_download_of_something_else_is_refused(model, published, tmp_path):
    official, folder = published
    (folder / official.file).write_bytes(b"something else")
    with pytest.raises(InputError, match=f"does not have the sha256 {official.sha256}"):
        load_weights(model, "official", official, "tiny")
    assert not list((tmp_path / "weights").glob("*"))


def test_a_damaged_kept_copy_is_fetched_again(model, donor, published, tmp_path):
    official, _ = published
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / official.file).write_bytes(b"cut short")
    assert load_weights(model, "official", official, "tiny").sha256 == tensors_digest(donor)


def test_no_server(model, monkeypatch, tmp_path):
    monkeypatch.setattr(_weights, "BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("SAMTL_WEIGHTS", str(tmp_path / "weights"))
    official = Official("gone.pth", 1, "0" * 64)
    with pytest.raises(ResourceError, match="could not download") as caught:
        load_weights(model, "official", official, "tiny")
    assert caught.value.exit_code == 5


def test_a_file_that_claims_to_be_official(model, donor, published, tmp_path):
    official, folder = published
    real = folder / official.file
    assert load_weights(model, str(real), official, "tiny").description.startswith("official")
    fake = tmp_path / official.file
    torch.save({k: t + 1 for k, t in donor.state_dict().items()}, fake)
    with pytest.raises(InputError, match="named like the official checkpoint"):
        load_weights(model, str(fake), official, "tiny")


def test_no_official_weights_for_tiny(model):
    with pytest.raises(InputError, match="has no official checkpoint"):
        load_weights(model, "official", None, "tiny")


def test_official_names_carry_their_md5_prefix_and_hashes_differ():
    """The file names end in the first six digits of their md5; a swapped table row would show here."""
    table = {v.official.file: v.official for v in sam.VARIANTS.values() if v.official}
    assert set(table) == {"sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth"}
    assert len({o.sha256 for o in table.values()}) == 3
    sizes = [table[f"sam_vit_{k}.pth"].size for k in ("b_01ec64", "l_0b3195", "h_4b8939")]
    assert sizes == sorted(sizes)
