"""The tables: LLaMA-type language models, CLIP and SigLIP towers, projectors, each in the layouts they are
stored in.

Sources: transformers `models/{llama,mistral,qwen2,qwen3,clip,siglip,llava}`, the hub's llava-hf folders, and
https://github.com/haotian-liu/LLaVA for the original layout.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.mapping import FusedQKV, GatedMLP, PaddedVocab, Rename, Rule, Shape, Table

LANGUAGE, TOWER, PROJECTOR = "language_model.", "vision_tower.model.", "projector."


@dataclass(frozen=True)
class HFNaming:
    """Where the parts of a model lie in a Hugging Face folder: prefixes, the head's name, the projector's
    layer names.
    """

    body: str
    head: str
    tower: str = ""
    projector: str = ""
    linear_names: tuple[str, ...] = ()


TEXT = HFNaming(body="model.", head="lm_head.weight")
"""A language model alone: `LlamaForCausalLM` and its relatives."""

LLAVA_HF = HFNaming(
    body="language_model.model.",
    head="language_model.lm_head.weight",
    tower="vision_tower.vision_model.",
    projector="multi_modal_projector.",
    linear_names=("linear_1", "linear_2"),
)
"""The hub's llava-hf names, which transformers 4.45 to 5.x all load."""

LLAVA_ORIGINAL = HFNaming(
    body="model.",
    head="lm_head.weight",
    tower="model.vision_tower.vision_tower.vision_model.",
    projector="model.mm_projector.",
    linear_names=("0", "2", "4", "6", "8"),
)
"""The names of haotian-liu/LLaVA."""

ROTARY_BUFFERS = r".*\.rotary_emb\.inv_freq"
POSITION_BUFFERS = r".*\.position_ids"
CONTRASTIVE_PARTS = r"text_model\..*|(visual|text)_projection\.weight|logit_(scale|bias)"
POOLING_HEAD = r".*\bhead\..*"


def language_table(
    shape: LanguageConfig, layout: HFNaming = TEXT, hf_vocab_size: int | None = None, fill_row: int = 0
) -> Table:
    """The table of a LLaMA-type language model: LLaMA, Vicuna, Mistral, SmolLM2, MiniMind, Qwen2 (bias),
    Qwen3 (q/k norm).

    `hf_vocab_size` is the number of vocabulary rows on the Hugging Face side where it exceeds
    `shape.vocab_size`; `fill_row` is the row that the additional ones repeat (see PaddedVocab).
    """
    hidden, rows = shape.hidden_size, hf_vocab_size or shape.vocab_size

    def vocab(hf: str, native: str, tied_head: str | None = None) -> PaddedVocab:
        native = LANGUAGE + native
        return PaddedVocab(
            hf, native, shape.vocab_size, shape.padded_vocab_size, rows, hidden, fill_row, tied_head
        )

    embedding = "embedding.word_embeddings.weight"
    rules: list[Rule] = [
        vocab(f"{layout.body}embed_tokens.weight", embedding, layout.head if shape.tied else None)
    ]
    for layer in range(shape.num_layers):
        rules += _decoder_layer(shape, f"{layout.body}layers.{layer}.", f"{LANGUAGE}decoder.layers.{layer}.")
    rules.append(Rename(f"{layout.body}norm.weight", f"{LANGUAGE}decoder.final_layernorm.weight", (hidden,)))
    if not shape.tied:
        rules.append(vocab(layout.head, "output_layer.weight"))
    return Table(tuple(rules), ignored=(ROTARY_BUFFERS,))


def _decoder_layer(shape: LanguageConfig, hf: str, native: str) -> list[Rule]:
    hidden, ffn, head_dim = shape.hidden_size, shape.ffn_hidden_size, shape.head_dim
    attention = f"{native}self_attention."

    def qkv(kind: str, columns: Shape) -> FusedQKV:
        q, k, v = (f"{hf}self_attn.{part}_proj.{kind}" for part in "qkv")
        fused = f"{attention}linear_qkv.{kind}"
        return FusedQKV((q, k, v), fused, shape.num_heads, shape.num_query_groups, head_dim, columns)

    rules: list[Rule] = [
        Rename(f"{hf}input_layernorm.weight", f"{native}input_layernorm.weight", (hidden,)),
        qkv("weight", (hidden,)),
        Rename(
            f"{hf}self_attn.o_proj.weight",
            f"{attention}linear_proj.weight",
            (hidden, shape.num_heads * head_dim),
        ),
        Rename(f"{hf}post_attention_layernorm.weight", f"{native}pre_mlp_layernorm.weight", (hidden,)),
        GatedMLP(
            (f"{hf}mlp.gate_proj.weight", f"{hf}mlp.up_proj.weight"),
            f"{native}mlp.linear_fc1.weight",
            (ffn, hidden),
        ),
        Rename(f"{hf}mlp.down_proj.weight", f"{native}mlp.linear_fc2.weight", (hidden, ffn)),
    ]
    if shape.qkv_bias:
        rules.append(qkv("bias", ()))
    if shape.qk_norm:
        for part in "qk":
            hf_name = f"{hf}self_attn.{part}_norm.weight"
            rules.append(Rename(hf_name, f"{attention}{part}_layernorm.weight", (head_dim,)))
    return rules


