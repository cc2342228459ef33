/* The poller of one server's connections; see poller.c. */
#ifndef PREFORK_POLLER_H
#define PREFORK_POLLER_H

#include "native.h"

/* Bytes of one receive into the poller's block: a message of 64 KiB, and what four records of TLS add to it. */
#define RECEIVE_SIZE ((size_t)65 * 1024)

/* The limits of one connection, as prefork.Limits has them, in bytes. */
typedef struct StreamLimits {
    size_t read_limit;
    size_t flush_at;
    size_t drain_above;
    size_t pause_reads_above;
} StreamLimits;

/* What has a descriptor. The generation tells an event for an earlier owner of the number from one for this owner. */
typedef struct Slot {
    PyObject *item; /* owned: a connection; NULL if none */
    uint32_t generation;
} Slot;

typedef struct Poller {
    PyObject_HEAD
    State *state;      /* borrowed from the module */
    PyObject *loop;    /* owned */
    PyObject *corked;  /* owned: the list of what is flushed at the end of the round */
    PyObject *escaped; /* owned: a SystemExit or KeyboardInterrupt that is raised after the round, or NULL */
    Slot *slots;       /* by descriptor */
    size_t slot_count;
    char *block;       /* RECEIVE_SIZE bytes, which one receive fills and its caller empties before it returns */
    StreamLimits limits;
    Py_buffer shared;  /* owned: the memory of `traffic`; its `obj` is NULL if there is none */
    int64_t *traffic;  /* two words: the bytes that all streams have received, and sent */
    int64_t own_traffic[2];
    uint32_t generation;
    int epoll; /* owned descriptor; -1 after `close` */
    bool in_round;
} Poller;

/* Report the events of `fd` to `item` until `poller_remove`. 0, or -1 with OSError if the kernel has no room. */
int poller_add(Poller *poller, int fd, PyObject *item);

/* Stop reporting. To call before the close of `fd`, because a `duplicated` descriptor would go on reporting. */
void poller_remove(Poller *poller, int fd, PyObject *item, bool duplicated);

/* Count bytes that a stream has received, or sent. */
static inline void poller_count_received(Poller *poller, size_t count)
{
    poller->traffic[0] += (int64_t)count;
}
static inline void poller_count_sent(Poller *poller, size_t count)
{
    poller->traffic[1] += (int64_t)count;
}

/* Flush `item` at the end of this round, or in the loop's next iteration. 0, or -1 with an exception. */
int poller_cork(Poller *poller, PyObject *item);


#endif
