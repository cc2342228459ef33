/* The task that the poller steps directly; see task.c. */
#ifndef PREFORK_TASK_H
#define PREFORK_TASK_H

#include "native.h"

typedef struct Task Task;

/* Step a task whose waiter was woken. Only from a callback of the loop. 0, or -1 with the exception that escaped. */
int task_wake(Task *task);

#endif
