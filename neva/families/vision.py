"""What a family of vision towers is, and the family that a tower belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neva.errors import CheckpointError
from neva.families import built_tower
from neva.families.configs import VisionConfig
from neva.families.mapping import Shape
from neva.families.values import MOST_LAYERS, activation, number, side, whole
from neva.families.vision_sizes import (
    SAYS_NOTHING,
    in_order,
    listed,
    num_layers_run,
    refuse_uneven,
    transformers_sizes,
)
from neva.registry import VISION_FAMILIES

REGISTERS = "num_register_tokens"
"""Key of a `config.json`: leading tokens that are no patches and no class token."""


@dataclass(frozen=True)
class VisionFamily:
    """A kind of vision tower by its Hugging Face `model_type`; what no field says is asked of the built tower.

    A family of another make overrides the methods that differ.
    """

    model_type: str
    defaults: Mapping[str, Any] = field(hash=False)
    """What a partial `config.json` omits: the defaults of transformers' config class."""
    class_tokens: int = 0
    """Leading tokens of a hidden state that are no patches, but for registers."""
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
    before_layers: tuple[str, ...] = ("embeddings",)
    """Modules that run before the layers, those that there are."""
    last_norm: str | None = None
    """The norm behind the layers."""
    positions: str | None = None
    """Name of the learned positions; None: it has none, or none that are known to be interpolated."""
    unused: tuple[str, ...] = ()
    """Prefixes of tensors that no hidden state depends on, which a folder may lack."""
    also_loads: tuple[str, ...] = ()
    """Other families whose checkpoints hold the tensors of such a tower."""
    takes_pixels_alone: bool = True
    """Whether transformers calls the tower with nothing but pixels, as it does in its LLaVA."""
    other_keys: tuple[str, ...] | None = ()
    """Keys of `config.json` that say more of a tower than its sizes; None: all that are not known to say nothing."""

    def read(self, config: Mapping[str, Any], select_layer: int | tuple[int, ...]) -> VisionConfig:
        """Returns the sizes that the tower's part of a `config.json` gives; all leading tokens are dropped."""
        values = {**self.defaults, **config}
        others = {key: values[key] for key in values if self._says_more(key, values[key])}
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
            class_token_length=self.leading_tokens(others),
            others=in_order(others),
        )
        refuse_uneven(vision)
        num_layers_run(vision)
        return vision

    def _says_more(self, key: str, value: Any) -> bool:
        if self.other_keys is not None:
            return key in self.other_keys
        return key not in SAYS_NOTHING and isinstance(value, bool | int | float | str)

    def leading_tokens(self, others: Mapping[str, Any]) -> int:
        """Returns how many leading tokens of a hidden state are no patches: class tokens and registers."""
        return self.class_tokens + int(others.get(REGISTERS) or 0)

    def sizes(self, vision: VisionConfig) -> dict[str, Any]:
        """Returns what makes a tower, as the arguments of transformers' config class."""
        return {**transformers_sizes(vision), **{key: listed(value) for key, value in vision.others}}

    def write(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Any]:
        """Returns the `vision_config` of an export's `config.json`.

        Raises:
            CheckpointError: such a tower cannot be exported.
        """
        if self.exported_type is None:
            known = " or ".join(family.model_type for family in VISION_FAMILIES if family.exported_type)
            raise CheckpointError(f"a {self.model_type!r} tower cannot be exported; expected {known}")
        return {"model_type": self.exported_type, "num_channels": 3, **self.sizes(vision)}

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
        return dict(built_tower.shapes(self, vision))

    def file_names(self, vision: VisionConfig) -> Mapping[str, str]:
        """Returns the name of each tensor in a Hugging Face folder, without `wrapper`, where it has another one."""
        return built_tower.file_names(self, vision)

    def module_shapes(self, vision: VisionConfig) -> dict[str, Shape]:
        """Returns names and shapes of the tower's tensors, in the order of the built module."""
        return self.tensor_shapes(vision, pooling_head=True)

    def is_used(self, name: str, vision: VisionConfig) -> bool:
        """Whether what is selected depends on a tensor."""
        if self.layers is None:
            return True
        if layer := re.match(rf"{re.escape(self.layers)}\.(\d+)\.", name):
            return int(layer[1]) < num_layers_run(vision)
        run = (*self.before_layers, self.last_norm) if vision.post_layernorm else self.before_layers
        return name.startswith(tuple(f"{module}." for module in run)) and not name.startswith(self.unused)

    def build(self, vision: VisionConfig) -> Any:
        """Builds the tower with random weights, in float32, with SDPA attention.

        Raises:
            ConfigError: transformers has no such tower.
        """
        return built_tower.build(self, vision)

    def hidden_states(self, tower: Any, pixel_values: Any, vision: VisionConfig) -> list[Any]:
        """Returns the selected hidden states of pictures of any one shape, leading tokens included.

        Learned positions are interpolated, as transformers does, where the pictures are not what they were learned on.
        """
        is_other = tuple(pixel_values.shape[-2:]) != (vision.image_size, vision.image_size)
        if self.layers is None:
            states = tower(
                pixel_values, output_hidden_states=True, **built_tower.switch(tower, is_other)
            ).hidden_states
            return [states[layer] for layer in vision.select_layers]
        first, *others = (getattr(tower, name) for name in self.before_layers if hasattr(tower, name))
        hidden = self.embedded(first, pixel_values, is_other)
        for module in others:
            hidden = module(hidden)
        found, arguments = {0: hidden}, self.layer_arguments(tower, pixel_values)
        for run, layer in enumerate(tower.get_submodule(self.layers)[: num_layers_run(vision)], 1):
            hidden = found[run] = layer(hidden, **arguments)
        return [found[layer % (vision.num_layers + 1)] for layer in vision.select_layers]

    def embedded(self, module: Any, pixel_values: Any, is_other: bool) -> Any:
        """Returns what the embeddings make of pictures, which have another size or not."""
        return module(pixel_values, **self.first_arguments(module, pixel_values, is_other))

    def first_arguments(self, module: Any, pixel_values: Any, is_other: bool) -> dict[str, Any]:
        """Returns what the embeddings are called with beside the pictures, which have another size or not."""
        return built_tower.switch(module, is_other)

    def layer_arguments(self, tower: Any, pixel_values: Any) -> dict[str, Any]:
        """Returns what each layer is called with beside the hidden state."""
        return {}

    def normalised(self, tower: Any, hidden: Any) -> Any:
        """Returns a hidden state behind the tower's last norm."""
        assert self.last_norm is not None
        return tower.get_submodule(self.last_norm)(hidden)

    def blocks(self, tower: Any) -> list[Any]:
        """Returns the modules that FSDP may shard one by one: layers, and what does not run."""
        if self.layers is None:
            return []
        unused = [tower.get_submodule(name[:-1]) for name in self.unused if hasattr(tower, name[:-1])]
        return [*tower.get_submodule(self.layers), *unused]


def vision_family(model_type: str) -> VisionFamily:
    """Returns the registered family, else one for any tower of transformers that has hidden states."""
    if model_type in VISION_FAMILIES:
        return VISION_FAMILIES[model_type]
    return VisionFamily(model_type, {}, exported_type=model_type, other_keys=None)
