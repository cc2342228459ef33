"""Ticket keys: HAProxy's format is read as HAProxy reads it, and OpenSSL resumes with the keys of the file."""

from __future__ import annotations

import base64
import os
import re
import ssl
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.core.ticket_keys import MAX_KEYS, TicketKeys, TicketKeysError, parse_ticket_keys
from prefork.system.ticket_keys import TicketKeyring

SMAPS = Path("/proc/self/smaps")
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def lines(*keys: bytes) -> bytes:
    return b"".join(base64.b64encode(key) + b"\n" for key in keys)


def some(number: int, size: int = 80) -> list[bytes]:
    return [os.urandom(size) for _ in range(number)]


# --- the file ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.sampled_from((48, 80)), st.integers(3, MAX_KEYS), st.data())
def test_the_last_but_one_encrypts_and_all_decrypt(size: int, number: int, data: st.DataObject) -> None:
    """Name, AES key, MAC key: the order of HAProxy's tickets (`tests/clients` asks it)."""
    raw = data.draw(st.lists(st.binary(min_size=size, max_size=size), min_size=number, max_size=number, unique=True))
    raw = [number.to_bytes(2, "big") + each[2:] for number, each in enumerate(raw)]
    found = parse_ticket_keys(lines(*raw))
    middle = 16 + (size - 16) // 2
    assert [(each.name, each.aes, each.mac) for each in found.keys] == [
        (each[:16], each[16:middle], each[middle:]) for each in raw
    ]
    assert found.encrypting is found.keys[-2]
    assert TicketKeys.from_raw(found.raw()) == found


def test_line_endings_spaces_and_empty_lines_do_not_matter() -> None:
    one, two, three = (base64.b64encode(each) for each in some(3))
    expected = parse_ticket_keys(b"\n".join((one, two, three)))
    assert parse_ticket_keys(b"\n " + one + b"\r\n\r\n" + two + b" \n\n\t" + three + b"\r\n\n") == expected


A, B, C = (bytes([number]) * 80 for number in (1, 2, 3))
WRONG = {
    "none": (b"", "0 keys, and 3 or more are needed"),
    "two": (lines(A, B), "2 keys, and 3 or more are needed"),
    "mixed": (lines(A, B, C[:48]), "line 3: 48 bytes, but 80 in the lines before it"),
    "wrapped": (base64.encodebytes(A) * 3, "line 1: 57 bytes, and not 48 or 80 (write each line with: openssl rand"),
    "text": (b"# keys\n" + lines(A, B, C), "line 1: not base64"),
    "cut": (lines(A, B) + base64.b64encode(C)[:-2], "line 3: not base64"),
    "same name": (lines(A, B, A[:16] + C[16:]), "key 3: another key has the same first 16 bytes"),
    "many": (lines(*([A] * (MAX_KEYS + 1))), f"more than {MAX_KEYS} keys"),
}


@pytest.mark.parametrize("which", WRONG)
def test_a_wrong_file_is_refused_without_a_byte_of_it(which: str) -> None:
    content, reason = WRONG[which]
    with pytest.raises(TicketKeysError) as failure:
        parse_ticket_keys(content)
    assert str(failure.value).startswith(reason)
    assert not any(line and line.decode()[:8] in str(failure.value) for line in content.split(b"\n"))


@given(st.binary(max_size=300))
def test_whatever_a_file_holds_there_are_keys_or_one_reason(content: bytes) -> None:
    try:
        assert len(parse_ticket_keys(content).keys) >= 3
    except TicketKeysError as exc:
        assert str(exc).isprintable()


def test_keys_are_shown_nowhere_and_are_overwritten_in_the_end() -> None:
    keys = parse_ticket_keys(lines(A, B, C))
    kept = [keys.keys[0].aes, keys.keys[0].mac]
    assert "1" not in repr(keys)
    assert repr(keys.keys[0]).startswith("<")
    assert any(kept[0])
    del keys
    assert not any(kept[0] + kept[1])


