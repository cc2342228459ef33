/* What the generator is asked to do, from its command line. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum work {
    WORK_ECHO,  /* messages over connections that stay open */
    WORK_CLOSE, /* a connection for each message */
    WORK_RESET, /* the same, and the client ends it with a reset */
    WORK_HOLD,  /* open connections, one message each, and leave them alone until standard input ends */
};

enum tls { TLS_NONE, TLS_1_2, TLS_1_3 };

struct options {
    bool about; /* say what we were built with, and do nothing */
    enum work work;
    enum tls tls;
    bool resume; /* TLS: offer the session of the connection before */
    int port;
    pid_t pid; /* the process to read the CPU time of; 0: none */
    size_t connections;
    size_t size, lines;
    bool http; /* ask by HTTP/1.1, and not for an echo */
    uint64_t warm_up_ns, duration_ns;
    uint64_t patience_ns; /* give up when nothing has happened for this time */
    uint64_t requests; /* stop after this number; 0: after the duration */
};

/* Whether each message has a connection of its own. */
static inline bool connects(const struct options *o)
{
    return o->work == WORK_CLOSE || o->work == WORK_RESET;
}

/* Exits with a line that says what is wrong. */
struct options options_parse(int argc, char **argv);

#endif
