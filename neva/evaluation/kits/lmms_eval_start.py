"""Runs lmms-eval benchmark by benchmark on an exported model or a server; a program of the kit's own environment.

`KIT_PYTHON lmms_eval_start.py SETTINGS.json ARGUMENTS…` imports nothing of neva. The kit's command line notes an error
and ends with 0; here it is the benchmark's result. What happened goes to the file that the settings name.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import traceback
from argparse import Namespace
from functools import cache, wraps
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REQUEST_FAILED = "[LMMS_EVAL_REQUEST_FAILED"
"""In place of an answer that a server did not give."""
PACKAGES = ("transformers", "torch", "tokenizers")
ASKED: list[str] = []
"""The first prompt that the chat template made."""


def main(arguments: list[str]) -> None:
    """Runs the kit as the settings of `neva.evaluation.kits.lmms_eval` say, then writes the report."""
    sys.path.pop(0)  # this folder, where a module is called as the kit is
    settings = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if find_spec("decord") is None:  # no wheel for aarch64; the kit's llava_hf imports it for videos alone
        sys.modules["decord"] = SimpleNamespace(VideoReader=None, cpu=None)  # type: ignore[assignment]
    kit = import_module("lmms_eval.__main__")
    kit.Accelerator()  # brings processes together before the kit asks whether they are
    options = parsed(kit, settings, arguments[1:])
    read_tasks_once(kit, settings["is_local"])
    if settings["model"] is not None:
        watch_the_export()
    found = {name: ran(kit, options, name, processes) for name in settings["tasks"]}
    if os.environ.get("RANK", "0") == "0":
        own = {"lmms-eval": version("lmms-eval"), "python": platform.python_version()}
        versions = {**own, **{package: version(package) for package in PACKAGES}}
        report = {"benchmarks": found, "first_prompt": next(iter(ASKED), None), "versions": versions}
        Path(settings["report"]).write_text(json.dumps(report, default=str), encoding="utf-8")


def read_tasks_once(kit: Any, is_local: bool) -> None:
    """Has the kit read its table of tasks once, and none but those of `--include_path` where all are files."""
    stock = kit.TaskManager

    @cache
    def table(verbosity: str = "INFO", include_path: str | None = None, model_name: str | None = None) -> Any:
        return stock(
            verbosity, include_path=include_path, include_defaults=not is_local, model_name=model_name
        )

    kit.TaskManager = table


def watch_the_export() -> None:
    """Keeps the first prompt, and has answers end where the export says.

    The kit ends them at the tokenizer's end of text alone; templates such as ChatML end a turn with another token.
    """
    from transformers import LlavaForConditionalGeneration, ProcessorMixin

    generate, rendered = LlavaForConditionalGeneration.generate, ProcessorMixin.apply_chat_template

    @wraps(generate)
    def generate_to_own_end(self: Any, *inputs: Any, **keywords: Any) -> Any:
        kept = {key: value for key, value in keywords.items() if key not in ("eos_token_id", "pad_token_id")}
        return generate(self, *inputs, **kept)

    @wraps(rendered)
    def render(self: Any, *inputs: Any, **keywords: Any) -> Any:
        text = rendered(self, *inputs, **keywords)
        ASKED.extend([text] if isinstance(text, str) and not ASKED else [])
        return text

    LlavaForConditionalGeneration.generate = generate_to_own_end  # type: ignore[method-assign]
    ProcessorMixin.apply_chat_template = render  # type: ignore[method-assign]


def parsed(kit: Any, settings: dict[str, Any], more: list[str]) -> Namespace:
    """Returns the kit's options; what the user adds goes before what neva says."""
    sys.argv = ["lmms_eval", "--log_samples", "--output_path", "details", "--batch_size", "1"]
    sys.argv += [*settings["words"], *more]
    options: Namespace = kit.parse_eval_args()[1]
    if settings["model"] is None:
        options.model = "openai"
        own = {"model_version": settings["name"], "num_concurrent": settings["num_processes"]}
    else:
        options.model = "llava_hf"
        own = {"pretrained": settings["model"], **device()}
    words = [f"{key}={value}" for key, value in own.items()]
    options.model_args = ",".join([*words, *filter(None, [options.model_args])])
    return options


def device() -> dict[str, str]:
    """Returns where the kit's `llava_hf` puts the model, and its precision."""
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "device_map": "cpu", "dtype": "float32"}
    if "LOCAL_RANK" in os.environ:
        return {"dtype": "auto"}  # the kit gives each process its GPU
    return {"device": "cuda:0", "device_map": "cuda:0", "dtype": "auto"}


def ran(kit: Any, options: Namespace, name: str, processes: int) -> dict[str, Any]:
    """Returns what a benchmark gave, or why it gave nothing."""
    try:
        results, samples = kit.cli_evaluate_single(Namespace(**{**vars(options), "tasks": name}))
    except Exception as error:
        if processes > 1:
            raise  # the others wait for this one
        traceback.print_exc()
        return {"problem": said(error), "tasks": {}}
    if results is None:
        return {"problem": None, "tasks": {}}  # not the first process
    counts = results["n-samples"]
    tasks = {
        task: {
            "figures": {
                key.removesuffix(",none"): float(value)
                for key, value in figures.items()
                if isinstance(value, Real) and "stderr" not in key
            },
            "is_for_submission": any(key.startswith("submission") for key in figures),
            "questions": counts[task]["effective"] if task in counts else None,
            "unanswered": unanswered(samples.get(task, []), results["configs"].get(task, {}), options),
        }
        for task, figures in results["results"].items()
    }
    return {"problem": None, "tasks": tasks}


def said(error: BaseException) -> str:
    """Returns the error that others came from: that a download was tried again says little."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def unanswered(samples: list[dict[str, Any]], config: dict[str, Any], options: Namespace) -> int:
    """Returns how many questions the model failed to answer: the kit scores nothing or a sentence in their place."""
    if options.force_simple or config.get("output_type") != "generate_until":
        return 0
    # the kit takes out `resps` where filters have changed nothing
    texts = [str(sample.get("resps", sample["filtered_resps"])) for sample in samples]
    return sum(
        None in sample["token_counts"] or REQUEST_FAILED in text
        for sample, text in zip(samples, texts, strict=True)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
