/* What streams need of Python, looked up once at import: interned names, enums, errors. */
#include "native.h"

#include <stddef.h>

typedef struct String {
    size_t offset; /* of the field in Names */
    const char *text;
} String;

typedef struct Import {
    size_t offset; /* of the field in State */
    const char *module;
    const char *name;
} Import;

#define NAME(field) {offsetof(Names, field), #field}

static const String STRINGS[] = {
    NAME(call_exception_handler), NAME(close), NAME(detach), NAME(forked), NAME(join), NAME(note_end),
    NAME(pending), NAME(poller), NAME(read), NAME(received_close_notify), NAME(wake), NAME(write),
    NAME(_close), NAME(_cork_tls_output), NAME(_discard_input), NAME(_failure), NAME(_flush), NAME(_on_backlog_added),
    NAME(_on_backlog_empty), NAME(_on_backlog_sent), NAME(_on_disposed), NAME(_on_no_memory), NAME(_on_output_sent),
    NAME(_on_ready), NAME(_on_writable), NAME(_raised),
};

#define ERROR(field) offsetof(State, names.field)

static const Import IMPORTS[] = {
    {ERROR(AbortedError), "builtins", "ConnectionAbortedError"},
    {ERROR(BusyError), "prefork.errors", "StreamBusyError"},
    {ERROR(LineError), "prefork.errors", "LineTooLongError"},
    {ERROR(IncompleteError), "asyncio", "IncompleteReadError"},
    {ERROR(OverrunError), "asyncio", "LimitOverrunError"},
    {ERROR(WantReadError), "ssl", "SSLWantReadError"},
    {ERROR(ZeroReturnError), "ssl", "SSLZeroReturnError"},
    {ERROR(SSLError), "ssl", "SSLError"},
    {ERROR(socket_class), "socket", "socket"},
};

#define TASK(field) offsetof(State, task.field)

static const Import TASK_IMPORTS[] = {
    {TASK(future_type), "asyncio", "Future"},
    {TASK(enter_task), "asyncio.tasks", "_enter_task"},
    {TASK(leave_task), "asyncio.tasks", "_leave_task"},
    {TASK(register_task), "asyncio.tasks", "_register_task"},
#if PY_VERSION_HEX >= 0x030C0000
    {TASK(swap_current_task), "asyncio.tasks", "_swap_current_task"},
    {TASK(register_eager), "asyncio.tasks", "_register_eager_task"},
    {TASK(unregister_eager), "asyncio.tasks", "_unregister_eager_task"},
#endif
    {TASK(iscoroutine), "asyncio", "iscoroutine"},
    {TASK(next_name), "asyncio.tasks", "_task_name_counter"},
    {TASK(task_repr), "asyncio.base_tasks", "_task_repr"},
    {TASK(task_get_stack), "asyncio.base_tasks", "_task_get_stack"},
    {TASK(task_print_stack), "asyncio.base_tasks", "_task_print_stack"},
};

static const Import FUTURE_METHODS[] = {
    {TASK(future_cancel), NULL, "cancel"},
    {TASK(future_done), NULL, "done"},
    {TASK(future_make_cancelled_error), NULL, "_make_cancelled_error"},
    {TASK(future_exception), NULL, "exception"},
    {TASK(future_result), NULL, "result"},
    {TASK(future_set_exception), NULL, "set_exception"},
    {TASK(future_set_result), NULL, "set_result"},
};

#define TASK_STRING(field, text) {offsetof(TaskNames, field), text}

static const String TASK_STRINGS[] = {
    TASK_STRING(str_add_done_callback, "add_done_callback"),
    TASK_STRING(str_blocking, "_asyncio_future_blocking"),
    TASK_STRING(str_cancel, "cancel"),
    TASK_STRING(str_cancel_message, "_cancel_message"),
    TASK_STRING(str_get_loop, "get_loop"),
    TASK_STRING(str_log_traceback, "_log_traceback"),
    TASK_STRING(str_result, "result"),
    TASK_STRING(str_step, "_step"),
    TASK_STRING(str_throw, "throw"),
    TASK_STRING(str_wakeup, "_wakeup"),
};

/* Return the attribute `name` of a module. */
static PyObject *import_name(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *value = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    return value;
}

