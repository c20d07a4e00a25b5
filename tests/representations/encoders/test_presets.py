import functools
import hashlib
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_resnet_golden import CIFAR_SIDE

from hume_jax.errors import UserError
from hume_jax.representations.encoders import hub, presets, published, resnet_names, weights
from hume_jax.representations.encoders.published import Preset, Weights
from hume_jax.representations.encoders.resnet import ResNet
from hume_jax.representations.encoders.vit import ViT
from hume_jax.representations.images.preprocess import Preprocessing

GOLDEN = pathlib.Path(__file__).parent / "golden"
FILE = GOLDEN / "resnet_cifar.safetensors"
SHA256 = hashlib.sha256(FILE.read_bytes()).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Not the mapping itself, to which other tests add.
NAMES = (
    "moco_v2_r50",
    "moco_v2_r18_stl10",
    "moco_v2_r18_cifar",
    "bit_m_r50x1",
    *(f"clip_vit_{size}" for size in ("b32", "b16", "l14")),
    *(f"dinov2_vit{size}14{registers}" for registers in ("", "_reg") for size in "sblg"),
    "siglip2_vitb16",
)
MEAN, STD = (0.5, 0.25, 0.75), (0.5, 1.0, 0.25)


@pytest.fixture
def tiny(monkeypatch):
    """A preset of the tests' own, published on the Hub."""
    preset = Preset(
        model=ResNet(version=1, blocks=(1, 1, 1, 1), bottleneck=False, width=4, stem="cifar"),
        rules=resnet_names.rules,
        ignored=resnet_names.IGNORED,
        weights=Weights(
            repo="owner/tiny",
            filename="file.safetensors",
            revision=COMMIT,
            url="https://owner.org/tiny.pth",
            sha256=SHA256,
            licence="CC0",
            source="a page",
        ),
        preprocessing=Preprocessing(20, CIFAR_SIDE, "shortest", "bilinear", MEAN, STD),
        outputs=("pool",),
    )
    monkeypatch.setitem(published.PRESETS, "tiny", lambda: preset)
    return preset


@pytest.fixture
def downloads(monkeypatch):
    """What is asked of the Hub, which gives the tiny network's weights."""
    asked = []

    def fetch(repo, filename, revision):
        asked.append((repo, filename, revision))
        return hub.Fetched(FILE, COMMIT, SHA256)

    monkeypatch.setattr(hub, "fetch", fetch)
    return asked


def fails(call, *args):
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@functools.cache
def shapes_of(encoder):
    """The parameters' shapes, of a ViT with one block, and the number of those left out."""
    model, repeats = encoder.model, 0
    if isinstance(model, ViT):
        model, repeats = model.clone(depth=1), model.depth - 1
    side = encoder.preprocessing.crop
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"], repeats


# ---- what is published


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_complete(name):
    encoder = presets.parse(name)
    where = encoder.preset.weights
    assert encoder.spec == name
    assert where.licence
    assert where.source
    assert not where.run
    assert (where.repo is None) == (where.filename is None)
    assert where.revision is None or re.fullmatch("[0-9a-f]{40}", where.revision)
    assert where.sha256 is None or re.fullmatch("[0-9a-f]{64}", where.sha256)
    assert where.url is None or where.url.startswith("https://")
    assert encoder.model.output in encoder.preset.outputs
    how = encoder.preprocessing
    assert how.resize >= how.crop
    assert not encoder.unit_norm


