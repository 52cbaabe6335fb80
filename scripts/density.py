"""Tokens a line of code, by Python's tokenizer: ``python scripts/density.py [FOLDER]``.

Comments, docstrings, blank lines and line ends are left out. The aim is at most 8.5.
"""

import io
import sys
import tokenize
from pathlib import Path

LAYOUT = {
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def counted(source: str) -> tuple[int, int]:
    """The tokens of ``source`` and the lines that hold one."""
    tokens, lines, first = 0, set(), True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.type in LAYOUT:
            continue
        if token.type == tokenize.NEWLINE:
            first = True
            continue
        docstring = first and token.type == tokenize.STRING
        first = False
        if not docstring:
            tokens += 1
            lines.add(token.start[0])
    return tokens, len(lines)


def main() -> None:
    """Print the whole, and the ten densest files."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "src")
    found = {
        path: counted(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
    }
    tokens, lines = (sum(values) for values in zip(*found.values(), strict=True))
    print(f"{tokens} tokens in {lines} lines of code: {tokens / lines:.2f} a line")
    dense = sorted(((t / n, n, path) for path, (t, n) in found.items() if n), reverse=True)
    for share, n, path in dense[:10]:
        print(f"{share:6.2f}  {n:5d}  {path}")


if __name__ == "__main__":
    main()
