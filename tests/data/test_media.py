"""Pixels, bit for bit those of transformers' image processors and of LLaVA's square."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps, PngImagePlugin
from transformers import BitImageProcessorPil
from transformers.image_utils import load_image as transformers_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from neva.data.media import processor as processor_module
from neva.data.media.image import expand_to_square, image_size, load_image
from neva.data.media.jpeg import decoded
from neva.data.media.placeholders import Medium
from neva.data.media.processor import build_image_processor, enlarged, to_pixels
from neva.data.media.reader import MediaReader
from neva.errors import ConfigError, DataError, SampleError
from neva.families.any_resolution import AnyResolution
from neva.families.configs import VisionConfig
from neva.families.media_tokens import media_rules
from neva.families.own_shapes import WholeImage
from neva.families.tiling import Tiling
from tests.conftest import random_image, shared_data

SIZES = [(64, 64), (48, 48), (100, 64), (64, 100), (65, 64), (31, 200), (1, 1), (7, 5), (333, 501)]


def vision_cfg(**changes: Any) -> DictConfig:
    settings = {
        "from_pretrained": None,
        "model_type": "clip",
        "image_size": 64,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return OmegaConf.create(settings | changes)


def reference(image: Image.Image, processor: Any, aspect_ratio: str) -> torch.Tensor:
    """LLaVA's `train.py`, pixel by pixel, then transformers."""
    if aspect_ratio == "pad":
        width, height = image.size
        side = max(width, height)
        pixels = np.empty((side, side, 3), dtype=np.uint8)
        pixels[:] = [int(mean * 255) for mean in processor.image_mean]
        top, left = (side - height) // 2, (side - width) // 2
        pixels[top : top + height, left : left + width] = np.asarray(image)
        image = Image.fromarray(pixels)
    return processor.preprocess(image, return_tensors="pt")["pixel_values"][0]


TOWER = VisionConfig("clip", 64, 16, 8, 2, 2, 16, "gelu", 1e-5, -2, 1)

PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
    "clip 336": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "siglip": SiglipImageProcessorPil(size={"height": 64, "width": 64}),
    "crop beyond the image": CLIPImageProcessorPil(
        size={"shortest_edge": 31}, crop_size={"height": 41, "width": 36}
    ),
    "odd crop": CLIPImageProcessorPil(size={"shortest_edge": 50}, crop_size={"height": 33, "width": 20}),
    "no resize": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 33, "width": 33}),
    "no normalisation": CLIPImageProcessorPil(
        do_normalize=False, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 70}, crop_size={"height": 56, "width": 56}),
}


@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers_bit_for_bit(name: str, aspect_ratio: Any) -> None:
    processor = PROCESSORS[name]
    for seed, (width, height) in enumerate(SIZES):
        image = random_image(width, height, seed)
        found = to_pixels(image, processor, aspect_ratio)
        assert found.dtype == torch.float32
        assert torch.equal(found, reference(image, processor, aspect_ratio)), (width, height)


LONG = [(1, 3000), (3000, 1), (7, 2000), (11, 1999), (2000, 11), (40, 900), (3000, 30)]


@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
@pytest.mark.parametrize("name", ["clip", "siglip", "odd crop", "crop beyond the image", "dinov2"])
def test_the_part_of_a_long_image_has_the_pixels_of_the_whole(
    name: str, aspect_ratio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_module, "LARGEST_WHOLE", 0)
    monkeypatch.setattr(processor_module, "LONG", 0)
    if name == "siglip" and aspect_ratio == "square":
        pytest.skip("what it makes is no larger for a long image")
    for seed, (width, height) in enumerate([*LONG, *SIZES]):
        image = random_image(width, height, seed)
        expected = reference(image, PROCESSORS[name], aspect_ratio)
        assert torch.equal(to_pixels(image, PROCESSORS[name], aspect_ratio), expected), (width, height)