@pytest.mark.parametrize(
    ("name", "columns", "parameters"),
    [
        # As torchvision 0.29 counts them, heads and half of a batch norm's numbers left out.
        ("moco_v2_r50", 2048, 23_508_032 - 26_560),
        ("moco_v2_r18_stl10", 512, 11_176_512 - 4_800),
        ("moco_v2_r18_cifar", 512, 11_176_512 - 4_800 - 3 * 64 * (49 - 9)),
        # timm 1.0, without the head.
        ("bit_m_r50x1", 2048, 23_500_352),
        # transformers 5.23, CLIPVisionModelWithProjection.
        ("clip_vit_b32", 512, 87_849_216),
        ("clip_vit_b16", 512, 86_192_640),
        ("clip_vit_l14", 768, 303_966_208),
        # transformers 5.23, Dinov2Model, less the token for hidden patches.
        ("dinov2_vits14", 384, 22_056_576 - 384),
        ("dinov2_vitb14", 768, 86_580_480 - 768),
        ("dinov2_vitl14", 1024, 304_368_640 - 1024),
        ("dinov2_vitg14", 1536, 1_136_480_768 - 1536),
        ("dinov2_vits14_reg", 384, 22_058_112 - 384),
        ("dinov2_vitb14_reg", 768, 86_583_552 - 768),
        ("dinov2_vitl14_reg", 1024, 304_372_736 - 1024),
        ("dinov2_vitg14_reg", 1536, 1_136_486_912 - 1536),
        # transformers 5.23, SiglipVisionModel.
        ("siglip2_vitb16", 768, 92_884_224),
    ],
)
def test_columns_and_parameters_are_those_of_the_published_model(name, columns, parameters):
    # DINOv2's weights have positions for 518 pixels.
    encoder = presets.parse(f"{name}:size=518" if name.startswith("dinov2") else name)
    assert presets.width(encoder) == columns
    shapes, repeats = shapes_of(encoder)
    counts = {level: sum(leaf.size for leaf in jax.tree.leaves(shapes[level])) for level in shapes}
    assert sum(counts.values()) + repeats * counts.get("block_0", 0) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_rules_fill_every_parameter(name):
    encoder = presets.parse(name)
    first = {
        "moco": "module.encoder_q.conv1.weight",
        "bit": "stem.conv.weight",
        "clip": "vision_model.embeddings.patch_embedding.weight",
        "dinov2": "embeddings.patch_embeddings.projection.weight",
        "siglip2": "vision_model.embeddings.patch_embedding.weight",
    }[name.split("_")[0]]
    rules = encoder.preset.rules(encoder.model, [first])
    # Of a ViT, blocks beyond the first are like it.
    filled = {key for key in rules if not re.match("block_[1-9]", key)}
    paths = jax.tree_util.tree_leaves_with_path(shapes_of(encoder)[0])
    assert filled == {"/".join(key.key for key in path) for path, _ in paths}


def test_the_table_names_every_preset_with_its_licence():
    table = presets.describe().splitlines()
    for name, line in zip(NAMES, table[2 : 2 + len(NAMES)], strict=True):
        where = presets.PRESETS[name]().weights
        assert line.startswith(f"| `{name}` | ")
        assert where.licence in line
        assert where.source in line
        assert re.search(r"\| names checked against .+, weights not run \|$", line)
    assert "| facebook/dinov2-small@ed25f3a |" in presets.describe()
    assert "| none, give your own |" in presets.describe()


# ---- specs


def test_a_name_alone_takes_what_is_published(tiny):
    encoder = presets.parse("tiny")
    assert encoder == presets.Encoder(
        "tiny", tiny.model, tiny, tiny.preprocessing, f"owner/tiny@{COMMIT}", SHA256, False
    )


def test_options():
    encoder = presets.parse(
        " dinov2_vits14: weights=a, b:c.safetensors , size=98,output=mean_patch,unit_norm,"
        f"compute=bfloat16,sha256={'A' * 64}"
    )
    assert isinstance(encoder.model, ViT)
    assert (encoder.model.size, encoder.model.output) == (98, "mean_patch")
    assert encoder.model.dtype == jnp.bfloat16
    assert (encoder.preprocessing.resize, encoder.preprocessing.crop) == (112, 98)
    assert encoder.weights == "a, b:c.safetensors"
    assert encoder.sha256 == "a" * 64
    assert encoder.unit_norm


def test_a_size_for_a_network_of_any_size():
    encoder = presets.parse("moco_v2_r50:size=96")
    assert (encoder.preprocessing.resize, encoder.preprocessing.crop) == (109, 96)
    assert presets.width(encoder) == 2048


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False)])
def test_unit_norm_may_be_spelt_out(value, expected):
    assert presets.parse(f"bit_m_r50x1:unit_norm={value}").unit_norm is expected


