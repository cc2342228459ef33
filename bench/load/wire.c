#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tls.h"

static ssize_t answer(ssize_t result)
{
    if (result >= 0)
        return result;
    return errno == EAGAIN || errno == EINTR ? WIRE_WAIT : WIRE_BROKEN;
}

void wire_prepare(enum tls tls)
{
    if (tls != TLS_NONE)
        tls_prepare(tls);
}

void wire_secure(struct wire *w, bool resume)
{
    if (tls_wanted())
        tls_start(w, resume);
}

int wire_handshake(struct wire *w)
{
    return w->ssl ? tls_handshake(w) : WIRE_DONE;
}

bool wire_resumed(const struct wire *w)
{
    return w->ssl && tls_resumed(w);
}

ssize_t wire_send(struct wire *w, const char *data, size_t size)
{
    return w->ssl ? tls_send(w, data, size) : answer(send(w->fd, data, size, MSG_NOSIGNAL));
}

ssize_t wire_receive(struct wire *w, char *data, size_t size)
{
    return w->ssl ? tls_receive(w, data, size) : answer(recv(w->fd, data, size, 0));
}

void wire_keep_session(struct wire *w)
{
    if (w->ssl)
        tls_keep_session(w);
}

void wire_finish(struct wire *w)
{
    if (w->ssl)
        tls_finish(w);
    shutdown(w->fd, SHUT_WR);
}

void wire_close(struct wire *w)
{
    if (w->ssl)
        tls_free(w);
    close(w->fd);
    w->fd = -1;
}

const char *wire_error(void)
{
    return errno ? strerror(errno) : tls_error();
}
