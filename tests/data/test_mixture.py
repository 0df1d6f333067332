"""Several sources as one data set, images in a tar, and names that lead outside."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from neva.config.data_sources import data_sources, missing_folders, missing_records, paths_of
from neva.data.lengths import measure
from neva.data.sources.media_folder import MediaFolder
from neva.data.sources.mixture import Mixture, content_of, open_records, source_counts
from neva.data.sources.source import open_source
from neva.errors import ConfigError, DataError, SampleError
from neva.formats.stored_file import StoredFile
from tests.conftest import conversation, write_records
from tests.data.test_webdataset import png, write_tar


def cfg(data_path: Any, image_folder: str | None = None, exclude: tuple[str, ...] = ()) -> DictConfig:
    values = {
        "data_path": data_path,
        "image_folder": image_folder,
        "datasets_exclude": [*exclude],
        "max_media_mb": 1,
        "video_folder": None,
    }
    return OmegaConf.create(values)


def write(folder: Path, name: str, count: int) -> str:
    records = [
        {
            "id": f"{name}{number}",
            "image": "1.png",
            "conversations": conversation("<image>", "w " * (number + 1)),
        }
        for number in range(count)
    ]
    return str(write_records(folder / f"{name}.json", records))


@pytest.mark.parametrize(
    ("weight", "numbers"),
    [
        (1, [0, 1, 2, 3]),
        (2, [0, 1, 2, 3, 0, 1, 2, 3]),
        (0.5, [0, 2]),
        (1.5, [0, 1, 2, 3, 0, 2]),
        (0.01, [0]),
        (0.75, [0, 1, 2]),
    ],
)
def test_a_weight_is_how_often_each_record_comes(weight: float, numbers: list[int], tmp_path: Path) -> None:
    parts = {"a": {"path": write(tmp_path, "a", 4), "weight": weight}, "b": write(tmp_path, "b", 3)}
    records = open_records(cfg(parts, str(tmp_path)))
    assert isinstance(records, Mixture)
    found = [records[index].id for index in range(len(records))]
    assert found == [f"a{number}" for number in numbers] + ["b0", "b1", "b2"]
    words = [1 + int(name[1:]) + 1 for name in found]
    assert measure(records, 5).words.tolist() == words
    assert source_counts(records).startswith(f"a {len(numbers)} (of 4, ")


def test_every_source_looks_into_its_own_folder_or_tar(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/1.png").write_bytes(png(1))
    write_tar(tmp_path / "two.tar", {"./1.png": png(2)})
    write_tar(tmp_path / "wds.tar", {"x.png": png(3), "x.json": conversation("<image>", "b")})
    sources = [
        {"path": write(tmp_path, "a", 1), "image_folder": str(tmp_path / "one")},
        {"path": write(tmp_path, "b", 1), "image_folder": str(tmp_path / "two.tar")},
        {"path": str(tmp_path / "wds.tar"), "image_folder": None},
    ]
    records = open_records(cfg(sources))
    images = [records[index].images[0] for index in range(3)]
    assert not any(isinstance(image, str) for image in images)
    assert [image.read_bytes() for image in images] == [png(1), png(2), png(3)]  # type: ignore[union-attr]
    assert [records[index].place for index in range(3)] == [
        "a.json, record 0",
        "b.json, record 0",
        "wds.tar, wds.tar, sample x",
    ]


def test_videos_lie_in_the_video_folder_or_in_that_of_the_source(tmp_path: Path) -> None:
    record = {"video": "v.mp4", "conversations": conversation("<video>", "b")}
    (tmp_path / "videos").mkdir()
    source = {"path": str(write_records(tmp_path / "a.json", [record])), "image_folder": str(tmp_path)}
    for folder, expected in ((None, tmp_path), (str(tmp_path / "videos"), tmp_path / "videos")):
        records = open_records(OmegaConf.merge(cfg([source]), {"video_folder": folder}))  # type: ignore[arg-type]
        assert records[0].videos == [expected / "v.mp4"]


def test_a_broken_record_is_named_with_its_source(tmp_path: Path) -> None:
    path = write_records(tmp_path / "c.json", [{"id": "q", "conversations": 3}])
    records = open_records(cfg([write(tmp_path, "a", 1), str(path)], str(tmp_path)))
    with pytest.raises(SampleError, match="conversations must be") as raised:
        records[1]
    assert (raised.value.record_id, raised.value.place) == ("q", "c.json, record 0")
    escaping = write_records(
        tmp_path / "d.json", [{"id": "e", "image": "../x.png", "conversations": conversation("<image>", "b")}]
    )
    with pytest.raises(SampleError, match=r"lies outside the image_folder of d\.json=") as raised:
        open_records(cfg([str(escaping)], str(tmp_path)))[0]
    assert (raised.value.record_id, raised.value.place) == ("e", "d.json, record 0")


def test_sources_are_left_out_by_name_and_a_change_is_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {"a": write(tmp_path, "a", 2), "b": write(tmp_path, "b", 3)}
    both = open_records(cfg(parts, str(tmp_path)))
    assert len(open_records(cfg(parts, str(tmp_path), ("a",)))) == 3 and not caplog.messages
    assert len(open_records(cfg(parts, str(tmp_path), ("A",)))) == 5
    assert len(open_records(cfg(parts["a"], str(tmp_path), ("x",)))) == 2
    assert caplog.messages == [
        "model.data.datasets_exclude: no dataset is called A; there are a, b",
        "model.data.datasets_exclude: no dataset is called x; there are none with a name",
    ]
    with pytest.raises(DataError, match="all sources are in"):
        open_records(cfg(parts, str(tmp_path), ("a", "b")))
    heavier = open_records(cfg({**parts, "b": {"path": parts["b"], "weight": 2}}, str(tmp_path)))
    assert content_of(both) == content_of(open_records(cfg(parts, str(tmp_path)))) != content_of(heavier)
    before = content_of(both)
    write(tmp_path, "a", 1)
    assert content_of(open_records(cfg(parts, str(tmp_path)))) != before


@pytest.mark.parametrize(
    ("data_path", "message"),
    [
        ([], "is empty"),
        ([3], r"data_path\[0\]=3: expected a path"),
        ([{"weight": 2}], r"data_path\[0\]\.path=None: expected a path"),
        ([{"path": "a", "wieght": 2}], "unknown key wieght; expected path, image_folder, weight, name"),
        ([{"path": "a", "weight": 0}], "weight=0: expected a number above 0"),
        ([{"path": "a", "weight": "2"}], "weight='2': expected a number above 0"),
        ([{"path": "a", "image_folder": 2}], "image_folder=2: expected a path or null"),
        (["x/a.json", "y/a.json"], "two sources are called 'a.json'"),
        ({"m": 3}, r"data_path\.m=3: expected a path"),
    ],
)
def test_a_list_of_another_form_is_named(data_path: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_sources(cfg(data_path))


def test_what_is_missing_is_named_by_source(tmp_path: Path) -> None:
    absent = cfg(
        [{"path": str(tmp_path / "{0..1}.tar"), "name": "t"}, write(tmp_path, "a", 1)], str(tmp_path / "i")
    )
    assert missing_records(absent) == [f"model.data.data_path: source t: no file at {tmp_path}/0.tar"]
    assert missing_folders(absent) == [
        f"the image_folder of {name}: no folder at {tmp_path}/i" for name in ("t", "a.json")
    ]


def test_braces_are_expanded_as_a_shell_does() -> None:
    assert [str(path) for path in paths_of("a/{08..11}-{x,y}.tar")] == [
        f"a/{number}-{letter}.tar" for number in ("08", "09", "10", "11") for letter in "xy"
    ]
    assert paths_of("a{b.tar") == [Path("a{b.tar")]
    with pytest.raises(ConfigError, match="stands for more than"):
        paths_of("{0..999999999}.tar")


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/passwd", "{}/../x.png"])
def test_a_name_that_leads_out_of_the_image_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    folder = MediaFolder(tmp_path / "images", 1 << 20)
    with pytest.raises(SampleError, match=r"lies outside model\.data\.image_folder="):
        folder / name.format(tmp_path / "images")


def test_names_inside_the_image_folder_are_found_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "images/a..b").mkdir(parents=True)
    folder = MediaFolder(os.path.relpath(tmp_path / "images"), 1 << 20)
    (tmp_path / "images/a..b/1.png").write_bytes(b"1")
    for name in ("a..b/1.png", "a..b/../a..b/1.png", str(tmp_path / "images/a..b/1.png"), "./a..b//1.png"):
        found = folder / name
        assert isinstance(found, Path) and found.read_bytes() == b"1"


def test_members_of_a_tar_are_found_by_name_and_limited_in_size(tmp_path: Path) -> None:
    names = {f"d{number % 7}/{'é' * (number % 3)}{number}.png": b"%d" % number for number in range(300)}
    path = write_tar(tmp_path / "images.tar", {**names, "large": bytes(2 << 20)})
    folder = MediaFolder(path, 1 << 20)
    for name, content in names.items():
        found = folder / name
        assert isinstance(found, StoredFile) and found.read_bytes() == content
    assert str(folder / "d1/é1.png") == f"{path}/d1/é1.png"
    for name in ("d0/1.png", "../images.tar", ""):
        with pytest.raises(SampleError, match="is no member of") as raised:
            folder / name
        assert raised.value.kind == "missing image"
    with pytest.raises(SampleError, match=r"has 2 MiB, more than model\.data\.max_media_mb=1"):
        folder / "large"
    write_tar(tmp_path / "wds.tar", {"a.png": bytes(2 << 20), "a.txt": "b"})
    with pytest.raises(
        SampleError, match=r"wds\.tar/a\.png has 2 MiB, more than model\.data\.max_media_mb=1"
    ):
        MediaFolder(None, 1 << 20) / open_source(tmp_path / "wds.tar")[0].images[0]
    with pytest.raises(SampleError, match=r"is a file name, and model\.data\.image_folder is null"):
        MediaFolder(None, 1) / "a.png"
    with pytest.raises(DataError, match=r"model\.data\.image_folder: no folder at"):
        MediaFolder(tmp_path / "absent", 1)


def test_a_tar_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "i.tar", {"a.png": b"1", "b.png": b"", "./a.png": b"2"})
    with pytest.raises(DataError, match=r"member 'a\.png' is there twice"):
        MediaFolder(tmp_path / "i.tar", 1 << 20)


def test_passes_of_a_mixture_differ_by_one_at_most(tmp_path: Path) -> None:
    records = open_records(cfg([{"path": write(tmp_path, "a", 7), "weight": 2.4}], str(tmp_path)))
    counts = Counter(records[index].id for index in range(len(records)))
    assert len(records) == 17 and len(counts) == 7 and set(counts.values()) == {2, 3}