def test_width_follows_the_output():
    assert presets.width(presets.parse("dinov2_vitb14:output=cls_mean_patch")) == 1536
    assert presets.width(presets.parse("clip_vit_b32:output=cls")) == 768


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "there is no preset ''"),
        ("dinov2_vitx14", "did you mean 'dinov2_vit"),
        ("dinov2_vits14:sice=98", "no option 'sice'.*did you mean 'size'"),
        ("dinov2_vits14:size=98,size=98", "option 'size' is given twice"),
        ("dinov2_vits14:size", "option 'size' has no value"),
        ("dinov2_vits14:size=big", "option 'size' is 'big', it must be pixels"),
        ("dinov2_vits14:size=0", "option 'size' is '0'"),
        ("dinov2_vits14:size=100", "multiple of the patch of 14 pixels.*98 or size=112"),
        ("dinov2_vits14:output=projection", "one of cls, mean_patch, cls_mean_patch"),
        ("clip_vit_b32:output=projections", "did you mean 'projection'"),
        ("dinov2_vits14:compute=float16", "one of float32, bfloat16.*did you mean"),
        ("dinov2_vits14:unit_norm=yes", "one of true, false"),
        ("dinov2_vits14:sha256=12", "64 hexadecimal digits"),
        ("dinov2_vits14:,", "no option ','"),
    ],
)
def test_what_cannot_be_read_is_explained(spec, message):
    text = fails(presets.parse, spec)
    assert text.startswith(f"encoder {spec!r}: ")
    assert re.search(message, text)


# ---- weights


@pytest.mark.parametrize(
    ("weights", "asked"),
    [
        ("", ("owner/tiny", "file.safetensors", COMMIT)),
        (":weights=me/mine", ("me/mine", "model.safetensors", None)),
        (":weights=me/mine@v1/a", ("me/mine", "model.safetensors", "v1/a")),
        (":weights=owner/tiny@v1", ("owner/tiny", "file.safetensors", "v1")),
        (f":weights=me/mine@{COMMIT}", ("me/mine", "model.safetensors", COMMIT)),
    ],
)
def test_weights_of_the_hub(tiny, downloads, weights, asked):
    _, fetched = presets.load(presets.parse(f"tiny{weights}"))
    assert downloads == [asked]
    assert fetched == hub.Fetched(FILE, COMMIT, SHA256)


