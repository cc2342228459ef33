/* What a process has cost up to now, by the kernel's own books, read from outside: nothing is asked of the server.

   The total is the process's CPU clock, of all its threads, in nanoseconds. It is exact for a process that sleeps; one
   that runs may have up to a tick of the kernel's timer more behind it. How it divides into user and system time the
   kernel only samples, at that tick, and tells in hundredths of a second. */
#ifndef ACCOUNT_H
#define ACCOUNT_H

#include <stdint.h>
#include <sys/types.h>

struct account {
    uint64_t cpu_ns;
    uint64_t user_ns, system_ns;
};

/* 0, or -1 if there is no such process. A pid of 0 costs nothing. */
int account_read(pid_t pid, struct account *out);

#endif
