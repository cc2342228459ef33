/* The stream of one connection: what stream.c, sending.c, receiving.c, tls.c and op.c share. */
#ifndef PREFORK_STREAM_H
#define PREFORK_STREAM_H

#include "buffer.h"
#include "native.h"
#include "poller.h"
#include "queue.h"
#include "waiter.h"

#include <time.h>

/* Reads and writes of one connection before other callbacks run; see channel.py. */
#define MAX_IO_BEFORE_YIELD 32
/* Bytes of one receive that goes straight to a handler that asked for as many. */
#define MAX_RECEIVE_SIZE ((size_t)256 * 1024)

/* The members and their meaning are those of the enums in src/prefork/net/phases.py, in the same order. */
typedef enum Phase { PHASE_OPEN, PHASE_CLOSING, PHASE_LINGERING, PHASE_CLOSED, PHASE_COUNT } Phase;
typedef enum Output { OUTPUT_OPEN, OUTPUT_ENDED, OUTPUT_BROKEN, OUTPUT_COUNT } Output;
typedef enum Input { INPUT_READABLE, INPUT_EMPTY, INPUT_ENDED, INPUT_FIN, INPUT_PAUSED, INPUT_COUNT } Input;

/* The objects of one TLS connection that each record needs. All are owned. */
typedef struct TLSCalls {
    PyObject *engine;   /* the TLSEngine */
    PyObject *incoming; /* ssl.MemoryBIO: received records */
    PyObject *outgoing; /* ssl.MemoryBIO: records to send */
    PyObject *raw;      /* the C object inside the ssl.SSLObject */
} TLSCalls;

typedef struct Stream {
    PyObject_HEAD
    State *state;       /* borrowed from the module */
    Poller *poller;     /* owned */
    PyObject *shared;   /* owned: the ServerState */
    PyObject *sock;     /* owned: the socket object, made when it is asked for, or NULL */
    PyObject *address;  /* owned: the peer's */
    PyObject *error;    /* owned: what broke the connection, or NULL */
    PyObject *timeouts; /* owned: the TimeoutState, or NULL */
    PyObject *on_closed; /* owned: called once when the socket is closed, or NULL */
    PyObject *writers;  /* owned: a tuple of the waiters of writing tasks, or NULL */
    PyObject *weakrefs;
    Waiter *reader;     /* owned: where the reading task waits, or NULL */
    TLSCalls *tls;      /* owned memory: NULL in the clear */
    Queue corked;       /* written, and not yet offered to the kernel: plain bytes */
    Queue *backlog;     /* owned memory: what the kernel did not take, as it goes over the wire; NULL if nothing */
    Buffer input;       /* received, and not yet read: plain bytes */
    uint64_t received;  /* bytes, as they come over the wire */
    uint64_t sent;
    double accepted_at; /* seconds of the loop's clock */
    double idle_since;  /* when the handler began to wait for the next byte; negative if data arrived since */
    size_t drain_low, drain_high; /* the water marks; used if `has_water_marks` */
    int fd;             /* owned, or borrowed from `sock` if there is one; -1 when it is closed */
    uint8_t phase;      /* Phase */
    uint8_t output_state; /* Output */
    uint8_t input_state;  /* Input. An edge is not repeated: READABLE is believed until the kernel says otherwise. */
    uint8_t io_left;    /* reads and writes left before other callbacks run */
    bool has_water_marks;
    bool is_tcp;
    bool short_read_empties; /* a receive of less than it asked for has emptied the socket */
    bool in_callback;   /* the reading task runs inside `stream_on_ready`, which flushes when it returns */
    bool retrying;      /* the kernel had no memory for a send, which is repeated later */
    bool exposed;       /* the handler was given the socket: it may have passed it to a child */
    bool large;         /* the last receive was a large one: the next goes straight into its bytes object */
} Stream;

/* Every function of these returns 0, or -1 with an exception, unless it says otherwise. */

