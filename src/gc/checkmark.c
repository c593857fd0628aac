/* checkmark.c - GODEBUG=gccheckmark=1: what did the marker miss, and which store is to blame?
 *
 * Purpose     After [mark-done], with the world stopped, look at every marked object and every root
 *             once more. The first pointer to an allocated object that is not marked ends the
 *             program with a report: a store without LOAM_SET (rule 3), or a field that LOAM_TYPE
 *             forgot.
 * Model       The tri-colour condition, checked whole: at [mark-done] every marked object is black,
 *             so each child of a marked object, and of a root, must be marked. If all are, then by
 *             induction all that is reachable from them is. That needs no second set of mark bits
 *             and no stack of its own, and the parent of a lost object is at hand.
 *
 *             Roots that must be marked: data of the program, registered ranges, pins, what ends.c
 *             holds, what objects with finalizers reach (not themselves). Stacks, registers,
 *             thread-local storage and loam_stacks are no witnesses: they are searched
 *             conservatively and written without a barrier, so after its [H-SCAN] a stack may hold
 *             words that nobody promised anything about: dead slots, spilled leftovers. What a
 *             thread really holds is marked, by the invariant; what only seems so proves nothing.
 *             An object that a thread loses in truth is found when a store links it again.
 *
 *             Untyped memory, data and registered ranges are conservative too, but written by
 *             LOAM_SET where they hold pointers. An integer that was stored plainly after the scan
 *             and happens to look like a pointer must not accuse anybody: there only the address of
 *             an object's start counts. The same in typed objects where a pointer mask is set, for
 *             then numbers look like pointers. Otherwise a listed field may point into the middle.
 *
 *             The forgotten field: words that a declared type does not list (all, in a type without
 *             pointers). Only starts of other objects count. If nothing else reaches the target, it
 *             is about to be freed under a pointer: the end. If it is marked: one warning for each
 *             type and offset. Not looked at: untyped noscan memory (rule 4), types with a scan
 *             function (it knows), the library's own types.
 * Invariants  [checkmark.marked]  each child of a marked object or a root is marked.
 *             [checkmark.loader]  the world is stopped from within the loader's lock, so no stopped
 *             thread holds it: walking the modules' data cannot wait for one.
 * Locking     none: threads are stopped where they are not busy. A thread that does not stop (it
 *             masks the signal) keeps the invariant anyway.
 * From Go     gccheckmark in mcheckmark.go re-marks from the roots, stacks too, which are precise
 *             there.
 * Tests       tests/stress/missed_barrier.c; tests/api with gccheckmark=1
 */
#include "gc/mark.h"
#include "gc/walk.h"

#include <stdio.h>
#include <string.h>

#include <loam.h>

enum {
    WORD = sizeof(uintptr_t),
    TEXT = 160,
    WARNINGS_MAX = 256,
};

/* The holder of the word that is looked at: a marked object, or a root. */
struct holder {
    const struct mspan *span; /* NULL: a root */
    size_t index;
    const char *root; /* kind of root; with a span: an object whose contents are roots */
    uintptr_t of;     /* the object that a root of ends.c is for, or 0 */
    bool starts_only; /* see Model */
};

/* -- what a word points to --------------------------------------------------------------------- */

struct target {
    const struct mspan *span;
    uintptr_t start;
    bool marked;
    bool exact; /* the word is the address of its start */
};

static bool find_target(uintptr_t word, struct target *t)
{
    uintptr_t addr = word & heap.pointer_mask;
    struct mark_bit b;
    if (addr - heap.base >= load_rlx(&heap.used) || !mark_bit_of(addr - heap.base, &b)) {
        return false;
    }
    /* acquire: the mark of a slot of a black run is seen below; pairs with mcache's release. */
    if ((load_acq(b.word + b.stride) & b.mask) == 0) {
        return false;
    }
    t->marked = (load_rlx(b.word) & b.mask) != 0;
    t->span = &heap.spans[pagedesc_head(b.desc)];
    t->start = mspan_object(t->span, b.index);
    t->exact = addr == t->start;
    return true;
}

/* -- reports ----------------------------------------------------------------------------------- */

static void describe(char *buf, const struct target *t)
{
    snprintf(buf, TEXT, "%p (type %.60s, %zu bytes, in the span %p of %u objects)",
             (void *)t->start, t->span->type->name, t->span->elem_size, (void *)t->span->base,
             t->span->nelems);
}

