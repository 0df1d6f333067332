"""One command on a machine with an NVIDIA GPU: what neva does there, as docs/gpu.md.

Each part is a process of its own with a time limit, and its rows are on disk as soon as they are known: a part that
fails or hangs costs its rows. The rows and a log with every traceback lie in the folder.

    python bench/gpu_report.py [--parts environment,sft_full] [--limit 900] [--output docs/gpu.md] [--tiny]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu.child import PARTS  # noqa: E402
from bench.gpu.page import page  # noqa: E402
from bench.gpu.sheet import Row, append, read  # noqa: E402

PAGE = ROOT / "docs/gpu.md"
FOLDER = ROOT / "nemo_experiments/gpu_report"
ROWS, LOG = "gpu_report_rows.jsonl", "gpu_report_log.txt"
LIMIT_S = 900.0
LEAST_S = 10.0
"""A part that has less time left is not started."""
POLL_S = 0.25


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows, log = options.folder / ROWS, options.folder / LOG
    for path in (rows, log):
        path.unlink(missing_ok=True)
    deadline = time.monotonic() + options.limit
    for name in options.parts:
        begin = time.monotonic()
        run_part(name, options, deadline)
        write(options.output, page(read(rows)))
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    print(page(read(rows)))
    print(f"page: {options.output}\nrows: {rows}\ntracebacks: {log}")


def run_part(name: str, options: argparse.Namespace, deadline: float) -> None:
    """Runs a part to its end or its limit; what stopped it becomes a row."""
    rows = options.folder / ROWS
    limit = min(PARTS[name].limit_s * options.patience, deadline - time.monotonic())
    if limit < LEAST_S:
        append(rows, Row(name, name, {"result": "not run: time was up"}))
        return
    command = [sys.executable, "-m", "bench.gpu.child", name, str(rows), str(options.folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (options.folder / LOG).open("ab") as log:
        log.write(f"\n===== {name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command + ["--tiny"] * options.tiny,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=options.folder,
            start_new_session=True,
        )
        try:
            failed = wait(process, limit, options)
        finally:
            end(process)
    if failed:
        append(rows, Row(name, name, {"result": f"failed: {failed}"}))


def wait(process: subprocess.Popen[bytes], limit: float, options: argparse.Namespace) -> str:
    """Waits for a part, writing the page whenever it has added a row; returns what went wrong, or nothing."""
    rows, known, ends = options.folder / ROWS, 0, time.monotonic() + limit
    while process.poll() is None and time.monotonic() < ends:
        if (size := rows.stat().st_size if rows.exists() else 0) != known:
            known = size
            write(options.output, page(read(rows)))
        time.sleep(POLL_S)
    if process.poll() is None:
        return f"not ready after {limit:.0f} s"
    return last_line(options.folder / LOG) if process.returncode else ""


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a part and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def last_line(log: Path) -> str:
    """Returns the end of a traceback."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "without a word"


def write(path: Path, text: str) -> None:
    """Writes the page under a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def parse() -> argparse.Namespace:
    """Returns the options; on a CPU only tiny sizes, and never the page of the documentation unless it is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help=f"seconds in all; default: {LIMIT_S:g}")
    parser.add_argument(
        "--output", type=Path, help="the page; default: docs/gpu.md, with --tiny in the folder"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="rows, log, and what the parts write")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU manages")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the time limit of each part")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"--parts: no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not options.tiny and not has_gpu():
        parser.error("torch finds no GPU on this machine: add --tiny for sizes that a CPU manages")
    options.folder = options.folder.resolve()
    options.output = (options.output or (options.folder / "gpu.md" if options.tiny else PAGE)).resolve()
    return options


def has_gpu() -> bool:
    """Whether torch finds a GPU."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
