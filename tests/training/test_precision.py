"""Training in 16 bits: near float32, resumable bit for bit, and float16's loss scale."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neva.checkpoint.average import averaged_names
from neva.data.ledger import LEARNT, OVERFLOW, LedgerStep, read_ledger
from neva.distributed import groups
from neva.errors import CheckpointError
from neva.formats.archive import members_of
from neva.formats.torch_dist import DistributedWeights
from neva.inference.load import load_assistant
from neva.inference.trained import open_trained
from neva.optim.kinds import MAIN
from neva.optim.offload import move
from neva.training.callbacks import read_metrics
from tests.training.test_run import Kill, kill_after, run, weights
from tests.training.test_validation import recording

FP16 = ["trainer.precision=16", "model.native_amp_init_scale=1024"]
HALVES = {"bf16": ["trainer.precision=bf16"], "fp16": FP16}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> list[str]:
    """Overrides under which every run begins with the same weights."""
    start = run(tmp_path_factory.mktemp("start"), colours, steps=1) / "checkpoints" / "run.nemo"
    every = "exp_manager.checkpoint_callback_params.every_n_train_steps=3"
    return [*colours, f"model.restore_from_path={start}", every]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, begun: list[str]) -> list[float]:
    """Losses in float32."""
    return losses(run(tmp_path_factory.mktemp("exact"), begun, steps=6))


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run_dir)]


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES.keys())
@pytest.mark.parametrize("optimizer", ["fused_adam", "distributed_fused_adam"])
def test_a_run_in_16_bits_follows_float32_and_resumes_bit_for_bit(
    tmp_path: Path, begun: list[str], exact: list[float], half: list[str], optimizer: str
) -> None:
    halved = [*begun, *half, f"model.optim.name={optimizer}"]
    unbroken = run(tmp_path / "unbroken", halved, steps=6)
    # bfloat16 has 8 significant bits, which a few layers and steps carry on
    torch.testing.assert_close(losses(unbroken), exact, atol=0.02, rtol=0.02)
    with pytest.raises(Kill):
        kill_after(4, tmp_path / "resumed", [*halved, "trainer.max_steps=6"])
    resumed = run(tmp_path / "resumed", halved, steps=6)
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in read_metrics(resumed)] == [row[name] for row in read_metrics(unbroken)]
    first, second = weights(unbroken), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module:UserWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch's remarks on the projector's view, and on Megatron's shards of float32 weights
@pytest.mark.parametrize(
    ("before", "now", "spread"),
    [
        ("32", "16", "optim.name=fused_adam"),
        ("16", "32", "optim.name=fused_adam"),
        ("32", "bf16", "optim.name=distributed_fused_adam"),
        ("bf16", "32", "optim.name=distributed_fused_adam"),
        ("32", "bf16", "fsdp=true"),
        ("bf16", "32", "fsdp=true"),
        ("16", "bf16", "optim.name=fused_adam"),
    ],
)
def test_a_run_goes_on_in_another_precision_with_its_float32_weights(
    tmp_path: Path, begun: list[str], before: str, now: str, spread: str
) -> None:
    begun = [*begun, "model.native_amp_init_scale=1024", f"model.{spread}"]
    folder = run(tmp_path, [*begun, f"trainer.precision={before}"], steps=3) / "checkpoints"
    first = float32_state(folder)
    # a step that moves nothing: what is saved behind it is what was read
    still = ["model.optim.lr=1e-30", "model.optim.weight_decay=0"]
    run(tmp_path, [*begun, *still, f"trainer.precision={now}"], steps=4)
    second = float32_state(folder)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in first.values())


def float32_state(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights of the newest checkpoint before they are rounded."""
    (link,) = folder.glob("*-last")
    stored = DistributedWeights(members_of(link.resolve()), str(link))
    names = [name for name in stored if not name.startswith("optimizer.")]
    mains = {name: f"optimizer.state.{MAIN}.{name}" for name in names}
    return {name: stored[main if main in stored else name] for name, main in mains.items()}


