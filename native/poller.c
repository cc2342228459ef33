/* Poller: reports the readiness of all connections of one server, inside any asyncio loop.
 *
 * The meaning is that of src/prefork/net/poller.py, which explains edge-triggered nesting. Here an event costs no
 * Python object, and a stream's method is called directly.
 *
 * An event carries its descriptor and the generation of its registration, never a pointer: a child that was forked in
 * C may hold a copy of a closed descriptor, whose events go on coming.
 */
#include "poller.h"

#include "stream.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/* Connections served in one round. Timers, accepting and the service's own tasks run after each round. */
#define MAX_EVENTS 256
#define INTEREST (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET)

/* --- descriptors ---------------------------------------------------------------------------------------------------*/

static int reserve_slot(Poller *poller, int fd)
{
    if ((size_t)fd < poller->slot_count) {
        return 0;
    }
    size_t count = poller->slot_count == 0 ? 64 : poller->slot_count;
    while (count <= (size_t)fd) {
        count *= 2;
    }
    Slot *slots = PyMem_Realloc(poller->slots, count * sizeof(Slot));
    if (slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memset(slots + poller->slot_count, 0, (count - poller->slot_count) * sizeof(Slot));
    poller->slots = slots;
    poller->slot_count = count;
    return 0;
}

int poller_add(Poller *poller, int fd, PyObject *item)
{
    if (fd < 0 || reserve_slot(poller, fd) < 0) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError, "a descriptor cannot be %d", fd);
        }
        return -1;
    }
    uint32_t generation = ++poller->generation;
    struct epoll_event event = {.events = INTEREST, .data.u64 = (uint64_t)generation << 32 | (uint32_t)fd};
    if (epoll_ctl(poller->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    /* A handler may have closed another connection's socket itself: the number is this one's now. */
    Py_XSETREF(poller->slots[fd].item, Py_NewRef(item));
    poller->slots[fd].generation = generation;
    return 0;
}

void poller_remove(Poller *poller, int fd, PyObject *item, bool duplicated)
{
    if (fd < 0 || (size_t)fd >= poller->slot_count || poller->slots[fd].item != item) {
        return;
    }
    poller->slots[fd].item = NULL;
    /* The kernel removes a descriptor when the last copy of it is closed (epoll(7), question 6). An error means that a
     * handler has closed the socket itself. */
    if (duplicated && poller->epoll >= 0) {
        (void)epoll_ctl(poller->epoll, EPOLL_CTL_DEL, fd, NULL);
    }
    Py_DECREF(item);
}

/* --- rounds --------------------------------------------------------------------------------------------------------*/

/* Take the current exception. Keep one connection's failure from the others of the round, because their edges are not
 * reported again: tell the loop, or keep SystemExit and KeyboardInterrupt for the end of the round. */
static void report_exception(Poller *poller)
{
    State *state = poller->state;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(error, traceback);
    }
    Py_XDECREF(traceback);
    Py_XDECREF(type);
    if (!PyObject_TypeCheck(error, (PyTypeObject *)PyExc_Exception)) {
        Py_XSETREF(poller->escaped, error);
        return;
    }
    PyObject *context = Py_BuildValue("{sssO}", "message", "event of a connection failed", "exception", error);
    PyObject *result = NULL;
    if (context != NULL) {
        result = PyObject_CallMethodOneArg(poller->loop, state->names.call_exception_handler, context);
    }
    if (result == NULL) {
        PyErr_WriteUnraisable(error);
    }
    Py_XDECREF(result);
    Py_XDECREF(context);
    Py_DECREF(error);
}

static int flush_item(Poller *poller, PyObject *item)
{
    if (PyObject_TypeCheck(item, poller->state->StreamType)) {
        return stream_flush((Stream *)item);
    }
    PyObject *result = PyObject_CallMethodNoArgs(item, poller->state->names._flush);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static void flush_corked(Poller *poller)
{
    PyObject *items = poller->corked;
    PyObject *next = PyList_New(0);
    if (next == NULL) {
        report_exception(poller);
        return;
    }
    poller->corked = next;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(items); i++) {
        if (flush_item(poller, PyList_GET_ITEM(items, i)) < 0) {
            report_exception(poller);
        }
    }
    Py_DECREF(items);
}

int poller_cork(Poller *poller, PyObject *item)
{
    if (!poller->in_round && PyList_GET_SIZE(poller->corked) == 0) {
        if (call_method_soon(poller->state, poller->loop, (PyObject *)poller, poller->state->names._flush) < 0) {
            return -1;
        }
    }
    return PyList_Append(poller->corked, item);
}

