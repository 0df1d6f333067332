"""Frames of video files, by decord or PyAV."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from neva.data.media.image import require_file
from neva.errors import ConfigError, SampleError

VideoLibrary: TypeAlias = Literal["decord", "pyav"]

MODULES = {"decord": "decord", "pyav": "av"}
"""What each reader imports."""

BROKEN = "broken video"


def require_library(library: VideoLibrary) -> None:
    """Raises ConfigError when a reader's library is not installed."""
    if importlib.util.find_spec(MODULES[library]) is None:
        raise ConfigError(
            f"model.data.video_reader={library} needs the package {MODULES[library]}, which is not installed: "
            f"pip install 'neva[video]', or choose another of {', '.join(MODULES)}"
        )


def frame_count(path: Path, library: VideoLibrary) -> int:
    """Returns the frames of a video, decoding none where the file says how many there are.

    Raises:
        SampleError: there is no such file, or it is no video with a frame.
    """
    require_file(path, "video")
    try:
        found = len(_decord(path)) if library == "decord" else _count_with_pyav(path)
    except Exception as error:  # whatever FFmpeg's wrappers raise
        raise _broken(path, error) from error
    if found < 1:
        raise SampleError(f"video file {path} has no frame; replace or remove it", BROKEN)
    return found


def read_frames(path: Path, wanted: Sequence[int], library: VideoLibrary) -> Iterator[Image.Image]:
    """Yields frames by their numbers, which ascend, as RGB; where a video ends too early, its last frame again.

    Raises:
        SampleError: there is no such file, or it is no video with a frame.
    """
    require_file(path, "video")
    frames = _with_decord(path, wanted) if library == "decord" else _with_pyav(path, wanted)
    try:
        for frame in frames:
            yield Image.fromarray(frame)
    except Exception as error:  # whatever FFmpeg's wrappers raise
        if isinstance(error, MemoryError):
            raise
        raise _broken(path, error) from error


def chosen_frames(
    count: int, num_frames: int, single: Literal["first", "middle", "last"] | None
) -> list[int]:
    """Returns the numbers of the frames that are shown of a video of `count`, as NeVA chooses them.

    Args:
        count: frames of the video.
        num_frames: how many, spread evenly from the first to the last; of a shorter video all, and the last again and
            again; -1: all.
        single: only this one.
    """
    if single is not None:
        return [{"first": 0, "middle": count // 2, "last": count - 1}[single]]
    if num_frames == -1:
        return list(range(count))
    if count < num_frames:
        return [min(number, count - 1) for number in range(num_frames)]
    return [int(number) for number in np.linspace(0, count - 1, num_frames).astype(int)]


def _broken(path: Path, error: Exception) -> SampleError:
    text = " ".join(str(error).split())
    return SampleError(
        f"video file {path} cannot be decoded ({type(error).__name__}: {text:.120}); replace or remove it",
        BROKEN,
    )


def _decord(path: Path) -> Any:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)


def _with_decord(path: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields wanted frames; PyAV reads those that decord gets wrong.

    That seeks by time stamps, which `.avi`, `.mpg` and the like may lack; it takes others where a clip was cut out of a
    video without its first frames, and garbles what a telephone held upright.
    """
    video = _decord(path)
    begins = video.get_frame_timestamp(0)[0] >= 0 and list(video.get_key_indices()[:1]) == [0]
    first = video[wanted[0]] if begins and _has_time_stamps(path) else None
    if first is None or first.shape[2] != 3:
        yield from _with_pyav(path, wanted)
        return
    yield first.asnumpy()
    for number in wanted[1:]:
        yield video[number].asnumpy()


def _has_time_stamps(path: Path) -> bool:
    """Returns whether it is of a container with a time stamp for each frame: MP4 and QuickTime, Matroska and WebM."""
    with path.open("rb") as file:
        head = file.read(8)
    return head[4:] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3"


def _count_with_pyav(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # Matroska does not say; a packet holds one frame.
        return stream.frames or sum(1 for packet in container.demux(stream) if packet.size)


def _with_pyav(path: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields wanted frames one after the other; the decoder goes through all in front of the last of them."""
    import av

    left, last = list(wanted), None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # one worker, one core
        for number, last in enumerate(container.decode(stream)):
            while left and left[0] == number:
                left.pop(0)
                yield _upright(last)
            if not left:
                return
        if last is None:
            raise ValueError("no frame")
        for _ in left:
            yield _upright(last)


def _upright(frame: Any) -> np.ndarray:
    """Returns a frame as players show it: turned as its file says."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
