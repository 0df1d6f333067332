"""NeMo 1's NeVA files: distributed checkpoints that megatron-core wrote under the old names give the same model."""

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from omegaconf import OmegaConf

from neva.commands.convert import main
from neva.formats.archive import members_of
from neva.formats.hf_folder import FolderWeights
from neva.formats.nemo import open_nemo
from neva.formats.torch_dist import DistributedWeights
from tests.convert.llava import image_processor, llava_nemo
from tests.convert.tiny import language_model, tower

pytestmark = pytest.mark.usefixtures("megatron")
LAYERS, PADDED = 3, 256
FUSED = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
COLUMNS = ("linear_proj", "linear_fc2")


def sharded(key, tensor, *axis, layer=None):
    """What a rank of NeMo's saves: layers stacked along a first axis that the tensor does not have."""
    stack = [] if layer is None else [(0, layer, LAYERS)]
    axis = [(dim + len(stack), *load_sharded) for dim, *load_sharded in axis]
    return ShardedTensor.from_rank_offsets(
        key, tensor.contiguous(), *stack, *axis, prepend_axis_num=len(stack)
    )


def old_entries(weights, prefix):
    """The sharded tensors of two tensor-parallel ranks under NeMo 1's names."""
    for name, tensor in weights.items():
        if name.startswith("projector."):
            load_sharded = "embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector."
            yield sharded(prefix + load_sharded + name.removeprefix("projector."), tensor)
        elif name.startswith("vision_tower.model."):
            load_sharded = "embedding.word_embeddings.vision_encoder.vision_model."
            yield sharded(prefix + load_sharded + name.removeprefix("vision_tower.model."), tensor)
        else:
            yield from old_language(name.removeprefix("language_model."), tensor, prefix)


def old_language(name, tensor, prefix):
    layer = None
    if name.startswith("decoder.layers."):
        number, part = name.removeprefix("decoder.layers.").split(".", 1)
        layer, name = int(number), f"decoder.layers.{FUSED.get(part, part)}"
    elif name.endswith(("word_embeddings.weight", "output_layer.weight")):
        tensor = torch.cat([tensor, tensor.new_ones(PADDED - len(tensor), tensor.shape[1])])
    if "norm" in name:
        yield sharded(prefix + name, tensor, layer=layer)
        return
    dim = 1 if any(part in name for part in COLUMNS) else 0
    pieces = 4 if "linear_fc1" in name else 2
    for number, chunk in enumerate(tensor.chunk(pieces, dim)):
        yield sharded(prefix + name, chunk, (dim, number, pieces), layer=layer)


def old_config(nemo, tower_folder, llm=None, **changes):
    config = nemo.config
    keys = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
    return {
        **{key: config[key] for key in keys},
        "target": "nemo.collections.multimodal.models.multimodal_llm.neva.neva_model.MegatronNevaModel",
        "encoder_seq_length": 128,
        "max_position_embeddings": 128,
        "kv_channels": None,
        "rotary_base": config.rotary_base,
        "layernorm_epsilon": config.layernorm_epsilon,
        "share_embeddings_and_output_weights": config.share_embeddings_and_output_weights,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "bias": False,
        "make_vocab_size_divisible_by": 128,
        "mm_cfg": {
            "llm": {"from_pretrained": llm and str(llm)},
            "vision_encoder": {
                "from_pretrained": str(tower_folder),
                "vision_select_layer": -2,
                "class_token_length": 1,
            },
            "mm_mlp_adapter_type": "mlp2x_gelu",
        },
        "data": {"conv_template": "v1", "image_aspect_ratio": "square"},
        "tokenizer": {"library": "sentencepiece", "model": "nemo:0a1b_tokenizer.model"},
        **changes,
    }