def tower_shapes(vision: VisionConfig, pooling_head: bool) -> dict[str, Shape]:
    """Names and shapes of a CLIP or SigLIP vision tower in transformers 5.23's memory (no prefix).

    `pooling_head` says whether a SigLIP tower carries its attention pooling (`vision_use_head`).
    """
    hidden, ffn, clip = vision.hidden_size, vision.ffn_hidden_size, vision.model_type == "clip"
    shapes: dict[str, Shape] = {
        "embeddings.patch_embedding.weight": (hidden, 3, vision.patch_size, vision.patch_size),
        "embeddings.position_embedding.weight": (vision.num_tokens + clip, hidden),
    }
    if clip:
        shapes |= {"embeddings.class_embedding": (hidden,), **_layer_norm("pre_layrnorm", hidden)}
    else:
        shapes["embeddings.patch_embedding.bias"] = (hidden,)
    for layer in range(vision.num_layers):
        prefix = f"encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{prefix}self_attn.{part}", hidden, hidden)
        shapes |= _layer_norm(f"{prefix}layer_norm1", hidden) | _layer_norm(f"{prefix}layer_norm2", hidden)
        shapes |= _linear(f"{prefix}mlp.fc1", ffn, hidden) | _linear(f"{prefix}mlp.fc2", hidden, ffn)
    shapes |= _layer_norm("post_layernorm", hidden)
    if pooling_head and not clip:
        shapes |= {"head.probe": (1, 1, hidden), **_layer_norm("head.layernorm", hidden)}
        shapes |= {
            "head.attention.in_proj_weight": (3 * hidden, hidden),
            "head.attention.in_proj_bias": (3 * hidden,),
        }
        shapes |= _linear("head.attention.out_proj", hidden, hidden)
        shapes |= _linear("head.mlp.fc1", ffn, hidden) | _linear("head.mlp.fc2", hidden, ffn)
    return shapes


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _layer_norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def tower_table(shapes: Mapping[str, Shape], hf_prefix: str) -> Table:
    """The table of a vision tower whose in-memory names and shapes are given and which is stored under
    `hf_prefix`.
    """
    rules = tuple(Rename(hf_prefix + name, TOWER + name, shape) for name, shape in shapes.items())
    ignored: tuple[str, ...] = (POSITION_BUFFERS, CONTRASTIVE_PARTS)
    if not any(name.startswith("head.") for name in shapes):
        ignored += (POOLING_HEAD,)
    return Table(rules, ignored)


def tower_prefix(names: Iterable[str]) -> str:
    """The prefix under which a Hugging Face folder stores its vision tower: CLIPModel and canonical towers
    have one.
    """
    known = (LLAVA_HF.tower, LLAVA_ORIGINAL.tower, "vision_tower.", "model.vision_tower.", "vision_model.")
    names = list(names)
    return next((prefix for prefix in known if any(name.startswith(prefix) for name in names)), "")


def projector_table(num_layers: int, vision_hidden_size: int, hidden_size: int, layout: HFNaming) -> Table:
    """The table of an `mlpNx_gelu` (N = `num_layers`) or `linear` (N = 1) projector.

    The original layout numbers the layers of an MLP and gives a single one no number. llava-hf has two layers
    always.
    """
    if layout is LLAVA_HF and num_layers != 2:
        raise ValueError(
            f"a llava-hf folder holds a projector of 2 layers (mlp2x_gelu), this one has {num_layers}; "
            "export the original layout instead"
        )
    rules = []
    for index in range(num_layers):
        columns = vision_hidden_size if index == 0 else hidden_size
        name = f"{layout.projector}{layout.linear_names[index]}."
        if layout is not LLAVA_HF and num_layers == 1:
            name = layout.projector
        for kind, shape in _linear("", hidden_size, columns).items():
            rules.append(Rename(name + kind[1:], f"{PROJECTOR}{2 * index}.{kind[1:]}", shape))
    return Table(tuple(rules))
