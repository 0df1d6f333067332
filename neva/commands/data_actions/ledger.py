"""`neva data ledger`: which samples each step of a run consumed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neva.commands.options import verb_parser
from neva.errors import ConfigError, DataError, SampleError

if TYPE_CHECKING:
    from neva.data.ledger import LedgerPart, LedgerStep
    from neva.data.sources.source import Records

SUMMARY = "show which samples a run's steps consumed, and prove that each came once"
EXAMPLES = """\
examples:
  neva data ledger nemo_experiments/llava_7b_finetune
  neva data ledger nemo_experiments/llava_7b_finetune --step 812
  neva data ledger nemo_experiments/llava_7b_finetune --sample 000000033471
  neva data ledger nemo_experiments/llava_7b_finetune --verify
"""


def main(arguments: Sequence[str]) -> int:
    """Prints what the flags ask for.

    Returns:
        0; with `--verify` 1 where a sample came twice or never, with `--sample` 1 where it came never.

    Raises:
        UserError: there is no ledger, it is damaged, it has no such step, or the data is not what it was.
    """
    options = parse(arguments)
    if options.step is not None:
        lines = _step(options.run, options.step)
    elif options.sample is not None:
        return _sample(options.run, options.sample)
    elif options.verify:
        return _verify(options.run)
    else:
        lines = _summary(options.run)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva data ledger`."""
    parser = verb_parser("data ledger", SUMMARY, EXAMPLES)
    parser.add_argument("run", type=Path, help="folder of the run")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--step", type=int, help="the samples of this step, as the log numbers them")
    asked.add_argument("--sample", metavar="ID", help="the steps of the samples with this id")
    asked.add_argument(
        "--verify", action="store_true", help="that each sample came once an epoch, or who did not"
    )
    return parser.parse_args(list(arguments))


def _summary(run: Path) -> Iterator[str]:
    from neva.data.ledger import LEDGER, LedgerPart, read_ledger

    steps = samples = starts = last = 0
    for entry in read_ledger(run):
        if isinstance(entry, LedgerPart):
            starts += 1
        else:
            steps, samples, last = steps + 1, samples + len(entry.numbers), entry.step
    size = (run / LEDGER).stat().st_size
    yield f"{run / LEDGER}: {steps:,} steps up to step {last:,}, {samples:,} samples, {starts} starts, {size:,} bytes"


def _step(run: Path, number: int) -> Iterator[str]:
    from neva.data.ledger import TREATMENTS

    part, step = _found(run, number)
    records, sources = _data(run, part)
    yield f"step {number}, epoch {step.epoch}: {len(step.numbers)} samples, {TREATMENTS[step.treatment]}"
    instead: dict[int, list[int]] = {}
    for place, asked in step.exceptions:
        if asked != step.numbers[place]:
            instead.setdefault(place, []).append(asked)
    for place, record in enumerate(step.numbers):
        if place == step.in_epoch:
            yield f"epoch {step.epoch + 1} begins"
        yield ""
        yield from _shown(records, sources, record)
        if place in instead:
            yield f"  done with it, as they give no sample: {', '.join(map(str, instead[place]))}"


def _found(run: Path, number: int) -> tuple[LedgerPart, LedgerStep]:
    from neva.data.ledger import LedgerPart, read_ledger

    part, last = None, 0
    for entry in read_ledger(run):
        if isinstance(entry, LedgerPart):
            part = entry
        elif entry.step == number:
            assert part is not None
            return part, entry
        else:
            last = entry.step
    raise ConfigError(f"--step {number}: the ledger of {run} does not have it; its last step is {last}")


def _shown(records: Records, sources: Sequence[str], number: int) -> Iterator[str]:
    try:
        record = records[number]
    except SampleError as error:
        yield f"{number}  cannot be read: {error}"
        return
    of = f", of {sources[record.source]}" if sources else ""
    yield f"{number}  id {record.id}{of}{', ' + record.place if record.place else ''}"
    for file in [*record.images, *record.videos]:
        yield f"  {file}"
    for turn in record.turns:
        yield f"  {turn.role}: {turn.text}"


def _data(run: Path, part: LedgerPart) -> tuple[Records, list[str]]:
    """Returns the training records of a run and the names of their sources; DataError when they have changed."""
    from omegaconf import OmegaConf

    from neva.data.held_out import source_names, training_records
    from neva.data.sources.mixture import content_of

    path = run / "config.yaml"
    if not path.is_file():
        raise DataError(f"{path} is missing: without it nobody knows which data the ledger numbers")
    records = training_records(OmegaConf.load(path).model.data)
    if (len(records), content_of(records)) != (part.data["records"], part.data["content"]):
        raise DataError(
            f"{records.path} is not what the ledger of {run} numbers: {len(records)} records, expected "
            f"{part.data['records']} of the content that the run read; put the file of that time there"
        )
    return records, source_names(records)


def _sample(run: Path, name: str) -> int:
    from neva.data.ledger import TREATMENTS, LedgerPart, read_ledger

    part, wanted, steps = None, set[int](), 0
    for entry in read_ledger(run):
        if isinstance(entry, LedgerPart):
            if part is None or entry.data != part.data:
                wanted = _numbers(_data(run, entry)[0], name)
            part = entry
            continue
        for number in sorted(wanted.intersection(entry.numbers)):
            steps += 1
            sys.stdout.write(
                f"step {entry.step}, epoch {entry.epoch}: record {number}, {TREATMENTS[entry.treatment]}\n"
            )
    if not steps:
        sys.stdout.write(f"no step of {run} has a sample with the id {name}\n")
    return 0 if steps else 1


def _numbers(records: Records, name: str) -> set[int]:
    """Returns the numbers of the records with an id."""
    found = set()
    for number in range(len(records)):
        try:
            if records[number].id == name:
                found.add(number)
        except SampleError:
            continue  # a record that cannot be read has no id, and gave no sample
    return found


def _verify(run: Path) -> int:
    from neva.data.ledger import read_ledger
    from neva.data.ledger_proof import prove

    is_wrong = False
    for finding in prove(read_ledger(run)):
        is_wrong |= finding.is_wrong
        sys.stdout.write(f"{finding.text}\n")
    return int(is_wrong)
