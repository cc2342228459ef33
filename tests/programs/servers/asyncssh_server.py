"""asyncssh, which answers each command with the pid of its process: HOST PORT."""

import asyncio
import os
import sys

import asyncssh


class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return False


def run_command(process):
    process.stdout.write(f"{process.command} {os.getpid()}\n")
    process.exit(0)


async def main():
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        sys.argv[1], int(sys.argv[2]), server_factory=Server, server_host_keys=[key], process_factory=run_command
    )
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