static NO_SANITIZE uintptr_t locate(uintptr_t start, size_t bytes, uintptr_t word)
{
    for (uintptr_t p = start; p + WORD <= start + bytes; p += WORD) {
        if (*(const volatile uintptr_t *)p == word) {
            return p;
        }
    }
    return 0;
}

static _Noreturn COLD void report_root(const struct holder *h, uintptr_t where, const char *lost)
{
    if (where == 0) {
        throwf("gccheckmark: a reachable object was not marked: %s\n"
               "  it was reached from: %s (of the object %p)\n"
               "  no store of the program is to blame: a fault of the library",
               lost, h->root, (void *)h->of);
    }
    throwf("gccheckmark: a reachable object was not marked: %s\n"
           "  it was reached from: the word at %p (%s)\n"
           "  that word was written without LOAM_SET (or its kin) while the collector was marking",
           lost, (void *)where, h->root);
}

static _Noreturn COLD void report_lost(const struct holder *h, uintptr_t where, uintptr_t word,
                                       const struct target *t)
{
    char lost[TEXT], parent[TEXT], field[TEXT];
    describe(lost, t);
    if (h->span == NULL) {
        report_root(h, where, lost);
    }
    const struct mspan *s = h->span;
    uintptr_t start = mspan_object(s, h->index);
    describe(parent, &(struct target){.span = s, .start = start});
    if (h->root == NULL && !bitmap_get(mspan_scans(s), h->index)) {
        throwf("gccheckmark: a reachable object was not marked: %s\n"
               "  it was reached from: the object %s, which is marked and was not scanned\n"
               "  no store of the program is to blame: a fault of the library",
               lost, parent);
    }
    if (where == 0) { /* a scan function named it */
        where = locate(start, s->elem_size, word);
    }
    if (where == 0) {
        snprintf(field, sizeof field, "a word that its scan function shows");
    } else {
        gctype_field_name(s->type, where - start, field, sizeof field);
    }
    throwf("gccheckmark: a reachable object was not marked: %s\n"
           "  it was reached from: the object %s\n"
           "  the word at %p (field %s, offset %zu) was written without LOAM_SET (or its kin) "
           "while the "
           "collector was marking",
           lost, parent, (void *)where, field, where == 0 ? 0 : (size_t)(where - start));
}

/* -- every marked object's children ------------------------------------------------------------ */

static void check_word(void *arg, uintptr_t where, uintptr_t word)
{
    const struct holder *h = arg;
    struct target t;
    if (find_target(word, &t) && !t.marked && (t.exact || !h->starts_only)) {
        report_lost(h, where, word, &t); /* [checkmark.marked] */
    }
}

static void check_contents(const struct mspan *s, size_t index, const char *root)
{
    struct holder h = {.span = s, .index = index, .root = root};
    h.starts_only = s->type == &gctype_conservative || heap.pointer_mask != UINTPTR_MAX;
    walk_object(s, index, check_word, &h);
}

static void check_children(const struct mspan *s, size_t index)
{
    check_contents(s, index, NULL);
}

/* -- the forgotten field ----------------------------------------------------------------------- */

static bool in_fields(const struct gctype *t, size_t off)
{
    for (uint32_t i = 0; i < t->nfields; i++) {
        size_t from = t->fields[i].offset;
        if (off + WORD > from && off < from + (size_t)t->fields[i].words * WORD) {
            return true;
        }
    }
    return false;
}

/* Offset as reports and warnings name it: within an element, of the tail too. */
static size_t offset_in_type(const struct gctype *t, size_t off)
{
    if (!t->flex) {
        return off % t->size;
    }
    return off < t->tail_offset || t->tail_elem == 0
               ? off
               : t->tail_offset + (off - t->tail_offset) % t->tail_elem;
}

static bool is_listed(const struct gctype *t, size_t off)
{
    switch (t->kind) {
    case SCAN_NONE:
        return false;
    case SCAN_MASK:
        return t->mask >> (off % t->size / WORD) & 1;
    case SCAN_FIELDS:
        return in_fields(t, off % t->size);
    case SCAN_FLEX:
        return (t->tail_words && off >= t->tail_offset) || in_fields(t, off);
    case SCAN_ALL:
    case SCAN_FN:
        break;
    }
    return true;
}

