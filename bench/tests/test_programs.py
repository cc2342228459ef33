"""The report of what `prefork run` costs: medians, and ratios within each round. Nothing is measured."""

from __future__ import annotations

from bench.programs import CONTESTANTS, WORKS, Contestant, Cost, render


def test_the_report_compares_each_way_of_running_a_program_with_its_own_process() -> None:
    measured = {
        (work.name, each): [Cost(10.0 * (each.workers + 1) * number, 1000.0 * number) for number in (1, 2, 3)]
        for work in WORKS
        for each in CONTESTANTS
    }
    lines = render(measured)
    assert len([line for line in lines if line.startswith("### ")]) == len(WORKS)
    assert "| uvicorn | 20.0 us | 1 | 2,000 |" in lines
    assert "| uvicorn, prefork run -w 2 | 60.0 us | 3.00 (3.00 to 3.00) | 2,000 |" in lines


def test_a_program_is_called_in_the_same_words_with_and_without_prefork() -> None:
    own, run = (Contestant("aiohttp", workers).command(8000) for workers in (0, 2))
    assert run[run.index("--") + 1 :] == own[1:]
    assert run[run.index("--workers") + 1] == "2"