/* Seconds of the monotonic clock, as the loop counts them. */
static inline double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* stream.c */
int stream_on_ready(Stream *stream, uint32_t mask);
/* Whether a child may hold a copy of the socket: 1, 0, or -1 with an exception. */
int stream_is_duplicated(Stream *stream);
/* Make the close a reset for a TCP peer, because a clean end would claim that it has received everything. */
void stream_reset_on_close(Stream *stream);
/* Close the descriptor. */
int stream_close_socket(Stream *stream);
/* Close the socket and release everything: the one way into PHASE_CLOSED. */
int stream_dispose(Stream *stream);
/* Dispose of a connection that `error` (borrowed) has broken in both directions. */
int stream_fail(Stream *stream, PyObject *error);
/* The same for an errno. */
int stream_fail_errno(Stream *stream, int code);
/* Return an owned OSError for an errno, or NULL with an exception. */
PyObject *os_error(int code);
/* Call the method `name` of this stream's Python class, and drop its result. */
int stream_call_hook(Stream *stream, PyObject *name, PyObject *argument);
/* Set the exception of a connection that is broken. Always -1. */
int stream_raise_failure(Stream *stream);

/* stream_methods.c */
extern PyMethodDef stream_methods[];
/* Return the awaitable of the next line: `__anext__`. */
PyObject *stream_next_line(Stream *stream);

/* sending.c */
int stream_write(Stream *stream, PyObject *data);
/* Send what is corked. What the kernel does not take follows when it is writable. */
int stream_flush(Stream *stream);
/* Send bytes as they go over the wire, behind those that are unsent already. */
int stream_send_raw(Stream *stream, PyObject *data);
/* Send what is unsent, because the kernel has room. */
int stream_on_writable(Stream *stream);
/* Give up sending, because of `error` (borrowed). What the peer sent before can still be read. */
int stream_break_output(Stream *stream, PyObject *error);
int stream_drop_output(Stream *stream);
int stream_wake_writers(Stream *stream, bool soon);
size_t stream_low_water(const Stream *stream);
size_t stream_high_water(const Stream *stream);
static inline size_t stream_backlog_size(const Stream *stream)
{
    return stream->backlog == NULL ? 0 : stream->backlog->size;
}
static inline bool stream_reads_paused(const Stream *stream)
{
    return stream->backlog != NULL && stream->backlog->size > stream->poller->limits.pause_reads_above;
}

/* receiving.c */
/* What one receive brought. */
typedef enum Received { RECEIVED_ERROR = -1, RECEIVED_NOTHING, RECEIVED_DATA, RECEIVED_END } Received;
/* Receive once, to `into`. RECEIVED_END: the peer's FIN, or the connection broke. */
Received stream_receive(Stream *stream, char *into, size_t size, size_t *received);
/* Receive once into the input buffer, more than usual if more is wanted. 1 to look at the buffer again before waiting,
 * 0 if it is in vain, or -1. */
int stream_fill(Stream *stream, size_t wanted);
/* Receive once and return the plain bytes, at most `limit`; what is beyond goes to the input buffer. NULL without an
 * exception: look again. */
PyObject *stream_receive_bytes(Stream *stream, size_t limit);
/* Receive and discard, while closing. */
int stream_discard_input(Stream *stream);
/* Note that the peer has ended its direction. */
int stream_end_input(Stream *stream);
/* Flush, count I/O anew, and return the waiter (owned) of the reading task. StreamBusyError if another task waits. */
Waiter *stream_begin_wait(Stream *stream);
/* The same, until there may be input. */
Waiter *stream_wait_input(Stream *stream);
static inline bool stream_has_ended(const Stream *stream)
{
    return stream->input_state == INPUT_ENDED || stream->input_state == INPUT_FIN;
}
/* Whether a receive may be tried now. */
static inline bool stream_may_receive(const Stream *stream)
{
    return stream->input_state == INPUT_READABLE && stream->io_left > 0 && !stream_reads_paused(stream);
}

/* tls.c */
/* Return `plain` (bytes) as records; NULL with ssl.SSLError. */
PyObject *tls_encrypt(Stream *stream, PyObject *plain);
/* Return the plain bytes of what was received; b"" if there are none. The end and a broken record are noted. */
PyObject *tls_decrypt(Stream *stream, const char *data, size_t size);
int tls_set_engine(Stream *stream, PyObject *engine);
int tls_traverse(TLSCalls *tls, visitproc visit, void *arg);
void tls_clear(Stream *stream);

/* op.c */
typedef enum OpKind {
    OP_READ, OP_READ_ALL, OP_READEXACTLY, OP_READUNTIL, OP_READLINE, OP_NEXT_LINE, OP_READ_RAW, OP_DRAIN, OP_SEND,
} OpKind;
/* Return the awaitable of an operation. `argument` is borrowed, or NULL. */
PyObject *op_new(Stream *stream, OpKind kind, size_t size, PyObject *argument);

#endif
