/* The methods of a stream: what a handler calls, and what the Python classes above call. Arguments are parsed here; the
 * work is done in the other files. */
#include "stream.h"

#include <sys/socket.h>

/* --- what a handler calls ------------------------------------------------------------------------------------------*/

/* Parse the only parameter of a method, which may be given by its name. 0, or -1 with TypeError; NULL if it is left
 * out. */
static int parse_argument(const char *method, const char *name, PyObject *const *args, Py_ssize_t count,
                          PyObject *keywords, PyObject **value)
{
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_GET_SIZE(keywords);
    *value = NULL;
    if (count + named > 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most 1 argument (%zd given)", method, count + named);
        return -1;
    }
    if (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(keywords, 0), name) != 0) {
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R", method,
                     PyTuple_GET_ITEM(keywords, 0));
        return -1;
    }
    if (count + named == 1) {
        *value = args[0];
    }
    return 0;
}

static int parse_required(const char *method, const char *name, PyObject *const *args, Py_ssize_t count,
                          PyObject *keywords, PyObject **value)
{
    if (parse_argument(method, name, args, count, keywords, value) < 0) {
        return -1;
    }
    if (*value == NULL) {
        PyErr_Format(PyExc_TypeError, "%s() missing 1 required positional argument: '%s'", method, name);
        return -1;
    }
    return 0;
}

static PyObject *Stream_read(Stream *stream, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    PyObject *number;
    if (parse_argument("read", "n", args, count, keywords, &number) < 0) {
        return NULL;
    }
    Py_ssize_t size = number == NULL ? -1 : PyNumber_AsSsize_t(number, PyExc_OverflowError);
    if (size < 0) {
        return PyErr_Occurred() ? NULL : op_new(stream, OP_READ_ALL, 0, NULL);
    }
    return op_new(stream, OP_READ, (size_t)size, NULL);
}

static PyObject *Stream_readexactly(Stream *stream, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    PyObject *number;
    if (parse_required("readexactly", "n", args, count, keywords, &number) < 0) {
        return NULL;
    }
    Py_ssize_t size = PyNumber_AsSsize_t(number, PyExc_OverflowError);
    if (size == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "readexactly size can not be less than zero");
        return NULL;
    }
    return op_new(stream, OP_READEXACTLY, (size_t)size, NULL);
}

/* Return what `readuntil` searches for: bytes, or a tuple of bytes, none of which is empty. */
static PyObject *checked_separator(PyObject *separator)
{
    int filled = PyObject_IsTrue(separator);
    if (filled > 0 && PyTuple_Check(separator)) {
        PyObject *copy = PyTuple_New(PyTuple_GET_SIZE(separator));
        for (Py_ssize_t i = 0; copy != NULL && i < PyTuple_GET_SIZE(separator); i++) {
            PyObject *each = checked_separator(PyTuple_GET_ITEM(separator, i));
            if (each == NULL || PyTuple_SetItem(copy, i, each) < 0) {
                Py_CLEAR(copy);
            }
        }
        return copy;
    }
    if (filled > 0) {
        return PyBytes_CheckExact(separator) ? Py_NewRef(separator) : PyBytes_FromObject(separator);
    }
    if (filled == 0) {
        PyErr_SetString(PyExc_ValueError, PyTuple_Check(separator) ? "Separator should contain at least one element"
                                                                   : "Separator should be at least one-byte string");
    }
    return NULL;
}

static PyObject *Stream_readuntil(Stream *stream, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    PyObject *separator;
    if (parse_argument("readuntil", "separator", args, count, keywords, &separator) < 0) {
        return NULL;
    }
    separator = separator == NULL ? Py_NewRef(stream->state->names.newline) : checked_separator(separator);
    PyObject *op = separator == NULL ? NULL : op_new(stream, OP_READUNTIL, 0, separator);
    Py_XDECREF(separator);
    return op;
}

