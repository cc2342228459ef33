"""Settings are checked when they are made, and rejected in one line with the option, its value and what is right."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.support import run_script
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import prefork
from prefork.addresses import FdAddress, TCPAddress, UnixAddress
from prefork.config import RUN_ONLY, TLS, Limits, ServeOptions, Settings, settings_of
from prefork.errors import ConfigError


def test_defaults_are_those_of_the_manual() -> None:
    settings = Settings()
    assert [str(address) for address in settings.bind] == [":9000"]
    assert (settings.workers, settings.backlog, settings.drain_timeout) == (0, 1024, 30)
    assert (settings.loop, settings.log_format, settings.log_level) == ("asyncio", "text", "info")
    assert (settings.limits.handshake_timeout, settings.limits.write_timeout) == (5, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -3}, "--workers -3: must be 0 or more (0: one per usable CPU)"),
        ({"workers": 4097}, "--workers 4097: must be 4096 or less"),
        ({"workers": 10**400}, r"--workers 1000.*: must be 4096 or less"),
        ({"workers": 10**5000}, r"--workers \(a value of type int\): must be 4096 or less"),
        ({"workers": 2.0}, "--workers 2: must be a whole number"),
        ({"workers": True}, "--workers True: must be a whole number"),
        ({"workers": "four"}, "--workers four: must be a whole number"),
        ({"backlog": 0}, "--backlog 0: must be 1 or more"),
        ({"backlog": 2**31}, "--backlog 2147483648: must be 1048576 or less"),
        ({"drain_timeout": -1}, "--drain-timeout -1: must be 0 seconds or more"),
        ({"drain_timeout": math.nan}, "--drain-timeout nan: must be a number of seconds.*"),
        ({"drain_timeout": math.inf}, r"--drain-timeout inf: must be 604800 seconds \(a week\) or less"),
        ({"drain_timeout": None}, "--drain-timeout None: must be a number of seconds.*"),
        ({"drain_timeout": "30"}, "--drain-timeout 30: must be a number of seconds.*"),
        ({"ready_fd": -1}, "--ready-fd -1: must be 0 or more"),
        ({"ready_fd": 2**40}, "--ready-fd 1099511627776: must be 2147483647 or less"),
        ({"metrics": FdAddress(3)}, "--metrics fd:3: must be HOST:PORT.*"),
        ({"loop": "gevent"}, "--loop gevent: must be asyncio or uvloop"),
        ({"loop": ""}, "--loop '': must be asyncio or uvloop"),
        ({"streams": "uvloop"}, "--streams uvloop: must be prefork or asyncio"),
        ({"log_format": "xml"}, "--log-format xml: must be text or json"),
        ({"log_level": "LOUD\n"}, r"--log-level LOUD\\n: must be debug, info, warning or error"),
        ({"bind": ()}, "--bind: at least one address is needed"),
        ({"bind": (TCPAddress(None, 80), TCPAddress(None, 80))}, "--bind :80: given twice"),
        ({"bind": (UnixAddress("/x"), UnixAddress("/x"))}, "--bind unix:/x: given twice"),
        ({"tls": (TLS("a", "b"),) * 1001}, "--tls-cert a: at most 1000 certificates can be given"),
        ({"tls": ("a",)}, "tls a: must be a prefork.TLS, or several"),
        ({"tls_client_ca": "ca"}, "--tls-client-ca: --tls-cert is missing"),
        ({"tls_strict_sni": True}, "--tls-strict-sni: --tls-cert is missing"),
        ({"tls_profile": "modern"}, "--tls-profile: --tls-cert is missing"),
        ({"alpn": ("h2",)}, "--alpn: --tls-cert is missing"),
        ({"tls": (TLS("a", "b"),), "tls_client": "optional"}, "--tls-client optional: --tls-client-ca is missing"),
        ({"alpn": ("h2", "")}, "--alpn '': must be names of protocols, such as h2,http/1.1"),
        ({"alpn": ("h2", "h2")}, "--alpn h2: given twice"),
        ({"limits": 3}, "limits 3: must be a prefork.Limits"),
        ({"reuse_port": 1}, "--reuse-port 1: must be True or False"),
        ({"user": 0}, "--user 0: must be text without a NUL character"),
        ({"control": "a\0b"}, r"--control a\\x00b: must be text without a NUL character"),
        ({"umask": 0o1000}, "--umask 512: must be 511 or less"),
        ({"max_worker_rss": 1}, "--max-worker-rss 1: must be 1048576 or more bytes .*"),
    ],
)
def test_a_wrong_setting_is_rejected_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**options)
    text = str(caught.value)
    assert text == message or re.fullmatch(message, text), text
    assert text.isprintable()
    assert len(text) < 400


def test_port_0_may_be_bound_more_than_once() -> None:
    assert len(Settings(bind=(TCPAddress(None, 0), TCPAddress(None, 0))).bind) == 2


@pytest.mark.parametrize("options", [{"workers": 4096}, {"drain_timeout": 0}, {"ready_fd": 0}, {"backlog": 1}])
def test_minimum_and_maximum_are_accepted(options: dict[str, Any]) -> None:
    Settings(**options)


@pytest.mark.parametrize("name", list(Limits.__slots__))
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, None, "5", True])
def test_limits_are_positive_numbers(name: str, value: object) -> None:
    if value is None and (getattr(Limits(), name) is None or name == "keepalive"):
        Limits(**{name: value})
        return
    with pytest.raises(ConfigError, match=name.replace("_", "[-_]")):
        Limits(**{name: value})


def test_a_limit_is_named_by_its_option_or_its_field() -> None:
    with pytest.raises(ConfigError, match=r"^--handshake-timeout 0: must be more than 0 seconds$"):
        Limits(handshake_timeout=0)
    with pytest.raises(ConfigError, match=r"^--read-limit 0: must be 1 or more$"):
        Limits(read_limit=0)
    with pytest.raises(ConfigError, match=r"^Limits\.keepalive 0: must be more than 0 seconds$"):
        Limits(keepalive=0)
    with pytest.raises(ConfigError, match=r"^--at-limit queue: must be wait or refuse$"):
        Limits(at_limit="queue")  # type: ignore[arg-type]  # what an untyped program may give
    with pytest.raises(ConfigError, match=r"^--accept-rate 0: must be a number more than 0, such as 100 or 0.5$"):
        Limits(accept_rate=0)
    with pytest.raises(ConfigError, match=r"^--accept-rate 1e\+99: must be 1000000000 or less$"):
        Limits(accept_rate=1e99)
    with pytest.raises(ConfigError, match=r"^--refusal busy: must be bytes, not str$"):
        Limits(refusal="busy")  # type: ignore[arg-type]  # what an untyped program may give
    with pytest.raises(ConfigError, match=r"^--refusal .*: must be at most 4096 bytes$"):
        Limits(refusal=b"x" * 5000)


@pytest.mark.parametrize("bad", ["", "a\0b", b"bytes", None, 3])
def test_a_certificate_must_be_a_path(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"^--tls-cert"):
        TLS(bad, "key.pem")
    with pytest.raises(ConfigError, match=r"^--tls-key"):
        TLS("cert.pem", bad)


def test_a_certificate_may_be_a_path_object() -> None:
    assert prefork.TLS(Path("cert.pem"), "key.pem").cert == Path("cert.pem")


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.tuples(st.integers()),
    st.builds(object),
)


@hypothesis_settings(deadline=None)
@given(
    st.sampled_from(["workers", "backlog", "drain_timeout", "ready_fd", "loop", "log_format", "log_level"]), anything
)
def test_any_value_is_accepted_or_refused_in_one_line(name: str, value: object) -> None:
    refusal = ""
    try:
        Settings(**{name: value})  # type: ignore[arg-type]  # anything at all
    except ConfigError as exc:
        refusal = str(exc)
    assert refusal == "" or refusal.startswith("--" + name.replace("_", "-"))
    assert refusal.isprintable()
    assert len(refusal) < 400


# --- the options of a program -----------------------------------------------------------------------------------------


def test_the_typed_options_of_serve_are_the_fields_of_the_settings() -> None:
    of_run = RUN_ONLY | {"program"}
    own = {each.name: each.type for each in dataclasses.fields(Settings) if each.name not in of_run}
    offered = {name: annotation.__forward_arg__ for name, annotation in ServeOptions.__annotations__.items()}
    path = "str | os.PathLike[str]"
    assert offered == {
        **own,
        "bind": "str | Sequence[str]",
        "tls": "TLS | Sequence[TLS] | None",
        "tls_client_ca": path,
        "tls_ticket_key_file": path,
        "alpn": "Sequence[str]",
        "proxy_from": "str | Sequence[str]",
        "metrics": "str | None",
        "agent": "str | None",
        "pidfile": path,
        "control": path,
        "access_log": path,
    }


def test_the_delay_of_a_drain_is_a_time_or_auto() -> None:
    assert settings_of({"drain_delay": "auto"}).drain_delay == "auto"
    assert settings_of({"drain_delay": 2.5}).drain_delay == 2.5
    for wrong in ("now", -1, True):
        with pytest.raises(ConfigError, match="--drain-delay"):
            Settings(drain_delay=wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_the_agent_has_an_address_of_its_own() -> None:
    assert settings_of({"agent": ":9101"}).agent == TCPAddress("127.0.0.1", 9101)
    with pytest.raises(ConfigError, match="--agent 127.0.0.1:9100: --metrics has it"):
        settings_of({"agent": ":9100", "metrics": ":9100"})
    assert settings_of({"agent": ":0", "metrics": ":0"})
    with pytest.raises(ConfigError, match="--agent fd:3: must be HOST:PORT"):
        settings_of({"agent": "fd:3"})


def test_options_of_a_program_become_settings() -> None:
    certificate, limits = TLS("c", "k"), Limits(idle_timeout=5)
    settings = settings_of({"bind": [":1", "unix:a"], "tls": certificate, "limits": limits, "workers": 2})
    assert settings == Settings((TCPAddress(None, 1), UnixAddress("a")), workers=2, tls=(certificate,), limits=limits)
    assert settings_of({"bind": ":1", "tls": None}) == Settings((TCPAddress(None, 1),))
    assert settings_of({}) == Settings()
    assert settings_of({"pidfile": Path("a"), "access_log": Path("b")}) == Settings(pidfile="a", access_log="b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker": 2}, "serve: there is no option worker, did you mean workers?"),
        ({"x\n": 2}, r"serve: there is no option x\n"),
        (
            {"idle_timeout": 2},
            "serve: idle_timeout is a limit: give it as limits=prefork.Limits(idle_timeout=...)",
        ),
        (
            {"tls_cert": "cert.pem"},
            "serve: there is no option tls_cert: give both files as tls=prefork.TLS(cert, key)",
        ),
        ({"bind": 9000}, '--bind 9000: must be text, or a list of text, such as ":9000"'),
        ({"bind": [9000]}, '--bind [9000]: must be text, or a list of text, such as ":9000"'),
        ({"tls": "cert.pem"}, "tls cert.pem: must be a prefork.TLS, or several"),
        ({"tls": []}, "tls []: must be a prefork.TLS, or several"),
    ],
)
def test_a_wrong_option_of_a_program_is_rejected_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(options)  # type: ignore[arg-type]  # what an untyped program may give
    assert str(caught.value) == message


def test_serve_prints_one_line_for_a_misspelt_option_and_exits_with_2() -> None:
    done = run_script("import prefork\nprefork.serve('echo:handle', worker=2)")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "prefork: serve: there is no option worker, did you mean workers?\n"


@pytest.mark.slow
def test_mypy_finds_a_misspelt_option_of_serve(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import prefork\nprefork.serve('x:y', worker=2)\nprefork.serve('x:y', workers=2)\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"]
    done = subprocess.run(mypy, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.count("error:") == 1
    assert 'program.py:2: error: Unexpected keyword argument "worker" for "serve"' in done.stdout
