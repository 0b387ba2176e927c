"""Images in, overlays out, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from grad_cam_networks import Drawn, model, plain
from onnx import helper
from PIL import Image

from latpred import cli
from latpred.errors import InputError, SurgeryError
from latpred.hooks.feature_maps import ImageInput
from latpred.hooks.pictures import IMAGENET_MEAN, IMAGENET_STD, load_image, overlaid, prepared
from latpred.hooks.saliency import saliency

node = helper.make_node


def sees_red() -> onnx.ModelProto:
    """Class 0 is for red, class 1 for blue: each score is the average of a colour."""
    w = Drawn(0)
    nodes = [
        node("Conv", ["x", w.constant("w1", np.eye(3).reshape(3, 3, 1, 1))], ["c"], "colours"),
        node("Relu", ["c"], ["a"], "act"),
        node("GlobalAveragePool", ["a"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flat"),
        node("Gemm", ["f", w.constant("w2", [[1, -1], [-1, -1], [-1, 1]])], ["y"], "head"),
    ]
    return model(nodes, w, (1, 3, 16, 16), {"y": (1, 2)})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The left half of the picture is red, the right one blue."""
    onnx.save(sees_red(), tmp_path / "model.onnx")
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = pixels[:, 30:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "model.txt").write_text("no model")
    return {name: str(tmp_path / name) for name in ("model.onnx", "image.png", "text.png", "model.txt", "out.png")}


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    return code, *capsys.readouterr()


def test_the_command_marks_what_speaks_for_the_class(capsys: pytest.CaptureFixture[str], files: dict[str, str]) -> None:
    before = load_image(files["image.png"]).astype(int)
    place = ("saliency", files["model.onnx"], files["image.png"], "-o", files["out.png"])
    for class_index, (marked, left_alone) in {0: ((0, 20), (40, 60)), 1: ((40, 60), (0, 20))}.items():
        code, out, _ = call(capsys, *place, "--class", str(class_index))
        after = load_image(files["out.png"]).astype(int)
        assert code == 0
        assert f"class    {class_index}" in out
        assert "closed form" in out
        assert "collapsed" in out
        assert after.shape == before.shape
        assert np.abs(after - before)[:, slice(*left_alone)].max() == 0
        # red of strength 0.6 over red (class 0) or over blue (class 1)
        expected = [255, 0, 0] if class_index == 0 else [153, 0, 102]
        assert np.abs(after[:, slice(*marked)] - expected).max() <= 1
    code, out, _ = call(capsys, *place, "--layer", "c", "--json", "--mean", "0.5", "--std", "0.5,0.5,0.5")
    answer = json.loads(out)
    assert answer["layer"] == "c"
    assert answer["method"] == "forward tangents"
    assert answer["layer_shape"] == [1, 3, 16, 16]
    assert len(answer["weights"]) == 3


def test_the_command_says_when_all_speaks_against(capsys: pytest.CaptureFixture[str], files: dict[str, str]) -> None:
    network = sees_red()
    network.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(-np.ones((3, 2), np.float32), "w2"))
    onnx.save(network, files["model.onnx"])
    _, out, _ = call(capsys, "saliency", files["model.onnx"], files["image.png"], "-o", files["out.png"])
    assert "against" in out
    np.testing.assert_array_equal(load_image(files["out.png"]), load_image(files["image.png"]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("model.onnx", "text.png", "out.png"), "text.png cannot be read"),
        (("model.onnx", "model.onnx", "out.png"), "model.onnx cannot be read"),
        (("model.onnx", "nowhere.png", "out.png"), "nowhere.png"),
        (("model.onnx", "image.png", "out.txt"), "end it in .png"),
        (("model.onnx", "image.png", "no_such_folder/out.png"), "no_such_folder"),
        (("model.txt", "image.png", "out.png"), "model.txt is not an ONNX file"),
        (("nowhere.onnx", "image.png", "out.png"), "nowhere.onnx"),
        (("model.onnx", "image.png", "out.png", "--class", "2"), "from 0 to 1"),
        (("model.onnx", "image.png", "out.png", "--layer", "nothing"), "nothing"),
        (("model.onnx", "image.png", "out.png", "--std", "0"), "std"),
        (("model.onnx", "image.png", "out.png", "--mean", "1,2"), "mean"),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], files: dict[str, str], changed: tuple[str, ...], said: str
) -> None:
    network, picture, out, *more = changed
    folder = Path(files["out.png"]).parent
    argv = ("saliency", str(folder / network), str(folder / picture), "-o", str(folder / out), *more)
    code, printed, err = call(capsys, *argv)
    assert (code, printed) == (2, "")
    assert err.startswith("latpred: ")
    assert err.count("\n") == 1
    assert said in err
    assert not Path(files["out.png"]).exists()


