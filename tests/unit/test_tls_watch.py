"""Changed files of TLS are found however they are renewed, and used only if they are a renewal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.renewal import LAYOUTS, InPlace, client, issue, serial, serial_of, ticket_keys
from helpers.support import need_root, rounds
from hypothesis import given
from hypothesis import strategies as st

from prefork.assembly import trust
from prefork.assembly.tls_watch import TICKET_INTERVAL, TLSWatch
from prefork.config import TLS, Settings
from prefork.core.handout import decode_fields, encode_fields
from prefork.core.mounts import remote_type
from prefork.core.settling import PATIENCE, QUIET
from prefork.events import Event, FilesUnwatched, RenewalRefused, RenewalUnusable, TLSRenewed
from prefork.system.credentials import Identity, resolve_identity
from prefork.system.descriptors import sealed_file
from prefork.system.tls_contexts import TLSContexts, TLSPolicy
from prefork.system.tls_files import TLSFiles, read_files
from prefork.system.tls_handout import read_handout, write_handout
from prefork.worker.context import GenerationConfig
from prefork.worker.tls_renewal import TLSRenewal


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pairs")
    found = {name: issue(root / name) for name in ("old", "new")}
    found |= {"expired": issue(root / "expired", -9, -2), "early": issue(root / "early", 2, 9)}
    for name in ("mismatched", "damaged", "missing"):
        (root / name).mkdir()
        (root / name / "tls.crt").write_bytes((found["new"] / "tls.crt").read_bytes())
        found[name] = root / name
    (root / "mismatched" / "tls.key").write_bytes((found["old"] / "tls.key").read_bytes())
    (root / "damaged" / "tls.key").write_text("no key\n")
    return found


class Watched:
    """What a supervisor does with a watch, at times of its own."""

    def __init__(self, settings: Settings, identity: Identity | None = None) -> None:
        self.events: list[Event] = []
        self.examined: list[float] = []
        self.watch = TLSWatch(self.events.append, lambda _: self.examined.append(self.now))
        files = trust._read_files(settings)
        self.contexts = TLSContexts(TLSPolicy(ticket_keys=files.ticket_keys is not None))
        self.contexts.replace(files)
        self.config = GenerationConfig(settings, (), self.contexts, files, identity, "")
        self.now = 0.0
        assert self.look(0.0) is None

    def look(self, seconds: float) -> TLSFiles | None:
        """Look as often as is due for some seconds; return the first thing that is new."""
        end = self.now + seconds
        while True:
            renewed = self.watch.renew(self.config, self.now)
            assert not isinstance(renewed, str)
            if renewed is not None:
                renewed[1].close()
                self.config = dataclasses.replace(self.config, tls_files=renewed[0])
                return renewed[0]
            due = self.watch.next_look()
            if due is None or due > end:
                self.now = end
                return None
            self.now = due

    def told(self) -> list[Event]:
        """Return what was said since the last call, but for what was renewed."""
        events = [each for each in self.events if not isinstance(each, TLSRenewed)]
        self.events.clear()
        return events


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_renewal_is_found_in_every_layout(tmp_path: Path, pairs: dict[str, Path], layout: type[InPlace]) -> None:
    files = layout(tmp_path, pairs["old"])
    watched = Watched(Settings(tls=(TLS(files.cert, files.key),)))
    assert watched.look(10) is None
    for name in ("new", "old", "new"):
        files.renew(pairs[name])
        found = watched.look(1 + 2 * QUIET)
        assert found is not None
        assert found.pairs[0].key_bytes == (pairs[name] / "tls.key").read_bytes()
    assert watched.look(10) is None
    assert watched.watch.counts == {"ok": 3, "failed": 0}


REFUSED = {
    "mismatched": "--tls-key {key}: does not belong to the certificate {cert}",
    "damaged": "--tls-key {key}: not a PEM private key",
    "missing": "--tls-key {key}: no such file or directory",
    "expired": "--tls-cert {cert}: it expired on ",
    "early": "--tls-cert {cert}: it is not valid before ",
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_is_no_renewal_is_told_once_and_not_used(tmp_path: Path, pairs: dict[str, Path], which: str) -> None:
    """Not while the rest of it may be on its way; and what is right later is used."""
    files = InPlace(tmp_path, pairs["old"])
    watched = Watched(Settings(tls=(TLS(files.cert, files.key),)))
    files.renew(pairs[which])
    assert watched.look(PATIENCE - 1) is None
    assert not watched.events
    assert watched.look(300) is None
    (event,) = watched.told()
    assert isinstance(event, RenewalRefused)
    assert event.reason.startswith(REFUSED[which].format(key=files.key, cert=files.cert))
    assert watched.watch.counts == {"ok": 0, "failed": 1}
    files.renew(pairs["new"])
    assert watched.look(3) is not None


def test_an_error_of_prefork_itself_is_one_line_and_ends_nothing(
    tmp_path: Path, pairs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = InPlace(tmp_path, pairs["old"])
    watched = Watched(Settings(tls=(TLS(files.cert, files.key),)))
    monkeypatch.setattr(trust, "load_changed_files", {}.__getitem__)
    files.renew(pairs["new"])
    assert watched.look(PATIENCE + 2) is None
    (event,) = watched.told()
    assert isinstance(event, RenewalRefused)
    assert "TypeError" in event.reason


def test_a_key_that_comes_a_moment_later_is_waited_for(tmp_path: Path, pairs: dict[str, Path]) -> None:
    files = InPlace(tmp_path, pairs["old"])
    watched = Watched(Settings(tls=(TLS(files.cert, files.key),)))
    files.renew(pairs["mismatched"])
    assert watched.look(5) is None
    files.renew(pairs["new"])
    assert watched.look(3) is not None
    assert not watched.told()


def test_files_that_the_workers_user_could_have_changed_are_refused(tmp_path: Path, pairs: dict[str, Path]) -> None:
    """By the same rules as at the start; otherwise root would serve what a worker gives it."""
    need_root()
    files = InPlace(tmp_path, pairs["old"])
    settings = Settings(tls=(TLS(files.cert, files.key),), tls_ticket_key_file=str(tmp_path / "tickets"), user="nobody")
    ticket_keys(tmp_path / "tickets", *(os.urandom(48) for _ in range(3)))
    watched = Watched(settings, resolve_identity("nobody", ""))
    for path, option in ((files.key, "--tls-key"), (tmp_path / "tickets", "--tls-ticket-key-file")):
        files.renew(pairs["new"])
        path.chmod(0o666)
        assert watched.look(PATIENCE + 2) is None
        (event,) = watched.told()
        assert isinstance(event, RenewalRefused)
        assert event.reason.startswith(f"{option}: {path}: any user can write to it")
        path.chmod(0o600)
    assert watched.look(3) is not None


def test_other_authorities_for_clients_are_handed_out_or_take_a_reload(
    tmp_path: Path, pairs: dict[str, Path], certs: dict[str, str]
) -> None:
    """A reload where OpenSSL cannot be told to forget the sessions of clients that others have verified."""
    authorities = tmp_path / "clients.pem"
    authorities.write_bytes(Path(certs["ca"]).read_bytes())
    tls = (TLS(pairs["old"] / "tls.crt", pairs["old"] / "tls.key"),)
    watched = Watched(Settings(tls=tls, tls_client_ca=str(authorities)))
    for name in ("new", "old"):
        authorities.write_bytes((pairs[name] / "tls.crt").read_bytes())
        if name == "new":
            found = watched.look(3)
            assert found is not None
            assert found.client_ca is not None
            assert found.client_ca.data == authorities.read_bytes()
    watched.contexts._calls = None
    outcomes = [watched.watch.renew(watched.config, watched.now + after) for after in (0, 2, 4, 6, 70)]
    assert [each for each in outcomes if each is not None] == ["files of TLS have changed"] * 2, "again a minute later"


def test_dates_are_looked_at_once_a_day_and_keys_of_tickets_change_twice(pairs: dict[str, Path]) -> None:
    """All workers get the same seed of keys, which belong to no session from before."""
    watched = Watched(Settings(tls=(TLS(pairs["old"] / "tls.crt", pairs["old"] / "tls.key"),), tls_watch="off"))
    other = TLSContexts(TLSPolicy())
    asks = client()
    asks.maximum_version = ssl.TLSVersion.TLSv1_2
    seeds = []
    for _ in range(4):
        before = Session(watched.contexts, asks)
        assert Session(watched.contexts, asks, before.session).resumed
        files = watched.look(TICKET_INTERVAL)
        assert files is not None
        seeds.append(files.ticket_seed)
        assert not Session(watched.contexts, asks, before.session).resumed
        other.replace(files)
        assert Session(other, asks, Session(watched.contexts, asks).session).resumed
    assert len(set(seeds)) == 4
    assert len(watched.examined) == 2
    assert not watched.events
    # Without TLS, after a reload, there is nothing to wake up for.
    watched.watch.renew(GenerationConfig(Settings(), (), None, None, None, ""), watched.now)
    assert watched.watch.next_look() is None
    # A renewal keeps the keys, and so does a reload, which knows no seed.
    session = Session(watched.contexts, asks).session
    watched.contexts.replace(read_files((TLS(pairs["new"] / "tls.crt", pairs["new"] / "tls.key"),)))
    assert Session(watched.contexts, asks, session).resumed


# --- file systems of other machines -----------------------------------------------------------------------------------

_MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 22 0:44 / /etc/tls ro,relatime shared:9 master:2 - nfs4 host:/tls rw,vers=4.2
32 22 0:45 / /run/secret ro - tmpfs tmpfs rw
33 22 0:46 / /mnt/a\\040b rw - fuse.sshfs host: rw
broken
"""


