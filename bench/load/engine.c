#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "connection.h"
#include "fail.h"
#include "http.h"

#define EVENTS 512
/* Connections that are being opened at a time: fewer than any backlog, so no SYN is dropped and sent again. */
#define OPENING_AT_ONCE 64
#define RESTING_MS 50

enum phase {
    OPENING, /* each connection opens and has its first message answered, a few at a time */
    WARMING,
    MEASURING,
    STOPPING,
};

static const struct options *options;
static struct result *result;
static struct connection *connections;
static char *answers; /* by HTTP: room for one of each connection */
static enum phase phase;
static bool asking;     /* WARMING, MEASURING: whether an answer is followed by the next message */
static size_t busy;     /* and how many connections have an exchange on its way */
static uint64_t asked;  /* messages of this phase */
static size_t opened, settled; /* OPENING: connections begun with, and used once */
static size_t alive;    /* connections that are not CLOSED */
static int epoll;

static bool may_ask(void)
{
    return asking && !(phase == MEASURING && options->requests && asked >= options->requests);
}

static void open_one(struct connection *c)
{
    alive++;
    connection_open(c);
}

/* One exchange more, if it is time for one. */
static void ask(struct connection *c)
{
    if (!may_ask())
        return;
    asked++;
    busy++;
    if (connects(options)) {
        open_one(c);
    } else {
        c->begun_ns = now_ns();
        connection_ask(c);
    }
}

static void again(struct connection *c)
{
    busy--;
    ask(c);
}

static void open_more(void)
{
    while (opened < options->connections && opened - settled < OPENING_AT_ONCE)
        open_one(&connections[opened++]);
}

static void count(struct connection *c, uint64_t now)
{
    histogram_add(&result->latencies, now - c->begun_ns);
    result->requests++;
    if (c->wire.ssl && connects(options)) {
        result->handshakes++;
        result->resumed += wire_resumed(&c->wire);
    }
}

static void on_opened(struct connection *c)
{
    connection_ask(c);
}

static void on_answered(struct connection *c)
{
    if (phase == MEASURING)
        count(c, now_ns());
    if (connects(options)) {
        wire_keep_session(&c->wire);
        connection_end(c, c->wire.ssl != NULL);
    } else if (phase == OPENING) {
        settled++;
        open_more();
    } else {
        again(c);
    }
}

static void on_closed(struct connection *c)
{
    alive--;
    if (connects(options))
        again(c);
}

static void turn(int timeout_ms)
{
    static uint64_t quiet_since;
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(epoll, events, EVENTS, timeout_ms);
    if (ready < 0 && errno != EINTR)
        fail("epoll_wait: %s", strerror(errno));
    if (ready > 0)
        quiet_since = 0;
    else if (!quiet_since)
        quiet_since = now_ns();
    else if (now_ns() - quiet_since > options->patience_ns)
        fail("nothing has happened for %.0f s; %zu of %zu connections are open", (double)options->patience_ns / 1e9,
             alive, options->connections);
    for (int i = 0; i < ready; i++)
        connection_ready(events[i].data.ptr, events[i].events);
}

/* Have all connections ask again and again, for a time or a number of requests; return with the last answer. */
static void period(enum phase which, uint64_t duration_ns, bool counted)
{
    phase = which;
    asking = true;
    asked = 0;
    uint64_t until = now_ns() + duration_ns;
    for (size_t i = 0; i < options->connections; i++)
        ask(&connections[i]);
    while (busy) {
        turn(1);
        if (!counted && now_ns() >= until)
            asking = false;
    }
}

/* The server's account when it has gone to sleep. The kernel adds to a process's clock when it stops running, and at
   the timer's tick: while it runs, its clock may be some milliseconds behind. */
static void read_at_rest(struct account *a)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    uint64_t before = 0;
    for (int i = 0; i < RESTING_MS; i++) {
        nanosleep(&moment, NULL);
        if (account_read(options->pid, a) != 0)
            fail("there is no process %d", (int)options->pid);
        if (i > 1 && a->cpu_ns == before)
            return;
        before = a->cpu_ns;
    }
}

static uint64_t own_cpu_ns(void)
{
    struct account own;
    return account_read(getpid(), &own) == 0 ? own.cpu_ns : 0;
}

/* From rest to rest: what the server was asked in between, and what it has cost in between, are the same exchanges. */
static void measure(void)
{
    struct account before, after;
    read_at_rest(&before);
    uint64_t own = own_cpu_ns(), started = now_ns();
    period(MEASURING, options->duration_ns, options->requests > 0);
    result->duration_ns = now_ns() - started;
    result->generator_cpu_ns = own_cpu_ns() - own;
    read_at_rest(&after);
    result->server.cpu_ns = after.cpu_ns - before.cpu_ns;
    result->server.user_ns = after.user_ns - before.user_ns;
    result->server.system_ns = after.system_ns - before.system_ns;
}

static void say(const char *what, size_t count)
{
    printf("%s %zu\n", what, count);
    fflush(stdout);
}

/* Until standard input ends. What the server closes meanwhile is closed, too; "left" says that it has closed all. */
static void hold(void)
{
    struct pollfd watched[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = epoll, .events = POLLIN}};
    char ignored[64];
    club.holding = true;
    say("holding", settled);
    for (;;) {
        if (poll(watched, 2, -1) < 0 && errno != EINTR)
            fail("poll: %s", strerror(errno));
        if (watched[0].revents && read(STDIN_FILENO, ignored, sizeof ignored) <= 0)
            return;
        if (watched[1].revents) {
            turn(0);
            if (!alive)
                say("left", settled);
        }
    }
}

static void open_all(void)
{
    open_more();
    while (settled < options->connections)
        turn(100);
}

static void close_all(void)
{
    phase = STOPPING;
    for (size_t i = 0; i < options->connections; i++)
        if (connections[i].state != CLOSED)
            connection_end(&connections[i], connections[i].wire.ssl != NULL);
    while (alive)
        turn(100);
}

void engine_run(const struct options *o, struct result *out)
{
    options = o;
    result = out;
    connections = calloc(o->connections, sizeof *connections);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    answers = o->http ? calloc(o->connections, HTTP_ANSWER_SIZE) : NULL;
    if (!connections || epoll < 0 || (o->http && !answers))
        fail("no memory or no epoll for %zu connections", o->connections);
    for (size_t i = 0; i < o->connections; i++) {
        connections[i].index = (uint32_t)i;
        connections[i].answer = answers ? answers + i * HTTP_ANSWER_SIZE : NULL;
    }
    wire_prepare(o->tls);
    club = (struct club){
        .epoll = epoll,
        .port = o->port,
        .resume = o->resume,
        .reset = o->work == WORK_RESET,
        .payload = o->http ? payload_make_request() : payload_make(o->size, o->lines),
        .opened = on_opened,
        .answered = on_answered,
        .closed = on_closed,
    };
    if (!connects(o))
        open_all();
    if (o->work == WORK_HOLD) {
        hold();
    } else {
        if (o->warm_up_ns)
            period(WARMING, o->warm_up_ns, false);
        measure();
    }
    close_all();
    free(club.payload.bytes);
    free(answers);
    free(connections);
    close(epoll);
}
