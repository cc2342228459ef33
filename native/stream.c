/* Stream: one connection, from the socket up to the awaitables that a handler gets; the base of prefork.Stream.
 *
 * Its life is here: construction, events, failure, close. Bytes go out in sending.c and come in in receiving.c; op.c
 * has what a handler awaits. The meaning is that of the layers in src/prefork/net (channel, sending, receiving),
 * which serve where there is no compiler. What happens rarely (limits, deadlines, events, the close protocol) is
 * decided by the Python classes above, which this calls by name: a hook.
 */
#include "stream.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* --- hooks and errors ----------------------------------------------------------------------------------------------*/

int stream_call_hook(Stream *stream, PyObject *name, PyObject *argument)
{
    PyObject *result = argument == NULL ? PyObject_CallMethodNoArgs((PyObject *)stream, name)
                                        : PyObject_CallMethodOneArg((PyObject *)stream, name, argument);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

PyObject *os_error(int code)
{
    /* OSError chooses the subclass that belongs to the number. */
    return PyObject_CallFunction(PyExc_OSError, "is", code, strerror(code));
}

int stream_raise_failure(Stream *stream)
{
    PyObject *error = PyObject_CallMethodNoArgs((PyObject *)stream, stream->state->names._failure);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return -1;
}

int stream_fail(Stream *stream, PyObject *error)
{
    /* After `close()` some peers end so: no error. */
    if (stream->phase == PHASE_OPEN && stream->error == NULL) {
        stream->error = Py_NewRef(error);
    }
    return stream_dispose(stream);
}

int stream_fail_errno(Stream *stream, int code)
{
    PyObject *error = os_error(code);
    if (error == NULL) {
        return -1;
    }
    int result = stream_fail(stream, error);
    Py_DECREF(error);
    return result;
}

/* --- events --------------------------------------------------------------------------------------------------------*/

static int note_pending_error(Stream *stream)
{
    int code = 0;
    socklen_t size = sizeof code;
    if (getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0 || code == 0) {
        return 0;
    }
    PyObject *error = os_error(code);
    int result = error == NULL ? -1 : stream_break_output(stream, error);
    Py_XDECREF(error);
    return result;
}

/* Step the reading task. Its answer is sent when it waits again. */
static int wake_reader(Stream *stream)
{
    stream->in_callback = true;
    int result = waiter_wake(stream->reader);
    stream->in_callback = false;
    if (stream->corked.size == 0) {
        return result;
    }
    /* What escaped from the task is more important than what the flush finds. */
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    if (stream_flush(stream) < 0 && type == NULL) {
        return -1;
    }
    PyErr_Restore(type, error, traceback);
    return result;
}

int stream_on_ready(Stream *stream, uint32_t mask)
{
    if (mask & (EPOLLPRI | EPOLLERR | EPOLLHUP | EPOLLRDHUP)) {
        /* The end is there already, and no further edge will report it. */
        stream->short_read_empties = false;
        if (mask & EPOLLERR && note_pending_error(stream) < 0) {
            return -1;
        }
    }
    /* Sending goes first, because it may end a pause of reading. */
    if (mask & EPOLLOUT && stream->backlog != NULL && stream_on_writable(stream) < 0) {
        return -1;
    }
    if (!(mask & ~(uint32_t)EPOLLOUT)) {
        return 0;
    }
    if (stream->phase != PHASE_OPEN) {
        return stream_discard_input(stream);
    }
    if (stream->input_state == INPUT_EMPTY) {
        stream->input_state = INPUT_READABLE;
    }
    if (stream->reader == NULL || !waiter_is_waiting(stream->reader) || stream_reads_paused(stream)) {
        return 0;
    }
    return wake_reader(stream);
}

/* --- the end -------------------------------------------------------------------------------------------------------*/

int stream_is_duplicated(Stream *stream)
{
    if (stream->exposed) {
        return 1;
    }
    PyObject *forked = PyObject_GetAttr(stream->shared, stream->state->names.forked);
    int result = forked == NULL ? -1 : PyObject_IsTrue(forked);
    Py_XDECREF(forked);
    return result;
}

static int call_on_closed(Stream *stream)
{
    PyObject *on_closed = stream->on_closed;
    if (on_closed == NULL) {
        return 0;
    }
    stream->on_closed = NULL;
    PyObject *result = PyObject_CallNoArgs(on_closed);
    Py_DECREF(on_closed);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

void stream_reset_on_close(Stream *stream)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    if (stream->is_tcp) {
        /* Fails if the peer's reset came first. */
        (void)setsockopt(stream->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
}

int stream_close_socket(Stream *stream)
{
    int fd = stream->fd;
    stream->fd = -1;
    if (stream->sock != NULL) {
        PyObject *closed = PyObject_CallMethodNoArgs(stream->sock, stream->state->names.close);
        Py_XDECREF(closed);
        return closed == NULL ? -1 : 0;
    }
    if (fd >= 0) {
        /* An error leaves nothing to do: the descriptor is closed all the same (close(2)). */
        (void)close(fd);
    }
    return 0;
}

int stream_dispose(Stream *stream)
{
    if (stream->phase == PHASE_CLOSED) {
        return 0;
    }
    bool has_deadlines = stream->phase == PHASE_LINGERING || stream->timeouts != NULL;
    stream->phase = PHASE_CLOSED;
    Py_INCREF(stream); /* The poller's reference may be the last one. */
    int duplicated = stream_is_duplicated(stream);
    int failed = duplicated < 0;
    /* Before the close, because a descriptor that another process still holds would go on reporting. */
    poller_remove(stream->poller, stream->fd, (PyObject *)stream, duplicated != 0);
    if (has_deadlines) {
        failed |= stream_call_hook(stream, stream->state->names._on_disposed, NULL) < 0;
    }
    stream->input_state = INPUT_FIN;
    if (stream->reader != NULL && waiter_is_waiting(stream->reader)) {
        failed |= waiter_wake_soon(stream->reader) < 0;
    }
    stream->output_state = OUTPUT_BROKEN;
    failed |= stream_drop_output(stream) < 0;
    failed |= stream_wake_writers(stream, true) < 0;
    failed |= stream_close_socket(stream) < 0;
    failed |= call_on_closed(stream) < 0;
    Py_DECREF(stream);
    return failed ? -1 : 0;
}
