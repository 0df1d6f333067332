"""A language model that transformers runs, on several processes: the numbers of one, sharded or not."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.test_training import EMA, FSDP, assert_same_end, handed_over, train
from tests.training.conftest import colours  # noqa: F401
from tests.training.test_hugging_face_run import starcoder  # noqa: F401


def test_shards_of_packed_rows_continue_what_one_process_began(
    tmp_path: Path,
    starcoder: list[str],  # noqa: F811
) -> None:
    packed = ["model.data.packed_sequence=true", "model.micro_batch_size=1", "model.global_batch_size=2"]
    overrides = [
        *starcoder,
        *packed,
        *EMA,
        "model.language_backend=huggingface",
        "exp_manager.checkpoint_callback_params.save_top_k=3",
    ]
    alone = train(tmp_path / "alone", overrides, steps=6)
    shares = train(handed_over(alone, tmp_path / "shares"), [*overrides, *FSDP], steps=6)
    assert_same_end(shares, alone, first_step=4)
