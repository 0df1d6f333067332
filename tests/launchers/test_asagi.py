"""Megatron-VLM's launcher and converters: what each flag becomes, and what each wrong one is answered with."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neva.config.load import load
from neva.errors import ConfigError, UserError
from neva.launchers.asagi import train_command
from neva.launchers.asagi_convert import build_command, to_hf_command, to_megatron_command
from neva.launchers.asagi_flags import NO_EFFECT
from neva.launchers.command import NevaCommand, print_and_run
from tests.conftest import processor_s
from tests.launchers.nemo import write_nemo

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    "train/run",
    "convert/build_llava_jp",
    "convert/convert_hf_to_megatron",
    "convert/convert_megatron_to_hf",
]
LLAVA_1_5 = {
    "model_type": "llava",
    "text_config": {"model_type": "llama", "vocab_size": 32128, "rms_norm_eps": 1e-5},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, str]:
    """The four folders of a run, all of them there."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps(LLAVA_1_5))
    write_nemo(tmp_path / "mg/llava.nemo", None, ["language_model.x", "projector.0.weight"])
    (tmp_path / "data.json").write_text(json.dumps([{}] * 25600))
    return {
        "--megatron-load-dir": str(tmp_path / "mg"),
        "--tokenizer-load-dir": str(tmp_path / "hf"),
        "--save-dir": str(tmp_path / "out"),
        "--data-path": str(tmp_path / "data.json"),
    }


def command_of(flags: dict[str, str], *more: str) -> NevaCommand:
    """The command of `flags` and of words behind them."""
    return train_command([*(word for pair in flags.items() for word in pair), *more])


def settings(command: NevaCommand) -> dict[str, str]:
    """Key and value of each override of a command."""
    return dict(word.split("=", 1) for word in command.words if "=" in word)


STAGE_1 = shlex.split(
    "-g 1 --tp 1 --pp 1 --node 1 --name llavajp1b-tp1-pp1-bf16-stage1 --sif-path ./demo.sif --stage 1 --freeze-lm "
    "--save-interval 2000 --wandb"
)
STAGE_2 = shlex.split(
    "-g 8 --tp 4 --pp 1 --node 1 --name llavajp13b-tp4-pp1-dp2-stage2 --sif-path ./demo.sif --stage 2 "
    "--save-interval 2000 --wandb"
)
FIXED = {
    "model/llm": "from_checkpoint",
    "model/vision_encoder": "from_checkpoint",
    "trainer.num_nodes": "1",
    "trainer.accelerator": "auto",
    "model.data.conv_template": "japanese",
    "model.data.image_aspect_ratio": "pad",
    "model.data.num_workers": "1",
    "model.encoder_seq_length": "1024",
    "trainer.max_epochs": "-1",
    "model.optim.weight_decay": "0.1",
    "model.optim.betas": "[0.9,0.999]",
    "model.optim.sched.min_lr": "1e-08",
    "model.pipeline_model_parallel_size": "1",
    "model.optim.name": "fused_adam",
    "model.activations_checkpoint_granularity": "selective",
    "model.activations_checkpoint_method": "null",
    "model.activations_checkpoint_num_layers": "null",
    "trainer.log_every_n_steps": "1",
    "exp_manager.resume_if_exists": "true",
    "exp_manager.checkpoint_callback_params.every_n_train_steps": "2000",
    "exp_manager.create_wandb_logger": "true",
    "exp_manager.wandb_logger_kwargs.project": "megatron-llava",
}


