/* The type of a task: its construction, its attributes and its collection; task.c has what it does. */
#include "task.h"

#include <stddef.h>

/* The state of the module that made this task's type. Borrowed. */
static State *state_of_task(PyObject *task)
{
    return state_of(Py_TYPE(task));
}

static TaskFields *fields_of(PyObject *task)
{
    return task_fields(state_of_task(task), task);
}

/* --- what asyncio calls --------------------------------------------------------------------------------------------*/

static PyObject *Task_step(PyObject *task, PyObject *const *args, Py_ssize_t count)
{
    State *state = state_of_task(task);
    int done = task_is_done(state, task);
    if (done > 0) {
        PyErr_Format(PyExc_RuntimeError, "_step(): already done: %R", task);
    }
    return done != 0 ? NULL : none_unless(task_step(state, task, count > 0 ? args[0] : NULL));
}

static PyObject *Task_wakeup(PyObject *task, PyObject *future)
{
    return none_unless(task_continue(state_of_task(task), task, future));
}

static PyObject *Task_cancel(PyObject *task, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"msg", NULL};
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:cancel", names, &message)) {
        return NULL;
    }
    int requested = task_cancel(state_of_task(task), task, message);
    return requested < 0 ? NULL : PyBool_FromLong(requested);
}

static PyObject *Task_cancelling(PyObject *task, PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(fields_of(task)->cancel_requests);
}

static PyObject *Task_uncancel(PyObject *task, PyObject *Py_UNUSED(none))
{
    TaskFields *fields = fields_of(task);
    if (fields->cancel_requests > 0) {
        fields->cancel_requests--;
#if PY_VERSION_HEX >= 0x030D0000
        /* From 3.13 on (gh-117407): otherwise a cancellation that was taken back would be delivered all the same. */
        if (fields->cancel_requests == 0) {
            fields->must_cancel = false;
        }
#endif
    }
    return PyLong_FromLong(fields->cancel_requests);
}

/* Return the CancelledError that ended the task (owned), which has its traceback, or NULL. Once, because to raise one
 * object again would grow its traceback. */
static PyObject *take_cancelled(PyObject *task)
{
    TaskFields *fields = fields_of(task);
    PyObject *error = fields->cancelled;
    fields->cancelled = NULL;
    return error;
}

static PyObject *Task_make_cancelled_error(PyObject *task, PyObject *Py_UNUSED(none))
{
    PyObject *error = take_cancelled(task);
    return error != NULL ? error : PyObject_CallOneArg(state_of_task(task)->task.future_make_cancelled_error, task);
}

static PyObject *raise_cancelled_or_call(PyObject *task, PyObject *method)
{
    PyObject *error = take_cancelled(task);
    if (error == NULL) {
        return PyObject_CallOneArg(method, task);
    }
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
    return NULL;
}

static PyObject *Task_result(PyObject *task, PyObject *Py_UNUSED(none))
{
    return raise_cancelled_or_call(task, state_of_task(task)->task.future_result);
}

static PyObject *Task_exception(PyObject *task, PyObject *Py_UNUSED(none))
{
    return raise_cancelled_or_call(task, state_of_task(task)->task.future_exception);
}

/* asyncio's own generator in Python. The one in C would take the result from the base, without the traceback of the
 * cancellation. */
static PyObject *Task_await(PyObject *task)
{
    return PyObject_CallOneArg(state_of_task(task)->task.future_await, task);
}

static PyObject *refuse(const char *name)
{
    PyErr_Format(PyExc_RuntimeError, "Task does not support %s operation", name);
    return NULL;
}

static PyObject *Task_set_result(PyObject *Py_UNUSED(task), PyObject *Py_UNUSED(value))
{
    return refuse("set_result");
}

static PyObject *Task_set_exception(PyObject *Py_UNUSED(task), PyObject *Py_UNUSED(value))
{
    return refuse("set_exception");
}

/* --- facts ---------------------------------------------------------------------------------------------------------*/

static PyObject *Task_get_name(PyObject *task, PyObject *Py_UNUSED(none))
{
    State *state = state_of_task(task);
    TaskFields *fields = task_fields(state, task);
    if (fields->name == NULL) {
        /* Late, because nearly always nothing asks for it. */
        PyObject *number = PyObject_CallNoArgs(state->task.next_name);
        fields->name = number == NULL ? NULL : PyUnicode_FromFormat("Task-%S", number);
        Py_XDECREF(number);
    }
    return Py_XNewRef(fields->name);
}

