/* The input of a stream: receiving, the turn budget, and the waits of the task that reads.
 *
 * The meaning is that of src/prefork/net/receiving.py. A small receive goes into the poller's block, which all
 * streams share, and only what came is copied: an idle connection has no buffer. A large one goes straight into the
 * bytes object that the handler gets, because a copy of a MiB costs as much as its receive.
 */
#include "stream.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* A read of this size is a large one, if the last receive was large too. */
#define LARGE ((size_t)32 * 1024)

static ssize_t receive(const Stream *stream, char *into, size_t size)
{
    ssize_t count;
    do {
        /* The flag, because O_NONBLOCK is not certain: a child that has the socket may clear it for all. The GIL is
         * kept, because a receive that does not block is cheaper than releasing and taking it. */
        count = recv(stream->fd, into, size, MSG_DONTWAIT);
    } while (count < 0 && errno == EINTR);
    return count;
}

/* --- receiving -----------------------------------------------------------------------------------------------------*/

Received stream_receive(Stream *stream, char *into, size_t size, size_t *received)
{
    ssize_t count = receive(stream, into, size);
    if (count < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            stream->input_state = INPUT_EMPTY;
            return RECEIVED_NOTHING;
        }
        return stream_fail_errno(stream, errno) < 0 ? RECEIVED_ERROR : RECEIVED_END;
    }
    stream->io_left--;
    stream->idle_since = -1.0;
    stream->received += (uint64_t)count;
    poller_count_received(stream->poller, (size_t)count);
    if (count == 0) {
        stream->input_state = INPUT_FIN;
        return stream_end_input(stream) < 0 ? RECEIVED_ERROR : RECEIVED_END;
    }
    if ((size_t)count < size && stream->short_read_empties) {
        stream->input_state = INPUT_EMPTY;
    }
    stream->large = (size_t)count >= LARGE;
    *received = (size_t)count;
    return RECEIVED_DATA;
}

int stream_end_input(Stream *stream)
{
    if (stream->input_state != INPUT_FIN) {
        stream->input_state = INPUT_ENDED;
    }
    if (stream->tls == NULL) {
        return 0;
    }
    PyObject *result = PyObject_CallMethodNoArgs(stream->tls->engine, stream->state->names.note_end);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int stream_fill(Stream *stream, size_t wanted)
{
    if (!stream_may_receive(stream)) {
        return 0;
    }
    size_t received = 0;
    if (stream->tls == NULL && wanted > RECEIVE_SIZE) {
        size_t size = wanted < MAX_RECEIVE_SIZE ? wanted : MAX_RECEIVE_SIZE;
        char *into = buffer_reserve(&stream->input, size);
        Received what = into == NULL ? RECEIVED_ERROR : stream_receive(stream, into, size, &received);
        /* A failure has closed the stream, which has cleared the buffer. */
        stream->input.end += what == RECEIVED_DATA ? received : 0;
        if (what == RECEIVED_ERROR) {
            return -1;
        }
    } else {
        char *block = stream->poller->block;
        Received what = stream_receive(stream, block, RECEIVE_SIZE, &received);
        if (what == RECEIVED_ERROR) {
            return -1;
        }
        if (what == RECEIVED_DATA && stream->tls != NULL) {
            PyObject *plain = tls_decrypt(stream, block, received);
            int failed = plain == NULL || (stream->phase != PHASE_CLOSED &&
                                           buffer_feed(&stream->input, PyBytes_AS_STRING(plain),
                                                       (size_t)PyBytes_GET_SIZE(plain)) < 0);
            Py_XDECREF(plain);
            if (failed) {
                return -1;
            }
        } else if (what == RECEIVED_DATA && buffer_feed(&stream->input, block, received) < 0) {
            return -1;
        }
    }
    return buffer_size(&stream->input) > 0 || stream->input_state == INPUT_READABLE;
}

/* Receive straight into the object that the handler gets. */
static PyObject *receive_large(Stream *stream, size_t limit)
{
    size_t size = limit < MAX_RECEIVE_SIZE ? limit : MAX_RECEIVE_SIZE;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes == NULL) {
        return NULL;
    }
    size_t received = 0;
    if (stream_receive(stream, PyBytes_AS_STRING(bytes), size, &received) != RECEIVED_DATA) {
        Py_DECREF(bytes);
        return NULL;
    }
    if (received < size) {
        (void)_PyBytes_Resize(&bytes, (Py_ssize_t)received);
    }
    return bytes;
}

