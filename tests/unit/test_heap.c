/* test_heap.c - mcache, mcentral and mheap under a collector that is a model.
 *
 * Claim   A slot is handed out zeroed, to one owner, and keeps its bytes until it is freed or found
 *         dead. A run is the next hole of its span. The alloc bits are those of the live objects and
 *         of the slots of runs, no others; blackening marks exactly the slots of runs, giving back
 *         clears exactly those not handed out; a sweep leaves exactly what is marked. Pages go from
 *         span to span, dirty, of any class. mheap_check holds after every round, and finds damage.
 * Oracle  struct object: address, size and fill byte of everything alive; bitmaps copied before a step.
 * Model   several caches in one thread, in any order: each turns black, and gives back, at a moment of
 *         its own while the others allocate, as threads do that answer a handshake. Which objects are
 *         dead is drawn by lot.
 * Replay  --seed N
 */
#include "gc/gc.h"

#include "base/rng.h"
#include "heap/fixalloc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

enum { CACHES = 3, MOST_OBJECTS = 40000, LARGE = 0 };

static uint64_t seed, rng;

static size_t below(size_t bound)
{
    return (size_t)(rng_next(&rng) >> 11) % bound;
}

/* -- the model --------------------------------------------------------------------------------- */

struct object {
    unsigned char *p;
    size_t size;
    unsigned char fill;
    bool dead; /* found dead, perhaps not yet swept */
};

static struct object objects[MOST_OBJECTS];
static size_t nobjects;
static struct mcache caches[CACHES];
static bool marking; /* until the flip */
static bool cycling; /* a slot that was freed while marked may be taken by a cache not yet black */

static uint32_t spanclasses[24]; /* those in use: noscan, conservative, typed */
static size_t nspanclasses;

static void bytes_check(const unsigned char *p, size_t size, unsigned char fill, const char *what)
{
    if (size != 0 && (p[0] != fill || memcmp(p, p + 1, size - 1) != 0)) {
        fail_msg("%s: %zu bytes at %p are not %u", what, size, (const void *)p, fill);
    }
}

static void object_add(void *p, size_t size)
{
    assert_true(nobjects < MOST_OBJECTS);
    bytes_check(p, size, 0, "fresh memory");
    struct object *o = &objects[nobjects++];
    *o = (struct object){p, size, (unsigned char)(1 + below(255)), false};
    memset(p, o->fill, size);
}

static void object_forget(size_t i)
{
    objects[i] = objects[--nobjects];
}

static void object_free(size_t i, struct mcache *c)
{
    struct object o = objects[i];
    struct mspan *s;
    size_t index;
    assert_true(heap_find_object((uintptr_t)o.p, &s, &index));
    assert_int_equal(mspan_object(s, index), (uintptr_t)o.p);
    bytes_check(o.p, o.size, o.fill, "an object to be freed");
    object_forget(i);
    store_rlx(&s->needzero, true); /* the heap's half of loam_free */
    and_acqrel(&mspan_allocs(s)[index / 64], ~(UINT64_C(1) << (index % 64)));
    if (s->sizeclass != 0) {
        mcentral_slot_freed(mcentral_of(s->spanclass), s);
    } else if (!marking && !c->black && mcentral_remove_large(s, c->sweepgen)) {
        mheap_free_span(s);
    }
}

/* -- one step of a cache ----------------------------------------------------------------------- */

static size_t first_bit(const uint64_t *map, size_t i, size_t n, bool value)
{
    while (i < n && (map[i / 64] >> (i % 64) & 1) != value) {
        i++;
    }
    return i;
}

static void bits_copy(uint64_t *to, const _Atomic uint64_t *from, size_t words)
{
    for (size_t i = 0; i < words; i++) {
        to[i] = load_rlx(&from[i]);
    }
}

