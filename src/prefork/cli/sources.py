"""Where the settings come from: the command line, then `PREFORK_*` of the environment, then a TOML file.

Read whenever they are asked for, so that a reload sees the file of today. What text means is in `options.py`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..checks import format_value
from ..config import TLS, Limits, Settings
from ..core.trust import Weakness
from ..errors import ConfigError
from ..system import paths
from ..text import escape_controls
from .options import OPTIONS, Given, Option

#: The file that is read when none is named, if it is there.
DEFAULT_FILE = "prefork.toml"
#: The option that no file may have.
INSECURE = "insecure_paths"
_MAX_BYTES = 1024 * 1024
_BY_FIELD = {option.field: option for option in OPTIONS}


class Sources:
    """`given` is what the command line said, by field; the environment is that of the start.

    The file is the one that is named, or the default one if it is there when the settings are asked for first. From
    then on it is that one, and mandatory: a file that appears later may be anybody's, and one that disappears must not
    turn a server with TLS into one without.
    """

    def __init__(self, given: Given, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._given = {field: texts for field, texts in given.items() if field != "config"}
        self._variables = {name: value for name, value in variables.items() if name.startswith("PREFORK_")}
        (self._named,) = given.get("config") or [self._variables.pop("PREFORK_CONFIG", "")]
        self._file: str | None = None
        """The absolute path of the file; "" for none; None while it has not been looked for."""
        self.weaknesses: tuple[tuple[str, Weakness], ...] = ()
        """Who could have changed the file that the last settings were read from, by option."""

    def settings(self) -> Settings:
        """The settings of this moment. Raises ConfigError, which says where a wrong value stands."""
        texts, places = self._collect()
        try:
            values = {field: _value(_BY_FIELD[field], each) for field, each in texts.items()}
            return _settings(values)
        except ConfigError as exc:
            option = re.match(r"--([a-z-]+)", str(exc))
            place = places.get(option[1].replace("-", "_"), "") if option else ""
            raise ConfigError(f"{exc} (in {place})" if place else str(exc)) from None

    @property
    def file(self) -> str:
        """The file that settings come from, as an absolute path; "" for none."""
        return self._file or ""

    def pin_file(self, file: str) -> None:
        """Read the file that the supervisor before this one has read, or none if it had none."""
        if not self._named:
            self._file = file

    def control(self) -> str:
        """The path of the control socket that is named somewhere; "" if none is, or the file is wrong.

        Raises ConfigError where root would take it from a file that another user can change: what root says to its
        server would go to any other one of root's.
        """
        try:
            texts, places = self._collect()
        except ConfigError:
            return ""
        path = texts.get("control", [""])[-1]
        if path in ("", "off"):
            return ""
        if os.geteuid() == 0 and self.weaknesses and places["control"] == escape_controls(self._shown()):
            _, found = self.weaknesses[0]
            raise ConfigError(
                f"--config {format_value(self._shown())}: {escape_controls(found.path)}: {found.reason}, so root does "
                f"not believe where the control socket is; say so by --control {escape_controls(path)}"
            )
        return path

    def _collect(self) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
        """The text of each option, and where it stands unless on the command line."""
        texts: dict[str, Sequence[str]] = {}
        places: dict[str, str] = {}
        for field, each in self._from_file():
            texts[field], places[field] = each, escape_controls(self._shown())
        for field, each in self._from_environment():
            texts[field], places[field] = each, f"PREFORK_{field.upper()}"
        for field, each in self._given.items():
            texts[field] = each
            places.pop(field, None)
        return texts, places

    def _from_environment(self) -> list[tuple[str, Sequence[str]]]:
        found: list[tuple[str, Sequence[str]]] = []
        for name, value in self._variables.items():
            field = name.removeprefix("PREFORK_").lower()
            option = _BY_FIELD.get(field)
            # One that is none may be somebody else's: the environment is everybody's.
            if option is not None:
                found.append((field, value.split() if option.many else [value]))
        return found

    def _from_file(self) -> list[tuple[str, Sequence[str]]]:
        if self._file == "":
            return []
        shown_path = format_value(self._shown())
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
            raise ConfigError(f"--config {shown_path}: {(exc.strerror or str(exc)).lower()}") from None
        self._file = path
        self.weaknesses = tuple(("--config", each) for each in content.weaknesses)
        values = _parse(self._shown(), content.data)
        return [(field, _file_texts(self._shown(), field, value)) for field, value in values.items()]

    def _shown(self) -> str:
        """The file as the user named it."""
        return self._named or DEFAULT_FILE


def _parse(path: str, content: bytes) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as exc:
        # Also what tomllib lets pass as they come: numbers of thousands of digits, brackets nested as deeply.
        raise ConfigError(f"--config {format_value(path)}: not a TOML file: {escape_controls(exc)}") from None


def _file_texts(path: str, field: str, value: Any) -> Sequence[str]:
    option = _BY_FIELD.get(field)
    if option is None:
        near = difflib.get_close_matches(field, _BY_FIELD, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"--config {format_value(path)}: there is no option {escape_controls(field)}{hint}")
    if field == INSECURE:
        raise ConfigError(
            f"--config {format_value(path)}: {field}: a file cannot vouch for itself; use the command line"
        )
    values = value if isinstance(value, list) and option.many else [value]
    if not all(isinstance(each, str | int | float) for each in values):
        kind = "text, or a list of text" if option.many else "text, a number, true or false"
        raise ConfigError(f"--config {format_value(path)}: {field} must be {kind}")
    if option.metavar == "OCTAL" and not isinstance(value, str):
        raise ConfigError(f'--config {format_value(path)}: {field} must be text, such as "027"')
    try:
        return [str(each).lower() if isinstance(each, bool) else str(each) for each in values]
    except ValueError:
        raise ConfigError(f"--config {format_value(path)}: {field} is too large a number") from None


def _value(option: Option, texts: Sequence[str]) -> Any:
    values = [option.read(f"--{option.name}", each) for each in texts]
    return values if option.many else values[-1]


def _settings(values: dict[str, Any]) -> Settings:
    certs, keys = values.pop("tls_cert", []), values.pop("tls_key", [])
    if "bind" in values:
        values["bind"] = tuple(values["bind"])
    limits = {field: values.pop(field) for field in list(values) if _BY_FIELD[field].of_limits}
    return Settings(**values, tls=_pairs(certs, keys), limits=Limits(**limits))


def _pairs(certs: Sequence[str], keys: Sequence[str]) -> tuple[TLS, ...]:
    both = min(len(certs), len(keys))
    if len(certs) > both:
        raise ConfigError(f"--tls-cert {format_value(certs[both])}: its --tls-key is missing (it may be the same file)")
    if len(keys) > both:
        raise ConfigError(f"--tls-key {format_value(keys[both])}: its --tls-cert is missing")
    return tuple(TLS(cert, key) for cert, key in zip(certs, keys, strict=True))
