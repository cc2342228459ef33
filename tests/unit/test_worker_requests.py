"""What workers ask for: packets, the sockets that are held, and leases."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from prefork.core.held_addresses import HeldAddress, match
from prefork.core.leases import MAX_PER_WORKER, Claim, LeaseTable, name_error
from prefork.core.worker_requests import (
    IPV4,
    IPV6,
    LIMIT,
    UNIX,
    Answer,
    BindRequest,
    Granted,
    HeldRequest,
    LeaseRequest,
    Refused,
    Request,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)

ports = st.integers(0, 65535)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(BindRequest, st.just(IPV4), st.ip_addresses(v=4).map(str), ports, st.just(0), st.integers(0, 63)),
    st.builds(
        BindRequest, st.just(IPV6), st.ip_addresses(v=6).map(str), ports, st.integers(0, 9), st.just(0), st.booleans()
    ),
    st.builds(BindRequest, st.just(UNIX), st.sampled_from(["/run/a", "\0name", "/run/\udcff"]), mode=st.just(0o660)),
    st.builds(HeldRequest, st.text(max_size=99)),
    st.builds(LeaseRequest, st.text(max_size=99)),
)
answers: st.SearchStrategy[Answer] = st.one_of(
    st.builds(Granted, st.booleans()), st.builds(Refused, st.integers(0, 133), st.text(max_size=99))
)


numbers = st.integers(1, 2**60)


@given(requests, numbers)
def test_a_request_arrives_as_it_was_sent(request: Request, number: int) -> None:
    assert decode_request(encode_request(request, number)) == (request, number)


@given(answers, numbers)
def test_an_answer_arrives_as_it_was_sent(answer: Answer, number: int) -> None:
    assert decode_answer(encode_answer(answer, number)) == (answer, number)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["number", "bind", "nth", "mode", "held"]), inner)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=64) | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_packet_is_a_request_or_a_value_error(packet: bytes) -> None:
    for decode in (decode_request, decode_answer):
        try:
            decode(packet)
        except ValueError:
            continue


def test_neither_deep_nor_long_packets_are_taken() -> None:
    with pytest.raises(ValueError, match="nested|Expecting"):
        decode_request(b"[" * 3000)
    with pytest.raises(ValueError, match="too long"):
        encode_request(HeldRequest("x" * LIMIT), 1)


@pytest.mark.parametrize(
    "bind",
    [
        [2, "127.0.0.1", 65536, 0],
        [2, "127.0.0.1", -1, 0],
        [2, "127.0.0.1", True, 0],
        [2, "localhost", 80, 0],
        [2, "127.1", 80, 0],
        [2, "::1", 80, 0],
        [10, "fe80::1%eth0", 80, 0],
        [10, "::1", 80, 2**32],
        [1, "relative", 0, 0],
        [1, "/" + "x" * 200, 0, 0],
        [1, "/a\0b", 0, 0],
        [16, "x", 0, 0],
        [2, "127.0.0.1", 80],
    ],
)
def test_an_address_that_cannot_be_is_no_request(bind: list[object]) -> None:
    packet = json.dumps({"number": 1, "bind": bind, "nth": 0, "v6only": True, "mode": 0o600}).encode()
    with pytest.raises(ValueError, match=r".*") as found:
        decode_request(packet)
    assert "not a number" not in str(found.value)


# --- which socket an address stands for -------------------------------------------------------------------------------


def asked(family: int, host: str, port: int, nth: int = 0, v6only: bool = True) -> BindRequest:
    return BindRequest(family, host, port, 0, nth, v6only)


ANY4 = HeldAddress(IPV4, "0.0.0.0", 8000, True, named=True)
ANY6 = HeldAddress(IPV6, "::", 8000, True, named=True)
LOCAL = HeldAddress(IPV4, "127.0.0.1", 9000, True, named=True)
FREE = HeldAddress(IPV4, "127.0.0.1", 40001, True, named=False, key="127.0.0.1:0#0")
DUAL = HeldAddress(IPV6, "::", 7000, False, named=False, key="[::]:7000#0")
PATH = HeldAddress(UNIX, "/run/a.sock", 0, True, named=True)
HELD = (ANY4, ANY6, LOCAL, FREE, DUAL, PATH)


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        (asked(IPV4, "0.0.0.0", 8000), ANY4),
        (asked(IPV6, "::", 8000), ANY6),
        # The operator decides the address.
        (asked(IPV4, "127.0.0.1", 8000), ANY4),
        (asked(IPV4, "0.0.0.0", 9000), LOCAL),
        (asked(IPV4, "127.0.0.2", 9000), None),
        (asked(IPV6, "::1", 9000), None),
        # The same call in another worker, and the port that it got.
        (asked(IPV4, "127.0.0.1", 0), FREE),
        (asked(IPV4, "127.0.0.1", 40001), FREE),
        (asked(IPV4, "127.0.0.1", 0, nth=1), None),
        (asked(IPV4, "0.0.0.0", 0), None),
        (asked(IPV4, "0.0.0.0", 40001), None),
        (asked(IPV6, "::", 7000, v6only=False), DUAL),
        (asked(UNIX, "/run/a.sock", 0), PATH),
        (asked(UNIX, "/run/b.sock", 0), None),
        (asked(IPV4, "0.0.0.0", 8000, nth=1), None),
    ],
)
def test_an_address_stands_for_one_held_socket(request_: BindRequest, found: HeldAddress | None) -> None:
    position = match(request_, HELD)
    assert (HELD[position] if isinstance(position, int) else position) == found


def test_a_socket_for_both_families_is_no_socket_for_one() -> None:
    refused = match(asked(IPV6, "::", 8000, v6only=False), HELD)
    assert isinstance(refused, Refused)
    assert "leave out its --bind" in refused.reason
    assert isinstance(match(asked(IPV6, "::", 7000, v6only=True), HELD), Refused)


# --- leases -----------------------------------------------------------------------------------------------------------


class Leases(RuleBasedStateMachine):
    """Workers claim and end at random: each lease has one holder, the first claim that has not ended."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable()
        self.claims: list[Claim] = []
        self.keys = 0

    @rule(worker=st.integers(1, 3), name=st.sampled_from("ab"))
    def claim(self, worker: int, name: str) -> None:
        self.keys += 1
        claim = Claim(self.keys, worker, name)
        first = not any(each.name == name for each in self.claims)
        assert self.table.add(claim) == first
        self.claims.append(claim)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        held = self.table.holder(claim.name) == claim
        self.claims.remove(claim)
        following = next((each for each in self.claims if each.name == claim.name), None)
        assert self.table.remove(claim) == (following if held else None)
        assert self.table.remove(claim) is None

    @invariant()
    def the_first_claim_holds(self) -> None:
        for name in "ab":
            assert self.table.holder(name) == next((each for each in self.claims if each.name == name), None)
        for worker in (1, 2, 3):
            own = {each.key for each in self.claims if each.worker_id == worker}
            assert {each.key for each in self.table.claims_of(worker)} == own


test_leases = Leases.TestCase
test_leases.settings = settings(max_examples=30)


def test_a_worker_has_a_bounded_number_of_claims() -> None:
    table = LeaseTable()
    for key in range(MAX_PER_WORKER):
        assert table.refusal(1, str(key)) == ""
        table.add(Claim(key, 1, str(key)))
    assert "64 leases" in table.refusal(1, "more")
    assert table.refusal(2, "more") == ""


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "\x1b[31m", 7, None])
def test_the_name_of_a_lease_is_short_and_printable(name: object) -> None:
    assert "1 to 100 printable" in name_error(name)
    assert name_error("nightly report") == ""
