"""The handler class that `python -m aiosmtpd -c mail_handler.Accepting` is given; its answer names its process."""

import os


class Accepting:
    def __init__(self):
        self.accepted = 0

    @classmethod
    def from_cli(cls, parser, *args):
        return cls()

    async def handle_DATA(self, server, session, envelope):
        assert envelope.content.endswith(b"\r\n")
        self.accepted += 1
        return f"250 accepted by {os.getpid()}"