static PyObject *Task_set_name(PyObject *task, PyObject *value)
{
    PyObject *name = PyUnicode_CheckExact(value) ? Py_NewRef(value) : PyObject_Str(value);
    if (name == NULL) {
        return NULL;
    }
    Py_XSETREF(fields_of(task)->name, name);
    Py_RETURN_NONE;
}

/* A field that is NULL if `__init__` has not been called, or has failed. */
static PyObject *none_or(PyObject *field)
{
    return Py_NewRef(field == NULL ? Py_None : field);
}

static PyObject *Task_get_coro(PyObject *task, PyObject *Py_UNUSED(none))
{
    return none_or(fields_of(task)->coroutine);
}

static PyObject *Task_get_context(PyObject *task, PyObject *Py_UNUSED(none))
{
    return none_or(fields_of(task)->context);
}

static PyObject *Task_get_stack(PyObject *task, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"limit", NULL};
    PyObject *limit = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O:get_stack", names, &limit)) {
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(state_of_task(task)->task.task_get_stack, task, limit, NULL);
}

static PyObject *Task_print_stack(PyObject *task, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"limit", "file", NULL};
    PyObject *limit = Py_None, *file = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OO:print_stack", names, &limit, &file)) {
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(state_of_task(task)->task.task_print_stack, task, limit, file, NULL);
}

static PyObject *Task_repr(PyObject *task)
{
    return PyObject_CallOneArg(state_of_task(task)->task.task_repr, task);
}

static PyObject *get_coroutine(PyObject *task, void *Py_UNUSED(closure))
{
    return Task_get_coro(task, NULL);
}

static PyObject *get_waiting_for(PyObject *task, void *Py_UNUSED(closure))
{
    return none_or(fields_of(task)->waiting_for);
}

static PyObject *get_must_cancel(PyObject *task, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(fields_of(task)->must_cancel);
}

static PyObject *get_log_pending(PyObject *task, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(!fields_of(task)->quiet);
}

static int set_log_pending(PyObject *task, PyObject *value, void *Py_UNUSED(closure))
{
    int logs = value == NULL ? -1 : PyObject_IsTrue(value);
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
    }
    fields_of(task)->quiet = logs == 0;
    return logs < 0 ? -1 : 0;
}

/* --- life ----------------------------------------------------------------------------------------------------------*/

static int init_future(State *state, PyObject *task, PyObject *loop)
{
    PyObject *none = PyTuple_New(0);
    PyObject *kwargs = none == NULL ? NULL : Py_BuildValue("{sO}", "loop", loop);
    int result = kwargs == NULL ? -1 : state->task.future_type->tp_init(task, none, kwargs);
    Py_XDECREF(none);
    Py_XDECREF(kwargs);
    return result;
}

static int check_coroutine(State *state, PyObject *coroutine)
{
    PyObject *is = PyCoro_CheckExact(coroutine) ? Py_NewRef(Py_True)
                                                : PyObject_CallOneArg(state->task.iscoroutine, coroutine);
    int result = is == NULL ? -1 : PyObject_IsTrue(is);
    Py_XDECREF(is);
    if (result == 0) {
        PyErr_Format(PyExc_TypeError, "a coroutine was expected, got %R", coroutine);
    }
    return result > 0 ? 0 : -1;
}

static int set_fields(State *state, PyObject *task, PyObject *coroutine, PyObject *name, PyObject *context)
{
    TaskFields *fields = task_fields(state, task);
    PyObject *loop = PyObject_CallMethodNoArgs(task, state->task.str_get_loop);
    context = context == Py_None ? PyContext_CopyCurrent() : Py_NewRef(context);
    if (loop == NULL || context == NULL || !PyContext_CheckExact(context)) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError, "context must be a contextvars.Context, not %R", context);
        }
        Py_XDECREF(loop);
        Py_XDECREF(context);
        return -1;
    }
    Py_XSETREF(fields->loop, loop);
    Py_XSETREF(fields->context, context);
    Py_XSETREF(fields->coroutine, Py_NewRef(coroutine));
    fields->cancel_requests = 0;
    fields->must_cancel = fields->quiet = false;
    Py_CLEAR(fields->name);
    if (name != Py_None) {
        PyObject *done = Task_set_name(task, name);
        Py_XDECREF(done);
        return done == NULL ? -1 : 0;
    }
    return 0;
}