def test_weights_of_this_machine(tiny, tmp_path, monkeypatch):
    # Named like a repository, but it is there.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    shutil.copy(FILE, tmp_path / "me" / "mine.safetensors")
    params, fetched = presets.load(presets.parse("tiny:weights=me/mine.safetensors"))
    assert (fetched.commit, fetched.sha256) == (None, SHA256)
    expected = weights.assemble(
        resnet_names.rules(tiny.model, list(weights.read(FILE))),
        weights.read(FILE),
        where="",
        ignored=tiny.ignored,
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_required_hash_is_checked(tiny, downloads):
    presets.load(presets.parse(f"tiny:weights={FILE},sha256={SHA256}"))
    text = fails(presets.load, presets.parse(f"tiny:weights={FILE},sha256={'0' * 64}"))
    assert f"its SHA-256 is {SHA256}, not {'0' * 64}" in text


def test_the_published_hash_is_for_the_published_file_only(tiny, downloads, monkeypatch):
    other = hub.Fetched(FILE, COMMIT, "0" * 64)
    monkeypatch.setattr(hub, "fetch", lambda *_: other)
    assert f"not {SHA256}" in fails(presets.load, presets.parse("tiny"))
    assert presets.load(presets.parse("tiny:weights=me/mine"))[1] == other


def test_the_required_commit_is_checked(tiny, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *_: hub.Fetched(FILE, "f" * 40, SHA256))
    text = fails(presets.load, presets.parse("tiny"))
    assert f"of commit {'f' * 40}, not of the required {COMMIT}" in text


def test_an_error_of_the_hub_says_how_to_go_without(tiny, monkeypatch):
    def fetch(*_):
        raise UserError("no network")

    monkeypatch.setattr(hub, "fetch", fetch)
    assert fails(presets.load, presets.parse("tiny:size=8")) == (
        "encoder 'tiny:size=8': no network; download "
        f"https://huggingface.co/owner/tiny/resolve/{COMMIT}/file.safetensors or "
        "https://owner.org/tiny.pth (licence: CC0) and give the file, tiny:weights=FILE,size=8"
    )
    # What is published is no help where something else was asked for.
    assert fails(presets.load, presets.parse("tiny:weights=mine/tiny,unit_norm")) == (
        "encoder 'tiny:weights=mine/tiny,unit_norm': no network; check the name, or give a file, "
        "tiny:weights=FILE,unit_norm"
    )


def unreadable(path):
    raise UserError(f"{path} cannot be read: Permission denied")


@pytest.mark.parametrize("name", ["nowhere.safetensors", "a/b.pth", "/a/b/c", "~/mine.ckpt"])
def test_a_missing_file_is_explained(tiny, downloads, name):
    text = fails(presets.load, presets.parse(f"tiny:weights={name}"))
    assert "this file is not there" in text
    assert "https://owner.org/tiny.pth (licence: CC0)" in text
    assert not downloads


def test_a_file_that_cannot_be_read_is_not_to_be_downloaded(tiny, tmp_path, monkeypatch):
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(b"")
    monkeypatch.setattr(hub, "sha256", unreadable)
    text = fails(presets.load, presets.parse(f"tiny:weights={path}"))
    assert text == f"encoder 'tiny:weights={path}': {path} cannot be read: Permission denied"


class Torch:
    """What is asked of PyTorch by a download, without it."""

    def __init__(self, folder, content):
        self.folder, self.content, self.asked = folder, content, []
        self.hub = self

    def get_dir(self):
        return str(self.folder)

    def download_url_to_file(self, url, path, *, progress):
        self.asked.append(url)
        if self.content is None:
            raise OSError("no network")
        pathlib.Path(path).write_bytes(self.content)


@pytest.fixture
def web(monkeypatch):
    """A web that says nothing of sizes."""
    monkeypatch.setattr(hub, "_length", lambda _: None)


@pytest.mark.usefixtures("web")
def test_weights_of_the_web_are_downloaded_once(tiny, tmp_path, monkeypatch):
    torch = Torch(tmp_path / "hub", FILE.read_bytes())
    monkeypatch.setitem(sys.modules, "torch", torch)
    url = "https://owner.org/tiny.safetensors"
    encoder = presets.parse(f"tiny:weights={url}")
    for _ in range(2):
        _, fetched = presets.load(encoder)
        assert fetched == (tmp_path / "hub/checkpoints/tiny.safetensors", None, SHA256)
    assert torch.asked == [url]
    assert presets.licence(encoder) is None
    assert presets.licence(presets.parse("tiny")) == "CC0"


@pytest.mark.usefixtures("web")
def test_what_is_downloaded_has_the_md5_that_was_published(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", Torch(tmp_path, b"another file"))
    text = fails(presets.load, presets.parse("moco_v2_r50:unit_norm"))
    assert "moco_v2_800ep_pretrain.pth.tar is not what was published at https://dl.fb" in text
    assert "its MD5 does not begin with a04e12f8; delete it to download it anew" in text
    monkeypatch.setitem(sys.modules, "torch", Torch(tmp_path / "new", None))
    text = fails(presets.load, presets.parse("moco_v2_r50:unit_norm"))
    assert "moco_v2_800ep_pretrain.pth.tar cannot be downloaded: no network; download http" in text
    assert text.endswith("and give the file, moco_v2_r50:weights=FILE,unit_norm")


def test_a_file_that_needs_pytorch_is_not_downloaded_without_it(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda *arguments: asked.append(arguments))
    monkeypatch.setitem(sys.modules, "torch", None)
    text = fails(presets.load, presets.parse("clip_vit_b32"))
    assert text.startswith("encoder 'clip_vit_b32': reading pytorch_model.bin needs PyTorch: pip")
    assert not asked


def test_a_folder_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "vit").mkdir(parents=True)
    text = fails(presets.load, presets.parse("dinov2_vits14:weights=models/vit"))
    assert "the weights models/vit: this file is a folder" in text


def test_a_file_that_cannot_be_read_names_its_encoder(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    spec = f"dinov2_vits14:weights={tmp_path / 'a.safetensors'}"
    assert fails(presets.load, presets.parse(spec)).startswith(f"encoder {spec!r}: ")


def test_presets_without_weights_on_the_hub_say_what_to_get(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    text = fails(presets.load, presets.parse("moco_v2_r50"))
    assert text.startswith("encoder 'moco_v2_r50': reading https://")
    assert 'needs PyTorch: pip install "hume_jax[torch]"' in text
    assert "`python -m hume_jax.encode --list` names encoders that do not need it" in text
    text = fails(presets.load, presets.parse("moco_v2_r18_cifar"))
    assert "none are published" in text
    assert text.endswith("moco_v2_r18_cifar:weights=FILE")


def test_weights_of_another_encoder_are_refused(tiny):
    text = fails(presets.load, presets.parse(f"tiny:weights={GOLDEN / 'resnet_bit.safetensors'}"))
    assert text.startswith(f"encoder 'tiny:weights={GOLDEN / 'resnet_bit.safetensors'}': ")
    assert "no known layout of a ResNet of version 1; missing: conv1.weight or " in text
    assert re.search(r"; unexpected: \w+\S+, .* and \d+ more", text)
    text = fails(presets.load, presets.parse(f"moco_v2_r50:weights={FILE}"))
    assert text.startswith(f"encoder 'moco_v2_r50:weights={FILE}': {FILE} does not fit this model")


# ---- features


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (3, CIFAR_SIDE, CIFAR_SIDE, 3), dtype=np.uint8)


def test_features_normalise_pixels_as_published(tiny, pixels):
    encoder = presets.parse(f"tiny:weights={FILE}")
    params, _ = presets.load(encoder)
    got = jax.jit(lambda params, x: presets.features(encoder, params, x))(params, pixels)
    images = (pixels.astype(np.float64) / 255 - MEAN) / STD
    expected = tiny.model.apply({"params": params}, jnp.asarray(images, jnp.float32))
    assert got.dtype == jnp.float32
    assert got.shape == (3, presets.width(encoder))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_unit_norm(tiny, pixels):
    params, _ = presets.load(presets.parse(f"tiny:weights={FILE}"))
    plain = presets.features(presets.parse("tiny"), params, pixels)
    unit = presets.features(presets.parse("tiny:unit_norm"), params, pixels)
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    norm = jnp.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(unit * norm, plain, atol=1e-5)
    nothing = jax.tree.map(jnp.zeros_like, params)
    zero = presets.features(presets.parse("tiny:unit_norm"), nothing, pixels)
    np.testing.assert_array_equal(zero, np.zeros_like(zero))


def test_a_real_checkpoint_of_dinov2(shared):
    """From the spec to features: names of Hugging Face, position table resized from 518 pixels."""
    folder = shared / "weights"
    if not folder.is_dir():
        pytest.skip(f"needs the weights of {folder}, which are not part of the repository")
    with np.load(folder / "vits14_saliency_expected.npz") as file:
        pixels, expected = file["pixels_98"][:4], file["cls_98"][:4]
    encoder = presets.parse(
        f"dinov2_vits14:weights={folder / 'vits14_saliency.safetensors'},size=98"
    )
    params, fetched = presets.load(encoder)
    assert fetched.commit is None
    got = jax.jit(lambda params, x: presets.features(encoder, params, x))(params, pixels)
    assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()


def test_the_documentation_has_the_table(repository):
    assert presets.describe() in (repository / "docs" / "encoders.md").read_text()