/* r was refilled; before, its span's alloc bits were `before` if it still has that span. */
static void run_check(const struct mcache *c, const struct run *r, const uint64_t *before,
                      const struct mspan *old, size_t old_index)
{
    const struct mspan *s = r->span;
    size_t from = (r->ptr - s->base) / r->size;
    size_t to = (r->end - s->base) / r->size;
    assert_true(r->ptr % 8 == 0 && r->ptr < r->end && to <= s->nelems);
    assert_int_equal(r->size, s->elem_size);
    assert_int_equal(load_rlx(&s->sweepgen), c->sweepgen + 3); /* [mcache.gen] */
    for (size_t i = from; i < to; i++) {
        assert_true(bitmap_get(mspan_allocs(s), i)); /* [run.bits] */
        bool black = bitmap_get(mspan_marks(s), i) && (s->noscan || bitmap_get(mspan_scans(s), i));
        assert_true(black || !c->black);
        assert_true(!black || c->black || cycling);
    }
    bytes_check((unsigned char *)r->ptr, r->end - r->ptr, 0, "a run"); /* [run.zero] */
    if (s == old) {
        size_t most = c->run_limit / s->elem_size;
        size_t hole = first_bit(before, old_index, s->nelems, false);
        if (hole == s->nelems) { /* it was searched again from the start */
            hole = first_bit(before, 0, s->nelems, false);
        }
        size_t end = first_bit(before, hole, s->nelems, true);
        end = end - hole > (most > 1 ? most : 1) ? hole + (most > 1 ? most : 1) : end;
        assert_int_equal(from, hole);
        assert_int_equal(to, end);
    }
}

static bool alloc_small(struct mcache *c, uint32_t spanclass)
{
    struct run *r = mcache_run(c, spanclass);
    assert_non_null(r);
    if (r->ptr + r->size > r->end) {
        uint64_t before[MAX_OBJS_PER_SPAN / 64] = {0};
        struct mspan *old = r->span;
        size_t old_index = old != NULL ? old->free_index : 0;
        if (old != NULL) {
            bits_copy(before, mspan_allocs(old), old->nwords);
        }
        size_t bytes = mcache_refill(c, r, spanclass);
        if (bytes == 0) {
            return false;
        }
        assert_int_equal(bytes, r->end - r->ptr);
        run_check(c, r, before, old, old_index);
    }
    void *p = (void *)r->ptr;
    r->ptr += r->size;
    object_add(p, r->size);
    return true;
}

static struct gctype *large_type(void)
{
    return below(2) == 0 ? &gctype_noscan : &gctype_conservative;
}

static bool alloc_large(struct mcache *c, size_t bytes)
{
    struct gctype *type = large_type();
    struct mspan *s = mcache_alloc_large(c, bytes, type);
    if (s == NULL) {
        return false;
    }
    assert_true(mspan_bytes(s) >= bytes && mspan_bytes(s) < bytes + HEAP_PAGE_SIZE);
    assert_null(heap_span_of(s->base));
    if (load_rlx(&s->needzero)) {
        memset((void *)s->base, 0, mspan_bytes(s)); /* malloc's half */
    }
    mcache_publish_large(c, s);
    assert_ptr_equal(heap_span_of(s->base + mspan_bytes(s) - 1), s);
    assert_int_equal(bitmap_get(mspan_marks(s), 0), c->black);
    assert_true(bitmap_get(mspan_allocs(s), 0));
    object_add((void *)s->base, mspan_bytes(s));
    return true;
}

static void some_steps(int n)
{
    while (n-- > 0) {
        struct mcache *c = &caches[below(CACHES)];
        size_t what = below(100);
        if (what < 35 && nobjects != 0) {
            size_t i = below(nobjects);
            if (!objects[i].dead) {
                object_free(i, c);
            }
        } else if (what == 99 && nobjects < MOST_OBJECTS / 2) {
            assert_true(alloc_large(c, MAX_SMALL_SIZE + 1 + below(200000)));
        } else if (nobjects < MOST_OBJECTS / 2) {
            assert_true(alloc_small(c, spanclasses[below(nspanclasses)]));
        }
    }
}

/* -- everything at once ------------------------------------------------------------------------ */

static size_t run_rest_slots(const struct mcache *c, uint32_t sc)
{
    return mcache_unused(c, sc);
}

