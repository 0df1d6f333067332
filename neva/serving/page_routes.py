"""The page of `neva serve --page`: static files, and what they ask of the server; nothing comes from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse

from neva.serving.options import ServeOptions
from neva.serving.problems import RequestProblem

_FOLDER = Path(__file__).parent / "page"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The browser too loads nothing from elsewhere, and runs no script that an answer might hold."""
_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
_MOST_EXAMPLES = 24


def add_page(app: FastAPI, name: str, options: ServeOptions) -> None:
    """Adds the page at `/`, for a model called `name`."""
    examples = _examples(options.examples)
    facts = {
        "model": name,
        "has_key": bool(options.api_key),
        "max_tokens": options.max_tokens,
        "examples": [path.name for path in examples],
    }

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_FOLDER / "page.html", headers=_HEADERS)

    @app.get("/page/facts", include_in_schema=False)
    async def page_facts() -> JSONResponse:
        return JSONResponse(facts)

    @app.get("/page/examples/{number}", include_in_schema=False)
    async def example(number: int) -> FileResponse:
        if not 0 <= number < len(examples):
            raise RequestProblem(404, f"there are {len(examples)} examples")
        path = examples[number]
        return FileResponse(path, media_type=_TYPES[path.suffix.lower()], headers=_HEADERS)

    for file in ("page.css", "page.js"):
        app.add_api_route(f"/page/{file}", _sender(_FOLDER / file), include_in_schema=False)


def _sender(path: Path) -> Callable[[], FileResponse]:
    """Returns a route that sends one file; no path of a request ever becomes the path of a file."""

    def send() -> FileResponse:
        return FileResponse(path, headers=_HEADERS)

    return send


def _examples(folder: Path | None) -> list[Path]:
    """Returns the first images of a folder, by name."""
    if folder is None:
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _TYPES)[:_MOST_EXAMPLES]
