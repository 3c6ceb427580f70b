"""The encoder gives what `segment_anything`'s own modules give, on the devices and in the dtype asked for."""

import json
import sys

import numpy as np
import pytest
import torch

from samtl.encoders import pooling, sam
from samtl.encoders.device import resolve_device, resolve_devices
from samtl.errors import InputError, ResourceError, UnknownName
from samtl.images.transforms import PIXEL_MEAN, PIXEL_STD


def relative_l2(ours, reference):
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


@torch.inference_mode()
def plain(model, pixels, size=256):
    """The plain modules as `segment_anything` runs them: Sam.preprocess, then ImageEncoderViT.forward."""
    mean, std = torch.tensor(PIXEL_MEAN).view(-1, 1, 1), torch.tensor(PIXEL_STD).view(-1, 1, 1)
    x = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() - mean) / std
    h, w = x.shape[-2:]
    return model(torch.nn.functional.pad(x, (0, size - w, 0, size - h)))[0].numpy()


def made(dtype="float32", image_size=256, engine="fast"):
    return sam.Encoder("tiny", "random:7", "cpu", dtype, image_size, engine)


@pytest.fixture(scope="module")
def encoder():
    return made()


@pytest.fixture(scope="module")
def model():
    return sam.load("tiny", "random:7", 256)[0]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((256, 256), (256, 83))]


@pytest.mark.parametrize(
    ("engine", "dtype", "bound"), [("fast", "bfloat16", 0.03), ("reference", "float32", 1e-3)]
)
def test_output_is_that_of_segment_anything(model, images, engine, dtype, bound):
    encoder = made(dtype, engine=engine)
    dense = encoder.encode(images, ("dense",))["dense"]
    assert dense.dtype == np.float16
    assert dense.shape == (2, 256, 16, 16)
    for ours, image in zip(dense, images, strict=True):
        assert relative_l2(ours, plain(model, image)) < bound
    if engine == "reference":
        x = torch.randn(1, 3, 256, 256)
        with torch.inference_mode():
            assert torch.equal(encoder.forward(x), model(x))


def test_a_batch_gives_what_single_images_give(encoder, images):
    together = encoder.encode(images)
    for tier, dtype in encoder.spec.stored_dtypes.items():
        assert together[tier].shape == (2, *encoder.spec.shape(tier))
        assert together[tier].dtype == dtype
    for i, image in enumerate(images):
        alone = encoder.encode([image])
        for name in together:
            assert relative_l2(alone[name][0], together[name][i]) < 1e-4, name


