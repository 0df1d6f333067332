"""Runs of real processes that may be killed, or harmed in a step; they share their start-up (`warm_processes`)."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Collection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from neva.config.load import load
from neva.training import run as run_module
from neva.training.callbacks import Progress
from tests.megatron import become, free_ports, launcher_free, warm_processes

RECIPE = "quickstart_finetune"


class Ranks:
    """The processes of a run that goes on.

    Args:
        overrides: of the recipe; `trainer.devices` is `size`.
        size: processes.
        log: gets what they print.
        poisoned: step, rank, and what is no number there on that rank: its images (`pixels`), or the gradient of its
            projector alone (`gradient`).
    """

    def __init__(
        self, overrides: list[str], size: int, log: Path, poisoned: Collection[tuple[int, int, str]] = ()
    ) -> None:
        (port,) = free_ports(1)
        arguments = [*overrides, f"trainer.devices={size}"]
        self.log = log
        context: Any = warm_processes()
        self.processes: list[BaseProcess] = [
            context.Process(target=_rank, args=(rank, size, port, arguments, log, poisoned))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    @property
    def is_alive(self) -> bool:
        """Whether one of them goes on."""
        return any(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """Kills all of them at once, as a power cut does."""
        for process in self.processes:
            process.kill()
        self.wait()

    def wait(self) -> list[int]:
        """Waits for their ends and returns their exit codes."""
        for process in self.processes:
            process.join()
        codes = [process.exitcode for process in self.processes]
        assert None not in codes
        return [int(code or 0) for code in codes]

    def finish(self) -> None:
        """Waits for their ends; AssertionError with what they printed unless all went well."""
        codes = self.wait()
        assert not any(codes), f"{codes}: {self.log.read_text()[-4000:]}"


def _rank(
    rank: int,
    size: int,
    port: int,
    overrides: list[str],
    log: Path,
    poisoned: Collection[tuple[int, int, str]],
) -> None:
    environment = launcher_free(os.environ)
    if size > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": size, "MASTER_PORT": port}
        environment |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    become(environment, log, log)
    mine = {(step, what) for step, of_rank, what in poisoned if of_rank == rank}

    class Poisoning(Progress):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.is_harmed = (trainer.global_step + 1, "gradient") in mine
            if (trainer.global_step + 1, "pixels") in mine:
                next(micro for micro in batch if len(micro.pixel_values)).pixel_values.fill_(torch.nan)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            projector = pl_module.models[0].projector
            if projector is not None:
                projector.register_forward_hook(self._harm)

        def _harm(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
            if self.is_harmed and output.requires_grad:
                output.register_hook(lambda gradient: gradient * torch.nan)

    run_module.Progress = Poisoning  # type: ignore[misc]
    try:
        run_module.train(load(RECIPE, overrides))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # gloo's destructors and pools of the fork are nobody's business
