"""What a family of vision towers is, and the family that a tower belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from neva.errors import CheckpointError, ConfigError, naming
from neva.families.configs import VisionConfig
from neva.families.mapping import Rename, Shape, Table
from neva.families.naming import TOWER, HFNaming
from neva.families.values import MOST_LAYERS, activation, number, one_layer, section, side, text, whole
from neva.formats.hf_files import MODEL_CONFIG, read_config
from neva.formats.json import shown
from neva.registry import VISION_FAMILIES

POSITION_BUFFERS = r".*\.position_ids"
CONTRASTIVE_PARTS = r"text_model\..*|(visual|text)_projection\.weight|logit_(scale|bias)"
INTERPOLATE = "interpolate_pos_encoding"
POOLING = "head."
"""Prefix of SigLIP's attention pooling, which no hidden state depends on."""


@dataclass(frozen=True)
class VisionFamily:
    """A kind of vision tower by its Hugging Face `model_type`; what no field says is asked of the built tower.

    A family of another make overrides the methods that differ.
    """

    model_type: str
    defaults: Mapping[str, Any]
    """What a partial `config.json` omits: the defaults of transformers' config class."""
    class_tokens: int = 0
    """Leading tokens of a hidden state that are no patches."""
    classes: tuple[str, str] | None = None
    """transformers' classes of configuration and tower; None: those that its `AutoModel` chooses."""
    exported_type: str | None = None
    """`model_type` in the `vision_config` of an export; None: such a tower cannot be exported."""
    image_processor: str | None = None
    """transformers' class of the image processor that belongs to such towers; None: it must lie in the folder."""
    wrapper: str = ""
    """Module around the tower in the names of an export."""
    layers: str | None = None
    """The list of layers, each of which takes the hidden state that the one before it gave; None: it runs whole."""
    before_layers: tuple[str, ...] = ("embeddings", "pre_layrnorm")
    """Modules that run before the layers, those that there are."""
    positions: str | None = None
    """Name of the learned positions; None: it has none, or none that are known to be interpolated."""

    def read(self, config: Mapping[str, Any], select_layer: int) -> VisionConfig:
        """Returns the sizes that the tower's part of a `config.json` gives."""
        values = {**self.defaults, **config}
        vision = VisionConfig(
            model_type=self.model_type,
            image_size=side(values, "image_size"),
            patch_size=side(values, "patch_size"),
            hidden_size=whole(values, "hidden_size"),
            num_layers=whole(values, "num_hidden_layers", high=MOST_LAYERS),
            num_heads=whole(values, "num_attention_heads"),
            ffn_hidden_size=whole(values, "intermediate_size"),
            hidden_act=activation(values),
            layer_norm_eps=number(values, "layer_norm_eps"),
            select_layer=select_layer,
            class_token_length=self.class_tokens,
        )
        _refuse_uneven(vision)
        num_layers_run(vision)
        return vision

    def write(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Any]:
        """Returns the `vision_config` of an export's `config.json`.

        Raises:
            CheckpointError: such a tower cannot be exported.
        """
        if self.exported_type is None:
            known = " or ".join(family.model_type for family in VISION_FAMILIES if family.exported_type)
            raise CheckpointError(f"a {self.model_type!r} tower cannot be exported; expected {known}")
        return {
            "model_type": self.exported_type,
            "num_channels": 3,
            **transformers_sizes(vision),
            "attention_dropout": 0.0,
        }

    def processor_settings(self, size: int) -> dict[str, Any]:
        """Returns what the image processor does to make square images of `size` pixels, but for colours."""
        return {"size": {"height": size, "width": size}}

    def build_image_processor(
        self, size: int, image_mean: Sequence[float], image_std: Sequence[float]
    ) -> Any:
        """Builds the image processor of such a tower, in its PIL form (no torchvision)."""
        import transformers

        settings = self.processor_settings(size)
        processor_class = getattr(transformers, f"{self.image_processor}Pil")
        return processor_class(**settings, image_mean=list(image_mean), image_std=list(image_std))

    def tensor_shapes(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Shape]:
        """Returns names and shapes of the tower's tensors, in the order of an export."""
        return dict(_shapes_of_built_tower(vision))

    def module_shapes(self, vision: VisionConfig) -> dict[str, Shape]:
        """Returns names and shapes of the tower's tensors, in the order of the built module."""
        return self.tensor_shapes(vision, pooling_head=True)

    def is_used(self, name: str, vision: VisionConfig) -> bool:
        """Whether the selected hidden state depends on a tensor."""
        return True

    def build(self, vision: VisionConfig) -> Any:
        """Builds the tower with random weights, in float32, with SDPA attention.

        Raises:
            ConfigError: transformers has no such tower.
        """
        import torch
        import transformers

        sizes = transformers_sizes(vision)
        if self.classes is not None:
            config_class, model_class = (getattr(transformers, name) for name in self.classes)
            config = config_class(**sizes)
            config._attn_implementation = "sdpa"
            return model_class(config)
        if vision.ffn_hidden_size % vision.hidden_size == 0:
            sizes["mlp_ratio"] = vision.ffn_hidden_size // vision.hidden_size  # DINOv2's way to say it
        try:
            config = transformers.AutoConfig.for_model(self.model_type, **sizes)
        except ValueError as error:
            known = ", ".join(repr(family.model_type) for family in VISION_FAMILIES if family.classes)
            raise ConfigError(
                f"vision_encoder.model_type: found {self.model_type!r}, expected {known} or a model type of "
                "transformers that has hidden states"
            ) from error
        return transformers.AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)

    def modules_run(self, tower: Any, vision: VisionConfig) -> list[Any] | None:
        """Returns the modules that make the selected hidden state, one after the other.

        None: nobody knows its layers; it runs as a whole.
        """
        if self.layers is None:
            return None
        before = [getattr(tower, name) for name in self.before_layers if hasattr(tower, name)]
        return before + list(tower.get_submodule(self.layers)[: num_layers_run(vision)])

    def hidden_state(self, tower: Any, pixel_values: Any, vision: VisionConfig) -> Any:
        """Returns the selected hidden state of pictures of any one shape, class tokens included.

        Learned positions are interpolated, as transformers does, where the pictures are not what they were learned on.
        """
        is_other = tuple(pixel_values.shape[-2:]) != (vision.image_size, vision.image_size)
        modules = self.modules_run(tower, vision)
        if modules is None:
            switch = {INTERPOLATE: True} if is_other and _has_switch(tower) else {}
            return tower(pixel_values, output_hidden_states=True, **switch).hidden_states[vision.select_layer]
        embeddings, *others = modules
        hidden = embeddings(
            pixel_values, **({INTERPOLATE: True} if is_other and _has_switch(embeddings) else {})
        )
        layers = set(self.blocks(tower))
        for module in others:
            hidden = module(hidden, attention_mask=None) if module in layers else module(hidden)
        return hidden

    def interpolated(self, positions: Any, vision: VisionConfig) -> Any:
        """Returns the learned positions that the tower adds to a square image of the size that it sees."""
        import torch

        with torch.device("meta"):
            tower = self.build(vision)
        module, _, name = str(self.positions).partition(".")
        embeddings = tower.get_submodule(module)
        weight = torch.nn.Parameter(positions.float(), requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        setattr(embeddings.get_submodule(owner), leaf, weight)
        kept = positions.numel() // positions.shape[-1] - (vision.image_size // vision.patch_size) ** 2
        asked = torch.empty(1, kept + (vision.side // vision.patch_size) ** 2, vision.hidden_size)
        found = embeddings.interpolate_pos_encoding(asked, vision.side, vision.side)
        return found.to(positions.dtype).view(*positions.shape[:-2], -1, vision.hidden_size)

    def blocks(self, tower: Any) -> list[Any]:
        """Returns the modules that FSDP may shard one by one: layers, and what does not run."""
        if self.layers is None:
            return []
        pooling = getattr(tower, POOLING.removesuffix("."), None)
        return [*tower.get_submodule(self.layers), *([] if pooling is None else [pooling])]


def _has_switch(module: Any) -> bool:
    """Whether a module of transformers interpolates learned positions only when it is told to."""
    return INTERPOLATE in signature(module.forward).parameters


def vision_family(model_type: str) -> VisionFamily:
    """Returns the registered family, else one for any tower of transformers that has hidden states."""
    return VISION_FAMILIES[model_type] if model_type in VISION_FAMILIES else VisionFamily(model_type, {})


def vision_config_from_hf(config: Mapping[str, Any], select_layer: int = -1) -> VisionConfig:
    """Reads the tower of a `config.json`: its own, or that of a CLIP, SigLIP or LLaVA model.

    `select_layer` is the index into the tower's hidden states (-1: the last layer's output); it is the recipe's
    choice, except that a LLaVA config brings its own `vision_feature_layer`.

    Raises:
        ConfigError: a tower that neva does not read.
    """
    part = section(config, "vision_config") if "vision_config" in config else config
    # transformers takes a LLaVA's tower without a type for CLIP
    fallback = "clip_vision_model" if config.get("model_type") == "llava" else config.get("model_type", "")
    stored_type = text({"model_type": fallback, **part}, "model_type")
    for family in VISION_FAMILIES:
        if stored_type in (family.model_type, family.exported_type):
            return family.read(part, one_layer(config.get("vision_feature_layer", select_layer)))
    raise ConfigError(
        f"model_type {shown(stored_type.removesuffix('_vision_model'))} is not a vision tower that neva reads; "
        f"expected one of {sorted(VISION_FAMILIES.names())}"
    )


def read_vision_config(folder: str | Path, select_layer: int = -1) -> VisionConfig:
    """Returns the sizes of the tower in a Hugging Face folder; see `vision_config_from_hf`.

    Raises:
        UserError: there is no `config.json`, or none that is read; the message names it.
    """
    with naming(Path(folder) / MODEL_CONFIG):
        return vision_config_from_hf(read_config(folder), select_layer)


def _refuse_uneven(vision: VisionConfig) -> None:
    """Raises ConfigError for a tower whose heads do not share its width evenly, or that sees less than a patch."""
    if vision.hidden_size % vision.num_heads:
        raise ConfigError(
            f"hidden_size is {vision.hidden_size}, which num_attention_heads {vision.num_heads} does not divide"
        )
    if vision.patch_size > vision.image_size:
        raise ConfigError(f"patch_size is {vision.patch_size}, more than image_size {vision.image_size}")


def transformers_sizes(vision: VisionConfig) -> dict[str, Any]:
    """Returns the sizes as the arguments of transformers' config classes."""
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.hidden_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "intermediate_size": vision.ffn_hidden_size,
        "hidden_act": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
    }


def hidden_states(num_layers: int) -> range:
    """Returns the indices of a tower's hidden states: 0 is the embedding, -1 the last layer's output."""
    return range(-num_layers - 1, num_layers + 1)


def num_layers_run(vision: VisionConfig) -> int:
    """Returns how many layers stand before the selected hidden state.

    Raises:
        ConfigError: the tower has no such hidden state.
    """
    states = hidden_states(vision.num_layers)
    if vision.select_layer not in states:
        raise ConfigError(
            f"vision_select_layer: found {vision.select_layer}, expected {states[0]}..{states[-1]} for a tower of "
            f"{vision.num_layers} layers"
        )
    return vision.select_layer % (vision.num_layers + 1)


@cache
def _shapes_of_built_tower(vision: VisionConfig) -> Mapping[str, Shape]:
    """Names and shapes of a tower whose make-up only transformers knows; it is built without memory."""
    import torch

    with torch.device("meta"):
        tower = vision_family(vision.model_type).build(vision)
    return {name: tuple(parameter.shape) for name, parameter in tower.named_parameters()}


def tower_shapes(vision: VisionConfig, pooling_head: bool) -> dict[str, Shape]:
    """Returns names and shapes of a tower in transformers 5.23's memory (no prefix), in the order of an export.

    `pooling_head` says whether a SigLIP tower has its attention pooling (`vision_use_head`).
    """
    return vision_family(vision.model_type).tensor_shapes(vision, pooling_head)


def stored_tower(vision: VisionConfig, naming: HFNaming) -> str:
    """Returns the prefix of a tower's tensors in a folder."""
    return naming.tower + vision_family(vision.model_type).wrapper


def tower_table(shapes: Mapping[str, Shape], hf_prefix: str) -> Table:
    """Returns the table of a tower of these names and shapes that is stored under `hf_prefix`."""
    rules = tuple(Rename(hf_prefix + name, TOWER + name, shape) for name, shape in shapes.items())
    ignored: tuple[str, ...] = (POSITION_BUFFERS, CONTRASTIVE_PARTS)
    if not any(name.startswith(POOLING) for name in shapes):
        ignored += (rf".*\b{re.escape(POOLING)}.*",)
    return Table(rules, ignored)
