/* The type of a stream: its attributes as Python sees them, its construction and its collection. */
#include "stream.h"

#include <stddef.h>
#include <structmember.h>
#include <unistd.h>

/* --- attributes ----------------------------------------------------------------------------------------------------*/

/* An object or NULL, at the offset that the closure tells; NULL is None in Python. */
static PyObject *get_optional(Stream *stream, void *offset)
{
    PyObject *value = *(PyObject **)((char *)stream + (size_t)offset);
    return Py_NewRef(value == NULL ? Py_None : value);
}

static int set_optional(Stream *stream, PyObject *value, void *offset)
{
    PyObject **field = (PyObject **)((char *)stream + (size_t)offset);
    Py_XSETREF(*field, value == NULL || value == Py_None ? NULL : Py_NewRef(value));
    return 0;
}

/* Return the index of `member` among the members of an enum, or -1 with ValueError. */
static int index_of(PyObject *member, PyObject *const *members, int count)
{
    for (int i = 0; i < count; i++) {
        if (members[i] == member) {
            return i;
        }
    }
    PyErr_Format(PyExc_ValueError, "%R is no state of a stream", member == NULL ? Py_None : member);
    return -1;
}

static PyObject *get_phase(Stream *stream, void *Py_UNUSED(closure))
{
    return Py_NewRef(stream->state->phases[stream->phase]);
}

static int set_phase(Stream *stream, PyObject *value, void *Py_UNUSED(closure))
{
    int index = index_of(value, stream->state->phases, PHASE_COUNT);
    stream->phase = index < 0 ? stream->phase : (uint8_t)index;
    return index < 0 ? -1 : 0;
}

static PyObject *get_output(Stream *stream, void *Py_UNUSED(closure))
{
    return Py_NewRef(stream->state->outputs[stream->output_state]);
}

static int set_output(Stream *stream, PyObject *value, void *Py_UNUSED(closure))
{
    int index = index_of(value, stream->state->outputs, OUTPUT_COUNT);
    stream->output_state = index < 0 ? stream->output_state : (uint8_t)index;
    return index < 0 ? -1 : 0;
}

static PyObject *get_input(Stream *stream, void *Py_UNUSED(closure))
{
    return Py_NewRef(stream->state->inputs[stream->input_state]);
}

static PyObject *get_engine(Stream *stream, void *Py_UNUSED(closure))
{
    return Py_NewRef(stream->tls == NULL ? Py_None : stream->tls->engine);
}

static int set_engine(Stream *stream, PyObject *engine, void *Py_UNUSED(closure))
{
    if (engine == NULL || engine == Py_None) {
        tls_clear(stream);
        return 0;
    }
    return tls_set_engine(stream, engine);
}

/* Make the socket object. Of a connection that is closed it is a closed one. */
static PyObject *make_sock(Stream *stream)
{
    State *state = stream->state;
    PyObject *none = PyTuple_New(0);
    PyObject *kwargs = stream->fd >= 0 ? Py_BuildValue("{si}", "fileno", stream->fd) : PyDict_New();
    PyObject *sock = none == NULL || kwargs == NULL ? NULL : PyObject_Call(state->names.socket_class, none, kwargs);
    Py_XDECREF(none);
    Py_XDECREF(kwargs);
    PyObject *done = NULL;
    if (sock != NULL && stream->fd >= 0) {
        done = PyObject_CallMethod(sock, "setblocking", "O", Py_False);
    } else if (sock != NULL) {
        done = PyObject_CallMethodNoArgs(sock, state->names.close);
    }
    if (done == NULL) {
        Py_CLEAR(sock);
    }
    Py_XDECREF(done);
    return sock;
}

static PyObject *get_sock(Stream *stream, void *Py_UNUSED(closure))
{
    if (stream->sock == NULL) {
        stream->sock = make_sock(stream);
    }
    return Py_XNewRef(stream->sock);
}

static PyObject *get_buffered(Stream *stream, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(buffer_size(&stream->input));
}

static PyObject *get_backlog_size(Stream *stream, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(stream_backlog_size(stream));
}

static PyObject *get_backlog_memory(Stream *stream, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(stream->backlog == NULL ? 0 : stream->backlog->memory);
}

static PyObject *get_unsent(Stream *stream, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(stream->corked.size + stream_backlog_size(stream));
}

#define OFFSET(field) ((void *)offsetof(Stream, field))