@pytest.mark.parametrize(
    ("size", "aspect_ratio"), [((1, 2000), "square"), ((60_000, 3), "square"), ((3, 60_000), "pad")]
)
def test_a_long_image_takes_bounded_memory(size: tuple[int, int], aspect_ratio: str) -> None:
    code = f"""
import resource
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from neva.data.media.processor import to_pixels
processor = CLIPImageProcessorPil(size={{"shortest_edge": 336}}, crop_size={{"height": 336, "width": 336}})
image = Image.fromarray(np.zeros(({size[1]}, {size[0]}, 3), dtype=np.uint8))
to_pixels(Image.new("RGB", (400, 400)), processor, {aspect_ratio!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
to_pixels(image, processor, {aspect_ratio!r})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 300  # MiB


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
def test_an_image_of_twice_the_side_is_what_the_processor_of_such_a_tower_makes(
    name: str, aspect_ratio: Any
) -> None:
    for size in ((64, 64), (333, 501), (200, 31)):
        image = random_image(*size, seed=3)
        twice: Any = build_image_processor(vision_cfg(model_type=name, image_size=128))
        ours = enlarged(build_image_processor(vision_cfg(model_type=name)), 2)
        found = to_pixels(image, ours, aspect_ratio)
        assert found.shape == (3, 128, 128)
        assert torch.equal(found, reference(image, twice, aspect_ratio))


def test_pixels_of_real_photos_are_those_of_transformers() -> None:
    for path in sorted(shared_data("prompts", "images").iterdir()):
        image = load_image(path)
        for name in ("clip 336", "siglip"):
            assert torch.equal(
                to_pixels(image, PROCESSORS[name], "pad"), reference(image, PROCESSORS[name], "pad")
            ), path


def test_a_wide_image_keeps_its_middle_under_square_and_all_of_it_under_pad() -> None:
    pixels = np.zeros((64, 192, 3), dtype=np.uint8)
    pixels[:, :64], pixels[:, 64:128], pixels[:, 128:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image, processor = Image.fromarray(pixels), PROCESSORS["clip"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))

    def colours(aspect_ratio: Any) -> torch.Tensor:
        return (to_pixels(image, processor, aspect_ratio) * std + mean) * 255

    green = torch.tensor([0.0, 255.0, 0.0]).view(3, 1, 1)
    # float32 arithmetic on values up to 255.
    assert torch.allclose(colours("square"), green.expand(3, 64, 64), atol=1e-3)
    padded = colours("pad").round()
    background = torch.tensor([122.0, 116.0, 104.0])  # int(mean * 255) of CLIP, as in LLaVA
    assert torch.equal(padded[:, 5, 32], background)
    assert torch.equal(padded[:, 58, 32], background)
    for column, expected in ((10, (255, 0, 0)), (32, (0, 255, 0)), (54, (0, 0, 255))):
        assert padded[:, 32, column].tolist() == list(expected)


def test_expand_to_square_leaves_a_square_alone() -> None:
    image = random_image(5, 5)
    assert expand_to_square(image, (1, 2, 3)) is image


@pytest.mark.parametrize("model_type", ["clip", "siglip"])
def test_the_processor_comes_from_the_yamls_sizes_when_the_tower_has_no_folder(model_type: str) -> None:
    cfg = vision_cfg(model_type=model_type, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor = build_image_processor(cfg)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.image_std) == [0.4, 0.5, 0.6]
    # CLIP crops the middle, SigLIP squeezes.
    white_edges = np.full((64, 128, 3), 255, dtype=np.uint8)
    white_edges[:, 32:96] = 0
    pixels = to_pixels(Image.fromarray(white_edges), processor, "square")
    assert bool((pixels[0, :, 0] > 0).all()) is (model_type == "siglip")


def test_the_towers_own_preprocessor_config_comes_first(tmp_path: Path) -> None:
    CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    processor = build_image_processor(vision_cfg(from_pretrained=str(tmp_path)))
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match=r"shape \(3, 64, 64\), the tower needs \(3, 32, 32\)"):
        build_image_processor(vision_cfg(from_pretrained=str(tmp_path), image_size=32))


def test_openais_own_preprocessor_config_is_read(tmp_path: Path) -> None:
    """The file of openai/clip-vit-large-patch14-336 writes sizes as plain numbers."""
    config = {
        "crop_size": 336,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 336,
        "image_processor_type": "CLIPImageProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = build_image_processor(vision_cfg(from_pretrained=str(tmp_path), image_size=336))
    image = random_image(400, 300)
    assert torch.equal(
        to_pixels(image, processor, "square"), reference(image, PROCESSORS["clip 336"], "square")
    )


def test_a_tower_of_another_type_needs_its_preprocessor_config() -> None:
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json at None for a tower of type 'hiera'"):
        build_image_processor(vision_cfg(model_type="hiera"))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr"])
def test_every_colour_mode_becomes_rgb_as_pil_converts_it(mode: str, tmp_path: Path) -> None:
    image = random_image(20, 10).convert(mode)
    path = tmp_path / ("image.jpg" if mode in ("CMYK", "YCbCr") else "image.png")
    image.save(path)
    found = load_image(path)
    assert (found.mode, found.size) == ("RGB", (20, 10))
    with Image.open(path) as stored:
        assert np.array_equal(np.asarray(found), np.asarray(stored.convert("RGB")))


def test_a_palette_with_transparency_loses_only_the_transparency(tmp_path: Path) -> None:
    image = random_image(20, 10).quantize(16)
    image.save(tmp_path / "image.png", transparency=bytes(range(0, 256, 16)))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(load_image(tmp_path / "image.png")), expected)


@pytest.mark.parametrize("name", ["grey.png", "grey.pgm", "grey.tif"])
def test_sixteen_bit_grey_keeps_its_high_byte(name: str, tmp_path: Path) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / name)
    found = np.asarray(load_image(tmp_path / name))
    assert np.array_equal(found, np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2))


@pytest.mark.parametrize("size", [(1, 1), (17, 9), (90, 131)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("is_progressive", [False, True])
def test_the_faster_decoder_gives_the_same_pixels(
    tmp_path: Path, size: tuple[int, int], mode: str, subsampling: int, is_progressive: bool
) -> None:
    path = tmp_path / "image.jpg"
    image = random_image(*size).convert(mode)
    image.save(path, quality=70, subsampling=subsampling, progressive=is_progressive)
    with path.open("rb") as file, Image.open(file) as opened:
        assert (decoded(opened, file) is not None) == (mode == "RGB")
    assert load_image(path, jpeg_decoder="simplejpeg").tobytes() == load_image(path).tobytes()


def test_the_faster_decoder_turns_and_refuses_as_pillow_does(tmp_path: Path) -> None:
    image, exif = random_image(40, 30), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    for turns in (False, True):
        found = load_image(tmp_path / "turned.jpg", turns, "simplejpeg")
        assert found.size == load_image(tmp_path / "turned.jpg", turns).size
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:-200])
    errors = []
    for decoder in ("pillow", "simplejpeg"):
        with pytest.raises(SampleError, match="cannot be decoded") as caught:
            load_image(tmp_path / "torn.jpg", jpeg_decoder=decoder)  # type: ignore[arg-type]
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["turned.png", "turned.jpg"])
def test_exif_orientation_is_applied_only_when_it_is_asked_for(
    name: str, orientation: int, tmp_path: Path
) -> None:
    image = random_image(20, 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif)
    assert load_image(tmp_path / name).size == (20, 10)
    with Image.open(tmp_path / name) as file:
        expected = ImageOps.exif_transpose(file)
    turned = load_image(tmp_path / name, exif_transpose=True)
    assert turned.size == expected.size == image_size(tmp_path / name, exif_transpose=True)
    assert turned.tobytes() == expected.tobytes()
    assert transformers_image(str(tmp_path / name)).convert("RGB").tobytes() == turned.tobytes()


def test_odd_tags_beside_the_orientation_keep_no_image_from_being_turned(tmp_path: Path) -> None:
    random_image(20, 10).save(tmp_path / "plain.jpg")
    content = (tmp_path / "plain.jpg").read_bytes()
    signed_width, orientation = (
        struct.pack("<HHIhH", 0x0100, 8, 1, -5, 0),
        struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0),
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + signed_width + orientation + bytes(4)
    tags = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "odd.jpg").write_bytes(content[:2] + tags + content[2:])
    found = load_image(tmp_path / "odd.jpg", exif_transpose=True)
    upright = load_image(tmp_path / "plain.jpg")
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(upright), -1))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"image file .*absent\.jpg does not exist"):
        load_image(tmp_path / "absent.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(
        SampleError, match=r"text\.jpg cannot be decoded \(it is of no format that is read, as HEIC or"
    ):
        load_image(tmp_path / "text.jpg")
    for suffix in ("jpg", "png", "webp", "gif"):
        path = tmp_path / f"cut.{suffix}"
        random_image(64, 64).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(SampleError, match=rf"image file .*cut\.{suffix} cannot be decoded"):
            load_image(path)


@pytest.mark.parametrize("name", ["clip", "siglip", "clip 336"])
@pytest.mark.parametrize("size", [*SIZES, (1, 2000), (5000, 3)])
def test_zeros_stand_right_of_a_picture_or_below_it(name: str, size: tuple[int, int]) -> None:
    # as Megatron-LM's multimodal examples: the longest edge to the tower's, halves rounded up; in torch's arithmetic
    image, processor = random_image(*size, 3), PROCESSORS[name]
    side = 336 if name == "clip 336" else 64
    width, height = (max(1, int(edge * side / max(size) + 0.5)) for edge in size)
    resized = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    pixels = ((torch.tensor(resized) / 255 - mean) / std).permute(2, 0, 1)
    expected = torch.nn.functional.pad(pixels, (0, side - width, 0, side - height))
    found = to_pixels(image, processor, "pad_right_bottom")
    assert torch.allclose(found, expected, atol=1e-6)
    assert found[:, height:].eq(0).all() and found[:, :, width:].eq(0).all()


def test_zeros_stand_beside_no_picture_that_is_not_normalised() -> None:
    with pytest.raises(ConfigError, match="pad_right_bottom needs an image processor that"):
        to_pixels(random_image(9, 9, 0), PROCESSORS["no normalisation"], "pad_right_bottom")


@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
def test_a_gif_that_is_called_jpg_has_the_pixels_of_transformers(tmp_path: Path, aspect_ratio: Any) -> None:
    random_image(50, 40).save(tmp_path / "0.jpg", "GIF")
    with Image.open(tmp_path / "0.jpg") as file:
        assert file.format == "GIF"
        expected = reference(file.convert("RGB"), PROCESSORS["clip"], aspect_ratio)
    assert torch.equal(to_pixels(load_image(tmp_path / "0.jpg"), PROCESSORS["clip"], aspect_ratio), expected)


def test_what_is_no_file_is_a_matter_of_its_record(tmp_path: Path) -> None:
    random_image(4, 4).save(tmp_path / "0.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("folder", "loop", "0.png/x.jpg", "a" * 300, "data:image/png;base64," + "A" * 5000, "a\0b"):
        with pytest.raises(
            SampleError, match="image file .* (is no file|cannot be decoded|does not exist)"
        ) as raised:
            load_image(tmp_path / name)
        assert len(str(raised.value)) < 600


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads what nobody may")
def test_what_this_machine_may_not_read_is_no_matter_of_the_record(tmp_path: Path) -> None:
    random_image(4, 4).save(tmp_path / "0.png")
    (tmp_path / "0.png").chmod(0)
    with pytest.raises(DataError, match="cannot be read") as raised:
        load_image(tmp_path / "0.png")
    assert not isinstance(raised.value, SampleError)


def test_a_picture_with_long_text_beside_it_is_a_picture(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "x" * 2**21, zip=True)
    image = random_image(4, 4)
    image.save(tmp_path / "0.png", pnginfo=text)
    assert load_image(tmp_path / "0.png").tobytes() == image.tobytes()


FORMATS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "GIF": ["L", "P", "RGB"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "TIFF": ["1", "L", "RGB", "RGBA", "CMYK", "I;16", "F"],
}


@settings(max_examples=200)
@given(data=st.data())
def test_any_image_file_gives_pixels_or_is_a_bad_record(data: st.DataObject, tmp_path_factory: Any) -> None:
    kind = data.draw(st.sampled_from(sorted(FORMATS)))
    mode = data.draw(st.sampled_from(FORMATS[kind]))
    size = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    path = tmp_path_factory.getbasetemp() / "any.png"
    Image.frombytes("L", size, bytes(range(256))[: size[0] * size[1]].ljust(size[0] * size[1], b"7")).convert(
        mode if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F") else "I;16"
    ).save(path, kind)
    content = bytearray(path.read_bytes())
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=2)
    ):
        if content:
            content[position % len(content)] = value
    path.write_bytes(content)
    reader = MediaReader(
        media_rules(TOWER, "linear_newline", data.draw(st.sampled_from([WholeImage(), AnyResolution(None)]))),
        PROCESSORS["clip"],
        data.draw(st.sampled_from(["square", "pad"])),
        exif_transpose=data.draw(st.booleans()),
        video=None,
    )
    medium = Medium("image", path)
    try:
        layout = reader.layout(medium)
        pixels = reader.pixels(medium, layout)
    except SampleError as error:
        assert str(path) in str(error)
    else:
        assert pixels.shape == (layout.tiles, 3, 64, 64) and bool(pixels.isfinite().all())


@pytest.mark.parametrize("tiling", [WholeImage(), AnyResolution(None)])
def test_a_picture_of_too_many_pixels_is_a_bad_record_before_any_of_them_is_decoded(
    tiling: Tiling, tmp_path: Path
) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20_000, 20_000)  # what the header says of width and height
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    reader = MediaReader(
        media_rules(TOWER, "linear_newline", tiling), PROCESSORS["clip"], "square", False, video=None
    )
    with pytest.raises(SampleError, match="huge.png cannot be decoded .*DecompressionBombError"):
        reader.pixels(Medium("image", path), reader.layout(Medium("image", path)))
