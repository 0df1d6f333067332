"""`neva evaluate`: scores of answers, or of a model by an evaluation kit; `neva evaluate compare`: of two models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neva.commands.options import verb_parser
from neva.errors import ConfigError
from neva.registry import KITS, METRICS, load_plugins

if TYPE_CHECKING:
    from neva.evaluation.kits.kit import KitRun

SUMMARY = "score answers, run an evaluation kit on a model, compare two models"
FAILED = 1
EXAMPLES = """\
examples:
  neva evaluate predictions.jsonl --reference test.jsonl --metric exact_match
  neva evaluate --kit vlmevalkit --kit-path ../VLMEvalKit --model my.nemo --data MMBench_DEV_EN POPE
  neva evaluate --kit lmms-eval --model my.nemo --data mmbench_en_dev pope mine.jsonl
  neva evaluate compare stage2.evaluation other.evaluation
"""


def main(arguments: Sequence[str]) -> int:
    """Scores, runs a kit or compares, and prints a table.

    Returns:
        0, or 1 when a benchmark has no score that can be trusted.

    Raises:
        UserError: flags that do not go together, a file that cannot be used, a kit that does not run.
    """
    options = parse(arguments)
    if options.compare is not None:
        return _compare(*options.compare)
    load_plugins(options.plugins)
    return _run_kit(options) if options.kit else _score(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva evaluate`; `compare` holds the two results, or None.

    Raises:
        ConfigError: flags that do not go together.
    """
    words = list(arguments)
    if words[:1] == ["compare"]:
        parser = verb_parser("evaluate compare", "two models' scores, side by side")
        parser.add_argument(
            "compare", nargs=2, type=Path, metavar="RESULTS", help="results.json, or its folder"
        )
        return parser.parse_args(words[1:])
    more = words[words.index("--") + 1 :] if "--" in words else []
    options = _parser().parse_args(words[: words.index("--")] if "--" in words else words)
    options.compare, options.more = None, more
    _check(options)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "evaluate",
        "Scores a file of answers, or has an evaluation kit ask and score a model. Results: results.json.",
        EXAMPLES,
    )
    parser.add_argument("answers", nargs="?", type=Path, help="result lines of neva infer")
    parser.add_argument("--metric", help="how to score; with a kit: local files (default: by their answers)")
    parser.add_argument(
        "--output", type=Path, help="folder of results.json; default: NAME.evaluation beside the input"
    )
    parser.add_argument("--force", action="store_true", help="measure again what results.json has already")
    parser.add_argument(
        "--plugins", nargs="+", default=[], metavar="NAME", help="your packages that register metrics or kits"
    )
    own = parser.add_argument_group("scoring answers")
    own.add_argument(
        "--reference", type=Path, help=".jsonl, .json or .tsv with the right answers, or ANSWERS itself"
    )
    own.add_argument("--key", help="joins both files; default: question_id, id or index, else the order")
    own.add_argument(
        "--answer-key", help="where the reference has its answers; default: answers, answer, truth, …"
    )
    own.add_argument(
        "--category", default="category", metavar="KEY", help="also score by the values of this key"
    )
    own.add_argument("--partial", action="store_true", help="score what is answered, leave out the rest")
    kit = parser.add_argument_group("running a kit (what stands behind -- is handed to it)")
    kit.add_argument("--kit", metavar="NAME", help=f"who asks and scores: {', '.join(KITS.names())}")
    kit.add_argument(
        "--model", help=".nemo or llava-hf folder; with --base-url the server's name for its model"
    )
    kit.add_argument("--data", nargs="+", default=[], metavar="NAME", help="benchmarks of the kit, or files")
    kit.add_argument("--images", type=Path, help="folder of the images that .jsonl files of --data name")
    kit.add_argument("--kit-path", type=Path, help="checkout of VLMEvalKit")
    kit.add_argument(
        "--kit-python", type=Path, help="Python of the kit's environment; default: what make has built"
    )
    kit.add_argument(
        "--base-url", help="an OpenAI-compatible server has the model, such as http://127.0.0.1:8000/v1"
    )
    kit.add_argument("--nproc", type=int, default=1, help="processes that share the questions")
    kit.add_argument(
        "--max-tokens", type=int, default=512, help="longest answer; benchmarks of lmms-eval have their own"
    )
    kit.add_argument("--judge", help="model of VLMEvalKit that reads answers; default: none")
    kit.add_argument(
        "--plain-prompts", action="store_true", help="ask questions as they stand in the benchmark"
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    if bool(options.kit) == bool(options.answers):
        raise ConfigError(
            "neva evaluate wants either a file of answers or --kit; neva evaluate --help shows both"
        )
    if not options.plugins:  # raises for one that is unknown
        _ = [registry[name] for registry, name in ((METRICS, options.metric), (KITS, options.kit)) if name]
    if options.answers and not (options.reference and options.metric):
        raise ConfigError(
            f"answers are scored with --reference FILE and --metric, one of {', '.join(METRICS.names())}"
        )
    if options.kit and not (options.model and options.data):
        raise ConfigError("--kit wants --model and --data")
    if options.nproc < 1 or options.max_tokens < 1:
        raise ConfigError("--nproc and --max-tokens: expected 1 or more")
    if options.base_url and options.output is None:
        raise ConfigError("--base-url has no file to put results beside: pass --output FOLDER")
    if options.more and not options.kit:
        raise ConfigError(f"{' '.join(options.more)}: only a kit takes what stands behind --")


def _score(options: argparse.Namespace) -> int:
    from neva.evaluation import results, score
    from neva.evaluation.table import scores_table
    from neva.formats.atomic_write import finished_target

    metric = METRICS[options.metric]
    folder = options.output or options.answers.with_suffix(".evaluation")
    details = folder / f"{options.answers.stem}.{metric.name}.jsonl"
    name = f"{options.answers.stem}.{metric.name}"
    results.refuse_done(folder, [f"neva/{name}"], options.force)
    asked = score.Asked(options.key, options.answer_key, options.category, options.partial)
    found = score.score_files(options.answers, options.reference, metric, asked)
    with finished_target(details, overwrite=True) as temporary:
        temporary.write_text(score.lines(found), encoding="utf-8")
    figures = found.figures[score.ALL]
    first = next(iter(figures))
    entry = results.Entry(
        by="neva",
        benchmark=name,
        metric=first,
        score=figures[first],
        scores=found.figures,
        questions=found.counts[score.ALL],
        unanswered=found.unanswered,
        problem=None,
        prompts="those of the answers",
        first_prompt=found.first_prompt,
        versions=results.own_versions(),
        files=details.name,
        finished=results.now(),
    )
    path = results.add_results(folder, found.model_id or str(options.answers), [entry])
    sys.stdout.write(f"{options.answers}: {metric.words}\n\n{scores_table(found)}\n\n{path}\n")
    if found.unanswered:
        sys.stderr.write(f"{found.unanswered} of the answers are errors, and count as wrong\n")
    return 0


def _run_kit(options: argparse.Namespace) -> int:
    from neva.evaluation import results
    from neva.evaluation.kits.kit import benchmarks, is_failure
    from neva.evaluation.table import entries_table

    run, kit = _kit_run(options), KITS[options.kit]
    kit.check(run)
    results.refuse_done(run.folder, [f"{kit.name}/{name}" for name in benchmarks(run)], options.force)
    run.folder.mkdir(parents=True, exist_ok=True)
    entries = kit.evaluate(run)
    path = results.add_results(run.folder, run.model, entries)
    versions = ", ".join(f"{package} {version}" for package, version in entries[0]["versions"].items())
    sys.stdout.write(f"{run.model}: {versions}\n\n{entries_table(entries)}\n\n{path}\n")
    return FAILED if any(is_failure(entry) for entry in entries) else 0


def _kit_run(options: argparse.Namespace) -> KitRun:
    from neva.evaluation.kits.kit import KitRun

    model = Path(options.model)
    return KitRun(
        model=options.model,
        data=tuple(options.data),
        folder=options.output or model.with_name(f"{model.name.removesuffix('.nemo')}.evaluation"),
        python=options.kit_python or KITS[options.kit].python,
        kit_path=options.kit_path,
        base_url=options.base_url,
        images=options.images,
        metric=options.metric,
        num_processes=options.nproc,
        max_new_tokens=options.max_tokens,
        judge=options.judge,
        is_plain=options.plain_prompts,
        more=tuple(options.more),
    )


def _compare(first: Path, second: Path) -> int:
    from neva.evaluation.results import read_results
    from neva.evaluation.table import compared

    sys.stdout.write(compared(read_results(first), read_results(second)) + "\n")
    return 0