/* The alloc bits are those of live objects, of dead ones not yet swept (`unswept`), and of runs. */
static void check_bits(void)
{
    size_t want = 0, dead = 0, found = 0;
    for (size_t i = 0; i < nobjects; i++) {
        struct mspan *s;
        size_t index;
        const struct object *o = &objects[i];
        if (o->dead) {
            dead++;
            continue;
        }
        want++;
        assert_true(heap_find_object((uintptr_t)o->p, &s, &index));
        assert_true(mspan_object(s, index) == (uintptr_t)o->p && s->elem_size == o->size);
        bytes_check(o->p, o->size, o->fill, "a live object");
    }
    for (size_t k = 0; k < CACHES; k++) {
        for (uint32_t sc = 0; sc < load_rlx(&heap.nspanclasses); sc++) {
            want += run_rest_slots(&caches[k], sc);
        }
    }
    for (size_t pn = 0; pn < heap.committed_pages;) {
        pagedesc d = load_rlx(&heap.descs[pn]);
        const struct mspan *s = &heap.spans[pn];
        if (d == 0) {
            pn++;
            continue;
        }
        assert_true(mspan_check(s));
        for (size_t i = 0; i < s->nwords; i++) {
            found += popcount64(load_rlx(&mspan_allocs(s)[i]));
        }
        pn += s->npages;
    }
    assert_true(found >= want && found <= want + dead);
    assert_true(mheap_check());
}

/* While no cycle runs, no mark and no scanned bit is set in any span that is swept or free. */
static void check_no_marks(void)
{
    for (size_t pn = 0; pn < heap.committed_pages; pn++) {
        pagedesc d = load_rlx(&heap.descs[pn]);
        const struct mspan *s = &heap.spans[pn];
        if (d != 0 && pagedesc_head(d) != pn) {
            continue;
        }
        for (size_t i = 0; d == 0 && i < BITS_WORDS; i++) { /* [mspan.dead] */
            assert_int_equal(load_rlx(&heap.bits[pn * BITS_WORDS + i]), 0);
        }
        for (size_t i = 0; d != 0 && i < s->nwords; i++) {
            assert_int_equal(load_rlx(&mspan_marks(s)[i]), 0);
            if (!s->noscan) {
                assert_int_equal(load_rlx(&mspan_scans(s)[i]), 0);
            }
        }
    }
}

/* -- a cycle ----------------------------------------------------------------------------------- */

/* Marks and scans of the span of each run, before. */
struct run_state {
    uint64_t marks[16], scans[16], allocs[16];
    size_t from, to;
};

static bool run_state_of(const struct mcache *c, uint32_t sc, const struct run **r,
                         struct run_state *st)
{
    if (sc >= NUM_FIXED_SPANCLASSES && c->typed[sc / SPANCLASS_CHUNK] == NULL) {
        return false;
    }
    *r = mcache_run((struct mcache *)(uintptr_t)c, sc);
    const struct mspan *s = (*r)->span;
    if (s == NULL) {
        return false;
    }
    memset(st, 0, sizeof *st);
    bits_copy(st->marks, mspan_marks(s), s->nwords);
    bits_copy(st->allocs, mspan_allocs(s), s->nwords);
    if (!s->noscan) {
        bits_copy(st->scans, mspan_scans(s), s->nwords);
    }
    if ((*r)->ptr < (*r)->end) {
        st->from = ((*r)->ptr - s->base) / (*r)->size;
        st->to = ((*r)->end - s->base) / (*r)->size;
    }
    return true;
}

/* Every bit of the span is as it was, but those of [from, to): they are `now`. */
static void state_check(const struct mspan *s, const struct run_state *st, bool marks, bool allocs)
{
    for (size_t i = 0; i < s->nelems; i++) {
        bool in = i >= st->from && i < st->to;
        bool m = in ? marks : st->marks[i / 64] >> (i % 64) & 1;
        bool a = in ? allocs : st->allocs[i / 64] >> (i % 64) & 1;
        assert_int_equal(bitmap_get(mspan_marks(s), i), m);
        assert_int_equal(bitmap_get(mspan_allocs(s), i), a);
        if (!s->noscan) {
            bool sc = in ? marks : st->scans[i / 64] >> (i % 64) & 1;
            assert_int_equal(bitmap_get(mspan_scans(s), i), sc);
        }
    }
}

