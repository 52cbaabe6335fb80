"""Text for a page: files of this package, and strings that cannot turn the text behind them
around.
"""

import re
from importlib.resources import files

from markupsafe import Markup, escape

__all__ = ["asset", "firm", "legible", "sentence"]

# control characters, turns of direction
MARKS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def asset(name: str) -> str:
    """The text of a file of this package."""
    return (files("feathide.report") / name).read_text(encoding="utf-8")


def firm(text: object) -> Markup:
    """``text`` with intervals and per cent signs that no line break tears apart."""
    safe = str(escape(legible(str(text)))).replace(" %", "\u00a0%")
    return Markup(re.sub(r"\([\d.]+–[\d.]+\)", r'<span class="firm">\g<0></span>', safe))


def legible(text: str) -> str:
    """Without what would turn the text behind it around: names come from strangers."""
    return MARKS.sub("\ufffd", text)


def sentence(text: object) -> str:
    """``text`` as a sentence: a capital at its beginning, a full stop at its end."""
    words = str(text).strip()
    if not words:
        return ""
    ended = words if words[-1] in ".!?:" else f"{words}."
    return ended[0].upper() + ended[1:]
