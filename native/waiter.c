/* Waiter: the awaitable that the poller wakes. `waiter_wake` steps the waiting task at once, without a loop iteration
 * in between; see src/prefork/net/waiter.py for why, and for what it must not do.
 *
 * A Task of this module stores itself in the waiter when it gets one; a wake-up is then one C call. Any other task
 * uses the future protocol: it hands over a callback and a context.
 */
#include "waiter.h"

#include "task.h"

#include <structmember.h>

Waiter *waiter_new(State *state, PyObject *loop)
{
    Waiter *waiter = (Waiter *)state->WaiterType->tp_alloc(state->WaiterType, 0);
    if (waiter != NULL) {
        waiter->state = state;
        waiter->loop = Py_NewRef(loop);
    }
    return waiter;
}

/* --- waking --------------------------------------------------------------------------------------------------------*/

int waiter_wake(Waiter *waiter)
{
    PyObject *task = waiter->task;
    if (task != NULL) {
        waiter->task = NULL;
        int result = task_wake(waiter->state, task);
        Py_DECREF(task);
        return result;
    }
    PyObject *callback = waiter->callback, *context = waiter->context;
    if (callback == NULL) {
        return 0;
    }
    waiter->callback = waiter->context = NULL;
    PyObject *result = NULL;
    Py_INCREF(waiter); /* The task may drop the stream that owns it. */
    if (PyContext_Enter(context) == 0) {
        result = PyObject_CallOneArg(callback, (PyObject *)waiter);
        if (PyContext_Exit(context) < 0) {
            Py_CLEAR(result);
        }
    }
    Py_DECREF(callback);
    Py_DECREF(context);
    Py_DECREF(waiter);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int call_method_soon(State *state, PyObject *loop, PyObject *object, PyObject *name)
{
    PyObject *method = PyObject_GetAttr(object, name);
    if (method == NULL) {
        return -1;
    }
    PyObject *handle = PyObject_CallMethodOneArg(loop, state->str_call_soon, method);
    Py_DECREF(method);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

int waiter_wake_soon(Waiter *waiter)
{
    return waiter_is_waiting(waiter)
               ? call_method_soon(waiter->state, waiter->loop, (PyObject *)waiter, waiter->state->names.wake)
               : 0;
}

/* --- the future protocol -------------------------------------------------------------------------------------------*/

/* Schedule `callback(waiter)` in the loop's next iteration, in `context`. */
static int call_soon_in_context(Waiter *waiter, PyObject *callback, PyObject *context)
{
    PyObject *arguments[] = {waiter->loop, callback, (PyObject *)waiter, context};
    PyObject *handle = PyObject_VectorcallMethod(waiter->state->str_call_soon, arguments,
                                                 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, waiter->state->context_kwname);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

static PyObject *Waiter_wake(Waiter *waiter, PyObject *Py_UNUSED(none))
{
    return none_unless(waiter_wake(waiter));
}

static PyObject *Waiter_wake_soon(Waiter *waiter, PyObject *Py_UNUSED(none))
{
    return none_unless(waiter_wake_soon(waiter));
}

static PyObject *Waiter_get_loop(Waiter *waiter, PyObject *Py_UNUSED(none))
{
    return Py_NewRef(waiter->loop);
}

static PyObject *Waiter_add_done_callback(Waiter *waiter, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "context", NULL};
    PyObject *callback, *context = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O:add_done_callback", names, &callback, &context)) {
        return NULL;
    }
    if (context == NULL || context == Py_None) {
        context = PyContext_CopyCurrent();
    } else if (PyContext_CheckExact(context)) {
        Py_INCREF(context);
    } else {
        PyErr_Format(PyExc_TypeError, "context must be a contextvars.Context, not %R", context);
        context = NULL;
    }
    if (context == NULL) {
        return NULL;
    }
    Py_XSETREF(waiter->callback, Py_NewRef(callback));
    Py_XSETREF(waiter->context, context);
    Py_RETURN_NONE;
}

static PyObject *Waiter_remove_done_callback(Waiter *waiter, PyObject *callback)
{
    PyObject *own = Py_XNewRef(waiter->callback); /* The comparison may run code that drops it. */
    int same = own == NULL ? 0 : PyObject_RichCompareBool(own, callback, Py_EQ);
    Py_XDECREF(own);
    if (same < 0) {
        return NULL;
    }
    if (same) {
        Py_CLEAR(waiter->callback);
        Py_CLEAR(waiter->context);
    }
    return PyLong_FromLong(same);
}

static PyObject *Waiter_done(Waiter *waiter, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(!waiter_is_waiting(waiter));
}

static PyObject *Waiter_cancelled(Waiter *waiter, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(waiter->cancel_pending);
}

/* Called by `task.cancel()`. The task will be stepped, and `result` will raise CancelledError in it. Not at once,
 * because the task that cancels is running, and two cannot run inside each other. */
static PyObject *Waiter_cancel(Waiter *waiter, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"msg", NULL};
    PyObject *message = Py_None, *callback = waiter->callback, *context = waiter->context;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:cancel", names, &message)) {
        return NULL;
    }
    if (callback == NULL) {
        Py_RETURN_FALSE;
    }
    waiter->callback = waiter->context = NULL;
    waiter->cancel_pending = true;
    Py_XSETREF(waiter->cancel_message, Py_NewRef(message));
    int failed = call_soon_in_context(waiter, callback, context);
    Py_DECREF(callback);
    Py_DECREF(context);
    if (failed) {
        return NULL;
    }
    Py_RETURN_TRUE;
}

