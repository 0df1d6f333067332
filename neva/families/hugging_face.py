"""Language models that transformers runs itself, of any `model_type` that its `AutoModelForCausalLM` has.

What a family of Megatron's layers says of its models is asked here of transformers: sizes of its configuration, names
and shapes of the module, which is built without memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from neva.errors import CheckpointError, ConfigError
from neva.families.configs import ALL, LanguageConfig
from neva.families.decoder_rules import PaddedVocab
from neva.families.mapping import Rename, Rule, Shape, Table
from neva.families.naming import LANGUAGE, HFNaming
from neva.families.stored_names import stored_names
from neva.formats.json import json_text, shown

if TYPE_CHECKING:
    from torch import nn

MODULE = f"{LANGUAGE}model."
"""Prefix of the native names: the module of transformers stands inside that of neva."""
OF_THE_FILE = (
    *("transformers_version", "_name_or_path", "_commit_hash", "torch_dtype", "dtype", "architectures"),
    *("id2label", "label2id", "problem_type", "return_dict", "output_hidden_states", "output_attentions"),
    *("_attn_implementation_autoset", "use_cache", "quantization_config"),
)
"""Keys of a `config.json` that say nothing of what is computed."""
TOKEN_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
"""What the tokenizer says; as the model's own, a padding token would be a row of the embedding that never trains."""
OF_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Keys of a `config.json` that change logits behind the head."""
DROPOUTS = ("dropout", "pdrop")
"""How keys end that switch a dropout on, which neva trains without."""


@dataclass
class HuggingFaceFamily:
    """A `LanguageFamily`: all models of one `model_type`, as transformers has them."""

    model_type: str
    body: str = ""
    head: str = ""
    follows_from_sizes: bool = False
    has_experts: bool = False

    def read(self, config: Mapping[str, Any]) -> LanguageConfig:
        """See `LanguageFamily`; sizes that such a model has not are what a plan may count with.

        Raises:
            ConfigError: transformers has no such language model.
        """
        found = _configuration({**config, "model_type": self.model_type})
        heads = _first(found, 1, "num_attention_heads")
        hidden = found.hidden_size
        return LanguageConfig(
            num_layers=found.num_hidden_layers,
            hidden_size=hidden,
            ffn_hidden_size=_first(found, 4 * hidden, "intermediate_size", "ffn_dim", "n_inner"),
            num_heads=heads,
            num_query_groups=_first(found, heads, "num_key_value_heads"),
            head_dim=_first(found, hidden // heads, "head_dim"),
            vocab_size=found.vocab_size,
            padded_vocab_size=found.vocab_size,
            max_positions=_first(found, 2**20, "max_position_embeddings"),
            rope_theta=float((getattr(found, "rope_parameters", None) or {}).get("rope_theta", 10000.0)),
            rope_scaling=None,
            rms_norm_eps=_first(found, 1e-5, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
            tied=bool(found.tie_word_embeddings),
            qkv_bias=False,
            qk_norm=False,
            sliding_window=None,
            hf_config=_recorded(found),
        )

    def write(self, language: LanguageConfig) -> dict[str, Any]:
        """See `LanguageFamily`. RoPE is written in both spellings, as transformers 4 and 5 read it."""
        assert language.hf_config is not None
        written = dict(language.hf_config)
        rope = written.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
            is_scaled = scaling.get("rope_type", "default") != "default"
            written |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling if is_scaled else None}
        return {**written, "architectures": [type(module_of(language)).__name__]}

    def computes(self, language: LanguageConfig) -> bool:
        """See `LanguageFamily`."""
        return language.hf_config is not None and language.hf_config["model_type"] == self.model_type

    def table(self, language: LanguageConfig, naming: HFNaming, hf_rows: int, fill_row: int) -> Table:
        """See `LanguageFamily`.

        Raises:
            CheckpointError: tensors are stored otherwise than one by one, or a vocabulary cannot be enlarged.
        """
        module = module_of(language)
        if naming.model_type is not None:
            _refuse_other_names(module, naming.model_type)
        stored, vocabulary = stored_names(module, "model"), _vocabulary(module)
        tied = {id(weight): name for name, weight in module.named_parameters(remove_duplicate=False)}
        rules: list[Rule] = []
        for name, weight in module.named_parameters():
            hf, shape = naming.language + stored[name], tuple(weight.shape)
            copy = naming.language + tied[id(weight)] if tied[id(weight)] != name else None
            if id(weight) in vocabulary and len(shape) == 2:
                rows = (language.vocab_size, language.vocab_size, hf_rows, shape[1])
                rules.append(PaddedVocab(hf, MODULE + name, *rows, fill_row, copy))
            else:
                if id(weight) in vocabulary and hf_rows != language.vocab_size:
                    raise CheckpointError(
                        f"{name} is a bias of the head, which cannot be enlarged to {hf_rows} rows for an image token: "
                        "export the original layout instead"
                    )
                rules.append(Rename(hf, MODULE + name, shape))
        return Table(tuple(rules), ignored=_ignored(module))

    def vocabulary_names(self, language: LanguageConfig) -> frozenset[str]:
        """See `LanguageFamily`."""
        module = module_of(language)
        rows = _vocabulary(module)
        return frozenset(MODULE + name for name, weight in module.named_parameters() if id(weight) in rows)

    def layer_shapes(self, language: LanguageConfig, tensor_parallel_size: int = 1) -> dict[str, Shape]:
        """See `LanguageFamily`; they lie on one rank whole."""
        module = module_of(language)
        layer, *_ = [*blocks(module, language.num_layers), module]
        return {name: tuple(weight.shape) for name, weight in layer.named_parameters()}


def build(language: LanguageConfig) -> Any:
    """Builds the model with random weights in float32, without dropout."""
    assert language.hf_config is not None
    return _built(language.hf_config)


def _built(config: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    configuration = _configuration({**config, **{key: 0.0 for key in config if key.endswith(DROPOUTS)}})
    try:
        return AutoModelForCausalLM.from_config(configuration, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"transformers cannot build a language model of model_type {shown(configuration.model_type)}: "
            f"{' '.join(str(error).split()):.200}"
        ) from error


def module_of(language: LanguageConfig) -> Any:
    """Returns the model without memory."""
    return _without_memory(json_text(language.hf_config, sort_keys=True))


@cache
def _without_memory(config: str) -> Any:
    import torch

    with torch.device("meta"):
        return _built(json.loads(config))


def missing_prefix(language: LanguageConfig, names: Collection[str]) -> str:
    """Returns what the names of a folder lack in front: in files of a bare model nothing names the body."""
    prefix = f"{module_of(language).base_model_prefix}."
    return "" if any(name.startswith(prefix) for name in names) else prefix


def shapes(language: LanguageConfig) -> dict[str, Shape]:
    """Returns names and shapes of all tensors, in the order of the module."""
    return {name: tuple(weight.shape) for name, weight in module_of(language).named_parameters()}


def adapted(language: LanguageConfig) -> dict[str, Shape]:
    """Returns name and shape of the matrices with adapters, among the linear layers of the decoder's.

    Raises:
        ConfigError: it has none of those that are named.
    """
    from torch import nn

    if language.lora is None:
        return {}
    module, named, layers = module_of(language), dict(language.lora.sites), language.lora.layers
    chosen = [
        layer
        for number, layer in enumerate(blocks(module, language.num_layers))
        if layers is None or number in layers
    ]
    inside = {part for layer in chosen for part in layer.modules() if type(part) is nn.Linear}
    linear = {name: part for name, part in module.named_modules() if part in inside}
    words = {name.rpartition(".")[2] for name in linear}
    for word in named:
        if word not in (*words, ALL) or not words:
            raise ConfigError(
                f"model.peft.lora_tuning.target_modules names {word}, and the linear layers of a "
                f"{module.config.model_type!r} are {', '.join(sorted(words)) or 'none'}"
            )
    return {
        name: (part.out_features, part.in_features)
        for name, part in linear.items()
        if language.lora.names(name)
    }


def blocks(module: nn.Module, num_layers: int) -> list[nn.Module]:
    """Returns the layers: the first list of as many modules as there are layers; none where there is no such list."""
    from torch import nn

    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == num_layers)
    return [*next(lists, [])]


def _configuration(config: Mapping[str, Any]) -> Any:
    """Returns transformers' configuration, whose attributes have the same names for all models."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    given = {key: value for key, value in config.items() if key not in OF_THE_FILE}
    model_type = given.pop("model_type")
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            f"model_type {shown(model_type)} is no language model of the installed transformers; expected one that its "
            "AutoModelForCausalLM has (code beside the weights is not run)"
        )
    try:
        return AutoConfig.for_model(model_type, **given)
    except Exception as error:  # its classes check what they are given, each in its own way
        raise ConfigError(
            f"transformers refuses the configuration of a {model_type!r}: {' '.join(str(error).split()):.200}"
        ) from error


