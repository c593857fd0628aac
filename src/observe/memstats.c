/* memstats.c - loam_read_memstats: Go's MemStats out of counters that are kept anyway.
 *
 * Purpose     Adds up the counters of the mcentrals, less what caches hold and have not handed out.
 * Model       of a size class: frees = sum of nfree; mallocs = sum of nmalloc - slots unused in
 *             runs. Nobody stops. The order of the reads makes the sums hold: frees first, then
 *             nmalloc, then the runs. A refill opens its run before it counts it in nmalloc, so a
 *             thread that refills meanwhile makes mallocs too low, by a run at most, never too
 *             high; and what was reported once is not taken back. Only a thread that gives its runs
 *             back ([H-GIVEBACK]) could make it too high: seen by the sweep generations, then all is
 *             read again; when that goes on for long, mallocs stay as they were reported last.
 *             Exact whenever no other thread allocates at that moment. A slot that an allocation
 *             took and gave up, because a handshake gave its run back in that very moment (run_take
 *             in malloc.c), counts as an object, freed by the next sweep.
 * Invariants  [memstats.growth]  mallocs, frees, total_alloc, num_gc, pause_total_ns never fall.
 *             [memstats.sums]  heap_objects = mallocs - frees; heap_sys = heap_inuse + heap_idle;
 *             sys is the sum of the ..._sys.
 * Locking     world.lock over the walk of the threads, heap.lock and gc.pacer_lock for a few words,
 *             observe.lock. Busy meanwhile, but not between two tries.
 * From Go     readMemStats_m (mstats.go); differs: does not stop the world. Stacks are
 *             those of goroutines, as they were when last looked at; the threads' are not counted.
 *             A large object counts whole pages.
 * Tests       tests/unit/test_memstats.c, tests/api/memstats.c
 */
#include "observe/observe.h"

#include "observe/profile.h"

#include "malloc/malloc.h"

#include "heap/fixalloc.h"

#include <string.h>

#include <loam/stats.h>

enum {
    RUN_BYTES_MAX = 8192, /* of a run with more than one slot, as in mcache.c */
    TRIES = 20,
    TRY_PAUSE_NS = 50000,
};

struct sample {
    uint64_t mallocs[NUM_SIZE_CLASSES]; /* [0]: large objects */
    uint64_t frees[NUM_SIZE_CLASSES];
    uint64_t large_alloc, large_free; /* bytes */
    uint64_t pause_total;
    uint32_t nms;
};

/* -- objects ----------------------------------------------------------------------------------- */

static void read_frees(struct sample *s, uint32_t nspanclasses)
{
    for (uint32_t i = 0; i < nspanclasses; i++) {
        const struct mcentral *c = mcentral_of(i);
        s->frees[c->sizeclass] += load_acq(&c->nfree); /* acquire: nmalloc is read after it */
    }
    s->large_free = load_acq(&heap.stats.large_free); /* acquire: as above */
}

static void read_mallocs(struct sample *s, uint32_t nspanclasses)
{
    for (uint32_t i = 0; i < nspanclasses; i++) {
        const struct mcentral *c = mcentral_of(i);
        s->mallocs[c->sizeclass] += load_acq(&c->nmalloc); /* acquire: the runs are read after it */
    }
    s->large_alloc = load_rlx(&heap.stats.large_alloc);
}

/* Slots of r that its owner, who may be running, has not handed out. */
static NO_SANITIZE uint64_t run_unused(const struct run *r, size_t size)
{
    uintptr_t ptr = __atomic_load_n(&r->ptr, __ATOMIC_ACQUIRE); /* acquire: ptr, then end */
    uintptr_t end = __atomic_load_n(&r->end,
                                    __ATOMIC_RELAXED); /* relaxed: closed first, opened last */
    size_t max = size > RUN_BYTES_MAX ? size : RUN_BYTES_MAX;
    if (ptr >= end ||
        end - ptr > max) { /* larger: of two runs; the new one is not yet in nmalloc */
        return 0;
    }
    return (end - ptr) / size;
}

