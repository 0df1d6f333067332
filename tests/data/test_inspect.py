"""What `neva data inspect` shows is what training reads: ids, labels, images, padding."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.collate import collate
from neva.data.dataset import Sample
from neva.data.inspect import Inspected, ShownImage, inspect_sample, stretches
from neva.data.inspect_html import page
from neva.data.inspect_lengths import padding_share, some_lengths
from neva.data.inspect_text import as_text
from neva.data.sources.source import Record
from neva.families.any_resolution import AnyResolution, CappedResolution
from neva.families.media_tokens import media_rules
from neva.families.own_shapes import NativeShape
from neva.families.tiling import Tiling
from neva.templates.template import Turn
from tests.conftest import write_records
from tests.data import tokenizers
from tests.data.test_dataset import VISION, dataset, write_dataset

MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]


def test_tokens_are_joined_where_they_are_treated_alike(tmp_path: Path) -> None:
    tokenizer = tokenizers.llama_like(tmp_path / "tokenizer")
    question, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Is it?", "Yes."))
    end = tokenizer.eos_token_id
    ids = [tokenizer.bos_token_id, *question, *[IMAGE_TOKEN_ID] * 4, *answer, end]
    labels = [IGNORE_INDEX] * (1 + len(question) + 4) + [*answer, end]
    found = [(s.text.strip(), s.kind, s.num_tokens, s.is_special) for s in stretches(ids, labels, tokenizer)]
    assert found == [
        (tokenizer.bos_token, "masked", 1, True),
        ("Is it?", "masked", len(question), False),
        ("<image>", "image", 4, False),
        ("Yes.", "trained", len(answer), False),
        (tokenizer.eos_token, "trained", 1, True),
    ]


def test_a_sample_shows_the_pixels_that_the_tower_gets_and_counts_its_labels(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3)
    (tmp_path / "2.png").unlink()
    samples = dataset(tmp_path)
    mean, std = samples.media.processor.image_mean, samples.media.processor.image_std
    shown, sample = inspect_sample(samples, 0, mean, std), samples.read(0)
    assert shown.count("trained") == int((sample.labels != IGNORE_INDEX).sum())
    assert shown.count("image") == int((sample.input_ids == IMAGE_TOKEN_ID).sum())
    assert shown.num_tokens == len(sample.input_ids)
    assert [image.size for image in shown.images] == [(16, 20), (17, 20)]
    for seen, pixels in zip(shown.seen, sample.pixel_values, strict=True):
        array = torch.from_numpy(np.array(seen)).permute(2, 0, 1) / 255
        normalised = (array - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        # half of one of 255 levels
        torch.testing.assert_close(normalised, pixels, atol=0.5 / 255 / min(std) + 1e-5, rtol=0)
    (tmp_path / "1.png").unlink()
    gone = inspect_sample(samples, 0, mean, std)
    assert gone.problem is not None and "1.png does not exist" in gone.problem and gone.num_tokens == 0


@pytest.mark.parametrize(
    ("tiling", "seen"),
    [
        (AnyResolution(((16, 32), (32, 16))), "6 x (16 x 16)"),
        (CappedResolution(None, 9), "2 x (16 x 16)"),  # two images: none is cut
        (NativeShape(24, 40, splits=False), "2 x (24 x 24)"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_tile_is_shown(tmp_path: Path, tiling: Tiling, seen: str) -> None:
    write_dataset(tmp_path, 2)
    samples = dataset(tmp_path)
    rules = media_rules(VISION, "linear_newline" if tiling.is_map else "linear", tiling)
    samples.media = replace(samples.media, rules=rules, aspect_ratio=tiling.name)
    shown = inspect_sample(samples, 0, MEAN, STD)
    assert len(shown.seen) == len(shown.seen_sizes) == int(seen.split()[0])
    assert f"the tower sees {seen}" in "\n".join(as_text([shown], coloured=False))
    assert page("x", [shown], [], []).count("as the tower sees it") == len(shown.seen)


@pytest.mark.parametrize(("ranks", "same_length"), [(1, False), (2, False), (2, True)])
def test_padding_is_what_collation_really_pads(ranks: int, same_length: bool) -> None:
    draw = np.random.default_rng(1)
    tokens = draw.integers(3, 90, 43)
    padded = real = 0
    for step in range(43 // 8):
        places = tokens[8 * step : 8 * step + 8]
        for rank in range(ranks):
            rows = [[Sample(torch.zeros(n).long(), torch.zeros(n).long(), torch.empty(0, 3, 1, 1), "")] for n in
                    places[rank::ranks].tolist()]  # fmt: skip
            for micro in collate(rows, 2, 0, 8, same_length):
                padded, real = padded + micro.input_ids.numel(), real + micro.num_tokens
    assert padding_share(tokens, 8, 2, ranks, 8, same_length) == pytest.approx(1 - real / padded, abs=1e-12)


def test_lengths_are_those_of_whole_records_evenly_spaced(tmp_path: Path) -> None:
    records = write_dataset(tmp_path, 9)
    records[6]["conversations"] = 3
    write_records(tmp_path / "data.json", records)
    samples = dataset(tmp_path)
    found = some_lengths(samples, 3, 16)
    kept = [samples.read(index) for index in (0, 3)]
    assert found.tokens.tolist() == [len(sample.input_ids) for sample in kept]
    assert found.trained.tolist() == [int((sample.labels != IGNORE_INDEX).sum()) for sample in kept]
    assert found.measured.images.tolist() == [2, 1] and found.num_records == 9


class Page(HTMLParser):
    """Tags, sources and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_needs_nothing_beside_it_and_shows_text_as_text(tmp_path: Path) -> None:
    tokenizer = tokenizers.llama_like(tmp_path / "tokenizer")
    evil = 'a<script src="http://x"></script> & \x1b[31m "red"\ud800'
    record = Record('<i>"', [Turn("human", evil), Turn("gpt", "<b>")], ["<img src=x>.png"], "<u>", "line 1")
    ids = tokenizer("a <b> c\nd", add_special_tokens=False)["input_ids"]
    thumbnail = Image.new("RGB", (4, 4))
    sample = Inspected(
        0,
        record,
        None,
        tuple(stretches(ids, ids, tokenizer)),
        (ShownImage("<img src=x>.png", (4, 4), thumbnail), ShownImage("http://x/y.png", None, None)),
        (thumbnail,),
    )
    broken = Inspected(1, None, "<script>")
    found = Page(page("<title>", [sample, broken], ["1 < 2"], [("<p>", b"png")]))
    assert not {"script", "b", "i", "u"} & set(found.tags)
    assert found.sources and all(source.startswith("data:image/png;base64,") for source in found.sources)
    for text in (
        "<script src=",
        "\\x1b[31m",
        "\\ud800",
        "1 < 2",
        "line 1, id '<i>\"'",
        "No sample: <script>",
    ):
        assert text in found.text
    lines = "\n".join(as_text([sample, broken], coloured=False))
    assert "\x1b" not in lines and "⟦" in lines and "↵" in lines
    assert "\x1b[32m" in "\n".join(as_text([sample], coloured=True))
