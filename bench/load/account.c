#define _GNU_SOURCE
#include "account.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int read_clock(pid_t pid, uint64_t *ns)
{
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) != 0)
        return -1;
    *ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    return 0;
}

static int read_split(pid_t pid, struct account *out)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return -1;
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = 0;
    /* The second field is the program's name, in brackets, and may contain anything. */
    char *rest = strrchr(text, ')');
    unsigned long long user, system;
    if (!rest || sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) != 2)
        return -1;
    uint64_t tick = 1000000000u / (uint64_t)sysconf(_SC_CLK_TCK);
    out->user_ns = user * tick;
    out->system_ns = system * tick;
    return 0;
}

int account_read(pid_t pid, struct account *out)
{
    memset(out, 0, sizeof *out);
    if (pid == 0)
        return 0;
    return read_clock(pid, &out->cpu_ns) == 0 && read_split(pid, out) == 0 ? 0 : -1;
}
