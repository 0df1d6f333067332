"""Ranks of any layout take their share of the same files."""

import os

import pytest
import torch

from neva.distributed import groups
from neva.model.build import build_model
from neva.model.decoder_spec import transformer_config
from neva.weights.load import global_name, load_language_model
from tests.convert.native import TOLERANCE, config_of, random_ids, shapes_of, text_logits
from tests.convert.tiny import language_model
from tests.megatron import ranks_tell

PADDED = 256


def stage(folder, layout, pre_process=True, post_process=True):
    vision, language = shapes_of(config_of(folder), padded=PADDED)
    config = transformer_config(
        language,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        pipeline_dtype=torch.float32,
    )
    model = build_model(vision, language, "mlp2x_gelu", config, pre_process, post_process).eval()
    load_language_model(model, folder, language)
    return model


def run_rank(rank, layout, port, folders, results):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    groups.init_process_group(rank, 2)
    groups.init_model_parallel(layout, seed=1234)
    if layout.tensor == 2:
        found = [text_logits(stage(folder, layout), random_ids(133)).numpy() for folder in folders]
    else:
        model = stage(folders[0], layout, rank == 0, rank == 1)
        found = {global_name(model, name): value.detach().numpy() for name, value in model.named_parameters()}
    results.put((rank, found))
    groups.destroy()


def on_two_ranks(layout, port, *folders):
    return dict(ranks_tell(run_rank, 2, 2, layout, port, folders))


def test_tensor_parallel_ranks_give_transformers_logits(tmp_path, free_port):
    expected = []
    for family in ("llama3", "qwen2"):
        reference = language_model(family)
        reference.save_pretrained(tmp_path / family)
        with torch.no_grad():
            expected.append(reference(random_ids(133)).logits)
    found = on_two_ranks(groups.ParallelSizes(tensor=2), free_port, tmp_path / "llama3", tmp_path / "qwen2")
    for logits in found.values():
        for one, other in zip(logits, expected, strict=True):
            difference = (torch.from_numpy(one) - other).abs().max()
            assert difference <= TOLERANCE * max(1.0, other.abs().max())


@pytest.mark.usefixtures("megatron")
def test_pipeline_stages_hold_their_own_layers(tmp_path, free_port):
    config = {"num_hidden_layers": 4}
    reference = language_model("smollm2", changes=config)
    reference.save_pretrained(tmp_path)
    whole = dict(stage(tmp_path, groups.ParallelSizes()).named_parameters())
    stages = on_two_ranks(groups.ParallelSizes(pipeline=2), free_port, tmp_path)
    names = {name for parameters in stages.values() for name in parameters if "language_model." in name}
    tied_copy = "language_model.output_layer.weight"
    assert names - {tied_copy} == {name for name in whole if "language_model." in name}
    assert "language_model.decoder.layers.3.mlp.linear_fc1.weight" in stages[1]
    for parameters in stages.values():
        for name, value in parameters.items():
            if name.startswith("language_model."):
                expected = whole[
                    "language_model.embedding.word_embeddings.weight" if name == tied_copy else name
                ]
                assert torch.equal(torch.from_numpy(value), expected), name
