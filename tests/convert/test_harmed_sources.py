"""A source with a changed byte, a cut or missing file or another value is converted, or refused in one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neva.convert.convert import convert
from neva.convert.options import Options
from neva.errors import UserError
from neva.formats.hf_folder import FolderWeights, write_weights
from neva.formats.nemo import open_nemo
from tests.convert.harm import harm_folder, harm_nemo
from tests.convert.llava import llava_nemo
from tests.megatron import run_command

KINDS = ["llava-hf", "original", "nemo"]
LONGEST = 1200


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model as llava-hf folder of two shards, in the original layout, as `.nemo`; one with tiles as a folder."""
    from tests.megatron import groups

    groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=1234)
    folder = tmp_path_factory.mktemp("whole")
    nemo = llava_nemo(folder, changes={"num_hidden_layers": 1}).rename(folder / "nemo.nemo")
    for layout in ("llava-hf", "original"):
        convert(nemo, folder / layout, Options(layout=layout, verify=False))
    tiled = tmp_path_factory.mktemp("tiled")
    tiles = {"aspect_ratio": "anyres", "pinpoints": [[28, 56], [56, 28]]}
    convert(
        llava_nemo(tiled, changes={"num_hidden_layers": 1}, **tiles),
        folder / "llava-next",
        Options(verify=False),
    )
    weights = dict(FolderWeights(folder / "llava-hf").items())
    (folder / "llava-hf" / "model.safetensors").unlink()
    write_weights(folder / "llava-hf", weights.items(), shard_bytes=120_000)
    yield folder


def copy_of(whole: Path, kind: str, folder: Path) -> Path:
    """A copy of a source, whose tower is looked for in the copy."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if kind == "nemo":
        return Path(shutil.copy(whole / "nemo.nemo", folder))
    source = Path(shutil.copytree(whole / kind, folder / kind))
    if kind == "original":
        path = source / "config.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"mm_vision_tower": str(source / "vision_tower")})
        )
    return source


@pytest.mark.parametrize(
    ("kind", "examples"), [("llava-hf", 25), ("llava-next", 25), ("original", 20), ("nemo", 50)]
)
def test_any_harm_to_a_source_is_a_conversion_or_one_sentence(
    whole: Path, tmp_path: Path, kind: str, examples: int
) -> None:
    @settings(max_examples=examples)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        source = copy_of(whole, kind, tmp_path / "work")
        name = harm_nemo(data, source) if kind == "nemo" else harm_folder(data, source)
        layout = (
            data.draw(st.sampled_from(["llava-hf", "original"]), "layout") if kind == "nemo" else "llava-hf"
        )
        target = tmp_path / "work" / ("x.nemo" if kind != "nemo" else "x")
        try:
            convert(source, target, Options(layout=layout))
        except UserError as error:
            assert name in str(error) or str(source) in str(error)
            assert "\n" not in str(error) and len(str(error)) < LONGEST
            assert not target.exists()
        else:
            if kind == "nemo":
                assert json.loads((target / "parity.json").read_text())["verified"]
            else:
                open_nemo(target).verify()

    check()


@pytest.mark.parametrize(
    ("kind", "file", "change", "message"),
    [
        ("original", "config.json", lambda config: config.pop("mm_vision_select_layer"),
         r"config\.json: mm_vision_select_layer is None, expected a whole number"),
        ("llava-hf", "config.json", lambda config: config["text_config"].update(num_hidden_layers=10**9),
         r"config\.json: num_hidden_layers is 1000000000, expected a whole number from 1 to 10000"),
        ("llava-hf", "config.json", lambda config: config.update(vision_feature_layer=9),
         r"config\.json: vision_select_layer: found 9, expected -4\.\.3 for a tower of 3 layers"),
        ("llava-hf", "preprocessor_config.json", lambda config: config["crop_size"].update(height=10**6),
         r"llava-hf: crop_size is .* expected a number of pixels from 1 to 8192"),
        ("llava-hf", "model.safetensors.index.json", lambda index: index.update(weight_map=[1]),
         r"index\.json: weight_map is \[1\], expected a file name for each tensor"),
        ("llava-hf", "tokenizer.json", lambda tokenizer: tokenizer["model"].update(vocab={"a": "0"}),
         r"tokenizer\.json of .* has no vocabulary with an id for each token"),
    ],
)  # fmt: skip
def test_a_process_ends_with_one_sentence_and_status_1(
    whole: Path,
    tmp_path: Path,
    kind: str,
    file: str,
    change: object,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = copy_of(whole, kind, tmp_path / "work")
    content = json.loads((source / file).read_text())
    change(content)  # type: ignore[operator]
    (source / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "x.nemo", Options())
    if kind == "llava-hf":
        return
    words = ["-m", "neva", "convert", str(source), str(tmp_path / "x.nemo")]
    done = run_command(words, tmp_path, os.environ)
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("neva convert: "))
    assert done.returncode == 1 and re.search(message, sentence) and "Traceback" not in done.stderr
    assert not (tmp_path / "x.nemo").exists()


def test_a_changed_byte_of_a_nemos_weights_is_found_before_anything_is_written(
    whole: Path, tmp_path: Path
) -> None:
    source = copy_of(whole, "nemo", tmp_path / "work")
    content = bytearray(source.read_bytes())
    file, start, size = open_nemo(source).members["model_weights/model-00001.safetensors"]
    content[start + size - 1] ^= 1
    source.write_bytes(content)
    with pytest.raises(
        UserError, match=r"model-00001\.safetensors has sha256 .* it has changed since it was written"
    ):
        convert(source, tmp_path / "y.nemo", Options())
    assert not (tmp_path / "y.nemo").exists()


def test_a_nemo_whose_tensors_are_not_those_of_its_sizes_is_refused_whatever_it_becomes(
    tmp_path: Path,
) -> None:
    path = llava_nemo(tmp_path, parts=("language_model", "projector", "vision_tower"))
    nemo = open_nemo(path)
    weights = [
        (name, tensor) for name, tensor in nemo.weights.items() if "layers.1.mlp.linear_fc2" not in name
    ]
    from neva.formats.nemo import write_nemo

    folder = nemo.extract_tokenizer(tmp_path / "t")
    write_nemo(tmp_path / "less.nemo", nemo.config, weights, folder, nemo.image_processor, "test", {})
    for target in ("y.nemo", "y"):
        with pytest.raises(
            UserError, match=r"less\.nemo: .*native tensors are missing: .*layers\.1\.mlp\.linear_fc2"
        ):
            convert(tmp_path / "less.nemo", tmp_path / target, Options())
    assert torch.is_tensor(weights[0][1])
