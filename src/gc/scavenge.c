/* scavenge.c - memory that is free and not needed goes back to the system.
 *
 * Purpose     In the background a little at a time; all of it when the program asks.
 * Model       limit   = with a memory limit, an allocation that leads beyond it gives back as much as it
 *                       took, at least 1 MiB, before it returns: never more, so nobody waits for
 *                       others' memory. Where nothing is free it sweeps a little, and waits a moment for a
 *                       cycle that is under way or due; far beyond the limit up to WAIT_MOST_NS with each span. The
 *                       background goes down to 95 % of the limit
 *             kept    = (in use now, or lately) * 1.1; "lately" falls by three quarters a second, so that what
 *                       a program takes again within a few seconds stays, and a heap at rest comes down to
 *                       what it uses
 *             work    = pieces of 1 MiB, highest addresses first, for a millisecond; then a rest, so that it is
 *                       1 % of the processors' time; after a large drop as much as ends it in some five
 *                       seconds, up to 5 %. Chunks of 4 MiB that are nearly full are left whole: they may
 *                       be huge pages.
 *             A pass begins with each cycle and when a large object is freed, and ends when enough is gone or the
 *             whole heap was seen. Between passes nothing runs.
 * Locking     heap.lock for each piece, not while the system takes it. All but the calls that say otherwise:
 *             the collector's thread.
 * From Go     mgcscavenge.go; differs: what is kept follows what is used instead of the heap's goal, which keeps
 *             twice the live heap at GOGC=100; the share is kept by resting after each millisecond, without a
 *             controller; it runs on the collector's thread.
 * Tests       tests/stress/scavenge.c, tests/stress/limit.c, tests/unit/test_pagealloc.c
 */
#include "gc/gc.h"
#include "world/probe.h"

enum {
    PIECE_PAGES = MIB(1) >> PAGE_SHIFT,
    PERCENT = 1,        /* of the processors' time */
    PERCENT_MOST = 5,   /* when there is much */
    STEPS = 100,        /* in which a pass shall end, then; one takes 50 ms on two processors */
    PAY_LEAST = MIB(1), /* more than a page cache takes at once */
    PAY_SPANS = 64,     /* to sweep, when no page is free */
    WAIT_NS = 1000000,
    WAIT_FAR_NS = 4000000,  /* a 64th beyond the limit */
    WAIT_MOST_NS = 8000000, /* far beyond it, as long as it is; there each span comes here */
    WORK_NS = 1000000,
    FADE_NS = 500000000, /* what was used lately, and is not now, halves */
};

static struct {
    _Atomic bool awake;     /* a pass is on, or will be */
    bool fresh;             /* it begins */
    struct mheap_cursor at; /* what has been seen in this pass */
    uint64_t used;          /* bytes in use, or lately */
    int64_t faded;          /* when used was brought down last */
    uint64_t step;          /* bytes to give back in a step at least, if PERCENT_MOST allows it */
    int64_t next;           /* not to work before */
} scavenger;

static uint64_t in_use(void)
{
    return load_rlx(&heap.stats.heap_inuse);
}

/* Heap memory that the system has given and not got back. */
static uint64_t with_memory(void)
{
    mutex_lock(&heap.lock);
    uint64_t released = (uint64_t)mheap_pages_locked().scavenged << PAGE_SHIFT;
    uint64_t bytes = load_rlx(&heap.stats.heap_sys);
    mutex_unlock(&heap.lock);
    return bytes - released;
}

/* Bytes mapped beyond the limit. */
static uint64_t beyond(uint64_t limit)
{
    if (limit == UINT64_MAX) {
        return 0;
    }
    mutex_lock(&heap.lock);
    uint64_t mapped = mheap_mapped_locked();
    mutex_unlock(&heap.lock);
    return mapped > limit ? mapped - limit : 0;
}

static uint64_t background_limit(void)
{
    uint64_t limit = load_rlx(&heap.limit);
    return limit == UINT64_MAX ? UINT64_MAX : limit / 100 * 95; /* Go's */
}

static size_t release_piece(struct mheap_cursor *at, bool spare_dense)
{
    size_t pn;
    mutex_lock(&heap.lock);
    size_t n = mheap_scavenge_locked(at, PIECE_PAGES, spare_dense, &pn);
    mutex_unlock(&heap.lock);
    if (n != 0) {
        mheap_discard(pn, n);
        mutex_lock(&heap.lock);
        pagealloc_scavenged(mheap_pages_of(pn), pn, n);
        mutex_unlock(&heap.lock);
    }
    return n << PAGE_SHIFT;
}

/* Any attached thread. */
void gc_scavenge_all(struct m *m)
{
    struct mheap_cursor at = {0, SIZE_MAX};
    uint64_t done = 0;
    int64_t traced = trace_begin(&m->trace);
    for (size_t bytes = 1; bytes != 0; done += bytes) {
        m_enter(m);
        bytes = release_piece(&at, false);
        m_leave(m);
        add_rlx(&gc.scavenged_eager, (uint64_t)bytes);
    }
    trace_end(&m->trace, TRACE_SCAVENGE, traced, done, 0);
}

static void sweep_some(void)
{
    for (int i = 0; i < PAY_SPANS && gc_sweep_one(); i++) {
    }
}

static bool cycle_is_on_or_due(void)
{
    return load_acq(&gc.phase) != GC_OFF || gc_is_due();
}

/* The threads that have not answered need the processors; far beyond the limit they have had none for long, because others
 * have, and those that allocate here must not take more than the cycle can free. */
