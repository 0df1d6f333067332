"""Pai-Megatron-Patch's two scripts: what each argument becomes, and what each wrong one is answered with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neva.commands import data as data_action
from neva.config.load import load
from neva.distributed.launch import identify
from neva.errors import ConfigError
from neva.launchers.command import NevaCommand
from neva.launchers.pai import RECIPE, train_command
from neva.launchers.pai_convert import convert_command
from neva.launchers.pai_shards import shards_command
from neva.optim.schedule import CosineAnnealing
from tests.conftest import processor_s
from tests.launchers.nemo import MISTRAL, write_nemo

ROOT = Path(__file__).resolve().parents[2]
GPUS = {"GPUS_PER_NODE": "8"}
DLC = {"WORLD_SIZE": "2", "RANK": "1", "KUBERNETES_CONTAINER_RESOURCE_GPU": "8"} | {
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "6000",
}


@pytest.fixture
def readme(tmp_path: Path) -> list[str]:
    """The 23 arguments of the page of Pai-Megatron-Patch, on folders that exist."""
    data, checkpoint = tmp_path / "LLaVA-Pretrain", tmp_path / "mcore-tp4-pp1"
    (data / "wds").mkdir(parents=True)
    (data / "blip_laion_cc_sbu_558k.json").write_text("[]")
    write_nemo(checkpoint / "llava.nemo", None, ["language_model.x", "projector.0.weight"], MISTRAL)
    text = "dsw 7B 1 256 0.00015 1e-5 576 1024 bf16 4 1 1 true true true false 100000"
    return [
        *text.split(),
        str(data / "wds"),
        str(data / "wds"),
        str(checkpoint),
        "20000",
        "200",
        str(tmp_path / "out"),
    ]


def changed(words: list[str], **changes: str) -> list[str]:
    """`words` with the arguments number a1 … a23 replaced."""
    return [changes.get(f"a{number}", word) for number, word in enumerate(words, 1)]


def settings(command: NevaCommand) -> dict[str, str]:
    """Key and value of each override of a command."""
    return dict(word.split("=", 1) for word in command.words if "=" in word)


def test_the_command_of_the_page_becomes_these_overrides(readme: list[str], tmp_path: Path) -> None:
    command = train_command(readme, GPUS)
    name = (
        "finetune-mcore-llava-7B-lr-0.00015-minlr-1e-5-bs-1-gbs-256-seqlen-576-pr-bf16-tp-4-pp-1-cp-1-ac-true-do-true"
        "-ti-20000-wi-200"
    )
    assert command.words[:2] == ["--config-name", RECIPE]
    assert settings(command) == {
        "trainer.num_nodes": "1",
        "trainer.devices": "8",
        "trainer.max_steps": "20000",
        "trainer.precision": "bf16",
        "model.micro_batch_size": "1",
        "model.global_batch_size": "256",
        "model.encoder_seq_length": "1024",
        "model.optim.lr": "0.00015",
        "model.optim.sched.min_lr": "1e-05",
        "model.optim.sched.warmup_steps": "200",
        "model.optim.sched.constant_steps": "200",
        "exp_manager.checkpoint_callback_params.every_n_train_steps": "100000",
        "model.tensor_model_parallel_size": "4",
        "model.pipeline_model_parallel_size": "1",
        "model.context_parallel_size": "1",
        "model.activations_checkpoint_granularity": "null",
        "model.optim.name": "distributed_fused_adam",
        "model.optim.cpu_offload": "false",
        "model.data.data_path": str(tmp_path / "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"),
        "model.data.image_folder": str(tmp_path / "LLaVA-Pretrain"),
        "model.mm_cfg.llm.from_pretrained": str(tmp_path / "mcore-tp4-pp1/llava.nemo"),
        "exp_manager.exp_dir": str(tmp_path / "out/checkpoint"),
        "exp_manager.name": name,
    }
    assert set(command.effectless) == {"SEQ_LEN", "FL", "VALID_DATASET_PATH", "AC=true"}


RECOMPUTE_FULL = {
    "model.activations_checkpoint_granularity": "full",
    "model.activations_checkpoint_method": "uniform",
    "model.activations_checkpoint_num_layers": "1",
}


OFFLOADED = {"model.optim.cpu_offload": "true", "model.optim.name": "distributed_fused_adam"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"a3": "2", "a4": "128"}, {"model.micro_batch_size": "2", "model.global_batch_size": "128"}),
        ({"a5": "1e-3", "a6": "0"}, {"model.optim.lr": "0.001", "model.optim.sched.min_lr": "0.0"}),
        ({"a9": "fp16"}, {"trainer.precision": "16"}),
        ({"a10": "2"}, {"model.tensor_model_parallel_size": "2"}),
        ({"a11": "2"}, {"model.pipeline_model_parallel_size": "2"}),
        ({"a12": "2"}, {"model.context_parallel_size": "2"}),
        ({"a13": "false"}, {"model.optim.name": "fused_adam", "model.optim.cpu_offload": "false"}),
        ({"a15": "sel"}, {"model.activations_checkpoint_granularity": "selective"}),
        ({"a15": "full"}, RECOMPUTE_FULL),
        ({"a15": "false"}, {"model.activations_checkpoint_granularity": "null"}),
        ({"a15": "none"}, {"model.activations_checkpoint_granularity": "null"}),
        ({"a16": "static"}, OFFLOADED),
        ({"a16": "auto", "a13": "false"}, OFFLOADED),
        (
            {"a21": "1000", "a22": "30"},
            {"trainer.max_steps": "1000", "model.optim.sched.constant_steps": "30"},
        ),
    ],
)
def test_an_argument_becomes_its_overrides_and_the_tree_is_valid(
    readme: list[str], changes: dict[str, str], expected: dict[str, str]
) -> None:
    command = train_command(changed(readme, **changes), GPUS)
    assert settings(command) | expected == settings(command)
    load(RECIPE, command.words[2:])


def test_a_run_goes_on_from_the_projector_of_an_earlier_one(readme: list[str], tmp_path: Path) -> None:
    whole = f"{tmp_path}/mcore-tp4-pp1/llava.nemo"
    nemo = write_nemo(tmp_path / "run/checkpoints/run.nemo", whole, ["projector.0.weight"], MISTRAL)
    found = settings(train_command(changed(readme, a20=str(tmp_path / "run")), GPUS))
    assert found["model.mm_cfg.llm.from_pretrained"] == whole
    assert found["model.mm_cfg.pretrain_mm_mlp_adapter"] == str(nemo)


def test_layers_of_recomputation_come_from_the_environment(readme: list[str]) -> None:
    found = train_command(changed(readme, a15="full"), GPUS | {"MP_AC_LAYERS": "4"})
    assert settings(found)["model.activations_checkpoint_num_layers"] == "4"
    with pytest.raises(ConfigError, match=r"^MP_AC_LAYERS is '3', expected a divisor of the layers"):
        train_command(changed(readme, a15="full"), GPUS | {"MP_AC_LAYERS": "3"})


def test_dlc_counts_nodes_and_neva_hears_processes(readme: list[str]) -> None:
    command = train_command(changed(readme, a1="dlc"), DLC)
    assert command.environment == {
        "RANK": None,
        "NODE_RANK": "1",
        "WORLD_SIZE": "16",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "6000",
    }
    exported = {name: value for name, value in command.environment.items() if value is not None}
    place = identify(8, 2, exported)
    assert (place.world_size, place.rank, place.node_rank) == (16, 8, 1)
    assert (settings(command)["trainer.num_nodes"], settings(command)["trainer.devices"]) == ("2", "8")
    one = train_command(changed(readme, a1="dlc"), DLC | {"WORLD_SIZE": "1", "RANK": "0"})
    assert one.environment == {"RANK": None, "NODE_RANK": "0", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "WORLD_SIZE is '', expected a whole number from 1, the number of nodes"),
        ({**DLC, "RANK": "2"}, "RANK is '2', expected less than WORLD_SIZE=2"),
        ({**DLC, "MASTER_ADDR": ""}, "MASTER_ADDR is '', expected that of the first node"),
        ({**DLC, "KUBERNETES_CONTAINER_RESOURCE_GPU": "all"}, "KUBERNETES_CONTAINER_RESOURCE_GPU is 'all'"),
    ],
)
def test_dlc_without_its_variables_is_said(
    readme: list[str], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_command(changed(readme, a1="dlc"), environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a1": "pai"}, "ENV is 'pai', expected one of dsw, dlc"),
        ({"a2": "13B"}, "MODEL_SIZE is '13B', expected one of 7B"),
        ({"a2": "72B"}, "MODEL_SIZE=72B is refused: only 7B"),
        ({"a3": "0"}, "BATCH_SIZE is '0', expected a whole number from 1"),
        ({"a4": "2.5"}, "GLOBAL_BATCH_SIZE is '2.5', expected a whole number from 1"),
        ({"a5": "nan"}, "LR is 'nan', expected a number above 0, such as 1e-5"),
        ({"a6": "-1e-5"}, "MIN_LR is '-1e-5', expected a number from 0, such as 1e-5"),
        ({"a7": "x"}, "SEQ_LEN is 'x', expected a whole number from 1"),
        ({"a8": "１０"}, "DECODER_SEQ_LEN is '１０', expected a whole number from 1"),
        ({"a9": "fp32"}, "PR is 'fp32', expected one of bf16, fp16, fp8"),
        ({"a10": "0"}, "TP is '0', expected a whole number from 1"),
        ({"a11": "x"}, "PP is 'x', expected a whole number from 1"),
        ({"a12": ""}, "CP is '', expected a whole number from 1"),
        ({"a13": "yes"}, "DO is 'yes', expected one of false, true"),
        ({"a14": "TRUE"}, "FL is 'TRUE', expected one of false, true"),
        ({"a15": "offload"}, "AC=offload is refused: neva does not move activations to CPU memory"),
        ({"a15": "selective"}, "AC is 'selective', expected one of sel, full, false, none, true"),
        ({"a16": "true"}, "OPTIMIZER_OFFLOAD is 'true', expected one of false, static, auto"),
        ({"a17": "0"}, "SAVE_INTERVAL is '0', expected a whole number from 1"),
        (
            {"a18": "/path/wds"},
            "DATASET_PATH is '/path/wds', and neither it nor the folder above holds blip_laion",
        ),
        ({"a19": " "}, "VALID_DATASET_PATH is ' ', expected a path"),
        (
            {"a20": "none"},
            "PRETRAIN_CHECKPOINT_PATH is 'none', expected the folder that hf2mcore_convertor_llava.sh",
        ),
        ({"a20": "/path"}, "PRETRAIN_CHECKPOINT_PATH is '/path', which is or holds no .nemo: convert"),
        ({"a21": "400"}, "TRAIN_ITERS is '400', expected more than twice LR_WARMUP_ITERS=200"),
        ({"a22": "few"}, "LR_WARMUP_ITERS is 'few', expected a whole number from 0"),
        ({"a23": "a\nb"}, "OUTPUT_BASEPATH is 'a\\nb', expected a path in one line"),
    ],
)
def test_every_wrong_argument_is_one_sentence(
    readme: list[str], changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_command(changed(readme, **changes), GPUS)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_several_wrong_arguments_are_all_told(readme: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        train_command(changed(readme, a3="x", a10="y", a15="full", a11="z"), GPUS)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["BATCH_SIZE", "TP", "PP"]


@pytest.mark.parametrize("count", [0, 22, 24])
def test_the_number_of_arguments_is_checked(readme: list[str], count: int) -> None:
    with pytest.raises(
        ConfigError, match=f"^found {count} arguments, expected 23: run_mcore_llava.sh ENV MODEL"
    ):
        train_command([*readme, "more"][:count], GPUS)


def test_shards_of_megatron_are_named_for_what_they_are(readme: list[str], tmp_path: Path) -> None:
    (tmp_path / "old/iter_0000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds Megatron's own shards, which are not read here: convert"):
        train_command(changed(readme, a20=str(tmp_path / "old")), GPUS)


def test_the_number_of_gpus_is_asked_for_where_there_is_none(readme: list[str]) -> None:
    with pytest.raises(
        ConfigError, match="^found no GPU on this machine, expected one or more: set GPUS_PER_NODE"
    ):
        train_command(readme, {"CUDA_VISIBLE_DEVICES": ""})
    assert settings(train_command(readme, {"CUDA_VISIBLE_DEVICES": "2,3"}))["trainer.devices"] == "2"


def test_the_learning_rate_follows_megatrons_cosine(readme: list[str]) -> None:
    # --lr-decay-iters TRAIN_ITERS - LR_WARMUP_ITERS: at the minimum for the last LR_WARMUP_ITERS steps, not before.
    optim = load(RECIPE, []).model.optim
    rate = CosineAnnealing(
        optim.lr, optim.sched.min_lr, optim.sched.warmup_steps, optim.sched.constant_steps, 20000
    )
    assert rate(200) == optim.lr
    assert rate(19799) > rate(19800) == rate(19999) == optim.sched.min_lr
    assert rate(10000) == pytest.approx((optim.lr + optim.sched.min_lr) / 2)


def test_the_recipe_has_the_variant_as_far_as_keys_go() -> None:
    cfg = load(RECIPE, [])
    model, tower = cfg.model, cfg.model.mm_cfg.vision_encoder
    assert (tower.vision_select_layer, tower.class_token_length, model.data.image_aspect_ratio) == (
        -1,
        1,
        "pad_right_bottom",
    )
    assert list(tower.image_mean) == [0.485, 0.456, 0.406] and list(tower.image_std) == [0.229, 0.224, 0.225]
    assert (model.mm_cfg.llm.freeze, tower.freeze, model.mm_cfg.mm_mlp_adapter_freeze) == (True, True, False)
    assert (model.optim.weight_decay, list(model.optim.betas)) == (0.01, [0.9, 0.95])
    assert (cfg.trainer.gradient_clip_val, model.init_method_std) == (1.0, 0.014)
    assert (model.rotary_base, model.num_query_groups, model.vocab_size) == (1e6, 8, 32768)


CONVERT = ["7B", "/path/mistral", "/path/clip", "/path/target", "4", "1", "false", "bf16"]


def test_the_converter_writes_what_training_reads() -> None:
    command = convert_command(CONVERT)
    flags = (
        "--vision_encoder_path /path/clip --precision bf16 --adapter_type mlp2x_gelu_h14336_nobias --select_layer -1 "
        "--conv_template mistral"
    )
    assert (command.verb, command.words) == (
        "convert",
        ["/path/mistral", "/path/target/llava.nemo", *flags.split()],
    )
    assert convert_command([*CONVERT, "/path/mistral"]).words == command.words


def test_the_converter_exports_a_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/run.nemo").touch()
    words = ["7B", str(tmp_path), "/path/clip", "/path/hf", "1", "1", "true", "fp32", "/path/mistral"]
    flags = "--llm_path /path/mistral --vision_encoder_path /path/clip --precision fp32"
    assert convert_command(words).words == [f"{tmp_path}/checkpoints/run.nemo", "/path/hf", *flags.split()]
    with pytest.raises(
        ConfigError, match=r"^HF_CKPT_PATH is '', expected the Hugging Face folder of the language"
    ):
        convert_command(words[:8])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (CONVERT[:7], "found 7 arguments, expected 8 to 9: hf2mcore_convertor_llava.sh MODEL_SIZE"),
        (changed(CONVERT, a1="3B"), "MODEL_SIZE=3B is refused: only 7B"),
        (changed(CONVERT, a5="four"), "TP is 'four', expected a whole number from 1"),
        (changed(CONVERT, a7="no"), "mg2hf is 'no', expected one of false, true"),
        (changed(CONVERT, a8="fp8"), "PR is 'fp8', expected one of bf16, fp16, fp32"),
    ],
)
def test_a_wrong_argument_of_the_converter_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_command(words)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def shell(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One of the two scripts, run by sh."""
    return subprocess.run(
        ["sh", str(ROOT / "scripts/launchers" / script), *words],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_shell_scripts_print_a_command_and_exit_with_2_on_a_mistake(readme: list[str]) -> None:
    done = shell("run_mcore_llava.sh", *readme, **GPUS, NEVA_PRINT_ONLY="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "neva train \\\n    --config-name pai_llava_mistral_7b_pretrain \\\n    trainer.num_nodes=1"
        in done.stdout
    )
    wrong = shell("run_mcore_llava.sh", *readme[:22], **GPUS)
    assert wrong.returncode == 2 and wrong.stderr.startswith(
        "run_mcore_llava.sh: found 22 arguments, expected 23"
    )
    converted = shell("hf2mcore_convertor_llava.sh", "--print-only", *CONVERT)
    assert "neva convert \\\n    /path/mistral \\\n    /path/target/llava.nemo" in converted.stdout
    started = processor_s()
    assert shell("run_mcore_llava.sh", "--help").stdout.startswith("usage: run_mcore_llava.sh")
    assert processor_s() - started < 2


def test_shards_are_made_and_read_without_a_question(readme: list[str], tmp_path: Path) -> None:
    data = tmp_path / "LLaVA-Pretrain"
    command = shards_command([str(data)])
    assert command.words[:3] == ["convert", f"{data}/blip_laion_cc_sbu_558k.json", f"{data}/wds"]
    assert data_action.parse(command.words).split == "9,1,0"
    (data / "wds/pretrain-0.tar").touch()
    found = settings(train_command(readme, GPUS))
    assert found["model.data.data_path"] == f"{data}/wds" and found["model.data.image_folder"] == "null"
    with pytest.raises(ConfigError, match=r"no file at .*absent/blip_laion"):
        shards_command([str(tmp_path / "absent")])