# --- OpenSSL ----------------------------------------------------------------------------------------------------------

_authority = trustme.CA()
_leaf = _authority.issue_cert("localhost")


class Server:
    """A context whose tickets have keys of their own; `handshake` tells whether it resumed."""

    def __init__(self, *keys: bytes) -> None:
        self.ring = TicketKeyring()
        self.ring.replace(parse_ticket_keys(lines(*keys)))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _leaf.configure_cert(self.context)
        self.ring.install(self.context)

    def handshake(self, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> tuple[bool, ssl.SSLSession]:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(down, up, server_hostname="localhost", session=session),
            self.context.wrap_bio(up, down, server_side=True),
        )
        done: set[ssl.SSLObject] = set()
        for end in ends * 3:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            done.add(end)
        assert len(done) == 2
        ends[1].write(b"x")
        assert ends[0].read(1) == b"x"
        assert ends[0].session_reused == ends[1].session_reused
        assert ends[0].session is not None
        return bool(ends[1].session_reused), ends[0].session


def client(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context()
    _authority.configure_trust(context)
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("size", [48, 80])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_ticket_resumes_wherever_its_key_is_known(version: ssl.TLSVersion, size: int) -> None:
    """By any server with the file, after a rotation too; and a key that is gone means a full handshake."""
    asks, keys = client(version), some(5, size)
    first, second = Server(*keys[:3]), Server(*keys[:3])
    resumed, session = first.handshake(asks)
    assert not resumed
    assert second.handshake(asks, session)[0]
    second.ring.replace(parse_ticket_keys(lines(*keys[1:4])))
    # The key that encrypted it is an older one now, so the client is given a ticket of the new one.
    resumed, renewed = second.handshake(asks, session)
    assert resumed
    second.ring.replace(parse_ticket_keys(lines(*keys[2:5])))
    assert second.handshake(asks, renewed)[0]
    assert not second.handshake(asks, session)[0]
    assert not Server(*some(3, size)).handshake(asks, renewed)[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_resumed_connection_brings_a_ticket_where_one_is_used_once(version: ssl.TLSVersion) -> None:
    asks, server = client(version), Server(*some(3))
    session = server.handshake(asks)[1]
    for _ in range(3):
        resumed, following = server.handshake(asks, session)
        assert resumed
        # TLS 1.2 keeps its ticket (RFC 5077, 3.3).
        assert (following.id != session.id or following != session) == (version is ssl.TLSVersion.TLSv1_3)
        session = following


def test_a_ticket_that_cannot_be_written_ends_the_handshake_and_one_that_cannot_be_read_does_not() -> None:
    """Nothing is raised in the callback, where ctypes would print it."""
    asks, server = client(ssl.TLSVersion.TLSv1_3), Server(*some(3))
    session = server.handshake(asks)[1]
    server.ring._decrypt = None  # type: ignore[method-assign,assignment]  # raises TypeError when it is called
    assert not server.handshake(asks, session)[0]
    server.ring._encrypt = None  # type: ignore[method-assign,assignment]  # as above
    with pytest.raises(ssl.SSLError):
        server.handshake(asks)


def test_keys_lie_in_memory_that_no_core_dump_has_and_are_overwritten() -> None:
    keys = some(3)
    server = Server(*keys)
    memory = server.ring._memory
    assert all(bytes(memory).count(key[16:48]) == 1 for key in keys)
    address = server.ring._calls.address_in(memory, 0)
    areas = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags:([^\n]*)", SMAPS.read_text(), re.DOTALL | re.MULTILINE)
    (flags,) = (flags.split() for start, end, flags in areas if int(start, 16) <= address < int(end, 16))
    assert "dd" in flags, "do not include the area into a core dump (proc(5), smaps)"
    server.ring.replace(parse_ticket_keys(lines(*some(3))))
    assert not any(bytes(memory).count(key[16:48]) for key in keys)
