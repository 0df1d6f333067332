"""Webdataset shards and energon's prepared folders: the same samples as from json, in any order, none unpacked."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from neva.data.lengths import measure
from neva.data.sources.media_folder import MediaFolder
from neva.data.sources.source import Record, open_source
from neva.errors import DataError, SampleError
from neva.formats.stored_file import StoredFile
from neva.templates.template import Turn
from tests.conftest import conversation


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str | Any]) -> Path:
    """Members in the given order; what is neither bytes nor text is written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            content = content if isinstance(content, bytes | str) else json.dumps(content)
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shades(record: Record) -> list[int]:
    """The red of each image."""
    found = []
    for image in record.images:
        assert isinstance(image, StoredFile)
        with Image.open(image.open()) as opened:
            found.append(opened.getpixel((0, 0))[0])  # type: ignore[index]
    return found


def texts(record: Record) -> list[str | None]:
    return [turn.text for turn in record.turns]


@pytest.mark.parametrize(
    ("members", "expected", "reds"),
    [
        ({"a.png": png(9), "a.json": conversation("<image>?", "b")}, ["<image>?", "b"], [9]),
        (
            {
                "a.json": {
                    "conversations": conversation("<image><image>", "b"),
                    "image": ["x/a.1.png", "a.0.png"],
                }
            }
            | {"a.0.png": png(0), "a.1.png": png(1)},
            ["<image><image>", "b"],
            [1, 0],
        ),
        (
            {
                "a.json": {
                    "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "b"}]
                }
            },
            ["?", "b"],
            [],
        ),
        (
            {"a.jpg": png(3), "a.txt": "赤い", "a.json": {"question": "何色？"}},
            ["<image>\n何色？", "赤い"],
            [3],
        ),
        ({"a.png": png(4), "a.txt": "\ufeffred"}, ["<image>", "red"], [4]),
        (
            {
                "a.json": {
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image", "image": "a.1.png"},
                                {"type": "image_url", "image_url": {"url": "x/a.0.png"}},
                            ],
                        },
                        {"role": "assistant", "content": "b"},
                    ]
                }
            }
            | {"a.0.png": png(0), "a.1.png": png(1)},
            ["<image>\n<image>", "b"],
            [1, 0],
        ),
    ],
)
def test_a_sample_is_read_by_its_parts(
    members: dict[str, Any], expected: list[str], reds: list[int], tmp_path: Path
) -> None:
    records = open_source(write_tar(tmp_path / "0.tar", members))
    assert len(records) == 1
    assert (records[0].id, texts(records[0]), shades(records[0])) == ("a", expected, reds)
    assert records[0].place == "0.tar, sample a"


def test_samples_of_many_shards_are_read_in_any_order_and_counted(tmp_path: Path) -> None:
    for shard in range(12):
        members: dict[str, Any] = {}
        for number in (2 * shard, 2 * shard + 1):
            members |= {
                f"{number}.png": png(number),
                f"{number}.json": conversation("<image>", "a b " * number),
            }
        write_tar(tmp_path / "wds" / f"pretrain-{shard}.tar", members)
    whole, braced = open_source(tmp_path / "wds"), open_source(str(tmp_path / "wds/pretrain-{0..11}.tar"))
    for index in (23, 0, 11, 12):
        assert texts(whole[index]) == texts(braced[index]) == ["<image>", ("a b " * index)]
        assert shades(whole[index]) == [index]
    lengths = measure(whole, 576)
    assert lengths.words.tolist() == [1 + 2 * number for number in range(24)]
    assert lengths.images.tolist() == [1] * 24
    some = open_source(str(tmp_path / "wds/pretrain-{3,7}.tar"))
    assert [some[index].id for index in range(4)] == ["6", "7", "14", "15"]
    with pytest.raises(DataError, match=r"no file at .*pretrain-12\.tar"):
        open_source(str(tmp_path / "wds/pretrain-{0..12}.tar"))