@pytest.mark.parametrize(
    ("words", "recipe", "expected"),
    [
        (
            STAGE_1,
            "asagi_14b_pretrain",
            {
                "trainer.devices": "1",
                "trainer.max_steps": "100",
                "model.global_batch_size": "256",
                "model.micro_batch_size": "16",
                "model.optim.lr": "0.001",
                "model.optim.sched.warmup_steps": "3",
                "model.mm_cfg.llm.freeze": "true",
                "model.tensor_model_parallel_size": "1",
                "exp_manager.name": "llavajp1b-tp1-pp1-bf16-stage1-tp1-pp1-gpus1",
            },
        ),
        (
            STAGE_2,
            "asagi_14b_finetune",
            {
                "trainer.devices": "8",
                "trainer.max_steps": "200",
                "model.global_batch_size": "128",
                "model.micro_batch_size": "1",
                "model.optim.lr": "2e-05",
                "model.optim.sched.warmup_steps": "6",
                "model.mm_cfg.llm.freeze": "false",
                "model.tensor_model_parallel_size": "4",
                "exp_manager.name": "llavajp13b-tp4-pp1-dp2-stage2-tp4-pp1-gpus8",
            },
        ),
    ],
)
def test_the_commands_of_the_page_become_these_overrides(
    flags: dict[str, str], tmp_path: Path, words: list[str], recipe: str, expected: dict[str, str]
) -> None:
    command = command_of(flags, *words)
    paths = {
        "model.data.data_path": flags["--data-path"],
        "model.data.image_folder": str(tmp_path),
        "model.mm_cfg.llm.from_pretrained": f"{tmp_path}/mg/llava.nemo",
        "model.mm_cfg.vision_encoder.from_pretrained": f"{tmp_path}/hf",
        "model.mm_cfg.pretrain_mm_mlp_adapter": f"{tmp_path}/mg/llava.nemo",
        "exp_manager.exp_dir": f"{tmp_path}/out",
        "exp_manager.wandb_logger_kwargs.name": expected["exp_manager.name"],
    }
    assert command.words[:2] == ["--config-name", recipe]
    assert settings(command) == FIXED | paths | expected
    assert set(command.effectless) == {"--sif-path"}
    cfg = load(recipe, command.words[2:])
    assert (cfg.model.num_layers, cfg.model.vocab_size, cfg.model.data.image_token_len) == (32, 32128, 576)
    assert cfg.model.mm_cfg.vision_encoder.vision_select_layer == -2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--dist-optim", {"model.optim.name": "distributed_fused_adam"}),
        ("--lr 3e-4 --adam-beta2 0.95", {"model.optim.lr": "0.0003", "model.optim.betas": "[0.9,0.95]"}),
        ("--train-iters 1000", {"trainer.max_steps": "1000", "model.optim.sched.warmup_steps": "30"}),
        ("--train-iters -1", {"trainer.max_steps": "200"}),
        ("--seq-length 2048", {"model.encoder_seq_length": "2048"}),
        (
            "--num-workers 4 --log-interval 5",
            {"model.data.num_workers": "4", "trainer.log_every_n_steps": "5"},
        ),
        ("--stage 2 --freeze-lm", {"model.mm_cfg.llm.freeze": "true"}),
        ("--use-fixed-attn-mask", {"model.image_attention": "bidirectional"}),
        ("--stage 1", {"model.mm_cfg.llm.freeze": "true"}),
        ("--alert-spike --spike-thr 1.5", {"trainer.loss_spike_ratio": "2.5"}),
        ("--deterministic", {"trainer.deterministic": "true"}),
        ("--fp8", {"model.fp8": "true"}),
        (
            "--skip-train-iteration-range 300-400 105-111 100-110 112-120",
            {"trainer.skip_steps": "[[100,120],[300,400]]"},
        ),
        (
            "--micro-batch-size 4 --global-batch-size 64",
            {"model.micro_batch_size": "4", "trainer.max_steps": "400"},
        ),
        ("--tp 2 --pp 2", {"trainer.devices": "4", "exp_manager.name": "tp2-pp2-gpus4"}),
        ("--gpu-ids 4,5", {"trainer.devices": "2"}),
        ("--image-folder /path/images", {"model.data.image_folder": "/path/images"}),
        (
            "--debug --tp 8",
            {"model.global_batch_size": "1", "model.optim.lr": "0.0001", "trainer.devices": "1"},
        ),
    ],
)
def test_a_flag_becomes_its_overrides_and_the_tree_is_valid(
    flags: dict[str, str], words: str, expected: dict[str, str]
) -> None:
    command = command_of(flags, *words.split())
    assert settings(command) | expected == settings(command)
    load(command.words[1], command.words[2:])


def test_several_nodes_hear_of_each_other(flags: dict[str, str]) -> None:
    words = (
        "-g 8 --tp 4 --node 2 -r 1 -m 10.0.0.1 -p 6000 --interface eth0 --gpu-ids 0,1,2,3,4,5,6,7 --name x"
    )
    command = command_of(flags, *words.split())
    assert command.environment == {
        "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
        "NCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "6000",
    }
    assert settings(command)["exp_manager.name"] == "x-tp4-pp1-gpus8-nodes2"


