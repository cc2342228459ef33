"""The reports of the proxies and of the capacity: medians, ratios and slopes. Nothing is measured."""

from __future__ import annotations

from bench import capacity, proxies


def test_the_proxies_are_compared_with_haproxy_within_each_round() -> None:
    measured = {
        (work.name, each): [10.0 * number * (2 if each.startswith("examples") else 1) for number in (1, 2, 3)]
        for work, _ in proxies.WORKS
        for each in proxies.CONTESTANTS
    }
    lines = proxies.render(measured)
    assert len(lines) == 2 + len(proxies.CONTESTANTS)
    cell = "40.0 (2.00: 2.00 to 2.00)"
    assert f"| examples/proxy.py | {cell} | {cell} | {cell} |" in lines
    assert "| HAProxy | 20.0 | 20.0 | 20.0 |" in lines


def test_the_slope_of_memory_says_what_a_million_connections_take() -> None:
    measured = capacity.Measured("In the clear")
    for count in (0, 1000, 11000):
        # 2 KiB each in the workers, and 1 KiB of each end in the kernel, above what is there without a connection.
        measured.memory.append((count, capacity.Memory(10**8 + 2048 * count, 5000, 10**6 + 2048 * count)))
    lines = capacity.render(measured)
    assert "| 11,000 | 2,048 B | 0 B | 1,024 B | 117 MiB |" in lines
    assert "| slope | 2,048 B | kernel: 1,024 B | | 1,000,000 would take 2.9 GiB |" in lines
