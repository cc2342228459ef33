/* Bytes to send, in order: see queue.h.
 *
 * A large write is kept as the object that the handler gave, because a copy costs more than a reference. Small ones
 * are joined into runs, because the bookkeeping of a million two-byte writes would outweigh them, and because one
 * send(2) of joined bytes is cheaper than sendmsg(2) of many. A single small write stays an object: an answer of one
 * piece costs no copy and no memory.
 */
#include "queue.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* A piece of at least this size is kept as it is. */
#define KEEP_WHOLE ((size_t)16 * 1024)
/* A run does not grow beyond this size, so that one send takes it whole. */
#define RUN_LIMIT ((size_t)64 * 1024)
#define FIRST_RUN ((size_t)1024)
#define MAX_IOVECS 64

void queue_init(Queue *queue)
{
    memset(queue, 0, sizeof *queue);
    queue->pieces = &queue->single;
    queue->capacity = 1;
}

static void release_piece(Piece *piece)
{
    if (piece->owner != NULL) {
        Py_CLEAR(piece->owner);
    } else {
        PyMem_Free(piece->data);
    }
    piece->data = NULL;
}

static size_t piece_memory(const Piece *piece)
{
    return piece->owner != NULL ? (size_t)PyBytes_GET_SIZE(piece->owner) : piece->size;
}

void queue_clear(Queue *queue)
{
    for (uint32_t i = queue->first; i < queue->end; i++) {
        release_piece(&queue->pieces[i]);
    }
    if (queue->pieces != &queue->single) {
        PyMem_Free(queue->pieces);
    }
    queue_init(queue);
}

