/* One operation of a stream, as it is awaited; see op.c and operations.c. */
#ifndef PREFORK_OP_H
#define PREFORK_OP_H

#include "stream.h"

typedef enum Progress { OP_NEW, OP_STARTED, OP_DONE } Progress;

typedef struct Op {
    PyObject_HEAD
    State *state;       /* borrowed from the module */
    Stream *stream;     /* owned; NULL when done */
    PyObject *argument; /* owned or NULL: the separator, the data to send, or the waiter of a drain */
    size_t size;        /* of read and readexactly */
    size_t searched;    /* bytes of the buffer that hold no separator: a slow peer causes no quadratic search */
    uint8_t kind;       /* OpKind */
    uint8_t progress;   /* Progress */
    bool yielded;       /* others have run: see `let_others_run` */
    bool received;      /* of readuntil: it has tried to receive */
} Op;

/* What a look at the stream came to. */
typedef enum Look {
    LOOK_ERROR = -1, /* an exception is set */
    LOOK_DONE,       /* *result is owned */
    LOOK_INPUT,      /* wait until there may be input */
    LOOK_RESUMED,    /* wait until no longer too much is unsent */
    LOOK_YIELD,      /* *result is owned, and to be yielded */
} Look;

/* Try the operation. */
Look op_look(Op *op, PyObject **result);

/* Add the waiter of a drain to the stream's writers, or remove it. 0, or -1 with an exception. */
int op_set_writer(Op *op, bool waits);

#endif
