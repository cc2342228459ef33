"""Server names and application protocols: what is chosen, compared with a plain reading of the rules."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.alpn import choose_protocol
from prefork.core.server_names import Identity, NameTable, NeverChosen, SameName, choose

LABELS = st.sampled_from(["a", "b", "www", "xn--bcher-kva"])
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
NAMES = st.one_of(HOSTS, HOSTS.map(lambda host: f"*.{host}"))
CERTIFICATES = st.lists(
    st.builds(Identity, st.lists(NAMES, max_size=3).map(tuple), st.sampled_from(["EC", "RSA"])), min_size=1, max_size=4
)


def is_for(pattern: str, host: str) -> bool:
    if not pattern.startswith("*."):
        return pattern == host
    return host.partition(".")[2] == pattern[2:]


@given(st.dictionaries(NAMES, st.integers(), max_size=6), HOSTS, st.booleans(), st.booleans())
def test_an_exact_name_is_found_before_a_wildcard_in_any_spelling(
    entries: dict[str, int], host: str, capital: bool, dot: bool
) -> None:
    found = NameTable(entries).find((host.upper() if capital else host) + "." * dot)
    matching = sorted((pattern for pattern in entries if is_for(pattern, host)), key=lambda each: each[0] == "*")
    assert found == (entries[matching[0]] if matching else None)


@given(st.text(max_size=300))
def test_any_name_can_be_looked_for(name: str) -> None:
    assert NameTable({"a.test": 1, "*.a.test": 2}).find(name) in (None, 1, 2)


@given(CERTIFICATES, st.booleans())
def test_every_certificate_is_offered_for_some_name_or_refused(certificates: list[Identity], strict: bool) -> None:
    try:
        found = choose(certificates, strict)
    except SameName as exc:
        first, second = certificates[exc.first], certificates[exc.second]
        assert first.key_type == second.key_type
        assert exc.name in (first.names or ("",))
        assert exc.name in (second.names or ("",))
        return
    except NeverChosen as exc:
        assert not certificates[exc.position].names
        return
    offered = [*found.by_name.values(), found.default]
    assert {position for group in offered for position in group} == set(range(len(certificates)))
    assert 0 in found.default
    for group in offered:
        types = [certificates[position].key_type for position in group]
        assert len(types) == len(set(types))


@given(st.binary(max_size=600))
def test_any_list_of_protocols_can_be_looked_at(offered: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert choose_protocol([b"h2", b"\0"], offered) in (None, 0, 1)


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=8), st.lists(st.binary(min_size=1, max_size=3)))
def test_the_servers_first_protocol_that_is_offered_is_chosen(own: list[bytes], others: list[bytes]) -> None:
    offered = [*own[2:], *others]
    wire = b"".join(bytes([len(each)]) + each for each in offered)
    expected = next((position for position, each in enumerate(own) if each in offered), None)
    assert choose_protocol(own, wire) == expected


@pytest.mark.parametrize("offered", [b"\x02h", b"\x00", b"\x02h2\x00", b"\x02h2\x05abc"])
def test_a_list_that_is_cut_or_has_an_empty_name_is_refused(offered: bytes) -> None:
    with pytest.raises(ValueError, match="cut, or has an empty name"):
        choose_protocol([b"h2"], offered)
