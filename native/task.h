/* The task that the poller steps directly; see task.c. */
#ifndef PREFORK_TASK_H
#define PREFORK_TASK_H

#include "native.h"

/* The fields of a task. They lie behind those of asyncio.Future, whose size is known at run time only. */
typedef struct TaskFields {
    State *state;          /* borrowed from the module */
    PyObject *loop;        /* owned */
    PyObject *coroutine;   /* owned */
    PyObject *context;     /* owned: the contextvars.Context of its steps */
    PyObject *name;        /* owned; NULL until it is asked for */
    PyObject *waiting_for; /* owned: the future or Waiter that it waits for, or NULL */
    PyObject *cancelled;   /* owned: the CancelledError that ended it, or NULL */
    int cancel_requests;
    bool must_cancel; /* the next step raises CancelledError */
    bool quiet;       /* `_log_destroy_pending` is false */
    bool is_eager;    /* asyncio has it among its eager tasks: until it is done, and with a reference */
} TaskFields;

/* Where the fields of a task begin, if asyncio.Future is `base`. */
static inline Py_ssize_t task_offset_behind(const PyTypeObject *base)
{
    Py_ssize_t alignment = (Py_ssize_t)_Alignof(TaskFields);
    return (base->tp_basicsize + alignment - 1) & -alignment;
}

static inline TaskFields *task_fields(const State *state, PyObject *task)
{
    return (TaskFields *)((char *)task + state->task_offset);
}

/* Whether it has ended: 1, 0, or -1. */
int task_is_done(State *state, PyObject *task);

/* Step a task whose waiter was woken, in its context. Only from a callback of the loop. 0, or -1 with the exception
 * that escaped. `state` is the waiter's. */
int task_wake(State *state, PyObject *task);

/* Run the coroutine up to its next wait, inside the task's context. `error` (borrowed, or NULL) is thrown into it. */
int task_step(State *state, PyObject *task, PyObject *error);

/* Call the loop's `call_soon` with the task's method `_step`, and `error` as its argument if there is one. */
int task_step_soon(State *state, PyObject *task, PyObject *error);

/* Continue because `future` is done: with its result or its exception. */
int task_continue(State *state, PyObject *task, PyObject *future);

/* Request a cancellation, as asyncio.Task.cancel does. 1: requested; 0: it is done; or -1. */
int task_cancel(State *state, PyObject *task, PyObject *message);

/* Run the first step now, as asyncio's eager tasks do. */
int task_start_eagerly(State *state, PyObject *task);

#endif
