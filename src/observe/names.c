/* names.c - what objects, their fields and roots are called.
 *
 * Model       A field has its name, an element of an array or of a flexible tail its index. Elements that are structs have
 *             both, as long as there are not too many: each name is a string of the dump.
 * Tests       tests/api/heapdump.c
 */
#include "observe/names.h"

#include "sched/sched.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    WORD = sizeof(uintptr_t),
    NAMED_BYTES = 4096,  /* of an array of structs: fields of elements beyond are named by index */
    SEARCH_BYTES = 4096, /* of objects in which a word that a scan function named is looked for */
};

/* -- texts ------------------------------------------------------------------------------------- */

static void field_text(const struct gctype *t, size_t off, char text[NAME_BYTES_MOST])
{
    char whole[NAME_BYTES_MOST];
    gctype_field_name(t, off, whole, sizeof whole); /* type.field, or type+8 */
    size_t n = strnlen(t->name, sizeof whole);
    const char *field = strlen(whole) > n ? whole + n : "";
    snprintf(text, NAME_BYTES_MOST, "%s", field[0] == '.' ? field + 1 : field);
}

static void element_text(const struct gctype *t, size_t off, char text[NAME_BYTES_MOST])
{
    char field[NAME_BYTES_MOST];
    field_text(t, off % t->size, field);
    snprintf(text, NAME_BYTES_MOST, "[%zu]%s%.200s", off / t->size, field[0] == '+' ? "" : ".",
             field);
}

static void variable_text(uintptr_t addr, const struct os_symbols *symbols,
                          char text[NAME_BYTES_MOST])
{
    const struct os_symbol *s = os_symbols_find(symbols, addr);
    if (s == NULL) {
        snprintf(text, NAME_BYTES_MOST, "0x%" PRIxPTR, addr);
    } else if (s->start == addr) {
        snprintf(text, NAME_BYTES_MOST, "%.150s [%.60s]", s->name, s->module);
    } else {
        snprintf(text, NAME_BYTES_MOST, "%.150s + %zu [%.60s]", s->name, (size_t)(addr - s->start),
                 s->module);
    }
}

static void thread_text(int tid, char text[NAME_BYTES_MOST])
{
    char name[64];
    if (os_snapshot_thread_name(tid, name, sizeof name)) {
        snprintf(text, NAME_BYTES_MOST, "thread %d: %s", tid, name);
    } else {
        snprintf(text, NAME_BYTES_MOST, "thread %d", tid);
    }
}

static void goroutine_text(const struct g *g, char text[NAME_BYTES_MOST])
{
    snprintf(text, NAME_BYTES_MOST, "goroutine %" PRIu64 "%s%.*s", g->id,
             g->name[0] != '\0' ? ": " : "", NAME_BYTES, g->name);
}

void name_text(const struct name *name, const struct os_symbols *symbols,
               char text[NAME_BYTES_MOST])
{
    switch (name->kind) {
    case NAME_TEXT:
        snprintf(text, NAME_BYTES_MOST, "%s", (const char *)name->of);
        break;
    case NAME_TYPE:
        snprintf(text, NAME_BYTES_MOST, "%s", ((const struct gctype *)name->of)->name);
        break;
    case NAME_FIELD:
        field_text(name->of, (size_t)name->n, text);
        break;
    case NAME_ELEMENT:
        element_text(name->of, (size_t)name->n, text);
        break;
    case NAME_INDEX:
        snprintf(text, NAME_BYTES_MOST, "[%" PRIu64 "]", name->n);
        break;
    case NAME_NUMBER:
        snprintf(text, NAME_BYTES_MOST, "%s %" PRIu64, (const char *)name->of, name->n);
        break;
    case NAME_OFFSET:
        snprintf(text, NAME_BYTES_MOST, "%s + %" PRIu64, (const char *)name->of, name->n);
        break;
    case NAME_ADDRESS:
        snprintf(text, NAME_BYTES_MOST, "%s 0x%" PRIx64, (const char *)name->of, name->n);
        break;
    case NAME_VARIABLE:
        variable_text((uintptr_t)name->n, symbols, text);
        break;
    case NAME_THREAD:
        thread_text((int)name->n, text);
        break;
    case NAME_GOROUTINE:
        goroutine_text(name->of, text);
        break;
    }
}

