"""Run as a script: `neva train` in which one rank fails at one step, as `FAILING=how,rank,step` says.

how: `raise` an error; be `kill`ed; `sleep`, so that the others are stuck; be killed in the middle of a `save`.
"""

import os
import signal
import sys
import time
from typing import Any

from neva import cli

HOW, RANK, STEP = os.environ["FAILING"].split(",")


def fail_here() -> None:
    sys.stderr.write(f"failing at {time.time()}\n")
    if HOW == "raise":
        raise ValueError("the dog ate the batch")
    if HOW == "sleep":
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL)


def arm() -> None:
    """Puts the failure behind the step's callback, or into what writes this rank's part of a checkpoint."""
    from neva.checkpoint.writer import StateWriter
    from neva.training import run

    class Failing(run.Progress):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            super().on_train_batch_end(trainer, *arguments)
            if trainer.global_rank == int(RANK) and trainer.global_step == int(STEP):
                if HOW == "save":
                    StateWriter.write = lambda _: fail_here()  # type: ignore[method-assign]
                else:
                    fail_here()

    run.Progress = Failing  # type: ignore[misc]


if __name__ == "__main__":
    arm()
    sys.exit(cli.main(["train", *sys.argv[1:]]))
