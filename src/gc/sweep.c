/* sweep.c - unmarked slots become free.
 *
 * Purpose     After the [flip] every span waits once for a sweeper: the collector in the background, an
 *             allocator that looks for a slot, an allocator that pays for its growth.
 * Model       dead = allocs & ~marks; allocs &= marks; marks = scans = 0. A span without live objects
 *             returns to the page heap, the others to their mcentral.
 * Invariants  [sweep.gen]  a sweeper owns its span: sweepgen is sg-1 meanwhile.
 *             [sweep.clear]  no mark or scanned bit survives: the next cycle starts from zero.
 *             [sweep.done]  sweep_done is set only after every cache was given back and every list of
 *             the unswept is empty. While it is set nobody looks for unswept spans: a busy thread that had read
 *             sweepgen would find, once the flip is posted, what others have swept since on the same lists: [pay].
 * Locking     the lists' own; none while a span is swept.
 * From Go     mgcsweep.go; differs: whole words of 64 slots at once, a bounded share per allocation.
 * Tests       tests/unit/test_memstats.c (bits and counts after a sweep), tests/model [sweep],
 *             tests/stress/canary_graph.c
 */
#include "gc/ends.h"
#include "gc/gc.h"
#include "world/probe.h"

#include <string.h>

enum { PAY_MAX_SPANS = 16 }; /* spans an allocator sweeps at once: its longest sweep stretch */

static void clobber(struct mspan *s, size_t word, uint64_t dead)
{
    for (; dead != 0; dead &= dead - 1) {
        uint32_t *p = (uint32_t *)mspan_object(s, word * 64 + ctz64(dead));
        size_t n = s->elem_size < HEAP_PAGE_SIZE ? s->elem_size : HEAP_PAGE_SIZE;
        for (size_t i = 0; i < n / sizeof *p; i++) {
            p[i] = 0xdeadbeef;
        }
    }
}

static void count_swept(struct mspan *s, size_t freed)
{
    if (freed != 0) {
        add_rlx(&mcentral_of(s->spanclass)->nfree, (uint64_t)freed);
        if (s->sizeclass == 0) {
            add_rlx(&heap.stats.large_free, mspan_bytes(s));
        }
    }
    add_rlx(&gc.pages_swept, (uint64_t)s->npages);
}

/* [sweep]: s is ours (sg-1). keep: the caller wants it as a span to allocate from; true: it has a free
 * slot and stays the caller's. Otherwise it went back to the page heap or to its mcentral. */
bool gc_sweep_span(struct mspan *s, bool keep)
{
    _Atomic uint64_t *marks = mspan_marks(s);
    _Atomic uint64_t *allocs = mspan_allocs(s);
    size_t live = 0, freed = 0;
    ASSERT_SLOW(mspan_check(s));
    /* acquire: pairs with the publication in ends.c */
    if (load_acq(&s->specials) != NULL) {
        ends_sweep_span(s);
    }
    for (size_t i = 0; i < s->nwords; i++) {
        uint64_t m = load_rlx(&marks[i]);
        /* acquire: what was done to a slot before loam_free cleared its bit is done before it is used again */
        uint64_t dead = load_acq(&allocs[i]) & ~m;
        if (dead != 0) {
            if (unlikely(gc.options.clobber_free)) {
                clobber(s, i, dead);
            }
            store_rlx(&s->needzero, true);
            /* release: needzero first; pairs with mcache's search. Atomic: loam_free clears bits too,
             * and whoever cleared one counts it. */
            freed += popcount64(and_acqrel(&allocs[i], m) & ~m);
        }
        live += popcount64(load_acq(&allocs[i]) & m); /* acquire: as above */
        if (m != 0) {
            store_rlx(&marks[i], UINT64_C(0));
            if (!s->noscan) {
                store_rlx(&mspan_scans(s)[i], UINT64_C(0));
            }
        }
    }
    count_swept(s, freed);
    store_rlx(&s->scan_progress, (size_t)0);
    s->free_index = 0;
    if (live == 0 && !(keep && s->npages == class_to_pages[s->sizeclass])) {
        ends_span_freed(s);
        mheap_free_span(s);
        return false;
    }
    if (keep && live < s->nelems) {
        return true;
    }
    mcentral_add_swept(s, live < s->nelems);
    return false;
}