@pytest.mark.parametrize("size", [256, 304])
def test_another_image_size_resamples_the_positions(encoder, size):
    """`segment_anything` itself, whose attention stretches a table of relative positions that does not fit."""
    model, side = sam.build("tiny", size).eval(), size // 16
    tensors = sam.load("tiny", "random:7")[0].state_dict()
    grid = tensors["pos_embed"].permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", antialias=True)
    for name in [name for name, _ in model.named_parameters()]:
        value = grid.permute(0, 2, 3, 1) if name == "pos_embed" else tensors[name]
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))
    small = made(image_size=size)
    assert small.weights.sha256 == encoder.weights.sha256
    image = np.random.default_rng(1).integers(0, 256, (size, size // 3, 3), np.uint8)
    out = small.encode([image])
    assert out["dense"].shape == (1, 256, side, side)
    assert out["grid"].shape == (1, 256, 16, 16)
    assert relative_l2(out["dense"][0], plain(model, image, size)) < 1e-3


@pytest.mark.parametrize("side", [3, 16, 20, 32, 64])
def test_grid_has_a_cell_for_each_sixteenth_of_the_side(side):
    values = np.random.default_rng(0).standard_normal((2, side, side)).astype(np.float16)
    rows, columns, cells = side, max(1, side // 3), min(16, side)
    mask = pooling.valid_mask([(rows, columns)], (side, side), torch.device("cpu"))
    grid = pooling.grid(torch.from_numpy(values)[None], mask, cells)[0].numpy()
    assert grid.shape == (2, cells, cells)
    edges = [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
    for y, (top, bottom) in enumerate(edges):
        for x, (left, right) in enumerate(edges):
            inside = values[:, top : min(bottom, rows), left : min(right, columns)]
            expected = inside.mean((1, 2), np.float64) if inside.size else np.zeros(2)
            np.testing.assert_allclose(grid[:, y, x], expected, rtol=2e-3, atol=2e-3)


def test_pooled_follows_its_definition(encoder, model, images):
    """Sums written out in numpy and means of the blocks' outputs, of an image whose right part is padding."""
    out = encoder.encode(images)
    valid = out["dense"][1][:, :, :6].astype(np.float64)  # 83 pixels reach 6 columns of tokens
    expected = [valid.mean((1, 2)), valid.max((1, 2)), valid.std((1, 2))]
    columns, pooled = sam.spec("tiny").features, out["pooled"][1]
    assert pooled.shape == (len(columns),) == (3 * 256 + 2 * 192,)
    assert columns[:768:256] == ("mean_000", "max_000", "std_000")
    np.testing.assert_allclose(pooled[:768], np.concatenate(expected), rtol=1e-4, atol=1e-5)
    seen = []
    for index in (2, 5):
        model.blocks[index].register_forward_hook(lambda module, args, out: seen.append(out))
    plain(model, images[1])
    for index, output in zip((2, 5), seen, strict=True):
        at = columns.index(f"block{index:02d}_mean_0000")
        means = output[0, :, :6].mean((0, 1)).numpy()
        np.testing.assert_allclose(pooled[at : at + 192], means, rtol=1e-3, atol=1e-4)


def test_a_batch_that_does_not_fit_is_halved_and_so_are_those_that_follow(monkeypatch):
    encoder, tried = made(image_size=64), []
    images = [np.full((64, 64, 3), 10 * i, np.uint8) for i in range(11)]
    expected, whole = encoder.encode(images, ("pooled",))["pooled"], encoder._attempt
    room, fault = 3, torch.OutOfMemoryError("no room")

    def attempt(pixels, tiers):
        tried.append(len(pixels))
        if len(pixels) > room:
            raise fault
        return whole(pixels, tiers)

    monkeypatch.setattr(encoder, "_attempt", attempt)
    for times in ([11, 5, 2, 2, 1, 2, 2, 1, 1], [2, 2, 2, 2, 2, 1]):
        found = encoder.encode(images, ("pooled",))["pooled"]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
        assert tried == times
        tried.clear()
    room = 0
    with pytest.raises(ResourceError, match="memory of cpu"):
        encoder.encode(images[:1])
    fault = torch.AcceleratorError("launch failure")  # no defect of the program either
    with pytest.raises(ResourceError, match="launch failure"):
        encoder.encode(images[:1])


def test_the_batch_on_a_gpu_follows_its_memory(monkeypatch):
    encoder = made(image_size=64)
    assert 1 <= encoder.best_batch(100) <= 8
    monkeypatch.setattr(encoder, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    for each, most, expected in ((50, 100, 10), (50, 3, 3), (5, 100, 32), (900, 100, 1)):
        monkeypatch.setattr(encoder, "_bytes_per_image", lambda each=each: each)
        assert encoder.best_batch(most) == expected

    def full():
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(encoder, "_bytes_per_image", full)
    with pytest.raises(ResourceError, match="one image"):
        encoder.best_batch(3)


@pytest.mark.parametrize(
    ("name", "millions", "file"),
    [
        ("sam_vit_b", 90, "sam_vit_b_01ec64.pth"),  # the md5 of each begins with these digits
        ("sam_vit_l", 308, "sam_vit_l_0b3195.pth"),
        ("sam_vit_h", 637, "sam_vit_h_4b8939.pth"),
        ("tiny", 4, None),
    ],
)
def test_every_name_builds_the_published_shape(name, millions, file):
    with torch.device("meta"):  # shapes without memory
        model = sam.build(name)
    variant, n = sam.VARIANTS[name], sum(p.numel() for p in model.parameters())
    assert round(n / 1e6) == millions
    assert [i for i, b in enumerate(model.blocks) if b.window_size == 0] == list(variant.taps)
    assert len(sam.spec(name).features) == 768 + len(variant.taps) * variant.width
    if variant.official:
        assert variant.official.file == file
        assert 16e6 < variant.official.size - 4 * n < 17e6  # of SAM's other parts


def test_the_fingerprint_is_what_decides_the_values(encoder):
    """A change of these fields would make every existing store another one."""
    fields = encoder.fingerprint()
    assert json.loads(json.dumps(fields)) == fields
    assert fields["encoder"] == {"name": "tiny", "weights_sha256": encoder.weights.sha256}
    assert (fields["image_size"], fields["compute_dtype"]) == (256, "float32")
    assert fields["scaling"] == {"mean": list(PIXEL_MEAN), "std": list(PIXEL_STD)}
    others = {"bands", "units", "preprocessing", "stored_dtypes"}
    assert fields.keys() == {"encoder", "scaling", "image_size", "compute_dtype"} | others
    assert sam.spec("tiny", 512).fingerprint("0" * 64, "float32") != fields


def test_what_there_is_not_is_refused_and_the_real_package_left_alone(monkeypatch):
    with pytest.raises(UnknownName, match="fast"):
        sam.Encoder("tiny", device="cpu", engine="fsat")
    for size in (100, 2064):
        with pytest.raises(InputError, match=str(size)):
            sam.spec("tiny", size)
    assert sam.modeling() is sam.modeling()
    assert "segment_anything" not in sys.modules
    monkeypatch.delitem(sys.modules, sam.modeling().__name__)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install segment-anything"):
        sam.modeling()


def given(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "names", "said"),
    [
        *((0, name, "cuda.* needs .* CUDA") for name in ("cuda", "cuda:0", "cuda:all")),
        *((1, name, "--device must be auto, cpu, cuda, cuda:N or mps")
          for name in ("gpu", "cuda:x", "cuda:", "cuda:²", "cpu:", "cpu:0", "mps:1", "", "cpu,")),
        (1, "cuda:3", "CUDA sees 1 device"),
        (3, "cuda:0,cuda:7", "does not exist"),
        (3, "cuda:1,cuda:1", "twice"),
        (3, "cuda:1,cpu", "one kind"),
    ],
)  # fmt: skip
def test_what_there_is_not(monkeypatch, gpus, names, said):
    given(monkeypatch, gpus)
    with pytest.raises(InputError, match=said):
        resolve_devices(names)


def test_several_devices(monkeypatch):
    assert torch.ones(2, device=resolve_device("auto")).sum().item() == 2
    assert resolve_devices("cpu") == (torch.device("cpu"),)
    assert resolve_devices("cpu, cpu") == (torch.device("cpu"),) * 2
    given(monkeypatch, 3)
    gpus = [torch.device("cuda", i) for i in range(3)]
    assert resolve_device("auto").type == "cuda"
    assert resolve_devices("cuda:0,cuda:2") == (gpus[0], gpus[2])
    assert resolve_devices("cuda:all") == tuple(gpus)
