"""What a process of `neva train` has imported by its first step, as far as that is known to be for nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NEVER_RUN = {
    "torch._inductor.compile_fx": "torch's compiler: Megatron's fused kernels, all switched off, are decorated with it",
    "torch._inductor.select_algorithm": "the same",
    "networkx": "what it cuts graphs with",
    "torchvision": "transformers' image processors are those of PIL",
    "peft": "adapters are neva's own",
    "bitsandbytes": "only beside matrices in 4 or 8 bits",
    "datasets": "records are neva's own",
    "pyarrow": "only of Parquet",
    "energon": "only of energon shards",
    "tensorflow": "tensorboard has a part of its own",
    "fastapi": "only of a server",
    "sklearn": "transformers' generation asks whether it is there",
}
"""Modules that a step runs nothing of, with what they are for."""

PROGRAM = """
import gc, sys
from neva.cli import main
code = main(sys.argv[1:])
print("IMPORTED", gc.isenabled(), *sys.modules)
sys.exit(code)
"""


def test_a_first_step_imports_nothing_that_no_step_runs(tmp_path: Path, colours: list[str]) -> None:
    run = [f"exp_manager.exp_dir={tmp_path}", "exp_manager.name=run", "trainer.max_steps=1"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "train", "-cn", "quickstart_finetune", *colours, *run],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("IMPORTED ")]
    is_collecting, *imported = line.split()[1:]
    assert {name: NEVER_RUN[name] for name in NEVER_RUN if name in imported} == {}
    # the test sees what it is to see, and what the imports did without is back
    assert {"torch", "megatron.core", "lightning.pytorch"} <= set(imported) and is_collecting == "True"
