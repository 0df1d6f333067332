"""Runs VLMEvalKit's `run.py` with an exported model added to its list; a program of the kit's own environment.

`KIT_PYTHON vlmevalkit_start.py SETTINGS.json ARGUMENTS…` imports nothing of neva. The kit's files stay as they are: its
table of models gets one entry more while it runs. What happened goes to the file that the settings name.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> None:
    """Runs the kit as `vlmevalkit.Settings` say, then writes the report."""
    settings = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    sys.path[0] = settings["kit"]
    make_torchvision_importable()
    kit = import_module("run")  # before CUDA is looked at: it gives each process its GPUs
    use_gloo_without_gpus()
    model = partial(adapter(), settings["model"], settings["max_new_tokens"], settings["is_plain"])
    if settings["model"] is not None:
        kit.supported_VLM[settings["name"]] = model
    sys.argv = [str(Path(settings["kit"], "run.py")), *arguments[1:]]
    kit.load_env()
    kit.main()
    if os.environ.get("RANK", "0") == "0":
        write_report(Path(settings["report"]), Path(settings["work"], settings["name"]), settings["kit"])


def make_torchvision_importable() -> None:
    """Declares the operators that a torchvision built for CUDA expects, where torch is built for CPUs.

    Nothing that asks about text answers calls them.
    """
    import torch

    try:
        import_module("torchvision")
    except ImportError:
        return  # what the kit lacks, it says itself
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        ExportedModel.kept = library  # the declarations live as long as it does
        import_module("torchvision")


def use_gloo_without_gpus() -> None:
    """Lets several processes of the kit, which asks for NCCL, talk over gloo where there is no GPU."""
    import torch
    from torch import distributed

    start = distributed.init_process_group

    def init_process_group(backend: str | None = None, **keywords: Any) -> None:
        start(backend=backend if torch.cuda.is_available() else "gloo", **keywords)

    distributed.init_process_group = init_process_group  # type: ignore[assignment]


class ExportedModel:
    """A llava-hf folder as the kit asks models.

    Args:
        folder: Hugging Face folder with processor and chat template.
        max_new_tokens: of an answer.
        is_plain: ask the question of a benchmark as it stands, without the kit's instructions.
        keywords: what the kit gives to models of some names.
    """

    kept: Any = None
    is_api = False
    asked: str | None = None
    """The first prompt that a process put."""

    def __init__(self, folder: str, max_new_tokens: int, is_plain: bool, **keywords: Any) -> None:
        import torch
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # Pillow's resizing, which training used; torchvision's differs in the second digit of a pixel
        pillow = (
            {"backend": "pil"} if int(version("transformers").split(".")[0]) >= 5 else {"use_fast": False}
        )
        self.processor = AutoProcessor.from_pretrained(folder, **pillow)
        dtype = "auto" if self.device == "cuda" else torch.float32
        model: Any = LlavaForConditionalGeneration.from_pretrained(folder, torch_dtype=dtype)
        self.model = model.to(self.device).eval()
        self.max_new_tokens = max_new_tokens
        self.is_plain = is_plain
        self.dump_image_func: Any = None

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether `build_prompt` asks: plain questions, or where the kit's LLaVA has prompts of its own."""
        return self.is_plain or bool(super().use_custom_prompt(dataset))  # type: ignore[misc]

    def build_prompt(self, line: Any, dataset: str | None = None) -> list[dict[str, str]]:
        """Returns pictures and question as the kit's messages."""
        if not self.is_plain:
            return super().build_prompt(line, dataset=dataset)  # type: ignore[misc]
        pictures = [{"type": "image", "value": path} for path in self.dump_image_func(line)]
        return [*pictures, {"type": "text", "value": str(line["question"])}]

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Returns the greedy answer to one user turn."""
        return self._answer([{"role": "user", "content": message}])

    def chat_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """Returns the greedy answer to the last turn of a conversation."""
        return self._answer(message)

    def _answer(self, turns: list[dict[str, Any]]) -> str:
        import torch
        from PIL import Image

        chat = [{"role": turn["role"], "content": self._content(turn["content"])} for turn in turns]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        ExportedModel.asked = ExportedModel.asked or text
        paths = [part["value"] for turn in turns for part in turn["content"] if part["type"] == "image"]
        pictures = [Image.open(path).convert("RGB") for path in paths] or None
        inputs = self.processor(images=pictures, text=text, return_tensors="pt").to(self.device)
        if pictures:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        return str(
            self.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ).strip()

    def _content(self, parts: list[dict[str, str]]) -> list[dict[str, str]] | str:
        """Returns a message for the chat template: as text with placeholders where pictures stand between words.

        A placeholder in the words of a benchmark stands for nothing and is taken out.
        """
        token = self.processor.image_token
        words = [{**part, "value": part["value"].replace(token, "")} for part in parts]
        kinds = [part["type"] for part in words]
        if kinds == sorted(kinds):  # "image" before "text"
            return [
                {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["value"]}
                for part in words
            ]
        return "".join(f"{token}\n" if part["type"] == "image" else part["value"] for part in words)


def adapter() -> type[ExportedModel]:
    """Returns the class that the kit starts: its own LLaVA's prompts, the exported model's answers."""
    stock = import_module("vlmeval.vlm").LLaVA
    return type("NevaExport", (ExportedModel, stock), {"INSTALL_REQ": False, "INTERLEAVE": True})


def write_report(path: Path, runs: Path, kit: str) -> None:
    """Writes where the newest run is, how many answers failed, and with what it ran."""
    newest = max(runs.glob("T*/status.json"), key=lambda status: status.stat().st_mtime, default=None)
    report: dict[str, Any] = {"run": None, "rows": []}
    if newest is not None:
        collect = import_module("vlmeval.smp").collect_run_benchmark_report
        report = {"run": str(newest.parent), "rows": collect(newest.parent)}
    report["first_prompt"] = ExportedModel.asked
    report["versions"] = {
        "vlmevalkit": commit(kit),
        "python": platform.python_version(),
        **{package: installed(package) for package in ("transformers", "torch", "tokenizers")},
    }
    path.write_text(json.dumps(report, default=str), encoding="utf-8")


def commit(folder: str) -> str | None:
    """Returns the commit of a checkout, with `+` behind it where files differ; None: it is no repository."""
    git = ["git", "-C", folder]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    return head.stdout.strip() + "+" * bool(changes.stdout.strip()) or None


def installed(package: str) -> str | None:
    """Returns the version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
