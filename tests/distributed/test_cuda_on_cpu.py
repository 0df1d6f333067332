"""What is computed on the CPU on every machine, on one that has a GPU."""

import subprocess
import sys

WITH_A_GPU = """
import torch

torch.cuda.is_available = lambda: True  # as on a machine with a GPU, whose device 0 nothing below may touch
torch.cuda.current_device = lambda: 0
from neva.distributed import cuda_on_cpu, groups
from neva.distributed.preflight import lone_process

assert cuda_on_cpu.install() == torch.device("cuda", 0)
with lone_process(seed=1):
    assert cuda_on_cpu.install() == torch.device("cpu") and torch.distributed.get_backend() == "gloo"
    from tests.model.test_against_transformers import shapes
    from neva.model.build import build_model

    vision, language = shapes("clip", groups=2, tied=False)
    model = build_model(vision, language, "linear").eval()
    logits = model(torch.arange(6)[None], None)
    assert logits.device == torch.device("cpu") and bool(logits.isfinite().all())
assert cuda_on_cpu.install() == torch.device("cuda", 0) and torch.cuda.current_device() == 0
"""


def test_a_lone_process_computes_on_the_cpu_and_leaves_the_gpu_to_what_follows() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WITH_A_GPU], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
