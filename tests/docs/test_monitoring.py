"""The dashboard and the alert rules of deploy/: they use only metrics and labels that there are, and can be parsed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.support import need

from prefork.core.account import CloseReason
from prefork.core.facts import ExitCause
from prefork.exporter.catalogue import CATALOGUE, Kind
from scripts import dashboard

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "prefork.rules.yml"
#: Labels that Prometheus adds, or a histogram has.
GENERAL = {"job", "instance", "le"}
#: All values of labels that are closed sets.
VALUES = {
    "cause": set(ExitCause),
    "reason": set(CloseReason),
    "result": {"success", "failure", "ok", "failed", "timeout"},
    "state": {"forking", "starting", "ready", "draining", "hung", "killed", "backoff", "open"},
}
#: What a name in a query may be, with its labels.
SERIES = {
    each.full_name + suffix: set(each.labels)
    for each in CATALOGUE
    for suffix in (("_bucket", "_count", "_sum") if each.kind is Kind.HISTOGRAM else ("",))
}


def dashboard_queries() -> Iterator[str]:
    found = json.loads(dashboard.FILE.read_text())
    for panel in found["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (each["expr"] for each in found["annotations"]["list"])
    yield from (each["definition"] for each in found["templating"]["list"] if "definition" in each)


def rule_queries() -> list[str]:
    """Return each `expr:` of the rules, which stand on one line, or indented behind `>-`."""
    return re.findall(r"^ +expr: (?:>-\n)?((?:.+\n)(?: {10}.+\n)*)", RULES.read_text(), re.MULTILINE)


def wrong_names(query: str) -> list[str]:
    """Return the metrics, labels and values of labels in a query that there are not."""
    names = re.findall(r"(?<![:\w])prefork_\w+", query)
    wrong = [name for name in names if name not in SERIES]
    known = GENERAL.union(*(SERIES.get(name, set()) for name in names))
    for labels in re.findall(r"(?:by|without|on|ignoring) \(([^()]*)\)", query):
        wrong += [label for label in re.split(r",\s*", labels) if names and label not in known]
    for name, labels in re.findall(r"(prefork_\w+)\{([^}]*)\}", query):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', labels):
            wrong += [label] if label not in GENERAL | SERIES.get(name, set()) else []
            wrong += [each for each in value.split("|") if label in VALUES and each not in VALUES[label]]
    return wrong


def test_every_query_names_metrics_labels_and_values_that_there_are() -> None:
    queries = [*dashboard_queries(), *rule_queries()]
    assert {query: wrong for query in queries if (wrong := wrong_names(query))} == {}
    assert len(rule_queries()) == RULES.read_text().count("expr:")
    assert len(queries) > 50


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("prefork_connection > 1", ["prefork_connection"]),
        ("prefork_loop_lag_seconds", ["prefork_loop_lag_seconds"]),
        ("sum by (pid) (prefork_connections)", ["pid"]),
        ('prefork_workers{worker="0"}', ["worker"]),
        ('prefork_workers{state=~"ready|idle"}', ["idle"]),
        ('sum by (job, worker, le) (rate(prefork_loop_lag_seconds_bucket{job=~"$job"}[5m]))', []),
    ],
)
def test_a_wrong_name_is_found(query: str, wrong: list[str]) -> None:
    assert wrong_names(query) == wrong


def test_the_dashboard_shows_every_metric() -> None:
    shown = " ".join(dashboard_queries())
    missing = {each.full_name for each in CATALOGUE if each.full_name not in shown}
    assert missing <= {"prefork_build_info", "prefork_start_time_seconds"}


def test_the_dashboard_is_current_and_its_panels_do_not_overlap() -> None:
    assert dashboard.main(["--check"]) == 0, "run scripts/dashboard.py"
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= dashboard.COLUMNS
        taken |= cells


def test_the_page_and_the_alerts_have_the_same_thresholds() -> None:
    rules = RULES.read_text()
    script = (ROOT / "src/prefork/exporter/static/page.js").read_text()
    found = dict(re.findall(r"(FULL|QUEUED|DAYS|LAG) = ([\d.]+)", script))
    assert f"prefork_connections:ratio > {found['FULL']}\n" in rules
    assert f"prefork_accept_queue:ratio > {found['QUEUED']}\n" in rules
    assert f"< {found['DAYS']} * 86400\n" in rules
    assert f"p99_5m > {found['LAG']}\n" in rules


def test_the_documentation_lists_every_alert() -> None:
    listed = re.findall(r"^\| `(Prefork\w+)` \|", (ROOT / "docs/status-page.md").read_text(), re.MULTILINE)
    assert listed == re.findall(r"alert: (\w+)", RULES.read_text())


def promtool(*arguments: str, folder: Path = RULES.parent) -> None:
    need("promtool")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_for_what_it_is_for_and_not_before() -> None:
    promtool("check", "rules", "--lint-fatal", RULES.name)
    promtool("test", "rules", "prefork.rules.test.yml")


def test_every_query_of_the_dashboard_can_be_parsed(tmp_path: Path) -> None:
    queries = [re.sub(r"\$__\w+", "5m", query) for query in dashboard_queries() if not query.startswith("label_values")]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    # JSON is YAML.
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", "queries.yml", folder=tmp_path)
