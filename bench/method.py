"""The text of the report: what is measured, how, and what is not. No code lives here."""

INTRODUCTION = """
This page compares the cost of prefork with the cost of its peers. It has a section for each Python, and all figures of
a section come from one run of

    make bench                      # 25 minutes, on the newest Python; writes its section of this page
    make bench PYTHON=python3.11    # the same on another Python
    make bench-quick                # a minute; prints the most important ratios

The figure that counts is **the server's CPU time per exchange**, as a ratio of two servers in the same round of the
same run. On a shared machine rates vary by 50 % between rounds, system time by 30 %, user time by 10 %. Ratios within
a round vary by a few percent on a quiet machine. A ratio is the median over the rounds, with minimum and maximum.
"""

SHORT = """
Each cell is prefork's CPU time divided by the peer's, for the same work: 0.50 means that prefork needs 50 % of the CPU
time, 2.00 that it needs twice as much. **Bold** means that prefork is cheaper by more than 3 %. The C server is a
lower bound: it does nothing but receive and send. An empty cell means that the peer does not do the work; the reason
stands under "This run", which also says whether prefork's streams were compiled.
"""

MATRIX = """
Microseconds of the server's CPU time, user and system together, medians over the rounds; 50 connections unless it
is said. "prefork in pure Python" is the same installation with `PREFORK_PURE=1`. An exchange is a message and its
echo, a burst of 32 lines and theirs, or a whole connection.
"""

WORKS = """
All connections have one exchange on its way all the time. Latency is from the first byte of a message sent to the
last one of its echo received, and for works that connect from the connect on; with many at a time it is mostly
waiting in the queue. CPU time has the minimum and the maximum of the rounds beside it; user and system divide it as the
kernel's samples of all rounds together do. "Against prefork" is the ratio to prefork on asyncio.
"""

MEMORY = """
{count} connections are opened, used once each for an echo of 64 bytes, and left alone. Resident memory of the
server's process, before and after, divided by their number; what the kernel holds for a socket is not in it. "At
rest" is after some hundred connections have come and gone.
"""

COMMANDS = """
`prefork serve`: from the start of the command to its READY with 2 workers, on any core, the service importing
nothing; and with 1 worker the resident memory of both processes after some hundred connections, in brackets with
each shared page divided by those who share it.
"""

REDIS = """
`redis-benchmark` with 50 connections, values of 64 bytes and ten thousand keys against `examples/kv.py`, served by
`prefork serve --workers 1`, and against redis-server without persistence. The server's CPU time for one command.
"""

METHOD = """
* Each server is one process, pinned to one core; the load generator, `bench/load`, is in C, single-threaded, pinned
  to another, and runs a closed loop: a connection sends its next message when the echo of the last one is complete.
* The generator compares every echo with what it sent: in full up to 16 KiB, of longer ones both ends of each piece,
  and a stamp that differs from message to message. One wrong byte, reset or early end, and the measurement is void.
* The server's CPU time is its process's CPU clock (clock_getcpuclockid(3)), read by the generator itself; nothing is
  asked of the server. It is read when the server sleeps, before the first message and after the last answer: then it
  is exact, and what it counts and what is counted are the same exchanges. How it divides into user and system is from
  `/proc/PID/stat`, which the kernel samples at its timer's tick, 100 to 1,000 times a second.
* Every server is warmed: it first opens and closes some hundred connections, as a loop pays page faults for its
  read buffers until a connection has been closed, twice to three times the cost of an exchange; and each
  measurement runs for a moment before it counts.
* Rounds are interleaved: in each, every server does every work, in an order that changes, and each round has fresh
  processes. Figures are medians over the rounds; ratios are taken in each round, and are medians of these.
* Latencies are counted in log-linear buckets, 1.6 % wide.
* A server that is faster than the generator sleeps now and then, and pays for it: so the fastest ones, and all of
  them at handshakes, where the client's cryptography costs as much, look a little dearer than they are.
"""

SERVERS = """
All listen on a socket of the same making: 127.0.0.1, TCP_NODELAY, a backlog of 1,024. All have their library's
defaults, and the handler that its documentation shows (`bench/contestants`):

* **Stream APIs** read up to 64 KiB, write it, and wait for their drain where they have one. Line by line they take
  the reader's own iteration or `read_until`, and write each line; asyncio's `drain()` and Tornado's `await` come
  after each write, as their documentation asks. prefork's own handler needs none to be bounded, and has none; in
  the table of "unchanged (reader, writer)" it runs the very functions that asyncio and uvloop run, `drain()`
  included.
* **Protocols** write what they get, and pause reading while the transport is full. Line by line they write each
  line, as a handler of single requests does. Joining the answers by hand does what prefork's corking does; that is
  measured, too.
* **blazio, rloop, talyn** run the same streams and the same protocol as asyncio and uvloop, on their own loops. Not
  every Python has them, and they are young. So each does every work once before the rounds. A work that it fails, or
  at which nothing happens for 5 s, is left out, and "This run" says why.
* **gevent** recv and sendall, or a file object; **trio** `async for` and `send_all`, its lines cut by hand;
  **Twisted** `dataReceived` and `LineReceiver`.
* **C** is a level-triggered epoll with one buffer of 256 KiB, and no idea of lines: a floor, not a competitor.
* **TLS**: one ECDSA P-256 certificate, X25519 and AES-256-GCM for all. Twisted brings an OpenSSL of its
  own, the others use Python's. A handshake is a whole connection: connect, handshake, echo of 16 bytes,
  close_notify both ways.
"""

NOT_MEASURED = """
* More than one worker, and how connections spread over them; more than one core in the generator.
* Real networks: everything goes over loopback, without loss, latency or offload. Real handlers, which do something.
* Windows and macOS, other event loops and other Pythons than these, free-threaded ones.
* Open-loop latency: at a fixed rate below saturation, the percentiles would be far lower, and comparable in their
  own right.
* The kernel's memory, and the memory of connections that are in use.
* Client certificates, RSA, long certificate chains, key updates.
"""
