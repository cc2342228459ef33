"""aioftp, which shares a directory and opens a port for each transfer: HOST PORT."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import aioftp


def main():
    with tempfile.TemporaryDirectory(prefix="shared-") as folder:
        Path(folder, "pid").write_text(str(os.getpid()))
        server = aioftp.Server([aioftp.User(base_path=folder)])
        asyncio.run(server.run(host=sys.argv[1], port=int(sys.argv[2])))


if __name__ == "__main__":
    main()
