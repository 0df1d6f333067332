"""Frames of real video files, and how records with videos become samples."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from neva.constants import IMAGE_TOKEN_ID
from neva.data.build import build_dataset
from neva.data.dataset import ConversationDataset
from neva.data.media.placeholders import Medium
from neva.data.media.processor import build_image_processor, to_pixels
from neva.data.media.video import (
    MODULES,
    VideoLibrary,
    chosen_frames,
    frame_count,
    read_frames,
)
from neva.errors import ConfigError, SampleError
from tests.conftest import random_image, shared_data
from tests.data import tokenizers
from tests.data.test_dataset import VISION, conversation, model_cfg
from tests.data.test_media import vision_cfg

FRAMES = 24
READERS = [library for library, module in MODULES.items() if importlib.util.find_spec(module)]
"""decord has no wheel for aarch64."""
VIDEO_KEYS: dict[str, Any] = {
    "media_type": "video",
    "video_folder": None,
    "num_frames": 4,
    "splice_single_frame": None,
    "sep_token_between_frames": False,
    "video_reader": "pyav",
}


def write_clip(path: Path, frames: int = FRAMES, codec: str = "libx264", left: int | None = None) -> None:
    """A clip whose frame `n` is of grey 10 n, with frames between others; its left edge may be of another grey."""
    with av.open(str(path), "w") as container:
        options = {"crf": "1"} if codec == "libx264" else {"bf": "2", "q": "1"}
        stream = container.add_stream(
            codec, rate=25 if path.suffix == ".mpg" else 8, options=options | {"g": "5"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            grey = np.full((48, 64, 3), 10 * number, np.uint8)
            if left is not None:
                grey[:, :16] = left
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "clip.mp4")
    write_clip(folder / "short.mkv", 3)
    whole = (folder / "clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("no video")
    random_image(20, 30, seed=1).save(folder / "a.png")
    return folder


def numbers(path: Path, wanted: list[int], library: VideoLibrary) -> list[int]:
    """Which frames were read, by their grey; a level or two is lost in YUV."""
    return [round(float(np.asarray(frame).mean()) / 10) for frame in read_frames(path, wanted, library)]


@pytest.mark.parametrize("library", READERS)
def test_the_frames_that_are_asked_for_are_read(folder: Path, library: VideoLibrary) -> None:
    assert frame_count(folder / "clip.mp4", library) == FRAMES
    assert frame_count(folder / "short.mkv", library) == 3
    for wanted in ([0, 7, 15, 23], [23], [0, 1, 1, 2], list(range(FRAMES))):
        assert numbers(folder / "clip.mp4", wanted, library) == wanted
    assert numbers(folder / "short.mkv", [0, 1, 2, 2, 2], library) == [0, 1, 2, 2, 2]


@pytest.mark.skipif(len(READERS) < 2, reason="decord is not installed")
def test_both_readers_give_the_same_pixels(folder: Path) -> None:
    path = folder / "clip.mp4"
    for one, other in zip(
        read_frames(path, [0, 9], "decord"), read_frames(path, [0, 9], "pyav"), strict=True
    ):
        # two versions of FFmpeg convert YUV with other rounding
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 3


@pytest.mark.parametrize("library", READERS)
@pytest.mark.parametrize(
    ("name", "codec"),
    [("b.avi", "mpeg4"), ("a.avi", "libx264"), ("a.mpg", "mpeg2video"), ("a.ts", "libx264")],
)
def test_frames_are_found_in_containers_without_time_stamps(
    name: str, codec: str, library: VideoLibrary, tmp_path: Path
) -> None:
    write_clip(tmp_path / name, codec=codec)
    assert frame_count(tmp_path / name, library) == FRAMES
    found = numbers(tmp_path / name, [0, 4, 9, 13, 18, 23], library)
    assert (
        np.abs(np.subtract(found, [0, 4, 9, 13, 18, 23])).max() <= 1
    )  # MPEG-2 and MPEG-4 lose some levels of grey


@pytest.mark.parametrize("library", READERS)
@pytest.mark.parametrize(("shift", "lost", "first"), [(3, 0, 3), (0, 3, 5)])
def test_frames_of_a_clip_that_was_cut_out_of_a_video_ascend(
    shift: int, lost: int, first: int, library: VideoLibrary, folder: Path, tmp_path: Path
) -> None:
    """As `ffmpeg -c copy` cuts it: with frames before its time 0, or without the key frame that they need."""
    path = tmp_path / "cut.mp4"
    with (
        av.open(str(folder / "clip.mp4")) as source,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][lost:]:
            step = packet.duration
            packet.stream, packet.pts, packet.dts = (
                stream,
                packet.pts - shift * step,
                packet.dts - shift * step,
            )
            target.mux(packet)
    found = numbers(path, [0, 3, 6, 9, 12], library)
    assert found == [first, first + 3, first + 6, first + 9, first + 12]


MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""By how many degrees a player turns a picture clockwise, and the matrix that tells it so."""


