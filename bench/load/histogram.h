/* Latencies in a bounded table of log-linear buckets: 64 to each power of two, so a value is off by 1.6 % at most.
   No clock and no output here. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BITS 6
#define HISTOGRAM_POWERS 36 /* up to 2^41 ns, 36 minutes; what is longer counts as the longest */
#define HISTOGRAM_BUCKETS ((HISTOGRAM_POWERS + 1) << HISTOGRAM_BITS)

struct histogram {
    uint64_t total, most;
    uint64_t counts[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t ns);

/* The value in ns that `share` (0 to 1) of all are at or below, as the middle of its bucket; 0 for an empty table. */
uint64_t histogram_quantile(const struct histogram *h, double share);

#endif
