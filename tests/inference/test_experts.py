"""Models with experts answer as those of transformers do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neva.config.keys.peft import INT8
from neva.inference.decoder import Decoder
from neva.inference.generate import Prompt
from neva.model.quantised import quantise
from tests.experts import FAMILIES, native, reference
from tests.inference.test_generate import NEW_TOKENS, answers


def test_packed_experts_compute_what_their_rounded_weights_do(
    single_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model, changes = FAMILIES["mixtral"]
    whole_blocks = {**changes, "hidden_size": 48, "intermediate_size": 64}
    monkeypatch.setitem(FAMILIES, "mixtral", (config, model, whole_blocks))
    reference("mixtral", tmp_path)
    packed, plain = (native(tmp_path).requires_grad_(False) for _ in range(2))
    quantise(packed, INT8)
    matrices = [(name, module) for name, module in packed.named_modules() if hasattr(module, "packed")]
    assert len(matrices) == packed.config.num_layers * (2 + 2 * 4)
    for name, matrix in matrices:
        plain.get_submodule(name).weight.data.copy_(matrix.packed.unpacked(matrix.weight, matrix.scales))
    ids = torch.randint(3, 133, (9,), generator=torch.Generator().manual_seed(6))
    decoders = [Decoder(model) for model in (packed, plain)]
    none = torch.zeros(0, packed.config.hidden_size)
    found = [decoder.prefill(decoder.cache(1), [0], [ids], [none], room=1) for decoder in decoders]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_transformers_together_and_alone(
    single_process: None, tmp_path: Path, family: str
) -> None:
    theirs, ours = reference(family, tmp_path), native(tmp_path).requires_grad_(False)
    draw = torch.Generator().manual_seed(6)
    prompts = [
        Prompt(torch.randint(3, 133, (length,), generator=draw), torch.zeros(0, 3, 28, 28))
        for length in (9, 4, 17)
    ]
    together = answers(ours, prompts, end_ids=[])
    assert together == [answers(ours, [prompt], end_ids=[])[0] for prompt in prompts]
    for prompt, answer in zip(prompts, together, strict=True):
        ids = prompt.input_ids[None]
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert answer == expected[0, len(prompt.input_ids) :].tolist()
