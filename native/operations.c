/* What each operation of a stream does when it looks: take what is there, receive, or say what to wait for.
 *
 * The meaning is that of the coroutines in src/prefork/net/receiving.py and sending.py. Bytes stay in the stream's
 * buffer until an operation is complete, so one that is cancelled loses none.
 */
#include "op.h"

#include <string.h>

/* --- reading -------------------------------------------------------------------------------------------------------*/

/* The end of input: b"" or the error that broke the connection. */
static Look end_result(Stream *stream, PyObject **result)
{
    if (stream->error != NULL) {
        return stream_raise_failure(stream);
    }
    *result = Py_NewRef(stream->state->names.empty);
    return LOOK_DONE;
}

static Look take(Stream *stream, size_t size, PyObject **result)
{
    *result = buffer_take(&stream->input, size);
    return *result == NULL ? LOOK_ERROR : LOOK_DONE;
}

/* Raise `error` (stolen; NULL if it could not be made), marked as one of this connection: see net/own_errors.py. */
static Look raise_own(Stream *stream, PyObject *error)
{
    if (error != NULL && stream_call_hook(stream, stream->state->names._raised, error) == 0) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    }
    Py_XDECREF(error);
    return LOOK_ERROR;
}

static Look raise_incomplete(Stream *stream, PyObject *expected)
{
    PyObject *partial = buffer_take(&stream->input, buffer_size(&stream->input));
    if (partial != NULL && expected != NULL) {
        PyObject *error = PyObject_CallFunctionObjArgs(stream->state->names.IncompleteError, partial, expected, NULL);
        raise_own(stream, error);
    }
    Py_XDECREF(partial);
    return LOOK_ERROR;
}

static Look look_read(Op *op, PyObject **result)
{
    Stream *stream = op->stream;
    if (op->size == 0) {
        *result = Py_NewRef(stream->state->names.empty);
        return LOOK_DONE;
    }
    for (;;) {
        size_t size = buffer_size(&stream->input);
        if (size > 0) {
            return take(stream, size < op->size ? size : op->size, result);
        }
        if (stream_has_ended(stream)) {
            return end_result(stream, result);
        }
        if (!stream_may_receive(stream)) {
            return LOOK_INPUT;
        }
        *result = stream_receive_bytes(stream, op->size);
        if (*result != NULL) {
            return LOOK_DONE;
        }
        if (PyErr_Occurred()) {
            return LOOK_ERROR;
        }
    }
}

static Look look_read_all(Op *op, PyObject **result)
{
    Stream *stream = op->stream;
    while (!stream_has_ended(stream)) {
        int filled = stream_fill(stream, MAX_RECEIVE_SIZE);
        if (filled < 0) {
            return LOOK_ERROR;
        }
        if (!filled && !stream_has_ended(stream)) {
            return LOOK_INPUT;
        }
    }
    if (stream->error != NULL) {
        return stream_raise_failure(stream);
    }
    return take(stream, buffer_size(&stream->input), result);
}

/* Look at the end of an input that does not have what is wanted. */
static Look look_ended(Op *op)
{
    Stream *stream = op->stream;
    if (stream->error != NULL) {
        return stream_raise_failure(stream);
    }
    PyObject *expected = op->kind == OP_READEXACTLY ? PyLong_FromSize_t(op->size) : Py_NewRef(Py_None);
    Look look = raise_incomplete(stream, expected);
    Py_XDECREF(expected);
    return look;
}

static Look look_readexactly(Op *op, PyObject **result)
{
    Stream *stream = op->stream;
    while (buffer_size(&stream->input) < op->size) {
        int filled = stream_fill(stream, op->size - buffer_size(&stream->input));
        if (filled < 0) {
            return LOOK_ERROR;
        }
        if (!filled) {
            return stream_has_ended(stream) ? look_ended(op) : LOOK_INPUT;
        }
    }
    return take(stream, op->size, result);
}

/* --- searching -----------------------------------------------------------------------------------------------------*/

static Look raise_overrun(Stream *stream, bool found, size_t consumed)
{
    const char *message = found ? "Separator is found, but chunk is longer than limit"
                                : "Separator is not found, and chunk exceed the limit";
    PyObject *error = PyObject_CallFunction(stream->state->names.OverrunError, "sn", message, (Py_ssize_t)consumed);
    return raise_own(stream, error);
}

/* Find the first of `separator` behind `from`. Return where it begins, or -1. */
static Py_ssize_t find(const Buffer *buffer, size_t from, PyObject *separator)
{
    const char *data = buffer_bytes(buffer);
    size_t size = buffer_size(buffer), length = (size_t)PyBytes_GET_SIZE(separator);
    if (from >= size) {
        return -1;
    }
    const char *at = memmem(data + from, size - from, PyBytes_AS_STRING(separator), length);
    return at == NULL ? -1 : at - data;
}

