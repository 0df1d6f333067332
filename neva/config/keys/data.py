"""`model.data.*`: records, images, templates, loader."""

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import ORDER, READING, ignored, key, refused
from neva.families.any_resolution import CAPPED_PATTERN
from neva.registry import SAMPLERS
from neva.templates.choice import template_choices
from neva.templates.template import names_elsewhere


@dataclass
class Data:
    """Training data."""

    data_path: str | list[str | dict[str, Any]] | dict[str, Any] = key(
        "LLaVA-format .json list or .jsonl lines, .tar shards, .parquet tables, an energon folder; or several of them: "
        "a list, or a table of {path, image_folder, weight} by name.",
        common=True,
    )
    image_folder: str | None = key(
        "Folder or .tar that the records' image paths are relative to; null: the data brings its images.",
        common=True,
    )
    max_media_mb: int = key("A member of a tar or table that is larger is a broken image.", low=1)
    datasets_exclude: list[str] = key('Records whose "dataset" is listed are left out.', fixed=ORDER)
    conv_template: str = key(
        "How a conversation becomes text.",
        choices=template_choices,
        elsewhere=names_elsewhere,
        common=True,
        fixed=READING,
    )
    template: dict[str, Any] | None = key(
        "With conv_template=free, the template (docs/data.md); with hf, {chat_template: …}; null: the tokenizer's.",
        fixed=READING,
    )
    system: str | None = key(
        "System prompt of conversations that bring none; null: the template's own.", fixed=READING
    )
    image_aspect_ratio: str = key(
        "square: resize and centre crop; pad: to a square first; pad_right_bottom: zeros behind the resized image; "
        "keep, native, naflex: whole, in its own shape; anyres, anyres_max_9, dynamic, grid: cut into tiles; see "
        "docs/data.md.",
        pattern=rf"^(square|pad|pad_right_bottom|keep|native|naflex|anyres|{CAPPED_PATTERN}|dynamic|grid)$",
        form="square, pad, pad_right_bottom, keep, native, naflex, anyres, anyres_max_9 or another number, dynamic, "
        "grid",
        fixed=READING,
    )
    image_grid_pinpoints: list[list[int]] | None = key(
        "With anyres, anyres_max_9: height, width of each resolution; null: 1x2, 2x1, 2x2, 3x1, 1x3 tiles, with "
        "anyres_max_9 all from 1x1 to 6x6.",
        fixed=READING,
    )
    min_num_tiles: int = key(
        "With dynamic: the fewest tiles of an image, without thumbnail.", low=1, fixed=READING
    )
    max_num_tiles: int = key("With dynamic: the most.", low=1, high=1024, fixed=READING)
    tile_grid: list[int] = key("With grid: rows, columns.", low=1, high=64, length=2, fixed=READING)
    use_thumbnail: bool = key(
        "With dynamic, grid: the whole image is one more tile, behind the others.", fixed=READING
    )
    shortest_edge: int = key(
        "With native: images with a shorter edge are enlarged, pixels.", low=1, high=8192, fixed=READING
    )
    longest_edge: int = key(
        "With native: images with a longer edge are scaled down, pixels.", low=1, high=8192, fixed=READING
    )
    do_image_splitting: bool = key(
        "With native: the quarters of an image are four more pictures, before the whole.", fixed=READING
    )
    max_num_patches: int = key("With naflex: the most patches of an image.", low=1, high=16384, fixed=READING)
    image_urls: bool = key(
        "Fetch images that records name by http:// or https://, and keep them beside the data."
    )
    max_image_num: int | None = key(
        "A record with more images and videos is a broken one; null: any number.", low=1
    )
    media_type: str = key(
        "image; video: records may have videos too, with <video>.", choices=("image", "video")
    )
    video_folder: str | None = key(
        "Folder that the records' video paths are relative to; null: image_folder."
    )
    num_frames: int = key("Frames of a video, spread evenly; -1: all of them.", low=-1, fixed=READING)
    splice_single_frame: str | None = key(
        "Only this frame of a video.", choices=("first", "middle", "last"), fixed=READING
    )
    sep_token_between_frames: bool = key("A new line between two frames of a video.", fixed=READING)
    video_reader: str = key("Library that decodes videos.", choices=("decord", "pyav"))
    jpeg_decoder: str = key(
        "Library that decodes JPEG files, to the same pixels; simplejpeg is faster.",
        choices=("pillow", "simplejpeg"),
    )
    exif_transpose: bool = key("Turn images by their EXIF orientation, as transformers' loaders do.")
    sep_image_conv_front: bool = key(
        "Move <image> to the front of its turn, on a line of its own.", fixed=READING
    )
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
        fixed=ORDER,
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
    odd_records: str = key(
        "A record that LLaVA reads, but not as it is written, such as one that begins with an answer: read it as LLaVA "
        "does and count it, fail, or skip and count.",
        choices=("llava", "fail", "skip"),
    )
    truncation: str = key(
        "A sample longer than encoder_seq_length: cut from the right, truncate_turns to whole questions and answers, "
        "drop and count, or fail as a broken record does.",
        choices=("cut", "truncate_turns", "drop", "fail"),
    )
    answer_loss_only: bool = key(
        "Learn answers alone; false: questions and the text around turns too.", fixed=READING
    )
    no_label: str = key(
        "A sample without a token to learn: drop and count, or fail as a broken record does.",
        choices=("drop", "fail"),
    )
    validation: str | None = key(
        "Records to validate on, which do not train; a file as data_path.", common=True
    )
    validation_image_folder: str | None = key("Folder of their images; null: image_folder.")
    validation_split: float = key(
        "Share of data_path, chosen by content, that validates and does not train.",
        low=0,
        below=1,
        fixed=ORDER,
    )
    validation_drop_last: bool = key("Validate on whole global batches only.")
    max_skipped: float = key(
        "More skipped, dropped or mismatched records than this share is an error.", low=0, high=1
    )
    packed_sequence: bool = key(
        "Several samples share a sequence without seeing each other; batch sizes then count sequences.",
        common=True,
        fixed=ORDER,
    )
    packed_length: int | None = key(
        "With packed_sequence: tokens of a sequence; null: encoder_seq_length.", low=1, fixed=ORDER
    )
    pad_to_multiple_of: int = key("A micro batch's length is rounded up to a multiple of this.", low=1)

    lazy_preprocess: Any = ignored("samples are always read and encoded when they are needed")
    is_multimodal: Any = refused(True, why="text-only records need no switch: leave out their image")
    eod_mask_loss: Any = refused(False, why="the end token after an answer always carries loss")
    data_prefix: Any = refused(
        None,
        why="neva packs the records of model.data.data_path itself and reads no packed .bin and .idx: give the former",
    )
