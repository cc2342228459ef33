#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "connection.h"
#include "fail.h"

#define EVENTS 512
#define STALLED_MS 20000
/* Connections that are being opened at a time: fewer than any backlog, so no SYN is dropped and sent again. */
#define OPENING_AT_ONCE 64

enum phase {
    OPENING,   /* each connection opens and has its first message answered, a few at a time */
    WARMING,
    MEASURING,
    STOPPING,
};

static const struct options *options;
static struct result *result;
static struct connection *connections;
static enum phase phase;
static uint64_t until_ns; /* the end of WARMING or MEASURING */
static uint64_t started_ns, generator_started_ns;
static size_t opened, settled, closed;

static uint64_t own_cpu_ns(void)
{
    struct account own;
    return account_read(getpid(), &own) == 0 ? own.cpu_ns : 0;
}

static void read_server(struct account *a)
{
    if (account_read(options->pid, a) != 0)
        fail("there is no process %d", (int)options->pid);
}

static void begin_measuring(void)
{
    phase = MEASURING;
    generator_started_ns = own_cpu_ns();
    read_server(&result->server);
    started_ns = now_ns();
    until_ns = started_ns + options->duration_ns;
}

static void end_measuring(uint64_t now)
{
    struct account after;
    read_server(&after);
    result->duration_ns = now - started_ns;
    result->server.cpu_ns = after.cpu_ns - result->server.cpu_ns;
    result->server.user_ns = after.user_ns - result->server.user_ns;
    result->server.system_ns = after.system_ns - result->server.system_ns;
    result->generator_cpu_ns = own_cpu_ns() - generator_started_ns;
    phase = STOPPING;
}

static void next(struct connection *c)
{
    if (phase == STOPPING)
        connection_end(c, c->wire.ssl != NULL);
    else
        connection_ask(c);
}

static void open_more(void)
{
    while (opened < options->connections && opened - settled < OPENING_AT_ONCE)
        connection_open(&connections[opened++]);
}

static void begin_warming(void)
{
    phase = WARMING;
    until_ns = now_ns() + options->warm_up_ns;
}

/* A connection is open and has been used once. */
static void settle(void)
{
    settled++;
    open_more();
    if (settled < options->connections)
        return;
    begin_warming();
    for (size_t i = 0; options->work == WORK_ECHO && i < options->connections; i++) {
        connections[i].begun_ns = now_ns();
        connection_ask(&connections[i]);
    }
}

/* Nothing to wait for: each of these opens and closes all the time. */
static void open_all(void)
{
    begin_warming();
    while (opened < options->connections)
        connection_open(&connections[opened++]);
}

static void count(struct connection *c, uint64_t now)
{
    histogram_add(&result->latencies, now - c->begun_ns);
    result->requests++;
    if (c->wire.ssl && options->work == WORK_CLOSE) {
        result->handshakes++;
        result->resumed += wire_resumed(&c->wire);
    }
    if (options->requests && result->requests == options->requests)
        end_measuring(now);
}

static void on_opened(struct connection *c)
{
    connection_ask(c);
}

static void on_answered(struct connection *c)
{
    uint64_t now = now_ns();
    if (phase == MEASURING)
        count(c, now);
    if (options->work == WORK_CLOSE) {
        wire_keep_session(&c->wire);
        connection_end(c, c->wire.ssl != NULL);
    } else if (phase == OPENING) {
        settle();
    } else {
        c->begun_ns = now;
        next(c);
    }
}

static void on_closed(struct connection *c)
{
    if (options->work == WORK_CLOSE && phase != STOPPING)
        connection_open(c);
    else
        closed++;
}

static void turn(int epoll, int timeout_ms)
{
    static uint64_t quiet_since;
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll, events, EVENTS, timeout_ms);
    if (count < 0 && errno != EINTR)
        fail("epoll_wait: %s", strerror(errno));
    if (count > 0)
        quiet_since = 0;
    else if (!quiet_since)
        quiet_since = now_ns();
    else if (now_ns() - quiet_since > STALLED_MS * 1000000ull)
        fail("nothing has happened for %d s; %zu of %zu connections were open", STALLED_MS / 1000, settled,
             options->connections);
    for (int i = 0; i < count; i++)
        connection_ready(events[i].data.ptr, events[i].events);
}

static void hold(void)
{
    char ignored[64];
    printf("holding %zu\n", settled);
    fflush(stdout);
    while (read(STDIN_FILENO, ignored, sizeof ignored) > 0)
        ;
}

/* What rests has to be ended from here; what talks ends with its answer. */
static void end_resting(void)
{
    for (size_t i = 0; i < options->connections; i++)
        if (connections[i].state == RESTING)
            connection_end(&connections[i], connections[i].wire.ssl != NULL);
}

static void serve(int epoll)
{
    if (options->work == WORK_CLOSE)
        open_all();
    else
        open_more();
    while (phase == OPENING)
        turn(epoll, 100);
    if (options->work == WORK_HOLD) {
        hold();
        phase = STOPPING;
    }
    while (phase == WARMING) {
        turn(epoll, 1);
        if (now_ns() >= until_ns)
            begin_measuring();
    }
    while (phase == MEASURING) {
        turn(epoll, 1);
        uint64_t now = now_ns();
        if (phase == MEASURING && !options->requests && now >= until_ns)
            end_measuring(now);
    }
    end_resting();
    while (closed < options->connections)
        turn(epoll, 100);
}

void engine_run(const struct options *o, struct result *out)
{
    options = o;
    result = out;
    connections = calloc(o->connections, sizeof *connections);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || epoll < 0)
        fail("no memory or no epoll for %zu connections", o->connections);
    for (size_t i = 0; i < o->connections; i++)
        connections[i].index = (uint32_t)i;
    wire_prepare(o->tls);
    club = (struct club){
        .epoll = epoll,
        .port = o->port,
        .resume = o->resume,
        .payload = payload_make(o->size, o->lines),
        .opened = on_opened,
        .answered = on_answered,
        .closed = on_closed,
    };
    serve(epoll);
    free(club.payload.bytes);
    free(connections);
    close(epoll);
}