def write_old(folder: Path, weights, config, prefix="model.", packed=True) -> Path:
    """The folder of a `.nemo` that NeMo 1 wrote, or the file."""
    model_weights = folder / "model_weights"
    model_weights.mkdir(parents=True)
    state = {str(number): entry for number, entry in enumerate(old_entries(weights, prefix))}
    extra = f"{prefix}decoder.layers.mlp.linear_fc1._extra_state"
    state["extra"] = ShardedObject(extra, io.BytesIO(b"fp8"), (1,), (0,))
    dist_checkpointing.save(state, str(model_weights), ("torch_dist", 1))
    (folder / "model_config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    if not packed:
        return folder
    with tarfile.open(folder.with_suffix(".nemo"), "w:") as archive:
        archive.add(folder, arcname="./")
    return folder.with_suffix(".nemo")


@pytest.fixture
def eye(tmp_path):
    tower("clip", seed=9).save_pretrained(tmp_path / "eye")
    (tmp_path / "eye" / "preprocessor_config.json").write_text(json.dumps(image_processor("clip", 28)))
    return tmp_path / "eye"


def convert(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("family", "prefix", "dtype", "packed"),
    [
        ("llama", "model.", torch.bfloat16, True),
        ("qwen2", "model.module.", torch.float32, False),
        ("qwen2_untied", "model.", torch.float32, True),
    ],
)
def test_old_file_gives_the_same_model(tmp_path, eye, family, prefix, dtype, packed):
    native = open_nemo(llava_nemo(tmp_path, family, dtype=dtype))
    old = write_old(tmp_path / "old", native.weights, old_config(native, eye), prefix, packed)
    assert convert(old, tmp_path / "new.nemo", "--input_tokenizer", tmp_path / "tokenizer") == 0
    new = open_nemo(tmp_path / "new.nemo")
    new.verify()
    assert set(new.weights) == set(native.weights)
    for name, tensor in native.weights.items():
        assert torch.equal(new.weights[name], tensor), name
        assert new.weights[name].dtype == dtype
    assert new.config.vocab_size == 133
    assert convert(old, tmp_path / "hf", "--input_tokenizer", tmp_path / "tokenizer") == 0
    assert json.loads((tmp_path / "hf" / "parity.json").read_text())["verified"] is True


def test_stage_one_file_takes_the_rest_from_folders(tmp_path, eye):
    language_model("llama", seed=4).save_pretrained(tmp_path / "text")
    native = open_nemo(llava_nemo(tmp_path, parts=("projector",)))
    old = write_old(tmp_path / "old", native.weights, old_config(native, eye, tmp_path / "text"))
    assert convert(old, tmp_path / "hf", "--input_tokenizer", tmp_path / "tokenizer") == 0
    exported = FolderWeights(tmp_path / "hf")
    projector = exported["multi_modal_projector.linear_2.weight"]
    assert torch.equal(projector, native.weights["projector.2.weight"])
    norm = language_model("llama", seed=4).state_dict()["model.norm.weight"]
    assert torch.equal(exported["language_model.model.norm.weight"], norm)


def test_chunks_are_those_that_megatron_reads(tmp_path):
    (tmp_path / "w").mkdir()
    stacked = torch.randn(LAYERS, 8, 5)
    entries = {
        f"{layer}-{rank}": sharded("a", stacked[layer].chunk(2)[rank], (0, rank, 2), layer=layer)
        for layer in range(LAYERS)
        for rank in range(2)
    }
    dist_checkpointing.save(entries, str(tmp_path / "w"), ("torch_dist", 1))
    target = {"a": ShardedTensor.from_rank_offsets("a", torch.zeros(LAYERS, 8, 5))}
    expected = dist_checkpointing.load(target, str(tmp_path / "w"))["a"]
    found = DistributedWeights(members_of(tmp_path / "w"), "w")
    assert torch.equal(found["a"], expected)
    assert torch.equal(found.slice("a", 1), expected[1])


class TestRefused:
    def test_tensor_without_a_place_and_missing_tensor(self, tmp_path, eye, capsys):
        native = open_nemo(llava_nemo(tmp_path))
        config = old_config(native, eye)
        flags = ("--input_tokenizer", tmp_path / "tokenizer")
        more = {**native.weights, "language_model.strange.weight": torch.ones(4)}
        assert convert(write_old(tmp_path / "a", more, config), tmp_path / "x.nemo", *flags) == 1
        assert "1 tensors have no place in NeVA: strange.weight" in capsys.readouterr().err
        name = "language_model.decoder.final_layernorm.weight"
        less = {key: tensor for key, tensor in native.weights.items() if key != name}
        assert convert(write_old(tmp_path / "b", less, config), tmp_path / "x.nemo", *flags) == 1
        assert "decoder.final_layernorm.weight" in capsys.readouterr().err
        assert not (tmp_path / "x.nemo").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"normalization": "layernorm1p"}, "normalization is 'layernorm1p', expected 'rmsnorm'"),
            ({"hidden_size": 48}, "shape"),
        ],
    )
    def test_other_arithmetic_and_sizes(self, tmp_path, eye, capsys, changes, message):
        native = open_nemo(llava_nemo(tmp_path))
        old = write_old(tmp_path / "old", native.weights, old_config(native, eye, **changes))
        assert convert(old, tmp_path / "x.nemo", "--input_tokenizer", tmp_path / "tokenizer") == 1
        assert message in capsys.readouterr().err

    def test_code_in_the_metadata_is_not_run(self, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'attacked'}",)

        (tmp_path / "w").mkdir()
        (tmp_path / "w" / ".metadata").write_bytes(pickle.dumps(Attack()))
        with pytest.raises(ValueError, match=r"\.metadata is not that of a distributed checkpoint"):
            DistributedWeights(members_of(tmp_path / "w"), "w")
        assert not (tmp_path / "attacked").exists()

    def test_zarr_and_lost_chunks(self, tmp_path, eye, capsys):
        native = open_nemo(llava_nemo(tmp_path))
        old = write_old(tmp_path / "old", native.weights, old_config(native, eye), packed=False)
        next((old / "model_weights").glob("*.distcp")).unlink()
        flags = ("--input_tokenizer", tmp_path / "tokenizer")
        assert convert(old, tmp_path / "x.nemo", *flags) == 1
        assert ".distcp is missing; the checkpoint is incomplete" in capsys.readouterr().err
        shutil.rmtree(old / "model_weights")
        (old / "model_weights" / "model.decoder").mkdir(parents=True)
        (old / "model_weights" / "model.decoder" / ".zarray").write_text("{}")
        assert convert(old, tmp_path / "x.nemo", *flags) == 1
        assert "torch_dist format, found a zarr checkpoint" in capsys.readouterr().err
