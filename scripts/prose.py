"""Find wording that this project does without, and compare it with the exceptions in tests/meta/prose_exceptions.txt.

    python scripts/prose.py              what exceeds the exceptions, and exceptions that can be lowered
    python scripts/prose.py PATH...      every finding in these files
    python scripts/prose.py --lower      lower the exceptions to what is still found; never raise one

It reads docstrings, comments, names of functions and classes, string literals outside tests, and Markdown outside code.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EXCEPTIONS = "tests/meta/prose_exceptions.txt"
FOLDERS = ("src", "docs", "examples", "tests", "bench", "soak", "cluster", "inject", "fuzz", "scripts")
FILES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
GENERATED = "docs/api.md"
#: Where string literals are read by users or operators, and are prose.
SPEAKING = ("src/", "bench/", "inject/", "soak/", "cluster/")
MAX_LINE = 120
MIN_DOCSTRING_WORDS = 5

PEOPLE = "user|person|people|reader|operator|administrator|attacker|author|developer|contributor|colleague"
ORDINAL = (
    "third|quarter|fifth|sixth|seventh|eighth|ninth|tenth|twelfth|fifteenth|sixteenth|twentieth|thirtieth|fortieth"
    "|fiftieth|hundredth|thousandth"
)
#: What follows a fraction, and not an ordinal number: "a third worker" is fine.
AFTER_FRACTION = (
    r"(?=\s+(?:of|more|less|longer|shorter|faster|slower|dearer|cheaper|larger|smaller|as)\b|\s*[.,;:)]|\s*\Z)"
)
#: Each rule: what it finds, and what to write instead.
RULES = {
    "pronoun": (
        r"\b(?:who|whoever|whom|nobody|somebody|everybody|anybody|someone|everyone|anyone|he|him|his)\b"
        r"|(?:\A|[.:;(]\s+|\n\s*\n)whose\b|\b(?:and|or|of|by|on|is|to|know|knows|says?|tells?|see|sees)\s+whose\b",
        "name the subject: the worker, the peer, the process; it",
    ),
    "number": (r"\bso\s+(?:many|much|long)\b(?!\s+that\b)", "write the number with its unit, or its name"),
    "fraction": (
        rf"\b(?:an?|one)\s+(?:{ORDINAL}){AFTER_FRACTION}|\b(?:two|three|four)\s+(?:{ORDINAL})s\b"
        rf"|\bhalf\s+(?:of|an?|the|as)\b|\bby\s+half\b",
        "write the number: 3 %, 15 minutes",
    ),
    "alone": (r"\balone\b", 'write "only", or name what is left out'),
    "business": (r"\bbusiness\b(?!\s+logic)", "name the file or the process that does it"),
    "raises": (
        r"[.:]\s+(?-i:Raise\s+(?:[\w.]*[a-z][A-Z]|OSError|nothing))",
        'write "Raises" in a sentence that is not the first',
    ),
}
#: People, and the `alone` that does not mean "only".
ALLOWED = re.compile(
    rf"\b(?:{PEOPLE}|those|anyone)s?,?\s+(?:who|whom|whose)\b"
    r"|\b(?:leav\w+|left|let|lets)\s+(?:\S+\s+){0,5}?alone\b|\b(?:runs?|stands?|works?)\s+alone\b",
    re.IGNORECASE,
)
PATTERNS = {rule: re.compile(pattern, re.IGNORECASE) for rule, (pattern, _) in RULES.items()}
ADVICE = {rule: advice for rule, (_, advice) in RULES.items()} | {
    "docstring": f"say in {MIN_DOCSTRING_WORDS} words or more what it does, or delete it",
    "line": f"break the line before column {MAX_LINE}",
}


class Finding(NamedTuple):
    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {ADVICE[self.rule]}: {self.text}"


class Piece(NamedTuple):
    """Prose that belongs together, and the line it starts on."""

    line: int
    text: str
    docstring: bool = False


def find(path: Path, name: str) -> list[Finding]:
    """Return the findings in one file, in order of their lines."""
    source = path.read_text()
    found = [Finding(name, *where) for piece in pieces(source, name) for where in in_piece(piece)]
    if path.suffix != ".py":  # ruff measures the lines of Python
        for number, line in enumerate(source.splitlines(), 1):
            if len(line) > MAX_LINE and not line.startswith("|") and "http" not in line:
                found.append(Finding(name, number, "line", line[:40] + "..."))
    return sorted(found, key=lambda finding: finding.line)


def in_piece(piece: Piece) -> Iterator[tuple[int, str, str]]:
    # What stands in backticks is code: its length stays, so that lines keep their numbers.
    text = re.sub(r"``?[^`]+``?", lambda code: re.sub(r"[^\n]", "_", code[0]), piece.text)
    if piece.docstring and len(piece.text.split()) < MIN_DOCSTRING_WORDS:
        yield piece.line, "docstring", piece.text
    allowed = [match.span() for match in ALLOWED.finditer(text)]
    for rule, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            if not any(start <= match.start() and match.end() <= end for start, end in allowed):
                begin, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
                yield (
                    piece.line + text.count("\n", 0, match.start()),
                    rule,
                    piece.text[begin : end if end > 0 else None].strip(),
                )


def pieces(source: str, name: str) -> Iterator[Piece]:
    """Yield the prose of a file, by its kind."""
    if name.endswith(".py"):
        yield from of_python(source, strings=name.startswith(SPEAKING) and "/tests/" not in name)
    elif name.endswith(".md"):
        fences = re.sub(r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), source, flags=re.DOTALL | re.MULTILINE)
        yield Piece(1, fences)
    elif name.endswith((".c", ".h")):
        for match in re.finditer(r"/\*.*?\*/|//[^\n]*", source, re.DOTALL):
            text = re.sub(r"^\s*(?://|/?\*+)[ \t]*|\*/$", "", match[0], flags=re.MULTILINE)
            yield Piece(1 + source.count("\n", 0, match.start()), text)
    else:
        yield from joined((n, line.partition("#")[2]) for n, line in enumerate(source.splitlines(), 1) if "#" in line)


def of_python(source: str, strings: bool) -> Iterator[Piece]:
    documented = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(node, ast.Module):
                yield Piece(node.lineno, node.name.replace("_", " "))
            if text := ast.get_docstring(node):
                documented.add(first := node.body[0].value)  # type: ignore[attr-defined]  # a docstring is an Expr
                yield Piece(first.lineno, text, docstring=True)
    if strings:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documented:
                yield Piece(node.lineno, node.value)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from joined((token.start[0], token.string.lstrip("#:")) for token in tokens if token.type == tokenize.COMMENT)


def joined(comments: Iterator[tuple[int, str]]) -> Iterator[Piece]:
    """Yield comments on consecutive lines as one piece."""
    begin, lines = 0, list[str]()
    for number, text in comments:
        if lines and number != begin + len(lines):
            yield Piece(begin, "\n".join(lines))
            lines = []
        begin = begin if lines else number
        lines.append(text.strip())
    yield Piece(begin, "\n".join(lines))


def all_files(root: Path) -> list[str]:
    kinds = {".py", ".md", ".c", ".h", ".toml", ""}
    under = (path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in kinds)
    every = {*under, *(root / name for name in FILES)} - {root / GENERATED}
    return sorted(str(path.relative_to(root)) for path in every if path.is_file() and not made(path))


def made(path: Path) -> bool:
    """Return whether a file is a copy that a tool has made."""
    return any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts)


def find_all(root: Path) -> list[Finding]:
    return [finding for name in all_files(root) for finding in find(root / name, name)]


def read_exceptions(root: Path) -> Counter[tuple[str, str]]:
    """Return the permitted number of findings by path and rule."""
    lines = (line.split() for line in (root / EXCEPTIONS).read_text().splitlines() if not line.startswith("#"))
    return Counter({(path, rule): int(count) for path, rule, count in lines})


def write_exceptions(root: Path, permitted: Counter[tuple[str, str]]) -> None:
    head = "# path, rule, findings still permitted; scripts/prose.py --lower lowers them, and nothing raises them\n"
    lines = [f"{path} {rule} {count}\n" for (path, rule), count in sorted(permitted.items()) if count > 0]
    (root / EXCEPTIONS).write_text(head + "".join(lines))


def complaints(found: list[Finding], permitted: Counter[tuple[str, str]]) -> list[str]:
    """Return one line for each finding above the permitted number, and for each permission that is too high."""
    counts = Counter((finding.path, finding.rule) for finding in found)
    above = [str(finding) for finding in found if counts[finding[0], finding[2]] > permitted[finding[0], finding[2]]]
    below = [
        f"{path}: {rule}: {count} permitted, {counts[path, rule]} found: run scripts/prose.py --lower"
        for (path, rule), count in sorted(permitted.items())
        if counts[path, rule] < count
    ]
    return above + below


def main(arguments: list[str]) -> int:
    if arguments == ["--lower"]:
        counts = Counter((finding.path, finding.rule) for finding in find_all(ROOT))
        write_exceptions(ROOT, read_exceptions(ROOT) & counts)
        return 0
    if arguments:
        lines = [str(finding) for name in arguments for finding in find(Path(name), name)]
    else:
        lines = complaints(find_all(ROOT), read_exceptions(ROOT))
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
