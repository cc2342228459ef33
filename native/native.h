/* What the files of the extension share: the state of the module, and the few idioms of ownership.
 *
 * Ownership. A field or a result that is called "owned" holds a reference; "borrowed" says who keeps it alive. A
 * function returns an owned reference, or NULL (or -1) with an exception set, unless it says otherwise.
 */
#ifndef PREFORK_NATIVE_H
#define PREFORK_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* Names, errors and constants that streams use. A struct of pointers only: it is visited as an array. */
typedef struct Names {
    PyObject *call_exception_handler, *close, *detach, *forked, *join, *note_end, *pending, *poller, *read;
    PyObject *received_close_notify, *wake, *write;
    PyObject *_close, *_cork_tls_output, *_discard_input, *_failure, *_flush, *_on_backlog_added, *_on_backlog_empty;
    PyObject *_on_backlog_sent, *_on_disposed, *_on_no_memory, *_on_output_sent, *_on_ready, *_on_writable, *_raised;
    PyObject *newline;        /* b"\n" */
    PyObject *empty;          /* b"" */
    PyObject *record_size;    /* 16384: the most that one read of an SSLObject returns (RFC 8446, 5.1) */
    PyObject *AbortedError;   /* ConnectionAbortedError */
    PyObject *BusyError;      /* prefork.errors.StreamBusyError */
    PyObject *LineError;      /* prefork.errors.LineTooLongError */
    PyObject *IncompleteError; /* asyncio.IncompleteReadError */
    PyObject *OverrunError;   /* asyncio.LimitOverrunError */
    PyObject *WantReadError;  /* ssl.SSLWantReadError */
    PyObject *ZeroReturnError; /* ssl.SSLZeroReturnError */
    PyObject *SSLError;       /* ssl.SSLError */
    PyObject *socket_class;   /* socket.socket */
} Names;

/* What tasks use of asyncio. A struct of pointers only: it is visited as an array. */
typedef struct TaskNames {
    PyTypeObject *future_type; /* asyncio.Future, the base */
    PyObject *future_cancel, *future_done, *future_make_cancelled_error, *future_set_exception;
    PyObject *future_exception, *future_result, *future_set_result; /* these are methods of asyncio.Future */
    PyObject *future_await;    /* its `__await__` in Python */
    PyObject *enter_task, *leave_task, *register_task; /* functions of asyncio.tasks, which hold its current tasks */
    PyObject *register_eager, *unregister_eager;       /* from 3.12 on, as the next one; NULL before */
    PyObject *swap_current_task;
    PyObject *iscoroutine, *next_name, *task_repr, *task_get_stack, *task_print_stack;
    PyObject *str_add_done_callback, *str_blocking, *str_cancel, *str_cancel_message, *str_get_loop;
    PyObject *str_log_traceback, *str_result, *str_step, *str_throw, *str_wakeup, *msg_kwname;
} TaskNames;

/* Everything the module looks up once, at import. All of it is owned; the module, which each type keeps alive, keeps
 * it. An object that needs it often has a borrowed pointer to it. */
typedef struct State {
    PyTypeObject *PollerType;
    PyTypeObject *StreamType;
    PyTypeObject *OpType;
    PyTypeObject *WaiterType;
    PyTypeObject *TaskType;

    PyObject *CancelledError;      /* asyncio.CancelledError */
    PyObject *str_call_soon;
    PyObject *str_context;
    PyObject *context_kwname;      /* ("context",), the keyword of call_soon */

    /* The enums of prefork.net.phases, in the order of stream.h. */
    PyObject *phases[4];
    PyObject *outputs[3];
    PyObject *inputs[5];
    Names names;
    TaskNames task;
    Py_ssize_t task_offset;        /* of TaskFields in a task */
    PyObject *stop_iteration;      /* a StopIteration to use again, or NULL: see op.c */
} State;

extern struct PyModuleDef native_module;

/* The state, from a type that this module has made. Borrowed. */
static inline State *state_of(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &native_module);
    State *state = module == NULL ? NULL : (State *)PyModule_GetState(module);
    if (state == NULL) {
        Py_FatalError("a type of prefork._native has lost its module");
    }
    return state;
}

/* The result of a method that returns None: an owned None, or NULL if it failed. */
static inline PyObject *none_unless(int failed)
{
    return failed < 0 ? NULL : Py_NewRef(Py_None);
}

/* Call the loop's `call_soon` with the method `name` of `object`. 0, or -1 with an exception. See waiter.c. */
int call_method_soon(State *state, PyObject *loop, PyObject *object, PyObject *name);

/* Each adds its type to the module, at import. 0, or -1 with an exception. */
int names_setup(State *state);
int task_names_setup(State *state);
int waiter_setup(PyObject *module, State *state);
int task_setup(PyObject *module, State *state);
int poller_setup(PyObject *module, State *state);
int stream_setup(PyObject *module, State *state);
int op_setup(PyObject *module, State *state);

/* The part of the state that names.c owns, for the collector. */
int names_traverse(State *state, visitproc visit, void *arg);
void names_clear(State *state);

#endif