static PyGetSetDef stream_getset[] = {
    {"_error", (getter)get_optional, (setter)set_optional, NULL, OFFSET(error)},
    {"_timeouts", (getter)get_optional, (setter)set_optional, NULL, OFFSET(timeouts)},
    {"_on_closed", (getter)get_optional, (setter)set_optional, NULL, OFFSET(on_closed)},
    {"_writers", (getter)get_optional, (setter)set_optional, NULL, OFFSET(writers)},
    {"_phase", (getter)get_phase, (setter)set_phase, NULL, NULL},
    {"_output", (getter)get_output, (setter)set_output, NULL, NULL},
    {"_input", (getter)get_input, NULL, NULL, NULL},
    {"_sock", (getter)get_sock, NULL, NULL, NULL},
    {"_engine", (getter)get_engine, (setter)set_engine, NULL, NULL},
    {"_buffered", (getter)get_buffered, NULL, NULL, NULL},
    {"_backlog_size", (getter)get_backlog_size, NULL, NULL, NULL},
    {"_backlog_memory", (getter)get_backlog_memory, NULL, NULL, NULL},
    {"unsent", (getter)get_unsent, NULL, "Bytes that were written and that the kernel has not taken.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef stream_members[] = {
    {"_shared", T_OBJECT_EX, offsetof(Stream, shared), READONLY, NULL},
    {"_address", T_OBJECT_EX, offsetof(Stream, address), 0, NULL},
    {"_fd", T_INT, offsetof(Stream, fd), READONLY, NULL},
    {"_accepted_at", T_DOUBLE, offsetof(Stream, accepted_at), READONLY, NULL},
    {"_received", T_ULONGLONG, offsetof(Stream, received), READONLY, NULL},
    {"_sent", T_ULONGLONG, offsetof(Stream, sent), READONLY, NULL},
    {"_idle_since", T_DOUBLE, offsetof(Stream, idle_since), 0, NULL},
    {"_socket_exposed", T_BOOL, offsetof(Stream, exposed), 0, NULL},
    {"_retrying", T_BOOL, offsetof(Stream, retrying), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Stream, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

/* --- the type ------------------------------------------------------------------------------------------------------*/

static PyObject *Stream_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Stream *stream = (Stream *)type->tp_alloc(type, 0);
    if (stream == NULL) {
        return NULL;
    }
    stream->state = state_of(type);
    stream->phase = PHASE_CLOSED;
    stream->input_state = INPUT_FIN;
    stream->output_state = OUTPUT_BROKEN;
    stream->fd = -1;
    queue_init(&stream->corked);
    return (PyObject *)stream;
}

static int Stream_init(Stream *stream, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    State *state = stream->state;
    PyObject *sock, *address, *shared;
    if (!PyArg_ParseTuple(args, "OOO:Stream", &sock, &address, &shared)) {
        return -1;
    }
    if (stream->poller != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a stream is made once");
        return -1;
    }
    PyObject *poller = PyObject_GetAttr(shared, state->names.poller);
    if (poller == NULL || !Py_IS_TYPE(poller, state->PollerType)) {
        if (poller != NULL) {
            PyErr_Format(PyExc_TypeError, "a compiled stream needs a compiled poller, not %R", poller);
            Py_DECREF(poller);
        }
        return -1;
    }
    stream->poller = (Poller *)poller;
    int fd = PyObject_AsFileDescriptor(sock);
    if (fd < 0) {
        return -1;
    }
    stream->address = Py_NewRef(address);
    stream->shared = Py_NewRef(shared);
    stream->accepted_at = now();
    stream->idle_since = -1.0;
    stream->io_left = MAX_IO_BEFORE_YIELD;
    /* A receive of less than it asked for has emptied a TCP socket (epoll(7)). A unix socket may stop earlier. */
    stream->is_tcp = stream->short_read_empties = PyTuple_CheckExact(address);
    /* The last that can fail: the kernel may have no room for one more registration. */
    if (poller_add(stream->poller, fd, (PyObject *)stream) < 0) {
        return -1;
    }
    /* The object is dropped: it costs 112 bytes of each connection, and its close more than close(2). */
    PyObject *detached = PyObject_CallMethodNoArgs(sock, state->names.detach);
    if (detached == NULL) {
        return -1;
    }
    Py_DECREF(detached);
    stream->fd = fd;
    stream->phase = PHASE_OPEN;
    stream->output_state = OUTPUT_OPEN;
    /* What the peer may have sent already is reported by the registration: no receive in vain before it. */
    stream->input_state = INPUT_EMPTY;
    return 0;
}

static int Stream_traverse(Stream *stream, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(stream));
    Py_VISIT(stream->poller);
    Py_VISIT(stream->shared);
    Py_VISIT(stream->sock);
    Py_VISIT(stream->address);
    Py_VISIT(stream->error);
    Py_VISIT(stream->timeouts);
    Py_VISIT(stream->on_closed);
    Py_VISIT(stream->writers);
    Py_VISIT(stream->reader);
    return tls_traverse(stream->tls, visit, arg);
}

static int Stream_clear(Stream *stream)
{
    Py_CLEAR(stream->poller);
    Py_CLEAR(stream->shared);
    if (stream->sock != NULL) {
        stream->fd = -1;
        Py_CLEAR(stream->sock);
    }
    Py_CLEAR(stream->address);
    Py_CLEAR(stream->error);
    Py_CLEAR(stream->timeouts);
    Py_CLEAR(stream->on_closed);
    Py_CLEAR(stream->writers);
    Py_CLEAR(stream->reader);
    tls_clear(stream);
    return 0;
}

static void Stream_dealloc(Stream *stream)
{
    PyTypeObject *type = Py_TYPE(stream);
    PyObject_GC_UnTrack(stream);
    if (stream->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)stream);
    }
    (void)Stream_clear(stream);
    queue_clear(&stream->corked);
    if (stream->backlog != NULL) {
        queue_clear(stream->backlog);
        PyMem_Free(stream->backlog);
    }
    buffer_clear(&stream->input);
    if (stream->fd >= 0 && stream->sock == NULL) {
        (void)close(stream->fd);
    }
    type->tp_free(stream);
    Py_DECREF(type);
}

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, "The compiled core of a stream: see prefork.Stream, and prefork.net.receiving."},
    {Py_tp_new, Stream_new},
    {Py_tp_init, Stream_init},
    {Py_tp_dealloc, Stream_dealloc},
    {Py_tp_traverse, Stream_traverse},
    {Py_tp_clear, Stream_clear},
    {Py_tp_methods, stream_methods},
    {Py_tp_members, stream_members},
    {Py_tp_getset, stream_getset},
    {Py_am_aiter, PyObject_SelfIter},
    {Py_am_anext, stream_next_line},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "prefork._native.Stream",
    .basicsize = sizeof(Stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = stream_slots,
};

int stream_setup(PyObject *module, State *state)
{
    state->StreamType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &stream_spec, NULL);
    return state->StreamType == NULL ? -1 : PyModule_AddType(module, state->StreamType);
}
