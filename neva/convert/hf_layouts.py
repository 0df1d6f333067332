"""transformers' LLaVA models and Idefics2: what the folder of each says of itself, and which model it can hold."""

from __future__ import annotations

from dataclasses import dataclass

from neva.config.model_config import media_rules_of
from neva.convert.lazy_model import LazyModel
from neva.families.naming import IDEFICS2, LLAVA_HF, LLAVA_NEXT, HFNaming
from neva.families.tiling import AnyResolution, NativeShape


@dataclass(frozen=True)
class HFLayout:
    """A model of transformers.

    Attributes:
        model_class: that loads it.
        processor: its classes of processor and image processor begin with this.
        naming: names of its tensors.
    """

    model_class: str
    processor: str
    naming: HFNaming

    @property
    def has_tiles(self) -> bool:
        """Whether images are cut into tiles, whose rows end with a newline."""
        return self.naming.newline is not None


LLAVA = HFLayout("LlavaForConditionalGeneration", "Llava", LLAVA_HF)
NEXT = HFLayout("LlavaNextForConditionalGeneration", "LlavaNext", LLAVA_NEXT)
IDEFICS = HFLayout("Idefics2ForConditionalGeneration", "Idefics2", IDEFICS2)
LAYOUTS = {layout.naming.model_type: layout for layout in (LLAVA, NEXT, IDEFICS)}


def layout_of(model: LazyModel) -> HFLayout:
    """Returns the layout that holds a model whose images are cut so; whether it holds the rest is for the writer."""
    tiling = media_rules_of(model.config, model.vision).tiling
    if isinstance(tiling, NativeShape):
        return IDEFICS
    return NEXT if isinstance(tiling, AnyResolution) else LLAVA


def pinpoints(model: LazyModel) -> list[list[int]]:
    """Returns height and width of each resolution that images of any resolution are shown in."""
    side = model.vision.side
    tiling = media_rules_of(model.config, model.vision).tiling
    return [[height, width] for width, height in tiling.fullest(side)]