/* Return the first `limit` of these bytes; the others go to the input buffer, which is empty. */
static PyObject *split(Stream *stream, const char *data, size_t size, size_t limit)
{
    size_t first = size < limit ? size : limit;
    if (first < size && buffer_feed(&stream->input, data + first, size - first) < 0) {
        return NULL;
    }
    return PyBytes_FromStringAndSize(data, (Py_ssize_t)first);
}

PyObject *stream_receive_bytes(Stream *stream, size_t limit)
{
    if (stream->large && limit >= LARGE && stream->tls == NULL) {
        return receive_large(stream, limit);
    }
    size_t received = 0;
    char *block = stream->poller->block;
    if (stream_receive(stream, block, RECEIVE_SIZE, &received) != RECEIVED_DATA) {
        return NULL;
    }
    if (stream->tls == NULL) {
        return split(stream, block, received, limit);
    }
    PyObject *plain = tls_decrypt(stream, block, received);
    if (plain != NULL && PyBytes_GET_SIZE(plain) == 0) {
        Py_CLEAR(plain);
    } else if (plain != NULL && (size_t)PyBytes_GET_SIZE(plain) > limit) {
        Py_SETREF(plain, split(stream, PyBytes_AS_STRING(plain), (size_t)PyBytes_GET_SIZE(plain), limit));
    }
    return plain;
}

/* --- while closing -------------------------------------------------------------------------------------------------*/

/* Unread bytes would make the kernel answer the close with a reset, which destroys what the peer has not read yet. */
int stream_discard_input(Stream *stream)
{
    for (int i = 0; i < MAX_IO_BEFORE_YIELD; i++) {
        if (stream->input_state == INPUT_FIN || stream->phase == PHASE_CLOSED) {
            return 0;
        }
        ssize_t count = receive(stream, stream->poller->block, RECEIVE_SIZE);
        if (count < 0) {
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : stream_fail_errno(stream, errno);
        }
        if (count == 0) {
            stream->input_state = INPUT_FIN;
            return stream->phase == PHASE_LINGERING ? stream_dispose(stream) : 0;
        }
    }
    return call_method_soon(stream->state, stream->poller->loop, (PyObject *)stream,
                            stream->state->names._discard_input);
}

/* --- waiting -------------------------------------------------------------------------------------------------------*/

Waiter *stream_begin_wait(Stream *stream)
{
    if (stream->corked.size > 0 && stream_flush(stream) < 0) {
        return NULL;
    }
    stream->io_left = MAX_IO_BEFORE_YIELD;
    if (buffer_size(&stream->input) == 0 && stream->input.data != NULL) {
        buffer_clear(&stream->input);
    }
    Waiter *reader = stream->reader;
    if (reader == NULL || reader->cancel_pending) {
        reader = waiter_new(stream->state, stream->poller->loop);
        if (reader == NULL) {
            return NULL;
        }
        Py_XSETREF(stream->reader, reader);
    } else if (waiter_is_waiting(reader)) {
        PyErr_SetString(stream->state->names.BusyError,
                        "read() called while another coroutine is already waiting for incoming data");
        return NULL;
    }
    return (Waiter *)Py_NewRef(reader);
}

Waiter *stream_wait_input(Stream *stream)
{
    Waiter *reader = stream_begin_wait(stream);
    if (reader == NULL) {
        return NULL;
    }
    if (stream->timeouts != NULL && stream->idle_since < 0) {
        stream->idle_since = now();
    }
    /* Events report the input, or the handler resumes reading. */
    bool reported = stream->input_state == INPUT_EMPTY || stream->input_state == INPUT_PAUSED;
    bool paused = stream->input_state == INPUT_READABLE && stream_reads_paused(stream);
    /* Otherwise the flush found the connection broken, or this peer is so fast that others must run first. */
    if (!reported && !paused &&
        call_method_soon(stream->state, stream->poller->loop, (PyObject *)reader, stream->state->names.wake) < 0) {
        Py_DECREF(reader);
        return NULL;
    }
    return reader;
}
