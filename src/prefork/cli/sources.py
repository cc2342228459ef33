"""The sources of settings: the command line, then `PREFORK_*` in the environment, then a TOML file.

They are read at every call of `settings`, so that a reload sees a changed file. See `options.py` for what a text means.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checks import format_value, reject
from ..config import TLS, Limits, Settings, option_of
from ..core.trust import Weakness
from ..errors import ConfigError, reason_of
from ..program import Program
from ..system import paths
from ..text import did_you_mean, escape_controls
from .foreign_names import hint_for_option
from .options import OPTIONS, Given, Option

#: Read if no other file is named and this one exists.
DEFAULT_FILE = "prefork.toml"
#: The option that a file must not have.
_INSECURE = "insecure_paths"
_MAX_BYTES = 1024 * 1024
#: Variables behind PREFORK_ that are no options: read elsewhere, set by prefork in its own processes, or for the build.
_OWN_VARIABLES = ("PURE", "HANDOVER", "WORKER_ID", "GENERATION", "CFLAGS", "LDFLAGS", "REQUIRE_NATIVE")
#: Unknown variables that are told.
_MAX_UNKNOWN = 8
_BY_FIELD = {option.field: option for option in OPTIONS}


class Sources:
    """Read settings from the options `given` on the command line, the environment of the start, and the file.

    The file is the named one, or the default file if it exists at the first call of `settings`. From then on that
    choice is fixed: a file that appears later may be of another user, and one that disappears must not turn a server
    with TLS into one without.
    """

    def __init__(
        self, given: Given, environment: Mapping[str, str] | None = None, program: Program | None = None
    ) -> None:
        variables = os.environ if environment is None else environment
        self._given = {field: texts for field, texts in given.items() if field not in ("config", "chdir")}
        self._variables = {name: value for name, value in variables.items() if name.startswith("PREFORK_")}
        (self._named,) = given.get("config") or [self._variables.pop("PREFORK_CONFIG", "")]
        self._program = program
        self._file: str | None = None
        """The absolute path of the file; "" is none, None is not yet looked for."""
        self._origins: dict[str, str] = {}
        """Where each option of the last settings was set, by field, if not on the command line."""
        self.problem: ConfigError | None = None
        """Why `control` could not read the settings."""
        self.weaknesses: tuple[tuple[str, Weakness], ...] = ()

    def settings(self) -> Settings:
        """Return the settings as they are now. Raises ConfigError, which names the source of a wrong value."""
        texts, self._origins = self._collect()
        try:
            for field in texts:
                self._require_known(field)
            return _settings({field: _value(_BY_FIELD[field], each) for field, each in texts.items()}, self._program)
        except ConfigError as exc:
            exc.origin = self.origin_of(exc.option)
            raise

    def _require_known(self, field: str) -> None:
        """Raise ConfigError for an option that a variable or the file gives to the wrong command."""
        ours, other = ("serve", "run") if self._program is None else ("run", "serve")
        option = _BY_FIELD[field]
        if not option.of_command(ours):
            raise ConfigError(f"{option.name}: is an option of prefork {other}, not of {ours}", option=option.name)

    def origin_of(self, option: str) -> str:
        """Return where an option of the last settings was set: a variable, or a file; "" is the command line."""
        # A check of a part of an address names it: "--bind port".
        return self._origins.get(option.partition(" ")[0].removeprefix("--").replace("-", "_"), "")

    @property
    def file(self) -> str:
        return self._file or ""

    @property
    def unknown_variables(self) -> tuple[tuple[str, str], ...]:
        """Each variable that names no option, and what may be meant by it, as the end of a message."""
        known = [field.upper() for field in (*_BY_FIELD, "config", "chdir")]
        unknown = []
        for variable, value in sorted(self._variables.items()):
            name = variable.removeprefix("PREFORK_")
            if name not in (*known, *_OWN_VARIABLES) and not _is_of_kubernetes(name, value):
                hint = hint_for_option(option_of(name.lower()), ()) or did_you_mean(name, known, "PREFORK_")
                unknown.append((escape_controls(variable), hint))
        return tuple(unknown[:_MAX_UNKNOWN])

    def pin_file(self, file: str) -> None:
        if not self._named:
            self._file = file

    def control(self) -> str:
        """Return the control socket in the settings, which may be "off"; "" if they name none, or cannot be read.

        Why they cannot be read is `problem` then.

        Raises ConfigError if root would read it from a file that another user can change. Otherwise that user could
        direct the commands of root to any other server of root.
        """
        try:
            texts, self._origins = self._collect()
        except ConfigError as exc:
            # A file that is gone says nothing about the server.
            self.problem = None if isinstance(exc.__context__, FileNotFoundError) else exc
            return ""
        path = texts.get("control", [""])[-1]
        if path in ("", "off"):
            return path
        if os.geteuid() == 0 and self.weaknesses and self._origins["control"] == escape_controls(self._file_name()):
            _, found = self.weaknesses[0]
            raise ConfigError(
                f"--config {format_value(self._file_name())}: {escape_controls(found.path)}: {found.reason}, so root "
                f"does not trust the control socket named there (use --control {escape_controls(path)})"
            )
        return path

    def _collect(self) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
        """Return the text of each option, and the source of those that are not from the command line."""
        texts: dict[str, Sequence[str]] = {}
        origins: dict[str, str] = {}
        for field, each in self._from_file():
            texts[field], origins[field] = each, escape_controls(self._file_name())
        for field, each in self._from_environment():
            texts[field], origins[field] = each, f"PREFORK_{field.upper()}"
        for field, each in self._given.items():
            texts[field] = each
            origins.pop(field, None)
        return texts, origins

    def _from_environment(self) -> Iterator[tuple[str, Sequence[str]]]:
        for name, value in self._variables.items():
            field = name.removeprefix("PREFORK_").lower()
            option = _BY_FIELD.get(field)
            # An unknown one is no error, because other programs may use the prefix: see `unknown_variables`.
            if option is not None:
                yield field, value.split() if option.repeatable else [value]

    def _from_file(self) -> list[tuple[str, Sequence[str]]]:
        if self._file == "":
            return []
        shown_path = format_value(self._file_name())
        try:
            path = self._file or paths.absolute(self._named or DEFAULT_FILE)
            content = paths.read(path, _MAX_BYTES)
        except FileNotFoundError:
            if self._file is None and not self._named:
                self._file = ""
                return []
            gone = " any more, and it was read at the start" if self._file else ""
            raise ConfigError(f"--config {shown_path}: no such file{gone}") from None
        except OSError as exc:
            raise ConfigError(f"--config {shown_path}: {reason_of(exc)}") from None
        self._file = path
        self.weaknesses = tuple(("--config", each) for each in content.weaknesses)
        values = _parse(self._file_name(), content.data)
        return [(field, _file_texts(self._file_name(), field, value)) for field, value in values.items()]

    def _file_name(self) -> str:
        return self._named or DEFAULT_FILE


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Return whether a variable is one that Kubernetes sets in every container for a Service called prefork."""
    return bool(re.match("SERVICE_|PORT_[0-9]", name)) or value.startswith(("tcp://", "udp://"))


