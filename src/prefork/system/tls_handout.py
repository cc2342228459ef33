"""Hand out renewed certificates and keys to workers that run, which may not read the files themselves.

The supervisor writes them into a sealed file in memory, and each worker gets a descriptor of it. What is in force, and
when it is renewed, is decided elsewhere.
"""

from __future__ import annotations

import os

from ..core.handout import MAX_BYTES, decode_fields, encode_fields
from ..core.ticket_keys import TicketKeys
from .descriptors import Descriptor, sealed_file
from .tls_files import CertificatePair, ClientCA, TicketKeyFile, TLSFiles

#: Fields of a pair, and of the authorities for clients.
_PAIR_FIELDS, _CA_FIELDS = 4, 2


def write_handout(files: TLSFiles) -> Descriptor:
    """Return a sealed file with everything that `TLSContexts.replace` needs, but for weaknesses. Raises OSError."""
    fields: list[bytes | bytearray] = []
    for pair in files.pairs:
        fields += [os.fsencode(pair.cert), os.fsencode(pair.key), pair.cert_bytes, pair.key_bytes]
    if files.client_ca is not None:
        fields += [os.fsencode(files.client_ca.path), files.client_ca.data]
    fields.append(files.ticket_seed)
    raw = [] if files.ticket_keys is None else files.ticket_keys.keys.raw()
    if files.ticket_keys is not None:
        fields += [os.fsencode(files.ticket_keys.path), *raw]
    counts = (len(files.pairs), int(files.client_ca is not None), int(files.ticket_keys is not None))
    content = encode_fields([b" ".join(b"%d" % each for each in counts), *fields])
    try:
        return sealed_file("prefork-tls", content)
    finally:
        for secret in (content, *raw):
            secret[:] = bytes(len(secret))


def read_handout(file: Descriptor) -> TLSFiles:
    """Return what was handed out. Raises ValueError for what is no handout, and OSError."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise ValueError(f"a handout of {size} bytes")
    content = bytearray(size)
    try:
        if os.preadv(file.fileno(), [content], 0) != size:
            raise ValueError("a handout that is cut")
        counts, *fields = decode_fields(content)
        return _parse(counts, fields)
    finally:
        content[:] = bytes(size)


def _parse(counts: memoryview, fields: list[memoryview]) -> TLSFiles:
    pairs, authorities, tickets = map(int, bytes(counts).split())
    end = pairs * _PAIR_FIELDS
    seed = end + authorities * _CA_FIELDS
    rest = seed + 1
    if not 0 < end <= rest <= len(fields) or not 0 <= authorities <= 1 or bool(tickets) != (rest < len(fields)):
        raise ValueError("a handout without the fields that it announces")
    texts = [bytes(each) for each in fields[:rest]]
    return TLSFiles(
        ticket_seed=texts[seed],
        pairs=tuple(_pair(*texts[start : start + _PAIR_FIELDS]) for start in range(0, end, _PAIR_FIELDS)),
        client_ca=ClientCA(os.fsdecode(texts[end]), texts[end + 1]) if authorities else None,
        ticket_keys=_ticket_keys(fields[rest:]) if tickets else None,
    )


def _pair(cert: bytes, key: bytes, cert_bytes: bytes, key_bytes: bytes) -> CertificatePair:
    return CertificatePair(os.fsdecode(cert), os.fsdecode(key), cert_bytes, key_bytes)


def _ticket_keys(fields: list[memoryview]) -> TicketKeyFile:
    path, *keys = fields
    return TicketKeyFile(os.fsdecode(bytes(path)), TicketKeys.from_raw(map(bytearray, keys)))
