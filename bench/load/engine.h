/* The run as a whole: opening, warming up, measuring, ending; one thread, one epoll, a closed loop. */
#ifndef ENGINE_H
#define ENGINE_H

#include "account.h"
#include "histogram.h"
#include "options.h"

struct result {
    uint64_t requests; /* within the measured time, as is all that follows */
    uint64_t duration_ns;
    uint64_t handshakes, resumed;
    struct account server;     /* what it has cost the server */
    uint64_t generator_cpu_ns; /* and the generator */
    struct histogram latencies;
};

/* Do what `o` says: open, warm up, measure, close. Exits if anything goes wrong, and after 20 seconds in which nothing
   happens at all. */
void engine_run(const struct options *o, struct result *out);

#endif