def _recorded(configuration: Any) -> dict[str, Any]:
    """Returns all that a configuration says of the model, as JSON holds it."""
    stated = {key: value for key, value in configuration.to_dict().items() if key not in OF_THE_FILE}
    if stated.get("rope_parameters"):  # which say it since transformers 5
        stated = {key: value for key, value in stated.items() if key not in ("rope_theta", "rope_scaling")}
    recorded: dict[str, Any] = json.loads(json_text(stated))
    return {**recorded, **TOKEN_IDS}


def _first(configuration: Any, otherwise: Any, *names: str) -> Any:
    """Returns the first of these attributes that is there and says something."""
    found = (getattr(configuration, name, None) for name in names)
    return next((value for value in found if value is not None), otherwise)


def _refuse_other_names(module: Any, model_type: str) -> None:
    """Raises CheckpointError for a model that transformers cannot find inside its LLaVA, whose names are LLaMA's."""
    names = {name for name, _ in module.named_parameters()}
    others = [name for name in names if not name.startswith(("model.", "lm_head."))]
    if others or "model.embed_tokens.weight" not in names:
        raise CheckpointError(
            f"transformers' {model_type} holds language models with LLaMA's names of body and head "
            f"(model.embed_tokens, lm_head); a {module.config.model_type!r} has {min(others or names)}: "
            "no folder of such a model is written or read, a .nemo holds it"
        )
    changed = [key for key in OF_THE_HEAD if getattr(module.config, key, None) is not None]
    if changed or "lm_head.bias" in names:
        raise CheckpointError(
            f"transformers' {model_type} has a plain head, without the {changed[0] if changed else 'bias'} of a "
            f"{module.config.model_type!r}: no folder of such a model is written or read, a .nemo holds it"
        )


def _vocabulary(module: Any) -> set[int]:
    """Returns which parameters have a row for each token."""
    parts = (module.get_input_embeddings(), module.get_output_embeddings())
    return {id(weight) for part in parts if part is not None for weight in part.parameters()}


def _ignored(module: Any) -> tuple[str, ...]:
    """Returns the patterns of what older files hold beside the weights."""
    patterns = module._keys_to_ignore_on_load_unexpected or ()
    return (r".*\.rotary_emb\.inv_freq", *(rf".*{pattern}.*" for pattern in sorted(patterns)))