static struct mspan *take_any(uint32_t sweepgen, uint32_t start)
{
    uint32_t n = load_acq(&heap.nspanclasses); /* acquire: pairs with heap_spanclass */
    for (uint32_t i = start; i < n; i++) {
        struct mspan *s = mcentral_take_unswept(mcentral_of(i), sweepgen);
        if (s != NULL) {
            store_rlx(&gc.sweep_cursor, i); /* relaxed: a hint; given-back spans reset it */
            return s;
        }
    }
    return NULL;
}

/* Busy, or the collector: of flips at most one is posted meanwhile. */
static bool sweep_from(uint32_t spanclass)
{
    struct mspan *s = NULL;
    add_acqrel(&heap.sweeping,
               1u); /* before a list can be seen empty: pairs with gc_sweep_finish */
    /* [pay]. acquire: sweepgen is as new; pairs with post_flip. */
    if (!load_acq(&gc.sweep_done)) {
        uint32_t sweepgen = load_acq(&heap.sweepgen); /* acquire: pairs with the flip */
        world_delay(DELAY_STEP);
        s = take_any(sweepgen, spanclass);
    }
    if (s != NULL) {
        gc_sweep_span(s, false);
    }
    sub_acqrel(&heap.sweeping, 1u);
    return s != NULL;
}

bool gc_sweep_one(void)
{
    /* acquire: who sees it drained sees heap.sweeping of who drained it. */
    if (load_acq(&heap.returned) != NULL) {
        mcentral_drain_returned();
        store_rlx(&gc.sweep_cursor, 0u);
    }
    return sweep_from(load_rlx(&gc.sweep_cursor)); /* relaxed: a hint */
}

/* Spans that others hold at this moment are swept, or go to the lists, when they are done. */
static void wait_for_sweepers(void)
{
    while (load_acq(&heap.sweeping) != 0) { /* acquire: what they did; pairs with their leaving */
        os_sleep_ns(20000);
    }
}

/* [sweep-done]: called by the collector after [H-GIVEBACK], so caches give back no unswept span any more.
 * First who moves spans to the lists has to be done, then the lists empty, then who took the last. */
void gc_sweep_finish(void)
{
    do {
        while (gc_sweep_one()) {
            world_safepoint();
        }
        wait_for_sweepers();
    } while (load_acq(&heap.returned) != NULL || sweep_from(0));
    wait_for_sweepers();
    store_rel(&gc.sweep_done, true); /* release: pairs with gc_sweep_pay */
}

/* Proportional: pages swept keep pace with bytes allocated, so that all is swept when the next cycle
 * is due. */
void gc_sweep_pay(struct m *m)
{
    if (load_acq(&gc.sweep_done)) {
        return;
    }
    uint64_t live = load_rlx(&gc.live);
    uint64_t basis = load_rlx(&gc.sweep_basis);
    uint64_t grown = live > basis ? live - basis : 0;
    uint64_t due = (grown >> 10) * load_rlx(&gc.sweep_pages_per_mib) >> 10;
    int64_t traced = 0;
    uint64_t spans = 0;
    while (spans < PAY_MAX_SPANS && load_rlx(&gc.pages_swept) < due) {
        traced = spans == 0 ? trace_begin(&m->trace) : traced;
        if (!gc_sweep_one()) {
            break;
        }
        spans++;
    }
    if (spans != 0) {
        PROBE1(sweep, spans);
        trace_end(&m->trace, TRACE_SPANS, traced, spans, 0);
    }
}

void gc_sweep_began(void)
{
    uint64_t live = load_rlx(&gc.live);
    uint64_t trigger = load_rlx(&gc.trigger);
    uint64_t pages = load_rlx(&heap.stats.heap_inuse) >> PAGE_SHIFT;
    uint64_t distance = trigger > live + MIB(1) ? trigger - live - MIB(1) : HEAP_PAGE_SIZE;
    store_rlx(&gc.pages_swept, UINT64_C(0));
    store_rlx(&gc.sweep_basis, live);
    store_rlx(&gc.sweep_pages_per_mib, trigger == UINT64_MAX ? 0 : (pages << 20) / distance + 1);
}
