"""The command `neva` as a user types it: help, errors, exit codes, sweeps."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neva import cli, commands
from neva.commands import train
from neva.commands.sweep import exit_code, job_name
from neva.config.compose import recipes
from neva.config.load import load
from tests.conftest import conversation, processor_s, write_records

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "nemo", "transformers", "lightning", "megatron", "pytorch_lightning")
SECONDS = 2.0
"""What a user waits at most for help or for a wrong word; 0.3 to 0.6 s were measured."""


def run(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python WORDS` with the package importable and no recipe in the environment but that given."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("NEMO_CONFIG", "WORLD_SIZE")
    }
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["infer", "--help"], 0),
        (["fly"], 2),
        (["train"], 2),
        (["train", "--config-name", "llava_7b"], 2),
        (["train", "--config-name", "llava_7b_pretrain", "model.optim.lrr=1"], 2),
        (["train", "--config-name", "llava_7b_pretrain", "model.headscale=true", "--dry-run"], 2),
        (["infer", "--config-name", "llava_7b_inference", "inference.top_p=2"], 2),
        (["train", "--config-name", "llava_7b_pretrain"], 1),
        (["train", "--config-name", "llava_7b_inference"], 2),
        (["infer", "--config-name", "llava_7b_pretrain", "--dry-run"], 2),
        (["convert", "--help"], 0),
        (["check-loss", "--help"], 0),
        (["convert", "absent", "x.nemo"], 1),
    ],
)
def test_help_and_errors_answer_at_once_and_load_nothing_heavy(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    program = f"import sys; from neva.cli import main; code = main({arguments!r})"
    ending = f"print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules]); sys.exit(code)"
    help_exits = f"try:\n    {program[12:]}\nexcept SystemExit as stop:\n    code = stop.code"
    started = processor_s()
    result = run("-c", f"import sys\n{help_exits}\n{ending}", cwd=tmp_path)
    assert processor_s() - started < SECONDS
    assert (result.returncode, result.stdout.splitlines()[-1].strip()) == (code, "LOADED")
    assert "Traceback" not in result.stderr


MIGRATE = f"-m neva config migrate {ROOT}/tests/config/neva_yaml/llava_7b_finetune.yaml"


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("-m neva --help | true", 141),
        (f"{MIGRATE} | true", 141),
        (f"{MIGRATE} >&-", 0),
        (f"{MIGRATE} 2>&- >&-", 0),
        ("-m neva --help >/dev/null", 0),
    ],
)
def test_nobody_has_to_read_what_is_printed(shell: str, code: int) -> None:
    text = f"set -o pipefail; {sys.executable} {shell}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_what_a_file_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    records = [{"id": "1", "conversations": conversation("What is it?", "A cat.")}]
    write_records(tmp_path / "mine.json", records)
    command = f"ulimit -f 0; {sys.executable} -m neva data convert mine.json other.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "neva: other.json: File too large; files may be no larger here (ulimit -f)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_a_user_without_a_home_has_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 424242)  # of a container, with no line in its passwd
    assert cli.main(["--version"]) == 0
    assert Path.home() == Path("/")


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "main", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "neva: interrupted\n"


def test_a_config_error_is_one_line(tmp_path: Path) -> None:
    result = run("-m", "neva", "train", "--config-name", "llava_7b_pretrain", "model.lr=1", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "neva: unknown key model.lr; nearest: model.optim.lr\n"


@pytest.mark.parametrize(
    ("arguments", "is_for"),
    [
        (["train", "-cn", "quickstart_inference"], "inference: use `neva infer`"),
        (["train", "-m", "-cn", "quickstart_inference", "inference.seed=1,2"], "inference: use `neva infer`"),
        (["infer", "-cn", "quickstart_pretrain"], "training: use `neva train`"),
    ],
)
def test_a_recipe_for_the_other_verb_is_refused(
    arguments: list[str], is_for: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"neva: the recipe is one for {is_for}")


def test_a_run_without_its_files_lists_them_and_does_not_start(tmp_path: Path) -> None:
    result = run(str(ROOT / "scripts/neva_pretrain.py"), cwd=tmp_path, NEMO_CONFIG="llava_7b_pretrain")
    assert result.returncode == 1
    assert result.stderr.splitlines()[:2] == [
        "neva: model.data.data_path: no file at datasets/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        "neva: model.data.image_folder: no folder at datasets/LLaVA-Pretrain/images",
    ]
    assert len(result.stderr.splitlines()) == 5
    assert list(tmp_path.iterdir()) == []


def test_help_shows_recipes_keys_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for name in recipes():
        assert (f"  {name} " in text) == (not name.endswith("_inference"))
    assert "model.optim.lr " in text
    assert "Peak learning rate." in text
    assert "examples:" in text
    assert "Vicuna 7B and CLIP ViT-L/14-336: stage 1" in text


def test_only_verbs_that_work_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    expected = {"train", "infer", "convert", "check-loss", "plan", "config", "data", "evaluate", "serve"}
    assert set(cli.verbs()) == expected
    for name, verb in cli.verbs().items():
        assert f"  {name:<10} {verb.SUMMARY}" in text
        assert callable(verb.main)


def test_options_and_overrides_may_stand_in_any_order() -> None:
    options = train.parse(["a.b=1", "--config-name", "x", "c=2", "--dry-run", "~d"])
    assert (options.config_name, options.overrides, options.dry_run) == ("x", ["a.b=1", "c=2", "~d"], True)


def test_output_and_sweep_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", "-cn", "quickstart_pretrain", "--dry-run", "--output", "x.yaml"]) == 2
    assert "each job writes into its own run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ([], ["quickstart_finetune-lr_0.0001", "quickstart_finetune-lr_0.001"]),
        (["exp_manager.name=mine"], ["mine-lr_0.0001", "mine-lr_0.001"]),
        (
            ["exp_manager.name=a,b"],
            ["a-lr_0.0001", "b-lr_0.0001", "a-lr_0.001", "b-lr_0.001"],
        ),
    ],
)
def test_a_sweep_runs_every_job_in_a_folder_of_its_own(
    tmp_path: Path, name: list[str], folders: list[str]
) -> None:
    (tmp_path / "results").touch()  # so that each job names the folder that it cannot make
    arguments = ["--multirun", "model.optim.lr=1e-4,1e-3", "exp_manager.exp_dir=results", *name]
    script = str(ROOT / "scripts/neva_finetune.py")
    result = run(script, *arguments, cwd=tmp_path, NEMO_CONFIG="quickstart_finetune")
    assert result.returncode == 1
    assert re.findall(r"the run folder results/(\S+) cannot be made", result.stderr) == folders


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.optim.lr=1e-4,1e-3", "exp_manager.explicit_log_dir=mine"],
        ["model.data.data_path=a/b.json,a_b.json"],
    ],
)
def test_jobs_that_would_share_a_run_folder_are_refused(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "-m", "-cn", "quickstart_pretrain", *overrides]) == 2
    assert "neva: two jobs of the sweep would have the run folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_a_signal_ends_has_failed() -> None:
    assert exit_code([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 128 + 9


def test_ctrl_c_waits_for_the_job_that_saves_and_ends_the_sweep(tmp_path: Path) -> None:
    job = (
        "import signal, sys, time; told = []; signal.signal(signal.SIGINT, lambda *_: told.append(1))\n"
        "print('begun', flush=True)\n"
        "while not told: time.sleep(0.05)\n"
        "time.sleep(1); open('saved', 'w').close(); sys.exit(130)"
    )
    # pytest may run where Ctrl-C is ignored
    sweep = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from neva.commands.sweep import exit_code; exit_code([sys.executable, '-c', {job!r}])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", sweep],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    assert (tmp_path / "saved").exists()


def test_a_sweep_with_a_wrong_value_starts_no_job(tmp_path: Path) -> None:
    overrides = ["model.optim.lr=1e-4,-1,-2", "dry_run=true"]
    result = run("-m", "neva", "train", "-m", "-cn", "quickstart_pretrain", *overrides, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "neva: model.optim.lr=-1: must be > 0",
        "neva: model.optim.lr=-2: must be > 0",
    ]
    assert list(tmp_path.iterdir()) == []


def test_plugins_are_imported_by_the_command_and_by_every_job_of_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "my_package.py").write_text("import sys\nsys.stderr.write('imported\\n')\n")
    (tmp_path / "results").touch()  # so that no job starts
    words = ["-cn", "quickstart_pretrain", "+plugins=[my_package]", "exp_manager.exp_dir=results"]
    one = run("-m", "neva", "train", *words, cwd=tmp_path)
    assert one.stderr.startswith("imported\nneva: model.data.data_path: no file")
    sweep = run("-m", "neva", "train", "-m", *words, "model.seed=1,2", cwd=tmp_path)
    assert sweep.stderr.splitlines().count("imported") == 3
    plan = run("-m", "neva", "plan", *words, "--gpus", "1", "--gpu-memory", "8", cwd=tmp_path)
    assert (plan.returncode, plan.stderr) == (0, "imported\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "[no_such_package]",
            "plugins: no package no_such_package in the current folder or among the installed",
        ),
        ("no_such_package", "plugins=no_such_package: expected a list, each text"),
    ],
)
def test_plugins_that_do_not_exist_are_a_config_error(
    value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "-cn", "quickstart_pretrain", f"+plugins={value}"]) == 2
    assert capsys.readouterr().err.startswith(f"neva: {message}")


def test_a_verb_is_a_module_of_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text("SUMMARY = 'say hello'\ndef main(arguments): return len(arguments)\n")
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert cli.main(["greet", "a", "b", "c"]) == 3
    assert cli.main(["--help"]) == 0
    assert "  greet      say hello" in capsys.readouterr().out
    assert cli.main(["options"]) == 2
    names = "check-loss, config, convert, data, evaluate, infer, plan, serve, train, greet"
    assert f"no verb 'options'; there are {names}" in capsys.readouterr().err


def test_a_job_is_named_by_what_is_swept() -> None:
    swept = ["++model.optim.lr=1e-4,1e-3", "++model.seed=choice(1,2)", "++trainer.max_steps=5"]
    words = ["++model.optim.lr=0.001", "++model.seed=2", "++trainer.max_steps=5"]
    assert job_name("run", words, swept) == "run-lr_0.001-seed_2"
    assert (
        job_name("run", ["data=llava_finetune"], ["data=llava_pretrain,llava_finetune"])
        == "run-data_llava_finetune"
    )


def test_the_readme_of_the_neva_fork_is_understood_up_to_what_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = [
        "model.mm_cfg.llm.from_pretrained=checkpoints/vicuna-7b-v1.5-mcore.nemo",
        "model.mm_cfg.vision_encoder.from_pretrained=checkpoints/clip-vit-large-patch14-336",
        "model.data.image_token_len=576",
        "model.data.crop_size=[336,336]",
        "model.data.image_size=[336,336]",
        "model.mm_cfg.vision_encoder.hidden_size=1024",
        "model.mm_cfg.vision_encoder.class_token_length=1",
        "model.tokenizer.library=huggingface",
        "model.tokenizer.model=null",
        "model.tokenizer.type=checkpoints/llama2_tokenizer",
        "model.data.data_path=datasets/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        "model.data.image_folder=datasets/LLaVA-Pretrain/images",
        "model.micro_batch_size=32",
        "model.tensor_model_parallel_size=4",
        "model.encoder_seq_length=4096",
        "trainer.num_nodes=1",
        "trainer.max_epochs=-1",
        "trainer.max_steps=2176",
        "model.optim.sched.warmup_steps=65",
        "model.data.conv_template=plain",
        "model.mm_cfg.vision_encoder.freeze=True",
        "model.mm_cfg.mm_mlp_adapter_type=mlp2x_gelu",
        "model.mm_cfg.use_image_tile=False",
        "model.data.dataloader_type=cyclic",
        "exp_manager.name=llava_vicuna_7b_clip_pretrain_tp4_pp1",
    ]
    cfg = load("llava_7b_pretrain", typed)
    assert (cfg.trainer.max_steps, cfg.model.encoder_seq_length) == (2176, 4096)
    assert cfg.model.tensor_model_parallel_size == 4
    assert cli.main(["train", "-cn", "llava_7b_pretrain", *typed, "model.context_parallel_size=3"]) == 2
    assert capsys.readouterr().err == (
        "neva: 8 processes cannot be divided into tensor 4 x pipeline 1 x context 3 = 12: change trainer.devices or a "
        "parallel size\n"
        "neva: model.data.pad_to_multiple_of=64 cannot be divided by 6, the pieces that context parallel 3 and "
        "sequence parallel 1 cut a sequence into: raise it\n"
    )
