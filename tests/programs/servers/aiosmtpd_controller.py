"""aiosmtpd by its Controller, whose loop runs in a thread beside the main one: HOST PORT."""

import signal
import sys

from aiosmtpd.controller import Controller
from mail_handler import Accepting


def main():
    controller = Controller(Accepting(), hostname=sys.argv[1], port=int(sys.argv[2]))
    controller.start()
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        controller.stop()


if __name__ == "__main__":
    main()
