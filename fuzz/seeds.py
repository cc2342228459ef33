"""Headers to begin with: each kind that is good, and some that other implementations have got wrong."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from prefork import proxy_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = (("203.0.113.7", 51234), ("10.0.0.1", 443))
V6 = (("2001:db8::7", 51234, 0, 0), ("::ffff:10.0.0.1", 443, 0, 0))
SSL = struct.pack("!BI", 7, 0) + b"\x21\0\x07TLSv1.3" + b"\x22\0\x02CN" + b"\x23\0\x03AES"

SEEDS = [
    b"",
    b"PROXY UNKNOWN\r\nGET /",
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
    proxy_header(V4, version=1) + b"GET / HTTP/1.1\r\n",
    b"PROXY TCP6 2001:db8::7 1:2:3:4:5:6:7:8 0 65535\r\n",
    b"PROXY TCP6 ::ffff:203.0.113.7 ::FFFF:cb00:7107 1 2\r\n",
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n\x16\x03\x01",
    b"PROXY TCP6 192.0.2.1 2001:db8::1 1234 5678\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 080 +1\r\n",
    proxy_header(None),
    proxy_header(None, tlvs=[(1, b"h2"), (0x20, SSL)], crc32c=True),
    proxy_header(V4) + b"GET / HTTP/1.1\r\n",
    proxy_header(V6, tlvs=[(1, b"h2"), (2, b"example.org"), (5, bytes(128)), (0x20, SSL), (0x30, b"blue")]),
    proxy_header(
        V4, tlvs=[(0xEA, b"\x01vpce-08d2bf15fac5001c9"), (0xEE, b"\x01\x78\x56\x34\x12"), (4, b"")], crc32c=True
    ),
    proxy_header((b"/run/from.sock", b"\0abstract"), tlvs=[(4, bytes(10))]),
    SIGNATURE + b"\x21\0\0\x05\xff\xff\xff\xff\xff",
    SIGNATURE + b"\x21\x12\0\x0c" + bytes(12),
    SIGNATURE + b"\x20\x11\xff\xff",
]

DICTIONARY = [
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN",
    b"\r\n",
    b"::ffff:",
    b"65535",
    b"1.2.3.4",
    SIGNATURE,
    b"\x21\x11",
    b"\x20\0",
]
DICTIONARY += [b"\x03\0\x04", b"\x20\0\x05", b"\x05\0\x80", b"\0\x0c", b"\0\x24", b"\0\xd8", b"\x10\0"]


def write(folder: Path) -> tuple[Path, Path]:
    """Write both to files as libFuzzer wants them; return the folder of seeds, and the dictionary."""
    corpus, dictionary = folder / "corpus", folder / "dictionary"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed)
    # Whole at any time, because two runs may share the folder.
    new = folder / f"dictionary-{os.getpid()}"
    new.write_text("".join(f'"{_escape(word)}"\n' for word in DICTIONARY))
    new.replace(dictionary)
    return corpus, dictionary


def _escape(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)
