/* walk.c - the words of an object that may hold pointers.
 *
 * Purpose     One place says, for checkers and reports, what each kind of layout means; the marker has its own, fast, in
 *             mark.c (scan_piece).
 * Locking     none: the world stands still, or this is a frozen copy of it.
 * Tests       tests/stress/missed_barrier.c
 */
#include "gc/walk.h"

#include "gc/mark.h"

enum {
    WORD = sizeof(uintptr_t),
    PIECE = 128 << 10, /* bytes shown to a scan function at once, as in mark.c */
};

struct walk {
    walk_fn *fn;
    void *arg;
};

NO_SANITIZE void walk_range(uintptr_t start, uintptr_t limit, walk_fn *fn, void *arg)
{
    for (uintptr_t p = align_up(start, WORD); p + WORD <= limit; p += WORD) {
        fn(arg, p, *(const volatile uintptr_t *)p);
    }
}

static void walk_fields(const struct walk *w, const struct gctype *t, uintptr_t obj)
{
    for (uint32_t i = 0; i < t->nfields; i++) {
        uintptr_t from = obj + t->fields[i].offset;
        walk_range(from, from + (size_t)t->fields[i].words * WORD, w->fn, w->arg);
    }
}

static void walk_mask(const struct walk *w, const struct gctype *t, uintptr_t obj)
{
    for (uint64_t m = t->mask; m != 0; m &= m - 1) {
        uintptr_t p = obj + (size_t)ctz64(m) * WORD;
        walk_range(p, p + WORD, w->fn, w->arg);
    }
}

static void walk_named(void *arg, uintptr_t word)
{
    const struct walk *w = arg;
    w->fn(w->arg, 0, word);
}

/* The program's scan function, in the pieces in which the marker calls it. */
static void walk_by_function(struct walk *w, const struct gctype *t, uintptr_t obj, size_t bytes)
{
    struct loam_marker m = {.fn = walk_named, .arg = w};
    size_t piece = t->size >= PIECE ? t->size : PIECE / t->size * t->size;
    for (size_t from = 0; from < bytes; from += piece) {
        size_t n = bytes - from < piece ? bytes - from : piece;
        n = n / t->size * t->size;
        if (n != 0) {
            t->scan((const void *)(obj + from), n, &m);
        }
    }
}

void walk_typed(const struct gctype *t, uintptr_t obj, size_t bytes, walk_fn *fn, void *arg)
{
    struct walk w = {fn, arg};
    switch (t->kind) {
    case SCAN_NONE:
        break;
    case SCAN_ALL:
        walk_range(obj, obj + bytes, fn, arg);
        break;
    case SCAN_MASK:
        for (size_t at = 0; at + t->size <= bytes; at += t->size) {
            walk_mask(&w, t, obj + at);
        }
        break;
    case SCAN_FIELDS:
        for (size_t at = 0; at + t->size <= bytes; at += t->size) {
            walk_fields(&w, t, obj + at);
        }
        break;
    case SCAN_FLEX:
        walk_fields(&w, t, obj);
        if (t->tail_words) {
            walk_range(obj + t->tail_offset, obj + bytes, fn, arg);
        }
        break;
    case SCAN_FN:
        walk_by_function(&w, t, obj, bytes);
        break;
    }
}

void walk_object(const struct mspan *s, size_t index, walk_fn *fn, void *arg)
{
    walk_typed(s->type, mspan_object(s, index), s->elem_size, fn, arg);
}

void walk_root_word(void *roots, uintptr_t where, uintptr_t word)
{
    struct walk_roots *w = roots;
    w->root.where = where;
    w->root.word = word;
    w->fn(w->arg, &w->root);
}
