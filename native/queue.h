/* Bytes to send, in order. Knows nothing of sockets' states: how much may wait, and for how long, its owner decides. */
#ifndef PREFORK_QUEUE_H
#define PREFORK_QUEUE_H

#include "native.h"

/* A piece is a bytes object that a handler wrote, or a run: memory of our own that joins small ones. */
typedef struct Piece {
    PyObject *owner; /* owned: the bytes object; NULL: a run */
    char *data;
    size_t size;
    size_t capacity; /* of a run */
} Piece;

typedef struct Queue {
    Piece *pieces;   /* `single`, or memory of our own */
    uint32_t first;  /* the pieces are pieces[first] to pieces[end - 1] */
    uint32_t end;
    uint32_t capacity;
    size_t offset;   /* bytes of the first piece that were sent */
    size_t size;     /* bytes unsent */
    size_t memory;   /* bytes of memory that the pieces keep allocated: one that is sent in part counts whole */
    Piece single;    /* nearly always there is one piece, which needs no further memory */
} Queue;

/* Make an empty queue of uninitialized memory. */
void queue_init(Queue *queue);

/* Forget and release all of it. */
void queue_clear(Queue *queue);

/* Add `bytes`, a bytes object, at the end. 0, or -1 with MemoryError. */
int queue_append(Queue *queue, PyObject *bytes);

/* Move everything of `from` behind what `to` has. `from` is empty afterwards. 0, or -1 with MemoryError. */
int queue_move(Queue *to, Queue *from);

/* Send once what one system call takes. Return the bytes sent, or -1 with errno set (and no exception). */
ssize_t queue_send(Queue *queue, int fd);

/* Return everything as one bytes object. */
PyObject *queue_join(const Queue *queue);

#endif
