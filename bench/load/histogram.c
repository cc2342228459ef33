#include "histogram.h"

static unsigned bucket_of(uint64_t value)
{
    if (value < (1u << HISTOGRAM_BITS))
        return (unsigned)value;
    unsigned power = 63u - (unsigned)__builtin_clzll(value) - HISTOGRAM_BITS;
    unsigned within = (unsigned)(value >> power) - (1u << HISTOGRAM_BITS);
    unsigned bucket = ((power + 1) << HISTOGRAM_BITS) + within;
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

static uint64_t middle_of(unsigned bucket)
{
    if (bucket < (1u << HISTOGRAM_BITS))
        return bucket;
    unsigned power = (bucket >> HISTOGRAM_BITS) - 1;
    uint64_t within = (bucket & ((1u << HISTOGRAM_BITS) - 1)) + (1u << HISTOGRAM_BITS);
    return (within << power) + ((1ull << power) >> 1);
}

void histogram_add(struct histogram *h, uint64_t ns)
{
    h->counts[bucket_of(ns)]++;
    h->total++;
    if (ns > h->most)
        h->most = ns;
}

uint64_t histogram_quantile(const struct histogram *h, double share)
{
    uint64_t wanted = (uint64_t)((double)h->total * share);
    uint64_t seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->counts[i];
        if (seen > wanted || (seen && seen == h->total))
            return middle_of(i);
    }
    return 0;
}
