/* The awaitable that the poller wakes; see waiter.c. */
#ifndef PREFORK_WAITER_H
#define PREFORK_WAITER_H

#include "native.h"

typedef struct Waiter {
    PyObject_HEAD
    State *state;             /* borrowed from the module */
    PyObject *loop;           /* owned */
    PyObject *task;           /* owned: the Task of this module that waits here; NULL if none does */
    PyObject *callback;       /* owned: steps another task that waits here; NULL if none does */
    PyObject *context;        /* owned: the context in which `callback` runs; set together with it */
    PyObject *cancel_message; /* owned or NULL */
    bool future_blocking;     /* `_asyncio_future_blocking` of the future protocol */
    bool cancel_pending;      /* a cancellation is scheduled and not yet delivered */
} Waiter;

/* Return a new waiter for tasks of `loop`. */
Waiter *waiter_new(State *state, PyObject *loop);

static inline bool waiter_is_waiting(const Waiter *waiter)
{
    return waiter->task != NULL || waiter->callback != NULL;
}

/* Step the waiting task, if there is one. Only from a callback of the loop, never inside a task. Return 0, or -1 with
 * the exception that escaped the step (SystemExit, KeyboardInterrupt, or a task that could not be entered). */
int waiter_wake(Waiter *waiter);

/* Step the waiting task in the loop's next iteration. For use inside a task. Return 0, or -1 with an exception. */
int waiter_wake_soon(Waiter *waiter);

#endif
