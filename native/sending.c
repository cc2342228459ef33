/* The output of a stream: corked writes, the unsent bytes that the kernel did not take, and their end.
 *
 * The meaning is that of src/prefork/net/sending.py. How much may be unsent, and for how long, Python decides: it is
 * told of each change of the backlog, which only a slow peer causes.
 */
#include "stream.h"

#include <errno.h>

size_t stream_high_water(const Stream *stream)
{
    return stream->has_water_marks ? stream->drain_high : stream->poller->limits.drain_above;
}

size_t stream_low_water(const Stream *stream)
{
    return stream->has_water_marks ? stream->drain_low : stream->poller->limits.drain_above / 4;
}

/* Send what the kernel takes at once. Return the number of bytes, or -1 with errno. */
static ssize_t send_some(Stream *stream, Queue *queue)
{
    ssize_t sent = queue_send(queue, stream->fd);
    if (sent > 0) {
        stream->sent += (uint64_t)sent;
        poller_count_sent(stream->poller, (size_t)sent);
    }
    return sent;
}

/* --- writing -------------------------------------------------------------------------------------------------------*/

/* Return `data` as bytes (owned), which cannot change. */
static PyObject *as_bytes(PyObject *data)
{
    if (PyBytes_CheckExact(data)) {
        return Py_NewRef(data);
    }
    if (PyBytes_Check(data) || PyByteArray_Check(data) || PyMemoryView_Check(data)) {
        return PyBytes_FromObject(data);
    }
    PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not '%.200s'", Py_TYPE(data)->tp_name);
    return NULL;
}

int stream_write(Stream *stream, PyObject *data)
{
    PyObject *bytes = as_bytes(data);
    if (bytes == NULL) {
        return -1;
    }
    int result = 0;
    if (stream->output_state != OUTPUT_OPEN || stream->phase != PHASE_OPEN) {
        if (stream->output_state == OUTPUT_ENDED) {
            PyErr_SetString(PyExc_RuntimeError, "Cannot call write() after write_eof()");
            result = -1;
        }
    } else if (PyBytes_GET_SIZE(bytes) > 0) {
        if (stream->corked.size == 0 && !stream->in_callback) {
            result = poller_cork(stream->poller, (PyObject *)stream);
        }
        if (result == 0) {
            result = queue_append(&stream->corked, bytes);
        }
        if (result == 0 && stream->corked.size >= stream->poller->limits.flush_at) {
            result = stream_flush(stream);
        }
    }
    Py_DECREF(bytes);
    return result;
}

/* --- sending -------------------------------------------------------------------------------------------------------*/

/* Handle the errno of a send that took nothing: wait, try again later, or break the output. */
static int handle_send_error(Stream *stream, int code)
{
    if (code == EAGAIN || code == EWOULDBLOCK) {
        return 0;
    }
    if (code == ENOBUFS || code == ENOMEM) {
        stream->retrying = true;
        return stream_call_hook(stream, stream->state->names._on_no_memory, NULL);
    }
    PyObject *error = os_error(code);
    int result = error == NULL ? -1 : stream_break_output(stream, error);
    Py_XDECREF(error);
    return result;
}

