/* native.c - functions of the language that are written in C.
 *
 * What resume and yield give goes to the coroutine that runs when they return: another one.
 */
#include "vm.h"

#include <loam/stats.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* v, which has to be of this kind. */
static value checked(machine *m, value v, enum kind kind)
{
    if (v.kind != kind)
        fail(m, "expected %s, not %s", kind_names[kind], kind_names[v.kind]);
    return v;
}

static value native_print(machine *m, const value v[])
{
    (void)m;
    puts(string_of(v[0])->bytes);
    return v[0];
}

static value native_len(machine *m, const value v[])
{
    bool text = v[0].kind == STRING;
    return value_number(text ? v[0].string->length : checked(m, v[0], TABLE).table->count);
}

/* sub(TEXT, FIRST, LAST), from 1 and both included; what lies outside is left out. */
static value native_sub(machine *m, const value v[])
{
    const string *s = checked(m, v[0], STRING).string;
    double first = fmax(checked(m, v[1], NUMBER).number, 1);
    double last = fmin(checked(m, v[2], NUMBER).number, s->length);
    size_t at = first <= last ? (size_t)first - 1 : 0;
    return value_object(STRING, string_make(s->bytes + at, first <= last ? (size_t)last - at : 0));
}

static value native_error(machine *m, const value v[])
{
    fail_with(m, v[0]);
}

static value native_coroutine(machine *m, const value v[])
{
    return value_object(COROUTINE, coroutine_make(m, v[0]));
}

/* resume(COROUTINE, VALUE): what it yields or returns. */
static value native_resume(machine *m, const value v[])
{
    coroutine_resume(m, checked(m, v[0], COROUTINE).coroutine);
    return v[1];
}

/* yield(VALUE): what it is resumed with. */
static value native_yield(machine *m, const value v[])
{
    if (m->current->resumer == NULL)
        fail(m, "yield outside of a coroutine");
    coroutine_leave(m, SUSPENDED);
    return v[0];
}

/* The keys of a table, as the list of another. */
static value native_keys(machine *m, const value v[])
{
    const table *t = checked(m, v[0], TABLE).table;
    table *keys = LOAM_NEW(table);
    for (uint32_t i = 0; i < t->size; i++)
        if (t->entries[i].value.kind != NIL)
            table_set(keys, value_number(keys->count + 1.0), t->entries[i].key);
    return value_object(TABLE, keys);
}

/* Collects; the bytes of what is alive. */
static value native_heap(machine *m, const value v[])
{
    loam_memstats stats;
    (void)m, (void)v;
    loam_gc();
    loam_read_memstats(&stats);
    return value_number((double)stats.heap_alloc);
}

static const native natives[] = {
    {"print", native_print},   {"len", native_len},     {"sub", native_sub},

    {"error", native_error},   {"heap", native_heap},   {"coroutine", native_coroutine},
    {"resume", native_resume}, {"yield", native_yield}, {"keys", native_keys}};

const native *native_find(const string *name)
{
    for (size_t i = 0; i < sizeof natives / sizeof *natives; i++)
        if (strcmp(natives[i].name, name->bytes) == 0)
            return &natives[i];
    return NULL;
}
