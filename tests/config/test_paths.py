"""Files and folders that a run needs."""

import json
from pathlib import Path

import pytest

from neva.config.load import load
from neva.config.paths import path_problems, run_folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory: relative paths lead nowhere."""
    monkeypatch.chdir(tmp_path)


def test_everything_that_is_missing_is_listed() -> None:
    keys = [problem.partition(":")[0] for problem in path_problems(load("llava_7b_finetune", []))]
    assert keys == [
        "model.data.data_path",
        "model.data.image_folder",
        "model.mm_cfg.llm.from_pretrained",
        "model.mm_cfg.vision_encoder.from_pretrained",
        "model.tokenizer.type",
        "model.mm_cfg.pretrain_mm_mlp_adapter",
    ]
    keys = [problem.partition(":")[0] for problem in path_problems(load("llava_7b_inference", []))]
    assert keys == ["neva_model_file", "prompt_file", "inference.images_base_path"]


def test_what_is_copied_into_the_run_folder_and_where_checkpoints_go_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    manager = [
        "+exp_manager.files_to_copy=[file,gone]",
        "+exp_manager.checkpoint_callback_params.dirpath=file/c",
    ]
    assert [
        line for line in path_problems(load("quickstart_pretrain", manager)) if "exp_manager" in line
    ] == [
        "exp_manager.files_to_copy: no file at gone",
        f"exp_manager.checkpoint_callback_params.dirpath file/c cannot be made: {tmp_path}/file is a file",
    ]


def test_answers_go_to_a_file() -> None:
    for output in (".", "/dev/full"):
        found = path_problems(load("quickstart_inference", [f"output_file={output}"]))
        assert f"output_file: {output} is no file: name one that answers are written to, a line each" in found


def test_a_partly_fetched_checkpoint_names_what_it_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "vicuna-7b-v1.5"
    folder.mkdir(parents=True)
    cfg = load("llava_7b_pretrain", [])

    def of_llm() -> list[str]:
        return [line for line in path_problems(cfg) if line.startswith("model.mm_cfg.llm")]

    prefix = "model.mm_cfg.llm.from_pretrained: checkpoints/vicuna-7b-v1.5"
    assert of_llm() == [
        f"{prefix} holds no config.json",
        f"{prefix} holds neither model.safetensors nor pytorch_model.bin (nor an index of either)",
    ]
    (folder / "config.json").write_text("{}")
    index = {
        "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").touch()
    assert of_llm() == [f"{prefix} lacks 2 of 3 weight files, first model-2.safetensors"]
    for number in (2, 3):
        (folder / f"model-{number}.safetensors").touch()
    assert of_llm() == []


def test_a_tokenizer_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "quickstart" / "tokenizer"
    folder.mkdir(parents=True)
    cfg = load("quickstart_pretrain", [])
    expected = "model.tokenizer.type: datasets/quickstart/tokenizer holds none of tokenizer.json"
    assert any(line.startswith(expected) for line in path_problems(cfg))
    (folder / "tokenizer.json").touch()
    assert not any(line.startswith("model.tokenizer") for line in path_problems(cfg))


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    cfg = load("quickstart_pretrain", ["exp_manager.exp_dir=results"])
    assert path_problems(cfg)[-1] == (
        f"the run folder results/quickstart_pretrain cannot be made: {tmp_path}/results is a file"
    )


def test_the_run_folder_is_exp_managers() -> None:
    assert run_folder(load("quickstart_pretrain", [])) == Path("nemo_experiments/quickstart_pretrain")
    assert run_folder(load("quickstart_pretrain", ["exp_manager.exp_dir=/x"])) == Path(
        "/x/quickstart_pretrain"
    )
    assert run_folder(load("quickstart_pretrain", ["exp_manager.explicit_log_dir=/y"])) == Path("/y")
    assert run_folder(load("llava_7b_inference", ["output_file=/z/answers.jsonl"])) == Path("/z")


@pytest.mark.parametrize("name", ["a b", "größe 漢字", "lr=1", "a,b", "[x]{y}(z)", "it's", "c:d;e"])
def test_a_folder_may_be_called_anything_in_a_quoted_override(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    cfg = load(
        "quickstart_finetune", [f'model.data.data_path="{folder}/d.json"', f'exp_manager.exp_dir="{folder}"']
    )
    assert cfg.model.data.data_path == f"{folder}/d.json"
    assert run_folder(cfg).parent == folder
    (folder / "d.json").write_text("[]")
    assert not [problem for problem in path_problems(cfg) if "data_path" in problem]
