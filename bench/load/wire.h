/* Bytes over one connection, in the clear or by TLS, without waiting. What they mean is not known here. */
#ifndef WIRE_H
#define WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "options.h"

struct wire {
    int fd;       /* -1: closed */
    void *ssl;    /* SSL *, or NULL in the clear */
    void *session; /* SSL_SESSION * of the connection before, or NULL */
};

/* Answers of `wire_send` and `wire_receive` besides a count of bytes; of a handshake WIRE_DONE. */
enum { WIRE_END = 0, WIRE_WAIT = -1, WIRE_BROKEN = -2, WIRE_DONE = 1 };

/* Once per process, before all else. */
void wire_prepare(enum tls tls);

/* Start TLS on a connected socket; a no-op in the clear. `resume`: offer the session that is kept. */
void wire_secure(struct wire *w, bool resume);

/* Go on with the handshake: WIRE_DONE, WIRE_WAIT or WIRE_BROKEN. In the clear it is done. */
int wire_handshake(struct wire *w);

/* Whether the handshake was shortened by the session that was offered. */
bool wire_resumed(const struct wire *w);

ssize_t wire_send(struct wire *w, const char *data, size_t size);
ssize_t wire_receive(struct wire *w, char *data, size_t size);

/* Keep the session for the next connection. */
void wire_keep_session(struct wire *w);

/* Say the end: close_notify with TLS, and FIN. The socket stays open for the peer's end. */
void wire_finish(struct wire *w);

void wire_close(struct wire *w);

/* Why the last call answered WIRE_BROKEN. */
const char *wire_error(void);

#endif
