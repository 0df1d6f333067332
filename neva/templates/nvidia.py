"""NeVA's templates of NVIDIA's own language models; their control tokens are `<extra_id_N>`.

Source: NeMo, nemo/collections/multimodal/data/neva/neva_dataset.py (`preprocess_nvgpt`, `preprocess_nv_dpo`).
NeVA masks a label only where it begins with `quality:`; here no label carries loss.
"""

from __future__ import annotations

from dataclasses import replace

from neva.registry import TEMPLATES
from neva.templates.template import Template

NVGPT = TEMPLATES.register(
    "nvgpt",
    Template(
        begins_with_bos=False,
        # Records replace it as a whole, so that they bring the two new lines themselves.
        default_system="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions.\n\n",
        begin="<extra_id_0>System\n",
        system="{}",
        human="<extra_id_1>User\n{}\n",
        next_human="User\n{}\n",
        gpt="<extra_id_1>Assistant\n",
        label="<extra_id_2>{}\n",
        default_label="quality:4,toxicity:0,humor:0,creativity:0,helpfulness:4,correctness:4,coherence:4,complexity:4,"
        "verbosity:4",
        answer="{}\n",
        end="<extra_id_1>",
        after="",
        special_tokens=("<extra_id_0>", "<extra_id_1>", "<extra_id_2>"),
    ),
)
TEMPLATES.register("nv_steerlm", replace(NVGPT))
TEMPLATES.register("nv_dpo", replace(NVGPT, default_system="\n", default_label=None))
