"""What a page of ours is made of: a template, its style, its scripts, which the policy allows by
their hash, and the data as JSON.

A page has no address in it: everything is inside, and a content-security policy forbids it to
load anything. Text is escaped by the template, or stands as JSON in a block that is not run."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from feathide.metrics.numbers import number
from feathide.report.glossary import Glossary
from feathide.report.naming import label
from feathide.report.text import asset, firm, legible, sentence

__all__ = ["document", "plain"]


def document(
    template: str, scripts: Sequence[str], data: Mapping[str, Any], **values: Any
) -> str:
    """The page that ``template`` (a file of this package) makes of ``values``, with plotly,
    ``scripts`` and ``data`` inside.
    """
    from plotly.offline import get_plotlyjs

    inside = [_script(get_plotlyjs()), *(_script(asset(name)) for name in scripts)]
    env = Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: legible(value) if type(value) is str else value,
    )
    env.filters |= {"label": label, "firm": firm, "sentence": sentence, "number": number}
    values.setdefault("glossary", Glossary())
    return env.get_template(template).render(
        **values,
        style=Markup(asset("page.css")),
        scripts=[script for script, _ in inside],
        hashes=" ".join(f"'sha256-{digest}'" for _, digest in inside),
        data=_json(data),
    )


def _script(text: str) -> tuple[Markup, str]:
    """A script for the page and the base64 of its SHA-256, by which the policy allows it."""
    if "</script" in text.lower() or "\r" in text:
        raise ValueError(
            "a script of the report must not close itself or hold carriage returns: its "
            "hash would not match"
        )
    return Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> Markup:
    """JSON that is safe inside a script block: no <, > or & in it; numbers that are not finite
    become null.
    """
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def plain(value: Any) -> Any:
    """Mappings, sequences, arrays and numbers as what JSON and YAML know."""
    match value:
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
        case np.ndarray() | np.generic():
            return plain(value.tolist())
        case bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [plain(v) for v in value]
        case _:
            return legible(str(value))
