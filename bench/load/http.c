#define _GNU_SOURCE
#include "http.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define STATUS "HTTP/1.1 200 "
#define LENGTH "content-length:"

/* The value of the Content-Length in a header of `size` bytes that ends with an empty line, or -1. */
static long body_size(const char *header, size_t size)
{
    const char *end = header + size, *line = header;
    while ((line = memchr(line, '\n', (size_t)(end - line))) != NULL && ++line < end) {
        if ((size_t)(end - line) < sizeof LENGTH || strncasecmp(line, LENGTH, sizeof LENGTH - 1) != 0)
            continue;
        /* The empty line ends the number, so that strtol reads nothing behind the header. */
        return strtol(line + sizeof LENGTH - 1, NULL, 10);
    }
    return -1;
}

enum http http_examine(const char *bytes, size_t size)
{
    size_t status = sizeof STATUS - 1;
    if (memcmp(bytes, STATUS, size < status ? size : status) != 0)
        return HTTP_WRONG;
    const char *end = memmem(bytes, size, "\r\n\r\n", 4);
    if (!end)
        return size < HTTP_ANSWER_SIZE ? HTTP_PARTIAL : HTTP_WRONG;
    size_t header = (size_t)(end - bytes) + 4;
    long body = body_size(bytes, header);
    if (body < 0 || header + (size_t)body > HTTP_ANSWER_SIZE || size > header + (size_t)body)
        return HTTP_WRONG;
    return size < header + (size_t)body ? HTTP_PARTIAL : HTTP_COMPLETE;
}