def test_malformed_numbers_are_usage_errors() -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["saliency", "m.onnx", "i.png", "-o", "o.png", "--mean", "a,b"])
    assert stop.value.code == 2


def test_an_image_is_resized_as_a_whole_and_normalised() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = (255, 51, 0)
    first = prepared(pixels, ImageInput("x", (2, 3, 2, 2), "float32", 1))
    assert first.dtype == np.float32
    assert first.shape == (2, 3, 2, 2)
    expected = [(value - m) / s for value, m, s in zip((1, 0.2, 0), IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    # an antialiasing filter of width 4 x 2 takes in a little of the other half
    wide = prepared(pixels, ImageInput("x", (1, 3, 4, 8), "float32", 1))
    np.testing.assert_allclose(wide[0, :, 1, 6], expected, rtol=1e-5)
    last = prepared(pixels, ImageInput("x", (1, 4, 8, 3), "float32", 3))
    np.testing.assert_array_equal(np.moveaxis(last, 3, 1), wide)
    grey = prepared(pixels, ImageInput("x", (1, 1, 4, 8), "float32", 1))
    luma = round(255 * 0.299 + 51 * 0.587) / 255  # ITU-R 601-2, as Pillow converts
    assert grey[0, 0, 1, 6] == pytest.approx((luma - np.mean(IMAGENET_MEAN)) / np.mean(IMAGENET_STD), rel=1e-4)
    with pytest.raises(SurgeryError, match="1 or 3 channels"):
        prepared(pixels, ImageInput("x", (1, 5, 4, 8), "float32", 1))
    with pytest.raises(InputError, match="std"):
        prepared(pixels, ImageInput("x", (1, 3, 4, 8), "float32", 1), std=[0.0])


def test_turned_and_transparent_images_are_read(tmp_path: Path) -> None:
    turned = Image.new("RGB", (6, 4), (10, 20, 30))
    notes = turned.getexif()
    notes[0x0112] = 6  # orientation: a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=notes)
    assert load_image(tmp_path / "turned.jpg").shape == (6, 4, 3)
    Image.new("RGBA", (6, 4), (10, 20, 30, 128)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png")[0, 0].tolist() == [10, 20, 30]


def test_pixels_of_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    deep = np.array([[0, 256 * 100 + 7], [65535, 256]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png")[..., 0].tolist() == [[0, 100], [255, 1]]
    Image.fromarray(np.full((2, 2), 70000.0, np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match="white nobody knows"):
        load_image(tmp_path / "float.tiff")


def test_an_overlay_leaves_the_image_where_the_map_is_zero() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(overlaid(pixels, np.zeros((3, 3))), pixels)
    full = overlaid(pixels, np.ones((3, 3)), strength=1.0)
    assert (full == [255, 0, 0]).all()


def test_a_map_covers_the_whole_image() -> None:
    found = saliency(plain(batch=1), {"x": np.random.default_rng(0).random((1, 3, 16, 16), np.float32)})
    assert found.map.shape == (1, 16, 16)
    assert found.map.dtype == np.float32