static PyObject *Stream_readline(Stream *stream, PyObject *Py_UNUSED(none))
{
    return op_new(stream, OP_READLINE, 0, NULL);
}

PyObject *stream_next_line(Stream *stream)
{
    return op_new(stream, OP_NEXT_LINE, 0, NULL);
}

static PyObject *Stream_receive_raw(Stream *stream, PyObject *Py_UNUSED(none))
{
    return op_new(stream, OP_READ_RAW, 0, NULL);
}

static PyObject *Stream_at_eof(Stream *stream, PyObject *Py_UNUSED(none))
{
    /* The end may be there already: it is known as soon as it can be received. */
    if (!stream_has_ended(stream) && buffer_size(&stream->input) == 0 && stream_fill(stream, 0) < 0) {
        return NULL;
    }
    return PyBool_FromLong(stream_has_ended(stream) && buffer_size(&stream->input) == 0 && stream->error == NULL);
}

static PyObject *Stream_write(Stream *stream, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    PyObject *data;
    if (parse_required("write", "data", args, count, keywords, &data) < 0) {
        return NULL;
    }
    return none_unless(stream_write(stream, data));
}

static PyObject *Stream_send(Stream *stream, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    PyObject *data;
    if (parse_required("send", "data", args, count, keywords, &data) < 0) {
        return NULL;
    }
    return op_new(stream, OP_SEND, 0, data);
}

static PyObject *Stream_drain(Stream *stream, PyObject *Py_UNUSED(none))
{
    return op_new(stream, OP_DRAIN, 0, NULL);
}

