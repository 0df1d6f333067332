"""The exported folder gives the same ids in other versions of transformers.

`NEVA_OTHER_PYTHONS` lists Pythons of environments with another transformers, separated by colons
(`make cross-version` builds them); without it these tests are skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neva.convert.cli import main
from tests.convert.llava import llava_nemo

PYTHONS = [path for path in os.environ.get("NEVA_OTHER_PYTHONS", "").split(":") if path]
SCRIPT = Path(__file__).with_name("answer.py")
# Families and processors that transformers 4.45 knows; the others are for 4.49 and later.
OLD = [("llama", "clip", "square"), ("llama3", "siglip", "square"), ("mistral", "clip", "square")]
NEWER = [("qwen2", "siglip", "pad"), ("qwen3", "clip", "pad"), ("smollm2", "clip", "pad")]

pytestmark = [
    pytest.mark.usefixtures("megatron"),
    pytest.mark.skipif(not PYTHONS, reason="NEVA_OTHER_PYTHONS names no Python with another transformers"),
]


def answer(python: str, folder: Path) -> dict:
    command = [python, "-W", "ignore", str(SCRIPT), str(folder), "28"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("family", "kind", "aspect_ratio"), OLD + NEWER)
def test_same_ids_in_every_version(tmp_path, family, kind, aspect_ratio):
    source = llava_nemo(tmp_path, family, kind, aspect_ratio=aspect_ratio)
    assert main([str(source), str(tmp_path / "hf")]) == 0
    expected = answer(sys.executable, tmp_path / "hf")
    assert expected["missing"] == expected["unexpected"] == []
    for python in PYTHONS:
        version = subprocess.run(
            [python, "-c", "import transformers; print(transformers.__version__)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split(".")
        if (family, kind, aspect_ratio) in NEWER and (int(version[0]), int(version[1])) < (4, 51):
            continue
        found = answer(python, tmp_path / "hf")
        for key in ("missing", "unexpected", "pixels", "input_ids", "ids"):
            assert found[key] == expected[key], (found["version"], key)
        largest = max(
            abs(one - other) for one, other in zip(found["logits"], expected["logits"], strict=True)
        )
        assert largest <= 1e-5, found["version"]
