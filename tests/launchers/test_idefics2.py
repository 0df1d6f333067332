"""Leopard's Idefics2 scripts: each flag is a key of a recipe, or is named with the reason."""

import subprocess
import sys
from pathlib import Path

import pytest

from neva.config.load import load
from neva.errors import ConfigError
from neva.launchers.idefics2 import (
    CONVERSIONS,
    RECIPES,
    SWITCHES,
    VALUES,
    conversion_command,
    export_command,
    train_command,
)

ROOT = Path(__file__).resolve().parents[2]
TOOLKIT = ROOT / "toolkits" / "model_checkpoints_convertor"


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_every_flag_is_a_key_that_the_recipe_takes(recipe):
    told = {
        "--image-size": "980",
        "--shortest-edge": "378",
        "--global-batch-size": "64",
        "--seq-length": "4096",
    }
    told |= {"--lr-warmup-iters": "2", "--pipeline-model-parallel-size": "1"}
    words = [flag for flag in SWITCHES if flag not in ("--fp16", "--freeze-perceiver")]
    for flag, (_, kind) in VALUES.items():
        if flag != "--load":  # a recipe that takes stage 1's projector takes no second one
            words += [flag, told.get(flag, {int: "8", float: "1e-6", str: "some/path"}[kind])]
    command = train_command(recipe, [*words, "--extra-vocab-size", "128"])
    cfg = load(recipe, command.words[2:])
    assert (cfg.model.data.longest_edge, cfg.model.data.shortest_edge, cfg.model.data.max_image_num) == (
        980,
        378,
        8,
    )
    assert cfg.model.mm_cfg.llm.freeze and cfg.model.data.answer_loss_only and cfg.trainer.skip_train
    assert cfg.trainer.max_epochs == -1 and list(command.effectless) == ["--extra-vocab-size"]


def test_what_is_left_out_says_what_it_says_there():
    words = train_command(RECIPES["finetune_idefics2_llama3.sh"], []).words
    assert {"model.mm_cfg.llm.freeze=false", "model.data.answer_loss_only=false"} < set(words)


@pytest.mark.parametrize(
    ("words", "message"), [(["--imagesize", "3"], "unrecognized"), (["--lr", "x"], "--lr: invalid float")]
)
def test_a_wrong_flag_is_one_sentence(words, message):
    with pytest.raises(ConfigError, match=message):
        train_command("idefics2_8b_finetune", words)


def test_an_export_lies_beside_its_checkpoint(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "run.nemo").touch()
    command = export_command([str(tmp_path / "run")])
    assert (command.verb, command.words[1]) == ("convert", f"{tmp_path}/run_hf")
    with pytest.raises(ConfigError, match=r"holds 0 \.nemo files"):
        export_command([str(ROOT / "examples")])


@pytest.mark.parametrize("script", CONVERSIONS)
def test_a_folder_is_converted_by_the_flags_of_the_program_that_the_script_calls(script):
    words = [
        "--load_path",
        "a/b",
        "--save_path",
        "c/d",
        "--target_params_dtype",
        "bf16",
        "--extra_num_vocabs",
        "125",
    ]
    command = conversion_command(script, words)
    tokens = ["--add_tokens", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    added = tokens if "llama3" in script else []
    assert (command.verb, command.words) == ("convert", ["a/b", "c/d.nemo", *added, "--precision", "bf16"])
    assert list(command.effectless) == ["--extra_num_vocabs"]
    with pytest.raises(ConfigError, match="--save_path"):
        conversion_command(script, words[:2])


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        (
            ROOT / "examples/idefics2/pretrain_idefics2_llama3.sh",
            ["--image-size", "378"],
            "model.data.longest_edge=378",
        ),
        (TOOLKIT / "idefics2_llama3/model_convertor.sh", ["--load_path", "a", "--save_path", "b"], "b.nemo"),
    ],
)
def test_a_script_prints_the_command(script, words, expected):
    done = subprocess.run(
        ["sh", str(script), "--print-only", *words],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("neva ") and expected in done.stdout
