"""Inspected samples as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape

from PIL import Image

from neva.data.inspect import Inspected, ShownImage, Stretch
from neva.data.inspect_text import collapsed, printable, summary

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin: 2.2em 0 .2em; border-top: 1px solid #ddd; padding-top: 1em; }
p { margin: .3em 0; } .facts { color: #666; } .problem { color: #b00020; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: #fafafa; border: 1px solid #e4e4e4;
  border-radius: 4px; padding: .7em; }
.trained { background: #c9f0d0; } .masked { color: #777; } .image { background: #ead7fb; border-radius: 3px; }
.special { outline: 1px solid #e0a030; border-radius: 2px; }
figure { display: inline-block; margin: .6em 1em .6em 0; vertical-align: top; }
figcaption { font-size: .8em; color: #666; max-width: 16em; overflow-wrap: anywhere; }
img { border: 1px solid #ddd; } img.plot { border: 0; max-width: 100%; }
table { border-collapse: collapse; margin: .5em 0; } td { padding: .15em .8em .15em 0; vertical-align: top; }
"""


def page(
    title: str, samples: Sequence[Inspected], remarks: Sequence[str], plots: Sequence[tuple[str, bytes]]
) -> str:
    """Returns the page.

    Args:
        title: what the samples are of.
        samples: shown one below the other.
        remarks: lines on the whole data set.
        plots: caption and PNG of each.
    """
    body = [f"<h1>{_text(title)}</h1>"]
    body += [f"<p>{_text(remark)}</p>" for remark in remarks if remark]
    body += [f'<figure><img class="plot" alt="" src="{_uri(png)}"><figcaption>{_text(name)}</figcaption></figure>'
             for name, png in plots]  # fmt: skip
    body.append(
        '<p>Tokens: <span class="trained">trained</span> <span class="masked">masked, no loss</span> '
        '<span class="image">image</span> <span class="special">special token</span>; ↵ is a new line.</p>'
    )
    for sample in samples:
        body += _one(sample)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _one(sample: Inspected) -> Iterator[str]:
    record = sample.record
    name = "" if record is None else f": {record.place}, id {record.id!r}"
    yield f"<h2>Sample {sample.index}{_text(name)}</h2>"
    if sample.problem is not None:
        yield f'<p class="problem">No sample: {_text(sample.problem)}</p>'
    else:
        yield f'<p class="facts">{_text(summary(sample))}</p>'
        yield "".join(_original(image) for image in sample.images)
        yield "".join(_figure(_uri(_png(seen)), "as the tower sees it") for seen in sample.seen)
        yield f'<div class="text">{"".join(_stretch(stretch) for stretch in sample.stretches)}</div>'
    if record is not None:
        rows = [("system", record.system)] if record.system else []
        rows += [(turn.role, turn.text or "") for turn in record.turns]
        cells = "".join(f"<tr><td>{role}</td><td>{_text(text or '')}</td></tr>" for role, text in rows)
        yield f"<details><summary>the record's turns</summary><table>{cells}</table></details>"


def _original(image: ShownImage) -> str:
    if image.thumbnail is None or image.size is None:
        return (
            f"<figure><figcaption>{_text(image.name)}: not a file of the image folder</figcaption></figure>"
        )
    return _figure(_uri(_png(image.thumbnail)), f"{image.name}, {image.size[0]} x {image.size[1]}")


def _figure(source: str, caption: str) -> str:
    return f'<figure><img alt="" src="{source}"><figcaption>{_text(caption)}</figcaption></figure>'


def _stretch(stretch: Stretch) -> str:
    classes = f"{stretch.kind} special" if stretch.is_special else stretch.kind
    return f'<span class="{classes}">{_text(collapsed(stretch)).replace(chr(10), "↵" + chr(10))}</span>'


def _text(text: str) -> str:
    return escape(printable(text))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
