"""A minimal stand-in of VLMEvalKit's interface: its command line, its table of models, its TSVs, its `status.json`.

What it knows of the kit is what the kit documents (docs/en/Development.md, docs/en/ConfigSystem.md) and what its run.py
at commit e8e78f05 does. A benchmark that fails is noted, and the exit code is 0, as there.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

supported_VLM = {}


def load_env():
    pass


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--data", "--model"):
        parser.add_argument(flag, nargs="+")
    for flag in ("--work-dir", "--judge", "--data-config", "--base-url", "--max-tokens", "--api-nproc"):
        parser.add_argument(flag)
    options = parser.parse_args()
    if "crash" in options.data:
        sys.exit("out of memory")
    (name,) = options.model
    run = Path(options.work_dir, name, "T20260818-120000")
    run.mkdir(parents=True, exist_ok=True)
    classes = json.loads(options.data_config or "{}")
    datasets = {}
    model = None
    for dataset in options.data:
        status = datasets[dataset] = {"metrics": {}, "skip_reason": None, "error_message": None}
        path = Path(os.environ.get("LMUData", "."), f"{dataset}.tsv")  # noqa: SIM112 the kit's own name
        try:
            if not path.exists():
                status["skip_reason"] = "invalid_dataset"
                continue
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            model = model or supported_VLM[name]()
            model.set_dump_image(lambda line: [line["image_path"]])
            status["answers"] = [model.generate(prompt(model, row, dataset), dataset=dataset) for row in rows]
            status["class"] = classes.get(dataset, {}).get("class")
            right = [
                text.lower() == row["answer"].lower()
                for text, row in zip(status["answers"], rows, strict=True)
            ]
            status["metrics"] = {"Overall": 100 * sum(right) / len(right)}
        except Exception as error:
            status["error_message"] = str(error)
    (run / "status.json").write_text(json.dumps({"datasets": datasets, "argv": sys.argv}))


def prompt(model, row, dataset):
    if model.use_custom_prompt(dataset):
        return model.build_prompt(row, dataset=dataset)
    text = f"{row['question']}\nAnswer the question using a single word or phrase."
    return [{"type": "image", "value": row["image_path"]}, {"type": "text", "value": text}]


if __name__ == "__main__":
    load_env()
    main()
