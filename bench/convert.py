"""Size of a conversion: peak memory and time of HF -> .nemo -> HF beside a safetensors copy of the same bytes.

`python bench/convert.py [FOLDER] [--gigabytes 3]` makes a LLaMA of random weights in FOLDER (a temporary one by
default), runs each step in a process of its own and prints one line a step, with the ratio to the copy.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZES = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_attention_heads": 16,
    "rms_norm_eps": 1e-5,
}
LAYER_BYTES = 2 * (4 * 2048 * 2048 + 3 * 2048 * 5504)
SHARD_BYTES = 10**9
STEPS = ("copy", "to_nemo", "to_hf")


def make(folder: Path, gigabytes: float) -> None:
    """A text model folder of about that size, in shards of 1 GB."""
    from neva.families.decoder_rules import FusedQKV, GatedMLP, PaddedVocab
    from neva.families.language import language_config_from_hf, language_table
    from neva.families.mapping import Rename
    from neva.formats.hf_folder import write_weights

    layers = max(1, round((gigabytes * 1e9 - 4 * 32000 * 2048) / LAYER_BYTES))
    config = {**SIZES, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))

    def tensors():
        for rule in language_table(language_config_from_hf(config)).rules:
            shape: tuple[int, ...]
            if isinstance(rule, FusedQKV):
                shape = (2048, 2048)
            elif isinstance(rule, PaddedVocab):
                shape = (rule.hf_rows, rule.hidden)
            else:
                assert isinstance(rule, Rename | GatedMLP)
                shape = rule.shape
            for name in rule.hf:
                yield name, torch.randn(shape, dtype=torch.bfloat16)

    write_weights(folder, tensors(), SHARD_BYTES)


def run_step(step: str, folder: Path) -> None:
    """One step, measured from inside its own process; prints seconds and gigabytes as JSON."""
    import neva.convert.readers.text
    import neva.convert.writers.nemo
    import neva.convert.writers.text_hf  # noqa: F401
    from neva.convert.convert import convert
    from neva.convert.options import Options

    imported = peak()
    start = time.perf_counter()
    if step == "copy":
        (folder / "copy").mkdir()
        for file in sorted((folder / "source").glob("*.safetensors")):
            with safe_open(file, "pt") as source:
                save_file(
                    {name: source.get_tensor(name) for name in list(source.keys())},
                    folder / "copy" / file.name,
                )
    elif step == "to_nemo":
        convert(folder / "source", folder / "model.nemo", Options())
    else:
        convert(folder / "model.nemo", folder / "back", Options(verify=False))
    os.sync()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "above_imports": peak() - imported, "imports": imported}))


def peak() -> float:
    """The largest resident size of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.step:
        run_step(flags.step, flags.folder)
        return
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = Path(name)
        (folder / "source").mkdir()
        make(folder / "source", flags.gigabytes)
        size = sum(file.stat().st_size for file in (folder / "source").iterdir())
        print(f"{size / 1e9:.2f} GB in shards of at most {SHARD_BYTES / 1e9:.0f} GB")
        copy_seconds = 0.0
        for step in STEPS:
            command = [sys.executable, "-W", "ignore", __file__, str(folder), "--step", step]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            copy_seconds = copy_seconds or figures["seconds"]
            print(
                f"{step:8} {figures['seconds']:6.1f} s, {figures['seconds'] / copy_seconds:4.2f} x the copy, peak "
                f"{figures['above_imports']:.2f} GB above the {figures['imports']:.2f} GB of the imports"
            )


if __name__ == "__main__":
    main()
