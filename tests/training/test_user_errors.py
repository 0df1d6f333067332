"""What a user can mend ends a run as one sentence and status 1, wherever in the run it is found."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.megatron import launcher_free, run_command

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["-m", "neva", "train", "--config-name", "quickstart_finetune"]
SCRIPT = [str(ROOT / "scripts" / "neva_finetune.py"), "--config-name", "quickstart_finetune"]
TWO_PROCESSES = ["trainer.devices=2", "model.data.pad_to_multiple_of=4"]


@pytest.mark.parametrize(
    ("command", "overrides", "place"),
    [
        pytest.param(SCRIPT, [], "", id="in the main process"),
        pytest.param(COMMAND, ["model.data.num_workers=1"], "", id="in a worker of the data loader"),
        pytest.param(COMMAND, TWO_PROCESSES, r"rank 1 on \S+: ", id="on the second of two ranks"),
    ],
)
def test_a_torn_image_is_one_sentence(
    tmp_path: Path, colours: list[str], command: list[str], overrides: list[str], place: str
) -> None:
    data = tear_image(1, tmp_path, colours)  # in file order, the second of two ranks reads the odd ones
    run = [f"exp_manager.exp_dir={tmp_path}", "exp_manager.name=run", "trainer.max_steps=3"]
    settings = [*colours, f"model.data.data_path={data}", "model.data.dataloader_type=sequential"]
    environment = {**launcher_free(os.environ), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = run_command([*command, *settings, *run, *overrides], tmp_path, environment)
    text = ended.stderr
    assert ended.returncode == 1, text
    (sentence,) = re.findall("^neva: .*$", text, re.MULTILINE)
    assert re.fullmatch(
        rf"neva: {place}{re.escape(str(data))}, record 1 \(id 'torn'\): image file .*torn\.png cannot be decoded.*",
        sentence,
    )
    assert "Traceback" not in text and "ERROR" not in text


def tear_image(number: int, folder: Path, colours: list[str]) -> Path:
    """Writes the records again with one whose image ends early; returns the new file.

    The looks before the first step find the file and do not read it.
    """
    (source,) = (text.partition("=")[2] for text in colours if text.startswith("model.data.data_path="))
    records = json.loads(Path(source).read_text())
    images = Path(source).parent
    (images / "torn.png").write_bytes((images / records[number]["image"]).read_bytes()[:50])
    records[number] |= {"id": "torn", "image": "torn.png"}
    data = folder / "data.json"
    data.write_text(json.dumps(records))
    return data