/* Keep what is left of `queue` until the kernel has room. */
static int enqueue(Stream *stream, Queue *queue)
{
    if (stream->backlog == NULL) {
        stream->backlog = PyMem_Malloc(sizeof(Queue));
        if (stream->backlog == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        queue_init(stream->backlog);
    }
    if (queue_move(stream->backlog, queue) < 0) {
        return -1;
    }
    return stream_call_hook(stream, stream->state->names._on_backlog_added, NULL);
}

/* Send `queue`, or keep what the kernel does not take. It is empty afterwards. */
static int send_queue(Stream *stream, Queue *queue)
{
    if (stream->backlog == NULL) {
        while (queue->size > 0) {
            size_t offered = queue->size;
            ssize_t sent = send_some(stream, queue);
            if (sent < 0) {
                if (handle_send_error(stream, errno) < 0) {
                    queue_clear(queue);
                    return -1;
                }
                break;
            }
            /* Less than offered: the kernel has no room, or there are more pieces than one call takes. */
            if ((size_t)sent < offered && queue->offset > 0) {
                break;
            }
        }
        if (queue->size == 0) {
            queue_clear(queue);
            return 0;
        }
        if (stream->output_state == OUTPUT_BROKEN) {
            queue_clear(queue);
            return 0;
        }
    }
    int result = enqueue(stream, queue);
    queue_clear(queue);
    return result;
}

/* Send the corked bytes as records of TLS. */
static int flush_tls(Stream *stream)
{
    PyObject *plain = queue_join(&stream->corked);
    queue_clear(&stream->corked);
    PyObject *records = plain == NULL ? NULL : tls_encrypt(stream, plain);
    Py_XDECREF(plain);
    int result = records == NULL ? -1 : stream_send_raw(stream, records);
    Py_XDECREF(records);
    return result;
}

int stream_flush(Stream *stream)
{
    if (stream->corked.size == 0) {
        return 0;
    }
    if (stream->tls != NULL) {
        return flush_tls(stream);
    }
    /* Out of the stream, because a hook may write or close. */
    Queue queue;
    queue_init(&queue);
    (void)queue_move(&queue, &stream->corked);
    return send_queue(stream, &queue);
}

int stream_send_raw(Stream *stream, PyObject *data)
{
    if (PyBytes_GET_SIZE(data) == 0 || stream->output_state == OUTPUT_BROKEN) {
        return 0;
    }
    Queue queue;
    queue_init(&queue);
    if (queue_append(&queue, data) < 0) {
        return -1;
    }
    return send_queue(stream, &queue);
}

/* --- unsent bytes --------------------------------------------------------------------------------------------------*/

static void free_backlog(Stream *stream)
{
    Queue *backlog = stream->backlog;
    stream->backlog = NULL;
    stream->retrying = false;
    queue_clear(backlog);
    PyMem_Free(backlog);
}

/* Send up to MAX_IO_BEFORE_YIELD times. The output may be broken, and the backlog gone, afterwards. */
static int send_backlog(Stream *stream)
{
    for (int i = 0; i < MAX_IO_BEFORE_YIELD; i++) {
        ssize_t sent = send_some(stream, stream->backlog);
        if (sent < 0) {
            return handle_send_error(stream, errno);
        }
        if (stream->backlog->size == 0 || stream->backlog->offset > 0) {
            return 0;
        }
    }
    return call_method_soon(stream->state, stream->poller->loop, (PyObject *)stream,
                            stream->state->names._on_writable);
}

int stream_on_writable(Stream *stream)
{
    if (stream->backlog == NULL) {
        return 0;
    }
    size_t size = stream->backlog->size;
    bool paused = stream_reads_paused(stream);
    if (send_backlog(stream) < 0) {
        return -1;
    }
    if (stream->backlog == NULL) {
        return 0;
    }
    if (stream->backlog->size == 0) {
        free_backlog(stream);
        if (stream_call_hook(stream, stream->state->names._on_backlog_empty, NULL) < 0 ||
            stream_call_hook(stream, stream->state->names._on_output_sent, NULL) < 0) {
            return -1;
        }
    } else if (stream->backlog->size < size &&
               stream_call_hook(stream, stream->state->names._on_backlog_sent, NULL) < 0) {
        return -1;
    }
    if (stream_backlog_size(stream) <= stream_low_water(stream) && stream_wake_writers(stream, false) < 0) {
        return -1;
    }
    if (paused && !stream_reads_paused(stream) && stream->reader != NULL) {
        return waiter_wake(stream->reader);
    }
    return 0;
}

/* --- the end -------------------------------------------------------------------------------------------------------*/

int stream_wake_writers(Stream *stream, bool soon)
{
    /* Held, because a task that is woken changes the tuple. */
    PyObject *writers = Py_XNewRef(stream->writers);
    int result = 0;
    for (Py_ssize_t i = 0; writers != NULL && PyTuple_Check(writers) && i < PyTuple_GET_SIZE(writers); i++) {
        PyObject *each = PyTuple_GET_ITEM(writers, i);
        if (!Py_IS_TYPE(each, stream->state->WaiterType)) {
            continue;
        }
        Waiter *waiter = (Waiter *)each;
        if ((soon ? waiter_wake_soon(waiter) : waiter_wake(waiter)) < 0) {
            result = -1;
            break;
        }
    }
    Py_XDECREF(writers);
    return result;
}

int stream_drop_output(Stream *stream)
{
    queue_clear(&stream->corked);
    if (stream->backlog == NULL) {
        return 0;
    }
    free_backlog(stream);
    return stream_call_hook(stream, stream->state->names._on_backlog_empty, NULL);
}

int stream_break_output(Stream *stream, PyObject *error)
{
    stream->output_state = OUTPUT_BROKEN;
    stream_reset_on_close(stream);
    if (stream_drop_output(stream) < 0) {
        return -1;
    }
    if (stream->phase != PHASE_OPEN) {
        return stream_dispose(stream);
    }
    if (stream->error == NULL) {
        stream->error = Py_NewRef(error);
    }
    /* The reader may have waited for the peer to read what is now lost. */
    if (stream->reader != NULL && waiter_is_waiting(stream->reader) && waiter_wake_soon(stream->reader) < 0) {
        return -1;
    }
    return stream_wake_writers(stream, true);
}

