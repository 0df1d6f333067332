"""A dry run says what memory the fullest rank takes, and refuses what this machine cannot hold."""

import psutil

from neva.config.load import load
from neva.findings import Findings
from neva.planner.preflight import find_memory


def findings(recipe: str, *overrides: str) -> Findings:
    found = Findings()
    find_memory(load(recipe, list(overrides)), found)
    return found


def test_a_model_that_does_not_fit_this_machine_is_a_problem() -> None:
    # 7B with float32 main weights and Adam's state on 8 processes that hold the whole model each: 18 bytes a parameter
    (problem,) = findings("llava_7b_finetune", "trainer.accelerator=cpu").problems
    has = psutil.virtual_memory().total / 8 / 2**30
    assert problem.startswith("weights, gradients and optimizer state take 11")
    assert f"there are {has:,.1f} GiB for each of the processes on this machine: " in problem


def test_a_small_model_fits() -> None:
    found = findings("quickstart_pretrain", "trainer.accelerator=cpu")
    assert found.problems == []


def test_the_layout_of_the_recipe_is_what_is_counted() -> None:
    alone, sharded = (
        dict(findings("llava_7b_finetune", layout).facts)["memory"]
        for layout in ("parallel=single", "parallel=fsdp")
    )
    # 16 of 18 bytes a parameter go to 8 ranks, of 6.76 G trained ones: 88 GiB less
    assert 80 < float(alone.split()[0]) - float(sharded.split()[0]) < 110


def test_what_waits_in_cpu_memory_is_no_problem() -> None:
    offloaded = findings("llava_7b_finetune", "trainer.accelerator=cpu", "model.optim.cpu_offload=true")
    assert offloaded.problems == []
