"""The standard library's ThreadingTCPServer, line by line: HOST PORT."""

import os
import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.rstrip(b"\n") + f" {os.getpid()}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main():
    with Server((sys.argv[1], int(sys.argv[2])), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
