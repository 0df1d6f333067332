"""`neva train --dry-run` against hand-made sums, on a run that is ready and on one that lacks everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from neva import cli
from neva.config.language import language_config_of
from neva.config.load import load
from neva.config.tower import vision_config_of
from neva.families.configs import LanguageConfig, VisionConfig
from tests.conftest import processor_s

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["<unk>", "<s>", "</s>", "what", "is", "this", "?", "red", "USER", "ASSISTANT", ":"]


def language_parameters(shape: LanguageConfig) -> int:
    """Weights of a LLaMA-type model, matrix by matrix."""
    queries, keys = shape.num_heads * shape.head_dim, shape.num_query_groups * shape.head_dim
    attention = shape.hidden_size * (queries + 2 * keys) + queries * shape.hidden_size
    mlp = 3 * shape.hidden_size * shape.ffn_hidden_size
    layer = attention + mlp + 2 * shape.hidden_size
    tables = (1 if shape.tied else 2) * shape.padded_vocab_size * shape.hidden_size
    return shape.num_layers * layer + tables + shape.hidden_size


def clip_parameters(shape: VisionConfig) -> int:
    """Weights of CLIPVisionModel: patches without bias, class token, positions, two norms, layers with biases."""
    width, inner = shape.hidden_size, shape.ffn_hidden_size
    embeddings = 3 * shape.patch_size**2 * width + width + (shape.num_tokens + 1) * width
    attention = 4 * (width * width + width)
    mlp = width * inner + inner + inner * width + width
    return embeddings + 2 * 2 * width + shape.num_layers * (attention + mlp + 2 * 2 * width)


def projector_parameters(tower_width: int, width: int) -> int:
    """Weights of mlp2x_gelu."""
    return tower_width * width + width + width * width + width


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["train", *arguments, "--dry-run"])
    return code, capsys.readouterr().out


def numbers(text: str, part: str) -> list[int]:
    """Parameters and trained parameters in a part's row."""
    row = next(line for line in text.splitlines() if line.startswith(part))
    return [int(word.replace(",", "")) for word in row.removeprefix(part).split()[:2]]


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run that has all it needs: 130 records, one image, a tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    question = {"from": "human", "value": "<image>\nwhat is this ?"}
    record = {"image": "red.png", "conversations": [question, {"from": "gpt", "value": "red"}]}
    (tmp_path / "data.json").write_text(json.dumps([{"id": str(number), **record} for number in range(130)]))
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return [
        "--config-name=quickstart_pretrain",
        "model.data.data_path=data.json",
        "model.data.image_folder=.",
        "model.tokenizer.type=tokenizer.json",
        "trainer.max_steps=-1",
        "trainer.max_epochs=50",
        "model.global_batch_size=64",
        "model.micro_batch_size=32",
        "model.encoder_seq_length=256",
        "model.optim.sched.warmup_steps=30",
        "model.num_layers=3",
        "model.hidden_size=96",
        "model.ffn_hidden_size=160",
        "model.num_attention_heads=6",
        "model.num_query_groups=2",
        "model.mm_cfg.vision_encoder.num_layers=2",
        "model.mm_cfg.vision_encoder.hidden_size=80",
        "model.mm_cfg.vision_encoder.vision_select_layer=-1",
        "exp_manager.checkpoint_callback_params.save_top_k=1",
    ]


