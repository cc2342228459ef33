"""nginx's stream module in front of the hosts: passive checks only, so it learns of a host's state by trying it.

As https://nginx.org/en/docs/stream/ngx_stream_proxy_module.html has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .balancer import Balancer
from .host import PORT, Host
from .losses import Passage
from .network import Node

MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_CONFIGURATION = """\
load_module {module};
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
stream {{
    log_format passage 'passage $remote_port $status $msec $session_time "$upstream_addr" "$upstream_connect_time"';
    access_log {folder}/passages passage;
    upstream hosts {{
{servers}
    }}
    server {{
        listen {address}:{port};
        proxy_pass hosts;
        proxy_connect_timeout 1s;
        proxy_timeout 120s;
        proxy_half_close on;
        proxy_next_upstream {retry};
        proxy_protocol {proxy};
    }}
}}
"""


class Nginx(Balancer):
    program = "nginx"

    def __init__(self, node: Node, hosts: Sequence[Host], folder: Path, *, proxy: bool, retry: bool) -> None:
        """`retry`: it tries the next host when one does not take a connection."""
        super().__init__(node, hosts, folder)
        self._proxy = proxy
        self._retry = retry

    def command(self) -> list[str]:
        """Write its configuration; return its command."""
        path = self.folder / "nginx.conf"
        servers = (f"        server {each.node.address}:{PORT} max_fails=1 fail_timeout=2s;" for each in self.hosts)
        path.write_text(
            _CONFIGURATION.format(
                module=MODULE,
                folder=self.folder,
                servers="\n".join(servers),
                address=self.node.address,
                port=PORT,
                retry="on" if self._retry else "off",
                proxy="on" if self._proxy else "off",
            )
        )
        return [self.program, "-e", "stderr", "-p", str(self.folder), "-c", str(path)]

    def takes(self, host: Host) -> bool:
        """Return whether its master has written its PID, which it does when it listens; it says nothing of hosts."""
        return (self.folder / "nginx.pid").exists()

    def passages(self) -> list[Passage]:
        """Return the connections of its log."""
        path = self.folder / "passages"
        return parse(path.read_text(errors="replace"), [host.node.address for host in self.hosts])


def parse(text: str, addresses: Sequence[str]) -> list[Passage]:
    """Return the passages of a log of `_CONFIGURATION`; host N is the one with the Nth of `addresses`."""
    found = []
    for line in text.splitlines():
        head, tried, _, times, *_ = [*line.split('"'), "", "", ""]
        words = head.split()
        if len(words) != 5 or words[0] != "passage":
            continue
        _, port, status, ended, lasted = words
        last = tried.split(", ")[-1].partition(":")[0]
        number = addresses.index(last) + 1 if last in addresses else 0
        connected = times.split(", ")[-1] not in ("", "-")
        began = float(ended) - float(lasted)
        found.append(Passage(int(port), number, connected, tried.count(", "), status, began))
    return found
