import ast
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from autoft.export.script import script_source
from autoft.runtime import image_classification as runtime

PREPROCESSING = {
    "kind": "image",
    "size": [8, 8],
    "resize": {"mode": "shortest", "size": 9},
    "crop": "center",
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
LABELS = ["red", "green", "blue"]


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- reading ---


def test_imports_nothing_but_numpy_pillow_and_the_standard_library():
    tree = ast.parse(Path(runtime.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside == {"numpy", "PIL", "autoft"}


def test_importing_it_does_not_load_onnxruntime_or_torch():
    code = f"import runpy, sys; runpy.run_path({runtime.__file__!r}); print({{'onnxruntime', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_image(orientation):
    upright = noise(6, 4)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = runtime.read_image(encoded(stored, exif=exif))
    assert np.array_equal(np.asarray(read), np.asarray(upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode):
    image = noise(5, 7).convert(mode)
    read = runtime.read_image(encoded(image))
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(np.asarray(runtime.read_image(encoded(image, "JPEG"))).astype(int) - (255, 0, 0)).max() < 10


def test_colour_below_a_transparent_alpha_is_kept():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert runtime.read_image(encoded(image)).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency_is_read_without_a_warning():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert runtime.read_image(encoded(image, transparency=b"\x00\x80")).getpixel((0, 0)) == (10, 20, 30)


def test_16_bit_grey_is_scaled_rather_than_clipped():
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    read = np.asarray(runtime.read_image(encoded(Image.fromarray(values))))
    assert read[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_16_bit_grey_in_a_wider_mode_is_scaled_too(mode):
    image = Image.fromarray(np.array([[0, 32768, 65535]], dtype={"I": np.int32, "F": np.float32}[mode]))
    assert np.asarray(runtime._to_rgb(image))[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_is_read(kind):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    raw = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
    assert runtime.read_image(raw).getpixel((4, 4)) == (255, 0, 0)


def test_path_string_bytes_and_file_give_the_same_image(tmp_path):
    raw = encoded(noise(5, 5))
    path = tmp_path / "a.png"
    path.write_bytes(raw)
    images = [np.asarray(runtime.read_image(source)) for source in (path, str(path), raw, io.BytesIO(raw))]
    assert all(np.array_equal(images[0], image) for image in images)


@pytest.mark.parametrize(
    "raw",
    [b"", b"hello", encoded(noise(64, 64))[:400], encoded(noise(64, 64), "JPEG")[:700], encoded(noise(8, 8), "GIF")],
    ids=["empty", "text", "cut png", "cut jpeg", "gif"],
)
def test_damaged_or_foreign_file_raises_an_image_error(raw):
    with pytest.raises(runtime.ImageError):
        runtime.read_image(raw)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(runtime.ImageError, match=r"gone\.png: no such file"):
        runtime.read_image(tmp_path / "gone.png")


def test_image_of_too_many_pixels_raises_before_it_is_decoded(monkeypatch):
    raw = encoded(noise(10, 10))
    monkeypatch.setattr(runtime, "MAX_PIXELS", 99)
    with pytest.raises(runtime.ImageError, match="99 pixels, but it has 10 x 10"):
        runtime.read_image(raw)
    monkeypatch.setattr(runtime, "MAX_PIXELS", 100)
    assert runtime.read_image(raw).size == (10, 10)


def progressive(extra: int) -> bytes:
    """Return a JPEG whose last scan comes again."""
    raw = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    return raw[:-2] + raw[raw.rindex(b"\xff\xda") : -2] * extra + b"\xff\xd9"


def test_jpeg_of_ever_more_scans_raises_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(runtime, "MAX_SCANS", 20)
    usual = runtime.jpeg_scans(progressive(0))
    assert 1 < usual < 20
    assert runtime.read_image(progressive(20 - usual)).size == (64, 64)
    with pytest.raises(runtime.ImageError, match="image: 21 scans are too many for a JPEG of 64 x 64 pixels"):
        runtime.read_image(progressive(21 - usual))
    monkeypatch.setattr(runtime, "MAX_SCANNED", 64 * 64 * 2)
    with pytest.raises(runtime.ImageError, match=f"image: {usual} scans"):
        runtime.read_image(progressive(0))


def test_scans_of_thumbnails_and_behind_the_end_do_not_count():
    raw = progressive(0)
    thumbnail = b"\xff\xe1" + (len(raw) + 2).to_bytes(2, "big") + raw
    assert runtime.jpeg_scans(raw[:2] + thumbnail + raw[2:] + raw) == runtime.jpeg_scans(raw)
    assert runtime.jpeg_scans(encoded(Image.new("RGB", (64, 64)), "JPEG")) == 1


def test_pillows_own_bomb_error_is_an_image_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(runtime.ImageError, match="decompression bomb"):
        runtime.read_image(encoded(noise(10, 10)))


# --- preprocessing ---


@pytest.mark.parametrize("size", [(9, 9), (30, 17), (17, 30), (5, 40), (8, 9)])
@pytest.mark.parametrize("crop", [(8, 8), (7, 8), (12, 20)])
def test_resize_and_crop_equals_torchvision(size, crop, monkeypatch):
    from torchvision import transforms

    two_passes(monkeypatch)
    image = noise(*size)
    theirs = transforms.Compose([transforms.Resize(9, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(crop)])(
        image
    )
    ours = runtime.resize_and_crop(image, {**PREPROCESSING, "size": list(crop)})
    assert np.array_equal(ours, np.asarray(theirs))
    assert ours.shape == (*crop, 3)
    assert ours.dtype == np.uint8


def two_passes(monkeypatch):
    """Make Pillow resize horizontally first, as it did before version 13, for comparisons with torchvision."""
    original = Image.Image.resize

    def resize(self, size, resample=None, **options):
        across = original(self, (size[0], self.height), resample, **options)
        return original(across, size, resample, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)


def test_pixels_do_not_depend_on_the_order_of_passes_that_pillow_chooses():
    # Of this portrait image, Pillow 13 resizes the height first; a bundle must give the same pixels with any version.
    declared = {**PREPROCESSING, "size": [66, 66], "resize": {"mode": "shortest", "size": 66}}
    pixels = runtime.resize_and_crop(noise(226, 109), declared)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "293933e68807345d"


def test_exact_resize_changes_the_proportions():
    image = noise(10, 40)
    declared = {**PREPROCESSING, "resize": {"mode": "exact", "size": [8, 8]}}
    assert np.array_equal(
        runtime.resize_and_crop(image, declared), np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC))
    )


def test_image_too_elongated_to_resize_raises(monkeypatch):
    monkeypatch.setattr(runtime, "MAX_PIXELS", 1000)
    with pytest.raises(runtime.ImageError, match="too elongated"):
        runtime.resize_and_crop(noise(1, 100), PREPROCESSING)


def test_normalize_is_value_by_value_the_formula():
    batch = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    result = runtime.normalize(batch, PREPROCESSING)
    assert result.shape == (2, 3, 3, 4)
    assert result.dtype == np.float32
    expected = (batch[1, 2, 3, 0] / 255 - 0.485) / 0.229
    assert result[1, 0, 2, 3] == pytest.approx(expected, abs=1e-6)


def test_valid_declaration_passes_the_check():
    runtime.check_preprocessing(PREPROCESSING)
    runtime.check_preprocessing({**PREPROCESSING, "resize": {"mode": "exact", "size": [9, 9]}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "text"}, "`kind` must be 'image'"),
        ({"size": [8]}, "`size` must be two whole numbers"),
        ({"size": [0, 8]}, "`size` must be two whole numbers"),
        ({"resize": 9}, "`resize` must have"),
        ({"resize": {"mode": "longest", "size": 9}}, r"`resize\.mode`"),
        ({"resize": {"mode": "shortest", "size": [9, 9]}}, "one whole number"),
        ({"resize": {"mode": "exact", "size": 9}}, "with mode 'exact'"),
        ({"crop": "random"}, "`crop` must be"),
        ({"interpolation": "magic"}, "`interpolation` must be one of"),
        ({"interpolation": ["bicubic"]}, "`interpolation` must be one of"),
        ({"mean": [0.5]}, "`mean` must be three"),
        ({"std": [0.5, 0, 0.5]}, "`std` must be three numbers above 0"),
        ({"mean": [0.5, float("nan"), 0.5]}, "`mean` must be three"),
        ({"flip": True}, "only .* are known, but got 'flip'"),
    ],
)
def test_wrong_declaration_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        runtime.check_preprocessing({**PREPROCESSING, **change})


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match="none for mean, std"):
        runtime.check_preprocessing({key: PREPROCESSING[key] for key in PREPROCESSING if key not in ("mean", "std")})


# --- the bundle ---


def save_model(path, classes=3):
    # Mean of each channel times 4: a red image is red.
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(4 * np.eye(3, classes, dtype=np.float32), "weights"),
    ]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes]) for name in ("logits", "probabilities")
    ]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def write_contract(folder, **changes):
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "autoft.json"
    }
    contract = {"labels": LABELS, "preprocessing": PREPROCESSING, "files": files, **changes}
    (folder / "autoft.json").write_text(json.dumps(contract))


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    (folder / "onnx").mkdir(parents=True)
    save_model(folder / "onnx" / "model.onnx")
    inputs = folder / "golden" / "inputs"
    inputs.mkdir(parents=True)
    names = []
    for label in LABELS:
        Image.new("RGB", (11, 9), label if label != "green" else (0, 255, 0)).save(inputs / f"{label}.png")
        names.append(f"{label}.png")
    write_contract(folder)
    loaded = runtime.Bundle.load(folder, threads=1)
    pixels = runtime.normalize(np.stack([loaded.pixels(inputs / name) for name in names]), PREPROCESSING)
    for name, values in {"pixel_values": pixels, **loaded.run(pixels)}.items():
        np.save(folder / "golden" / f"{name}.npy", values)
    golden = {"inputs": names, "answers": LABELS, "tolerance": 1e-3}
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    (folder / "predict.py").write_text(script_source(Path(runtime.__file__)))
    write_contract(folder)
    return folder