/* True the first time. */
static bool first_warning(const struct gctype *t, size_t off)
{
    static struct {
        const struct gctype *type;
        size_t off;
    } given[WARNINGS_MAX];
    static size_t n;
    for (size_t i = 0; i < n; i++) {
        if (given[i].type == t && given[i].off == off) {
            return false;
        }
    }
    if (n == WARNINGS_MAX) {
        return false;
    }
    given[n].type = t;
    given[n++].off = off;
    return true;
}

static COLD void report_forgotten(const struct mspan *s, uintptr_t obj, size_t off,
                                  const struct target *t)
{
    char target[TEXT], holder[TEXT];
    size_t in_type = offset_in_type(s->type, off);
    describe(target, t);
    describe(holder, &(struct target){.span = s, .start = obj});
    if (!t->marked) {
        throwf("gccheckmark: type %.60s does not list the word at offset %zu, which holds a "
               "pointer to %s\n"
               "  nothing else reaches that object: it is about to be freed\n"
               "  the holder is the object %s; name the field in its LOAM_TYPE",
               s->type->name, in_type, target, holder);
    }
    if (first_warning(s->type, in_type)) {
        warnf("gccheckmark: type %.60s does not list the word at offset %zu, which holds a pointer "
              "to %s\n"
              "  something else keeps that object alive so far\n"
              "  the holder is the object %s",
              s->type->name, in_type, target, holder);
    }
}

static bool has_unlisted(const struct gctype *t)
{
    return t != &gctype_noscan && t->kind != SCAN_ALL && t->kind != SCAN_FN &&
           strncmp(t->name, "loam_", 5) != 0; /* ends.c hides pointers on purpose */
}

static NO_SANITIZE void check_forgotten(const struct mspan *s, size_t index)
{
    uintptr_t obj = mspan_object(s, index);
    for (size_t off = 0; off + WORD <= s->elem_size; off += WORD) {
        uintptr_t word = *(const volatile uintptr_t *)(obj + off);
        struct target t;
        if (word != 0 && find_target(word, &t) && t.exact && t.start != obj &&
            !is_listed(s->type, off)) {
            report_forgotten(s, obj, off, &t);
        }
    }
}

/* -- the walk ---------------------------------------------------------------------------------- */

static void each_marked(const struct mspan *s, void (*fn)(const struct mspan *s, size_t index))
{
    for (size_t i = 0; i < s->nwords; i++) {
        uint64_t allocs = load_acq(&mspan_allocs(s)[i]); /* acquire: as in find_target */
        uint64_t todo = load_rlx(&mspan_marks(s)[i]) & allocs;
        for (; todo != 0; todo &= todo - 1) {
            fn(s, i * 64 + ctz64(todo));
        }
    }
}

static void each_span(bool forgotten)
{
    size_t end = load_rlx(&heap.used) >> PAGE_SHIFT;
    for (size_t pn = 0; pn < end;) {
        pagedesc d = load_acq(&heap.descs[pn]); /* acquire: pairs with mspan_publish */
        if (d == 0 || pagedesc_head(d) != pn) {
            pn++;
            continue;
        }
        const struct mspan *s = &heap.spans[pn];
        if (forgotten && has_unlisted(s->type)) {
            each_marked(s, check_forgotten);
        } else if (!forgotten && !s->noscan) {
            each_marked(s, check_children);
        }
        pn += s->npages;
    }
}

static void check_root(void *arg, const struct root *r)
{
    static const char *const witnesses[] = {
        [ROOT_DATA] = "data", [ROOT_RANGE] = "registered roots", [ROOT_PIN] = "pin"};
    (void)arg;
    if (r->kind <= ROOT_PIN) {
        struct holder h = {.root = witnesses[r->kind], .starts_only = r->where != 0};
        check_word(&h, r->where, r->word);
    }
}

/* The argument and what else ends.c holds for obj; and what an object with a finalizer reaches,
 * though itself need not be marked. */
static void check_end(void *arg, const char *kind, uintptr_t obj, uintptr_t word)
{
    struct mspan *s;
    size_t index;
    (void)arg;
    struct holder h = {.root = kind, .of = obj};
    check_word(&h, 0, word);
    if (strcmp(kind, "finalizer") == 0 && heap_find_object(obj, &s, &index) && !s->noscan) {
        check_contents(s, index, "an object with a finalizer");
    }
}

void gc_checkmark(void)
{
    bool running = !gc.options.stop_the_world;
    if (running) {
        gc_stop_world();
    }
    gc_each_root(check_root, NULL);
    ends_each_root(check_end, NULL);
    each_span(false);
    each_span(true);
    if (running) {
        world_start();
    }
}