static int register_task(State *state, PyObject *task)
{
    PyObject *result = PyObject_CallOneArg(state->task.register_task, task);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* 1 if the first step may run now, 0, or -1. */
static int may_start_eagerly(State *state, PyObject *loop, int eager)
{
    if (!eager || state->task.swap_current_task == NULL) {
        return 0;
    }
    PyObject *running = PyObject_CallMethod(loop, "is_running", NULL);
    int result = running == NULL ? -1 : PyObject_IsTrue(running);
    Py_XDECREF(running);
    return result;
}

static int Task_init(PyObject *task, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"coro", "loop", "name", "context", "eager_start", NULL};
    State *state = state_of_task(task);
    PyObject *coroutine, *loop = Py_None, *name = Py_None, *context = Py_None;
    int eager = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$OOOp:Task", names, &coroutine, &loop, &name, &context, &eager)) {
        return -1;
    }
    if (init_future(state, task, loop) < 0) {
        return -1;
    }
    TaskFields *fields = task_fields(state, task);
    fields->quiet = true;
    if (check_coroutine(state, coroutine) < 0 || set_fields(state, task, coroutine, name, context) < 0) {
        return -1;
    }
    eager = may_start_eagerly(state, fields->loop, eager);
    if (eager < 0) {
        return -1;
    }
    if (!eager) {
        return task_step_soon(state, task, NULL) < 0 ? -1 : register_task(state, task);
    }
    return task_start_eagerly(state, task);
}

static void Task_dealloc(PyObject *task);

/* Return asyncio.Future, the base of this task's type. Borrowed. Found without the module, because the collector
 * may clear the module and the type before the last tasks; otherwise an exit with tasks in cycles crashes. */
static PyTypeObject *base_of(PyObject *task)
{
    PyTypeObject *type = Py_TYPE(task);
    while (type->tp_dealloc != Task_dealloc) {
        type = type->tp_base; /* from a subclass in Python */
    }
    return type->tp_base;
}

static TaskFields *fields_behind(const PyTypeObject *base, PyObject *task)
{
    return (TaskFields *)((char *)task + task_offset_behind(base));
}

/* As asyncio does: a task that is collected before it is done is a mistake of the program. */
static void warn_destroyed(State *state, PyObject *task)
{
    TaskFields *fields = task_fields(state, task);
    PyObject *context = NULL, *result = NULL;
    if (!fields->quiet && task_is_done(state, task) == 0) {
        context = Py_BuildValue("{sOss}", "task", task, "message", "Task was destroyed but it is pending!");
        PyObject *source = PyObject_GetAttrString(task, "_source_traceback");
        if (context != NULL && source != NULL && source != Py_None) {
            (void)PyDict_SetItemString(context, "source_traceback", source);
        }
        Py_XDECREF(source);
        if (context != NULL) {
            result = PyObject_CallMethodOneArg(fields->loop, state->names.call_exception_handler, context);
        }
    }
    Py_XDECREF(context);
    Py_XDECREF(result);
    if (PyErr_Occurred()) {
        PyErr_WriteUnraisable(task);
    }
}

static void Task_finalize(PyObject *task)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyTypeObject *base = base_of(task);
    if (fields_behind(base, task)->loop != NULL) {
        warn_destroyed(state_of_task(task), task);
    }
    PyErr_Restore(type, error, traceback);
    base->tp_finalize(task);
}

/* Whether the base counts the references of its objects to their type: a static type, as in 3.11, does not. */
static bool counts_type(const PyTypeObject *base)
{
    return (base->tp_flags & Py_TPFLAGS_HEAPTYPE) != 0;
}

