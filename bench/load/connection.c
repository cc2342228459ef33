#define _GNU_SOURCE
#include "connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "fail.h"
#include "http.h"

#define RECEIVE (128 * 1024)
/* Closed connections keep their pair of ports for a minute; from many addresses there are pairs enough. */
#define SOURCES 200

struct club club;

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void watch(struct connection *c, uint32_t interest)
{
    if (interest == c->interest)
        return;
    struct epoll_event event = {.events = interest, .data.ptr = c};
    int how = c->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(club.epoll, how, c->wire.fd, &event) != 0)
        fail("epoll_ctl: %s", strerror(errno));
    c->interest = interest;
}

static int make_socket(void)
{
    static uint32_t count;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (club.reset) {
        /* No lingering at all: close(2) resets the connection (socket(7)). */
        struct linger none = {.l_onoff = 1, .l_linger = 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000101 + count++ % SOURCES)};
    if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0)
        fail("bind: %s", strerror(errno));
    return fd;
}

static void rest(struct connection *c)
{
    c->state = RESTING;
    club.opened(c);
}

static void shake(struct connection *c)
{
    switch (wire_handshake(&c->wire)) {
    case WIRE_DONE: rest(c); break;
    case WIRE_WAIT: watch(c, EPOLLIN); break;
    default: fail("the TLS handshake of connection %u failed: %s", c->index, wire_error());
    }
}

static void connected(struct connection *c)
{
    watch(c, EPOLLIN);
    wire_secure(&c->wire, club.resume);
    c->state = SHAKING;
    shake(c);
}

void connection_open(struct connection *c)
{
    c->wire.fd = make_socket();
    c->interest = 0;
    c->state = CONNECTING;
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)club.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->begun_ns = now_ns();
    if (connect(c->wire.fd, (struct sockaddr *)&to, sizeof to) == 0)
        connected(c);
    else if (errno == EINPROGRESS)
        watch(c, EPOLLOUT);
    else
        fail("connect: %s", strerror(errno));
}

static void push(struct connection *c)
{
    struct payload *p = &club.payload;
    payload_stamp(p, c->stamp);
    while (c->sent < p->size) {
        ssize_t sent = wire_send(&c->wire, p->bytes + c->sent, p->size - c->sent);
        if (sent == WIRE_WAIT)
            break;
        if (sent <= 0)
            fail("sending on connection %u failed: %s", c->index, wire_error());
        c->sent += (size_t)sent;
    }
    watch(c, c->sent < p->size ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

void connection_ask(struct connection *c)
{
    c->state = TALKING;
    c->stamp = c->stamp * 2654435761u + c->index + 1;
    c->sent = c->received = 0;
    push(c);
}

static void answered(struct connection *c)
{
    c->state = RESTING;
    club.answered(c);
}

/* An answer by HTTP. */
static void gather(struct connection *c)
{
    /* An answer that fills the room is examined before another read, which therefore has room. */
    ssize_t got = wire_receive(&c->wire, c->answer + c->received, HTTP_ANSWER_SIZE - c->received);
    if (got == WIRE_WAIT)
        return;
    if (got == WIRE_END)
        fail("connection %u was closed after %zu bytes of an answer", c->index, c->received);
    if (got < 0)
        fail("receiving on connection %u failed: %s", c->index, wire_error());
    c->received += (size_t)got;
    switch (http_examine(c->answer, c->received)) {
    case HTTP_PARTIAL: break;
    case HTTP_COMPLETE: answered(c); break;
    case HTTP_WRONG: fail("connection %u got a wrong answer: %.*s", c->index, (int)c->received, c->answer);
    }
}

static void pull(struct connection *c)
{
    if (club.payload.http) {
        gather(c);
        return;
    }
    static char buffer[RECEIVE];
    struct payload *p = &club.payload;
    payload_stamp(p, c->stamp);
    for (;;) {
        ssize_t got = wire_receive(&c->wire, buffer, sizeof buffer);
        if (got == WIRE_WAIT)
            return;
        if (got == WIRE_END)
            fail("connection %u was closed after %zu of %zu bytes of an answer", c->index, c->received, p->size);
        if (got < 0)
            fail("receiving on connection %u failed: %s", c->index, wire_error());
        if (!payload_matches(p, c->received, buffer, (size_t)got) || c->received + (size_t)got > c->sent)
            fail("connection %u got wrong bytes, %zu at %zu of %zu", c->index, (size_t)got, c->received, p->size);
        c->received += (size_t)got;
        if (c->received == p->size) {
            answered(c);
            return;
        }
        /* In the clear a short read has emptied the socket; within TLS more may be there already. */
        if (!c->wire.ssl && got < (ssize_t)sizeof buffer)
            return;
    }
}

static void forget(struct connection *c)
{
    wire_close(&c->wire);
    c->state = CLOSED;
    club.closed(c);
}

void connection_end(struct connection *c, bool polite)
{
    if (!polite) {
        forget(c);
        return;
    }
    wire_finish(&c->wire);
    c->state = ENDING;
    watch(c, EPOLLIN);
}

static void await_end(struct connection *c)
{
    char rest[4096];
    ssize_t got;
    while ((got = recv(c->wire.fd, rest, sizeof rest, 0)) > 0)
        ;
    if (got == 0 || (errno != EAGAIN && errno != EINTR))
        forget(c);
}

void connection_ready(struct connection *c, uint32_t events)
{
    int error = 0;
    socklen_t size = sizeof error;
    switch (c->state) {
    case CONNECTING:
        getsockopt(c->wire.fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            fail("connect: %s", strerror(error));
        connected(c);
        break;
    case SHAKING: shake(c); break;
    case TALKING:
        if (events & EPOLLOUT)
            push(c);
        if (events & ~(uint32_t)EPOLLOUT)
            pull(c);
        break;
    case RESTING:
        if (club.holding) {
            connection_end(c, true);
            await_end(c);
            break;
        }
        fail("connection %u has bytes or an end that nobody asked for", c->index);
    case ENDING: await_end(c); break;
    case CLOSED: break; /* an event of this round that came before its end */
    }
}
