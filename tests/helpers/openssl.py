"""openssl's own client, which sends one line and returns one. What a service answers is known to its tests only."""

from __future__ import annotations

import subprocess

from prefork.testing import Server


def exchange(server: Server, *options: str) -> str:
    """Return the line that the server answers to `hello`, over TLS as the options of s_client ask for it."""
    # The end of the input ends the client only after the answer, because of what it waits for.
    command = ["openssl", "s_client", "-quiet", "-no_ign_eof", "-connect", f"127.0.0.1:{server.port}", *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        process.stdin.close()
        process.wait(20)
    return answer