/* -- edges ------------------------------------------------------------------------------------- */

static NO_SANITIZE uintptr_t locate(const struct object *obj, const struct object *to)
{
    uintptr_t start = graph_address(obj);
    size_t bytes = obj->span->elem_size;
    for (uintptr_t p = start; bytes <= SEARCH_BYTES && p + WORD <= start + bytes; p += WORD) {
        struct object there;
        if (graph_find(*(const volatile uintptr_t *)p, &there) && there.span == to->span &&
            there.index == to->index) {
            return p;
        }
    }
    return 0;
}

static struct edge_name by_text(const char *text)
{
    return (struct edge_name){.name = {.kind = NAME_TEXT, .of = text}};
}

static struct edge_name by_offset(const struct object *obj, size_t off)
{
    const struct gctype *t = obj->span->type;
    struct edge_name e = {.name = {NAME_FIELD, t, off}};
    if (t == &gctype_conservative) {
        e.indexed = true;
        e.index = off / WORD;
        e.name = (struct name){NAME_INDEX, NULL, e.index};
    } else if (t->flex) {
        e.indexed = off >= t->tail_offset && t->tail_elem != 0;
        e.index = e.indexed ? (off - t->tail_offset) / t->tail_elem : 0;
    } else if (obj->span->elem_size >= 2 * t->size) {
        bool alone = t->nfields == 1 && t->fields[0].words == 1;
        e.indexed = alone || off >= NAMED_BYTES;
        e.index = off / t->size;
        e.name.kind = NAME_ELEMENT;
    }
    return e;
}

struct edge_name name_edge(const struct object *obj, uintptr_t where, const struct object *to)
{
    if (where == 0) {
        where = locate(obj, to);
    }
    if (where == 0) {
        return by_text("what its scan function names");
    }
    size_t off = where - graph_address(obj);
    return off < obj->span->elem_size ? by_offset(obj, off) : by_text("a frame on it");
}

struct name name_object(const struct object *obj)
{
    const struct gctype *t = obj->span->type;
    if (t == &gctype_noscan) {
        return (struct name){.kind = NAME_TEXT, .of = "untyped, noscan"};
    }
    return (struct name){.kind = NAME_TYPE, .of = t};
}

/* -- roots ------------------------------------------------------------------------------------- */

struct name name_source(const struct source *s)
{
    const struct root *r = &s->root;
    if (s->end != NULL) {
        return (struct name){NAME_ADDRESS, s->end, s->of};
    }
    switch (r->kind) {
    case ROOT_DATA:
        return (struct name){NAME_VARIABLE, NULL, r->where};
    case ROOT_RANGE:
        return (struct name){NAME_ADDRESS, "registered word", r->where};
    case ROOT_PIN:
        return (struct name){NAME_TEXT, "pin", 0};
    case ROOT_HANDLER:
        return (struct name){NAME_TEXT, "argument of an out-of-memory handler", 0};
    case ROOT_STACK:
        return (struct name){NAME_OFFSET, "stack", r->where - r->start};
    case ROOT_REGISTER:
        return (struct name){NAME_NUMBER, "register", r->where};
    case ROOT_TLS:
        return (struct name){NAME_ADDRESS, "thread-local", r->where};
    case ROOT_ARGUMENT:
        return (struct name){NAME_TEXT, "argument", 0};
    case ROOT_MSTACK:
        return (struct name){NAME_TEXT, "managed stack", 0};
    }
    return (struct name){NAME_TEXT, "root", 0};
}

struct name name_holder(const struct holder *h)
{
    static const char *const groups[GROUPS] = {
        [GROUP_GLOBALS] = "(globals)",
        [GROUP_RANGES] = "(registered ranges)",
        [GROUP_PINS] = "(pins)",
        [GROUP_THREADS] = "(threads)",
        [GROUP_GOROUTINES] = "(goroutines that wait)",
        [GROUP_ENDS] = "(finalizers, cleanups, weak pointers)",
        [GROUP_OTHERS] = "(other roots)",
    };
    if (h->m != NULL) {
        return (struct name){NAME_THREAD, NULL, (uint64_t)h->m->tid};
    }
    if (h->g != NULL) {
        return (struct name){NAME_GOROUTINE, h->g, 0};
    }
    return (struct name){NAME_TEXT, groups[h->group], 0};
}
