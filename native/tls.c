/* TLS of a stream: the records of one connection, by the C objects inside Python's `ssl`.
 *
 * src/prefork/net/tls.py makes the engine and does its handshake. Here is what each record needs, without a Python
 * frame: received bytes go into one memory BIO, records to send come out of the other.
 */
#include "stream.h"

int tls_traverse(TLSCalls *tls, visitproc visit, void *arg)
{
    if (tls != NULL) {
        Py_VISIT(tls->engine);
        Py_VISIT(tls->incoming);
        Py_VISIT(tls->outgoing);
        Py_VISIT(tls->raw);
    }
    return 0;
}

void tls_clear(Stream *stream)
{
    TLSCalls *tls = stream->tls;
    if (tls == NULL) {
        return;
    }
    stream->tls = NULL;
    Py_XDECREF(tls->engine);
    Py_XDECREF(tls->incoming);
    Py_XDECREF(tls->outgoing);
    Py_XDECREF(tls->raw);
    PyMem_Free(tls);
}

int tls_set_engine(Stream *stream, PyObject *engine)
{
    TLSCalls *tls = PyMem_Calloc(1, sizeof *tls);
    if (tls == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    tls_clear(stream);
    stream->tls = tls;
    tls->engine = Py_NewRef(engine);
    tls->incoming = PyObject_GetAttrString(engine, "incoming");
    tls->outgoing = PyObject_GetAttrString(engine, "outgoing");
    tls->raw = PyObject_GetAttrString(engine, "raw");
    if (tls->incoming == NULL || tls->outgoing == NULL || tls->raw == NULL) {
        tls_clear(stream);
        return -1;
    }
    return 0;
}

/* Break the output because of the current exception, if it is an ssl.SSLError: the message is what TLS said. */
static PyObject *take_tls_error(Stream *stream)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *reason = PyObject_GetAttrString(error, "reason");
    int has_reason = reason == NULL ? -1 : PyObject_IsTrue(reason);
    PyObject *aborted = NULL;
    if (has_reason >= 0) {
        PyObject *text = PyUnicode_FromFormat("TLS: %S", has_reason ? reason : error);
        aborted = text == NULL ? NULL : PyObject_CallOneArg(stream->state->names.AbortedError, text);
        Py_XDECREF(text);
    }
    Py_XDECREF(reason);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return aborted;
}

PyObject *tls_encrypt(Stream *stream, PyObject *plain)
{
    State *state = stream->state;
    PyObject *written = PyObject_CallMethodOneArg(stream->tls->raw, state->names.write, plain);
    if (written != NULL) {
        Py_DECREF(written);
        return PyObject_CallMethodNoArgs(stream->tls->outgoing, state->names.read);
    }
    if (!PyErr_ExceptionMatches(state->names.SSLError)) {
        return NULL;
    }
    PyObject *error = take_tls_error(stream);
    int failed = error == NULL || stream_break_output(stream, error) < 0;
    Py_XDECREF(error);
    return failed ? NULL : Py_NewRef(state->names.empty);
}

/* Return whether `object.pending` (an attribute), or `object.pending()` if `call`, is not 0; -1 with an exception. */
static int has_pending(Stream *stream, PyObject *object, bool call)
{
    PyObject *pending = call ? PyObject_CallMethodNoArgs(object, stream->state->names.pending)
                             : PyObject_GetAttr(object, stream->state->names.pending);
    int result = pending == NULL ? -1 : PyObject_IsTrue(pending);
    Py_XDECREF(pending);
    return result;
}

/* Add `record` (stolen) to `plain`: nothing, then a bytes object, then a list of them. */
static int add_record(PyObject **plain, PyObject *record)
{
    int failed = 0;
    if (*plain == NULL) {
        *plain = record;
        return 0;
    }
    if (!PyList_CheckExact(*plain)) {
        PyObject *list = PyList_New(1);
        if (list == NULL) {
            Py_DECREF(record);
            return -1;
        }
        PyList_SET_ITEM(list, 0, *plain);
        *plain = list;
    }
    failed = PyList_Append(*plain, record);
    Py_DECREF(record);
    return failed;
}

/* Read one record after the other into `plain`. 1: complete; 0: the peer's close_notify; or -1. Asks how much is
 * pending before it reads, because raising SSLWantReadError costs more than decrypting a record. */
static int read_records(Stream *stream, PyObject **plain)
{
    State *state = stream->state;
    TLSCalls *tls = stream->tls;
    for (;;) {
        int pending = has_pending(stream, tls->incoming, false);
        if (pending == 0) {
            pending = has_pending(stream, tls->raw, true);
        }
        if (pending <= 0) {
            return pending < 0 ? -1 : 1;
        }
        PyObject *record = PyObject_CallMethodOneArg(tls->raw, state->names.read, state->names.record_size);
        if (record == NULL) {
            int again = PyErr_ExceptionMatches(state->names.WantReadError);
            if (!again && !PyErr_ExceptionMatches(state->names.ZeroReturnError)) {
                return -1;
            }
            PyErr_Clear();
            return again;
        }
        if (PyBytes_GET_SIZE(record) == 0) {
            Py_DECREF(record);
            return 0;
        }
        if (add_record(plain, record) < 0) {
            return -1;
        }
    }
}

/* A broken record: send the alert and dispose of the connection. */
static int fail_tls(Stream *stream)
{
    if (!PyErr_ExceptionMatches(stream->state->names.SSLError)) {
        return -1;
    }
    PyObject *error = take_tls_error(stream);
    if (error == NULL) {
        return -1;
    }
    PyObject *alert = PyObject_CallMethodNoArgs(stream->tls->outgoing, stream->state->names.read);
    int failed = alert == NULL || stream_send_raw(stream, alert) < 0 || stream_fail(stream, error) < 0;
    Py_XDECREF(alert);
    Py_DECREF(error);
    return failed ? -1 : 0;
}

PyObject *tls_decrypt(Stream *stream, const char *data, size_t size)
{
    State *state = stream->state;
    PyObject *received = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
    PyObject *written = received == NULL
                            ? NULL
                            : PyObject_CallMethodOneArg(stream->tls->incoming, state->names.write, received);
    Py_XDECREF(received);
    if (written == NULL) {
        return NULL;
    }
    Py_DECREF(written);
    PyObject *plain = NULL;
    int more = read_records(stream, &plain);
    if (more < 0) {
        Py_CLEAR(plain);
        return fail_tls(stream) < 0 ? NULL : Py_NewRef(state->names.empty);
    }
    if (plain != NULL && PyList_CheckExact(plain)) {
        Py_SETREF(plain, PyObject_CallMethodOneArg(state->names.empty, state->names.join, plain));
        if (plain == NULL) {
            return NULL;
        }
    }
    /* The protocol's own output (tickets, an answer to a key update) goes with the handler's next answer, or at the end
     * of the round. */
    int output = has_pending(stream, stream->tls->outgoing, false);
    int failed = output < 0 || (output && stream_call_hook(stream, state->names._cork_tls_output, NULL) < 0);
    if (!failed && more == 0) {
        failed = PyObject_SetAttr(stream->tls->engine, state->names.received_close_notify, Py_True) < 0 ||
                 stream_end_input(stream) < 0;
    }
    if (failed) {
        Py_CLEAR(plain);
        return NULL;
    }
    return plain == NULL ? Py_NewRef(state->names.empty) : plain;
}