static PyObject *Waiter_result(Waiter *waiter, PyObject *Py_UNUSED(none))
{
    if (!waiter->cancel_pending) {
        Py_RETURN_NONE;
    }
    PyObject *message = waiter->cancel_message;
    waiter->cancel_pending = false;
    waiter->cancel_message = NULL;
    /* Made by a call, because PyErr_SetObject would take a tuple for all arguments. */
    PyObject *type = waiter->state->CancelledError;
    PyObject *error = message == NULL || message == Py_None ? PyObject_CallNoArgs(type)
                                                            : PyObject_CallOneArg(type, message);
    if (error != NULL) {
        PyErr_SetObject(type, error);
        Py_DECREF(error);
    }
    Py_XDECREF(message);
    return NULL;
}

/* --- awaiting ------------------------------------------------------------------------------------------------------*/

/* The iterator of `await waiter` yields the waiter once; before it is resumed, the task has called `result`. */
static PyObject *Waiter_await(Waiter *waiter)
{
    PyObject *one = PyTuple_Pack(1, waiter);
    PyObject *iterator = one == NULL ? NULL : PyObject_GetIter(one);
    Py_XDECREF(one);
    waiter->future_blocking = true;
    return iterator;
}

/* --- the type ------------------------------------------------------------------------------------------------------*/

static PyObject *Waiter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", NULL};
    PyObject *loop;
    State *state = state_of(type);
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O:Waiter", names, &loop)) {
        return NULL;
    }
    return (PyObject *)waiter_new(state, loop);
}

static PyObject *Waiter_repr(Waiter *waiter)
{
    return PyUnicode_FromFormat("<Waiter %s>", waiter_is_waiting(waiter) ? "waiting" : "idle");
}

static PyObject *Waiter_get_waiting(Waiter *waiter, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(waiter_is_waiting(waiter));
}

static PyObject *Waiter_get_callback(Waiter *waiter, void *Py_UNUSED(closure))
{
    PyObject *callback = waiter->task != NULL ? waiter->task : waiter->callback;
    return Py_NewRef(callback == NULL ? Py_None : callback);
}

static int Waiter_traverse(Waiter *waiter, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(waiter));
    Py_VISIT(waiter->loop);
    Py_VISIT(waiter->task);
    Py_VISIT(waiter->callback);
    Py_VISIT(waiter->context);
    Py_VISIT(waiter->cancel_message);
    return 0;
}

static int Waiter_clear(Waiter *waiter)
{
    Py_CLEAR(waiter->loop);
    Py_CLEAR(waiter->task);
    Py_CLEAR(waiter->callback);
    Py_CLEAR(waiter->context);
    Py_CLEAR(waiter->cancel_message);
    return 0;
}

static void Waiter_dealloc(Waiter *waiter)
{
    PyTypeObject *type = Py_TYPE(waiter);
    PyObject_GC_UnTrack(waiter);
    (void)Waiter_clear(waiter);
    type->tp_free(waiter);
    Py_DECREF(type);
}

static PyMethodDef waiter_methods[] = {
    {"wake", (PyCFunction)Waiter_wake, METH_NOARGS, NULL},
    {"wake_soon", (PyCFunction)Waiter_wake_soon, METH_NOARGS, NULL},
    {"get_loop", (PyCFunction)Waiter_get_loop, METH_NOARGS, NULL},
    {"add_done_callback", (PyCFunction)(void (*)(void))Waiter_add_done_callback, METH_VARARGS | METH_KEYWORDS, NULL},
    {"remove_done_callback", (PyCFunction)Waiter_remove_done_callback, METH_O, NULL},
    {"done", (PyCFunction)Waiter_done, METH_NOARGS, NULL},
    {"cancelled", (PyCFunction)Waiter_cancelled, METH_NOARGS, NULL},
    {"cancel", (PyCFunction)(void (*)(void))Waiter_cancel, METH_VARARGS | METH_KEYWORDS, NULL},
    {"result", (PyCFunction)Waiter_result, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef waiter_getset[] = {
    {"waiting", (getter)Waiter_get_waiting, NULL, NULL, NULL},
    {"callback", (getter)Waiter_get_callback, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef waiter_members[] = {
    {"cancel_pending", T_BOOL, offsetof(Waiter, cancel_pending), READONLY, NULL},
    {"_asyncio_future_blocking", T_BOOL, offsetof(Waiter, future_blocking), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot waiter_slots[] = {
    {Py_tp_doc, "The awaitable that the poller wakes: see prefork.net.waiter."},
    {Py_tp_new, Waiter_new},
    {Py_tp_dealloc, Waiter_dealloc},
    {Py_tp_traverse, Waiter_traverse},
    {Py_tp_clear, Waiter_clear},
    {Py_tp_repr, Waiter_repr},
    {Py_tp_methods, waiter_methods},
    {Py_tp_members, waiter_members},
    {Py_tp_getset, waiter_getset},
    {Py_am_await, Waiter_await},
    {0, NULL},
};

static PyType_Spec waiter_spec = {
    .name = "prefork._native.Waiter",
    .basicsize = sizeof(Waiter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = waiter_slots,
};

int waiter_setup(PyObject *module, State *state)
{
    state->WaiterType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &waiter_spec, NULL);
    return state->WaiterType == NULL ? -1 : PyModule_AddType(module, state->WaiterType);
}