def test_flags_without_effect_are_named_with_their_reasons(flags: dict[str, str]) -> None:
    words = (
        "--save --save-optim --dist-ckpt --sif-path x.sif --is-on-aws --slack-uid U --backend gloo "
        "--rdzv-port 1 --image-token-id 5 --pad-token-id 6 --lang en --loss-scale 16384 --slurm-job-id 7 "
        "--slurm-output-name o --fused-attn --flash-attn --no-add-class-token"
    )
    command = command_of(flags, *words.split())
    assert command.effectless == NO_EFFECT
    assert settings(command) == settings(command_of(flags))


def test_what_differs_depends_on_the_tower(flags: dict[str, str], tmp_path: Path) -> None:
    kept, dropped = command_of(flags).differences, command_of(flags, "--no-add-class-token").differences
    assert set(kept) - set(dropped) == {difference for difference in kept if "class token" in difference}
    tower = {"vision_config": {"model_type": "siglip_vision_model"}}
    (tmp_path / "hf/config.json").write_text(json.dumps(tower))
    assert not any("class token" in found or "statistics" in found for found in command_of(flags).differences)


def test_stage_two_goes_on_from_the_run_of_stage_one(flags: dict[str, str], tmp_path: Path) -> None:
    nemo = write_nemo(tmp_path / "out/one/checkpoints/one.nemo", "mg/llava.nemo", ["projector.0.weight"])
    found = settings(command_of({**flags, "--megatron-load-dir": str(tmp_path / "out/one")}))
    assert found["model.mm_cfg.llm.from_pretrained"] == "mg/llava.nemo"
    assert found["model.mm_cfg.pretrain_mm_mlp_adapter"] == str(nemo)


def test_load_optim_continues_a_run_and_nothing_else_does(flags: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "out/tp1-pp1-gpus1"
    with pytest.raises(ConfigError, match=r"^--load-optim found no checkpoint in .*/checkpoints, expected"):
        command_of(flags, "--load-optim")
    (run / "checkpoints/step=2-last").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"holds checkpoints of an earlier run: give --load-optim to continue"
    ):
        command_of(flags)
    first = settings(command_of(flags, "--load-optim"))
    assert first["model.mm_cfg.llm.from_pretrained"] == f"{tmp_path}/mg/llava.nemo"
    sources = {"llm": {"from_pretrained": "mg/llava.nemo"}, "pretrain_mm_mlp_adapter": "mg/llava.nemo"}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"mm_cfg": sources}}))
    again = settings(command_of({**flags, "--megatron-load-dir": str(run)}, "--load-optim"))
    assert again["model.mm_cfg.llm.from_pretrained"] == "mg/llava.nemo"