def test_the_type_of_a_file_system_of_another_machine_is_known() -> None:
    assert remote_type(_MOUNTS, 0, 44) == "nfs4"
    assert remote_type(_MOUNTS, 0, 46) == "fuse.sshfs"
    assert not any(remote_type(_MOUNTS, *each) for each in ((8, 1), (0, 45), (9, 9)))


def test_files_of_another_machine_are_watched_only_if_that_is_asked_for(
    tmp_path: Path, pairs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at them may never return, and the supervisor would do nothing else."""
    monkeypatch.setattr("prefork.assembly.tls_watch.remote_type", lambda *_: "nfs")
    tls = (TLS(pairs["old"] / "tls.crt", pairs["old"] / "tls.key"),)
    for value, watches, told in (("auto", False, 1), ("on", True, 0), ("off", False, 0)):
        events: list[Event] = []
        watch = TLSWatch(events.append, lambda _: None)
        settings = Settings(tls=tls, tls_watch=value)  # type: ignore[arg-type]  # one of its values
        watch.renew(GenerationConfig(settings, (), None, None, None, ""), 0.0)
        assert (watch.next_look() is not None) is watches
        assert [type(each) for each in events] == [FilesUnwatched] * told


# --- what workers get -------------------------------------------------------------------------------------------------


def test_a_handout_says_everything_and_cannot_be_changed(
    tmp_path: Path, pairs: dict[str, Path], certs: dict[str, str]
) -> None:
    tls = tuple(TLS(pairs[name] / "tls.crt", pairs[name] / "tls.key") for name in ("old",))
    keys = ticket_keys(tmp_path / "tickets", *(os.urandom(80) for _ in range(4)))
    settings = Settings(tls=tls, tls_client_ca=certs["ca"], tls_ticket_key_file=str(keys))
    files = trust._read_files(settings)
    handout = write_handout(files)
    read = read_handout(handout)
    assert read.same_content(files)
    assert (read.pairs[0].cert, read.pairs[0].key) == (files.pairs[0].cert, files.pairs[0].key)
    for change in (
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.ftruncate(fd, 9),
        lambda fd: os.ftruncate(fd, 9**6),
    ):
        with pytest.raises(PermissionError):
            change(handout.fileno())
    handout.close()


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(0, 400))
def test_a_handout_that_is_cut_is_an_error(fields: list[bytes], cut: int) -> None:
    content = encode_fields(fields)
    assert [bytes(each) for each in decode_fields(content)] == fields
    short = content[:cut]
    try:
        found = [bytes(each) for each in decode_fields(short)]
    except ValueError:
        return
    assert found == fields[: len(found)]


@given(st.binary(max_size=200))
def test_whatever_is_handed_out_is_files_or_an_error(content: bytes) -> None:
    for each in (content, bytes(encode_fields([content])), bytes(encode_fields([b"1 1 1", *content.split(b"\0")]))):
        file = sealed_file("test", each)
        try:
            read_handout(file)
        except ValueError:
            pass
        finally:
            file.close()


class Session:
    """A handshake that is carried to its end."""

    def __init__(self, server: TLSContexts, asks: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        theirs = asks.wrap_bio(down, up, server_hostname="localhost", session=session)
        ours = server.main.wrap_bio(up, down, server_side=True)
        for end in (theirs, ours) * 3:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        ours.write(b"x")
        assert theirs.read(1) == b"x"
        self.resumed, self.session = theirs.session_reused, theirs.session


def half_done(server: ssl.SSLContext, chance: random.Random) -> Iterator[int]:
    """Go on with a handshake in steps; yield 0 for each, and in the end the serial number that was shown."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client()
    asks.maximum_version = chance.choice((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3))
    theirs = asks.wrap_bio(down, up, server_hostname=chance.choice(("localhost", "other.example")))
    ours, done = server.wrap_bio(up, down, server_side=True), 0
    while done < 2:
        done = 0
        for end in (theirs, ours):
            try:
                end.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
            yield 0
    yield serial(theirs.getpeercert(binary_form=True) or b"")


@pytest.mark.deadline(300)
@rounds(10, 1000)
def test_a_renewal_meets_handshakes_at_every_step(pairs: dict[str, Path], rounds: int) -> None:
    """None fails, and one that begins afterwards is shown the new certificate."""
    chance = random.Random(rounds)
    contexts, events = TLSContexts(TLSPolicy()), list[Event]()
    renewal = TLSRenewal(contexts, events.append)
    begun: list[tuple[int, Iterator[int]]] = []
    names = ("old", "new")
    shown = 0
    for number in range(rounds):
        tls = TLS(pairs[names[number % 2]] / "tls.crt", pairs[names[number % 2]] / "tls.key")
        renewal.take(write_handout(read_files((tls,))))
        begun += [(number, half_done(contexts.main, chance)) for _ in range(3)]
        for entry in list(begun):
            for _ in range(chance.randrange(6)):
                found = next(entry[1])
                if found:
                    # Begun at the first step, before this renewal or after it.
                    assert found in {serial_of(pairs[name]) for name in names}
                    shown += 1
                    begun.remove(entry)
                    break
        assert [each for each in half_done(contexts.main, chance) if each] == [serial_of(pairs[names[number % 2]])]
    assert not events
    assert shown >= rounds


def test_a_worker_says_that_it_cannot_use_a_handout(pairs: dict[str, Path]) -> None:
    events: list[Event] = []
    contexts = TLSContexts(TLSPolicy())
    contexts.replace(read_files((TLS(pairs["old"] / "tls.crt", pairs["old"] / "tls.key"),)))
    TLSRenewal(contexts, events.append).take(sealed_file("test", b"nothing"))
    assert [type(each) for each in events] == [RenewalUnusable]
    chance = random.Random(1)
    assert [each for each in half_done(contexts.main, chance) if each] == [serial_of(pairs["old"])]
