"""Write events, and the service's own log records, as lines to standard error, as text or as JSON.

`lines.py` and `jsonlines.py` format a line, `sink.py` writes it, `rates.py` limits how often.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from ..events import Event, Suppressed, record_of
from ..text import escape_controls
from .lines import Origin, TextFormatter, has_colours
from .rates import LogRateLimiter
from .sink import Sink


def _ignore() -> None:
    pass


def configure(
    format: str,
    level: str,
    worker: int | None = None,
    stream: TextIO | None = None,
    alone: bool = False,
    unlimited: bool = False,
    on_dropped: Callable[[], object] = _ignore,
    process: str = "supervisor",
) -> EventLog:
    """Send all log records of this process to `stream` (standard error), and return the `Emit` for events.

    `format` is text or json, `level` one of debug, info, warning and error. The supervisor calls it, each worker again
    with its slot, and another `process` with its name. The handler is installed on the root logger. So records of the
    service, of its libraries and of asyncio, warnings, and exceptions that end a thread or come from a destructor all
    look the same. Other handlers stay installed, except those that also write to standard error.

    `alone`: only the events of prefork, because a program configures the logging of its process itself.

    The `Emit` never raises, and blocks for at most WRITE_TIMEOUT. It limits rated events to one line per cause and
    second, but for the level debug and if `unlimited`, because then the log is watched by a developer. `on_dropped` is
    called for each record that was not written: held back, or lost because its reader does not read.
    """
    stream = sys.stderr if stream is None else stream
    handler = _LineHandler(Sink(stream), _formatter(format, Origin(worker, process), has_colours(stream)), on_dropped)
    root = logging.getLogger()
    for other in root.handlers[:]:
        if isinstance(other, _LineHandler):
            root.removeHandler(other)
            other.dispose()
        elif type(other) is logging.StreamHandler and other.stream in (sys.stderr, sys.__stderr__):
            root.removeHandler(other)
    logger = logging.getLogger("prefork")
    if alone:
        root.setLevel(logging.WARNING)
        logger.addHandler(handler)
        logger.setLevel(level.upper())
        logger.propagate = False
        return EventLog(logger, unlimited=unlimited, on_dropped=on_dropped)
    root.addHandler(handler)
    root.setLevel(level.upper())
    _install_hooks()
    return EventLog(logger, unlimited=unlimited, on_dropped=on_dropped)


def _formatter(format: str, origin: Origin, colours: bool) -> logging.Formatter:
    if format == "json":
        from .jsonlines import JSONFormatter

        return JSONFormatter(origin)
    return TextFormatter(origin, colours)


class _LineHandler(logging.Handler):
    """Formats and writes records.

    A record that cannot be formatted is replaced by one line about it. Records that cannot be written are counted, and
    their number is logged as soon as a write succeeds.
    """

    def __init__(self, sink: Sink, formatter: logging.Formatter, on_dropped: Callable[[], object]) -> None:
        super().__init__()
        self._sink = sink
        self._on_dropped = on_dropped
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as exc:
            # Otherwise `logging` would print a raw traceback, with what a peer had put into the arguments.
            text = self.format(_unformattable(record, exc))
        if self._sink.lost and not self._report_lost():
            self._sink.lost += 1
        elif self._sink.write(text):
            return
        self._on_dropped()

    def dispose(self) -> None:
        """Close the handler and its sink. Not `close`, because logging calls that at exit, before the last records."""
        self.close()
        self._sink.close()

    def _report_lost(self) -> bool:
        lost = self._sink.lost
        lines = "1 log record was" if lost == 1 else f"{lost} log records were"
        record = _record(logging.WARNING, f"{lines} lost: {self._sink.reason}")
        written = self._sink.write(self.format(record))
        self._sink.lost = 0 if written else lost
        return written


def _record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("prefork", level, __file__, 0, "%s", (message,), None)


def _unformattable(record: logging.LogRecord, exc: Exception) -> logging.LogRecord:
    what = f"{escape_controls(record.pathname)}, line {record.lineno}: {type(exc).__name__}: {escape_controls(exc)}"
    return _record(logging.ERROR, f"a log call could not be formatted: {what}")


class EventLog:
    """An `Emit` that turns events into records of one logger; `clock` returns monotonic seconds.

    Of rated events it holds back all but one per cause and second, unless it is `unlimited` or the level is debug. Its
    owner calls `flush` when `next_due` says so, because otherwise the sums would wait for the next event.
    """

    def __init__(
        self,
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        unlimited: bool = False,
        on_dropped: Callable[[], object] = _ignore,
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._unlimited = unlimited
        self._on_dropped = on_dropped
        self._rates: LogRateLimiter[type[Event]] = LogRateLimiter()
        self.on_held: Callable[[], object] | None = None
        """Called when an event was held back and there was none before, so that a timer can be set."""

    def __call__(self, event: Event) -> None:
        # If the service calls logging.config.dictConfig, every logger that it does not name is disabled.
        self._logger.disabled = False
        if not self._logger.isEnabledFor(event.level):
            return
        now = self._clock()
        rated = event.rated and not self._is_unlimited()
        suppressed = self._rates.admit(type(event), *_cause(event), now) if rated else 0
        if suppressed is None:
            self._on_dropped()
            if self.on_held is not None and self._rates.held == 1:
                self.on_held()
            return
        self._log_held(self._rates.flush_expired(now))
        self._log(event, suppressed)

    def _is_unlimited(self) -> bool:
        # Asked each time, because a reload can change the level.
        return self._unlimited or self._logger.isEnabledFor(logging.DEBUG)

    def next_due(self) -> float | None:
        """Return when `flush` has something to log, by the clock; None: nothing is held back."""
        return self._rates.next_due()

    def flush(self, everything: bool = False) -> None:
        """Log how many events of each cause were held back in an interval that is over, or until now (`everything`)."""
        self._log_held(self._rates.flush_expired(float("inf") if everything else self._clock()))

    def _log_held(self, held: list[tuple[type[Event], str, int]]) -> None:
        for kind, detail, count in held:
            self._log(Suppressed(count, kind.__name__, detail), level=kind.level)

    def _log(self, event: Event, suppressed: int = 0, level: int | None = None) -> None:
        record = record_of(event, self._logger.name, f" (and {suppressed} more like it)" if suppressed else "")
        if level is not None:
            record.levelno, record.levelname = level, logging.getLevelName(level)
        vars(record).update(_event=event, _suppressed=suppressed)
        # A handler of the service may raise. The server must not fail because of a log line.
        with contextlib.suppress(Exception):
            self._logger.handle(record)


def _place(exc: BaseException) -> str:
    """Return the file and line that raised `exc`, without what `traceback` would read of the source."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