def files_of(bundle):
    return [str(bundle / "golden" / "inputs" / f"{label}.png") for label in LABELS]


def test_predict_answers_in_order_with_scores_that_sum_to_one(bundle):
    answers = runtime.Bundle.load(bundle).predict(files_of(bundle), batch_size=2)
    assert [answer["label"] for answer in answers] == LABELS
    assert [answer["input"] for answer in answers] == files_of(bundle)
    for answer in answers:
        assert list(answer["scores"]) == LABELS
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["score"] == max(answer["scores"].values())


def test_predict_raises_for_an_unreadable_input_while_answers_go_on(bundle):
    loaded = runtime.Bundle.load(bundle)
    inputs = [files_of(bundle)[0], "gone.png", files_of(bundle)[2]]
    with pytest.raises(runtime.ImageError, match=r"gone\.png"):
        loaded.predict(inputs)
    answers = list(loaded.answers(inputs, batch_size=2))
    assert [answer.get("label") for answer in answers] == ["red", None, "blue"]
    assert "no such file" in answers[1]["error"]


def test_answers_do_not_depend_on_the_batch_size(bundle):
    loaded = runtime.Bundle.load(bundle, threads=1)
    assert loaded.predict(files_of(bundle), batch_size=1) == loaded.predict(files_of(bundle), batch_size=3)


