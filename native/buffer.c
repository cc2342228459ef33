/* Bytes that were received and not read yet: see buffer.h. */
#include "buffer.h"

#include <string.h>

void buffer_clear(Buffer *buffer)
{
    PyMem_Free(buffer->data);
    memset(buffer, 0, sizeof *buffer);
}

char *buffer_reserve(Buffer *buffer, size_t size)
{
    size_t used = buffer_size(buffer);
    if (buffer->capacity - buffer->end >= size) {
        return buffer->data + buffer->end;
    }
    /* To the front only if at least half of the memory comes free: otherwise a peer that sends byte by byte would have
     * the same bytes moved again and again. */
    if (buffer->start >= buffer->capacity / 2 && buffer->capacity - used >= size) {
        memmove(buffer->data, buffer->data + buffer->start, used);
        buffer->start = 0;
        buffer->end = used;
        return buffer->data + used;
    }
    size_t capacity = buffer->capacity < 256 ? 256 : buffer->capacity;
    while (capacity - used < size) {
        if (capacity > PY_SSIZE_T_MAX / 2) {
            PyErr_NoMemory();
            return NULL;
        }
        capacity *= 2;
    }
    char *data = PyMem_Malloc(capacity);
    if (data == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    if (used > 0) {
        memcpy(data, buffer->data + buffer->start, used);
    }
    PyMem_Free(buffer->data);
    buffer->data = data;
    buffer->start = 0;
    buffer->end = used;
    buffer->capacity = capacity;
    return data + used;
}

int buffer_feed(Buffer *buffer, const char *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    char *to = buffer_reserve(buffer, size);
    if (to == NULL) {
        return -1;
    }
    memcpy(to, data, size);
    buffer->end += size;
    return 0;
}

PyObject *buffer_take(Buffer *buffer, size_t size)
{
    if (size == 0) {
        return PyBytes_FromStringAndSize(NULL, 0);
    }
    PyObject *bytes = PyBytes_FromStringAndSize(buffer->data + buffer->start, (Py_ssize_t)size);
    if (bytes == NULL) {
        return NULL;
    }
    buffer->start += size;
    if (buffer->start == buffer->end) {
        buffer->start = buffer->end = 0;
    }
    return bytes;
}
