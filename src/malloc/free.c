/* free.c - early reuse: loam_free and loam_realloc.
 *
 * Model       A freed slot loses its alloc bit, atomically, whoever owns the span; the owner finds the
 *             hole when it has none ahead. What the object pointed to is marked if a cycle marks (a large
 *             object is marked itself), and the round is dirty if the object was not. A large object's pages go
 *             back at once when its span is swept and no cycle marks, or has left marks (fork); otherwise the
 *             next sweep takes them.
 * Invariants  [free.once]  who clears the alloc bit frees: a second free finds it clear and aborts.
 *             [free.phase]  busy: no handshake is answered meanwhile, so a phase once read stays near
 *             enough: marking cannot begin behind our back.
 * Tests       tests/api/free.c, tests/api/realloc.c, tests/model [free]
 */
#include "malloc/malloc.h"

#include "gc/mark.h"

#include <errno.h>
#include <string.h>

enum { SCAVENGE_FROM = 1 << 20 }; /* bytes freed at once that are worth a look at what is kept */

/* Its pages go back at once: nobody else has the span any more. False: the next sweep takes it. */
static bool take_large(struct m *m, struct mspan *s)
{
    bool marks = load_acq(&gc.phase) != GC_OFF || m->cache.black || load_rlx(&gc.marks_stale);
    return s->sizeclass == 0 && !marks && mcentral_remove_large(s, m->cache.sweepgen);
}

/* [free]: the object may lie in another thread's buffer, and what was loaded from it in ours. That thread's
 * answer would have made the round dirty, had it found the object; so we do. */
static void shade_freed(struct m *m, struct mspan *s, size_t index)
{
    if (s->noscan || load_acq(&gc.phase) == GC_OFF) { /* acquire: pairs with the cycle */
        return;
    }
    struct phase_hold h = gc_hold_phase(m);
    if (!gc_phase_marks(h.phase)) {
        gc_release_phase(m, h);
        return;
    }
    if (s->sizeclass == 0 &&
        s->type->kind != SCAN_FN) {   /* no function is called on what is freed */
        mark_word(&m->work, s->base); /* the markers scan it: its memory stays until the sweep */
    } else {
        if (!object_is_marked(s, index)) {
            store_rlx(&gc.dirty, 1u); /* before the alloc bit is clear: who finds it so sees this */
        }
        scan_object(&m->work, s, index);
    }
    gcwork_publish(&m->work);
    gc_release_phase(m, h);
}

static void free_object(struct m *m, struct mspan *s, size_t index)
{
    size_t bytes = s->elem_size;
    bool large = s->sizeclass == 0;
    struct mcentral *central = mcentral_of(s->spanclass);
    uint64_t bit = UINT64_C(1) << (index % 64);
    shade_freed(m, s, index);
    if (load_acq(&s->specials) != NULL) { /* acquire: pairs with ends.c */
        ends_free_object(s, index);
    }
    bool taken = take_large(m, s);
    store_rlx(&s->needzero, true); /* before the bit is clear: see mcache.c */
    /* With its last bit a span that was not taken may be swept and become another one at once. */
    uint64_t old = and_acqrel(&mspan_allocs(s)[index / 64], ~bit);
    CHECK((old & bit) != 0, "double free of %p", (void *)mspan_object(s, index));
    add_rlx(&central->nfree, UINT64_C(1));
    gc_live_sub(bytes);
    if (large) {
        add_rlx(&heap.stats.large_free, (uint64_t)bytes);
    } else {
        mcentral_slot_freed(central, s);
    }
    if (taken) {
        store_rlx(&s->scan_progress, (size_t)0);
        ends_span_freed(s);
        mheap_free_span(s);
        if (bytes >= SCAVENGE_FROM) {
            gc_scavenge_wake();
        }
    }
}

/* What p is where no span is in use, and behind the last slot of a span. */
_Noreturn static COLD void throw_no_slot(const struct mspan *s, uintptr_t p, const char *what)
{
    /* relaxed: grows only; whatever p once was lies below */
    CHECK(s != NULL || p - heap.base < load_rlx(&heap.used),
          "%s of %p: not in the heap of loam (free it where it came from)", what, (void *)p);
    CHECK(s != NULL, "double free or %s of memory that was collected: %p (no object is there)",
          what, (void *)p);
    throwf("%s of %p: it points behind the last object of a page (of %zu bytes, type %s)", what,
           (void *)p, s->elem_size, s->type->name);
}

/* The object that starts at p; whatever else p is ends the program. */
static struct mspan *object_at(struct m *m, uintptr_t p, const char *what, size_t *index)
{
    struct mspan *s = heap_span_of(p);
    if (unlikely(s == NULL || mspan_index(s, p) >= s->nelems)) {
        throw_no_slot(s, p, what);
    }
    *index = mspan_index(s, p);
    uintptr_t start = mspan_object(s, *index);
    CHECK(bitmap_get(mspan_allocs(s), *index) && !mcache_holds(&m->cache, s, start),
          "double free or %s of memory that is not allocated: %p (slot of %zu bytes, type %s)",
          what, (void *)p, s->elem_size, s->type->name);
    CHECK(p == start,
          "%s of %p: it points into the middle of the object at %p (of %zu bytes, type %s)", what,
          (void *)p, (void *)start, s->elem_size, s->type->name);
    CHECK(s->type != load_rlx(&gc.managed_type), /* [mstack.small] */
          "%s of %p: a managed stack is left to the collector", what, (void *)p);
    return s;
}

void malloc_free(struct m *m, void *p)
{
    size_t index;
    m_enter(m);
    CHECK(m_deep(m) == 1, "loam_free in a signal handler that interrupted the library");
    struct mspan *s = object_at(m, (uintptr_t)p, "free", &index);
    free_object(m, s, index);
    m_leave(m);
}

void *malloc_realloc(struct m *m, void *p, size_t bytes)
{
    size_t index;
    m_enter(m);
    struct mspan *s = object_at(m, (uintptr_t)p, "realloc", &index);
    struct gctype *type = (struct gctype *)(uintptr_t)s->type;
    size_t old = s->elem_size;
    m_leave(m);
    if (bytes <= old && (bytes > old / 2 || old <= 16)) {
        gc_clear(m, (char *)p + bytes, old - bytes); /* grown again, these are new bytes */
        return p;
    }
    void *q = malloc_typed(m, type, bytes);
    if (q == NULL) {
        return NULL;
    }
    size_t keep = bytes < old ? bytes : old;
    if (type->kind == SCAN_NONE) {
        memcpy(q, p, keep);
    } else {
        gc_copy(m, q, p, keep);
    }
    malloc_free(m, p);
    return q;
}
