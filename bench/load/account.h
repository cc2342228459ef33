/* What a process has cost up to now, by the kernel's own books, read from outside: nothing is asked of the server.

   The total is the process's CPU clock, exact to the nanosecond, all threads and a running one included. How it divides
   into user and system time the kernel only samples, at its timer's tick, and tells in hundredths of a second. */
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
