"""A minimal stand-in of lmms-eval's interface: its options, its tasks in YAML, its results, its files of samples.

What it knows of the kit is what its documentation (docs/guides/task_guide.md) and its `__main__` in 0.7.3 do. As there,
an error of the model is an empty answer without a count of tokens, and all other errors are raised.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import yaml

GROUPS = {
    "textvqa": {"textvqa": {}, "textvqa_val": {"exact_match": 0.5}, "textvqa_test": {"submission": None}},
    "seedbench": {"seedbench": {"acc": 0.25}, "images": {"acc": 0.25}},
}
"""What benchmarks of the kit's own gave: a group without a figure of its own, and one with."""


class Accelerator:
    """What brings the processes of the kit together; here there is one."""


class TaskManager:
    def __init__(self, verbosity, include_path=None, include_defaults=True, model_name=None):
        self.folder = Path(include_path or ".")


def parse_eval_args():
    parser = argparse.ArgumentParser()
    for flag in ("--model_args", "--include_path", "--output_path", "--batch_size", "--verbosity"):
        parser.add_argument(flag, default="")
    for flag in ("--log_samples", "--force_simple"):
        parser.add_argument(flag, action="store_true")
    return parser, parser.parse_args()


def cli_evaluate_single(options):
    if options.tasks in GROUPS:
        return group(GROUPS[options.tasks]), {}
    folder = TaskManager("INFO", include_path=options.include_path, model_name=options.model).folder
    path = folder / f"{options.tasks}.yaml"
    if not path.exists():
        raise ValueError(f"Tasks not found: {options.tasks}.")
    task = read_task(path)
    lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    docs = [json.loads(line) for line in lines]
    words = dict(word.split("=") for word in options.model_args.split(","))
    assert (options.model, words["dtype"]) == ("llava_hf", "float32")
    samples = [sample(task, doc, words["pretrained"]) for doc in docs]
    figures = {
        metric["metric"]: sum(row["metrics"][metric["metric"]] for row in samples) / len(samples)
        for metric in task["metric_list"]
    }
    name = task["task"]
    output = Path(options.output_path, words["pretrained"])
    output.mkdir(parents=True, exist_ok=True)
    (output / f"20261128_samples_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    results = {
        "results": {
            name: {
                "alias": name,
                **{f"{figure},none": value for figure, value in figures.items()},
                **{f"{figure}_stderr,none": 0.1 for figure in figures},
            }
        },
        "n-samples": {name: {"original": len(docs), "effective": len(docs)}},
        "configs": {name: {"output_type": task["output_type"]}},
    }
    return results, {name: samples}


def group(tasks):
    figures = {
        task: {"alias": task, **{f"{key},none": value for key, value in row.items()}}
        for task, row in tasks.items()
    }
    counts = {task: {"original": 4, "effective": 4} for task in list(tasks)[1:]}
    return {"results": figures, "n-samples": counts, "configs": {}}


def read_task(path):
    spec = importlib.util.spec_from_file_location("utils", path.with_name("utils.py"))
    functions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(functions)

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor(
        "!function", lambda loader, node: getattr(functions, node.value.removeprefix("utils."))
    )
    return yaml.load(path.read_text(), Loader)


def sample(task, doc, folder):
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    pictures = task["doc_to_visual"](doc)
    question = task["doc_to_text"](doc, task["lmms_eval_specific_kwargs"]["default"])
    parts = [*({"type": "image", "url": picture} for picture in pictures), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    inputs = processor(images=pictures, text=text, return_tensors="pt")
    tokens = task["generation_kwargs"]["max_new_tokens"]
    end = processor.tokenizer.eos_token_id
    try:
        ids = model.generate(
            **inputs, do_sample=False, max_new_tokens=tokens, eos_token_id=end, pad_token_id=end
        )
        new = ids[0, inputs["input_ids"].shape[1] :]
        answer, count = processor.decode(new, skip_special_tokens=True), {"output_tokens": len(new)}
    except Exception:
        answer, count = "", None
    return {
        "filtered_resps": answer,
        "token_counts": [count],
        "metrics": task["process_results"](doc, [answer]),
    }
