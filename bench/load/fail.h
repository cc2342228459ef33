/* The one way to give up: a line on standard error, exit status 1. A measurement with a failure in it is none. */
#ifndef FAIL_H
#define FAIL_H

#include <stdnoreturn.h>

noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
