"""Files and folders that a configuration names: are they there, and can results be written?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import DictConfig

from neva.config.data_sources import missing_folders, missing_records
from neva.config.tower import SECOND_ENCODER
from neva.errors import ConfigError
from neva.formats.hf_files import MODEL_CONFIG, TOKENIZER_FILES, WEIGHT_FILES, weight_map, weights_file
from neva.formats.json import read_object
from neva.formats.nemo_header import is_nemo, nemo_tokenizer


def run_folder(cfg: DictConfig) -> Path:
    """Returns where exp_manager puts a training run; the folder of the answers for inference."""
    if "exp_manager" not in cfg:
        return Path(cfg.output_file).parent
    manager = cfg.exp_manager
    if manager.explicit_log_dir is not None:
        return Path(manager.explicit_log_dir)
    return Path(manager.exp_dir or "nemo_experiments") / manager.name


def checkpoint_folder(cfg: DictConfig) -> Path:
    """Returns the folder of a training run's checkpoints."""
    manager = cfg.exp_manager
    given = manager.checkpoint_callback_params.get("dirpath")
    return (
        Path(given) if given is not None else run_folder(cfg) / (manager.get("version") or "") / "checkpoints"
    )


VERTEX_VARIABLES = ("AIP_CHECKPOINT_DIR", "AIP_MODEL_DIR")
"""Where Vertex AI wants checkpoints and models of a custom job; the first that is there counts."""

BUCKET, MOUNTED = "gs://", "/gcs/"
"""How a bucket is written, and where Vertex AI mounts it."""