enum { MOST_SPANCLASSES = 256 };
static struct run_state states[MOST_SPANCLASSES];
static struct mspan *state_spans[MOST_SPANCLASSES];

static size_t states_take(const struct mcache *c)
{
    size_t bytes = 0;
    assert_true(load_rlx(&heap.nspanclasses) <= MOST_SPANCLASSES);
    for (uint32_t sc = 0; sc < load_rlx(&heap.nspanclasses); sc++) {
        const struct run *r;
        state_spans[sc] = NULL;
        if (run_state_of(c, sc, &r, &states[sc])) {
            state_spans[sc] = r->span;
            bytes += (states[sc].to - states[sc].from) * r->size;
        }
    }
    return bytes;
}

static void blacken(struct mcache *c)
{
    size_t bytes = states_take(c);
    assert_int_equal(mcache_blacken(c), bytes);
    assert_true(c->black);
    for (uint32_t sc = 0; sc < load_rlx(&heap.nspanclasses); sc++) {
        if (state_spans[sc] != NULL) {
            state_check(state_spans[sc], &states[sc], true, true);
        }
    }
}

static void give_back(struct mcache *c)
{
    uint32_t old = c->sweepgen;
    size_t bytes = states_take(c);
    assert_int_equal(mcache_give_back(c, load_rlx(&heap.sweepgen)), bytes);
    assert_true(!c->black && c->sweepgen == load_rlx(&heap.sweepgen));
    for (uint32_t sc = 0; sc < load_rlx(&heap.nspanclasses); sc++) {
        if (state_spans[sc] != NULL) {
            state_check(state_spans[sc], &states[sc], false, false);
            assert_int_equal(load_rlx(&state_spans[sc]->sweepgen), old);
            assert_int_equal(mcache_unused(c, sc), 0);
        }
    }
}

/* All that is not black yet: by lot. */
static void mark(unsigned percent)
{
    for (size_t i = 0; i < nobjects; i++) {
        struct mspan *s;
        size_t index;
        assert_true(heap_find_object((uintptr_t)objects[i].p, &s, &index));
        uint64_t bit = UINT64_C(1) << (index % 64);
        if (below(100) < percent) {
            or_sc(&mspan_marks(s)[index / 64], bit);
            if (!s->noscan) {
                or_sc(&mspan_scans(s)[index / 64], bit);
            }
        }
        objects[i].dead = !bitmap_get(mspan_marks(s), index);
    }
}

static bool sweep_one(void)
{
    mcentral_drain_returned();
    for (uint32_t sc = 0; sc < load_rlx(&heap.nspanclasses); sc++) {
        struct mspan *s = mcentral_take_unswept(mcentral_of(sc), load_rlx(&heap.sweepgen));
        if (s != NULL) {
            heap.sweep_span(s, false);
            return true;
        }
    }
    return false;
}

static void forget_dead(void)
{
    for (size_t i = nobjects; i-- > 0;) {
        if (objects[i].dead) {
            object_forget(i);
        }
    }
}

static void in_any_order(void (*fn)(struct mcache *c), int steps)
{
    size_t start = below(CACHES);
    for (size_t k = 0; k < CACHES; k++) {
        fn(&caches[(start + k) % CACHES]);
        some_steps(steps);
    }
}

/* steps: of the program, between any two of the collector's. */
static void cycle(unsigned survivors, int steps)
{
    cycling = marking = true;
    in_any_order(blacken, steps);
    mark(survivors);
    some_steps(steps);
    check_bits();
    store_rlx(&heap.sweepgen, load_rlx(&heap.sweepgen) + 2);
    marking = false;
    in_any_order(give_back, steps);
    for (int i = 0; sweep_one(); i++) {
        if (i % 20 == 0) {
            some_steps(steps / 10);
        }
    }
    cycling = false;
    forget_dead();
    assert_int_equal(load_rlx(&heap.sweeping), 0);
    check_bits();
    check_no_marks();
}

/* -- tests ------------------------------------------------------------------------------------- */

