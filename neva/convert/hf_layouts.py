"""transformers' LLaVA models and Idefics2: what the folder of each says of itself, and which model it can hold."""

from __future__ import annotations

from dataclasses import dataclass

from neva.config.language import BIDIRECTIONAL, PREFIX
from neva.config.media import media_rules_of
from neva.convert.lazy_model import LazyModel
from neva.errors import CheckpointError
from neva.families.any_resolution import AnyResolution, CappedResolution
from neva.families.configs import LanguageConfig
from neva.families.naming import IDEFICS2, LLAVA_HF, LLAVA_NEXT, LLAVA_ONEVISION, HFNaming
from neva.families.own_shapes import NativeShape
from neva.families.vision import vision_family


@dataclass(frozen=True)
class HFLayout:
    """A model of transformers.

    Attributes:
        model_class: that loads it.
        processor: its classes of processor and image processor begin with this.
        naming: names of its tensors.
        has_videos: whether there is a token for videos, and a processor of them.
    """

    model_class: str
    processor: str
    naming: HFNaming
    has_videos: bool = False

    @property
    def has_tiles(self) -> bool:
        """Whether images are cut into tiles, whose rows end with a newline."""
        return self.naming.newline is not None


LLAVA = HFLayout("LlavaForConditionalGeneration", "Llava", LLAVA_HF)
NEXT = HFLayout("LlavaNextForConditionalGeneration", "LlavaNext", LLAVA_NEXT)
ONEVISION = HFLayout(
    "LlavaOnevisionForConditionalGeneration", "LlavaOnevision", LLAVA_ONEVISION, has_videos=True
)
IDEFICS = HFLayout("Idefics2ForConditionalGeneration", "Idefics2", IDEFICS2)
LAYOUTS = {layout.naming.model_type: layout for layout in (LLAVA, NEXT, ONEVISION, IDEFICS)}


def layout_of(model: LazyModel) -> HFLayout:
    """Returns the layout that holds a model whose images are cut so; whether it holds the rest is for the writer."""
    tiling = media_rules_of(model.config, model.vision).tiling
    if isinstance(tiling, NativeShape):
        return IDEFICS
    if isinstance(tiling, CappedResolution):
        return ONEVISION
    return NEXT if isinstance(tiling, AnyResolution) else LLAVA


def check_logits(language: LanguageConfig, name: object) -> None:
    """Raises CheckpointError for logits that no LLaVA of other systems computes."""
    if language.looks_ahead:
        attention = BIDIRECTIONAL if language.sees_whole_images else PREFIX
        raise CheckpointError(
            f"{name} was trained with image_attention={attention}, which transformers' LLaVA models do not compute: "
            "there is no export, keep it as a .nemo"
        )
    if language.form.logit_cap is not None:
        raise CheckpointError(
            f"{name}: final_logit_softcapping is {language.form.logit_cap}, which transformers' LLaVA models leave "
            "out, expected none: keep such a model as a .nemo"
        )


def check_towers(model: LazyModel) -> None:
    """Raises CheckpointError for what no LLaVA of other systems has in the place of a tower."""
    if model.vision.second is not None:
        raise CheckpointError(
            f"{model.name} has two towers, which no layout of Hugging Face folders holds: there is no export, keep it "
            "as a .nemo"
        )
    if not vision_family(model.vision.model_type).takes_pixels_alone:
        raise CheckpointError(
            f"{model.name} has a {model.vision.model_type!r} tower, which needs the shape of each picture, and "
            "transformers' LLaVA gives its tower pixels alone: there is no export, keep it as a .nemo"
        )


def pinpoints(model: LazyModel) -> list[list[int]]:
    """Returns height and width of each resolution that images of any resolution are shown in."""
    side = model.vision.side
    tiling = media_rules_of(model.config, model.vision).tiling
    assert isinstance(tiling, AnyResolution)
    return [[rows * side, columns * side] for rows, columns in tiling.shapes(side)]