def test_init_takes_the_sizes_of_the_folder_and_no_weights(flags: dict[str, str]) -> None:
    del flags["--megatron-load-dir"]
    found = settings(command_of(flags, "--init", "--stage", "1"))
    for part in ("llm.from_pretrained", "vision_encoder.from_pretrained", "pretrain_mm_mlp_adapter"):
        assert found[f"model.mm_cfg.{part}"] == "null"
    sizes = {"vocab_size": "32128", "hidden_size": "4096", "num_layers": "32", "layernorm_epsilon": "1e-05"}
    assert {key: found[f"model.{key}"] for key in sizes} == sizes
    assert (
        found["model.mm_cfg.vision_encoder.model_type"],
        found["model.mm_cfg.vision_encoder.num_layers"],
    ) == ("clip", "24")
    assert found["model.tokenizer.type"] == flags["--tokenizer-load-dir"]
    load("asagi_14b_pretrain", command_of(flags, "--init", "--stage", "1").words[2:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--non-persistent-save-interval 5", "--non-persistent-save-interval is refused"),
        ("--skip-train-iteration-range 5", "--skip-train-iteration-range holds '5', expected FIRST-LAST"),
        ("--skip-train-iteration-range 9-5", "--skip-train-iteration-range holds '9-5', expected FIRST-LAST"),
        ("--stage 3", "argument --stage: invalid choice: 3"),
        ("--tp 0", "argument --tp: '0', expected a whole number from 1"),
        ("--gpus 0", "argument --gpus/-g: '0', expected a whole number from 1, or -1"),
        ("--lr nan", "argument --lr: 'nan', expected a number above 0"),
        ("--adam-beta2 1", "--adam-beta2 is 1.0, expected a number below 1"),
        ("--backend mpi", "argument --backend: invalid choice: 'mpi'"),
        ("--gpu-ids 0,1 -g 4", "--gpu-ids 0,1 names 2 GPUs, but --gpus is 4"),
        ("--node 2", "--rank is -1, expected the number of this node of --node 2, from 0"),
        ("--node 2 -r 2", "--rank is 2, expected the number of this node of --node 2, from 0"),
        ("--train-iters 0", "argument --train-iters: '0', expected a whole number from 1, or -1"),
        ("--learning-rate 1", "unrecognized arguments: --learning-rate 1"),
        (
            "--data-path /path/energon",
            "--data-path is '/path/energon', and neither it nor the folder above holds",
        ),
        ("--tokenizer-load-dir /path", "--tokenizer-load-dir is '/path': it holds no config.json of a LLaVA"),
        (
            "--megatron-load-dir /path",
            "--megatron-load-dir is '/path', which is or holds no .nemo: write one",
        ),
    ],
)
def test_what_cannot_be_obeyed_is_one_sentence(flags: dict[str, str], words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        command_of(flags, *words.split())
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_first_example_of_the_page_is_told_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_and_run("run.py", STAGE_1, train_command) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[3] == "run.py: --data-path is missing, expected a path"
    assert len(said) == 4


def test_data_without_a_whole_batch_has_no_step(flags: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^the run has no step: give more records"):
        command_of(flags, "--global-batch-size", "99999")


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "{"), ("b.json", '{"a": 1}'), ("c.jsonl", None), ("d.json", "\xff")]
)
def test_records_that_cannot_be_counted_are_one_sentence(
    flags: dict[str, str], tmp_path: Path, name: str, text: str | None
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=name) as caught:
        command_of({**flags, "--data-path": str(tmp_path / name)})
    assert "\n" not in str(caught.value)


def test_lines_are_counted_as_records(flags: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n" * 256 + "\n")
    found = command_of({**flags, "--data-path": str(tmp_path / "data.jsonl")})
    assert settings(found)["trainer.max_steps"] == "2"


def test_a_model_is_built_from_folders(tmp_path: Path) -> None:
    for name in ("text", "tower"):
        (tmp_path / name).mkdir()
    words = ["--save-dir", "hf", "--text-model", f"{tmp_path}/text", "--vision-model", f"{tmp_path}/tower"]
    built = [f"{tmp_path}/text", "hf", "--vision_encoder_path", f"{tmp_path}/tower", "--precision", "bf16"]
    built += ["--conv_template", "japanese"]
    assert build_command(words).words == built
    assert build_command([*words, "--vocab-size-padding"]).words == [*built, "--pad_vocab_to", "128"]
    with pytest.raises(ConfigError, match=r"^--expand-projector is refused"):
        build_command([*words, "--expand-projector"])
    with pytest.raises(
        ConfigError, match=r"^--text-model is 'llm-jp/llm-jp-3-13b-instruct', expected a folder here"
    ):
        build_command(["--save-dir", "hf", "--vision-model", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"^the following arguments are required: --save-dir"):
        build_command([])


def test_weights_go_to_training_and_back(tmp_path: Path) -> None:
    words = "--tp 4 --pp 1 --hf-dir hf --megatron-dir mg --sif-path x.sif --bind /a:/b"
    there = to_megatron_command(shlex.split(words))
    assert there.words == ["hf", "mg/llava.nemo"]
    assert set(there.effectless) == {"--tp", "--pp", "--sif-path", "--bind"}
    nemo = write_nemo(tmp_path / "run/checkpoints/run.nemo", None, [])
    words = f"--tp 4 --pp 1 --megatron-dir {tmp_path}/run --hf-dir hf2 --tokenizer-dir hf --saver llava3_hf --gpu-id 0"
    assert to_hf_command(words.split()).words == [str(nemo), "hf2"]
    write_nemo(tmp_path / "run/checkpoints/run-2.nemo", None, [])
    with pytest.raises(
        ConfigError, match=r"holds 2 .nemo files \(checkpoints/run-2.nemo, checkpoints/run.nemo\)"
    ):
        to_hf_command(words.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_fast(script: str) -> None:
    started = processor_s()
    done = subprocess.run(
        [sys.executable, str(ROOT / f"scripts/{script}.py"), "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")
    assert processor_s() - started < 2