static loam_type typed[3] = {
    {.name = "one", .field_names = "a", .size = 24, .align = 8},
    {.name = "two", .field_names = "a", .size = 48, .align = 16},
    {.name = "three", .field_names = "a", .size = 1000, .align = 8},
};
static const loam_field typed_fields[1] = {{8, 1}};

static int start_heap(void **state)
{
    (void)state;
    static const unsigned char some[] = {1, 2, 3, 5, 9, 20, 27, 36, 48, 60, 67};
    assert_true(mheap_init());
    assert_true(mheap_init());
    heap.sweep_span = gc_sweep_span;
    store_rlx(&heap.sample_rate,
              INT64_C(0)); /* runs as long as holes; tests/api/profile.c has the samples */
    for (size_t k = 0; k < CACHES; k++) {
        assert_true(mcache_init(&caches[k]));
        caches[k].sweepgen = load_rlx(&heap.sweepgen);
    }
    for (size_t i = 0; i < COUNT_OF(some); i++) {
        spanclasses[nspanclasses++] = 2u * some[i] + 1;
        if (some[i] != 1) { /* class 8 is noscan only */
            spanclasses[nspanclasses++] = 2u * some[i];
        }
    }
    for (size_t i = 0; i < COUNT_OF(typed); i++) {
        typed[i].fields = typed_fields;
        typed[i].nfields = 1;
        struct gctype *t = gctype_intern(&typed[i]);
        assert_non_null(t);
        uint32_t sc = heap_spanclass(t, size_to_class(t->size));
        assert_true(sc >= NUM_FIXED_SPANCLASSES);
        assert_int_equal(heap_spanclass(t, size_to_class(t->size)), sc);
        spanclasses[nspanclasses++] = sc;
    }
    assert_true(nspanclasses <= COUNT_OF(spanclasses));
    return 0;
}

static void free_everything(void)
{
    while (nobjects != 0) {
        object_free(nobjects - 1, &caches[0]);
    }
}

static void alloc_some(int n)
{
    while (n-- > 0) {
        assert_true(alloc_small(&caches[below(CACHES)], spanclasses[below(nspanclasses)]));
    }
}

/* The first of all: pages are fresh, so that only the sweep can know of old bytes in a slot. */
static void test_swept_slots_read_zero(void **state)
{
    (void)state;
    alloc_some(6000);
    cycle(50, 0);
    alloc_some(6000);
    check_bits();
    free_everything();
}

static void test_runs_and_holes(void **state)
{
    (void)state;
    for (int round = 0; round < 10; round++) {
        some_steps(4000);
        check_bits();
    }
    free_everything();
    check_bits();
}

/* A span is filled, holes are made at random, and filled again in order. */
static void test_holes_of_one_span(void **state)
{
    (void)state;
    struct mcache *c = &caches[0];
    for (int round = 0; round < 30; round++) {
        uint32_t sc = spanclasses[below(nspanclasses)];
        c->run_limit = below(4) == 0 ? 0 : 64u << below(8);
        size_t first = nobjects;
        for (int i = 0; i < 1500; i++) {
            assert_true(alloc_small(c, sc));
        }
        for (size_t i = nobjects; i-- > first;) {
            if (below(100) < 60) {
                object_free(i, c);
            }
        }
        for (int i = 0; i < 1500; i++) {
            assert_true(alloc_small(c, sc));
        }
        check_bits();
        free_everything();
    }
    c->run_limit = 8192;
    check_bits();
}

static void test_cycles(void **state)
{
    (void)state;
    static const unsigned survivors[] = {50, 0, 100, 5, 95, 50, 10, 0};
    for (size_t i = 0; i < COUNT_OF(survivors); i++) {
        some_steps(4000);
        cycle(survivors[i], 300);
    }
    cycle(0, 0); /* nobody allocates: all but what is black dies */
    cycle(0, 0);
    assert_int_equal(nobjects, 0);
    assert_int_equal(load_rlx(&heap.stats.heap_inuse), 0);
    assert_int_equal(load_rlx(&heap.stats.mspan_inuse), 0);
}