static NO_SANITIZE const struct run *run_of(const struct mcache *c, uint32_t spanclass)
{
    if (spanclass < NUM_FIXED_SPANCLASSES) {
        return &c->runs[spanclass];
    }
    /* acquire: a chunk is zero when it appears. */
    const struct run *chunk = __atomic_load_n(&c->typed[spanclass / SPANCLASS_CHUNK],
                                              __ATOMIC_ACQUIRE);
    return chunk == NULL ? NULL : &chunk[spanclass % SPANCLASS_CHUNK];
}

static void subtract_unused_locked(struct sample *s, uint32_t nspanclasses)
{
    for (const struct m *m = world.ms; m != NULL; m = m->next) {
        for (uint32_t i = 0; i < nspanclasses; i++) {
            unsigned sc = mcentral_of(i)->sizeclass;
            const struct run *r = sc == 0 ? NULL : run_of(&m->cache, i);
            if (r != NULL) {
                uint64_t unused = run_unused(r, class_to_size[sc]);
                s->mallocs[sc] -= unused < s->mallocs[sc] ? unused : s->mallocs[sc];
            }
        }
    }
}

/* Has every thread answered [H-GIVEBACK] of this generation? */
static NO_SANITIZE bool all_of_generation_locked(uint32_t sweepgen)
{
    for (const struct m *m = world.ms; m != NULL; m = m->next) {
        if (__atomic_load_n(&m->cache.sweepgen, __ATOMIC_ACQUIRE) != sweepgen) {
            return false; /* acquire: its runs are read after it */
        }
    }
    return true;
}

/* False: runs may have been given back meanwhile; mallocs may be too high. */
static bool read_sample(struct sample *s)
{
    memset(s, 0, sizeof *s);
    uint32_t n = load_acq(&heap.nspanclasses);    /* acquire: pairs with heap_spanclass */
    mutex_lock(&world.lock);                      /* no thread ends and hands its runs back */
    uint32_t sweepgen = load_acq(&heap.sweepgen); /* acquire: pairs with the flip */
    bool exact = all_of_generation_locked(sweepgen);
    read_frees(s, n);
    read_mallocs(s, n);
    subtract_unused_locked(s, n);
    exact = exact && load_acq(&heap.sweepgen) == sweepgen;
    s->nms = world.nms;
    s->pause_total = load_rlx(&gc.pause_total);
    for (const struct m *m = world.ms; m != NULL; m = m->next) {
        s->pause_total += load_rlx(&m->pause_total_ns);
    }
    mutex_unlock(&world.lock);
    return exact;
}

/* [memstats.growth]; under observe.lock. */
static void settle_locked(struct sample *s, bool exact)
{
    for (size_t i = 0; i < NUM_SIZE_CLASSES; i++) {
        uint64_t least = observe.mallocs[i] > s->frees[i] ? observe.mallocs[i] : s->frees[i];
        s->mallocs[i] = s->mallocs[i] < least || !exact ? least : s->mallocs[i];
        observe.mallocs[i] = s->mallocs[i];
    }
}

static void fill_objects(loam_memstats *m, const struct sample *s)
{
    uint64_t freed = s->large_free;
    m->total_alloc = s->large_alloc > freed ? s->large_alloc : freed;
    for (size_t i = 0; i < NUM_SIZE_CLASSES; i++) {
        m->mallocs += s->mallocs[i];
        m->frees += s->frees[i];
        m->total_alloc += s->mallocs[i] * class_to_size[i];
        freed += s->frees[i] * class_to_size[i];
        m->by_size[i].size = class_to_size[i];
        if (i != 0) { /* large objects are in no class */
            m->by_size[i].mallocs = s->mallocs[i];
            m->by_size[i].frees = s->frees[i];
        }
    }
    m->heap_objects = m->mallocs - m->frees;
    m->heap_alloc = m->total_alloc - freed;
    m->alloc = m->heap_alloc;
}

/* -- memory ------------------------------------------------------------------------------------ */

/* What is mapped for the library itself, but for the stacks of its threads. The tables of the page
 * allocator are the collector's metadata as those of the marker are. */
