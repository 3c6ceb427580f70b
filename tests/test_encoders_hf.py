"""Backbones of transformers as encoders, on tiny networks with random weights, against transformers itself."""

import copy
import hashlib
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from stubs import png, unpack

import samtl
from benchmarks.encoder import bench_encoder
from samtl.embed.reload import reload_encoder
from samtl.encoders import hf
from samtl.encoders.weights import hub as found
from samtl.errors import InputError, MismatchError, ResourceError, UnknownName
from samtl.store.reader import open_store

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = dict(VIT, vocab_size=50, max_position_embeddings=16, bos_token_id=0, eos_token_id=1)
SIGLIP_TEXT = {**TEXT, "pad_token_id": 1}
HIERA = {
    "model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1, "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [16, 32, 64, 128], "num_attention_heads_per_stage": [1, 2, 4, 8],
    "global_attention_blocks": [3],
    "image_size": [64, 64],
}  # fmt: skip
SAM2 = {"backbone_config": HIERA, "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32}
MAE = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16
}  # fmt: skip


def whole(kind, **options):
    return getattr(transformers, f"{kind}Config")(**options)


VISION = {**VIT, "image_size": 64}
PATCHES_14 = {**VIT, "image_size": 56, "patch_size": 14}
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4}
TWO_SIGLIP = {"vision_config": VISION, "text_config": SIGLIP_TEXT}
TWO_SIGLIP2 = {"vision_config": {**VIT, "num_patches": 16}, "text_config": SIGLIP_TEXT}
TWO_CLIP = {"vision_config": {**VISION, "patch_size": 16}, "text_config": TEXT}
THREE_SAM2 = {
    "vision_config": SAM2, "prompt_encoder_config": {"hidden_size": 32}, "mask_decoder_config": DECODER,
}  # fmt: skip
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
# Name and options of a configuration, the class that is saved, its vision part, the size, tokens before the grid.
MODELS = {
    "dinov2": ("Dinov2", {**PATCHES_14, "image_size": 70}, "Dinov2Model", "", 56, 1),
    "classifier": ("Dinov2", PATCHES_14, "Dinov2ForImageClassification", "dinov2", 56, 1),
    "registers": ("Dinov2WithRegisters", PATCHES_14, "Dinov2WithRegistersModel", "", 56, 5),
    "dinov3": ("DINOv3ViT", {**VISION, "num_register_tokens": 4}, "DINOv3ViTModel", "", 96, 5),
    "convnext": ("DINOv3ConvNext", CONVNEXT, "DINOv3ConvNextModel", "", 64, 1),
    "mae": ("ViTMAE", {**VISION, **MAE}, "ViTMAEForPreTraining", "vit", 96, 1),
    "vit": ("ViT", VISION, "ViTForImageClassification", "vit", 64, 1),
    "clip": ("CLIP", TWO_CLIP, "CLIPModel", "vision_model", 96, 1),
    "siglip": ("Siglip", TWO_SIGLIP, "SiglipModel", "vision_model", 64, 0),
    "siglip2": ("Siglip2", TWO_SIGLIP2, "Siglip2Model", "vision_model", 96, 0),
    "sam2": ("Sam2", THREE_SAM2, "Sam2Model", "vision_encoder", 128, 0),
}
MEAN, STD = (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)  # of DINOv3's satellite weights


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Make the model of a name once, with noise in every parameter: (its folder, the model in memory)."""
    made = {}

    def model(name):
        if name not in made:
            config, options, kind, *_ = MODELS[name]
            torch.manual_seed(0)
            built = getattr(transformers, kind)(whole(config, **options)).eval()
            with torch.no_grad():
                for parameter in built.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
            folder = tmp_path_factory.mktemp("models") / name
            built.save_pretrained(folder)
            about = {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255}
            (folder / "preprocessor_config.json").write_text(json.dumps(about))
            made[name] = folder, built
        return made[name]

    return model


@pytest.fixture
def images(tmp_path):
    """A folder of eight images in two classes, one of which is not square."""
    files = {f"{name}/{i}.png": png(10 * len(name) + i) for name in ("a", "bb") for i in range(4)}
    folder = unpack(tmp_path / "images", files)
    with Image.open(folder / "a/0.png") as image:
        image.crop((0, 0, image.width, image.height // 2)).save(folder / "a/0.png")
    return folder


def embed(images, name, size, **options):
    options = {"device": "cpu", "dtype": "float32", "tiers": ("pooled", "grid", "dense"), **options}
    return open_store(samtl.embed(f"folder:{images}", name, image_size=size, **options).store)


@torch.inference_mode()
def expected(name, built, path, size):
    """Run transformers on one image as a user would: tokens (side, side, channels), and the CLS token."""
    *_, part, _, prefix = MODELS[name]
    with Image.open(path) as image:
        scale = size / max(image.size)
        image = image.convert("RGB").resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
        )
    x = (torch.from_numpy(np.array(image)).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    square = torch.zeros(1, 3, size, size)
    square[0, :, : x.shape[0], : x.shape[1]] = x.permute(2, 0, 1)
    model = built.get_submodule(part) if part else built
    if name == "mae":
        model.embeddings.config.mask_ratio = 0.0
        out = model(square, noise=torch.arange((size // 16) ** 2)[None], interpolate_pos_encoding=True)  # fmt: skip
    elif name == "siglip2":
        side = size // 16
        patches = square[0].reshape(3, side, 16, side, 16).permute(1, 3, 2, 4, 0).reshape(1, side**2, -1)  # fmt: skip
        mask, shapes = torch.ones(1, side**2, dtype=torch.long), torch.tensor([[side, side]])
        out = model(patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    elif name in ("clip", "siglip", "vit"):
        out = model(square, interpolate_pos_encoding=True)
    else:
        out = model(square)
    if name == "sam2":
        return out.fpn_hidden_states[-1][0].permute(1, 2, 0), None
    tokens = out.last_hidden_state[0, prefix:]
    side = round(len(tokens) ** 0.5)
    return tokens.reshape(side, side, -1), out.last_hidden_state[0, 0] if prefix else None


@pytest.mark.parametrize("name", MODELS)
def test_a_store_has_what_transformers_computes(models, images, name):
    folder, built = models(name)
    size = MODELS[name][4]
    store = embed(images, f"hf:{folder}", size, out="store.zarr")
    columns = np.array(store.columns("pooled"))
    for row, sample in enumerate(store.sample_ids):
        tokens, cls = expected(name, built, images / sample, size)
        dense = store.read("dense", [row])[0].astype(np.float64).transpose(1, 2, 0)
        assert dense.shape == tokens.shape
        assert np.linalg.norm(dense - tokens.numpy()) <= 1e-3 * tokens.norm()
        pooled = store.read("pooled", [row])[0]
        own = pooled[np.char.startswith(columns, "cls_")]
        assert len(own) == (0 if cls is None else len(cls))
        if cls is not None:
            assert np.linalg.norm(own - cls.numpy()) <= 1e-4 * cls.norm()
    assert store.identity["scaling"]["mean"] == pytest.approx([255 * m for m in MEAN])


def test_a_run_says_which_model_it_needs(models, images, tmp_path, told):
    folder, _ = models("dinov2")
    link = tmp_path / "my model"
    link.symlink_to(folder)
    code, embedded, _ = told(
        "embed", "--dataset", f"folder:{images}", "--encoder", "hf:my model", "--image-size", 56
    )
    assert (code, embedded["store"]) == (0, "cache/folder-images.hf-models0-dinov2.56.zarr")
    code, run, _ = told("fit-head", "--head", "logreg", "--split", 0.5)
    assert (code, run["untrained"]) == (0, False)
    for options in (["--images", images], ["--from-store", "--cache", embedded["store"]]):
        code, found, _ = told("predict", "--run", run["path"], *options)
        assert (code, found["rows"]) == (0, 8)
    moved, own = tmp_path / "moved", tmp_path / "own"
    shutil.copytree(folder, moved)
    identity = open_store(embedded["store"]).identity
    (gone := copy.deepcopy(identity))["encoder"]["name"] = f"hf:{own}"
    assert reload_encoder(gone, "folder own", "run", str(moved)).spec.name == f"hf:{own}"
    with pytest.raises(InputError, match="own"):
        reload_encoder(gone, "folder own", "run")


def test_weights_from_elsewhere(models, images, tmp_path):
    folder, built = models("dinov2")
    name, own = f"hf:{folder}", embed(images, f"hf:{folder}", 56, out="own.zarr")
    seeded = embed(images, name, 56, checkpoint="random:1", out="seeded.zarr")
    assert seeded.untrained
    assert seeded.identity["encoder"]["weights_sha256"] != own.identity["encoder"]["weights_sha256"]
    # The same numbers, pickled and in another folder.
    torch.save(built.state_dict(), tmp_path / "weights.bin")
    pickled = embed(images, name, 56, checkpoint=tmp_path / "weights.bin", out="pickled.zarr")
    assert pickled.identity == own.identity
    copy = unpack(tmp_path / "copy", {p.name: p.read_bytes() for p in folder.glob("*.json")})
    torch.save(built.state_dict(), copy / "pytorch_model.bin")
    copied = embed(images, f"hf:{copy}", 56, out="copied.zarr")
    assert copied.identity["encoder"] == own.identity["encoder"] | {"name": f"hf:{copy}"}
    with pytest.raises(MismatchError):
        embed(images, name, 56, checkpoint="random:1", out="own.zarr")


@pytest.mark.parametrize(
    ("kind", "options", "size", "grid"),
    [
        ("Dinov2", dict(VIT, image_size=518, patch_size=14), 896, 64),
        ("DINOv3ViT", dict(VIT, image_size=224), 1024, 64),
        ("CLIPVision", dict(VIT, image_size=224, patch_size=32), 1024, 32),
        ("SamVision", dict(VIT, image_size=64, output_channels=8, global_attn_indexes=[1]), 64, 4),
        ("ConvNext", {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4}, 1024, 32),
        (
            "Swin",
            {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
            512,
            64,
        ),
    ],
)
def test_the_usual_size_gives_64_tokens_along_a_side(tmp_path, kind, options, size, grid):
    whole(kind, **options).save_pretrained(tmp_path)
    found = hf.spec(f"hf:{tmp_path}")
    assert (found.image_size, found.grid) == (size, (grid, grid))
    assert found.scaling["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert found.preprocessing["normalisation"].startswith("ImageNet")


@pytest.mark.parametrize(
    ("about", "mean", "std"),
    [
        ({"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 127.5}, 54.825, 27.1575),
        ({"image_processor": {"image_mean": MEAN, "image_std": STD}}, 109.65, 54.315),
        ({"do_normalize": False}, 0, 255),
        ({"do_rescale": False, "image_mean": [100, 100, 100], "image_std": [50, 50, 50]}, 100, 50),
    ],
)
def test_normalisation_is_the_checkpoint_s(tmp_path, about, mean, std):
    whole("Dinov2", **VIT).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    scaling = hf.spec(f"hf:{tmp_path}").scaling
    assert (scaling["mean"][0], scaling["std"][0]) == pytest.approx((mean, std))


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("Bert", VIT, "bert"),
        ("VideoMAE", VIT, "videomae"),
        ("AST", VIT, "audio-spectrogram"),
        ("Dinov2", dict(VIT, image_size=[56, 112]), "56 x 112"),
        ("Dinov2", dict(VIT, num_channels=6), "6 bands"),
    ],
)
def test_other_models_are_refused_by_their_type(tmp_path, kind, options, told):
    whole(kind, **options).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=told):
        hf.spec(f"hf:{tmp_path}")


def test_what_is_no_model(tmp_path, models):
    folder, _ = models("dinov2")
    (tmp_path / "empty").mkdir()
    unpack(tmp_path / "odd", {"config.json": b'{"model_type": "gasbag"}'})
    unpack(tmp_path / "torn", {"config.json": b'{"model_'})
    for name in ("empty", "odd", "torn", "gone/at/all", "../gone"):
        with pytest.raises(InputError):
            hf.spec(f"hf:{tmp_path}/{name}" if "gone" not in name else f"hf:{name}")
    with pytest.raises(UnknownName):
        samtl.embed("synthetic:1", "hf")
    with pytest.raises(InputError, match="14"):
        hf.spec(f"hf:{folder}", 64)
    weights = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    for file, content, changes in (
        ("model.safetensors", weights[:2000], {}),
        ("model.safetensors", weights, {"num_hidden_layers": 3}),
        ("model.safetensors", weights, {"hidden_size": 16}),
        ("pytorch_model.bin", b"no weights", {}),
        ("notes.txt", b"", {}),
    ):
        text = json.dumps(config | changes).encode()
        place = unpack(
            tmp_path / f"{file}{len(content)}{len(text)}", {"config.json": text, file: content}
        )
        with pytest.raises(InputError, match=r"(?i)weights"):
            hf.Encoder(f"hf:{place}", device="cpu", image_size=56)


def test_the_bench_compares_with_a_plain_loop(models):
    name = f"hf:{models('dinov3')[0]}"
    options = {"device": "cpu", "dtypes": ["float32", "int8"], "image_size": 64, "batch_size": 1}
    rows = bench_encoder(name, **options, rounds=1)
    assert rows[0].vs == "transformers-float32"
    errors = [row.value for row in rows if row.name.endswith("/error")]
    assert errors[0] <= 1e-5
    assert max(errors) <= 0.1


class Hub(BaseHTTPRequestHandler):
    """A Hugging Face hub with one model of a few files, and what can be wrong with others."""

    folder, asked = None, []
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        status, code, content, headers = 200, "", b"", {}
        names = [p for p in self.folder.iterdir() if p.is_file()]
        if "/gated/resolve/" in path:
            status, code = 403, "GatedRepo"
        elif "/private/" in path:
            status, code = 401, "RepoNotFound"
        elif "/broken/" in path:
            status = 500
        elif "/resolve/" in path:
            content = (self.folder / path.rpartition("/")[2]).read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": self.commit,
            }
        elif "/tree/" in path:
            content = json.dumps(
                [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                    for p in names
                ]
            ).encode()
        elif "/revision/" in path and not path.endswith(("/main", "/v1", self.commit)):
            status, code = 404, "RevisionNotFound"
        else:
            siblings = [{"rfilename": p.name} for p in names]
            content = json.dumps({"id": "x/y", "sha": self.commit, "siblings": siblings}).encode()
        self.send_response(status)
        headers |= {"X-Error-Code": code} if code else {}
        for name, value in (
            headers | {"Content-Length": len(content), "Content-Type": "application/json"}
        ).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD, log_message = do_GET, lambda *told: None


@pytest.fixture
def hub(models, monkeypatch, tmp_path):
    Hub.folder, Hub.asked = models("dinov2")[0], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    constants = pytest.importorskip("huggingface_hub.constants")
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found._described.cache_clear()
    yield constants
    server.shutdown()
    server.server_close()


def test_a_repository_is_downloaded_once(hub, images, monkeypatch, tmp_path):
    (Hub.folder / "notes.txt").touch()
    first = embed(images, "hf:some/model", 56)
    assert first.path.name == "folder-images.hf-some-model.56.zarr"
    assert first.weights == f"official some/model@{Hub.commit[:12]}"
    assert not any("notes" in path for path in Hub.asked)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    found._described.cache_clear()
    Hub.asked.clear()
    again = embed(images, "hf:some/model", 56, out="again.zarr")
    assert again.identity == first.identity
    assert not Hub.asked
    with pytest.raises(ResourceError):
        hf.spec("hf:some/other")


def test_a_revision_is_part_of_the_name(hub, images):
    store = embed(images, "hf:some/model@v1", 56)
    assert store.path.name == "folder-images.hf-some-model-v1.56.zarr"
    assert store.identity["encoder"]["name"] == "hf:some/model@v1"


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("org/gated", InputError, "licence"),
        ("org/private", InputError, "private"),
        ("org/model@v2", InputError, "v2"),
        ("org/broken", ResourceError, "internet"),
    ],
)
def test_what_a_hub_refuses_is_said_once(hub, name, error, told):
    with pytest.raises(error, match=told):
        hf.spec(f"hf:{name}")