static void wait_beyond(struct m *m, uint64_t limit, uint64_t excess)
{
    int64_t waited = 0;
    do {
        waited += gc_wait_progress(m, excess > limit / 64 ? WAIT_FAR_NS : WAIT_NS);
        m_enter(m);
        excess = beyond(limit);
        m_leave(m);
    } while (excess > limit / MHEAP_FAR_PART && cycle_is_on_or_due() && !load_rlx(&gc.limiting) &&
             waited < WAIT_MOST_NS - WAIT_FAR_NS);
    gc_count_wait(m, waited);
}

/* Any attached thread; what is missing then is for the next allocation, and for the background. */
void gc_scavenge_pay(struct m *m, size_t bytes)
{
    struct mheap_cursor at = {0, SIZE_MAX};
    size_t done = 0;
    size_t most = bytes < PAY_LEAST ? PAY_LEAST : bytes;
    if (m_busy(m) != 0 || load_rlx(&gc.limiting)) {
        return;
    }
    int64_t took = 0;
    store_rlx(&heap.over_limit, false);
    uint64_t limit = load_rlx(&heap.limit);
    uint64_t excess = 1;
    int64_t traced = trace_begin(&m->trace);
    for (size_t piece = 1; excess != 0 && piece != 0 && done < most; done += piece) {
        m_enter(m);
        int64_t begin = os_thread_cputime();
        excess = beyond(limit);
        piece = excess != 0 ? release_piece(&at, false) : 0;
        if (excess != 0 && piece == 0) {
            sweep_some();
        }
        took += os_thread_cputime() - begin;
        m_leave(m);
    }
    trace_end(&m->trace, TRACE_SCAVENGE, traced, done, 0);
    if (done >= most) {
        store_rlx(&heap.over_limit, true); /* perhaps there is more */
    } else if (excess != 0 && cycle_is_on_or_due()) {
        wait_beyond(m, limit, excess);
    }
    add_rlx(&gc.scavenged_eager, (uint64_t)done);
    add_rlx(&gc.scavenge_assist_ns, took);
    m_count_pause(m, took);
    gc_scavenge_wake();
}

/* Any thread. */
void gc_scavenge_wake(void)
{
    if (!load_rlx(&scavenger.awake) && !xchg_acqrel(&scavenger.awake, true)) {
        gc_wake();
    }
}

void gc_scavenge_cycle_ended(uint64_t most_in_use)
{
    scavenger.used = most_in_use > scavenger.used ? most_in_use : scavenger.used;
    scavenger.fresh = true;
    store_rlx(&scavenger.awake, true);
    mheap_hugepages_filled();
}

static void fade(int64_t now)
{
    uint64_t used = in_use();
    if (scavenger.used < used) {
        scavenger.used = used;
        scavenger.faded = now;
    }
    for (; now - scavenger.faded >= FADE_NS && scavenger.used > used; scavenger.faded += FADE_NS) {
        scavenger.used -= (scavenger.used - used + 1) / 2;
    }
    if (scavenger.used == used) {
        scavenger.faded = now;
    }
}

static uint64_t and_a_tenth(uint64_t bytes)
{
    return bytes + bytes / 10;
}

static void trace_step(int64_t begin, uint64_t bytes)
{
    if (bytes != 0) {
        PROBE1(scavenge, bytes);
        trace_end(&trace.library[TRACE_COLLECTOR], TRACE_SCAVENGE, begin, bytes, 0);
    }
}

static int64_t asleep(void)
{
    store_rlx(&scavenger.awake, false);
    return -1;
}

/* A step, if it is time; how long until the next one, -1: until it is woken. */
int64_t gc_scavenge_step(void)
{
    if (!load_rlx(&scavenger.awake)) {
        return -1;
    }
    int64_t now = os_nanotime();
    if (now < scavenger.next) {
        return scavenger.next - now;
    }
    bool fresh = scavenger.fresh || scavenger.at.node == heap.nnodes;
    if (fresh) {
        scavenger.at = (struct mheap_cursor){0, SIZE_MAX};
        scavenger.fresh = false;
    }
    fade(now);
    uint64_t have = with_memory();
    bool limited = beyond(background_limit()) != 0;
    uint64_t least = and_a_tenth(in_use());
    if (have <= least && !limited) {
        return asleep();
    }
    if (fresh) {
        scavenger.step = have > least ? (have - least) / STEPS : 0;
    }
    int64_t traced = trace_begin(&trace.library[TRACE_COLLECTOR]);
    int64_t begin = os_thread_cputime();
    int64_t took = 0;
    uint64_t done = 0;
    while ((limited || have > and_a_tenth(scavenger.used)) &&
           (took < WORK_NS || (done < scavenger.step && took < PERCENT_MOST * WORK_NS))) {
        size_t bytes = release_piece(&scavenger.at, !limited);
        if (bytes == 0) {
            add_rlx(&gc.scavenge_ns, os_thread_cputime() - begin);
            trace_step(traced, done);
            return asleep(); /* the rest is in use, or dense */
        }
        have -= bytes < have ? bytes : have;
        done += bytes;
        add_rlx(&gc.scavenged_bg, (uint64_t)bytes);
        took = os_thread_cputime() - begin;
        limited = limited && beyond(background_limit()) != 0;
    }
    add_rlx(&gc.scavenge_ns, took);
    trace_step(traced, done);
    int64_t worked = took < WORK_NS ? took : WORK_NS; /* what is above is not rested for */
    int64_t rest = worked * 100 / (PERCENT * load_rlx(&gc.options.max_procs)) - worked;
    rest = took == 0 || rest > FADE_NS ? FADE_NS : rest; /* took nothing: it waits for fade */
    scavenger.next = os_nanotime() + rest;
    return rest;
}

void gc_scavenge_fork_child(void)
{
    store_rlx(&gc.scavenge_assist_ns, INT64_C(0));
    store_rlx(&gc.scavenge_ns, INT64_C(0));
    scavenger.fresh = true;
    store_rlx(&scavenger.awake, true);
}