@pytest.mark.parametrize("optimizer", ["fused_adam", "distributed_fused_adam"])
def test_an_offloaded_optimizer_trains_and_averages_bit_for_bit_the_same(
    tmp_path: Path, colours: list[str], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [*colours, "trainer.precision=bf16", f"model.optim.name={optimizer}"]
    common += [f"exp_manager.ema.{word}" for word in ("enable=true", "decay=0.75")]
    common += [
        f"exp_manager.checkpoint_callback_params.{word}"
        for word in ("every_n_train_steps=1", "save_top_k=-1")
    ]
    with monkeypatch.context() as patch:
        recorded = recording(patch)
        plain = run(tmp_path, common, steps=3, name="plain")
    offloaded = run(tmp_path, [*common, "model.optim.cpu_offload=true"], steps=3, name="offloaded")
    for suffix in ("", "-EMA"):
        first, second = weights(plain, suffix), weights(offloaded, suffix)
        assert all(torch.equal(first[name], second[name]) for name in first)

    # the average is that of the float32 main weights
    checkpoints = [next((plain / "checkpoints").glob(f"*step={step}-*")) for step in (1, 2, 3)]
    trained = averaged_names(checkpoints[0])
    average = {name: value.double() for name, value in recorded[0].items() if name in trained}
    for folder in checkpoints:
        stored = DistributedWeights(members_of(folder), str(folder))
        mains = {name: stored[f"optimizer.state.fp32_param.{name}"] for name in average}
        average = {name: 0.75 * value + 0.25 * mains[name] for name, value in average.items()}
    groups.init_process_group(0, 1)  # the runs have left theirs
    groups.init_model_parallel(groups.ParallelSizes(), seed=1)
    device, half = torch.device("cpu"), torch.bfloat16
    answering = load_assistant(checkpoints[-1], device, half, None, None, None, use_ema=True).model
    for name, value in answering.named_parameters():
        if name not in trained:
            continue
        exact = stored[f"optimizer.state.average.{name}"]
        torch.testing.assert_close(exact.double(), average[name], atol=1e-7, rtol=1e-6)  # float32
        assert torch.equal(value, exact.bfloat16()), name
        assert torch.equal(second[name], value[: len(second[name])]), name
    with pytest.raises(CheckpointError, match="which holds one set of weights"):
        open_trained(plain / "checkpoints" / "plain-EMA.nemo", use_ema=True)


def test_offloading_moves_moments_to_another_device_and_leaves_the_counter() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    adam.step()
    elsewhere = torch.device("meta")  # the one other device that every machine has; weights cannot go there
    move(SimpleNamespace(optimizer=SimpleNamespace(param_groups=[], state=adam.state)), elsewhere)
    assert {kind: tensor.device for kind, tensor in adam.state[weight].items()} == {
        "step": torch.device("cpu"), "exp_avg": elsewhere, "exp_avg_sq": elsewhere,
    }  # fmt: skip


def test_an_overflow_skips_the_step_and_lowers_the_loss_scale(tmp_path: Path, colours: list[str]) -> None:
    scaled = ["trainer.precision=16", f"model.native_amp_init_scale={2**30}", "model.hysteresis=2"]
    run_dir = run(tmp_path, [*colours, *scaled], steps=40)
    rows = read_metrics(run_dir)
    scales = [row["loss_scale"] for row in rows]
    assert scales[0] == 2**30 and scales[-1] < 2**20
    assert all(later in (scale, scale / 2) for scale, later in zip(scales, scales[1:], strict=False))
    skipped = [row["grad_norm"] == 0.0 for row in rows]
    steps = [entry for entry in read_ledger(run_dir) if isinstance(entry, LedgerStep)]
    assert [step.treatment for step in steps] == [OVERFLOW if passed else LEARNT for passed in skipped]
    assert skipped[0] and not skipped[-1]
    assert [row["consumed_samples"] for row in rows] == [4.0 * (step + 1) for step in range(40)]


def test_the_loss_scale_grows_again(tmp_path: Path, colours: list[str]) -> None:
    growing = [*FP16, "model.native_amp_growth_interval=3"]
    scales = [row["loss_scale"] for row in read_metrics(run(tmp_path, [*colours, *growing], steps=7))]
    assert scales == [1024] * 2 + [2048] * 3 + [4096] * 2