static void fill_metadata(loam_memstats *m, const struct sample *s, size_t pages_meta)
{
    uint32_t chunks = (load_acq(&heap.nspanclasses) + SPANCLASS_CHUNK - 1) / SPANCLASS_CHUNK;
    m->mspan_inuse = load_rlx(&heap.stats.mspan_inuse);
    m->mspan_sys = load_rlx(&heap.stats.mspan_sys);
    m->mcache_sys = load_rlx(&heap.stats.mcache_sys);
    m->mcache_inuse = s->nms * sizeof(struct m) +
                      (uint64_t)chunks * SPANCLASS_CHUNK * sizeof(struct mcentral);
    m->gc_sys = load_rlx(&heap.stats.gc_sys) + pages_meta;
    uint64_t mapped = persistentalloc_mapped_bytes() + metaalloc_mapped_bytes() +
                      os_stores_bytes() + load_rlx(&heap.stats.trace_bytes);
    m->buck_hash_sys = profile_bytes();
    uint64_t elsewhere = m->mcache_sys + m->buck_hash_sys;
    m->other_sys = mapped > elsewhere ? mapped - elsewhere : 0;
}

static void fill_memory(loam_memstats *m, const struct sample *s)
{
    mutex_lock(&heap.lock);
    uint64_t inuse = load_rlx(&heap.stats.heap_inuse);
    uint64_t sys = load_rlx(&heap.stats.heap_sys);
    struct mheap_pages pages = mheap_pages_locked();
    mutex_unlock(&heap.lock);
    /* Spans came and went since the objects were counted. */
    inuse = inuse < m->heap_alloc ? m->heap_alloc : inuse;
    sys = sys < inuse ? inuse : sys;
    m->heap_inuse = inuse;
    m->heap_sys = sys;
    m->heap_idle = sys - inuse;
    uint64_t released = (uint64_t)pages.scavenged << PAGE_SHIFT;
    m->heap_released = released < m->heap_idle ? released : m->heap_idle;
    m->stack_inuse = m->stack_sys = load_rlx(&heap.stats.stack_bytes);
    fill_metadata(m, s, pages.meta_bytes);
    m->sys = m->heap_sys + m->stack_sys + m->mspan_sys + m->mcache_sys + m->buck_hash_sys +
             m->gc_sys + m->other_sys;
}

/* -- the collector ----------------------------------------------------------------------------- */

static void fill_cycles_locked(loam_memstats *m)
{
    uint32_t finished = load_acq(&gc.finished); /* acquire: pairs with run_cycle */
    m->num_gc = (int32_t)(observe.num_gc - finished) > 0 ? observe.num_gc : finished;
    m->num_forced_gc = observe.num_forced;
    m->last_gc = observe.last_gc;
    memcpy(m->pause_ns, observe.pause_ns, sizeof m->pause_ns);
    memcpy(m->pause_end, observe.pause_end, sizeof m->pause_end);
}

static void fill(loam_memstats *m, struct sample *s, bool exact)
{
    memset(m, 0, sizeof *m);
    mutex_lock(&observe.lock);
    settle_locked(s, exact);
    fill_cycles_locked(m);
    mutex_unlock(&observe.lock);
    fill_objects(m, s);
    fill_memory(m, s);
    mutex_lock(&gc.pacer_lock);
    m->next_gc = gc.pacer.goal;
    mutex_unlock(&gc.pacer_lock);
    m->pause_total_ns = s->pause_total;
    m->gc_cpu_fraction = observe_gc_cpu_fraction();
    m->enable_gc = true;
}

void loam_read_memstats(loam_memstats *stats)
{
    CHECK(stats != NULL, "loam_read_memstats(NULL): there is nothing to fill");
    struct m *m =
        malloc_self(); /* attached, or its locks would be unknown to fork; NULL: no memory */
    struct sample s;
    bool done = false;
    for (int i = 0; !done; i++) {
        if (m != NULL) {
            m_enter(m);
        }
        bool exact = read_sample(&s);
        done = exact || i == TRIES;
        if (done) {
            fill(stats, &s, exact);
        }
        if (m != NULL) {
            m_leave(m);
        }
        if (!done) {
            os_sleep_ns(TRY_PAUSE_NS);
        }
    }
}
