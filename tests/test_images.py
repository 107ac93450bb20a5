import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from autoft import imagefiles
from autoft.errors import BackboneError
from autoft.images import ImagePreprocessing, from_timm_config
from autoft.runtime import image_classification as runtime

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CONFIG = {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center", **IMAGENET}


def preprocessing(**changes):
    fields = {"size": (32, 32), "resize": 36, "interpolation": "bilinear", **IMAGENET}
    return ImagePreprocessing(**{**fields, **changes})


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos():
    """Two photos, 427 x 640, as they are, upright, and cut to odd sizes."""
    images = []
    for pixels in load_sample_images().images:
        images += [pixels, pixels.transpose(1, 0, 2), pixels[:301, 7:202], pixels[100:150, 50:223], pixels[:224, :224]]
    return [np.ascontiguousarray(pixels) for pixels in images]


@pytest.fixture
def horizontal_first(monkeypatch):
    """Resize as Pillow did before version 13, which began to choose the order of the passes by the sizes."""
    original = Image.Image.resize

    def resize(self, size, resample=None, **options):
        across = original(self, (size[0], self.height), resample, **options)
        return original(across, size, resample, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)


def timm_pixels(config, pixels):
    from timm.data import create_transform

    transform = create_transform(**config, is_training=False, normalize=False)
    return transform(Image.fromarray(pixels))


# --- as timm does it ---


@pytest.mark.usefixtures("horizontal_first")
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"crop_pct": 0.95},
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_pct": None, "interpolation": "lanczos"},
        {"crop_pct": 0.9, "interpolation": "nearest", "input_size": (3, 33, 33)},
        {"crop_mode": "squash", "crop_pct": 1.0},
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"crop_mode": "squash", "crop_pct": 0.9, "input_size": (3, 160, 256)},
        {"input_size": (3, 32, 32)},
        {"input_size": (3, 448, 448), "crop_pct": 0.9},
    ],
    ids=str,
)
def test_pixels_equal_timms(change, photos):
    config = {**CONFIG, **change}
    ours = from_timm_config(config)
    for pixels in photos:
        assert torch.equal(ours.decode(encoded(pixels), augmented=False), timm_pixels(config, pixels))


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_pixels_are_within_a_few_steps_of_timms_whatever_order_pillow_chooses(crop_mode, photos):
    config = {**CONFIG, "crop_mode": crop_mode}
    ours = from_timm_config(config)
    for pixels in photos:
        difference = ours.decode(encoded(pixels), augmented=False).int() - timm_pixels(config, pixels).int()
        assert difference.abs().max() <= 8
        assert difference.abs().float().mean() < 0.2


def test_inputs_equal_timms_normalization(photos):
    from timm.data import create_transform

    ours = from_timm_config(CONFIG)
    theirs = create_transform(**CONFIG, is_training=False)(Image.fromarray(photos[0]))
    (values,) = ours.inputs(ours.decode(encoded(photos[0]), augmented=False).unsqueeze(0))
    assert torch.allclose(values[0], theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "border"}, "border"),
        ({"input_size": (3, 224, 448)}, "224 x 448"),
        ({"input_size": (1, 224, 224)}, "the model takes 1"),
        ({"interpolation": "random"}, "random"),
    ],
)
def test_transform_that_cannot_be_repeated_is_refused(change, message):
    with pytest.raises(BackboneError, match=message):
        from_timm_config({**CONFIG, **change})


def test_nearly_all_pretrained_models_of_timm_can_be_repeated():
    import timm
    from timm.data import resolve_data_config

    refused, names = [], timm.list_models(pretrained=True)
    for name in names:
        config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        try:
            from_timm_config(config)
        except BackboneError:
            refused.append(name)
    assert len(names) > 1000
    assert len(refused) / len(names) < 0.02, refused


# --- decode and inputs ---


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_decoded_shapes_and_type(size, photos):
    declared = preprocessing(size=size, resize=48)
    plain = declared.decode(encoded(photos[0]), augmented=False)
    roomy = declared.decode(encoded(photos[0]), augmented=True)
    assert plain.shape == (3, *size)
    assert roomy.shape == (3, declared.margin_size, declared.margin_size)
    assert plain.dtype == roomy.dtype == torch.uint8
    assert plain.is_contiguous()


@pytest.mark.parametrize(
    ("changes", "side"),
    [({}, 37), ({"resize": 50}, 50), ({"resize": (32, 60)}, 60), ({"size": (224, 224), "resize": 224}, 256)],
)
def test_margin_is_an_eighth_and_at_least_the_evaluation_resize(changes, side):
    assert preprocessing(**changes).margin_size == side


def test_decode_equals_the_bundles_own_functions(photos):
    declared = preprocessing()
    raw = encoded(photos[2])
    expected = runtime.resize_and_crop(runtime.read_image(raw), declared.to_dict())
    assert np.array_equal(declared.decode(raw, augmented=False).numpy(), expected.transpose(2, 0, 1))


