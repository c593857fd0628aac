/* mcache.c - a thread's runs: finding the next hole, turning black, giving back.
 *
 * Purpose     Feeds the allocation fast path with runs of zeroed slots; see mcache.h.
 * Model       alloc bits of a cached span:  1111 0011 0000 1...
 *                                                ^hole: zeroed, bits set, becomes the run
 * Invariants  [mcache.black], [mcache.gen] in mcache.h.
 *             [run.bits]  the alloc bits of all slots of a run are set; those not handed out are
 *             cleared again when the run is given up.
 *             [run.zero]  a run's memory is zero before its alloc bits are set, so a conservative
 *             hit on a slot that was not handed out yet scans zeroes.
 * Locking     none; called by the owner while busy.
 * Ordering    alloc bits are set with release after zeroing and after the mark bits; the marker
 *             tests the alloc bit with acquire, so in a black run it finds the mark bit set.
 * From Go     mcache.go; differs: bump allocation through holes instead of a bit per object,
 *             allocate-black by run instead of by object, the live heap grows by the run.
 * Tests       tests/unit/test_heap.c, tests/api/alloc_basic.c, tests/model [alloc] [refill]
 */
#include "heap/mcache.h"

#include "base/rng.h"
#include "heap/fixalloc.h"

#include <string.h>

enum { RUN_LIMIT = 8192 }; /* bytes zeroed at once: what a first-level cache still holds after */

uint16_t run_offset_noscan[SIZE_TO_CLASS8_LEN];
uint16_t run_offset_scan[SIZE_TO_CLASS8_LEN];

/* Pointers take 16 bytes at least: class 8 has no scanned bits. */
void mcache_offsets_init(void)
{
    for (size_t i = 0; i < SIZE_TO_CLASS8_LEN; i++) {
        size_t noscan = size_to_class8_align16[i];
        size_t scan = noscan == 1 ? 2 : noscan;
        run_offset_noscan[i] =
            (uint16_t)(offsetof(struct mcache, runs) + (2 * noscan + 1) * sizeof(struct run));
        run_offset_scan[i] =
            (uint16_t)(offsetof(struct mcache, runs) + 2 * scan * sizeof(struct run));
    }
}

bool mcache_init(struct mcache *c)
{
    for (uint32_t sc = 0; sc < NUM_FIXED_SPANCLASSES; sc++) {
        c->runs[sc] =
            (struct run){.size = sc < 2 ? 8 : class_to_size[sc / 2]}; /* never 0: see run_take */
    }
    c->run_limit = RUN_LIMIT;
    c->sample_rate = -1; /* not drawn yet */
    c->sample_rng = ((uint64_t)(uintptr_t)c ^ (uint64_t)os_nanotime()) | 1;
    return true;
}

void mcache_fini(struct mcache *c)
{
    for (uint32_t i = 0; i < c->ntyped_chunks; i++) {
        metafree(c->typed[i], SPANCLASS_CHUNK * sizeof(struct run));
        c->typed[i] = NULL;
    }
    c->ntyped_chunks = 0;
    mheap_flush_pagecache(c);
}

struct run *mcache_run_slow(struct mcache *c, uint32_t spanclass)
{
    uint32_t ci = spanclass / SPANCLASS_CHUNK;
    struct run *chunk = metaalloc(SPANCLASS_CHUNK * sizeof *chunk);
    if (chunk == NULL) {
        return NULL;
    }
    for (int i = 0; i < SPANCLASS_CHUNK; i++) {
        chunk[i].size = 8; /* of an empty run: not 0, or run_take would find room in it */
    }
    c->typed[ci] = chunk;
    if (ci >= c->ntyped_chunks) {
        c->ntyped_chunks = ci + 1;
    }
    return &chunk[spanclass % SPANCLASS_CHUNK];
}

/* -- bits of a range of slots ------------------------------------------------------------------ */

static void bits_set(_Atomic uint64_t *map, size_t from, size_t to)
{
    for (size_t w = from / 64; w * 64 < to; w++) {
        unsigned lo = w * 64 < from ? (unsigned)(from - w * 64) : 0;
        unsigned hi = to - w * 64 < 64 ? (unsigned)(to - w * 64) : 64;
        or_acqrel(&map[w], bit_range(lo, hi)); /* release: see Ordering */
    }
}

static void bits_clear(_Atomic uint64_t *map, size_t from, size_t to)
{
    for (size_t w = from / 64; w * 64 < to; w++) {
        unsigned lo = w * 64 < from ? (unsigned)(from - w * 64) : 0;
        unsigned hi = to - w * 64 < 64 ? (unsigned)(to - w * 64) : 64;
        and_acqrel(&map[w], ~bit_range(lo, hi));
    }
}

