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

from neva.commands.convert import main
from tests.convert.llava import llava_nemo
from tests.convert.native import TOLERANCE
from tests.idefics2 import save

PYTHONS = [path for path in os.environ.get("NEVA_OTHER_PYTHONS", "").split(":") if path]
SCRIPT = Path(__file__).with_name("answer.py")
# Families and processors that transformers 4.45 knows; the others are for 4.49 and later.
OLD = [
    ("llama", "clip", "square"),
    ("llama3", "siglip", "square"),
    ("mistral", "clip", "square"),
    ("llama", "clip", "anyres"),
    ("qwen2_untied", "siglip", "anyres_max_9"),
]
NEWER = [
    ("qwen2", "siglip", "pad"),
    ("qwen3", "clip", "pad"),
    ("smollm2", "clip", "pad"),
]
# Its Idefics2 rounds the places of patches otherwise than 4.45 and 5 do, unless an image is square.
ROUNDS_OTHERWISE = "4.57"

pytestmark = [
    pytest.mark.usefixtures("megatron"),
    pytest.mark.skipif(not PYTHONS, reason="NEVA_OTHER_PYTHONS names no Python with another transformers"),
]


def answers(python: str, folders: list[Path]) -> list[dict]:
    command = [python, "-W", "ignore", str(SCRIPT), "28", *map(str, folders)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(folders) :]]


def knows_newer(python: str) -> bool:
    command = [python, "-c", "from importlib.metadata import version; print(version('transformers'))"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(map(int, found.split(".")[:2])) >= (4, 51)


def test_same_ids_in_every_version(tmp_path):
    save(tmp_path / "idefics2" / "theirs")
    folders = [tmp_path / "idefics2" / "hf"]
    assert main([str(tmp_path / "idefics2" / "theirs"), str(tmp_path / "idefics2.nemo")]) == 0
    assert main([str(tmp_path / "idefics2.nemo"), str(folders[0])]) == 0
    for family, kind, aspect_ratio in OLD + NEWER:
        work = tmp_path / f"{family}-{kind}-{aspect_ratio}"
        work.mkdir()
        folders.append(work / "hf")
        assert main([str(llava_nemo(work, family, kind, aspect_ratio=aspect_ratio)), str(folders[-1])]) == 0
    expected = answers(sys.executable, folders)
    for one in expected:
        assert one["missing"] == one["unexpected"] == []
    for python in PYTHONS:
        known = folders if knows_newer(python) else folders[: 1 + len(OLD)]
        # `expected` may be longer: what an old version does not know is left out.
        for folder, wanted, found in zip(known, expected, answers(python, known), strict=False):
            where = (found["version"], folder.parent.name)
            assert found["version"] != wanted["version"]
            rounds_otherwise = found["version"].startswith(ROUNDS_OTHERWISE) and where[1] == "idefics2"
            for key in (
                "missing",
                "unexpected",
                "pixels",
                "input_ids",
                *(() if rounds_otherwise else ("ids",)),
            ):
                assert found[key] == wanted[key], (*where, key)
            for key in ("logits", "several"):
                if found[key] and not rounds_otherwise:
                    pairs = zip(found[key], wanted[key], strict=True)
                    assert max(abs(one - other) for one, other in pairs) <= TOLERANCE, (*where, key)