/* Store the members of an enum of prefork.net.phases, which come in the order of their definition. */
static int store_members(const char *name, PyObject **members, Py_ssize_t count)
{
    PyObject *type = import_name("prefork.net.phases", name);
    PyObject *list = type == NULL ? NULL : PySequence_List(type);
    Py_XDECREF(type);
    if (list == NULL) {
        return -1;
    }
    int failed = PyList_GET_SIZE(list) != count;
    if (failed) {
        PyErr_Format(PyExc_ImportError, "prefork.net.phases.%s has %zd members, not %zd", name, PyList_GET_SIZE(list),
                     count);
    }
    for (Py_ssize_t i = 0; !failed && i < count; i++) {
        members[i] = Py_NewRef(PyList_GET_ITEM(list, i));
    }
    Py_DECREF(list);
    return failed ? -1 : 0;
}

static int intern_all(const String *strings, size_t count, void *names)
{
    for (size_t i = 0; i < count; i++) {
        PyObject *text = PyUnicode_InternFromString(strings[i].text);
        if (text == NULL) {
            return -1;
        }
        *(PyObject **)((char *)names + strings[i].offset) = text;
    }
    return 0;
}

static int import_all(const Import *imports, size_t count, State *state)
{
    for (size_t i = 0; i < count; i++) {
        PyObject *value = imports[i].module == NULL
                              ? PyObject_GetAttrString((PyObject *)state->task.future_type, imports[i].name)
                              : import_name(imports[i].module, imports[i].name);
        if (value == NULL) {
            return -1;
        }
        *(PyObject **)((char *)state + imports[i].offset) = value;
    }
    return 0;
}

#define LENGTH(array) (sizeof(array) / sizeof *(array))

int task_names_setup(State *state)
{
    state->task.msg_kwname = Py_BuildValue("(s)", "msg");
    PyObject *pure_future = import_name("asyncio.futures", "_PyFuture");
    state->task.future_await = pure_future == NULL ? NULL : PyObject_GetAttrString(pure_future, "__await__");
    Py_XDECREF(pure_future);
    if (state->task.future_await == NULL) {
        return -1;
    }
    return state->task.msg_kwname == NULL || import_all(TASK_IMPORTS, LENGTH(TASK_IMPORTS), state) < 0 ||
                   import_all(FUTURE_METHODS, LENGTH(FUTURE_METHODS), state) < 0 ||
                   intern_all(TASK_STRINGS, LENGTH(TASK_STRINGS), &state->task) < 0
               ? -1
               : 0;
}

int names_setup(State *state)
{
    if (intern_all(STRINGS, LENGTH(STRINGS), &state->names) < 0 || import_all(IMPORTS, LENGTH(IMPORTS), state) < 0) {
        return -1;
    }
    state->names.newline = PyBytes_FromString("\n");
    state->names.empty = PyBytes_FromStringAndSize(NULL, 0);
    state->names.record_size = PyLong_FromLong(16384);
    if (state->names.newline == NULL || state->names.empty == NULL || state->names.record_size == NULL) {
        return -1;
    }
    if (store_members("ConnectionPhase", state->phases, 4) < 0 || store_members("Output", state->outputs, 3) < 0 ||
        store_members("Input", state->inputs, 5) < 0) {
        return -1;
    }
    return 0;
}

/* The fields of Names and the enums are pointers in a row, so they are visited as arrays. */
static int visit_array(PyObject **objects, size_t count, visitproc visit, void *arg)
{
    for (size_t i = 0; i < count; i++) {
        Py_VISIT(objects[i]);
    }
    return 0;
}

#define COUNT(array) (sizeof(array) / sizeof(PyObject *))

int names_traverse(State *state, visitproc visit, void *arg)
{
    int result = visit_array((PyObject **)&state->names, COUNT(state->names), visit, arg);
    result = result != 0 ? result : visit_array(state->phases, COUNT(state->phases), visit, arg);
    result = result != 0 ? result : visit_array(state->outputs, COUNT(state->outputs), visit, arg);
    result = result != 0 ? result : visit_array((PyObject **)&state->task, COUNT(state->task), visit, arg);
    result = result != 0 ? result : visit_array(state->inputs, COUNT(state->inputs), visit, arg);
    Py_VISIT(state->stop_iteration);
    return result;
}

static void clear_array(PyObject **objects, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        Py_CLEAR(objects[i]);
    }
}

void names_clear(State *state)
{
    clear_array((PyObject **)&state->names, COUNT(state->names));
    clear_array((PyObject **)&state->task, COUNT(state->task));
    clear_array(state->phases, COUNT(state->phases));
    clear_array(state->outputs, COUNT(state->outputs));
    clear_array(state->inputs, COUNT(state->inputs));
    Py_CLEAR(state->stop_iteration);
}