static void slots_blacken(struct mspan *s, size_t from, size_t to)
{
    if (!s->noscan) {
        bits_set(mspan_scans(s), from,
                 to); /* scanned first: a marked slot is never queued in vain */
    }
    bits_set(mspan_marks(s), from, to);
}

/* -- runs -------------------------------------------------------------------------------------- */

/* The program's signal handlers may allocate between any two instructions here. While end is 0 the
 * fast path finds no room, so end is cleared first and set last. */
static void run_close(struct run *r)
{
    __atomic_store_n(&r->end, 0, __ATOMIC_RELAXED); /* relaxed: this thread and its handlers only */
    compiler_barrier();
    __atomic_store_n(&r->ptr, 0, __ATOMIC_RELAXED); /* relaxed: as above */
}

static void run_open(struct run *r, uintptr_t ptr, uintptr_t end)
{
    __atomic_store_n(&r->ptr, ptr, __ATOMIC_RELAXED); /* relaxed: as above */
    compiler_barrier();
    __atomic_store_n(&r->end, end, __ATOMIC_RELAXED); /* relaxed: as above */
}

/* Slots [from, to) of the span that the run has not handed out, given its end. Their bytes. */
static size_t run_rest(const struct run *r, uintptr_t end, size_t *from, size_t *to)
{
    uintptr_t ptr = __atomic_load_n(&r->ptr, __ATOMIC_RELAXED); /* relaxed: as above */
    if (r->span == NULL || ptr >= end) {
        return 0;
    }
    *from = (ptr - r->span->base) / r->size;
    *to = (end - r->span->base) / r->size;
    return end - ptr;
}

/* Hand the rest of the run back to its span: its slots are free again, and not marked. */
static size_t run_drop(struct mcache *c, struct run *r)
{
    size_t from, to;
    uintptr_t end = r->end;
    __atomic_store_n(&r->end, 0, __ATOMIC_RELAXED); /* relaxed: see run_close; ptr is final now */
    compiler_barrier();
    size_t rest = run_rest(r, end, &from, &to);
    if (rest != 0) {
        struct mspan *s = r->span;
        bits_clear(mspan_allocs(s), from, to);
        if (c->black) {
            bits_clear(mspan_marks(s), from, to);
            if (!s->noscan) {
                bits_clear(mspan_scans(s), from, to);
            }
        }
        s->free_index = (uint32_t)from;
        sub_rlx(&mcentral_of(s->spanclass)->nmalloc, (uint64_t)(to - from));
    }
    run_close(r);
    return rest;
}

static size_t next_clear(const _Atomic uint64_t *map, size_t i, size_t n)
{
    while (i < n) {
        /* acquire: pairs with the clearing in loam_free, which set needzero before. */
        uint64_t zeros = ~load_acq(&map[i / 64]) >> (i % 64);
        if (zeros != 0) {
            i += ctz64(zeros);
            return i < n ? i : n;
        }
        i = (i / 64 + 1) * 64;
    }
    return n;
}

static size_t next_set(const _Atomic uint64_t *map, size_t i, size_t n)
{
    while (i < n) {
        /* acquire: as above; the bits behind the first word of a hole are found clear here. */
        uint64_t ones = load_acq(&map[i / 64]) >> (i % 64);
        if (ones != 0) {
            i += ctz64(ones);
            return i < n ? i : n;
        }
        i = (i / 64 + 1) * 64;
    }
    return n;
}

/* -- samples ----------------------------------------------------------------------------------- */

static void sample_draw(struct mcache *c)
{
    c->sample_rate = load_rlx(&heap.sample_rate); /* relaxed: a rate */
    double mean = (double)c->sample_rate;
    c->sample_left = c->sample_rate == 0   ? INT64_MAX / 2
                     : c->sample_rate == 1 ? 0
                                           : (int64_t)rng_exponential(&c->sample_rng, mean);
}

static void sample_rate_adopt(struct mcache *c)
{
    if (unlikely(c->sample_rate != load_rlx(&heap.sample_rate))) {
        sample_draw(c); /* anew: what is left has no memory */
    }
}