def test_decoded_tensor_may_be_written_to():
    item = preprocessing().decode(encoded(np.zeros((36, 36, 3), np.uint8)), augmented=False)
    item += 1
    assert item.min() == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_inputs_equal_the_bundles_normalization_bit_for_bit(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    declared = preprocessing()
    every_value = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()
    (values,) = declared.inputs(every_value.to(device))
    expected = runtime.normalize(every_value.permute(0, 2, 3, 1).numpy(), declared.to_dict())
    assert values.device.type == device
    assert values.dtype == torch.float32
    assert np.array_equal(values.cpu().numpy(), expected)


def test_inputs_leave_the_batch_as_it_was():
    batch = torch.full((1, 3, 32, 32), 7, dtype=torch.uint8)
    preprocessing().inputs(batch)
    assert (batch == 7).all()


# --- augment ---


@pytest.mark.parametrize("resize", [36, 32, 50, (32, 32), (40, 36)])
def test_policy_none_shows_what_evaluation_shows(resize):
    # A smooth image: resampling twice blurs edges, but must not shift or zoom.
    down, across = np.mgrid[0:200, 0:200]
    pixels = np.stack([down, across, (down + across) // 2], axis=-1).astype(np.uint8)
    declared = preprocessing(resize=resize)
    item = declared.decode(encoded(pixels), augmented=True)
    shown = declared.augment(item, "none", np.random.default_rng(0))
    evaluated = declared.decode(encoded(pixels), augmented=False)
    assert shown.shape == evaluated.shape
    assert (shown.int() - evaluated.int()).abs().max() <= 4


def test_policy_none_is_exactly_the_center_where_margin_and_evaluation_resize_agree(photos):
    declared = preprocessing(size=(28, 28), resize=32)
    assert declared.margin_size == 32
    shown = declared.augment(declared.decode(encoded(photos[0]), augmented=True), "none", np.random.default_rng(0))
    assert torch.equal(shown, declared.decode(encoded(photos[0]), augmented=False))


@pytest.mark.parametrize("policy", preprocessing().policies)
@pytest.mark.parametrize(("size", "resize"), [((32, 32), 36), ((24, 40), (30, 50)), ((24, 40), 48)])
def test_every_policy_gives_the_shape_of_evaluation(policy, size, resize, photos):
    declared = preprocessing(size=size, resize=resize)
    item = declared.decode(encoded(photos[1]), augmented=True)
    variant = declared.augment(item, policy, np.random.default_rng(0))
    assert variant.shape == declared.decode(encoded(photos[1]), augmented=False).shape
    assert variant.dtype == torch.uint8


def test_first_policy_is_none():
    assert preprocessing().policies[0] == "none"


# --- as data ---


@pytest.mark.parametrize("resize", [36, (36, 40)])
def test_declaration_survives_json(resize):
    declared = preprocessing(resize=resize)
    assert ImagePreprocessing.from_dict(json.loads(json.dumps(declared.to_dict()))) == declared


def test_wrong_value_is_refused_when_made_and_when_read():
    with pytest.raises(BackboneError, match="`interpolation` must be one of"):
        preprocessing(interpolation="magic")
    with pytest.raises(BackboneError, match="`std` must be"):
        ImagePreprocessing.from_dict({**preprocessing().to_dict(), "std": [0, 1, 1]})
    with pytest.raises(BackboneError, match="must be given"):
        ImagePreprocessing.from_dict({"kind": "image"})


@pytest.mark.parametrize("resize", [256, (240, 224)])
def test_transformers_preprocesses_alike_by_the_preprocessor_config(resize, photos):
    transformers = pytest.importorskip("transformers")
    declared = preprocessing(size=(224, 224), resize=resize, interpolation="bicubic")
    config = json.loads(declared.files()["preprocessor_config.json"])
    assert json.loads(json.dumps(config)) == config
    processor = getattr(transformers, config.pop("image_processor_type"))(**config)
    # 426 x 640 gives even margins around the crop; at an odd one the crops lie a pixel apart, as the docstring says.
    pixels = photos[0][:426]
    theirs = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    (ours,) = declared.inputs(declared.decode(encoded(pixels), augmented=False).unsqueeze(0))
    assert theirs.shape == tuple(ours.shape)
    assert np.abs(theirs - ours.numpy()).mean() < 0.01


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    file = tmp_path / "image.png"
    Image.new("RGB", (20, 10)).save(file)
    monkeypatch.setattr(imagefiles, "_LARGE_PIXELS", 199)
    for source in (file, str(file), file.read_bytes()):
        assert imagefiles.in_turn(source) is imagefiles._one_large
    monkeypatch.setattr(imagefiles, "_LARGE_PIXELS", 200)
    assert imagefiles.in_turn(file) is not imagefiles._one_large
    monkeypatch.setattr(imagefiles, "_LARGE_BYTES", file.stat().st_size - 1)
    assert imagefiles.in_turn(file) is imagefiles._one_large
    assert imagefiles.in_turn(tmp_path / "gone.png") is not imagefiles._one_large  # reading it says so
