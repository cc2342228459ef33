/* Op: what `stream.read()` and its kind return, to be awaited once.
 *
 * An op looks first, and waits only if it must. Where it waits it yields the stream's waiter, and each wake-up means
 * "look again". It is like a coroutine (send, throw, close) and is no future: `asyncio.wait_for` would take a future
 * for one that is done, and `asyncio.create_task` would refuse it.
 *
 * Both `am_send` and `tp_iternext` are there. The interpreter's SEND calls the second one, in 3.12 and 3.13, for a
 * type that is not its own; there the result travels in a StopIteration, which is made once and used again.
 */
#include "op.h"

static const char *const KIND_NAMES[] = {
    [OP_READ] = "read", [OP_READ_ALL] = "read", [OP_READEXACTLY] = "readexactly", [OP_READUNTIL] = "readuntil",
    [OP_READLINE] = "readline", [OP_NEXT_LINE] = "__anext__", [OP_READ_RAW] = "_receive_raw", [OP_DRAIN] = "drain",
    [OP_SEND] = "send",
};

PyObject *op_new(Stream *stream, OpKind kind, size_t size, PyObject *argument)
{
    State *state = stream->state;
    Op *op = PyObject_GC_New(Op, state->OpType);
    if (op == NULL) {
        return NULL;
    }
    op->state = state;
    op->stream = (Stream *)Py_NewRef(stream);
    op->argument = Py_XNewRef(argument);
    op->size = size;
    op->searched = 0;
    op->kind = (uint8_t)kind;
    op->progress = OP_NEW;
    op->yielded = false;
    op->received = false;
    PyObject_GC_Track(op);
    return (PyObject *)op;
}

/* Let go of the stream. The current exception, if any, stays. */
static void finish(Op *op)
{
    op->progress = OP_DONE;
    if (op->kind == OP_DRAIN && op->argument != NULL) {
        PyObject *type, *error, *traceback;
        PyErr_Fetch(&type, &error, &traceback);
        if (op_set_writer(op, false) < 0) {
            PyErr_WriteUnraisable((PyObject *)op);
        }
        PyErr_Restore(type, error, traceback);
    }
    Py_CLEAR(op->argument);
    Py_CLEAR(op->stream);
}

static PySendResult send_op(Op *op, PyObject *Py_UNUSED(value), PyObject **result)
{
    *result = NULL;
    if (op->progress == OP_DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited stream operation");
        return PYGEN_ERROR;
    }
    op->progress = OP_STARTED;
    Look look = op_look(op, result);
    if (look == LOOK_YIELD) {
        return PYGEN_NEXT;
    }
    if (look == LOOK_INPUT || look == LOOK_RESUMED) {
        Waiter *waiter = look == LOOK_INPUT ? stream_wait_input(op->stream) : stream_begin_wait(op->stream);
        if (waiter != NULL) {
            waiter->future_blocking = true;
            *result = (PyObject *)waiter;
            return PYGEN_NEXT;
        }
        look = LOOK_ERROR;
    }
    finish(op);
    return look == LOOK_DONE ? PYGEN_RETURN : PYGEN_ERROR;
}

/* --- results -------------------------------------------------------------------------------------------------------*/

#if PY_VERSION_HEX >= 0x030C0000
/* Raise StopIteration(value). The one instance is used again unless something still has it. */
static void raise_result(State *state, PyObject *value)
{
    PyObject *stop = state->stop_iteration;
    if (stop != NULL && Py_REFCNT(stop) == 1) {
        PyStopIterationObject *fields = (PyStopIterationObject *)stop;
        Py_XSETREF(fields->value, Py_NewRef(value));
        Py_CLEAR(fields->traceback);
        Py_CLEAR(fields->context);
    } else {
        stop = PyObject_CallOneArg(PyExc_StopIteration, value);
        if (stop == NULL) {
            return;
        }
        Py_XSETREF(state->stop_iteration, stop);
    }
    PyErr_SetRaisedException(Py_NewRef(stop));
}
#else
static void raise_result(State *Py_UNUSED(state), PyObject *value)
{
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
}
#endif

static PyObject *as_iteration(Op *op, PySendResult how, PyObject *result)
{
    if (how != PYGEN_RETURN) {
        return result;
    }
    /* For None, NULL without an exception says the same and costs less. */
    if (result != Py_None) {
        raise_result(op->state, result);
    }
    Py_DECREF(result);
    return NULL;
}

static PyObject *Op_next(Op *op)
{
    PyObject *result;
    PySendResult how = send_op(op, Py_None, &result);
    return as_iteration(op, how, result);
}

static PyObject *Op_send(Op *op, PyObject *value)
{
    PyObject *result;
    PySendResult how = send_op(op, value, &result);
    if (how == PYGEN_RETURN && result == Py_None) {
        Py_DECREF(result);
        PyErr_SetNone(PyExc_StopIteration);
        return NULL;
    }
    return as_iteration(op, how, result);
}

static PyObject *Op_throw(Op *op, PyObject *args)
{
    PyObject *type, *value = NULL, *traceback = NULL;
    if (!PyArg_ParseTuple(args, "O|OO:throw", &type, &value, &traceback)) {
        return NULL;
    }
    finish(op);
    if (PyExceptionInstance_Check(type)) {
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    } else if (PyExceptionClass_Check(type)) {
        PyErr_SetObject(type, value == Py_None ? NULL : value);
    } else {
        PyErr_Format(PyExc_TypeError, "exceptions must be classes or instances deriving from BaseException, not %.200s",
                     Py_TYPE(type)->tp_name);
    }
    return NULL;
}

static PyObject *Op_close(Op *op, PyObject *Py_UNUSED(none))
{
    finish(op);
    Py_RETURN_NONE;
}

/* --- the type ------------------------------------------------------------------------------------------------------*/

static PyObject *Op_repr(Op *op)
{
    return PyUnicode_FromFormat("<stream operation %s>", KIND_NAMES[op->kind]);
}

static int Op_traverse(Op *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(op->stream);
    Py_VISIT(op->argument);
    return 0;
}

static int Op_clear(Op *op)
{
    finish(op);
    return 0;
}

/* As for a coroutine: the symptom of a forgotten `await` is an answer that never comes. */
static void warn_never_awaited(Op *op)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "stream.%s() was never awaited", KIND_NAMES[op->kind]) < 0) {
        PyErr_WriteUnraisable((PyObject *)Py_TYPE(op));
    }
    PyErr_Restore(type, error, traceback);
}

static void Op_dealloc(Op *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    if (op->progress == OP_NEW) {
        warn_never_awaited(op);
    }
    if (op->progress != OP_DONE) {
        finish(op);
    }
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

static PyMethodDef op_methods[] = {
    {"send", (PyCFunction)Op_send, METH_O, NULL},
    {"throw", (PyCFunction)Op_throw, METH_VARARGS, NULL},
    {"close", (PyCFunction)Op_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot op_slots[] = {
    {Py_tp_doc, "An operation of a stream, which is awaited once."},
    {Py_tp_dealloc, Op_dealloc},
    {Py_tp_traverse, Op_traverse},
    {Py_tp_clear, Op_clear},
    {Py_tp_repr, Op_repr},
    {Py_tp_methods, op_methods},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, Op_next},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, send_op},
    {0, NULL},
};

static PyType_Spec op_spec = {
    .name = "prefork._native.Op",
    .basicsize = sizeof(Op),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = op_slots,
};

int op_setup(PyObject *module, State *state)
{
    state->OpType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &op_spec, NULL);
    return state->OpType == NULL ? -1 : PyModule_AddType(module, state->OpType);
}
