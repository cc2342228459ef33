/* Task: runs a coroutine, as asyncio.Task does, and is stepped by the poller directly.
 *
 * A wake-up of asyncio.Task costs four times as much: it goes through a callback object, the future protocol and the
 * context's `run`. This one stores itself in the Waiter that its coroutine yields, and the poller calls `task_wake`.
 * Anything else that a coroutine may yield is handled as asyncio.Task handles it; the names and the messages are its
 * own, and CPython's tests of it are run against this one.
 *
 * Results, exceptions and callbacks are those of asyncio.Future, the base. Which task is the current one is told to
 * asyncio by its own functions, which hold in every version; its dictionary of tasks is never written.
 */
#include "task.h"

#include "waiter.h"

/* --- the outcome ---------------------------------------------------------------------------------------------------*/

/* Call a method of asyncio.Future itself on the task. */
static int call_base(PyObject *method, PyObject *task, PyObject *argument)
{
    PyObject *result = PyObject_CallFunctionObjArgs(method, task, argument, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Fetch the current exception as one object (owned). */
static PyObject *fetch_error(void)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL && error != NULL) {
        PyException_SetTraceback(error, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
}

static PyObject *make_cancelled_error(State *state, PyObject *message)
{
    return message == Py_None ? PyObject_CallNoArgs(state->CancelledError)
                              : PyObject_CallOneArg(state->CancelledError, message);
}

/* Return the message (owned) of the cancellation that the next step delivers. */
static PyObject *cancel_message(State *state, PyObject *task)
{
    return PyObject_GetAttr(task, state->task.str_cancel_message);
}

static int set_returned(State *state, PyObject *task, PyObject *result)
{
    TaskFields *fields = task_fields(state, task);
    if (!fields->must_cancel) {
        return call_base(state->task.future_set_result, task, result);
    }
    /* Cancelled right before the coroutine ended. */
    fields->must_cancel = false;
    PyObject *message = cancel_message(state, task);
    int failed = message == NULL ? -1 : call_base(state->task.future_cancel, task, message);
    Py_XDECREF(message);
    return failed;
}

/* Remove a task that is done from asyncio's eager tasks. */
static int forget_eager(State *state, PyObject *task)
{
    TaskFields *fields = task_fields(state, task);
    if (!fields->is_eager) {
        return 0;
    }
    fields->is_eager = false;
    PyObject *result = PyObject_CallOneArg(state->task.unregister_eager, task);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* End with the current exception. SystemExit and KeyboardInterrupt are raised to the loop as well. */
static int set_raised(State *state, PyObject *task)
{
    PyObject *error = fetch_error();
    if (error == NULL) {
        return -1;
    }
    if (PyErr_GivenExceptionMatches(error, state->CancelledError)) {
        TaskFields *fields = task_fields(state, task);
        Py_XSETREF(fields->cancelled, Py_NewRef(error));
        Py_DECREF(error);
        return call_base(state->task.future_cancel, task, Py_None);
    }
    int result = call_base(state->task.future_set_exception, task, error);
    if (result == 0 && (PyErr_GivenExceptionMatches(error, PyExc_KeyboardInterrupt) ||
                        PyErr_GivenExceptionMatches(error, PyExc_SystemExit))) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        result = -1;
    }
    Py_DECREF(error);
    return result;
}

/* --- what the coroutine yields -------------------------------------------------------------------------------------*/

int task_step_soon(State *state, PyObject *task, PyObject *error)
{
    TaskFields *fields = task_fields(state, task);
    PyObject *step = PyObject_GetAttr(task, state->task.str_step);
    if (step == NULL) {
        return -1;
    }
    /* call_soon(step[, error], context=...) */
    PyObject *arguments[] = {fields->loop, step, error != NULL ? error : fields->context, fields->context};
    size_t count = (error != NULL ? 3 : 2) | PY_VECTORCALL_ARGUMENTS_OFFSET;
    PyObject *handle = PyObject_VectorcallMethod(state->str_call_soon, arguments, count, state->context_kwname);
    Py_DECREF(step);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

/* Let the coroutine see a RuntimeError in its next step: it yielded what a task cannot wait for. */
static int reject(State *state, PyObject *task, const char *format, PyObject *yielded)
{
    PyObject *text = PyUnicode_FromFormat(format, task, yielded);
    PyObject *error = text == NULL ? NULL : PyObject_CallOneArg(PyExc_RuntimeError, text);
    Py_XDECREF(text);
    int result = error == NULL ? -1 : task_step_soon(state, task, error);
    Py_XDECREF(error);
    return result;
}

/* End the wait for a Waiter. Not at once, because the task that cancels is running. */
static int cancel_wait(State *state, PyObject *task, Waiter *waiter, PyObject *message)
{
    PyObject *error = make_cancelled_error(state, message);
    if (error == NULL) {
        return -1;
    }
    int failed = task_step_soon(state, task, error);
    Py_DECREF(error);
    if (!failed) {
        Py_CLEAR(waiter->task); /* First, because the task may have the last reference to the waiter. */
        Py_CLEAR(task_fields(state, task)->waiting_for);
    }
    return failed ? -1 : 1;
}

static int wait_for_waiter(State *state, PyObject *task, Waiter *waiter)
{
    TaskFields *fields = task_fields(state, task);
    if (waiter->loop != fields->loop) {
        return reject(state, task, "Task %R got Waiter %R attached to a different loop", (PyObject *)waiter);
    }
    if (!waiter->future_blocking || waiter_is_waiting(waiter)) {
        return reject(state, task, "Task %R cannot wait for %R: another task does", (PyObject *)waiter);
    }
    waiter->future_blocking = false;
    waiter->task = Py_NewRef(task);
    Py_XSETREF(fields->waiting_for, Py_NewRef(waiter));
    if (!fields->must_cancel) {
        return 0;
    }
    PyObject *message = cancel_message(state, task);
    fields->must_cancel = false;
    int result = message == NULL ? -1 : cancel_wait(state, task, waiter, message);
    Py_XDECREF(message);
    return result < 0 ? -1 : 0;
}

/* Cancel what the task waits for. 1 if that ends the wait, 0, or -1. */
static int cancel_future(State *state, PyObject *future, PyObject *message)
{
    PyObject *arguments[] = {future, message};
    PyObject *result = PyObject_VectorcallMethod(state->task.str_cancel, arguments, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                                 state->task.msg_kwname);
    int cancelled = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    return cancelled;
}

static int wait_for_future(State *state, PyObject *task, PyObject *future)
{
    TaskFields *fields = task_fields(state, task);
    PyObject *loop = PyObject_CallMethodNoArgs(future, state->task.str_get_loop);
    if (loop == NULL) {
        return -1;
    }
    bool is_foreign = loop != fields->loop;
    Py_DECREF(loop);
    if (is_foreign) {
        return reject(state, task, "Task %R got Future %R attached to a different loop", future);
    }
    PyObject *wakeup = NULL, *added = NULL;
    if (PyObject_SetAttr(future, state->task.str_blocking, Py_False) == 0) {
        wakeup = PyObject_GetAttr(task, state->task.str_wakeup);
    }
    if (wakeup != NULL) {
        PyObject *arguments[] = {future, wakeup, fields->context};
        added = PyObject_VectorcallMethod(state->task.str_add_done_callback, arguments,
                                          2 | PY_VECTORCALL_ARGUMENTS_OFFSET, state->context_kwname);
        Py_DECREF(wakeup);
    }
    if (added == NULL) {
        return -1;
    }
    Py_DECREF(added);
    Py_XSETREF(fields->waiting_for, Py_NewRef(future));
    if (fields->must_cancel) {
        PyObject *message = cancel_message(state, task);
        int cancelled = message == NULL ? -1 : cancel_future(state, future, message);
        Py_XDECREF(message);
        fields->must_cancel = cancelled <= 0;
        return cancelled < 0 ? -1 : 0;
    }
    return 0;
}

static int handle_yielded(State *state, PyObject *task, PyObject *yielded)
{
    if (Py_IS_TYPE(yielded, state->WaiterType)) {
        return wait_for_waiter(state, task, (Waiter *)yielded);
    }
    if (yielded == Py_None) {
        return task_step_soon(state, task, NULL);
    }
    if (yielded == task) {
        return reject(state, task, "Task cannot await on itself: %R", task);
    }
    PyObject *blocking = PyObject_GetAttr(yielded, state->task.str_blocking);
    if (blocking == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return -1;
        }
        PyErr_Clear();
    }
    int is_blocking = blocking == NULL || blocking == Py_None ? -1 : PyObject_IsTrue(blocking);
    bool is_future = blocking != NULL && blocking != Py_None;
    Py_XDECREF(blocking);
    if (is_future && is_blocking < 0) {
        return -1;
    }
    if (is_future) {
        return is_blocking ? wait_for_future(state, task, yielded)
                           : reject(state, task, "yield was used instead of yield from in task %R with %R", yielded);
    }
    if (PyGen_CheckExact(yielded)) {
        return reject(state, task, "yield was used instead of yield from for generator in task %R with %R", yielded);
    }
    return reject(state, task, "Task %R got bad yield: %R", yielded);
}

/* --- stepping ------------------------------------------------------------------------------------------------------*/

/* Throw `error` into the coroutine. */
static PySendResult throw_into(State *state, PyObject *coroutine, PyObject *error, PyObject **result)
{
    *result = PyObject_CallMethodOneArg(coroutine, state->task.str_throw, error);
    if (*result != NULL) {
        return PYGEN_NEXT;
    }
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return PYGEN_ERROR;
    }
    PyObject *stop = fetch_error();
    *result = stop == NULL ? NULL : PyObject_GetAttrString(stop, "value");
    Py_XDECREF(stop);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* Run the coroutine up to its next wait, while the task is asyncio's current one. */
static int run_step(State *state, PyObject *task, PyObject *error)
{
    TaskFields *fields = task_fields(state, task);
    PyObject *result, *cancelled = NULL, *type, *raised, *traceback;
    Py_CLEAR(fields->waiting_for);
    if (fields->must_cancel) {
        if (error == NULL || !PyErr_GivenExceptionMatches(error, state->CancelledError)) {
            PyObject *message = cancel_message(state, task);
            error = cancelled = message == NULL ? NULL : make_cancelled_error(state, message);
            Py_XDECREF(message);
            if (error == NULL) {
                return -1;
            }
        }
        fields->must_cancel = false;
    }
    PyObject *coroutine = fields->coroutine;
    PySendResult how = error == NULL ? PyIter_Send(coroutine, Py_None, &result)
                                     : throw_into(state, coroutine, error, &result);
    Py_XDECREF(cancelled);
    if (how == PYGEN_ERROR) {
        int escaped = set_raised(state, task);
        PyErr_Fetch(&type, &raised, &traceback);
        if (forget_eager(state, task) < 0) {
            PyErr_WriteUnraisable(task);
        }
        PyErr_Restore(type, raised, traceback);
        return escaped;
    }
    int failed = how == PYGEN_RETURN ? set_returned(state, task, result) : handle_yielded(state, task, result);
    Py_DECREF(result);
    return how == PYGEN_RETURN && forget_eager(state, task) < 0 ? -1 : failed;
}

/* Tell asyncio that the task is entered or left. The current exception, if any, stays. */
static int call_registry(PyObject *function, PyObject *loop, PyObject *task)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyObject *arguments[] = {loop, task};
    PyObject *result = PyObject_Vectorcall(function, arguments, 2, NULL);
    Py_XDECREF(result);
    if (type != NULL) {
        if (result == NULL) {
            PyErr_WriteUnraisable(task);
        }
        PyErr_Restore(type, error, traceback);
        return 0;
    }
    return result == NULL ? -1 : 0;
}

int task_is_done(State *state, PyObject *task)
{
    PyObject *done = PyObject_CallOneArg(state->task.future_done, task);
    int result = done == NULL ? -1 : PyObject_IsTrue(done);
    Py_XDECREF(done);
    return result;
}

int task_step(State *state, PyObject *task, PyObject *error)
{
    TaskFields *fields = task_fields(state, task);
    if (fields->context == NULL || fields->coroutine == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Task object is not initialized.");
        return -1;
    }
    /* Held, because the coroutine may call the task's `__init__` again, which replaces both. */
    PyObject *loop = Py_NewRef(fields->loop), *coroutine = Py_NewRef(fields->coroutine);
    int result = call_registry(state->task.enter_task, loop, task);
    if (result == 0) {
        result = run_step(state, task, error);
        if (call_registry(state->task.leave_task, loop, task) < 0) {
            result = -1;
        }
    }
    Py_DECREF(coroutine);
    Py_DECREF(loop);
    return result;
}

int task_wake(State *state, PyObject *task)
{
    PyObject *context = task_fields(state, task)->context;
    if (PyContext_Enter(context) < 0) {
        return -1;
    }
    int result = task_step(state, task, NULL);
    return PyContext_Exit(context) < 0 ? -1 : result;
}

int task_continue(State *state, PyObject *task, PyObject *future)
{
    PyObject *result = PyObject_CallMethodNoArgs(future, state->task.str_result);
    if (result != NULL) {
        Py_DECREF(result);
        return task_step(state, task, NULL);
    }
    PyObject *error = fetch_error();
    int failed = error == NULL ? -1 : task_step(state, task, error);
    Py_XDECREF(error);
    return failed;
}

/* --- cancelling ----------------------------------------------------------------------------------------------------*/

int task_cancel(State *state, PyObject *task, PyObject *message)
{
    TaskFields *fields = task_fields(state, task);
    int done = task_is_done(state, task);
    if (done != 0) {
        /* The exception that it ended with is not logged. */
        return done < 0 || PyObject_SetAttr(task, state->task.str_log_traceback, Py_False) < 0 ? -1 : 0;
    }
    fields->cancel_requests++;
    PyObject *waits = fields->waiting_for;
    if (waits != NULL && Py_IS_TYPE(waits, state->WaiterType)) {
        Waiter *waiter = (Waiter *)waits;
        if (waiter->task == task) {
            return cancel_wait(state, task, waiter, message);
        }
    } else if (waits != NULL) {
        Py_INCREF(waits);
        int cancelled = cancel_future(state, waits, message);
        Py_DECREF(waits);
        if (cancelled != 0) {
            return cancelled;
        }
    }
    fields->must_cancel = true;
    return PyObject_SetAttr(task, state->task.str_cancel_message, message) < 0 ? -1 : 1;
}

/* --- starting ------------------------------------------------------------------------------------------------------*/

/* It stays among asyncio's eager tasks until it is done, which costs a fifth of what the weak set of scheduled tasks
 * costs, in memory and in time. `asyncio.all_tasks` returns both. */
int task_start_eagerly(State *state, PyObject *task)
{
    TaskFields *fields = task_fields(state, task);
    PyObject *registered = PyObject_CallOneArg(state->task.register_eager, task);
    Py_XDECREF(registered);
    if (registered == NULL) {
        return -1;
    }
    fields->is_eager = true;
    PyObject *arguments[] = {fields->loop, task};
    PyObject *previous = PyObject_Vectorcall(state->task.swap_current_task, arguments, 2, NULL);
    if (previous == NULL) {
        return -1;
    }
    int result = -1;
    if (PyContext_Enter(fields->context) == 0) {
        result = run_step(state, task, NULL);
        if (PyContext_Exit(fields->context) < 0) {
            result = -1;
        }
    }
    if (call_registry(state->task.swap_current_task, fields->loop, previous) < 0) {
        result = -1;
    }
    Py_DECREF(previous);
    return result;
}
