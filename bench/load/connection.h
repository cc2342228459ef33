/* One connection of the generator, from connect to close: it sends the payload, expects it back, and tells its engine.
   When to begin, to end or to open again is the engine's decision. */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <stdint.h>

#include "payload.h"
#include "wire.h"

enum state {
    CLOSED,
    CONNECTING,
    SHAKING, /* the TLS handshake */
    TALKING, /* a message is on its way, or its answer */
    RESTING, /* open, nothing asked */
    ENDING,  /* the end was said; the peer's is awaited */
};

struct connection {
    struct wire wire;
    enum state state;
    uint32_t interest; /* what epoll watches it for */
    uint32_t index;
    uint32_t stamp;
    size_t sent, received;
    uint64_t begun_ns;
    char *answer; /* by HTTP: what was received of it, HTTP_ANSWER_SIZE bytes; or NULL */
};

/* What connections share, and their callbacks. Each is called with the connection in the state of its comment. */
struct club {
    int epoll;
    int port;
    bool resume;
    bool reset; /* closing sends RST instead of FIN */
    bool holding; /* a server may close what is RESTING */
    struct payload payload;
    void (*opened)(struct connection *c);   /* RESTING for the first time */
    void (*answered)(struct connection *c); /* RESTING again, the whole answer was right */
    void (*closed)(struct connection *c);   /* CLOSED */
};

extern struct club club;

uint64_t now_ns(void);

/* CLOSED only. The time of a connection's first message runs from here. */
void connection_open(struct connection *c);

/* RESTING only: send the payload. `begun_ns` is for the caller, which measures. */
void connection_ask(struct connection *c);

/* Any state but CLOSED. `polite`: wait for the peer's end, as TLS peers should. */
void connection_end(struct connection *c, bool polite);

/* epoll has `events` for it. */
void connection_ready(struct connection *c, uint32_t events);

#endif
