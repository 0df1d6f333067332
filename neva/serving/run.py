"""`neva serve`: a model is loaded, then answers until the process is told to stop."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from omegaconf import OmegaConf

from neva.distributed import accelerator, groups
from neva.errors import ConfigError
from neva.inference.load import Assistant, load_configured
from neva.serving.options import ServeOptions

_SEED = 1234
"""Of Megatron's generators, from which nothing is drawn."""


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it is loaded; None: as the `.nemo` records it."""

    model: Path
    accelerator: str
    precision: str | None = None
    language_model: str | None = None
    vision_tower: str | None = None
    tokenizer: str | None = None
    quantization: str | None = None
    hparams_file: str | None = None
    use_ema: bool = False


def serve(source: ModelSource, name: str, options: ServeOptions) -> None:
    """Answers until SIGTERM or SIGINT, then finishes the answers that run.

    Args:
        source: the model.
        name: what clients call it.
        options: where to listen, and limits.

    Raises:
        UserError: the model cannot be loaded, or the port is taken.
    """
    import uvicorn

    from neva.serving.app import build_app
    from neva.serving.desk import Desk

    with _bound(options) as listener, _loaded(source) as assistant:
        options = replace(options, port=listener.getsockname()[1])
        app = build_app(Desk(assistant, options), name)
        sys.stderr.write(_greeting(name, options))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
        )
        with _ends_well():
            uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _bound(options: ServeOptions) -> Iterator[socket.socket]:
    """Takes the port before the model is loaded; nobody can connect before it answers."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {options.host}, port {options.port} ({error.strerror}); choose others with "
                "--host and --port"
            ) from error
        yield listener


@contextmanager
def _loaded(source: ModelSource) -> Iterator[Assistant]:
    accelerator.choose(source.accelerator)
    cfg = {
        "neva_model_file": str(source.model),
        "base_model_file": source.language_model,
        "vision_encoder_path": source.vision_tower,
        "tokenizer_type": source.tokenizer,
        "hparams_file": source.hparams_file,
        "use_ema": source.use_ema,
        "inference": {"quantization": source.quantization},
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "trainer": {"precision": source.precision or ("bf16" if torch.cuda.is_available() else "32")},
    }
    device = groups.init_process_group(rank=0, world_size=1)
    try:
        groups.init_model_parallel(groups.ParallelSizes(), seed=_SEED)
        yield load_configured(OmegaConf.create(cfg), device)
    finally:
        groups.destroy()


@contextmanager
def _ends_well() -> Iterator[None]:
    """Has the signals on which uvicorn stops end the process with status 0; uvicorn raises them again at its end."""

    def nothing(number: int, frame: FrameType | None) -> None:
        return None

    before = {number: signal.signal(number, nothing) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _greeting(name: str, options: ServeOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http{'s' if options.ssl_certfile else ''}://{host}:{options.port}"
    asked = json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    key = " -H 'Authorization: Bearer KEY'" if options.api_key else ""
    lines = [
        f"neva: {name} answers at {url}/v1, {options.max_num_seqs} requests at a time; try",
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{asked}'",
    ]
    if options.page:
        lines.append(f"neva: the page is at {url}/")
    return "\n".join(lines) + "\n"
