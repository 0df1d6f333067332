"""What the ranks of a node read of weights from the disk, together: a file about once, however many they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neva.distributed import groups
from neva.distributed.imagined import imagined_rank
from neva.families.configs import LanguageConfig
from neva.formats.nemo import write_nemo
from neva.model.build import build_model
from neva.model.decoder_spec import transformer_config
from neva.weights.load import load_native
from neva.weights.parts import language_weights
from tests.convert.native import config_of, shapes_of
from tests.convert.tiny import language_model

LAYOUT = groups.ParallelSizes(tensor=2, pipeline=2)
RANKS = 8
"""Of one node: two replicas of four shards."""

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 4096,
}
"""25 MB in float32."""


@pytest.fixture(autouse=True)
def no_groups() -> None:
    groups.destroy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    language_model("llama", changes=SIZES).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def nemo(folder: Path) -> Path:
    path = folder / "model.nemo"
    weights = language_weights(folder, shapes_of(config_of(folder))[1])
    pairs = ((name, weights[name]) for name in weights)
    parts = {"language_model": "trained"}
    write_nemo(path, {"vocab_size": SIZES["vocab_size"]}, pairs, None, None, "a test", parts)
    return path


class Asked(Mapping[str, Tensor]):
    """Tensors of a file, with the names of those that were asked for."""

    def __init__(self, source: Mapping[str, Tensor]) -> None:
        self.source, self.names = source, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.names.add(name)
        return self.source[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def part_of_rank(folder: Path, rank: int) -> tuple[nn.Module, LanguageConfig, int]:
    """The module of this rank, its sizes, and the number of its pipeline stage."""
    vision, language = shapes_of(config_of(folder))
    config = transformer_config(
        language,
        tensor_model_parallel_size=LAYOUT.tensor,
        pipeline_model_parallel_size=LAYOUT.pipeline,
        pipeline_dtype=torch.float32,
    )
    (stage,) = groups.pipeline_stages()
    model = build_model(vision, language, "mlp2x_gelu", config, stage.is_first, stage.is_last)
    return model, language, 0 if stage.is_first else 1


def read_by_node(folder: Path, source: Path) -> tuple[list[int], list[int], list[set[str]]]:
    """Loads as each rank of the node in turn; bytes from the disk and by `read`, and what each stage asked for."""
    from_disk, by_read, asked = [], [], [set[str](), set[str]()]
    for rank in range(RANKS):
        with imagined_rank(rank, RANKS, LAYOUT, seed=1):
            model, language, stage = part_of_rank(folder, rank)
            before = counters()
            weights = Asked(language_weights(source, language))
            load_native(model, weights, language.vocab_size, ("language_model",))
            after = counters()
        from_disk.append(after["read_bytes"] - before["read_bytes"])
        by_read.append(after["rchar"] - before["rchar"])
        asked[stage] |= weights.names
    return from_disk, by_read, asked


def counters() -> dict[str, int]:
    """This process's bytes so far: `read_bytes` came from a disk, `rchar` through calls of `read`."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def forget(path: Path) -> None:
    """Has the operating system drop what it keeps of a file in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("form", ["folder", "nemo"])
def test_eight_ranks_of_a_node_read_a_file_once(
    form: str, folder: Path, nemo: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(form)
    (file,) = [nemo] if form == "nemo" else folder.glob("*.safetensors")
    read_by_node(folder, source)  # what the first load imports is no weight
    forget(file)
    size = file.stat().st_size
    from_disk, by_read, asked = read_by_node(folder, source)
    if not from_disk[0]:
        pytest.skip("this file system keeps files in memory, or does not count what it reads")
    # all of it, and no byte twice: what one rank has read, the others find in memory
    assert 0.99 * size < sum(from_disk) < 1.01 * size
    # nothing but headers is copied out of the shared memory by `read`: those of a `.nemo` are 0.3 % here
    assert max(by_read) < 0.01 * size
    # a stage does not touch what another one holds
    assert asked[0] & asked[1] == set()
    assert asked[0] | asked[1] == set(language_weights(source, shapes_of(config_of(folder))[1]))