def vertex_folder(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the folder that Vertex AI names for the output of a custom job, None elsewhere."""
    named = next((environment[name] for name in VERTEX_VARIABLES if environment.get(name)), None)
    if named is None or not named.startswith(BUCKET):
        return named
    return MOUNTED + named.removeprefix(BUCKET)


def model_source(cfg: DictConfig) -> Path:
    """Returns what an inference tree answers with: a `.nemo`, a folder, or a training checkpoint."""
    if cfg.neva_model_file is not None:
        return Path(cfg.neva_model_file)
    return Path(cfg.checkpoint_dir) / cfg.checkpoint_name


def path_problems(cfg: DictConfig) -> list[str]:
    """Returns a line for every file or folder of a resolved tree that is missing, incomplete or not writable."""
    problems = _training(cfg) if "model" in cfg else _inference(cfg)
    return [*problems, *_not_writable("the run folder", run_folder(cfg))]


def _training(cfg: DictConfig) -> Iterator[str]:
    model, mm_cfg, tokenizer = cfg.model, cfg.model.mm_cfg, cfg.model.tokenizer
    yield from missing_records(model.data)
    yield from missing_folders(model.data)
    if model.data.media_type == "video" and model.data.video_folder is not None:
        yield from _no_folder("model.data.video_folder", model.data.video_folder)
    if model.data.validation is not None:
        yield from _not_there("model.data.validation", "file", model.data.validation)
    if model.data.validation_image_folder is not None:
        yield from _not_there(
            "model.data.validation_image_folder", "folder", model.data.validation_image_folder
        )
    samples = cfg.trainer.samples
    if samples.prompt_file is not None:
        yield from _no_file("trainer.samples.prompt_file", samples.prompt_file)
    if samples.images_base_path is not None:
        yield from _no_folder("trainer.samples.images_base_path", samples.images_base_path)
    second = [
        (f"model.mm_cfg.{SECOND_ENCODER}.from_pretrained", tower.from_pretrained)
        for tower in (mm_cfg.get(SECOND_ENCODER),)
        if tower is not None
    ]
    for key, source in (
        ("model.mm_cfg.llm.from_pretrained", mm_cfg.llm.from_pretrained),
        ("model.mm_cfg.vision_encoder.from_pretrained", mm_cfg.vision_encoder.from_pretrained),
        *second,
    ):
        yield from _no_weights(key, source)
    if tokenizer.library == "sentencepiece":
        yield from _no_file("model.tokenizer.model", tokenizer.model)
    else:
        yield from _no_tokenizer("model.tokenizer.type", tokenizer.type)
    for key, source in (
        ("model.mm_cfg.pretrain_mm_mlp_adapter", mm_cfg.pretrain_mm_mlp_adapter),
        ("model.restore_from_path", model.restore_from_path),
        ("exp_manager.resume_from_checkpoint", cfg.exp_manager.resume_from_checkpoint),
    ):
        if source is not None and not Path(source).exists():
            yield f"{key}: no file or folder at {source}"
    for file in cfg.exp_manager.get("files_to_copy") or []:
        yield from _no_file("exp_manager.files_to_copy", file)
    if (folder := cfg.exp_manager.checkpoint_callback_params.get("dirpath")) is not None:
        yield from _not_writable("exp_manager.checkpoint_callback_params.dirpath", Path(folder))


def _inference(cfg: DictConfig) -> Iterator[str]:
    source, key = model_source(cfg), "checkpoint_name" if cfg.neva_model_file is None else "neva_model_file"
    if not source.exists():
        yield f"{key}: no .nemo, extracted folder or checkpoint at {source}"
    if cfg.hparams_file is not None:
        yield from _no_file("hparams_file", cfg.hparams_file)
    yield from _no_weights("base_model_file", cfg.base_model_file)
    yield from _no_weights("vision_encoder_path", cfg.vision_encoder_path)
    if cfg.tokenizer_type is not None:
        yield from _no_tokenizer("tokenizer_type", cfg.tokenizer_type)
    yield from _no_file("prompt_file", cfg.prompt_file)
    yield from _no_folder("inference.images_base_path", cfg.inference.images_base_path)
    output = Path(cfg.output_file)
    if output.exists() and not output.is_file():
        yield f"output_file: {output} is no file: name one that answers are written to, a line each"


def _no_file(key: str, path: str) -> Iterator[str]:
    if not Path(path).is_file():
        yield f"{key}: no file at {path}"


def _not_there(key: str, what: str, path: str) -> Iterator[str]:
    """Data may be a file or a folder, and so may be its images."""
    if not Path(path).exists():
        yield f"{key}: no {what} at {path}"


def _no_folder(key: str, path: str) -> Iterator[str]:
    if not Path(path).is_dir():
        yield f"{key}: no folder at {path}"


def _no_tokenizer(key: str, path: str) -> Iterator[str]:
    files = nemo_tokenizer(path)
    if not Path(path).exists():
        yield f"{key}: no folder, tokenizer.json or .nemo at {path}"
    elif files is not None and not {"tokenizer.json", "tokenizer.model"} & files.keys():
        yield f"{key}: {path} holds no tokenizer.json: give the folder of the tokenizer"
    elif (
        files is None
        and Path(path).is_dir()
        and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES)
    ):
        yield f"{key}: {path} holds none of {', '.join(TOKENIZER_FILES)}"


def _no_weights(key: str, source: str | None) -> Iterator[str]:
    """Problems of a Hugging Face folder or a .nemo; a partly fetched folder names what it lacks."""
    if source is None or is_nemo(source):
        return
    folder = Path(source)
    if not folder.is_dir():
        yield f"{key}: no folder at {source}: fetch the checkpoint, or set the key to null for random weights"
        return
    if not (folder / MODEL_CONFIG).is_file():
        yield f"{key}: {source} holds no {MODEL_CONFIG}"
    found = weights_file(folder)
    if found is None:
        yield f"{key}: {source} holds neither {' nor '.join(WEIGHT_FILES)} (nor an index of either)"
        return
    is_index = found.name not in WEIGHT_FILES
    shards = set(weight_map(read_object(found, ConfigError), found).values()) if is_index else set()
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        yield f"{key}: {source} lacks {len(missing)} of {len(shards)} weight files, first {missing[0]}"


def _not_writable(name: str, folder: Path) -> Iterator[str]:
    nearest = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not nearest.is_dir():
        yield f"{name} {folder} cannot be made: {nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield f"{name} {folder} is not writable: no permission to write in {nearest}"