def test_flipped_byte_is_refused(bundle):
    path = bundle / "onnx" / "model.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(runtime.BundleError, match=r"onnx/model\.onnx was altered"):
        runtime.Bundle.load(bundle)


def test_missing_file_of_the_bundle_is_refused(bundle):
    (bundle / "golden" / "logits.npy").unlink()
    with pytest.raises(runtime.BundleError, match=r"golden/logits\.npy is missing"):
        runtime.Bundle.load(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "onnx/../../outside", "onnx\\model.onnx", "C:x", ""])
def test_file_name_that_leads_out_is_refused(bundle, name):
    contract = json.loads((bundle / "autoft.json").read_text())
    (bundle.parent / "outside").write_text("x")
    write_contract(bundle, files={**contract["files"], name: hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(runtime.BundleError, match="must lie inside the bundle"):
        runtime.Bundle.load(bundle)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("linked", ["onnx", "onnx/model.onnx"])
def test_link_is_refused_even_to_the_right_content(bundle, linked):
    path = bundle / linked
    moved = bundle.parent / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    with pytest.raises(runtime.BundleError, match="link"):
        runtime.Bundle.load(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, r"must list onnx/model\.onnx"),
        ({"labels": []}, "`labels`"),
        ({"labels": ["a", "b"]}, "3 outputs, but autoft.json has 2 labels"),
        ({"preprocessing": None}, "must hold `preprocessing`"),
        ({"preprocessing": {**PREPROCESSING, "kind": "text"}}, "`kind` must be 'image'"),
    ],
)
def test_wrong_contract_is_refused(bundle, changes, message):
    write_contract(bundle, **changes)
    with pytest.raises(runtime.BundleError, match=message):
        runtime.Bundle.load(bundle)


