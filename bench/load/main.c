/* load: asks a server for echoes, or by HTTP, as fast as it answers, checks every answer, prints one line of JSON. */
#include <inttypes.h>
#include <stdio.h>

#include "engine.h"
#include "tls.h"

static void report(const struct result *r)
{
    const struct histogram *h = &r->latencies;
    printf("{\"requests\": %" PRIu64 ", \"seconds\": %.9f", r->requests, (double)r->duration_ns / 1e9);
    printf(", \"cpu_ns\": %" PRIu64 ", \"user_ns\": %" PRIu64 ", \"system_ns\": %" PRIu64, r->server.cpu_ns,
           r->server.user_ns, r->server.system_ns);
    printf(", \"generator_cpu_ns\": %" PRIu64, r->generator_cpu_ns);
    printf(", \"p50_ns\": %" PRIu64 ", \"p99_ns\": %" PRIu64 ", \"p999_ns\": %" PRIu64 ", \"most_ns\": %" PRIu64,
           histogram_quantile(h, 0.5), histogram_quantile(h, 0.99), histogram_quantile(h, 0.999), h->most);
    printf(", \"handshakes\": %" PRIu64 ", \"resumed\": %" PRIu64 "}\n", r->handshakes, r->resumed);
}

int main(int argc, char **argv)
{
    static struct result result;
    struct options options = options_parse(argc, argv);
    if (options.about) {
        printf("TLS by %s\n", tls_library());
        return 0;
    }
    engine_run(&options, &result);
    report(&result);
    return 0;
}
