#define _GNU_SOURCE
#include "payload.h"

#include <stdlib.h>
#include <string.h>

#include "fail.h"

#define WHOLE (16 * 1024)
#define SPOT 64

struct payload payload_make(size_t size, size_t lines)
{
    struct payload p = {.size = lines ? size * lines : size};
    p.bytes = malloc(p.size);
    if (!p.bytes)
        fail("no memory for a message of %zu bytes", p.size);
    uint32_t state = 12345;
    for (size_t i = 0; i < p.size; i++) {
        state = state * 1664525u + 1013904223u;
        p.bytes[i] = (char)('a' + (state >> 24) % 26);
    }
    for (size_t line = 1; line <= lines; line++)
        p.bytes[line * size - 1] = '\n';
    return p;
}

struct payload payload_make_request(void)
{
    struct payload p = {.bytes = strdup("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), .http = true};
    if (!p.bytes)
        fail("no memory for a request");
    p.size = strlen(p.bytes);
    return p;
}

void payload_stamp(struct payload *p, uint32_t stamp)
{
    if (p->http)
        return;
    for (int i = STAMP_SIZE - 1; i >= 0; i--, stamp >>= 4)
        p->bytes[i] = "0123456789abcdef"[stamp & 15];
}

bool payload_matches(const struct payload *p, size_t offset, const char *got, size_t size)
{
    if (size > p->size - offset)
        return false;
    const char *wanted = p->bytes + offset;
    if (p->size <= WHOLE || size <= 2 * SPOT)
        return memcmp(wanted, got, size) == 0;
    return memcmp(wanted, got, SPOT) == 0 && memcmp(wanted + size - SPOT, got + size - SPOT, SPOT) == 0;
}
