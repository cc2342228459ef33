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
    NAME(call_exception_handler), NAME(close), NAME(exception), NAME(forked), NAME(join), NAME(note_end),
    NAME(pending), NAME(poller), NAME(read), NAME(received_close_notify), NAME(wake), NAME(write),
    NAME(_close), NAME(_cork_tls_output), NAME(_discard_input), NAME(_failure), NAME(_flush), NAME(_on_backlog_added),
    NAME(_on_backlog_empty), NAME(_on_backlog_sent), NAME(_on_disposed), NAME(_on_no_memory), NAME(_on_output_sent),
    NAME(_on_ready), NAME(_on_writable),
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

int names_setup(State *state)
{
    for (size_t i = 0; i < sizeof STRINGS / sizeof *STRINGS; i++) {
        PyObject *text = PyUnicode_InternFromString(STRINGS[i].text);
        if (text == NULL) {
            return -1;
        }
        *(PyObject **)((char *)&state->names + STRINGS[i].offset) = text;
    }
    for (size_t i = 0; i < sizeof IMPORTS / sizeof *IMPORTS; i++) {
        PyObject *value = import_name(IMPORTS[i].module, IMPORTS[i].name);
        if (value == NULL) {
            return -1;
        }
        *(PyObject **)((char *)state + IMPORTS[i].offset) = value;
    }
    state->names.newline = PyBytes_FromString("\n");
    state->names.empty = PyBytes_FromStringAndSize(NULL, 0);
    state->names.record_size = PyLong_FromLong(16384);
    if (state->names.newline == NULL || state->names.empty == NULL || state->names.record_size == NULL) {
        return -1;
    }
    if (store_members("ConnectionPhase", state->phases, 4) < 0 || store_members("Output", state->outputs, 3) < 0 ||
        store_members("Input", state->inputs, 4) < 0) {
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
    clear_array(state->phases, COUNT(state->phases));
    clear_array(state->outputs, COUNT(state->outputs));
    clear_array(state->inputs, COUNT(state->inputs));
    Py_CLEAR(state->stop_iteration);
}