/* Find the separator that ends first. Return where it begins, or -1; `*end` is where it ends. */
static Py_ssize_t find_first(const Buffer *buffer, size_t from, PyObject *separators, size_t *end, size_t *longest)
{
    Py_ssize_t first = -1, count = PyTuple_Check(separators) ? PyTuple_GET_SIZE(separators) : 1;
    *longest = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *each = PyTuple_Check(separators) ? PyTuple_GET_ITEM(separators, i) : separators;
        size_t length = (size_t)PyBytes_GET_SIZE(each);
        Py_ssize_t at = find(buffer, from, each);
        *longest = length > *longest ? length : *longest;
        if (at >= 0 && (first < 0 || (size_t)at + length < *end)) {
            first = at;
            *end = (size_t)at + length;
        }
    }
    return first;
}

static Look look_readuntil(Op *op, PyObject **result)
{
    Stream *stream = op->stream;
    size_t limit = stream->poller->limits.read_limit;
    for (;;) {
        size_t end = 0, longest = 0, size = buffer_size(&stream->input);
        Py_ssize_t at = find_first(&stream->input, op->searched, op->argument, &end, &longest);
        if (at >= 0) {
            return (size_t)at > limit ? raise_overrun(stream, true, (size_t)at) : take(stream, end, result);
        }
        op->searched = size >= longest ? size - longest + 1 : 0;
        /* What has arrived since an earlier LimitOverrunError is looked at, up to a bound. */
        bool overrun = op->searched > limit;
        if (overrun && (op->received || size > 2 * limit)) {
            return raise_overrun(stream, false, op->searched);
        }
        op->received = true;
        int filled = stream_fill(stream, 0);
        if (filled < 0) {
            return LOOK_ERROR;
        }
        if (!filled && overrun) {
            return raise_overrun(stream, false, op->searched);
        }
        if (!filled) {
            return stream_has_ended(stream) ? look_ended(op) : LOOK_INPUT;
        }
    }
}

/* Discard what was received of an overlong line, as asyncio does, and raise LineTooLongError. */
static Look reject_long_line(Stream *stream, const char *newline)
{
    size_t size = newline == NULL ? buffer_size(&stream->input)
                                  : (size_t)(newline - buffer_bytes(&stream->input)) + 1;
    PyObject *discarded = buffer_take(&stream->input, size);
    if (discarded == NULL) {
        return LOOK_ERROR;
    }
    Py_DECREF(discarded);
    const char *message = newline == NULL ? "Separator is not found, and chunk exceed the limit"
                                          : "Separator is found, but chunk is longer than limit";
    return raise_own(stream, PyObject_CallFunction(stream->state->names.LineError, "s", message));
}

static Look look_readline(Op *op, PyObject **result)
{
    Stream *stream = op->stream;
    size_t limit = stream->poller->limits.read_limit;
    for (;;) {
        size_t size = buffer_size(&stream->input);
        const char *data = buffer_bytes(&stream->input), *newline = NULL;
        if (size > op->searched) {
            newline = memchr(data + op->searched, '\n', size - op->searched);
        }
        if (newline != NULL && (size_t)(newline - data) <= limit) {
            return take(stream, (size_t)(newline - data) + 1, result);
        }
        if (size > limit) {
            return reject_long_line(stream, newline);
        }
        op->searched = size;
        int filled = stream_fill(stream, 0);
        if (filled < 0) {
            return LOOK_ERROR;
        }
        if (filled) {
            continue;
        }
        if (!stream_has_ended(stream)) {
            return LOOK_INPUT;
        }
        if (stream->error != NULL) {
            return stream_raise_failure(stream);
        }
        if (op->kind == OP_NEXT_LINE && buffer_size(&stream->input) == 0) {
            PyErr_SetNone(PyExc_StopAsyncIteration);
            return LOOK_ERROR;
        }
        return take(stream, buffer_size(&stream->input), result);
    }
}

/* Bytes as they come over the wire, for a handshake of TLS. Looks at once, without an event: a connection counts for
 * the limit of handshakes only when its first bytes are there, and accepting would run ahead of that by a batch. */