@pytest.mark.parametrize("library", READERS)
@pytest.mark.parametrize("degrees", MATRICES)
def test_a_clip_of_a_telephone_is_turned_as_players_do(
    degrees: int, library: VideoLibrary, folder: Path, tmp_path: Path
) -> None:
    write_clip(tmp_path / "upright.mp4", 4, left=200)
    content = bytearray((tmp_path / "upright.mp4").read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in MATRICES[degrees])
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    (found,), (upright,) = (
        [np.asarray(frame) for frame in read_frames(tmp_path / name, [3], library)]
        for name in ("turned.mp4", "upright.mp4")
    )
    assert np.array_equal(found, np.rot90(upright, -degrees // 90))


@pytest.mark.skipif(len(READERS) < 2, reason="decord is not installed")
def test_real_clips_are_read_by_both(tmp_path: Path) -> None:
    clips = sorted(
        path for path in shared_data("demo", "images").iterdir() if path.suffix in (".mp4", ".avi")
    )
    assert len(clips) == 4
    for path in clips:
        counts = [frame_count(path, "decord"), frame_count(path, "pyav")]
        assert abs(counts[0] - counts[1]) <= 1
        (one,), (other,) = (list(read_frames(path, [5], library)) for library in ("decord", "pyav"))
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean() < 2


def test_frames_are_spread_evenly_and_a_short_clip_repeats_its_last() -> None:
    assert chosen_frames(24, 4, None) == [0, 7, 15, 23]
    assert chosen_frames(24, 1, None) == [0]
    assert chosen_frames(3, 5, None) == [0, 1, 2, 2, 2]
    assert chosen_frames(3, -1, None) == [0, 1, 2]
    assert [chosen_frames(9, 4, single) for single in ("first", "middle", "last")] == [[0], [4], [8]]  # type: ignore[arg-type]


@pytest.mark.parametrize("library", READERS)
def test_what_is_no_video_is_one_sentence(folder: Path, library: VideoLibrary) -> None:
    for name in ("cut.mp4", "text.mp4", "a.png.mp4"):
        with pytest.raises(SampleError, match=rf"video file \S*{name} ") as caught:
            frame_count(folder / name, library)
        assert caught.value.kind in ("broken video", "missing video")
        with pytest.raises(SampleError, match=rf"video file \S*{name} "):
            list(read_frames(folder / name, [0], library))


def test_a_missing_library_names_the_extra_where_videos_are_read(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """Before a record of training is, and at the first video that a model is asked about."""
    records = [{"image": "a.png", "conversations": conversation("<image> a", "b")}]
    media = samples(folder, records, tmp_path).media
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package av.*pip install 'neva\[video\]'"):
        samples(folder, records, tmp_path)
    assert media.layout(Medium("image", folder / "a.png")).tokens == 4
    with pytest.raises(ConfigError, match="needs the package av"):
        media.layout(Medium("video", folder / "clip.mp4"))


def samples(folder: Path, records: list[dict[str, Any]], tmp_path: Path, **data: Any) -> ConversationDataset:
    (tmp_path / "data.json").write_text(json.dumps(records))
    cfg = model_cfg(folder, **(VIDEO_KEYS | data), data_path=str(tmp_path / "data.json"))
    return build_dataset(cfg, VISION, tokenizers.llama_like(tmp_path / "tokenizer"))


def test_images_and_videos_follow_their_placeholders(folder: Path, tmp_path: Path) -> None:
    record = {
        "image": ["a.png", "a.png"],
        "video": "clip.mp4",
        "conversations": conversation("<image> then <video>", "b", "and <image>?", "c"),
    }
    sample = samples(folder, [record], tmp_path)[0]
    assert [(medium.tiles, medium.tokens) for medium in sample.media] == [(1, 4), (4, 16), (1, 4)]
    ids = (sample.input_ids == IMAGE_TOKEN_ID).nonzero().flatten()
    runs = torch.tensor_split(ids, (ids.diff() > 1).nonzero().flatten() + 1)
    assert [len(run) for run in runs] == [4, 16, 4]
    processor = build_image_processor(vision_cfg(image_size=16))
    image = to_pixels(Image.open(folder / "a.png").convert("RGB"), processor, "pad")
    frames = [
        to_pixels(frame, processor, "pad")
        for frame in read_frames(folder / "clip.mp4", [0, 7, 15, 23], "pyav")
    ]
    assert torch.equal(sample.pixel_values, torch.stack([image, *frames, image]))


def test_frames_of_a_video_may_stand_on_lines_of_their_own(folder: Path, tmp_path: Path) -> None:
    video = {"video": "clip.mp4", "conversations": conversation("<video>\nWhat?", "b")}
    spelt_out = {
        "image": ["a.png"] * 4,
        "conversations": conversation("<image>\n<image>\n<image>\n<image>\nWhat?", "b"),
    }
    dataset = samples(folder, [video, spelt_out], tmp_path, sep_token_between_frames=True)
    assert torch.equal(dataset[0].input_ids, dataset[1].input_ids)
    assert len(dataset[0].media) == 1 and dataset[0].media[0].tokens == 16
    dataset = samples(folder, [video], tmp_path, splice_single_frame="last")
    assert dataset[0].pixel_values.shape[0] == 1
    # LLaVA-Video writes <image> for a video
    other = {"video": "clip.mp4", "conversations": conversation("<image>\nWhat?", "b")}
    dataset = samples(folder, [video, other], tmp_path, num_frames=-1)
    assert torch.equal(dataset[0].input_ids, dataset[1].input_ids)
    assert dataset[1].pixel_values.shape[0] == FRAMES


@pytest.mark.parametrize(
    ("record", "data", "message"),
    [
        ({"video": "clip.mp4"}, {"media_type": "image"}, "set model.data.media_type=video to read it"),
        ({"video": "clip.mp4"}, {"num_frames": 0}, "num_frames=0 shows nothing"),
        ({"video": ["clip.mp4"] * 2}, {}, "found 1 <video> placeholders for 2 videos"),
        ({"video": "clip.mp4", "image": "a.png"}, {}, "found 0 <image> placeholders for 1 images"),
        ({"video": "clip.mp4"}, {"max_image_num": 1, "extra": 1}, "found 2 images and videos, more than"),
        ({"video": "gone.mp4"}, {}, "video file .*gone.mp4 does not exist"),
    ],
)
def test_a_record_whose_videos_cannot_be_used_is_one_sentence(
    record: dict[str, Any], data: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    text = "<video> a"
    if data.pop("extra", None):
        record, text = {**record, "image": "a.png"}, "<video> <image> a"
    with pytest.raises((SampleError, ConfigError), match=message):
        samples(folder, [{**record, "conversations": conversation(text, "b")}], tmp_path, **data)[0]


@pytest.mark.parametrize("aspect_ratio", ["pad", "dynamic"])
def test_the_real_demo_of_videos_becomes_samples(aspect_ratio: str, tmp_path: Path) -> None:
    (tmp_path / "mllm_demo_data").symlink_to(shared_data("demo", "images"))
    data = {"data_path": str(shared_data("demo", "mllm_video_demo.json")), "image_aspect_ratio": aspect_ratio}
    tiles = {"min_num_tiles": 1, "max_num_tiles": 4, "use_thumbnail": True}
    cfg = OmegaConf.merge(model_cfg(tmp_path, **(VIDEO_KEYS | data | tiles)), {"vocab_size": 32000})
    dataset = build_dataset(cfg, VISION, tokenizers.vicuna())  # type: ignore[arg-type]
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.pixel_values.shape == (4, 3, 16, 16)
        assert int((sample.input_ids == IMAGE_TOKEN_ID).sum()) == 4 * VISION.num_tokens
    # an image beside it is cut, with its thumbnail behind
    image = Medium("image", tmp_path / "mllm_demo_data" / "1.jpg")
    assert (dataset.media.layout(image).tiles > 1) == (aspect_ratio == "dynamic")