/* Pages that were of small objects, written all over, serve large ones and the other way round. */
static void test_dirty_pages_read_zero(void **state)
{
    (void)state;
    for (int round = 0; round < 6; round++) {
        alloc_some(3000);
        cycle(0, 0);
        for (int i = 0; i < 40; i++) { /* alloc_large looks: without needzero it must be zero */
            assert_true(alloc_large(&caches[below(CACHES)], MAX_SMALL_SIZE + 1 + below(MIB(1))));
        }
        check_bits();
        if (round % 2 == 0) {
            cycle(0, 0);
        } else {
            free_everything();
        }
        check_bits();
    }
}

static void test_large(void **state)
{
    (void)state;
    struct mcache *c = &caches[1];
    const size_t sizes[] = {MAX_SMALL_SIZE + 1, HEAP_PAGE_SIZE * 5, MIB(4) - 1, MIB(4),
                            MIB(64) + 1};
    size_t before = load_rlx(&heap.stats.heap_inuse);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < COUNT_OF(sizes); i++) {
            assert_true(alloc_large(c, sizes[i]));
            struct mspan *s = heap_span_of((uintptr_t)objects[nobjects - 1].p);
            assert_int_equal(mspan_index(s, s->base + sizes[i] - 1), 0);
            assert_true(s->sizeclass == 0 && s->nelems == 1 && mspan_check(s));
        }
        check_bits();
        if (round == 1) {
            cycle(0, 0);
        } else {
            free_everything();
        }
        assert_int_equal(load_rlx(&heap.stats.heap_inuse), before);
        check_bits();
    }
    assert_null(mcache_alloc_large(c, (size_t)1 << 46, &gctype_noscan)); /* more than the region */
    check_bits();
}

/* A thread ends: its unused slots are free, and another cache gets them. */
static void test_release(void **state)
{
    (void)state;
    some_steps(6000);
    for (size_t k = 1; k < CACHES; k++) {
        size_t bytes = states_take(&caches[k]);
        assert_int_equal(mcache_release(&caches[k]), bytes);
        for (uint32_t sc = 0; sc < load_rlx(&heap.nspanclasses); sc++) {
            if (state_spans[sc] != NULL) {
                state_check(state_spans[sc], &states[sc], false, false);
                assert_int_equal(load_rlx(&state_spans[sc]->sweepgen), load_rlx(&heap.sweepgen));
                const struct span_list *partial = mcentral_of(sc)->partial;
                if (states[sc].from < states[sc].to) { /* the slots are to be found again */
                    assert_int_equal(state_spans[sc]->free_index, states[sc].from);
                    assert_true(state_spans[sc]->list == &partial[0] ||
                                state_spans[sc]->list == &partial[1]);
                } /* else only [mcentral.owner] */
                assert_non_null(state_spans[sc]->list);
            }
        }
        mcache_fini(&caches[k]);
        memset(&caches[k], 0, sizeof caches[k]);
        assert_true(mcache_init(&caches[k]));
        caches[k].sweepgen = load_rlx(&heap.sweepgen);
        check_bits();
    }
    some_steps(3000);
    check_bits();
    cycle(30, 100);
    free_everything();
}

static size_t cached_pages(void)
{
    size_t n = 0;
    for (size_t k = 0; k < CACHES; k++) {
        n += popcount64(caches[k].pages.free);
    }
    return n;
}

/* A cache that was not used in a cycle gives up its pages: its owner gets them back when it is there
 * first, else the heap has them. */
