"""The ledger of a load tells right answers from failures: what the claims of the other tests here rest on."""

from __future__ import annotations

from pathlib import Path

from helpers.support import wait_until

from programs.catalogue import Program
from programs.load import loading
from programs.running import by_itself, forgiving, need_installed, parametrized


@forgiving
@parametrized
def test_a_server_that_dies_under_load_is_in_the_ledger(program: Program, tmp_path: Path) -> None:
    need_installed(program)
    with by_itself(program, tmp_path) as running, loading(program.client, running.port) as ledger:
        ledger.wait_for_more(20)
        assert ledger.failures == [], ledger.report()
        assert ledger.pids == {running.process.pid}
        running.process.kill()
        wait_until(lambda: ledger.failures, 20, "the first failure")
        assert "failed\nafter" in ledger.report()