static PyObject *Stream_close(Stream *stream, PyObject *Py_UNUSED(none))
{
    if (stream->phase != PHASE_OPEN) {
        Py_RETURN_NONE;
    }
    if (stream_flush(stream) < 0) {
        return NULL;
    }
    if (stream->phase == PHASE_CLOSED) {
        Py_RETURN_NONE;
    }
    int failed;
    /* close(2) sends the FIN itself if the peer has sent its own and no other process holds the socket. */
    if (stream->input_state == INPUT_FIN && stream->output_state == OUTPUT_OPEN && stream->backlog == NULL &&
        stream->tls == NULL && stream_is_duplicated(stream) == 0) {
        buffer_clear(&stream->input);
        failed = stream_dispose(stream);
    } else {
        failed = PyErr_Occurred() ? -1 : stream_call_hook(stream, stream->state->names._close, NULL);
    }
    if (failed) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* --- for the Python classes above ----------------------------------------------------------------------------------*/

static PyObject *Stream_dispose(Stream *stream, PyObject *Py_UNUSED(none))
{
    return none_unless(stream_dispose(stream));
}

static PyObject *Stream_fail(Stream *stream, PyObject *error)
{
    return none_unless(stream_fail(stream, error));
}

static PyObject *Stream_reset_on_close(Stream *stream, PyObject *Py_UNUSED(none))
{
    stream_reset_on_close(stream);
    Py_RETURN_NONE;
}

static PyObject *Stream_flush(Stream *stream, PyObject *Py_UNUSED(none))
{
    return none_unless(stream_flush(stream));
}

static PyObject *Stream_end_output(Stream *stream, PyObject *Py_UNUSED(none))
{
    return shutdown(stream->fd, SHUT_WR) < 0 ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

static PyObject *Stream_send_raw(Stream *stream, PyObject *data)
{
    if (!PyBytes_CheckExact(data)) {
        PyErr_Format(PyExc_TypeError, "bytes to send must be bytes, not %.200s", Py_TYPE(data)->tp_name);
        return NULL;
    }
    return none_unless(stream_send_raw(stream, data));
}

static PyObject *Stream_break_output(Stream *stream, PyObject *error)
{
    return none_unless(stream_break_output(stream, error));
}

static PyObject *Stream_on_writable(Stream *stream, PyObject *Py_UNUSED(none))
{
    stream->retrying = false;
    return none_unless(stream_on_writable(stream));
}

static PyObject *Stream_wake_writers_soon(Stream *stream, PyObject *Py_UNUSED(none))
{
    return none_unless(stream_wake_writers(stream, true));
}

static PyObject *Stream_discard_input(Stream *stream, PyObject *Py_UNUSED(none))
{
    return none_unless(stream_discard_input(stream));
}

/* End the input for the handler: it gets no more, and what is buffered is dropped. */
static PyObject *Stream_stop_reading(Stream *stream, PyObject *Py_UNUSED(none))
{
    if (stream->input_state != INPUT_FIN) {
        stream->input_state = INPUT_ENDED;
    }
    buffer_clear(&stream->input);
    if (stream->reader != NULL && waiter_is_waiting(stream->reader)) {
        return none_unless(waiter_wake_soon(stream->reader));
    }
    Py_RETURN_NONE;
}

static PyObject *Stream_clear_input(Stream *stream, PyObject *Py_UNUSED(none))
{
    buffer_clear(&stream->input);
    Py_RETURN_NONE;
}

/* Decrypt what came with the end of the handshake. */
static PyObject *Stream_decrypt_pending(Stream *stream, PyObject *Py_UNUSED(none))
{
    PyObject *plain = tls_decrypt(stream, "", 0);
    int failed = plain == NULL ||
                 buffer_feed(&stream->input, PyBytes_AS_STRING(plain), (size_t)PyBytes_GET_SIZE(plain)) < 0;
    Py_XDECREF(plain);
    return none_unless(failed ? -1 : 0);
}

static PyObject *Stream_is_reading(Stream *stream, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(stream->reader != NULL && waiter_is_waiting(stream->reader));
}

static PyObject *Stream_awaits_input(Stream *stream, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(stream->reader != NULL && waiter_is_waiting(stream->reader) &&
                           stream->input_state != INPUT_PAUSED && !stream_reads_paused(stream));
}

/* Receive nothing until `_resume_input`: reads return what is buffered, and then wait. */
static PyObject *Stream_pause_input(Stream *stream, PyObject *Py_UNUSED(none))
{
    if (!stream_has_ended(stream)) {
        stream->input_state = INPUT_PAUSED;
    }
    Py_RETURN_NONE;
}

static PyObject *Stream_resume_input(Stream *stream, PyObject *Py_UNUSED(none))
{
    if (stream->input_state != INPUT_PAUSED) {
        Py_RETURN_NONE;
    }
    /* Events were ignored meanwhile. */
    stream->input_state = INPUT_READABLE;
    if (stream->reader == NULL || !waiter_is_waiting(stream->reader)) {
        Py_RETURN_NONE;
    }
    return none_unless(waiter_wake_soon(stream->reader));
}

static PyObject *Stream_set_water_marks(Stream *stream, PyObject *args)
{
    PyObject *low, *high;
    if (!PyArg_ParseTuple(args, "OO:_mark_water", &low, &high)) {
        return NULL;
    }
    stream->has_water_marks = low != Py_None;
    if (stream->has_water_marks) {
        stream->drain_low = PyLong_AsSize_t(low);
        stream->drain_high = PyLong_AsSize_t(high);
        if (PyErr_Occurred()) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *Stream_water_marks(Stream *stream, PyObject *Py_UNUSED(none))
{
    return Py_BuildValue("nn", (Py_ssize_t)stream_low_water(stream), (Py_ssize_t)stream_high_water(stream));
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))
#define FAST_FLAGS (METH_FASTCALL | METH_KEYWORDS)

PyMethodDef stream_methods[] = {
    {"read", FAST(Stream_read), FAST_FLAGS,
     "read($self, n=-1)\n--\n\n"
     "Return up to `n` bytes, as soon as there is at least one; b\"\" at the end of input.\n\n"
     "`n` of -1 (the default) reads to the end of input, without a limit. Raises ConnectionError (or the OSError that\n"
     "broke the connection) once everything received before has been read; StreamBusyError if another task waits.\n"
     "Cancelling a read loses no byte: the next one returns what had arrived."},
    {"readexactly", FAST(Stream_readexactly), FAST_FLAGS,
     "readexactly($self, n)\n--\n\n"
     "Return `n` bytes. Raises IncompleteReadError, with what there was, if the input ends before."},
    {"readuntil", FAST(Stream_readuntil), FAST_FLAGS,
     "readuntil($self, separator=b'\\n')\n--\n\n"
     "Return everything up to and including the first `separator`; of several, in a tuple, the one that ends first."},
    {"readline", (PyCFunction)Stream_readline, METH_NOARGS,
     "readline($self)\n--\n\n"
     "Return a line with its b\"\\n\"; the last one may have none. Return b\"\" at the end of input."},
    {"at_eof", (PyCFunction)Stream_at_eof, METH_NOARGS,
     "at_eof($self)\n--\n\nReturn whether the input has ended and everything before has been read.\n\n"
     "Receives what has arrived, so that an end is known as soon as it is there. False if a read would raise."},
    {"write", FAST(Stream_write), FAST_FLAGS,
     "write($self, data)\n--\n\n"
     "Send `data`, in order, when the output is uncorked. Never waits, and never raises for a peer that is gone."},
    {"send", FAST(Stream_send), FAST_FLAGS, "send($self, data)\n--\n\nWrite `data` and wait for `drain()`."},
    {"drain", (PyCFunction)Stream_drain, METH_NOARGS,
     "drain($self)\n--\n\n"
     "Send what was written. If more than the high water mark stays unsent, wait until the low one is reached."},
    {"close", (PyCFunction)Stream_close, METH_NOARGS,
     "close($self)\n--\n\n"
     "Send what was written, tell the peer the end, wait for its end for a short time, and close the socket."},
    {"_awaits_input", (PyCFunction)Stream_awaits_input, METH_NOARGS, NULL},
    {"_break_output", (PyCFunction)Stream_break_output, METH_O, NULL},
    {"_clear_input", (PyCFunction)Stream_clear_input, METH_NOARGS, NULL},
    {"_decrypt_pending", (PyCFunction)Stream_decrypt_pending, METH_NOARGS, NULL},
    {"_discard_input", (PyCFunction)Stream_discard_input, METH_NOARGS, NULL},
    {"_end_output", (PyCFunction)Stream_end_output, METH_NOARGS, NULL},
    {"_dispose", (PyCFunction)Stream_dispose, METH_NOARGS, NULL},
    {"_fail", (PyCFunction)Stream_fail, METH_O, NULL},
    {"_flush", (PyCFunction)Stream_flush, METH_NOARGS, NULL},
    {"_is_reading", (PyCFunction)Stream_is_reading, METH_NOARGS, NULL},
    {"_mark_water", (PyCFunction)Stream_set_water_marks, METH_VARARGS, NULL},
    {"_on_writable", (PyCFunction)Stream_on_writable, METH_NOARGS, NULL},
    {"_pause_input", (PyCFunction)Stream_pause_input, METH_NOARGS, NULL},
    {"_receive_raw", (PyCFunction)Stream_receive_raw, METH_NOARGS, NULL},
    {"_reset_on_close", (PyCFunction)Stream_reset_on_close, METH_NOARGS, NULL},
    {"_resume_input", (PyCFunction)Stream_resume_input, METH_NOARGS, NULL},
    {"_send_raw", (PyCFunction)Stream_send_raw, METH_O, NULL},
    {"_stop_reading", (PyCFunction)Stream_stop_reading, METH_NOARGS, NULL},
    {"_wake_writers_soon", (PyCFunction)Stream_wake_writers_soon, METH_NOARGS, NULL},
    {"_water_marks", (PyCFunction)Stream_water_marks, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
