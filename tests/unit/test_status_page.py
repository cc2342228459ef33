"""The status page as a document: what it may load and run, and what it shows without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
from importlib import resources

import pytest
from helpers.samples import sample

from prefork.core.account import CloseReason
from prefork.exporter.page import FIELDS, POLICY, page

STATIC = resources.files("prefork.exporter").joinpath("static")
SCRIPT = "".join(each.read_text() for each in STATIC.iterdir() if each.name.endswith(".js"))
HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e\"'&"


class Document(html.parser.HTMLParser):
    """What a browser without JavaScript makes of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self._open[-1] if self._open else "", []).append(data)


def source_of(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def test_the_policy_permits_the_one_script_and_the_one_style_sheet_and_nothing_else() -> None:
    found = Document(page(sample(0)).decode())
    scripts, styles = found.text["script"], found.text["style"]
    assert [source_of("".join(scripts)), source_of("".join(styles))] == re.findall(r"'sha256-[^']+'", POLICY)
    assert POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in POLICY
    assert FIELDS["Content-Security-Policy"] == POLICY
    assert [tag for tag, _ in found.tags].count("script") == 1


def test_nothing_comes_from_elsewhere_and_no_attribute_is_code() -> None:
    for tag, attributes in Document(page(sample(0)).decode()).tags:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc", "action")
        ]
        assert re.fullmatch(r"data:.*|metrics|status\.json", attributes.get("href") or "metrics"), tag


def test_the_script_writes_text_only() -> None:
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|DOMParser", SCRIPT)


def test_it_knows_every_reason_that_ends_a_connection() -> None:
    listed = SCRIPT[SCRIPT.index("const REASONS") : SCRIPT.index("]);")]
    assert set(re.findall(r'\["(\w+)", "\w+"\]', listed)) == {str(reason) for reason in CloseReason}


def test_every_element_that_the_script_names_is_there() -> None:
    there = {attributes.get("id") for _, attributes in Document(page(None).decode()).tags}
    named = set(re.findall(r'\$\("([a-z]+)"\)|(?<!\w)table\("([a-z]+)"', SCRIPT))
    assert {one or other for one, other in named} <= there
    assert len(named) > 10


def test_without_javascript_the_numbers_of_the_moment_are_there() -> None:
    status = sample(3)
    cells = Document(page(status).decode()).text
    assert cells["h1"][0] == "prefork: serving"
    for expected in ("chat.service:handle", "4 of 4", "2144", str(status["totals"]["accepted"]), "1290", "2025-11-24"):
        assert expected in cells["td"], expected


def test_without_a_status_it_says_so() -> None:
    assert b"The server does not answer." in page(None)


@pytest.mark.parametrize("where", ["target", "state", "worker", "refusal", "certificate", "listener"])
def test_what_others_wrote_is_escaped_without_javascript(where: str) -> None:
    status = sample(0)
    places = {
        "target": lambda: status.update(target=HOSTILE),
        "state": lambda: status.update(state=HOSTILE),
        "worker": lambda: status["workers"][0].update(state=HOSTILE),
        "refusal": lambda: status["totals"]["refusals"].update({HOSTILE: 1}),
        "certificate": lambda: status["certificates"][0].update(file=HOSTILE),
        "listener": lambda: status["listeners"].append(HOSTILE),
    }
    places[where]()
    written = page(status).decode()
    assert "<script>alert" not in written
    assert "\x1b" not in written
    assert "\u202e" not in written
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written