@pytest.mark.parametrize("text", [None, "not json", "[]"])
def test_folder_without_a_contract_is_no_bundle(bundle, text):
    (bundle / "autoft.json").unlink()
    if text is not None:
        (bundle / "autoft.json").write_text(text)
    with pytest.raises(runtime.BundleError, match=r"autoft\.json"):
        runtime.Bundle.load(bundle)


def test_model_with_other_names_is_refused(bundle):
    model = onnx.load(bundle / "onnx" / "model.onnx")
    model.graph.output.pop()
    onnx.save(model, bundle / "onnx" / "model.onnx")
    write_contract(bundle)
    with pytest.raises(runtime.BundleError, match="give logits and probabilities"):
        runtime.Bundle.load(bundle)


# --- golden vectors ---


def test_check_of_a_sound_bundle_passes(bundle, capsys):
    assert runtime.main(["--bundle", str(bundle), "--check"]) == 0
    assert "ok" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pixel_values", "logits", "probabilities"])
@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_check_fails_on_differing_vectors(bundle, name, error, capsys):
    path = bundle / "golden" / f"{name}.npy"
    values = np.load(path)
    values[0, 0] += np.float32(error)
    np.save(path, values)
    write_contract(bundle)
    assert runtime.main(["--bundle", str(bundle), "--check"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_check_fails_on_a_wrong_label(bundle, capsys):
    path = bundle / "golden" / "golden.json"
    golden = json.loads(path.read_text())
    path.write_text(json.dumps({**golden, "answers": ["red", "green", "red"]}))
    write_contract(bundle)
    assert runtime.main(["--bundle", str(bundle), "--check"]) == 1
    assert "wrong answer: blue.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"inputs": []}, {"inputs": [1, 2, 3]}, {"inputs": ["../a"] * 3}, {"tolerance": None}, {"answers": ["red"]}]
)
def test_golden_list_that_makes_no_sense_is_refused(bundle, change):
    path = bundle / "golden" / "golden.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write_contract(bundle)
    with pytest.raises(runtime.BundleError):
        runtime.Bundle.load(bundle).check()


def test_golden_vectors_of_another_shape_are_refused(bundle):
    np.save(bundle / "golden" / "logits.npy", np.zeros((2, 3), np.float32))
    write_contract(bundle)
    with pytest.raises(runtime.BundleError, match=r"logits\.npy must be"):
        runtime.Bundle.load(bundle).check()


def test_pickled_vectors_are_refused(bundle):
    np.save(bundle / "golden" / "logits.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    write_contract(bundle)
    with pytest.raises(runtime.BundleError, match="cannot be replayed"):
        runtime.Bundle.load(bundle).check()


# --- the command line ---


def test_script_in_the_bundle_runs_by_itself(bundle, tmp_path):
    command = [sys.executable, "-I", str(bundle / "predict.py"), *files_of(bundle), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["label"] for line in lines] == LABELS
    assert all(list(line) == ["input", "label", "score"] for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
def test_reader_that_stops_early_gets_no_traceback(bundle):
    command = [sys.executable, "-I", str(bundle / "predict.py"), *files_of(bundle) * 2000]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        script.stdout.readline()
        script.stdout.close()
        assert script.stderr.read() == b""
    assert script.returncode == 141


def test_plain_output_is_aligned(bundle, capsys):
    assert runtime.main(["--bundle", str(bundle), *files_of(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1


def test_unreadable_file_is_reported_and_the_others_answered(bundle, capsys):
    code = runtime.main(["--bundle", str(bundle), "--json", files_of(bundle)[0], str(bundle), files_of(bundle)[1]])
    out, err = capsys.readouterr()
    assert code == 2
    assert [json.loads(line)["label"] for line in out.splitlines()] == ["red", "green"]
    assert err.startswith("error: ")


def test_broken_bundle_exits_with_2_and_says_why(tmp_path, capsys):
    assert runtime.main(["--bundle", str(tmp_path), "a.png"]) == 2
    assert "autoft.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a.png", "--batch-size", "0"], ["a.png", "--check"]])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        runtime.main(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err
