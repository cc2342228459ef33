/* The module prefork._native: its state, and the types that the other files add to it. */
#include "native.h"

#ifndef PREFORK_VERSION
#define PREFORK_VERSION "unknown"
#endif

static int look_up(State *state)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    state->CancelledError = asyncio == NULL ? NULL : PyObject_GetAttrString(asyncio, "CancelledError");
    Py_XDECREF(asyncio);
    state->str_call_soon = PyUnicode_InternFromString("call_soon");
    state->str_context = PyUnicode_InternFromString("context");
    state->context_kwname = state->str_context == NULL ? NULL : PyTuple_Pack(1, state->str_context);
    return state->CancelledError == NULL || state->str_call_soon == NULL || state->context_kwname == NULL ? -1 : 0;
}

static int native_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if (look_up(state) < 0 || names_setup(state) < 0 || waiter_setup(module, state) < 0 ||
        task_setup(module, state) < 0 || poller_setup(module, state) < 0 || stream_setup(module, state) < 0 ||
        op_setup(module, state) < 0) {
        return -1;
    }
    /* Compared at import: an extension that an earlier build has left is not used. */
    return PyModule_AddStringConstant(module, "VERSION", PREFORK_VERSION);
}

static int native_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->PollerType);
    Py_VISIT(state->StreamType);
    Py_VISIT(state->OpType);
    Py_VISIT(state->WaiterType);
    Py_VISIT(state->TaskType);
    Py_VISIT(state->CancelledError);
    return names_traverse(state, visit, arg);
}

static int native_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->PollerType);
    Py_CLEAR(state->StreamType);
    Py_CLEAR(state->OpType);
    Py_CLEAR(state->WaiterType);
    Py_CLEAR(state->TaskType);
    Py_CLEAR(state->CancelledError);
    Py_CLEAR(state->str_call_soon);
    Py_CLEAR(state->str_context);
    Py_CLEAR(state->context_kwname);
    names_clear(state);
    return 0;
}

static void native_free(void *module)
{
    (void)native_clear(module);
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, native_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "prefork._native",
    .m_doc = "The compiled core of prefork's streams.",
    .m_size = sizeof(State),
    .m_slots = native_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
    .m_free = native_free,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