static Look look_read_raw(Op *op, PyObject **result)
{
    Stream *stream = op->stream;
    if (op->searched == 0 && stream->input_state == INPUT_EMPTY) {
        stream->input_state = INPUT_READABLE;
    }
    op->searched = 1;
    while (stream->input_state == INPUT_READABLE && stream->io_left > 0) {
        size_t received = 0;
        Received what = stream_receive(stream, stream->poller->block, RECEIVE_SIZE, &received);
        if (what == RECEIVED_DATA) {
            *result = PyBytes_FromStringAndSize(stream->poller->block, (Py_ssize_t)received);
            return *result == NULL ? LOOK_ERROR : LOOK_DONE;
        }
        if (what == RECEIVED_ERROR) {
            return LOOK_ERROR;
        }
    }
    if (!stream_has_ended(stream)) {
        return LOOK_INPUT;
    }
    if (stream->error != NULL) {
        return stream_raise_failure(stream);
    }
    PyErr_SetString(PyExc_ConnectionResetError, "the peer left");
    return LOOK_ERROR;
}

/* --- writing -------------------------------------------------------------------------------------------------------*/

/* Let others run once: yield None, as asyncio.sleep(0) does. */
static Look let_others_run(Op *op, PyObject **result)
{
    op->yielded = true;
    *result = Py_NewRef(Py_None);
    return LOOK_YIELD;
}

int op_set_writer(Op *op, bool waits)
{
    Stream *stream = op->stream;
    PyObject *before = stream->writers;
    Py_ssize_t count = before == NULL ? 0 : PyTuple_GET_SIZE(before);
    PyObject *list = PyList_New(0);
    int failed = list == NULL;
    for (Py_ssize_t i = 0; !failed && i < count; i++) {
        PyObject *each = PyTuple_GET_ITEM(before, i);
        failed = each != op->argument && PyList_Append(list, each) < 0;
    }
    failed = failed || (waits && PyList_Append(list, op->argument) < 0);
    PyObject *writers = failed ? NULL : PyList_AsTuple(list);
    Py_XDECREF(list);
    if (writers == NULL) {
        return -1;
    }
    if (PyTuple_GET_SIZE(writers) == 0) {
        Py_CLEAR(writers);
    }
    Py_XSETREF(stream->writers, writers);
    return 0;
}

static Look wait_for_low_water(Op *op, PyObject **result)
{
    Stream *stream = op->stream;
    if (op->argument == NULL) {
        op->argument = (PyObject *)waiter_new(stream->state, stream->poller->loop);
        if (op->argument == NULL || op_set_writer(op, true) < 0) {
            Py_CLEAR(op->argument);
            return LOOK_ERROR;
        }
    }
    ((Waiter *)op->argument)->future_blocking = true;
    *result = Py_NewRef(op->argument);
    return LOOK_YIELD;
}

static Look look_drain(Op *op, PyObject **result)
{
    Stream *stream = op->stream;
    if (stream_flush(stream) < 0) {
        return LOOK_ERROR;
    }
    if (!op->yielded) {
        size_t mark = op->argument == NULL ? stream_high_water(stream) : stream_low_water(stream);
        if (stream_backlog_size(stream) > mark) {
            return wait_for_low_water(op, result);
        }
        if (op->argument != NULL) {
            if (op_set_writer(op, false) < 0) {
                return LOOK_ERROR;
            }
            Py_CLEAR(op->argument);
        }
    }
    if (stream->output_state == OUTPUT_BROKEN || stream->phase != PHASE_OPEN) {
        /* Let others run, otherwise a handler that ignores this error would block the loop. */
        return op->yielded ? stream_raise_failure(stream) : let_others_run(op, result);
    }
    if (!op->yielded) {
        stream->io_left -= stream->io_left > 0;
        if (stream->io_left == 0) {
            stream->io_left = MAX_IO_BEFORE_YIELD;
            return let_others_run(op, result);
        }
    }
    *result = Py_NewRef(Py_None);
    return LOOK_DONE;
}

static Look look_send(Op *op, PyObject **result)
{
    int failed = stream_write(op->stream, op->argument);
    Py_CLEAR(op->argument);
    op->kind = OP_DRAIN;
    return failed ? LOOK_ERROR : look_drain(op, result);
}

Look op_look(Op *op, PyObject **result)
{
    /* While too much is unsent even what has been received waits: otherwise a burst of requests with large answers
     * would have its honest peer aborted. */
    if (op->kind < OP_READ_RAW && stream_reads_paused(op->stream) && op->stream->phase == PHASE_OPEN) {
        return LOOK_RESUMED;
    }
    switch ((OpKind)op->kind) {
    case OP_READ:
        return look_read(op, result);
    case OP_READ_ALL:
        return look_read_all(op, result);
    case OP_READEXACTLY:
        return look_readexactly(op, result);
    case OP_READUNTIL:
        return look_readuntil(op, result);
    case OP_READLINE:
    case OP_NEXT_LINE:
        return look_readline(op, result);
    case OP_READ_RAW:
        return look_read_raw(op, result);
    case OP_DRAIN:
        return look_drain(op, result);
    case OP_SEND:
        return look_send(op, result);
    }
    Py_UNREACHABLE();
}
