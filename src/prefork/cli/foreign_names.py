"""Options and commands of other servers, and what to use here instead: of gunicorn, uvicorn, granian and hypercorn.

Pure. The names that prefork itself has are in `options.py` and `server_commands.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..text import did_you_mean, nearest

#: What each option is called here.
_OPTIONS = {
    "--bind :PORT": "--port -p",
    "--bind HOST:PORT": "--host --hostname --ip --addr --address --listen --listen-address --endpoint --server",
    "--bind unix:PATH": "--uds --unix-socket --socket",
    "--bind fd:N": "--fd",
    "--reuse-port": "--reuseport",
    "--tls-cert FILE": "--certfile --ssl-certfile --ssl-certificate --cert --certificate --ssl-cert --tls-certificate",
    "--tls-key FILE": "--keyfile --ssl-keyfile --key --private-key --ssl-key --tls-private-key",
    "--hang-timeout TIME": "--timeout -t --timeout-worker-healthcheck --workers-health-timeout",
    "--boot-timeout TIME": "--startup-timeout --timeout-worker-startup",
    "--drain-timeout TIME": "--graceful-timeout --timeout-graceful-shutdown --workers-kill-timeout --shutdown-timeout "
    "--drain --shutdown-timeout-seconds",
    "--idle-timeout TIME": "--keep-alive --keepalive --timeout-keep-alive --http1-keep-alive --read-timeout",
    "--tls-client-ca FILE": "--ca-certs --ssl-ca-certs --ssl-ca --tls-ca-certificate",
    "--tls-client required": "--cert-reqs --ssl-cert-reqs --verify-mode --ssl-client-verify",
    "--tls-profile modern": "--ssl-version --ssl-protocol-min --tls-min-version",
    "--alpn NAMES": "--alpn-protocols",
    "--tls-ticket-key-file FILE": "--ssl-session-ticket-key --tls-ticket-keys --tls-ticket-key",
    "--handshake-timeout TIME": "--ssl-handshake-timeout",
    "--workers N": "--processes --num-workers --concurrency --num-processes --workers-count",
    "--max-connections N": "--worker-connections --limit-concurrency --backpressure --max-conns --limit-connections",
    "--max-connections-served N": "--max-requests --limit-max-requests --max-requests-jitter",
    "--max-worker-age TIME": "--workers-lifetime --worker-lifetime",
    "--max-worker-rss BYTES": "--workers-max-rss --max-memory --memory-limit",
    "--read-limit BYTES": "--limit-request-line",
    "--user NAME": "-u --uid --as-user",
    "--group NAME": "-g --gid",
    "--umask OCTAL": "-m --file-mode",
    "--pidfile PATH": "--pid --pid-file",
    "--control PATH": "--control-socket --stats-socket",
    "--chdir DIR": "--app-dir --working-dir --working-directory --directory --cwd -C",
    "--log-level LEVEL": "-l --loglevel",
    "--log-level debug": "--debug -v --verbose",
    "--log-level warning": "-q --quiet",
    "--log-format json": "--json-logs --log-json",
    "--access-log FILE": "--access-logfile --accesslog --access-log-file --access-logformat --access-log-fmt",
    "--metrics ADDR": "--metrics-enabled --metrics-address --metrics-port --prometheus --statsd-host --stats --statsd",
    "--loop uvloop": "-k --worker-class --workers-class --uvloop",
    "--reload": "--dev --watch --reload-dir --reload-include --reload-exclude --reload-paths --reload-extra-file "
    "--reload-engine --reload-delay --autoreload",
}
#: What to do about an option that has no counterpart.
_ADVICE = {
    "the log goes to standard error: write 2>>FILE behind the command": "--log-file --error-logfile --error-log "
    "--log-config --capture-output --log",
    "the server stays in the foreground: let a service manager start it, such as systemd": "-D --daemon --daemonize "
    "--background --detach",
    "a worker has one event loop and no pool of threads: use --workers N": "--threads --runtime-threads "
    "--blocking-threads --runtime-mode --runtime-blocking-threads",
    "every worker imports the service itself, so that a reload sees new code": "--preload --preload-app",
    "the ciphers are those of Mozilla's intermediate profile": "--ciphers --ssl-ciphers",
    "a key is not encrypted here: restrict access to its file": "--ssl-keyfile-password --keyfile-password",
    "there is no access log unless --access-log asks for one": "--no-access-log --disable-access-log",
    "write variables before the command, as in NAME=VALUE prefork serve": "-e --env --env-file --env-files",
    "the titles of processes name the role and the target": "-n --name --proc-name --process-name",
    "prefork speaks TCP and leaves HTTP to the service: prefork run starts an HTTP server unchanged": "--root-path "
    "--proxy-headers --forwarded-allow-ips --http --ws --interface --lifespan --factory --asgi --wsgi "
    "--url-path-prefix --server-header --date-header --header --static-path-mount --http1-buffer-size --ws-max-size",
}
#: What each command is called here.
_COMMANDS = {
    "serve": "start up server begin launch",
    "serve --reload": "dev watch",
    "run": "exec",
    "check": "test configtest config validate verify lint",
    "reload": "restart hup graceful force-reload rolling-restart refresh",
    "upgrade": "update usr2",
    "stop": "quit shutdown down terminate term halt end",
    "stop --now": "kill abort",
    "scale N": "ttin ttou workers resize",
    "status": "info stats show state health ping inspect",
    "list": "ls ps servers",
    "top": "monitor htop",
    "connections": "conns clients sessions conn connection netstat",
    "kick": "disconnect drop",
    "suspend": "pause",
    "resume": "unpause continue",
    "stacks": "tasks dump trace stack threads",
    "--version": "version",
    "--help": "help",
}


def _inverted(table: dict[str, str]) -> dict[str, str]:
    return {name: ours for ours, names in table.items() for name in names.split()}


_OPTION_OF, _ADVICE_ON, _COMMAND_OF = _inverted(_OPTIONS), _inverted(_ADVICE), _inverted(_COMMANDS)


def hint_for_option(name: str, known: Iterable[str]) -> str:
    """Return what to use instead of the option `name`, as the end of a message; "" if nothing is like it.

    `known` are the names that there are, in the form that the message is to have.
    """
    if name in _OPTION_OF:
        return f", did you mean {_OPTION_OF[name]}?"
    return f": {_ADVICE_ON[name]}" if name in _ADVICE_ON else did_you_mean(name, known)


def hint_for_command(name: str, known: Iterable[str]) -> str:
    """Return what to use instead of the command `name`, as `hint_for_option` does."""
    if re.fullmatch(r"[\w./-]+:[\w.]+|[\w./-]+\.py", name):
        # A target or a program, and the command is missing.
        return f", did you mean {'serve' if ':' in name else 'run'} {name}?"
    ours = _COMMAND_OF.get(name.lower()) or nearest(name, [*known, *_COMMAND_OF])
    return f", did you mean {_COMMAND_OF.get(ours, ours)}?" if ours else ""