/* [mcache.sample] Of the slots [from, to), the end of those that the run may have. */
static size_t cut_at_sample(struct mcache *c, struct mspan *s, size_t from, size_t to)
{
    size_t next = from;
    sample_rate_adopt(c);
    if (unlikely(s->sample_next)) {
        s->sample_next = false;
        c->sampled = true;
        next++;
    }
    while (unlikely(c->sample_left < (int64_t)((to - next) * s->elem_size))) {
        next += (size_t)c->sample_left / s->elem_size;
        sample_draw(c);
        if (next > from) {
            s->sample_next = true;
            return next;
        }
        c->sampled = true;
        next++;
    }
    c->sample_left -= (int64_t)((to - next) * s->elem_size);
    return to;
}

bool mcache_sample_large(struct mcache *c, size_t bytes)
{
    sample_rate_adopt(c);
    if (c->sample_left >= (int64_t)bytes) {
        c->sample_left -= (int64_t)bytes;
        return false;
    }
    sample_draw(c);
    return true;
}

/* -- filling a run ----------------------------------------------------------------------------- */

/* Make the next hole of r's span the run. Bytes; 0: the span has none left. */
static size_t run_next_hole(struct mcache *c, struct run *r)
{
    struct mspan *s = r->span;
    const _Atomic uint64_t *allocs = mspan_allocs(s);
    size_t from = next_clear(allocs, s->free_index, s->nelems);
    if (from == s->nelems) {
        s->free_index = s->nelems;
        return 0;
    }
    size_t max = c->run_limit / s->elem_size;
    size_t end = from + (max > 1 ? max : 1);
    size_t to = next_set(allocs, from, end < s->nelems ? end : s->nelems);
    to = cut_at_sample(c, s, from, to);
    size_t bytes = (to - from) * s->elem_size;
    if (load_rlx(&s->needzero)) { /* relaxed: set before the bits that were found clear */
        memset((void *)mspan_object(s, from), 0, bytes);
    }
    if (c->black) {
        slots_blacken(s, from, to);
    }
    bits_set(mspan_allocs(s), from, to); /* release: [run.zero] and the marks above are seen */
    s->free_index = (uint32_t)to;
    run_open(r, mspan_object(s, from), mspan_object(s, to));
    /* release, after the run is open: who reads the count sees what of it is still unused. */
    add_acqrel(&mcentral_of(s->spanclass)->nmalloc, (uint64_t)(to - from));
    c->used = true;
    return bytes;
}

size_t mcache_refill(struct mcache *c, struct run *r, uint32_t spanclass)
{
    struct mcentral *central = mcentral_of(spanclass);
    run_close(r);
    for (;;) {
        if (r->span != NULL) {
            size_t bytes = run_next_hole(c, r);
            if (bytes != 0) {
                return bytes;
            }
            if (xchg_rlx(&r->span->freed, 0u) != 0) { /* relaxed: the bits are looked at again */
                r->span->free_index = 0;
                store_rlx(&r->span->needzero, true);
                continue;
            }
            mcentral_uncache(c, r->span);
            r->span = NULL;
        }
        struct mspan *s = mcentral_cache_span(c, central);
        if (s == NULL) {
            return 0;
        }
        r->size = s->elem_size;
        s->sample_next = false;             /* what a cache did not come to */
        if (xchg_rlx(&s->freed, 0u) != 0) { /* relaxed: as above */
            s->free_index = 0;
            store_rlx(&s->needzero, true);
        }
        r->span = s;
    }
}

/* -- large objects ----------------------------------------------------------------------------- */

struct mspan *mcache_alloc_large(struct mcache *c, size_t bytes, struct gctype *type)
{
    struct mcentral *central = mcentral_of(type->kind == SCAN_NONE ? 1 : 0);
    struct mspan *s = mheap_alloc_span(c, (bytes + HEAP_PAGE_SIZE - 1) >> PAGE_SHIFT, central);
    if (s != NULL) {
        s->type = type;
        s->free_index = s->nelems;
    }
    return s;
}

static void publish_one(struct mcache *c, struct mspan *s)
{
    if (c->black) {
        slots_blacken(s, 0, 1);
    }
    bits_set(mspan_allocs(s), 0, 1);
    add_rlx(&mcentral_of(s->spanclass)->nmalloc, UINT64_C(1));
    add_rlx(&heap.stats.large_alloc, mspan_bytes(s));
    store_rlx(&s->sweepgen, c->sweepgen); /* relaxed: published below */
    mspan_publish(s);
}

void mcache_publish_large(struct mcache *c, struct mspan *s)
{
    publish_one(c, s);
    mcentral_add_large(c, s);
}

static void push_returned(struct mspan *first, struct mspan *last)
{
    struct mspan *head = load_rlx(&heap.returned);
    do {
        last->next = head;
        /* release: pairs with mcentral_drain_returned. */
    } while (!cas_acqrel(&heap.returned, &head, first));
}

