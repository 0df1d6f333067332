"""`model.data.*`: records, images, templates, loader."""

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import ignored, key, refused
from neva.registry import SAMPLERS
from neva.templates.template import names_elsewhere, template_names

_VIDEO = "neva does not train on video yet"
_VIDEO_DETAIL = "acts with model.data.media_type=video only"
_NO_TEMPLATE = dict.fromkeys(
    ("llama_2", "nvgpt", "nv_steerlm", "nv_dpo"),
    "neva does not have this template yet: use v1, or chatml, llama_3 or mistral for models that were trained on it",
)
_NO_ASPECT = {"keep": "neva gives every image the tower's square size: use pad, which keeps the aspect ratio"}


@dataclass
class Data:
    """Training data."""

    data_path: str = key("LLaVA-format .json list or .jsonl lines.", common=True)
    image_folder: str = key("Folder that the records' image paths are relative to.", common=True)
    datasets_exclude: list[str] = key('Records whose "dataset" is listed are left out.')
    conv_template: str = key(
        "How a conversation becomes text.",
        choices=template_names,
        not_yet=_NO_TEMPLATE,
        elsewhere=names_elsewhere,
        common=True,
    )
    system: str | None = key("System prompt of conversations that bring none; null: the template's own.")
    image_aspect_ratio: str = key(
        "square: resize and centre crop; pad: to a square first; pad_right_bottom: zeros behind the resized image.",
        choices=("square", "pad", "pad_right_bottom"),
        not_yet=_NO_ASPECT,
    )
    exif_transpose: bool = key("Turn images by their EXIF orientation, as transformers' loaders do.")
    sep_image_conv_front: bool = key("Move <image> to the front of its turn, on a line of its own.")
    image_token_len: int | None = key("Positions of an image; follows from the tower.", low=1)
    crop_size: list[int] | None = key(
        "Height, width after the crop; follows from the tower.", low=1, length=2
    )
    image_size: list[int] | None = key(
        "Height, width of the tower's input; follows from the tower.", low=1, length=2
    )
    dataloader_type: str = key(
        "cyclic: a new permutation every epoch; sequential: the file's order, single: once; modality, length_grouped: "
        "global batches of one modality and similar length, of similar length.",
        choices=SAMPLERS.names,
    )
    longest_first: bool = key(
        "With modality, length_grouped: the longest sample comes first, so that a lack of memory shows at once."
    )
    on_change: str = key(
        "Data, order or seed that changed since the checkpoint: fail, or begin an epoch of its own.",
        choices=("fail", "new_epoch"),
    )
    num_workers: int = key("Processes that read and decode, on each rank.", low=0, common=True)
    on_error: str = key(
        "A missing or broken image, a malformed record: fail, or skip and count.", choices=("fail", "skip")
    )
    truncation: str = key(
        "A sample longer than encoder_seq_length: cut from the right, truncate_turns to whole questions and answers, "
        "drop and count, or fail as a broken record does.",
        choices=("cut", "truncate_turns", "drop", "fail"),
    )
    validation: str | None = key(
        "Records to validate on, which do not train; a file as data_path.", common=True
    )
    validation_image_folder: str | None = key("Folder of their images; null: image_folder.")
    validation_split: float = key(
        "Share of data_path, chosen by content, that validates and does not train.", low=0, below=1
    )
    validation_drop_last: bool = key("Validate on whole global batches only.")
    max_skipped: float = key("More skipped or dropped records than this share is an error.", low=0, high=1)
    pad_to_multiple_of: int = key("A micro batch's length is rounded up to a multiple of this.", low=1)

    media_type: Any = refused("image", why=_VIDEO)
    video_folder: Any = ignored(_VIDEO_DETAIL)
    num_frames: Any = ignored(_VIDEO_DETAIL)
    splice_single_frame: Any = ignored(_VIDEO_DETAIL)
    sep_token_between_frames: Any = ignored(_VIDEO_DETAIL)
    lazy_preprocess: Any = ignored("samples are always read and encoded when they are needed")
    is_multimodal: Any = refused(True, why="text-only records need no switch: leave out their image")
    eod_mask_loss: Any = refused(False, why="the end token after an answer always carries loss")
    packed_sequence: Any = refused(False, why="neva does not pack sequences yet")
    data_prefix: Any = refused(None, why="neva does not pack sequences yet; give model.data.data_path")
