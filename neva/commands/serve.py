"""`neva serve X.nemo`: its flags, without anything heavy imported before they are read."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import logging
import os
import ssl
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from neva.commands.options import verb_parser
from neva.commands.recipe import quiet_imports
from neva.config.keys.peft import INT8, NF4
from neva.errors import ConfigError
from neva.precision import PRECISIONS
from neva.quick_imports import quick_imports
from neva.registry import load_plugins
from neva.serving.options import ServeOptions

SUMMARY = "answer over HTTP, as OpenAI's interface, and on a page"
KEY_VARIABLE = "NEVA_API_KEY"
DEFAULTS = ServeOptions()
_T = TypeVar("_T")
EXAMPLES = """\
examples:
  neva serve nemo_experiments/stage2/checkpoints/stage2.nemo --page
  neva serve my.nemo --host 0.0.0.0 --api-key secret --max-num-seqs 16
  neva serve nemo_experiments/stage2/checkpoints/stage2-step=500-…-last --use-ema
"""


def main(arguments: Sequence[str]) -> int:
    """Answers until the process is told to stop. Returns the exit code."""
    given = parse(arguments)
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"neva serve needs {package}, which is not installed: pip install 'neva[serve]'"
            )
    _check(given)
    load_plugins(given.plugins)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    quiet_imports()
    with quick_imports():
        from neva.serving.run import ModelSource, serve

    name = given.model.stem if given.model.suffix == ".nemo" else given.model.name
    serve(_of(ModelSource, given), given.served_model_name or name, _of(ServeOptions, given))
    return 0


def _of(kind: type[_T], given: argparse.Namespace) -> _T:
    """Returns the flags that a dataclass has fields for."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in vars(given).items() if name in names})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva serve`."""
    parser = verb_parser(
        "serve",
        "Serves a trained model: POST /v1/chat/completions, GET /v1/models, GET /health.",
        EXAMPLES,
    )
    parser.add_argument(
        "model", type=Path, help=".nemo file, the folder of an extracted one, or a checkpoint"
    )
    _add_model(parser.add_argument_group("model"))
    _add_address(parser.add_argument_group("where"))
    _add_limits(parser.add_argument_group("limits"))
    return parser.parse_args(list(arguments))


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--served-model-name", metavar="NAME", help="for clients; default: the file's name")
    group.add_argument(
        "--precision", choices=PRECISIONS, help="of the weights; default: bf16 on a GPU, else 32"
    )
    group.add_argument(
        "--quantization", choices=(NF4, INT8), help="of the language model's matrices; default: none"
    )
    group.add_argument(
        "--hparams-file", metavar="FILE", help="of a checkpoint elsewhere: config.yaml of its run folder"
    )
    group.add_argument("--use-ema", action="store_true", help="of a checkpoint: the average of its weights")
    group.add_argument("--accelerator", choices=("auto", "gpu", "cpu"), default="auto")
    group.add_argument("--language-model", metavar="FOLDER", help="where the .nemo holds none and it moved")
    group.add_argument("--vision-tower", metavar="FOLDER", help="the same for the tower")
    group.add_argument("--tokenizer", metavar="FOLDER", help="another one than the .nemo's")
    group.add_argument(
        "--plugins", nargs="+", default=[], metavar="NAME", help="your packages that register families"
    )


def _add_address(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default=DEFAULTS.host, help="default: %(default)s, this machine alone")
    group.add_argument(
        "--port", type=_port, default=DEFAULTS.port, help="default: %(default)s; 0: a free one"
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get(KEY_VARIABLE) or None,
        help=f"clients send it as bearer token; default: the variable {KEY_VARIABLE}, else none is asked for",
    )
    group.add_argument(
        "--ssl-certfile", type=Path, metavar="FILE", help="certificate (PEM): answer over HTTPS"
    )
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="its key, where it lies elsewhere")
    group.add_argument("--page", action="store_true", help="a page to chat with images, at /")
    group.add_argument("--examples", type=Path, metavar="FOLDER", help="images that the page offers")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    for flag, meaning in (
        ("max_num_seqs", "answers that grow together"),
        ("max_queue", "requests that wait beside those; more get 429"),
        ("max_tokens", "longest answer; a request for more gets so many"),
        ("max_body_mib", "largest body, MiB"),
        ("max_images", "images in a request"),
        ("max_image_pixels", "pixels of an image"),
    ):
        name, default = "--" + flag.replace("_", "-"), getattr(DEFAULTS, flag)
        group.add_argument(
            name, type=_whole, default=default, metavar="N", help=f"{meaning}; default: {default:,}"
        )
    group.add_argument(
        "--allowed-local-media-path",
        type=Path,
        metavar="FOLDER",
        help="images below it may be named as file:///…; default: no file is read",
    )
    group.add_argument(
        "--allowed-media-domains",
        nargs="+",
        type=str.lower,
        default=DEFAULTS.allowed_media_domains,
        metavar="HOST",
        help="images of these hosts may be named by URL; default: nothing is fetched",
    )


def _check(given: argparse.Namespace) -> None:
    """Raises ConfigError for what is missing; warns where everybody could ask."""
    if not given.model.exists():
        raise ConfigError(f"no .nemo, extracted folder or checkpoint at {given.model}")
    for flag in ("allowed_local_media_path", "examples"):
        folder = getattr(given, flag)
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"--{flag.replace('_', '-')}: no folder at {folder}")
    if given.examples is not None and not given.page:
        raise ConfigError("--examples: they are shown on the page, which --page adds")
    if given.ssl_certfile or given.ssl_keyfile:
        _check_certificate(given.ssl_certfile, given.ssl_keyfile)
    if not given.api_key and not _is_loopback(given.host):
        sys.stderr.write(
            f"neva: everybody who reaches {given.host} can ask; --api-key KEY or {KEY_VARIABLE} asks for a key\n"
        )


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Raises ConfigError where no client could be answered with these."""
    if certificate is None:
        raise ConfigError("--ssl-keyfile: found without --ssl-certfile FILE, expected both")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, lambda: "")
    except OSError as error:  # also what OpenSSL says of their content
        raise ConfigError(
            f"--ssl-certfile {certificate}, --ssl-keyfile {key or certificate}: expected a certificate and its key, "
            f"not encrypted, both in PEM ({error})"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _whole(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and {2**16 - 1:,}")
    return number