/* Make room for one more piece. Sent pieces at the front are reused before the array grows. */
static int reserve_piece(Queue *queue)
{
    if (queue->first == queue->end) {
        queue->first = queue->end = 0;
    }
    if (queue->end < queue->capacity) {
        return 0;
    }
    uint32_t count = queue->end - queue->first;
    if (queue->first > queue->capacity / 2) {
        memmove(queue->pieces, queue->pieces + queue->first, count * sizeof(Piece));
    } else {
        uint32_t capacity = queue->capacity * 4;
        Piece *pieces = PyMem_Malloc(capacity * sizeof(Piece));
        if (pieces == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(pieces, queue->pieces + queue->first, count * sizeof(Piece));
        if (queue->pieces != &queue->single) {
            PyMem_Free(queue->pieces);
        }
        queue->pieces = pieces;
        queue->capacity = capacity;
    }
    queue->first = 0;
    queue->end = count;
    return 0;
}

static int append_object(Queue *queue, PyObject *bytes)
{
    if (reserve_piece(queue) < 0) {
        return -1;
    }
    Piece *piece = &queue->pieces[queue->end++];
    piece->owner = Py_NewRef(bytes);
    piece->data = PyBytes_AS_STRING(bytes);
    piece->size = (size_t)PyBytes_GET_SIZE(bytes);
    piece->capacity = 0;
    queue->size += piece->size;
    queue->memory += piece->size;
    return 0;
}

/* Make `piece` a run with room for `more` bytes. */
static int make_run(Piece *piece, size_t more)
{
    size_t capacity = piece->capacity > FIRST_RUN ? piece->capacity : FIRST_RUN;
    while (capacity < piece->size + more) {
        capacity *= 2;
    }
    char *data = PyMem_Realloc(piece->owner != NULL ? NULL : piece->data, capacity);
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (piece->owner != NULL) {
        memcpy(data, piece->data, piece->size);
        Py_CLEAR(piece->owner);
    }
    piece->data = data;
    piece->capacity = capacity;
    return 0;
}

int queue_append(Queue *queue, PyObject *bytes)
{
    size_t size = (size_t)PyBytes_GET_SIZE(bytes);
    if (size >= KEEP_WHOLE || queue->first == queue->end) {
        return append_object(queue, bytes);
    }
    Piece *last = &queue->pieces[queue->end - 1];
    /* A large object is not copied, and what was sent in part stays where it is. */
    bool joins = last->size + size <= RUN_LIMIT && (last->owner == NULL || last->size < KEEP_WHOLE) &&
                 (queue->offset == 0 || queue->end - queue->first > 1 || last->owner == NULL);
    if (!joins) {
        return append_object(queue, bytes);
    }
    if (last->size + size > last->capacity && make_run(last, size) < 0) {
        return -1;
    }
    memcpy(last->data + last->size, PyBytes_AS_STRING(bytes), size);
    last->size += size;
    queue->size += size;
    queue->memory += size;
    return 0;
}

int queue_move(Queue *to, Queue *from)
{
    if (to->first == to->end) {
        queue_clear(to);
        *to = *from;
        if (from->pieces == &from->single) {
            to->pieces = &to->single;
        }
        queue_init(from);
        return 0;
    }
    while (from->first < from->end) {
        Piece *piece = &from->pieces[from->first];
        PyObject *bytes = piece->owner != NULL ? Py_NewRef(piece->owner)
                                               : PyBytes_FromStringAndSize(piece->data, (Py_ssize_t)piece->size);
        if (bytes == NULL || queue_append(to, bytes) < 0) {
            Py_XDECREF(bytes);
            return -1;
        }
        Py_DECREF(bytes);
        from->size -= piece->size;
        from->memory -= piece_memory(piece);
        release_piece(piece);
        from->first++;
    }
    queue_clear(from);
    return 0;
}

static void advance(Queue *queue, size_t sent)
{
    queue->size -= sent;
    while (queue->first < queue->end) {
        Piece *piece = &queue->pieces[queue->first];
        size_t left = piece->size - queue->offset;
        if (sent < left) {
            queue->offset += sent;
            return;
        }
        sent -= left;
        queue->offset = 0;
        queue->memory -= piece_memory(piece);
        release_piece(piece);
        queue->first++;
    }
}

static ssize_t send_many(Queue *queue, int fd)
{
    struct iovec vectors[MAX_IOVECS];
    size_t count = queue->end - queue->first;
    if (count > MAX_IOVECS) {
        count = MAX_IOVECS;
    }
    for (size_t i = 0; i < count; i++) {
        const Piece *piece = &queue->pieces[queue->first + i];
        size_t offset = i == 0 ? queue->offset : 0;
        vectors[i].iov_base = piece->data + offset;
        vectors[i].iov_len = piece->size - offset;
    }
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = count};
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

ssize_t queue_send(Queue *queue, int fd)
{
    if (queue->first == queue->end) {
        return 0;
    }
    ssize_t sent;
    do {
        /* The flag, because O_NONBLOCK is not certain: a child that has the socket may clear it for all. The GIL is
         * kept: to release and take it costs more than a send that does not block. */
        if (queue->end - queue->first == 1) {
            const Piece *piece = &queue->pieces[queue->first];
            sent = send(fd, piece->data + queue->offset, piece->size - queue->offset, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else {
            sent = send_many(queue, fd);
        }
    } while (sent < 0 && errno == EINTR);
    if (sent > 0) {
        advance(queue, (size_t)sent);
    }
    return sent;
}

PyObject *queue_join(const Queue *queue)
{
    if (queue->end - queue->first == 1 && queue->offset == 0 && queue->pieces[queue->first].owner != NULL) {
        return Py_NewRef(queue->pieces[queue->first].owner);
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)queue->size);
    if (joined == NULL) {
        return NULL;
    }
    char *to = PyBytes_AS_STRING(joined);
    for (uint32_t i = queue->first; i < queue->end; i++) {
        const Piece *piece = &queue->pieces[i];
        size_t offset = i == queue->first ? queue->offset : 0;
        memcpy(to, piece->data + offset, piece->size - offset);
        to += piece->size - offset;
    }
    return joined;
}
