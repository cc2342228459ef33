"""The status page in Debian's chromium: what it shows after its scripts ran, and what it never does."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Browser, browsing
from helpers.samples import sample, showing
from helpers.scraping import metrics_port
from helpers.servers import ECHO, ready, serving
from helpers.support import slow

HOSTILE = "<img src=x onerror=alert(1)><script>document.title='owned'</script>\x1b[2J\u202e"
ROWS = "[...document.querySelectorAll('#workers tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.open_tab()
    return chromium


def text(browser: Browser, element: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{element}').innerText"))


def opened(browser: Browser, address: str) -> None:
    browser.show(address)
    browser.wait_for("document.querySelector('#workers tbody tr')")


def test_it_shows_a_live_server_and_an_account_that_closes(browser: Browser) -> None:
    browser.view(1440, 960)
    with showing(sample) as address:
        opened(browser, address)
        before = text(browser, "equation")
        browser.pass_time(20)
        rows = browser.evaluate(ROWS)
        assert [row[:3] for row in rows] == [[str(slot), str(2144 + 7 * slot), "ready"] for slot in range(4)]
        assert all(300 < float(row[4]) < 400 for row in rows), rows
        assert text(browser, "notice") == "Nothing needs attention."
        assert text(browser, "feed") == "live, every 2 s"
        assert text(browser, "equation") != before
        assert "unaccounted" not in text(browser, "equation")
        assert "rooms\t1,204\t\nstore_seconds\tmean 0.003\t20" in text(browser, "service")
        assert browser.evaluate("document.title") == "serving 4/4 · chat.service:handle"
        assert "L" in browser.evaluate("document.querySelectorAll('.line')[2].getAttribute('d')")
    assert browser.complaints == []
    assert {request.removeprefix(address) for request in browser.requests} == {"", "status.json"}


#: Texts that are wider than their boxes.
CUT_OFF = """
[...document.querySelectorAll("tbody th, tbody td, .value, .note, .peak, section, .wide")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)
"""


@pytest.mark.parametrize("width", [320, slow(390), slow(800), slow(1000), 1180, slow(1440)])
def test_nothing_is_cut_off_at_any_width(browser: Browser, width: int) -> None:
    browser.view(width, 800)
    with showing(sample) as address:
        opened(browser, address)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate(CUT_OFF) == []


def test_light_and_dark_differ_and_keep_their_contrast(browser: Browser) -> None:
    seen = []
    with showing(troubled) as address:
        opened(browser, address)
        for dark in (False, True):
            browser.view(1440, 960, dark=dark)
            seen.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert browser.evaluate(CONTRAST) == []
    assert seen[0] != seen[1]


#: Texts with less contrast to what is behind them than 4.5 (WCAG 2.2, criterion 1.4.3).
CONTRAST = """
(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parse(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    const colour = getComputedStyle(e).backgroundColor;
    return (parse(colour)[3] ?? 1) === 0 ? behind(e.parentElement) : colour;
  };
  return [...document.querySelectorAll("#live *")].filter((e) => e.children.length === 0 && e.textContent.trim())
    .map((e) => [e.textContent, light(getComputedStyle(e).color), light(behind(e))])
    .map(([text, one, other]) => [text, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)])
    .filter(([, ratio]) => ratio < 4.5);
})()
"""


def troubled(turn: int) -> dict[str, Any]:
    """Return a status in which everything is wrong that the page can tell."""
    status = sample(turn)
    now = status["started"] + status["uptime"]
    status["workers"][0] |= {"paused": "no_descriptors", "lag": {"p50": 0.2, "p99": 1.4}}
    status["workers"][2] |= {"state": "hung"}
    del status["workers"][1]
    status["workers"][2] |= {"heartbeat_age": 7.3}
    status["slots"][1] |= {"state": "backoff", "retry_in": 3.4, "restarts": 9}
    status["queues"][0] |= {"waiting": 800}
    status["reloads"]["last"] = {
        "generation": 13,
        "result": "failed",
        "at": now - 200,
        "reason": "no module named chat",
    }
    status["certificates"][0] |= {"not_after": now + 5.5 * 86400}
    return status | {"limit": 9000, "suspended": True}


def test_it_says_what_needs_attention(browser: Browser) -> None:
    browser.view(1440, 960)
    with showing(troubled) as address:
        opened(browser, address)
        assert text(browser, "notice").splitlines() == [
            "Suspended: new connections wait in the queue",
            "2 of 4 workers are ready",
            "Connections are above 80 % of the limit",
            "The queue of 0.0.0.0:9000 is more than half full",
            "The last reload failed: no module named chat",
            "Certificate /etc/prefork/tls/chat.example.pem expires in 5 days",
            "A worker's loop does not turn",
            "A worker's loop lag (p99) is above 1 s",
        ]
        states = [row[2] for row in browser.evaluate(ROWS)]
        assert states == ["ready, paused: no descriptors", "backoff, next try in 4 s", "hung", "ready, silent for 7 s"]


def test_a_real_server_and_the_death_of_a_worker_are_shown(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(ECHO)
    with serving(tmp_path, "--metrics", "127.0.0.1:0", workers=1) as server:
        opened(browser, f"http://127.0.0.1:{metrics_port(server)}/")
        with socket.create_connection(("127.0.0.1", server.port), 10) as peer:
            peer.sendall(b"hello\n")
            assert peer.recv(100) == b"hello\n"
            browser.wait_for("document.getElementById('equation').textContent === 'accepted 1 = open 1 + closed 0'")
            os.kill(ready(tmp_path)[0]["pid"], signal.SIGKILL)
            browser.wait_for("document.getElementById('equation').textContent === 'accepted 1 = open 0 + closed 1'")
        assert "worker died\t1" in text(browser, "account")
        assert "signal\t1" in text(browser, "deaths")
        row = browser.evaluate(ROWS)[0]
        assert row[-2:] == ["1", "signal 9 (SIGKILL)"]
        assert text(browser, "target") == "service:handle"
    assert browser.complaints == []


def test_what_others_wrote_stays_text(browser: Browser) -> None:
    def hostile(turn: int) -> dict[str, Any]:
        status = sample(turn) | {"target": HOSTILE, "state": HOSTILE, "config": HOSTILE, "deaths": {HOSTILE: 1}}
        status["workers"][0] |= {"state": HOSTILE, "paused": HOSTILE, "pid": HOSTILE, "open": HOSTILE, "lag": HOSTILE}
        status["slots"][0] |= {"last_exit": HOSTILE}
        status["listeners"].append(HOSTILE)
        status["reloads"]["last"] |= {"result": "failed", "reason": HOSTILE}
        status["certificates"].append({"file": HOSTILE, "not_after": HOSTILE})
        status["certificates"].append({"file": "far", "not_after": 1e300})
        status["totals"]["closed"][HOSTILE] = 1
        status["totals"]["refusals"] = {"__proto__": 3, HOSTILE: 1}
        status["totals"]["handshakes"] = None
        status["service"].append({"name": "x", "kind": HOSTILE, "labels": {HOSTILE: HOSTILE}, "value": HOSTILE})
        return status

    with showing(hostile) as address:
        opened(browser, address)
        assert browser.evaluate("document.querySelectorAll('img, #live script').length") == 0
        assert browser.evaluate("document.title.includes('<script>') && !/[\\x1b\\u202e]/.test(document.title)")
        assert browser.evaluate("!/[\\x1b\\u202e]/.test(document.getElementById('live').textContent)")
        assert "proto\t3" in text(browser, "refusals")
    assert browser.complaints == []


def test_a_server_that_is_gone_is_told_and_one_that_is_back_is_shown(browser: Browser) -> None:
    def flickering(turn: int) -> dict[str, Any] | None:
        return None if 3 <= turn < 6 else sample(turn) if turn < 3 else sample(0) | {"pid": 77}

    with showing(flickering) as address:
        opened(browser, address)
        browser.pass_time(15)
        assert "the answer is 503; numbers are" in text(browser, "feed")
        assert text(browser, "notice") == "The server does not answer."
        assert browser.evaluate("document.title") == "! no answer · chat.service:handle"
        assert browser.evaluate("document.body.classList.contains('stale')")
        browser.pass_time(40)
        assert text(browser, "feed") == "live, every 2 s"
        assert text(browser, "notice") == "Nothing needs attention."
        assert not browser.evaluate("document.body.classList.contains('stale')")


def test_a_hidden_page_asks_for_nothing(browser: Browser) -> None:
    turn = (
        "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    with showing(sample) as address:
        opened(browser, address)
        browser.evaluate(turn.format("true"))
        assert text(browser, "feed") == "paused while hidden"
        before = len(browser.requests)
        browser.pass_time(60)
        assert len(browser.requests) == before
        browser.evaluate(turn.format("false"))
        browser.pass_time(1)
        assert len(browser.requests) == before + 1
        assert text(browser, "feed") == "live, every 2 s"
    assert browser.complaints == []


def test_without_scripts_there_are_tables(browser: Browser, tmp_path: Path) -> None:
    browser.view(390, 800)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    with showing(sample) as address:
        browser.show(address)
        browser.wait_for("document.querySelectorAll('noscript table').length")
        assert "chat.service:handle" in browser.evaluate("document.body.innerText")
        browser.picture(tmp_path / "plain.png")