static int call_on_ready(Poller *poller, PyObject *item, uint32_t mask)
{
    if (PyObject_TypeCheck(item, poller->state->StreamType)) {
        return stream_on_ready((Stream *)item, mask);
    }
    PyObject *number = PyLong_FromUnsignedLong(mask);
    PyObject *result = number == NULL ? NULL : PyObject_CallMethodOneArg(item, poller->state->names._on_ready, number);
    Py_XDECREF(number);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *raise_escaped(Poller *poller)
{
    PyObject *error = poller->escaped;
    poller->escaped = NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
    return NULL;
}

static PyObject *Poller_round(Poller *poller, PyObject *Py_UNUSED(none))
{
    struct epoll_event events[MAX_EVENTS];
    /* It does not wait, so the GIL is kept. */
    int count = epoll_wait(poller->epoll, events, MAX_EVENTS, 0);
    if (count < 0) {
        if (errno == EINTR || poller->epoll < 0) {
            Py_RETURN_NONE;
        }
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    poller->in_round = true;
    for (int i = 0; i < count; i++) {
        uint32_t fd = (uint32_t)events[i].data.u64;
        /* Looked up for each event, because an earlier one of this round may have closed this connection. */
        if (fd >= poller->slot_count || poller->slots[fd].item == NULL ||
            poller->slots[fd].generation != (uint32_t)(events[i].data.u64 >> 32)) {
            continue;
        }
        PyObject *item = Py_NewRef(poller->slots[fd].item);
        if (call_on_ready(poller, item, events[i].events) < 0) {
            report_exception(poller);
        }
        Py_DECREF(item);
    }
    poller->in_round = false;
    if (PyList_GET_SIZE(poller->corked) > 0) {
        flush_corked(poller);
    }
    if (poller->escaped != NULL) {
        return raise_escaped(poller);
    }
    Py_RETURN_NONE;
}

static PyObject *Poller_flush(Poller *poller, PyObject *Py_UNUSED(none))
{
    flush_corked(poller);
    if (poller->escaped != NULL && !poller->in_round) {
        return raise_escaped(poller);
    }
    Py_RETURN_NONE;
}

/* --- methods -------------------------------------------------------------------------------------------------------*/

static PyObject *Poller_add(Poller *poller, PyObject *args)
{
    int fd;
    PyObject *item;
    if (!PyArg_ParseTuple(args, "iO:add", &fd, &item) || poller_add(poller, fd, item) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *Poller_remove(Poller *poller, PyObject *args)
{
    int fd, duplicated;
    PyObject *item;
    if (!PyArg_ParseTuple(args, "iOp:remove", &fd, &item, &duplicated)) {
        return NULL;
    }
    poller_remove(poller, fd, item, duplicated);
    Py_RETURN_NONE;
}

static PyObject *Poller_arm(PyObject *Py_UNUSED(poller), PyObject *Py_UNUSED(args))
{
    /* An edge-triggered epoll reports everything unasked. */
    Py_RETURN_NONE;
}

static PyObject *Poller_reserve(Poller *poller, PyObject *arg)
{
    int fd = PyObject_AsFileDescriptor(arg);
    /* epoll reports errors and hang-ups unasked: once, and the generation 0 belongs to no item. */
    struct epoll_event event = {.events = EPOLLET, .data.u64 = (uint32_t)fd};
    if (fd < 0) {
        return NULL;
    }
    if (epoll_ctl(poller->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *Poller_release(Poller *poller, PyObject *arg)
{
    int fd = PyObject_AsFileDescriptor(arg);
    if (fd < 0) {
        PyErr_Clear();
    } else {
        (void)epoll_ctl(poller->epoll, EPOLL_CTL_DEL, fd, NULL);
    }
    Py_RETURN_NONE;
}

static PyObject *Poller_cork(Poller *poller, PyObject *item)
{
    if (poller_cork(poller, item) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static void forget_all(Poller *poller)
{
    for (size_t fd = 0; fd < poller->slot_count; fd++) {
        Py_CLEAR(poller->slots[fd].item);
    }
}

static PyObject *Poller_close(Poller *poller, PyObject *Py_UNUSED(none))
{
    if (poller->epoll < 0) {
        Py_RETURN_NONE;
    }
    int fd = poller->epoll;
    poller->epoll = -1;
    forget_all(poller);
    PyObject *closed = PyObject_CallMethod(poller->loop, "is_closed", NULL);
    int is_closed = closed == NULL ? -1 : PyObject_IsTrue(closed);
    Py_XDECREF(closed);
    PyObject *removed = is_closed == 0 ? PyObject_CallMethod(poller->loop, "remove_reader", "i", fd) : NULL;
    Py_XDECREF(removed);
    close(fd);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* --- the type ------------------------------------------------------------------------------------------------------*/

static int read_limit(PyObject *limits, const char *name, size_t *value)
{
    PyObject *number = PyObject_GetAttrString(limits, name);
    if (number == NULL) {
        return -1;
    }
    *value = PyLong_AsSize_t(number);
    Py_DECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

static int set_limits(Poller *poller, PyObject *limits)
{
    if (read_limit(limits, "read_limit", &poller->limits.read_limit) < 0 ||
        read_limit(limits, "flush_at", &poller->limits.flush_at) < 0 ||
        read_limit(limits, "drain_above", &poller->limits.drain_above) < 0 ||
        read_limit(limits, "pause_reads_above", &poller->limits.pause_reads_above) < 0) {
        return -1;
    }
    return 0;
}

/* Take other limits, which hold from now on. */
static PyObject *Poller_set_limits(Poller *poller, PyObject *limits)
{
    if (set_limits(poller, limits) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Count in this memory, which other processes may read: two words. */
static int set_traffic(Poller *poller, PyObject *memory)
{
    if (PyObject_GetBuffer(memory, &poller->shared, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    if (poller->shared.len != 2 * (Py_ssize_t)sizeof(int64_t)) {
        PyErr_SetString(PyExc_ValueError, "traffic must be two words of memory");
        return -1;
    }
    poller->traffic = poller->shared.buf;
    return 0;
}

static int Poller_init(Poller *poller, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", "limits", "traffic", NULL};
    PyObject *loop, *limits, *traffic = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:Poller", names, &loop, &limits, &traffic)) {
        return -1;
    }
    if (poller->loop != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a poller is made once");
        return -1;
    }
    if (set_limits(poller, limits) < 0 || (traffic != NULL && set_traffic(poller, traffic) < 0)) {
        return -1;
    }
    poller->loop = Py_NewRef(loop);
    poller->corked = PyList_New(0);
    poller->block = PyMem_Malloc(RECEIVE_SIZE);
    if (poller->corked == NULL || poller->block == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_NoMemory();
        }
        return -1;
    }
    poller->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (poller->epoll < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    PyObject *round = PyObject_GetAttrString((PyObject *)poller, "_round");
    PyObject *added = round == NULL ? NULL : PyObject_CallMethod(loop, "add_reader", "iO", poller->epoll, round);
    Py_XDECREF(round);
    Py_XDECREF(added);
    return added == NULL ? -1 : 0;
}

static PyObject *Poller_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Poller *poller = (Poller *)type->tp_alloc(type, 0);
    if (poller != NULL) {
        poller->state = state_of(type);
        poller->epoll = -1;
        poller->traffic = poller->own_traffic;
    }
    return (PyObject *)poller;
}

static int Poller_traverse(Poller *poller, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(poller));
    Py_VISIT(poller->loop);
    Py_VISIT(poller->corked);
    Py_VISIT(poller->escaped);
    Py_VISIT(poller->shared.obj);
    for (size_t fd = 0; fd < poller->slot_count; fd++) {
        Py_VISIT(poller->slots[fd].item);
    }
    return 0;
}

static int Poller_clear(Poller *poller)
{
    Py_CLEAR(poller->loop);
    Py_CLEAR(poller->corked);
    Py_CLEAR(poller->escaped);
    forget_all(poller);
    return 0;
}

static void Poller_dealloc(Poller *poller)
{
    PyTypeObject *type = Py_TYPE(poller);
    PyObject_GC_UnTrack(poller);
    (void)Poller_clear(poller);
    if (poller->epoll >= 0) {
        close(poller->epoll);
    }
    PyMem_Free(poller->slots);
    PyMem_Free(poller->block);
    PyBuffer_Release(&poller->shared);
    type->tp_free(poller);
    Py_DECREF(type);
}

static PyObject *Poller_get_edge(PyObject *Py_UNUSED(poller), void *Py_UNUSED(closure))
{
    Py_RETURN_TRUE;
}

static PyMethodDef poller_methods[] = {
    {"add", (PyCFunction)Poller_add, METH_VARARGS, NULL},
    {"remove", (PyCFunction)Poller_remove, METH_VARARGS, NULL},
    {"arm", Poller_arm, METH_VARARGS, NULL},
    {"reserve", (PyCFunction)Poller_reserve, METH_O, NULL},
    {"release", (PyCFunction)Poller_release, METH_O, NULL},
    {"cork", (PyCFunction)Poller_cork, METH_O, NULL},
    {"close", (PyCFunction)Poller_close, METH_NOARGS, NULL},
    {"set_limits", (PyCFunction)Poller_set_limits, METH_O, NULL},
    {"_round", (PyCFunction)Poller_round, METH_NOARGS, NULL},
    {"_flush", (PyCFunction)Poller_flush, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef poller_getset[] = {
    {"edge", Poller_get_edge, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot poller_slots[] = {
    {Py_tp_doc, "The poller of one server's connections: see prefork.net.poller."},
    {Py_tp_new, Poller_new},
    {Py_tp_init, Poller_init},
    {Py_tp_dealloc, Poller_dealloc},
    {Py_tp_traverse, Poller_traverse},
    {Py_tp_clear, Poller_clear},
    {Py_tp_methods, poller_methods},
    {Py_tp_getset, poller_getset},
    {0, NULL},
};

static PyType_Spec poller_spec = {
    .name = "prefork._native.Poller",
    .basicsize = sizeof(Poller),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = poller_slots,
};

int poller_setup(PyObject *module, State *state)
{
    state->PollerType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &poller_spec, NULL);
    return state->PollerType == NULL ? -1 : PyModule_AddType(module, state->PollerType);
}
