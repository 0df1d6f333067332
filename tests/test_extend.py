"""The package that docs/extend.md shows is a real one: it trains, goes to Hugging Face and back, and is planned."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from neva import cli
from neva.formats.nemo import open_nemo
from neva.registry import (
    CONNECTORS,
    LANGUAGE_FAMILIES,
    SAMPLERS,
    SOURCES,
    TEMPLATES,
    VISION_FAMILIES,
)
from tests.conftest import random_image
from tests.convert.llava import write_tokenizer

PAGE = Path(__file__).resolve().parent.parent / "docs/extend.md"
REGISTRIES = (LANGUAGE_FAMILIES, VISION_FAMILIES, CONNECTORS, TEMPLATES, SOURCES, SAMPLERS)
SIZES = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "encoder_seq_length": 96,
    "vocab_size": 133,
    "micro_batch_size": 2,
    "global_batch_size": 4,
}


def modules() -> dict[str, str]:
    """Content of each module of the page, by path."""
    blocks = re.findall(
        r"^```python\n# (my_parts/\w+\.py)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return dict(blocks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a user has it: the package, some images, a file of questions, a tokenizer."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in modules().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    lines = [f"{number}.png\twhat is it?\tnumber {number}" for number in range(8)]
    (folder / "data.tsv").write_text("\n".join(lines) + "\n")
    for number in range(8):
        random_image(20, 16, number).save(folder / f"{number}.png")
    write_tokenizer(folder / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        for registry in REGISTRIES:
            patch.setattr(registry, "_members", {name: registry[name] for name in registry.names()})
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "my_parts"]:
        del sys.modules[name]


def overrides(folder: Path) -> list[str]:
    """A recipe whose every open part is the package's."""
    return [
        "+plugins=[my_parts]",
        f"exp_manager.exp_dir={folder}/runs",
        "exp_manager.name=mine",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        f"model.tokenizer.type={folder}/tokenizer",
        f"model.data.data_path={folder}/data.tsv",
        f"model.data.image_folder={folder}",
        "model.data.num_workers=0",
        "model.data.conv_template=qa",
        "model.data.dataloader_type=curriculum",
        "model.data.image_aspect_ratio=square",
        "model.mm_cfg.mm_mlp_adapter_type=named_layers",
        "model.mm_cfg.vision_encoder.model_type=patch_mixer",
        "model.mm_cfg.vision_encoder.image_size=16",
        "model.mm_cfg.vision_encoder.patch_dim=8",
        "model.mm_cfg.vision_encoder.hidden_size=16",
        "model.mm_cfg.vision_encoder.num_layers=3",
        "model.mm_cfg.vision_encoder.num_attention_heads=1",
        "model.mm_cfg.vision_encoder.ffn_hidden_size=16",
        "model.mm_cfg.llm.family=camel",
        "model.restore_from_path=null",
        *(f"model.{key}={value}" for key, value in SIZES.items()),
    ]


@pytest.fixture(scope="module")
def nemo(folder: Path) -> Path:
    """What two steps of training leave."""
    assert cli.main(["train", "--config-name", "quickstart_finetune", *overrides(folder)]) == 0
    return folder / "runs/mine/checkpoints/mine.nemo"


def test_a_users_parts_train_in_their_own_order_on_their_own_data(nemo: Path) -> None:
    rows = [json.loads(line) for line in (nemo.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    names = list(open_nemo(nemo).weights)
    assert {name.split(".")[0] for name in names} == {"vision_tower", "projector", "language_model"}
    assert "projector.into.weight" in names


def test_the_export_is_what_transformers_computes_with_the_users_classes(nemo: Path, folder: Path) -> None:
    assert cli.main(["convert", str(nemo), str(folder / "hf"), "--plugins", "my_parts"]) == 0
    parity = json.loads((folder / "hf/parity.json").read_text())
    assert parity["verified"] and parity["greedy_answers_equal"] == parity["samples"]
    config = json.loads((folder / "hf/config.json").read_text())
    assert (config["text_config"]["model_type"], config["text_config"]["n_layer"]) == ("camel", 2)
    assert config["vision_config"]["model_type"] == "patch_mixer"
    assert cli.main(["convert", str(folder / "hf"), str(folder / "back.nemo"), "--plugins", "my_parts"]) == 0
    there, back = open_nemo(nemo).weights, open_nemo(folder / "back.nemo").weights
    renamed = {name: name.replace(".into.", ".0.").replace(".out.", ".2.") for name in there}
    assert all(torch.equal(there[name], back[renamed[name]]) for name in there)


def test_no_file_of_neva_names_them() -> None:
    words = re.compile(r"patch_mixer|camel|named_layers|curriculum|my_parts")
    inside = [path for path in (PAGE.parent.parent / "neva").rglob("*.py") if words.search(path.read_text())]
    assert inside == []
