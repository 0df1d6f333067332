"""Prompt files through a `.nemo`: result lines, continuing, refusing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from neva.config.load import load
from neva.config.paths import model_source
from neva.data.media import reader
from neva.errors import ConfigError, DataError
from neva.findings import Findings
from neva.inference import images as shared
from neva.inference.jsonl import run
from neva.inference.preflight import find_model, find_prompts
from neva.inference.prompts import Request, read_requests
from neva.inference.results import AnsweredBy, Results, written_by_one
from neva.model.llava import NevaModel
from neva.serving.run import ModelSource, _loaded
from tests.megatron import launcher_free, run_command
from tests.training.conftest import colours  # noqa: F401
from tests.training.test_run import run as train


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> Path:  # noqa: F811
    """A model that has learnt its eight samples."""
    folder = tmp_path_factory.mktemp("nemo")
    run_dir = train(folder, [*colours, "model.optim.lr=5e-3", "model.global_batch_size=10"], steps=150)
    return next((run_dir / "checkpoints").glob("*.nemo"))


@pytest.fixture
def images(colours: list[str]) -> str:  # noqa: F811
    return next(item.split("=")[1] for item in colours if item.startswith("model.data.image_folder="))


ROWS = [
    {"prompt": "<image>\nwhat colour is this?", "image": "0.png", "question_id": 7},
    {"text": "<image>\nwhat colour is this?", "image": "1.png"},
    {"prompt": "is it?"},
    {"prompt": "<image>\nwhat colour is this?", "image": ["2.png"]},
]
ANSWERS = ["red", "green", "red", "blue"]
LOG_PROBS = ["inference.compute_logprob=true"]
ANYBODY = AnsweredBy("my.nemo")
NO_JSON = "line 2 is not valid JSON: Expecting value: line 1 column 12 (char 11)"


def infer(nemo: Path, images: str, prompts: Path, output: Path, *overrides: str) -> list[dict[str, object]]:
    fixed = [
        f"neva_model_file={nemo}", f"prompt_file={prompts}", f"output_file={output}",
        f"inference.images_base_path={images}", "inference.batch_size=3",
    ]  # fmt: skip
    run(load("quickstart_inference", [*fixed, *overrides]))
    return [json.loads(line) for line in output.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_every_prompt_gets_its_line_in_order(nemo: Path, images: str, tmp_path: Path, suffix: str) -> None:
    results = infer(nemo, images, write(tmp_path / f"prompts{suffix}", ROWS), tmp_path / "results.jsonl")
    assert [row["text"] for row in results] == ANSWERS
    first = results[0]
    assert first["question_id"] == 7 and first["image"] == "0.png" and first["model_id"] == str(nemo)
    with tarfile.open(nemo) as archive:
        manifest = archive.extractfile("manifest.json").read()  # type: ignore[union-attr]
    assert first["prompt"] == ROWS[0]["prompt"] and first["answer_id"] == 0
    assert first["metadata"] == {"model_content": hashlib.sha256(manifest).hexdigest()[:16]}
    assert str(first["full_text"]).count("<image>") == 1 and str(first["full_text"]).endswith("red")
    assert results[1]["prompt"] == ROWS[1]["text"]


def test_a_result_file_is_continued_behind_its_last_whole_line(
    nemo: Path, images: str, tmp_path: Path
) -> None:
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS), tmp_path / "results.jsonl"
    whole = infer(nemo, images, prompts, output)
    lines = output.read_text().splitlines(keepends=True)
    marked = json.dumps({**whole[0], "kept": True}) + "\n"
    output.write_text(marked + lines[1] + lines[2][:20])
    continued = infer(nemo, images, prompts, output)
    assert continued[0].pop("kept") and continued == whole
    assert infer(nemo, images, prompts, output)[1:] == whole[1:]  # nothing left to do


def test_two_commands_do_not_write_one_file(nemo: Path, images: str, tmp_path: Path) -> None:
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS), tmp_path / "results.jsonl"
    with written_by_one(output):
        with pytest.raises(
            ConfigError, match=rf"is being written by another command \(process {os.getpid()} on"
        ):
            infer(nemo, images, prompts, output)
        assert not output.exists()
    assert len(infer(nemo, images, prompts, output)) == len(ROWS)
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "results.jsonl"}


def test_results_of_other_prompts_are_not_continued(nemo: Path, images: str, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    infer(nemo, images, write(tmp_path / "prompts.jsonl", ROWS[:1]), output)
    other = write(tmp_path / "other.jsonl", ROWS[1:])
    before = output.read_bytes()
    with pytest.raises(ValueError, match="line 1, answers .*choose another output_file"):
        infer(nemo, images, other, output)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("key", "other"), [("image", "1.png"), ("images", ["1.png"]), ("system", "Be brief.")]
)
def test_results_of_other_images_or_system_prompts_are_not_continued(
    tmp_path: Path, key: str, other: object
) -> None:
    output, answered = tmp_path / "results.jsonl", {"prompt": "what?", "images": ["0.png"], "system": None}
    write(output, [{**answered, "text": "red"}])
    same = Request({"prompt": "what?", "images": ["0.png"]}, "what?", ())
    assert Results(output, [same], ANYBODY).unanswered() == []
    with pytest.raises(
        ConfigError, match=f"line 1, answers the {key} .*; prompt 1 has .*another output_file"
    ):
        Results(output, [Request({**answered, key: other}, "what?", ())], ANYBODY)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (AnsweredBy("runs/one.nemo", "0a"), ""),
        (AnsweredBy("runs/../runs/one.nemo", "0a"), ""),
        (AnsweredBy("moved/one.nemo", "0a"), ""),
        (
            AnsweredBy("two.nemo", "0b"),
            "line 1, is an answer of runs/one.nemo, not of two.nemo; choose another",
        ),
        (
            AnsweredBy("two.nemo"),
            "line 1, is an answer of runs/one.nemo, not of two.nemo; choose another",
        ),
        (
            AnsweredBy("runs/one.nemo", "0b"),
            "line 1, is an answer of what runs/one.nemo held before it was written",
        ),
    ],
)
def test_results_of_another_model_are_not_continued(tmp_path: Path, model: AnsweredBy, message: str) -> None:
    written = AnsweredBy("runs/one.nemo", "0a")
    row = {"prompt": "what?", "text": "red", "model_id": written.model_id, "metadata": written.metadata}
    output = write(tmp_path / "results.jsonl", [row])
    requests = [Request({"prompt": "what?"}, "what?", ())]
    if message:
        with pytest.raises(ConfigError, match=message):
            Results(output, requests, model)
    else:
        assert Results(output, requests, model).unanswered() == []


def test_a_checkpoint_of_a_run_answers_like_its_nemo(nemo: Path, images: str, tmp_path: Path) -> None:
    checkpoint = next(nemo.parent.glob("*-last"))
    prompts = write(tmp_path / "prompts.jsonl", ROWS)
    found = infer(checkpoint, images, prompts, tmp_path / "results.jsonl")
    assert [row["text"] for row in found] == ANSWERS
    named = [f"checkpoint_dir={checkpoint.parent}", f"checkpoint_name={checkpoint.name}"]
    cfg = load("quickstart_inference", ["neva_model_file=null", *named])
    assert model_source(cfg) == checkpoint
    with pytest.raises(ConfigError, match="give either the first or the other two"):
        load("quickstart_inference", named)
    lost = tmp_path / "lost"
    shutil.copytree(checkpoint, lost)
    with pytest.raises(ConfigError, match="lost has no configuration at .*give hparams_file"):
        infer(lost, images, prompts, tmp_path / "other.jsonl")
    kept = [f"hparams_file={nemo.parent.parent / 'config.yaml'}"]
    assert infer(lost, images, prompts, tmp_path / "other.jsonl", *kept)[0]["text"] == ANSWERS[0]


@pytest.mark.parametrize("layout", [[], ["tensor_model_parallel_size=2"]])
def test_two_processes_answer_as_one(nemo: Path, images: str, tmp_path: Path, layout: list[str]) -> None:
    """Each with half of the prompts, or both with half of the model."""
    broken = {"prompt": "<image>\nwhat colour is this?", "image": "prompts.jsonl"}
    rows = [*ROWS, *ROWS[::-1], broken, ROWS[3]]
    prompts, output = write(Path(images) / "prompts.jsonl", rows), tmp_path / "results.jsonl"
    output.write_text("")
    command = [
        "-m", "neva", "infer", "--config-name", "quickstart_inference", f"neva_model_file={nemo}",
        f"prompt_file={prompts}", f"output_file={output}", f"inference.images_base_path={images}", "trainer.devices=2",
        "inference.batch_size=3", *layout,
    ]  # fmt: skip
    done = run_command(command, tmp_path, launcher_free(os.environ))
    assert done.returncode == 1 and done.stderr.count("1 of 10 prompts could not be asked") == 1, done.stderr
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in results] == [*ANSWERS, *ANSWERS[::-1], "", ANSWERS[3]]
    assert "prompts.jsonl" in results[8]["error"]


def test_a_model_that_cannot_be_divided_so_is_refused(nemo: Path, images: str, tmp_path: Path) -> None:
    cfg = load(
        "quickstart_inference",
        [f"neva_model_file={nemo}", "pipeline_model_parallel_size=3", "trainer.devices=3"],
    )
    found = Findings()
    find_model(cfg, found)
    assert found.problems == ["model.num_layers=2 cannot be divided by model.pipeline_model_parallel_size=3"]


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.29), ("nf4", 0.15)])
def test_a_packed_model_answers_alike_and_takes_the_memory_that_was_said(
    nemo: Path, images: str, tmp_path: Path, kind: str, share: float
) -> None:
    prompts, quantised = write(tmp_path / "prompts.jsonl", ROWS), f"inference.quantization={kind}"
    results = infer(nemo, images, prompts, tmp_path / "results.jsonl", quantised, *LOG_PROBS)
    assert [row["text"] for row in results] == ANSWERS
    exact = infer(nemo, images, prompts, tmp_path / "exact.jsonl", *LOG_PROBS)
    assert [row["logprob"] for row in results] != [row["logprob"] for row in exact]

    cfg = load("quickstart_inference", [f"neva_model_file={nemo}", quantised])
    found = Findings()
    find_model(cfg, found)
    (said,) = [line for fact, line in found.facts if fact == "weights"]
    assert said.endswith(f"float32, matrices of the language model's layers in {kind}")
    with _loaded(ModelSource(nemo, "cpu", quantization=kind)) as served:
        model = served.model
    held = [
        *model.parameters(),
        *(value for name, value in model.named_buffers() if name.endswith(".scales")),
    ]
    assert said.startswith(f"{sum(value.nbytes for value in held) / 2**10:,.1f} KiB")
    matrix = model.language_model.decoder.layers[0].mlp.linear_fc1
    assert matrix.weight.nbytes + matrix.scales.nbytes <= share * 2 * 48 * 32 * 4, "bytes in float32"
    with pytest.raises(ConfigError, match="a packed model lies on one device"):
        load("quickstart_inference", [quantised, "tensor_model_parallel_size=2", "trainer.devices=2"])


def test_insert_image_token_puts_the_placeholder(nemo: Path, images: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "what colour is this?", "image": "2.png"}])
    results = infer(nemo, images, prompts, tmp_path / "results.jsonl", "inference.insert_image_token=left")
    assert results[0]["prompt"] == "what colour is this?" and results[0]["text"] == "blue"
    assert "<image>what colour is this" in str(results[0]["full_text"])
    default = infer(nemo, images, prompts, tmp_path / "default.jsonl")
    assert default == results


def test_end_strings_cut_the_answer(nemo: Path, images: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", ROWS[:2])
    results = infer(nemo, images, prompts, tmp_path / "results.jsonl", "inference.end_strings=[red]")
    assert [row["text"] for row in results] == ["", "green"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "0.png"}, "no prompt of .* can be asked; the first: line 1: .* an object with a string"),
        ({"prompt": "<image> and?", "image": ["0.png", "1.png"]}, "found 1 <image> for 2 images"),
        ({"prompt": "what?", "image": "a" * 300}, "line 1: no file at .*aaa"),
        ({"prompt": "a\ud83d"}, r"line 1: holds \\ud83d at character 1, half of a character"),
        ({"prompt": "a", "system": []}, r"line 1: found system \[\], expected a string"),
        ({"prompt": "<image>", "image": "none.png"}, "line 1: no file at .*none.png"),
        ({"prompt": "<image>", "image": 5}, "line 1: found image 5, expected a file name"),
    ],
)
def test_bad_prompts_are_refused_before_the_model_is_loaded(
    tmp_path: Path, images: str, row: dict[str, object], message: str
) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        infer(tmp_path / "no.nemo", images, prompts, tmp_path / "results.jsonl")


def test_lines_that_are_no_prompts_have_error_lines_and_the_others_are_answered(
    nemo: Path, images: str, tmp_path: Path
) -> None:
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS), tmp_path / "results.jsonl"
    bad = ['{"prompt": ', "7", '{"text": 5, "question_id": 9}', '{"prompt": "a", "image": "no.png"}']
    prompts.write_text("\n" + "\n".join(bad) + "\n" + prompts.read_text())
    found = Findings()
    cfg = [f"prompt_file={prompts}", f"inference.images_base_path={images}", f"output_file={output}"]
    find_prompts(load("quickstart_inference", [*cfg, f"neva_model_file={nemo}"]), found)
    assert found.problems == [f"4 of 8 prompts cannot be asked; the first: {NO_JSON}"]
    with pytest.raises(
        DataError, match=f"4 of 8 prompts could not be asked.* prompt 1: {re.escape(NO_JSON)}"
    ):
        infer(nemo, images, prompts, output)
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in results] == ["", "", "", "", *ANSWERS]
    assert [row["error"].partition(" ")[2][:2] for row in results[:4]] == ["2 ", "3:", "4:", "5:"]
    assert results[2]["question_id"] == 9 and results[3]["prompt"] == "a"
    prompts.write_text(prompts.read_text().replace('{"prompt": \n', '{"prompt": "is it?"}\n'))
    with pytest.raises(DataError, match="3 of 8 prompts could not be asked"):
        infer(nemo, images, prompts, output)
    assert json.loads(output.read_text().splitlines()[0])["text"] == ANSWERS[2]


def test_result_lines_have_tokens_and_their_probabilities(nemo: Path, images: str, tmp_path: Path) -> None:
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS), tmp_path / "results.jsonl"
    plain = infer(nemo, images, prompts, tmp_path / "plain.jsonl")
    for row, said in zip(
        infer(nemo, images, prompts, output, "inference.all_probs=true"), plain, strict=True
    ):
        whole = np.load(tmp_path / str(row.pop("full_logprob")))
        ids, log_probs = row.pop("token_ids"), row.pop("logprob")
        assert whole[range(len(ids)), ids].tolist() == pytest.approx(log_probs)  # type: ignore[call-overload, arg-type]
        assert np.exp(whole).sum(-1) == pytest.approx(1, abs=1e-5) and min(log_probs) > -0.5  # type: ignore[call-overload]
        assert row.pop("tokens") == [said["text"], "</s>"] and row == said


def test_a_prompt_can_begin_without_its_first_token(nemo: Path, images: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "is it?"}])
    with_it, without = (
        infer(nemo, images, prompts, tmp_path / f"{bos}.jsonl", f"inference.add_BOS={bos}", *LOG_PROBS)[0]
        for bos in (True, False)
    )
    assert with_it["full_text"] == without["full_text"]  # which show no special tokens
    assert with_it["logprob"] != without["logprob"]


def test_a_prompt_that_cannot_be_asked_has_an_error_line_and_is_the_only_one_asked_again(
    nemo: Path, images: str, tmp_path: Path
) -> None:
    rows = [{"prompt": "<image>\nwhat colour is this?", "image": f"{number % 4}.png"} for number in range(20)]
    rows[16]["prompt"] = "<image>\nsay </s>"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows[18]["image"] = str(tmp_path / "broken.png")
    prompts, output = write(tmp_path / "prompts.jsonl", rows), tmp_path / "results.jsonl"
    with pytest.raises(
        DataError, match=r"2 of 20 prompts could not be asked, .*the first: prompt 17: .*'</s>'"
    ):
        infer(nemo, images, prompts, output, "inference.batch_size=1")
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [number for number, row in enumerate(results) if "error" in row] == [16, 18]
    assert "cannot be decoded" in results[18]["error"] and results[16]["prompt"] == "<image>\nsay </s>"
    assert all(row["text"] for row in results if "error" not in row)
    output.write_text("".join(json.dumps({**row, "kept": True}) + "\n" for row in results))
    rows[16]["prompt"], rows[18]["image"] = rows[0]["prompt"], "0.png"
    again = infer(nemo, images, write(prompts, rows), output)
    assert len(again) == 20 and not any("error" in row for row in again)
    assert [number for number, row in enumerate(again) if "kept" not in row] == [16, 18]
    assert again[16]["text"] == again[18]["text"] == again[0]["text"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_that_many_prompts_show_is_read_and_encoded_once(
    nemo: Path, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    rows = [{"prompt": "<image>\nwhat colour is this?", "image": f"{number % 3}.png"} for number in range(13)]
    rows.append({"prompt": "<image> and <image>?", "image": ["0.png", "0.png"]})
    encoded, read = [], []
    encode, load_image = shared.encode, reader.load_image

    def counted(model: NevaModel, pixels: Tensor, *arguments: Any) -> Tensor:
        encoded.append(len(pixels))
        return encode(model, pixels, *arguments)

    def noted(path: Path, *arguments: bool) -> Image.Image:
        read.append(path.name)
        return load_image(path, *arguments)

    monkeypatch.setattr(shared, "encode", counted)
    monkeypatch.setattr(reader, "load_image", noted)
    prompts, output = write(tmp_path / "prompts.jsonl", rows), tmp_path / "results.jsonl"
    results = infer(nemo, images, prompts, output, f"inference.batch_size={batch_size}")
    assert sum(encoded) == 3 and sorted(read) == ["0.png", "1.png", "2.png"]
    assert [row["text"] for row in results[:13]] == [
        ["red", "green", "blue"][number % 3] for number in range(13)
    ]


@pytest.mark.parametrize("greedy", [True, False])
def test_the_batch_size_changes_no_answer(nemo: Path, images: str, tmp_path: Path, greedy: bool) -> None:
    texts = ["what colour is this?", "is it?", "a long question: " + "what " * 30, "what?"]
    rows: list[dict[str, object]] = [
        {"prompt": f"<image>\n{texts[number % 4]}", "image": f"{number % 5}.png"} for number in range(11)
    ]
    prompts = write(tmp_path / "prompts.jsonl", rows)
    settings = [f"inference.greedy={greedy}", "inference.temperature=3.0", "inference.tokens_to_generate=12"]
    answers = [
        infer(nemo, images, prompts, tmp_path / f"{size}.jsonl", f"inference.batch_size={size}", *settings)
        for size in (1, 4)
    ]
    assert answers[0] == answers[1]
    assert len({str(row["text"]) for row in answers[0]}) > 2


def test_an_image_that_cannot_be_read_is_the_error_of_its_prompt_alone(
    nemo: Path, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: Any) -> Image.Image:
        """Reads as from a broken disk, which a test does not have; root may read what has no permission."""
        if Path(file.name).name == "0.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opens(file)

    opens = Image.open
    monkeypatch.setattr(Image, "open", fails)
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS), tmp_path / "results.jsonl"
    with pytest.raises(DataError, match="1 of 4 prompts could not be asked"):
        infer(nemo, images, prompts, output)
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert "cannot be read (Input/output error)" in results[0]["error"]
    assert [row["text"] for row in results[1:]] == ANSWERS[1:]


def test_a_null_column_hides_no_synonym(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    row = {"prompt": None, "text": "what?", "image": None, "images": ["0.png"], "system": None}
    (request,) = read_requests(write(tmp_path / "prompts.jsonl", [row]), tmp_path, None)
    assert (request.prompt, request.question) == ("what?", "<image>\nwhat?")
    assert request.images == (tmp_path / "0.png",)


@pytest.mark.parametrize(
    ("encoding", "message"), [("utf-16", "is UTF-16, expected UTF-8"), ("gbk", "is not UTF-8")]
)
def test_a_prompt_file_of_another_encoding_is_named(tmp_path: Path, encoding: str, message: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes('[{"prompt": "这是什么"}]'.encode(encoding))
    with pytest.raises(ConfigError, match=f"prompts.json {message}"):
        read_requests(path, tmp_path, None)


def test_a_key_with_half_a_character_can_be_written(tmp_path: Path) -> None:
    requests = read_requests(write(tmp_path / "p.jsonl", [{"prompt": "a", "id": "\ud83d"}]), tmp_path, None)
    results = Results(tmp_path / "results.jsonl", requests, ANYBODY)
    results.add({0: {**requests[0].keys, "text": "b"}})
    assert json.loads((tmp_path / "results.jsonl").read_text())["id"] == "\ud83d"


def test_a_line_separator_within_a_prompt_does_not_end_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "one\u2028line\x85"}, {"prompt": "two"}]
    path.write_text("\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    assert [request.question for request in read_requests(path, tmp_path, None)] == [
        "one\u2028line\x85",
        "two",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no prompt"), ("\n{", r"no prompt of .* can be asked; the first: line 2 is not valid JSON")],
)
def test_a_prompt_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_requests(tmp_path / "prompts.jsonl", tmp_path, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "line 1, is no result line"),
        ('{"prompt": "a"}', "line 1, is no result line"),
        ("garbage", "line 1, is not valid JSON"),
    ],
)
def test_a_file_that_holds_no_results_is_not_continued(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "results.jsonl").write_text(line + "\n")
    requests = [Request({"prompt": "a"}, "a", ())]
    with pytest.raises(ConfigError, match=message):
        Results(tmp_path / "results.jsonl", requests, ANYBODY)
    assert (tmp_path / "results.jsonl").read_text() == line + "\n"
