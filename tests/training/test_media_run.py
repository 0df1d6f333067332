"""Images of any resolution and videos, from the file through training and the .nemo to answers."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from neva.cli import main
from neva.config.load import load
from neva.distributed import groups
from neva.formats.nemo import open_nemo
from neva.inference.answer import Answer, answer_all
from neva.inference.load import load_configured
from neva.inference.prompts import read_requests
from neva.training.callbacks import read_metrics
from neva.training.run import train
from tests.training.conftest import COLOURS

SHAPES = {"red": (40, 16), "green": (16, 44), "blue": (30, 30)}
QUESTION = "what colour is this?"


def turns(placeholders: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"{placeholders}\n{QUESTION}"}, {"from": "gpt", "value": answer}]


def write_data(folder: Path) -> None:
    """Images of one colour and three shapes, two images in a record, and a clip."""
    records: list[dict[str, object]] = []
    for colour, size in SHAPES.items():
        Image.new("RGB", size, COLOURS[colour]).save(folder / f"{colour}.png")
        records.append({"image": f"{colour}.png", "conversations": turns("<image>", colour)})
    records.append(
        {"image": ["red.png", "blue.png"], "conversations": turns("<image> is <image>", "red blue")}
    )
    with av.open(str(folder / "white.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = np.full((32, 32, 3), 240, np.uint8)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    records.append({"video": "white.mp4", "conversations": turns("<video>", "white")})
    records.append({"conversations": turns("it", "is")})
    (folder / "media.json").write_text(json.dumps(records))


def answers_of(nemo: Path, folder: Path, asked: list[dict[str, object]]) -> dict[int, object]:
    """Answers to prompts whose media lie in the folder, or why there is none, by the number of the prompt."""
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, asked)))
    cfg = load(
        "llava_7b_inference",
        [f"neva_model_file={nemo}", f"prompt_file={folder}/prompts.jsonl", f"output_file={folder}/out.jsonl",
         f"inference.images_base_path={folder}", "inference.greedy=true", "inference.tokens_to_generate=4",
         "trainer.precision=32", "trainer.accelerator=cpu"],
    )  # fmt: skip
    groups.init_process_group(rank=0, world_size=1)  # training has left its own
    groups.init_model_parallel(groups.ParallelSizes(), seed=1)
    requests = read_requests(folder / "prompts.jsonl", folder, None)
    assistant = load_configured(cfg, torch.device("cpu"))
    found: dict[int, object] = {}
    for some in answer_all(assistant, cfg.inference, dict(enumerate(requests))):
        found |= some
    return found


def test_images_of_any_resolution_and_videos_are_learnt_saved_and_answered(
    tmp_path: Path, colours: list[str]
) -> None:
    path = run(
        tmp_path,
        colours,
        "model.data.image_aspect_ratio=anyres",
        "model.mm_cfg.mm_mlp_adapter_type=mlp2x_gelu_newline",
    )
    newline = open_nemo(path).weights["projector.image_newline"]
    assert newline.shape == (32,) and torch.count_nonzero(newline) == 32
    ask(tmp_path, path)


def test_images_of_their_own_shape_at_another_input_size_are_learnt_saved_and_answered(
    tmp_path: Path, colours: list[str]
) -> None:
    path = run(
        tmp_path, colours, "model.data.image_aspect_ratio=keep", "model.mm_cfg.vision_encoder.input_size=24"
    )
    file = open_nemo(path)
    assert file.weights["vision_tower.model.embeddings.position_embedding.weight"].shape == (1 + 4, 16)
    assert file.image_processor is not None and file.image_processor["crop_size"]["height"] == 24
    ask(tmp_path, path)


def test_images_of_so_many_patches_are_learnt_saved_and_answered(tmp_path: Path, colours: list[str]) -> None:
    path = run(
        tmp_path,
        colours,
        "model.data.image_aspect_ratio=naflex",
        "model.data.max_num_patches=6",
        "model.mm_cfg.vision_encoder.model_type=siglip2",
        "model.mm_cfg.vision_encoder.hidden_act=gelu_pytorch_tanh",
    )
    weights = open_nemo(path).weights
    assert weights["vision_tower.model.embeddings.patch_embedding.weight"].shape == (16, 3 * 8 * 8)
    ask(tmp_path, path)


def run(tmp_path: Path, colours: list[str], *more: str) -> Path:
    """Trains until the data is known, and returns the `.nemo`."""
    write_data(tmp_path)
    media = [
        f"model.data.data_path={tmp_path}/media.json",
        f"model.data.image_folder={tmp_path}",
        *more,
        "model.data.media_type=video",
        "model.data.num_frames=3",
        "model.data.video_reader=pyav",
        "model.micro_batch_size=3",
        "model.global_batch_size=6",
        "model.optim.lr=5e-3",
        "trainer.max_steps=40",
        f"exp_manager.exp_dir={tmp_path}",
        "exp_manager.name=run",
    ]
    folder = train(load("quickstart_finetune", [*colours, *media]))
    losses = [row["loss"] for row in read_metrics(folder)]
    assert losses[-1] < 0.1 * losses[0]
    return next((folder / "checkpoints").glob("*.nemo"))


def ask(tmp_path: Path, path: Path) -> None:
    """The model answers as it was taught, and names what it cannot read."""
    asked: list[dict[str, object]] = [
        *({"prompt": f"<image>\n{QUESTION}", "image": f"{colour}.png"} for colour in SHAPES),
        {"prompt": f"<image> is <image>\n{QUESTION}", "image": ["red.png", "blue.png"]},
        {"prompt": QUESTION, "video": "white.mp4"},
        {"prompt": f"<video> <video>\n{QUESTION}", "video": ["white.mp4", "gone.mp4"]},
    ]
    (tmp_path / "gone.mp4").write_text("no video")
    found = answers_of(path, tmp_path, asked)
    answers = [found[number] for number in range(5)]
    assert all(isinstance(answer, Answer) for answer in answers)
    said = [answer.text for answer in answers if isinstance(answer, Answer)]
    assert said == [*SHAPES, "red blue", "white"]
    assert "video file" in str(found[5]) and "cannot be decoded" in str(found[5])


@pytest.mark.parametrize(
    ("kind", "is_tiled", "positions", "reason"),
    [
        ("mlp2x_gelu_downsample", True, 4, "was trained with use_image_tile=true, which neither layout"),
        ("mlp_downsample", True, 4, "was trained with use_image_tile=true, which neither layout"),
        ("mlp_downsample", False, 1, "neither layout of LLaVA has a mlp_downsample projector"),
    ],
)
def test_a_downsampling_projector_is_learnt_saved_and_answers_and_is_not_exported(
    tmp_path: Path,
    colours: list[str],
    capsys: pytest.CaptureFixture[str],
    kind: str,
    is_tiled: bool,
    positions: int,
    reason: str,
) -> None:
    records = []
    for colour, size in SHAPES.items():
        Image.new("RGB", size, COLOURS[colour]).save(tmp_path / f"{colour}.png")
        records.append({"image": f"{colour}.png", "conversations": turns("<image>", colour)})
    records.append({"conversations": turns("it", "is")})
    (tmp_path / "data.json").write_text(json.dumps(records))
    changes = [
        f"model.data.data_path={tmp_path}/data.json",
        f"model.data.image_folder={tmp_path}",
        "model.data.image_aspect_ratio=pad",
        f"model.mm_cfg.mm_mlp_adapter_type={kind}",
        f"model.mm_cfg.use_image_tile={is_tiled}",
        "model.optim.lr=5e-3",
        "trainer.max_steps=25",
        f"exp_manager.exp_dir={tmp_path}",
        "exp_manager.name=run",
    ]
    folder = train(load("quickstart_finetune", [*colours, *changes]))
    path = next((folder / "checkpoints").glob("*.nemo"))
    nemo = open_nemo(path)
    assert nemo.config.data.image_token_len == positions
    assert nemo.config.data.image_size == [16 * (1 + is_tiled)] * 2
    if kind == "mlp2x_gelu_downsample":
        assert nemo.weights["projector.alpha"].abs().item() > 1e-3
    asked: list[dict[str, object]] = [
        {"prompt": f"<image>\n{QUESTION}", "image": f"{colour}.png"} for colour in SHAPES
    ]
    said = [
        answer.text for answer in answers_of(path, tmp_path, asked).values() if isinstance(answer, Answer)
    ]
    assert said == [*SHAPES]
    for layout in ("original", "llava-hf"):
        target = tmp_path / f"llava-{layout}"
        assert main(["convert", str(path), str(target), "--layout", layout]) == 1
        assert reason in capsys.readouterr().err
        assert not target.exists()
