/* object.c - strings and tables. */
#include "vm.h"

#include <stdio.h>
#include <string.h>

enum { ENTRIES_MIN = 8, NUMBER_CHARS = 32 };

const char *const kind_names[] = {"nil",     "false",      "true",       "a number",   "a string",
                                  "a table", "a function", "a function", "a coroutine"};

/* ---- strings ---- */

string *string_blank(size_t length)
{
    string *s = LOAM_NEW_FLEX(string, length + 1);
    s->length = (uint32_t)length;
    return s;
}

string *string_make(const char *bytes, size_t length)
{
    string *s = string_blank(length);
    memcpy(s->bytes, bytes, length);
    return s;
}

string *string_of(value v)
{
    char text[NUMBER_CHARS];
    if (v.kind == STRING)
        return v.string;
    const char *shown = v.kind == NUMBER ? text : kind_names[v.kind];
    if (v.kind == NUMBER)
        snprintf(text, sizeof text, "%.14g", v.number);
    return string_make(shown, strlen(shown));
}

/* FNV-1a, kept for the next time. */
static uint32_t string_hash(string *s)
{
    if (s->hash == 0) {
        uint32_t h = 2166136261u;
        for (uint32_t i = 0; i < s->length; i++)
            h = (h ^ (unsigned char)s->bytes[i]) * 16777619u;
        s->hash = h | 1;
    }
    return s->hash;
}

bool string_equal(const string *a, const string *b)
{
    return a->length == b->length && memcmp(a->bytes, b->bytes, a->length) == 0;
}

/* ---- tables ---- */

bool value_equal(value a, value b)
{
    if (a.kind != b.kind || a.kind <= TRUE)
        return a.kind == b.kind;
    if (a.kind == NUMBER)
        return a.number == b.number;
    return a.object == b.object || (a.kind == STRING && string_equal(a.string, b.string));
}

/* Objects never move, so an address will do. */
static uint32_t value_hash(value v)
{
    if (v.kind == STRING)
        return string_hash(v.string);
    if (v.kind == NUMBER)
        v.number += 0.0; /* -0 is 0 */
    return (uint32_t)(((uintptr_t)v.object ^ v.kind) * 0x9e3779b97f4a7c15u >> 32);
}

/* Where key is, or else the free place where it would be. There is one: the table is never full. */
static entry *entry_find(const table *t, value key)
{
    uint32_t mask = t->size - 1, i = value_hash(key) & mask;
    while (t->entries[i].key.kind != NIL && !value_equal(t->entries[i].key, key))
        i = (i + 1) & mask;
    return &t->entries[i];
}

/* A new array, without what was removed; nobody frees the old one. */
static void table_grow(table *t)
{
    const entry *old = t->entries, *end = old + t->size;
    uint32_t live = 1, size = ENTRIES_MIN;
    for (const entry *e = old; e < end; e++)
        live += e->value.kind != NIL;
    while (size < 2 * live)
        size *= 2;
    LOAM_SET(t->entries, LOAM_NEW_ARRAY(entry, size)); /* first: it may fail */
    t->size = size;
    t->used = live - 1;
    for (const entry *e = old; e < end; e++)
        if (e->value.kind != NIL)
            loam_copy(entry_find(t, e->key), e, sizeof *e);
}

value table_get(const table *t, value key)
{
    return t->size == 0 ? value_object(NIL, NULL) : entry_find(t, key)->value;
}

/* key is neither nil nor NaN. */
void table_set(table *t, value key, value v)
{
    entry *e = t->size == 0 ? NULL : entry_find(t, key);
    if (e == NULL || e->key.kind == NIL) {
        if (4 * (t->used + 1) > 3 * t->size)
            table_grow(t);
        e = entry_find(t, key);
        value_set(&e->key, key);
        t->used++;
    }
    value_set(&e->value, v);
    if (key.kind != NUMBER)
        return;
    if (v.kind == NIL && key.number >= 1 && key.number <= t->count &&
        key.number == (uint32_t)key.number)
        t->count = (uint32_t)key.number - 1;
    while (v.kind != NIL && table_get(t, value_number(t->count + 1.0)).kind != NIL)
        t->count++;
}
