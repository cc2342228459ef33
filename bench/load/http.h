/* Where an answer by HTTP/1.1 ends. Only what servers send for a small GET: status 200 with a Content-Length. */
#ifndef HTTP_H
#define HTTP_H

#include <stddef.h>

/* Bytes of an answer, header included; a longer one is wrong. */
#define HTTP_ANSWER_SIZE 4096

enum http { HTTP_WRONG, HTTP_PARTIAL, HTTP_COMPLETE };

/* What the first `size` bytes of an answer are. */
enum http http_examine(const char *bytes, size_t size);

#endif