_NUMBER = re.compile(r"\d+")


def _cause(event: Any) -> tuple[str, str]:
    """Return what tells causes apart within a class of events: the kind of error, and the place that raised it.

    Without what peers influence, otherwise each of many peers would get a line.
    """
    text: str = getattr(event, "error", "") or getattr(event, "reason", "")
    exc: BaseException | None = event.exception
    # Two mistakes of one kind are two causes: the traceback of the second must not be held back for the first.
    place = "" if exc is None else _place(exc)
    return _NUMBER.sub("N", text.partition(":")[0])[:64], place


# --- what Python itself would print -----------------------------------------------------------------------------------


def _install_hooks() -> None:
    """Turn warnings and uncaught exceptions into log records: Python would write them raw, with what peers sent."""
    warnings.showwarning = _show_warning
    sys.unraisablehook = _on_unraisable
    threading.excepthook = _on_thread_exception


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    logging.getLogger("py.warnings").warning("%s: %s (%s, line %d)", category.__name__, message, filename, lineno)


def _on_unraisable(args: sys.UnraisableHookArgs, /) -> None:
    if isinstance(args.exc_value, UnicodeDecodeError) and isinstance(args.object, bytes):
        # From `_ssl`, for a server name beyond ASCII, which ends the handshake (RFC 6066, 3). That is reported as other
        # failures are, at a bounded rate; here each such client would cause a traceback.
        return
    what = args.err_msg or "Exception ignored in"
    exc = args.exc_value
    logging.getLogger("prefork").error("%s: %s", what, escape_controls(repr(args.object)), exc_info=exc)


def _on_thread_exception(args: threading.ExceptHookArgs, /) -> None:
    if issubclass(args.exc_type, SystemExit):
        return
    name = args.thread.name if args.thread is not None else "?"
    logging.getLogger("prefork").error("thread %s failed: %s", name, args.exc_type.__name__, exc_info=args.exc_value)