def test_hidden_members_are_of_no_sample_and_a_part_that_is_there_begins_another(tmp_path: Path) -> None:
    members = {
        "._a.png": b"\0",
        "a.png": png(1),
        "._a.json": b"\0",
        "a.json": conversation("<image>", "b"),
        "./a.png": png(2),
        "./a.JSON": conversation("<image>", "c"),
        ".DS_Store": b"",
    }
    records = open_source(write_tar(tmp_path / "0.tar", members))
    found = [(records[index].id, texts(records[index])[1], shades(records[index])) for index in range(2)]
    assert len(records) == 2 and found == [("a", "b", [1]), ("a", "c", [2])]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": png(0)}, "found the parts png; expected a json with conversations, or a txt"),
        ({"a.json": "{"}, "cannot be read as json"),
        (
            {"a.json": {"image": "a.png", "conversations": conversation("<image>", "b")}},
            r"names the images \['a.png'\]",
        ),
        ({"a.json": {"conversations": 3}}, "conversations must be a list of turns"),
        ({"a.txt": b"\xff", "a.png": png(0)}, "cannot be read as txt"),
    ],
)
def test_a_sample_that_is_none_is_named(members: dict[str, Any], message: str, tmp_path: Path) -> None:
    records = open_source(write_tar(tmp_path / "0.tar", members))
    with pytest.raises(SampleError, match=message) as raised:
        records[0]
    assert (raised.value.record_id, raised.value.place) == ("a", "0.tar, sample a")


def bad_member(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bad_member("/etc/a.json"), "'/etc/a.json' leads outside"),
        (bad_member("x/../../a.json"), "leads outside"),
        (bad_member("a.json", tarfile.SYMTYPE), "'a.json' is a link"),
        (bad_member("a.json", tarfile.LNKTYPE), "'a.json' is a link"),
        (bad_member("a.json", tarfile.CHRTYPE), "is a link, a device"),
        (b"\x1f\x8b" + bytes(600), "not an uncompressed tar"),
        (b"", "not an uncompressed tar"),
    ],
)
def test_a_tar_that_leads_outside_or_is_none_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "0.tar")


def test_a_torn_tar_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.json": conversation("a", "b"), "a.txt": "x" * 5000})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cut short"):
        open_source(path)


@pytest.mark.parametrize("damaged", [False, True], ids=["joined", "damaged"])
def test_a_tar_that_goes_on_behind_its_end_is_refused(damaged: bool, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {f"{n}.json": conversation("a", "b") for n in range(3)})
    content = path.read_bytes()
    header = content.index(b"1.json")
    path.write_bytes(content.replace(b"1.json", b"1.jso_", 1) if damaged else content + content)
    with pytest.raises(
        DataError, match=r"goes on behind its end at byte [\d,]+: its next header is damaged, or"
    ):
        open_source(path)
    path.write_bytes(content[: header + 100])
    with pytest.raises(DataError, match="goes on behind its end"):
        open_source(path)


