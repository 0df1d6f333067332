"""The tree of `neva infer`: prompts in, answers out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import ignored, key, refused, section
from neva.config.keys.peft import INT8, NF4
from neva.config.keys.trainer import InferenceTrainer

_SERVER = "a model is served by `neva serve FILE.nemo`"
_SERVER_DETAIL = "acts with server only; `neva serve` has flags of its own"
_STEERLM = "NeVA does not read it either: a prompt of a SteerLM model may have a label, its key 'label' in prompt_file"
_CALIBRATED = (
    "NeMo calibrates activations on data (SmoothQuant, AWQ, fp8), neva packs weights alone: inference.quantization=nf4 "
    "or int8"
)


@dataclass
class Generation:
    """How answers are generated."""

    images_base_path: str = key("Folder that the prompts' image paths are relative to.", common=True)
    insert_image_token: str | None = key(
        "Side of a prompt with an image on which <image> is put where it has none; null: left.",
        choices=("left", "right"),
    )
    batch_size: int = key("Prompts that are answered together.", low=1, common=True)
    greedy: bool = key("The most probable token always.", common=True)
    temperature: float = key("Divides the logits; below 1 sharpens.", above=0, common=True)
    top_k: int = key("Sample from this many tokens; 0: all.", low=0)
    top_p: float = key("Sample from the smallest set with this probability.", above=0, high=1)
    repetition_penalty: float = key("Divides the logits of tokens seen before; 1: none.", above=0)
    tokens_to_generate: int = key("Longest answer, tokens.", low=1, common=True)
    min_tokens_to_generate: int = key("Shortest answer, tokens.", low=0)
    end_strings: list[str] = key("An answer also ends where one of these appears.")
    seed: int = key("Seed of the sampling.", low=0)
    add_BOS: bool = key(
        "A prompt begins with the beginning-of-sequence token where the template, as in training, has it there; "
        "false: never."
    )
    compute_logprob: bool = key("Result lines have the answer's tokens and their log probabilities.")
    quantization: str | None = key(
        "Pack the matrices of the language model's layers into 4 bits (nf4) or 8 (int8) when it is loaded; null: leave "
        "them as they are.",
        choices=(NF4, INT8),
        common=True,
    )
    all_probs: bool = key(
        "The same, and the log probabilities of the whole vocabulary in a file for each prompt."
    )

    media_type: Any = ignored(
        "whether prompts may have videos is model.data.media_type of the training", ("image", "video")
    )
    quality: Any = ignored(_STEERLM)
    toxicity: Any = ignored(_STEERLM)
    humor: Any = ignored(_STEERLM)
    creativity: Any = ignored(_STEERLM)
    violence: Any = ignored(_STEERLM)
    helpfulness: Any = ignored(_STEERLM)
    not_appropriate: Any = ignored(_STEERLM)


@dataclass
class Quantization:
    """NeMo's quantisation after training."""

    enable: Any = refused(False, why=_CALIBRATED)
    algorithm: Any = ignored("acts with quantization.enable only")


@dataclass
class Inference:
    """Root of an inference recipe."""

    dry_run: bool = key("Check and report, run nothing.")
    plugins: list[str] = key(
        "Your packages that register families, connectors, templates, sources, samplers.", optional=True
    )
    neva_model_file: str | None = key(
        "The .nemo, the folder it was extracted to, or the folder of a training checkpoint; null: see checkpoint_dir.",
        common=True,
    )
    checkpoint_dir: str | None = key("Folder of a run's checkpoints, where neva_model_file is null.")
    checkpoint_name: str | None = key("Name of the checkpoint in checkpoint_dir.")
    hparams_file: str | None = key(
        "Configuration of a checkpoint's run; null: config.yaml of its run folder."
    )
    use_ema: bool = key("Of a training checkpoint: answer with the moving average of its weights.")
    base_model_file: str | None = key("Language model, when the .nemo holds none; null: as recorded in it.")
    vision_encoder_path: str | None = key("Tower, when the .nemo holds none; null: as recorded in it.")
    tokenizer_type: str | None = key("Tokenizer folder; null: the one inside the .nemo.")
    prompt_file: str = key(".json list or .jsonl lines of {prompt | text, image}.", common=True)
    output_file: str = key("Answers, a JSON line each; an existing file is continued.", common=True)
    inference: Generation = section()
    trainer: InferenceTrainer = section()
    tensor_model_parallel_size: int = key("Ranks that share each layer.", low=1)
    pipeline_model_parallel_size: int = key("Ranks that the layers are assigned to.", low=1)
    quantization: Quantization = section()

    pipeline_model_parallel_split_rank: Any = ignored("there is no encoder-decoder model to split")
    cluster_type: Any = ignored("the launch environment is read from its variables")
    tokenizer_model: Any = refused(None, why="neva reads tokenizer.json folders: give tokenizer_type")
    server: Any = refused(False, why=_SERVER)
    port: Any = ignored(_SERVER_DETAIL)
    web_server: Any = ignored(_SERVER_DETAIL)
    share: Any = ignored(_SERVER_DETAIL)
    username: Any = ignored(_SERVER_DETAIL)
    password: Any = ignored(_SERVER_DETAIL)
    web_port: Any = ignored(_SERVER_DETAIL)
