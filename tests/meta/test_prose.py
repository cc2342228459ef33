"""Plain words: what scripts/prose.py finds in this repository has its exceptions, and they only become fewer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from scripts import prose


@pytest.mark.slow
def test_there_are_exactly_the_findings_that_the_exceptions_permit() -> None:
    found = prose.complaints(prose.find_all(prose.ROOT), prose.read_exceptions(prose.ROOT))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("pronoun", "Tell who asked", "Tell the client that asked"),
        ("pronoun", "It is kept as\n# nobody reads it", "It is kept for a user who reads it"),
        ("pronoun", "Whose the file is", "A peer whose connection ended"),
        ("number", "Send so many bytes", "There were so many that it failed"),
        ("fraction", "Costs a twentieth more", "Costs 5 % more than a third worker"),
        ("alone", "The peer alone may write", "The file is left alone"),
        ("business", "That is the worker's business", "That is business logic"),
        ("raises", "Return it. Raise OSError if there is none", "Raise OSError. Raises nothing else"),
    ],
)
def test_each_rule_finds_its_example_in_comments_docstrings_markdown_and_c(
    tmp_path: Path, rule: str, bad: str, good: str
) -> None:
    for name, form in (
        ("a.py", "# {}\n"),
        ("b.py", '"""{}. The end of it."""\n'),
        ("c.md", "{}.\n"),
        ("d.c", "/* {}. */\n"),
    ):
        path = tmp_path / name
        path.write_text(form.format(bad))
        assert [finding.rule for finding in prose.find(path, name)] == [rule], name
        path.write_text(form.format(good))
        assert prose.find(path, name) == [], name


def test_names_short_docstrings_and_long_lines_are_found_and_code_is_not(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text('def nobody_waits():\n    """It does not."""\n    return "who"  # `who` is a program\n')
    assert [(each.line, each.rule) for each in prose.find(program, "program.py")] == [(1, "pronoun"), (2, "docstring")]
    assert [each.rule for each in prose.find(program, "src/program.py")] == ["pronoun", "docstring", "pronoun"]
    page = tmp_path / "page.md"
    page.write_text("```\nwho\n```\n" + "word " * 30 + "\n| " + "cell " * 30 + "|\n")
    assert [(each.line, each.rule) for each in prose.find(page, "page.md")] == [(4, "line")]


def test_a_finding_too_many_and_a_permission_too_many_both_fail() -> None:
    finding = prose.Finding("a.py", 1, "alone", "alone")
    assert prose.complaints([finding], Counter({("a.py", "alone"): 1})) == []
    assert len(prose.complaints([finding], Counter())) == 1
    assert "--lower" in prose.complaints([finding], Counter({("a.py", "alone"): 2}))[0]


def test_the_exceptions_are_lowered_and_never_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests/meta").mkdir(parents=True)
    (tmp_path / "README.md").write_text("It alone, and it alone: so many.\n")
    for name in set(prose.FILES) - {"README.md"}:
        (tmp_path / name).touch()
    (tmp_path / prose.EXCEPTIONS).write_text("README.md alone 5\ngone.py number 1\n")
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    assert prose.main(["--lower"]) == 0
    assert prose.read_exceptions(tmp_path) == {("README.md", "alone"): 2}
