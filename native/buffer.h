/* Bytes that were received and not read yet. Knows nothing of sockets. */
#ifndef PREFORK_BUFFER_H
#define PREFORK_BUFFER_H

#include "native.h"

typedef struct Buffer {
    char *data; /* the bytes are data[start] to data[end - 1]; NULL if there is no memory */
    size_t start;
    size_t end;
    size_t capacity;
} Buffer;

static inline size_t buffer_size(const Buffer *buffer)
{
    return buffer->end - buffer->start;
}

static inline const char *buffer_bytes(const Buffer *buffer)
{
    return buffer->data + buffer->start;
}

/* Forget the bytes and release the memory. An idle connection has none. */
void buffer_clear(Buffer *buffer);

/* Return where `size` bytes may be written, to be counted by `buffer.end += n`; NULL with MemoryError. */
char *buffer_reserve(Buffer *buffer, size_t size);

/* Add `size` bytes at the end. 0, or -1 with MemoryError. */
int buffer_feed(Buffer *buffer, const char *data, size_t size);

/* Remove the first `size` bytes, of which there are at least as many, and return them as a bytes object. */
PyObject *buffer_take(Buffer *buffer, size_t size);

#endif
