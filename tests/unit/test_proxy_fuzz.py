"""What `make fuzz` asks of any bytes holds for its seeds, and for hypothesis's idea of what is near them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuzz import properties, seeds


def test_the_properties_hold_for_each_seed_and_for_two_seeds_in_a_row() -> None:
    for first in seeds.SEEDS:
        for second in (b"", *seeds.SEEDS):
            properties.check(first + second)


@given(st.sampled_from(seeds.SEEDS), st.integers(0, 300), st.integers(0, 3), st.sampled_from([b"", *seeds.DICTIONARY]))
def test_the_properties_hold_for_changed_seeds(seed: bytes, at: int, taken: int, put: bytes) -> None:
    at %= len(seed) + 1
    properties.check(seed[:at] + put + seed[at + taken :])