static void test_idle_pages(void **state)
{
    (void)state;
    some_steps(3000);
    cycle(50, 0);
    mheap_take_idle_pages();
    assert_true(cached_pages() > 0); /* all were used */
    cycle(100, 0);
    size_t cached = cached_pages();
    size_t in_heap = heap.pages[0].free_pages;
    for (size_t k = 0; k < CACHES; k++) {
        assert_int_equal(load_rlx(&caches[k].pages_idle), caches[k].pages.free != 0);
    }
    for (size_t k = 0; k < CACHES; k += 2) { /* own_pages */
        struct mspan *s = mcache_alloc_large(&caches[k], HEAP_PAGE_SIZE, &gctype_noscan);
        assert_non_null(s);
        mheap_free_span(s);
        assert_false(load_rlx(&caches[k].pages_idle));
    }
    assert_int_equal(cached_pages() + heap.pages[0].free_pages, cached + in_heap);
    mheap_take_idle_pages();
    assert_null(load_rlx(&heap.idle));
    for (size_t k = 1; k < CACHES; k += 2) {
        assert_int_equal(caches[k].pages.free, 0);
        assert_false(load_rlx(&caches[k].pages_idle) || load_rlx(&caches[k].pages_given));
    }
    assert_int_equal(cached_pages() + heap.pages[0].free_pages, cached + in_heap);
    some_steps(1000);
    store_rlx(&heap.give_up_pages, 1u);
    cycle(50, 0);
    store_rlx(&heap.give_up_pages, 0u);
    mheap_take_idle_pages();
    assert_int_equal(cached_pages(), 0);
    some_steps(1000);
    cycle(30, 100); /* given up, and taken back, in between */
    check_bits();
    free_everything();
}

static size_t nested_some(struct mcache *c, size_t most)
{
    size_t n = 0;
    for (; n < most; n++) {
        size_t bytes = 1 + below(20000);
        struct mspan *s = mcache_alloc_nested(c, bytes, large_type());
        if (s == NULL) {
            break;
        }
        assert_true(mspan_bytes(s) >= bytes);
        object_add((void *)s->base, mspan_bytes(s));
    }
    return n;
}

/* A handler over library code, without a run: an object in pages of its own, which the next sweep finds. Over
 * code that holds heap.lock they come from the reserve, which has an end. */
static void test_nested(void **state)
{
    (void)state;
    struct mcache *c = &caches[2];
    mheap_fill_reserve();
    assert_int_equal(nested_some(c, 1000), 1000);
    mutex_lock(&heap.lock);
    assert_in_range(nested_some(c, 1000), 11, 999);
    mutex_unlock(&heap.lock);
    mheap_fill_reserve();
    check_bits();
    cycle(50, 200);
    cycle(0, 0);
    cycle(0, 0);
    assert_int_equal(nobjects, 0);
}

/* The checkers find what they are for. */
static void test_damage_is_found(void **state)
{
    (void)state;
    assert_true(alloc_small(&caches[0], 2 * 9 + 1));
    struct mspan *s = heap_span_of((uintptr_t)objects[nobjects - 1].p);
    assert_true(mspan_check(s) && mheap_check());
    assert_true(s->nelems % 64 != 0);
    _Atomic uint64_t *words[] = {&mspan_marks(s)[s->nwords - 1], &mspan_allocs(s)[s->nwords - 1]};
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        uint64_t good = load_rlx(words[i]);
        store_rlx(words[i], good | UINT64_C(1) << 63);
        assert_false(mspan_check(s));
        assert_false(mheap_check());
        store_rlx(words[i], good);
    }
    _Atomic(pagedesc) *d = &heap.descs[mspan_pn(s) + s->npages - 1];
    pagedesc good = load_rlx(d);
    store_rlx(d, good ^ 1);
    assert_false(mspan_check(s));
    store_rlx(d, good + (UINT64_C(1) << 32));
    assert_false(mheap_check());
    store_rlx(d, good);
    assert_true(mheap_check());
    free_everything();
}

int main(int argc, char **argv)
{
    seed = (uint64_t)os_nanotime() % 1000000;
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0) {
            seed = strtoull(argv[i + 1], NULL, 0);
        }
    }
    printf("seed %llu\n", (unsigned long long)seed);
    rng = seed * UINT64_C(0x9E3779B97F4A7C15) | 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swept_slots_read_zero),
        cmocka_unit_test(test_runs_and_holes),
        cmocka_unit_test(test_holes_of_one_span),
        cmocka_unit_test(test_cycles),
        cmocka_unit_test(test_dirty_pages_read_zero),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_release),
        cmocka_unit_test(test_idle_pages),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_damage_is_found),
    };
    return cmocka_run_group_tests(tests, start_heap, NULL);
}