def test_names_that_are_no_utf_8_stand_in_no_one_s_way(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="gb18030") as archive:
        for name, content in (("漢.png", png(1)), ("漢.txt", b"b"), ("a.png", png(2)), ("a.txt", b"c")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    records = open_source(path)
    assert [(texts(records[index])[1], shades(records[index])) for index in range(2)] == [
        ("b", [1]),
        ("c", [2]),
    ]
    assert (MediaFolder(path, 1 << 20) / "a.png").read_bytes() == png(2)


def prepared(folder: Path, dataset: str, **shards: dict[str, Any]) -> Path:
    """What `energon prepare` writes, as far as it is read."""
    for name, members in shards.items():
        write_tar(folder / f"{name}.tar", members)
    (folder / ".nv-meta").mkdir()
    (folder / ".nv-meta/split.yaml").write_text(
        "split_parts:\n  train:\n  - s{0..1}.tar\n  val:\n  - s2.tar\n  test: []\nexclude: []\n"
    )
    (folder / ".nv-meta/dataset.yaml").write_text(dataset)
    return folder


TYPE = "sample_type:\n  __module__: megatron.energon\n  __class__: {}\nfield_map:\n"


@pytest.mark.parametrize(
    ("dataset", "members", "turns", "reds"),
    [
        (
            TYPE.format("VQASample") + "  image: jpg\n  context: json[0][value]\n  answers: json[1][value]\n",
            {"jpg": png(7), "json": conversation("<image>\nWhat?", "red")},
            ["<image>\nWhat?", "red"],
            [7],
        ),
        (
            "__module__: megatron.energon\n__class__: VQAWebdataset\nfield_map:\n"
            "  image: jpg,png\n  context: json[question]\n  answers: txt\n",
            {"png": png(7), "json": {"question": "何？"}, "txt": "赤"},
            ["<image>\n何？", "赤"],
            [7],
        ),
        (
            TYPE.format("VQASample")
            + "  image: png\n  context: json[q]\n  answers: json[a]\n  answer_weights: json[w]\n",
            {"png": png(1), "json": {"q": "?", "a": ["x", "y", "z"], "w": [0.2, 0.5, 0.3]}},
            ["<image>\n?", "y"],
            [1],
        ),
        (
            TYPE.format("CaptioningSample") + "  image: png\n  caption: txt\n",
            {"png": png(2), "txt": "red"},
            ["<image>", "red"],
            [2],
        ),
        (
            "__module__: megatron.energon\n__class__: CrudeWebdataset\n",
            {"png": png(5), "json": conversation("<image>", "b")},
            ["<image>", "b"],
            [5],
        ),
        (
            TYPE.format("SimilarityInterleavedSample") + "  images: png\n  texts: json\n",
            {"png": png(5), "json": conversation("<image>hm", "b", "c", "d")},
            ["<image>hm", "b", "c", "d"],
            [5],
        ),
        (
            TYPE.format("InterleavedSample") + "  sequence: json[all]\n",
            {
                "0.png": png(5),
                "1.png": png(6),
                "json": {"all": ["1.png", "one", "0.png", {"image": "1.png"}, "two"]},
            },
            ["<image>", "one", "<image><image>", "two"],
            [6, 5, 6],
        ),
    ],
)
def test_energon_s_sample_types_become_conversations(
    dataset: str, members: dict[str, Any], turns: list[str], reds: list[int], tmp_path: Path
) -> None:
    shards = {
        f"s{shard}": {f"k{shard}.{part}": content for part, content in members.items()} for shard in range(3)
    }
    records = open_source(prepared(tmp_path / "data", dataset, **shards))
    assert [records[index].id for index in range(len(records))] == ["k0", "k1"]
    assert (texts(records[1]), shades(records[1])) == (turns, reds)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            TYPE.format("OCRSample") + "  image: png\n",
            "samples are OCRSample; expected CrudeWebdataset, VQASample",
        ),
        ("sample_loader: sample_loader.py:load\n" + TYPE.format("VQASample"), "Python code in the data"),
        (TYPE.format("VQASample"), "has no field_map"),
        ("[1]", "holds no mapping"),
        (": : :", "cannot be read"),
    ],
)
def test_what_energon_reads_and_neva_does_not_is_refused(dataset: str, message: str, tmp_path: Path) -> None:
    shards = {f"s{shard}": {"a.png": png(0), "a.txt": "b"} for shard in range(3)}
    with pytest.raises(DataError, match=message):
        open_source(prepared(tmp_path / "data", dataset, **shards))


def test_a_sample_that_energon_s_split_leaves_out_is_not_trained_in_silence(tmp_path: Path) -> None:
    folder = prepared(tmp_path, TYPE.format("CaptioningSample"), **{f"s{n}": {} for n in range(3)})
    split = folder / ".nv-meta/split.yaml"
    split.write_text(split.read_text().replace("exclude: []", "exclude: [s0.tar/a]"))
    with pytest.raises(DataError, match=r"split\.yaml excludes 's0\.tar/a'; shards are left out as a whole"):
        open_source(folder)


def test_shards_that_are_not_read_are_not_passed_over(tmp_path: Path) -> None:
    for name in ("a.tar", "b.TAR"):
        write_tar(tmp_path / name, {"a.avif": b"", "a.txt": "b"})
    records = open_source(tmp_path)
    assert [len(records[index].images) for index in range(len(records))] == [1, 1]
    (tmp_path / "c.tar.gz").touch()
    with pytest.raises(DataError, match=r"c\.tar\.gz is a compressed tar beside others"):
        open_source(tmp_path)


def test_turns_are_those_of_the_same_record_in_json(tmp_path: Path) -> None:
    raw = {
        "id": "7",
        "image": "a/7.jpg",
        "system": "Be brief.",
        "conversations": conversation("<image>", "b"),
    }
    (tmp_path / "data.json").write_text(json.dumps([raw]))
    path = write_tar(tmp_path / "0.tar", {"7.jpg": png(1), "7.json": raw})
    one, other = open_source(tmp_path / "data.json")[0], open_source(path)[0]
    assert (one.id, one.turns, one.system) == (other.id, other.turns, other.system)
    assert one.turns == [Turn("human", "<image>"), Turn("gpt", "b")]
