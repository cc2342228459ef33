#define _GNU_SOURCE
#include "options.h"

#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "payload.h"

enum { PORT = 1, WORK, TLS, RESUME, PID, CONNECTIONS, SIZE, LINES, WARM_UP, SECONDS, REQUESTS, PATIENCE, HTTP, ABOUT };

static const struct option known[] = {
    {"port", required_argument, 0, PORT},
    {"work", required_argument, 0, WORK},
    {"tls", required_argument, 0, TLS},
    {"resume", no_argument, 0, RESUME},
    {"pid", required_argument, 0, PID},
    {"connections", required_argument, 0, CONNECTIONS},
    {"size", required_argument, 0, SIZE},
    {"lines", required_argument, 0, LINES},
    {"warm-up", required_argument, 0, WARM_UP},
    {"seconds", required_argument, 0, SECONDS},
    {"requests", required_argument, 0, REQUESTS},
    {"patience", required_argument, 0, PATIENCE},
    {"http", no_argument, 0, HTTP},
    {"about", no_argument, 0, ABOUT},
    {0, 0, 0, 0},
};

static uint64_t number(const char *text, const char *name, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= least && value <= most) || value != floor(value))
        fail("--%s %s: must be a whole number from %.0f to %.0f", name, text, least, most);
    return (uint64_t)value;
}

static uint64_t seconds(const char *text, const char *name)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= 0 && value <= 3600))
        fail("--%s %s: must be a number of seconds up to 3600", name, text);
    return (uint64_t)(value * 1e9);
}

static int choice(const char *text, const char *name, const char *const *words, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(text, words[i]) == 0)
            return i;
    fail("--%s %s: not known", name, text);
}

static void take(struct options *o, int which, const char *text)
{
    static const char *const works[] = {"echo", "close", "reset", "hold"};
    static const char *const versions[] = {"none", "1.2", "1.3"};
    switch (which) {
    case PORT: o->port = (int)number(text, "port", 1, 65535); break;
    case WORK: o->work = (enum work)choice(text, "work", works, 4); break;
    case TLS: o->tls = (enum tls)choice(text, "tls", versions, 3); break;
    case RESUME: o->resume = true; break;
    case PID: o->pid = (pid_t)number(text, "pid", 0, 4194304); break;
    case CONNECTIONS: o->connections = number(text, "connections", 1, 1000000); break;
    case SIZE: o->size = number(text, "size", STAMP_SIZE + 1, 64 << 20); break;
    case LINES: o->lines = number(text, "lines", 0, 65536); break;
    case WARM_UP: o->warm_up_ns = seconds(text, "warm-up"); break;
    case SECONDS: o->duration_ns = seconds(text, "seconds"); break;
    case REQUESTS: o->requests = number(text, "requests", 0, 1e15); break;
    case PATIENCE: o->patience_ns = seconds(text, "patience"); break;
    case HTTP: o->http = true; break;
    case ABOUT: o->about = true; break;
    default: exit(2); /* getopt has said why */
    }
}

struct options options_parse(int argc, char **argv)
{
    struct options o = {.connections = 1, .size = 64, .duration_ns = 1000000000, .patience_ns = 20000000000};
    int which;
    while ((which = getopt_long(argc, argv, "", known, NULL)) != -1)
        take(&o, which, optarg);
    if (o.work == WORK_RESET && o.tls != TLS_NONE)
        fail("--work reset: not with --tls, because its close_notify would be lost");
    if (o.http && o.tls != TLS_NONE)
        fail("--http: not with --tls, because nothing measures that");
    if (optind < argc)
        fail("%s: not expected", argv[optind]);
    if (!o.port && !o.about)
        fail("--port is missing");
#ifndef WITH_TLS
    if (o.tls != TLS_NONE)
        fail("--tls: this generator was built without OpenSSL; install libssl-dev and build it again");
#endif
    return o;
}