def test_a_run_that_can_start_is_ready(
    ready: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = dry_run(capsys, *ready)
    assert (code, text.splitlines()[-1]) == (0, "ready")
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["samples"].endswith(" 130")
    assert "100 in all (6,400 samples), 2 in an epoch" in lines["steps"]
    assert "64 = micro batch 32 x accumulation 2 x data parallel 1" in lines["global batch"]
    assert "(16 samples read)" in lines["lengths"]
    written = OmegaConf.load(tmp_path / "nemo_experiments/quickstart_pretrain/resolved.yaml")
    assert written == load("quickstart_pretrain", ready[1:])


def test_parameters_equal_the_sums_by_hand(ready: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = load("quickstart_pretrain", ready[1:]).model
    tower, language = vision_config_of(model), language_config_of(model)
    _, text = dry_run(capsys, *ready, "model.mm_cfg.llm.freeze=true")
    # the norm behind the last layer, which a projected hidden state never meets
    unused = 2 * tower.hidden_size
    assert numbers(text, "vision tower") == [clip_parameters(tower), clip_parameters(tower) - unused]
    assert numbers(text, "projector") == [projector_parameters(80, 96)] * 2
    assert numbers(text, "language model") == [language_parameters(language), 0]
    assert "note: the language model is frozen with random weights" in text


def test_disk_space_counts_weights_and_adams_state(
    ready: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = dry_run(capsys, *ready, "exp_manager.checkpoint_callback_params.every_n_train_steps=10")
    total, trained = numbers(text, "total")
    one = 4 * total + 8 * trained
    assert f"3 checkpoints x {one / 1e6:,.1f} MB + .nemo {4 * total / 1e6:,.1f} MB" in text
    params = "exp_manager.checkpoint_callback_params"
    _, text = dry_run(
        capsys,
        *ready,
        "trainer.precision=bf16",
        f"{params}.save_top_k=-1",
        f"{params}.every_n_train_steps=10",
        "exp_manager.ema.enable=true",
    )
    one = 2 * total + 12 * trained + 4 * trained
    assert f"10 checkpoints x {one / 1e6:,.1f} MB + .nemo {2 * 2 * total / 1e6:,.1f} MB" in text
    assert f"of the {trained:,} trained parameters, decay 0.9999, every step" in text
    assert "averages over some 10,000 steps, the run has 100" in text


def test_checkpoints_are_looked_for_where_the_run_writes_them(
    ready: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "elsewhere"
    newest = folder / "run-step=2-consumed_samples=128.0"
    newest.mkdir(parents=True)
    (folder / "removed-last").symlink_to("removed")
    _, text = dry_run(capsys, *ready, f"+exp_manager.checkpoint_callback_params.dirpath={folder}")
    assert f"note: the run will continue from {newest}\n" in text


def test_a_broken_image_among_those_read_is_a_problem(
    ready: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "red.png").write_bytes(b"no image")
    code, text = dry_run(capsys, *ready)
    assert code == 1
    assert "red.png" in text
    assert "record 0" in text


def test_fewer_records_than_a_global_batch_are_a_problem(
    ready: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = (
        "130 records do not fill one global batch; model.global_batch_size must be at most 130, found 256"
    )
    for length in (["trainer.max_steps=20", "trainer.max_epochs=-1"], []):
        code, text = dry_run(capsys, *ready, "model.global_batch_size=256", *length)
        assert (code, text.count(sentence)) == (1, 1)


def test_more_steps_than_one_pass_has_are_a_problem_with_single(
    ready: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = dry_run(capsys, *ready, "model.data.dataloader_type=single")
    assert code == 1
    assert "records once, which leaves 2 steps of 100; lower trainer.max_steps, or use sequential" in text


def break_records(folder: Path, **changes: dict[str, object]) -> None:
    """Changes records of data.json by their ids."""
    records = json.loads((folder / "data.json").read_text())
    text = json.dumps([{**record, **changes.get(f"_{record['id']}", {})} for record in records])
    (folder / "data.json").write_text(text)


def test_the_last_record_is_checked_and_kinds_of_problems_are_counted(
    ready: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, silent = {"image": "gone.png"}, {"conversations": []}
    break_records(tmp_path, _5=gone, _127=silent, _128=gone | {"image": "lost.png"}, _129=gone)
    code, text = dry_run(capsys, *ready)
    assert code == 1
    assert "130 of 130 checked, 4 of them broken" in text
    assert "record 5 (id '5'): image file gone.png does not exist (2 more records like it)" in text
    assert text.count("record 127 (id '127'): ") == 1 and "record 129" not in text


def test_records_that_are_skipped_are_noted_up_to_the_limit(
    ready: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_records(tmp_path, _128={"image": "gone.png"}, _129={"image": "gone.png"})
    skip = [*ready, "model.data.on_error=skip"]
    code, text = dry_run(capsys, *skip, "model.data.max_skipped=0.02")
    assert (code, text.splitlines()[-1]) == (0, "ready")
    assert "note: 2 of the 130 records checked are broken; model.data.on_error=skip passes over them" in text
    code, text = dry_run(capsys, *skip, "model.data.max_skipped=0.01")
    assert code == 1
    assert (
        "2 of the 130 records checked are broken, more than model.data.max_skipped=0.01 of 130 allows" in text
    )


def test_long_records_are_noted_or_a_problem(
    ready: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"from": "human", "value": "<image> is"}, {"from": "gpt", "value": "red " * 999}]
    break_records(tmp_path, _7={"conversations": turns})
    code, text = dry_run(capsys, *ready)
    assert code == 0 and "1 of the 130 records checked are cut to fit into model.encoder_seq_length" in text
    code, text = dry_run(capsys, *ready, "model.data.truncation=drop")
    assert code == 0 and "note: skipped: data.json, record 7 (id '7'): the sequence of" in text
    code, text = dry_run(capsys, *ready, "model.data.truncation=fail")
    assert code == 1 and "is longer than encoder_seq_length" in text


def test_surprises_are_noted(ready: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, text = dry_run(capsys, *ready, "trainer.max_steps=20")
    assert "note: warmup (30) and constant steps (0) fill all 20 steps" in text
    _, text = dry_run(capsys, *ready, "exp_manager.create_checkpoint_callback=false")
    assert "the run leaves neither checkpoints nor a .nemo" in text
    assert "0 checkpoints x " in text and "+ .nemo 0.0 MB" in text


def test_an_unwritable_output_is_a_problem(
    ready: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = dry_run(capsys, *ready, f"--output={tmp_path}/data.json/resolved.yaml")
    assert code == 1
    assert "the resolved configuration cannot be written to" in text


def test_inference_is_checked_too(
    ready: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    OmegaConf.save(load("quickstart_pretrain", ready[1:]).model, tmp_path / "model_config.yaml")
    arguments = [
        "neva_model_file=.",
        "prompt_file=prompts.jsonl",
        "inference.images_base_path=.",
        "output_file=o.jsonl",
    ]
    assert cli.main(["infer", "--config-name=quickstart_inference", *arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "2 in batches of" in text
    assert "3 layers, hidden size 96" in text
    assert cli.main(["infer", "--config-name=quickstart_inference", *arguments[1:], "--dry-run"]) == 1


def test_the_7b_recipe_is_reported_whole_without_its_weights(tmp_path: Path) -> None:
    started = processor_s()
    words = [
        "-m",
        "neva",
        "train",
        "--config-name",
        "llava_7b_finetune",
        "--dry-run",
        "--output",
        "resolved.yaml",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    result = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # 8 s were measured, and twice that beside other processes on the same cores
    assert processor_s() - started < 30
    assert (result.returncode, result.stderr) == (1, "")
    # https://huggingface.co/lmsys/vicuna-7b-v1.5 and openai/clip-vit-large-patch14-336, weights as published
    assert numbers(result.stdout, "language model") == [6_738_415_616, 6_738_415_616]
    assert numbers(result.stdout, "vision tower") == [303_507_456, 0]
    assert numbers(result.stdout, "projector") == [projector_parameters(1024, 4096)] * 2
    model = load("llava_7b_finetune", []).model
    assert language_parameters(language_config_of(model)) == 6_738_415_616
    assert clip_parameters(vision_config_of(model)) == 303_507_456
    assert "576 positions (336 px, patches of 14 px) of at most 2,048" in result.stdout
    assert "128 = micro batch 8 x accumulation 2 x data parallel 8 (1 x 8 devices)" in result.stdout
    for key in (
        "model.data.data_path",
        "model.data.image_folder",
        "model.mm_cfg.llm.from_pretrained",
        "model.mm_cfg.vision_encoder.from_pretrained",
        "model.tokenizer.type",
        "model.mm_cfg.pretrain_mm_mlp_adapter",
    ):
        assert f"- {key}: no f" in result.stdout
    assert OmegaConf.load(tmp_path / "resolved.yaml") == load("llava_7b_finetune", [])


def test_adapters_are_counted_with_the_share_that_trains(
    ready: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = language_config_of(load("quickstart_pretrain", ready[1:]).model)
    lora = [
        "model.peft.peft_scheme=lora",
        "model.mm_cfg.llm.freeze=true",
        "model.mm_cfg.vision_encoder.freeze=true",
    ]
    code, text = dry_run(capsys, *ready, *lora, "model.peft.lora_tuning.adapter_dim=8")
    queries, keys = sizes.num_heads * sizes.head_dim, sizes.num_query_groups * sizes.head_dim
    factors = sizes.num_layers * 8 * (sizes.hidden_size + queries + 2 * keys)
    assert code == 0 and numbers(text, "adapters") == [factors, factors]
    assert numbers(text, "language model")[1] == 0
    total, trained = numbers(text, "total")
    assert f"trained        {trained:,} of {total:,} parameters ({trained / total:.2%})" in text