static int Task_traverse(PyObject *task, visitproc visit, void *arg)
{
    PyTypeObject *base = base_of(task);
    TaskFields *fields = fields_behind(base, task);
    Py_VISIT(fields->loop);
    Py_VISIT(fields->coroutine);
    Py_VISIT(fields->context);
    Py_VISIT(fields->name);
    Py_VISIT(fields->waiting_for);
    Py_VISIT(fields->cancelled);
    if (!counts_type(base)) {
        Py_VISIT(Py_TYPE(task));
    }
    return base->tp_traverse(task, visit, arg);
}

static void clear_fields(TaskFields *fields)
{
    Py_CLEAR(fields->loop);
    Py_CLEAR(fields->coroutine);
    Py_CLEAR(fields->context);
    Py_CLEAR(fields->name);
    Py_CLEAR(fields->waiting_for);
    Py_CLEAR(fields->cancelled);
}

static int Task_clear(PyObject *task)
{
    PyTypeObject *base = base_of(task);
    clear_fields(fields_behind(base, task));
    return base->tp_clear(task);
}

static void Task_dealloc(PyObject *task)
{
    if (PyObject_CallFinalizerFromDealloc(task) < 0) {
        return; /* It lives on. */
    }
    PyTypeObject *type = Py_TYPE(task), *base = base_of(task);
    bool is_counted = counts_type(base); /* Asked now: the base may end with the type. */
    PyObject_GC_UnTrack(task);
    clear_fields(fields_behind(base, task));
    base->tp_dealloc(task);
    if (!is_counted) {
        Py_DECREF(type);
    }
}

static PyMethodDef task_methods[] = {
    {"_step", (PyCFunction)(void (*)(void))Task_step, METH_FASTCALL, NULL},
    {"_wakeup", Task_wakeup, METH_O, NULL},
    {"result", Task_result, METH_NOARGS, NULL},
    {"exception", Task_exception, METH_NOARGS, NULL},
    {"_make_cancelled_error", Task_make_cancelled_error, METH_NOARGS, NULL},
    {"cancel", (PyCFunction)(void (*)(void))Task_cancel, METH_VARARGS | METH_KEYWORDS, NULL},
    {"cancelling", Task_cancelling, METH_NOARGS, NULL},
    {"uncancel", Task_uncancel, METH_NOARGS, NULL},
    {"set_result", Task_set_result, METH_O, NULL},
    {"set_exception", Task_set_exception, METH_O, NULL},
    {"get_name", Task_get_name, METH_NOARGS, NULL},
    {"set_name", Task_set_name, METH_O, NULL},
    {"get_coro", Task_get_coro, METH_NOARGS, NULL},
    {"get_context", Task_get_context, METH_NOARGS, NULL},
    {"get_stack", (PyCFunction)(void (*)(void))Task_get_stack, METH_VARARGS | METH_KEYWORDS, NULL},
    {"print_stack", (PyCFunction)(void (*)(void))Task_print_stack, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef task_getset[] = {
    {"_coro", get_coroutine, NULL, NULL, NULL},
    {"_fut_waiter", get_waiting_for, NULL, NULL, NULL},
    {"_must_cancel", get_must_cancel, NULL, NULL, NULL},
    {"_log_destroy_pending", get_log_pending, set_log_pending, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot task_slots[] = {
    {Py_tp_doc, "A task that is stepped by the poller of its streams; like asyncio.Task."},
    {Py_tp_init, Task_init},
    {Py_tp_dealloc, Task_dealloc},
    {Py_tp_traverse, Task_traverse},
    {Py_tp_clear, Task_clear},
    {Py_tp_finalize, Task_finalize},
    {Py_tp_repr, Task_repr},
    {Py_tp_iter, Task_await},
    {Py_am_await, Task_await},
    {Py_tp_methods, task_methods},
    {Py_tp_getset, task_getset},
    {0, NULL},
};

int task_setup(PyObject *module, State *state)
{
    if (task_names_setup(state) < 0) {
        return -1;
    }
    PyTypeObject *base = state->task.future_type;
    state->task_offset = task_offset_behind(base);
    PyType_Spec spec = {
        .name = "prefork._native.Task",
        .basicsize = (int)(state->task_offset + (Py_ssize_t)sizeof(TaskFields)),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
        .slots = task_slots,
    };
    state->TaskType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, (PyObject *)base);
    return state->TaskType == NULL ? -1 : PyModule_AddType(module, state->TaskType);
}
