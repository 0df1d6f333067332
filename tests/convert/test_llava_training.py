"""What haotian-liu/LLaVA leaves of its two stages and of LoRA: a projector, and adapters, beside a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file

from neva.constants import IMAGE_TOKEN_ID
from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.readers.nemo import open_model
from neva.errors import CheckpointError
from neva.formats.json import write_json
from neva.formats.nemo import open_nemo
from neva.inference.trained import open_trained
from neva.model.build import build_model
from tests.convert.llava import image_processor, write_tokenizer
from tests.convert.tiny import language_model, tower

pytestmark = pytest.mark.usefixtures("megatron")
VOCABULARY = 133
CHANGES = {"vocab_size": VOCABULARY}


class Trained:
    """The folders `text`, `clip`, and what LLaVA writes of them: `stage1`, `lora`, and both as whole models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text, vision = language_model("llama", changes=CHANGES), tower("clip")
        for name, model in (("text", text), ("clip", vision)):
            model.save_pretrained(folder / name)
        write_tokenizer(folder / "text", VOCABULARY)
        write_json(folder / "clip" / "preprocessor_config.json", image_processor("clip", 28))
        draw = torch.Generator().manual_seed(3)
        width, inner = text.config.hidden_size, vision.config.hidden_size
        shapes = {
            "0.weight": (width, inner),
            "0.bias": (width,),
            "2.weight": (width, width),
            "2.bias": (width,),
        }
        self.projector = {name: 0.2 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        self.config = text.config.to_dict() | {
            "model_type": "llava_llama",
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "mm_vision_tower": str(folder / "clip"),
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_hidden_size": inner,
        }
        self._write("stage1", {"mm_projector.bin": self._under("model.")})
        self._write("whole", {"model.safetensors": {**text.state_dict(), **self._under("model.")}})
        for name in ("lora", "rslora"):
            self._write_lora(name, language_model("llama", changes=CHANGES), draw)

    def _write_lora(self, name: str, text: Any, draw: torch.Generator) -> None:
        """Writes adapters beside the language model, and the whole model that peft makes of both."""
        targets = ["q_proj", "v_proj", "down_proj"]
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=targets, use_rslora=name == "rslora"
        )
        beside = peft.get_peft_model(text, lora)
        with torch.no_grad():
            for parameter, weight in sorted(beside.named_parameters()):
                if "lora_B" in parameter:
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))
        beside.save_pretrained(self.folder / name)
        self._write(name, {"non_lora_trainables.bin": self._under("base_model.model.model.")})
        merged = beside.merge_and_unload().state_dict()
        self._write(f"whole_{name}", {"model.safetensors": {**merged, **self._under("model.")}})

    def _under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}mm_projector.{name}": tensor for name, tensor in self.projector.items()}

    def _write(self, name: str, files: dict[str, dict[str, torch.Tensor]]) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        write_json(folder / "config.json", self.config)
        for file, tensors in files.items():
            if file.endswith(".safetensors"):
                save_file(tensors, folder / file)
                write_tokenizer(folder, VOCABULARY)
            else:
                torch.save(tensors, folder / file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("llava"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    found = open_nemo(path).weights
    return {name: found[name] for name in found}


@pytest.mark.parametrize(
    ("apart", "whole", "merge", "tolerance"),
    [
        ("stage1", "whole", False, 0.0),
        ("lora", "whole_lora", True, 1e-6),  # peft merges in another order
        ("rslora", "whole_rslora", True, 1e-6),
    ],
)
def test_it_becomes_the_model_that_it_was_trained_in(
    trained: Trained, tmp_path: Path, apart: str, whole: str, merge: bool, tolerance: float
) -> None:
    options = Options(llm_path=trained.folder / "text", merge=merge)
    convert(trained.folder / apart, tmp_path / "apart.nemo", options)
    convert(trained.folder / whole, tmp_path / "whole.nemo", Options())
    found, expected = weights(tmp_path / "apart.nemo"), weights(tmp_path / "whole.nemo")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0)
    convert(trained.folder / apart, tmp_path / "hf", options)
    assert json.loads((tmp_path / "hf" / "parity.json").read_text())["verified"]


def test_adapters_stay_beside_the_language_model(trained: Trained, tmp_path: Path) -> None:
    convert(trained.folder / "lora", tmp_path / "lora.nemo", Options(llm_path=trained.folder / "text"))
    convert(trained.folder / "whole_lora", tmp_path / "whole.nemo", Options())
    assert {name.split(".")[0] for name in weights(tmp_path / "lora.nemo")} == {"language_model", "projector"}
    config = open_nemo(tmp_path / "lora.nemo").config.mm_cfg
    named = [config.llm.from_pretrained, config.vision_encoder.from_pretrained]
    assert named == [str(trained.folder / name) for name in ("text", "clip")]
    logits = []
    for path in (tmp_path / "lora.nemo", tmp_path / "whole.nemo"):
        opened, answering = open_model(path), open_trained(path)
        model = build_model(opened.vision, opened.language, opened.connector).eval()
        answering.fill(model, answering.config)
        ids = torch.arange(3, 12 + opened.vision.num_tokens)[None] % 100
        ids[0, 2 : 2 + opened.vision.num_tokens] = IMAGE_TOKEN_ID
        draw = torch.Generator().manual_seed(1)
        pixels = torch.randn(1, 3, opened.vision.side, opened.vision.side, generator=draw)
        logits.append(model(ids, pixels).detach())
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("apart", ["stage1", "lora"])
def test_what_lies_elsewhere_is_asked_for(trained: Trained, tmp_path: Path, apart: str) -> None:
    source, target = trained.folder / apart, tmp_path / "x.nemo"
    with pytest.raises(CheckpointError, match="say with --llm_path wh"):
        convert(source, target, Options())
    with pytest.raises(
        CheckpointError, match="(expected the folder of a language model|expected a LLaVA model)"
    ):
        convert(source, target, Options(llm_path=trained.folder / "whole"))
    with pytest.raises(CheckpointError, match="is no folder here; give --vision_encoder_path"):
        elsewhere = Options(llm_path=trained.folder / "text", tower_path=tmp_path / "none")
        convert(source, target, elsewhere)
    assert not target.exists()


def test_more_than_a_projector_is_refused(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "stage1"
    folder.mkdir()
    write_json(folder / "config.json", trained.config)
    torch.save({"model.embed_tokens.weight": torch.zeros(2, 2)}, folder / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="holds model.embed_tokens.weight; expected a projector"):
        convert(folder, tmp_path / "x.nemo", Options(llm_path=trained.folder / "text"))
