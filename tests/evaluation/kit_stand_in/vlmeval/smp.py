"""The kit's report of a run."""

import json


def collect_run_benchmark_report(run_dir):
    datasets = json.loads((run_dir / "status.json").read_text())["datasets"]
    return [
        {
            "benchmark": name,
            "infer_failed": sum("Failed to obtain answer" in text for text in status.get("answers", [])),
            "infer_total": len(status.get("answers", [])),
            "primary_metric": "Overall" if status["metrics"] else None,
            "primary_metric_value": status["metrics"].get("Overall"),
            "skip_reason": status["skip_reason"],
            "eval_error": status["error_message"],
        }
        for name, status in datasets.items()
    ]