void mcache_publish_alone(struct mcache *c, struct mspan *s)
{
    publish_one(c, s);
    push_returned(s, s);
}

/* -- all runs ---------------------------------------------------------------------------------- */

/* Call do_run on every run that has a span. */
#define EACH_RUN(c, r)                                                                     \
    for (uint32_t sc_ = 0;                                                                 \
         sc_ < NUM_FIXED_SPANCLASSES || sc_ < (c)->ntyped_chunks * SPANCLASS_CHUNK; sc_++) \
        if (((r) = run_at(c, sc_)) != NULL && (r)->span != NULL)

static struct run *run_at(struct mcache *c, uint32_t sc)
{
    if (sc < NUM_FIXED_SPANCLASSES) {
        return &c->runs[sc];
    }
    struct run *chunk = c->typed[sc / SPANCLASS_CHUNK];
    return chunk == NULL ? NULL : &chunk[sc % SPANCLASS_CHUNK];
}

size_t mcache_blacken(struct mcache *c)
{
    size_t bytes = 0;
    struct run *r;
    c->black = true;
    EACH_RUN(c, r)
    {
        size_t from, to;
        size_t rest = run_rest(r, r->end, &from, &to);
        if (rest != 0) {
            slots_blacken(r->span, from, to);
            bytes += rest;
        }
    }
    return bytes;
}

static void give_up_pages(struct mcache *c)
{
    if (load_acq(&c->pages_idle) ||
        c->pages.free == 0) { /* acquire: not idle, then they are ours */
        return;
    }
    store_rel(&c->pages_idle, true); /* release: pairs with take_idle_pages_locked */
    if (!xchg_acqrel(&c->pages_given,
                     true)) { /* still listed: who takes the list looks after this */
        struct mcache *head = load_rlx(&heap.idle);
        do {
            c->next_idle = head;
            /* release: pairs with take_idle_pages_locked. */
        } while (!cas_acqrel(&heap.idle, &head, c));
    }
}

size_t mcache_give_back(struct mcache *c, uint32_t new_sweepgen)
{
    size_t bytes = 0;
    struct mspan *first = NULL, *last = NULL;
    struct run *r;
    if (c->used) {
        EACH_RUN(c, r)
        {
            bytes += run_drop(c, r);
            struct mspan *s = r->span;
            r->span = NULL;
            store_rlx(&s->sweepgen, c->sweepgen); /* relaxed: the push below publishes it */
            s->next = first;
            first = s;
            if (last == NULL) {
                last = s;
            }
        }
    }
    if (!c->used || load_rlx(&heap.give_up_pages) != 0) { /* relaxed: set before the cycle began */
        give_up_pages(c);
    }
    c->black = false;
    c->used = false;
    c->sweepgen = new_sweepgen;
    if (first != NULL) {
        push_returned(first, last);
    }
    return bytes;
}

size_t mcache_release(struct mcache *c)
{
    size_t bytes = 0;
    struct run *r;
    EACH_RUN(c, r)
    {
        bytes += run_drop(c, r);
        struct mspan *s = r->span;
        r->span = NULL;
        mcentral_uncache(c, s);
    }
    c->used = false;
    return bytes;
}

static const struct run *run_const(const struct mcache *c, uint32_t spanclass)
{
    if (spanclass < NUM_FIXED_SPANCLASSES) {
        return &c->runs[spanclass];
    }
    const struct run *chunk = c->typed[spanclass / SPANCLASS_CHUNK];
    return chunk != NULL ? &chunk[spanclass % SPANCLASS_CHUNK] : NULL;
}

size_t mcache_unused(const struct mcache *c, uint32_t spanclass)
{
    const struct run *r = run_const(c, spanclass);
    if (r == NULL || r->size == 0) {
        return 0;
    }
    uintptr_t ptr = __atomic_load_n(&r->ptr, __ATOMIC_RELAXED);
    uintptr_t end = __atomic_load_n(&r->end, __ATOMIC_RELAXED);
    return ptr < end ? (end - ptr) / r->size : 0;
}

bool mcache_holds(const struct mcache *c, const struct mspan *s, uintptr_t addr)
{
    const struct run *r = run_const(c, s->spanclass);
    return r != NULL && r->span == s && addr >= r->ptr && addr < r->end;
}

void mcache_disown_unused(struct mcache *c)
{
    struct run *r;
    EACH_RUN(c, r)
    {
        size_t from, to;
        if (run_rest(r, r->end, &from, &to) != 0) {
            bits_clear(mspan_allocs(r->span), from, to);
        }
    }
}