def _parse(path: str, content: bytes) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as exc:
        # tomllib also lets errors of int() and of the stack pass: thousands of digits, or of nested brackets.
        reject("--config", path, f"not a TOML file: {escape_controls(exc)}")


def _file_texts(path: str, field: str, value: Any) -> Sequence[str]:
    option = _BY_FIELD.get(field)
    if option is None:
        hint = hint_for_option(option_of(field), ()) or did_you_mean(field, _BY_FIELD)
        if isinstance(value, dict):
            hint = f": options stand at the top level, without [{escape_controls(field)}]"
        reject("--config", path, f"there is no option {escape_controls(field)}{hint}")
    if field == _INSECURE:
        reject("--config", path, f"{field}: a file cannot vouch for itself; use the command line")
    values = value if isinstance(value, list) and (option.repeatable or option.separator) else [value]
    if not all(isinstance(each, str | int | float) for each in values):
        is_list = option.repeatable or option.separator
        kind = "text, or a list of text" if is_list else "text, a number, true or false"
        reject("--config", path, f"{field} must be {kind}")
    if option.metavar == "OCTAL" and not isinstance(value, str):
        reject("--config", path, f'{field} must be text, such as "027"')
    try:
        texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in values]
    except ValueError:
        reject("--config", path, f"{field} is too large a number")
    return [option.separator.join(texts)] if option.separator else texts


def _value(option: Option, texts: Sequence[str]) -> Any:
    values = [option.parse(option.name, each) for each in texts]
    return values if option.repeatable else values[-1]


def _settings(values: dict[str, Any], program: Program | None) -> Settings:
    certs, keys = values.pop("tls_cert", []), values.pop("tls_key", [])
    if program is not None:
        values.setdefault("bind", ())
    for field in ("bind", "exclusive", "allow_bind", "alpn", "proxy_from"):
        if field in values:
            values[field] = tuple(values[field])
    limits = {field: values.pop(field) for field in list(values) if _BY_FIELD[field].is_limit}
    return Settings(**values, tls=_pairs(certs, keys), limits=Limits(**limits), program=program)


def _pairs(certs: Sequence[str], keys: Sequence[str]) -> tuple[TLS, ...]:
    both = min(len(certs), len(keys))
    if len(certs) > both:
        reject("--tls-cert", certs[both], "its --tls-key is missing (it may be the same file)")
    if len(keys) > both:
        reject("--tls-key", keys[both], "its --tls-cert is missing")
    return tuple(TLS(cert, key) for cert, key in zip(certs, keys, strict=True))
