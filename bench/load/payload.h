/* The message that is sent: fixed pseudo-random letters, or lines of them, behind a stamp, which is expected back; or a
   request by HTTP, whose answer `http.h` knows.

   The stamp is the first eight bytes and differs from message to message, so an answer to another request, or one that
   came before, is told from the right one. One buffer serves all connections: it is stamped before each use. */
#ifndef PAYLOAD_H
#define PAYLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STAMP_SIZE 8

struct payload {
    char *bytes;
    size_t size;
    bool http; /* a request, without a stamp */
};

/* `lines` messages of `size` bytes, each with a newline at its end, make one payload; 0: one of `size` bytes, without.
   Exits if there is no memory. */
struct payload payload_make(size_t size, size_t lines);

/* A GET by HTTP/1.1 that keeps the connection. Exits if there is no memory. */
struct payload payload_make_request(void);

/* A no-op for a request. */
void payload_stamp(struct payload *p, uint32_t stamp);

/* Whether `size` bytes at `offset` of the answer are what they should be, for the stamp that was set last. Messages of
   up to 16 KiB are compared in full; of longer ones both ends of each piece that arrives. */
bool payload_matches(const struct payload *p, size_t offset, const char *got, size_t size);

#endif
