/* goal.c - what the pacer is told of memory and of processor time, and what the program sets.
 *
 * Purpose     The heap's goal and trigger, brought up to date at a cycle's end, when all is swept, while the heap
 *             grows under a memory limit, and when a setting changes.
 * Locking     gc.pacer_lock; heap.lock inside it for a few words.
 * From Go     mgcpacer.go, mgclimit.go; differs: the CPU limiter works only with a memory limit.
 * Tests       tests/unit/test_pacer.c, tests/stress/limit.c, tests/api/gc_settings.c
 */
#include "gc/gc.h"

/* What is lost in spans with objects stays as it was when all was swept last: before that, it cannot be told from what
 * will be swept. */
static void read_memory(struct pacer_memory *mem)
{
    static uint64_t lost; /* under pacer_lock */
    mutex_lock(&heap.lock);
    struct mheap_pages pages = mheap_pages_locked();
    uint64_t free = pages.free - pages.scavenged;
    mem->mapped = mheap_mapped_locked();
    uint64_t inuse = load_rlx(&heap.stats.heap_inuse);
    mutex_unlock(&heap.lock);
    uint64_t live = load_rlx(&gc.live);
    mem->external = load_rlx(&gc.external);
    live -= mem->external < live ? mem->external : live;
    if (load_acq(&gc.sweep_done) && load_acq(&gc.phase) == GC_OFF) {
        lost = inuse > live ? inuse - live : 0;
    }
    uint64_t objects_and_free = inuse + (free << PAGE_SHIFT);
    mem->overhead = (mem->mapped > objects_and_free ? mem->mapped - objects_and_free : 0) + lost;
    mem->limit = load_rlx(&heap.limit);
    store_rlx(&gc.limit_looked, load_rlx(&gc.live));
}

/* Under pacer_lock. */
static void commit(void)
{
    struct pacer_memory mem = {.limit = PACER_NO_LIMIT};
    if (load_rlx(&heap.limit) != UINT64_MAX) {
        read_memory(&mem);
    }
    gc.pacer.memory = mem;
    gc.pacer.gc_percent = load_rlx(&gc.gc_percent);
    pacer_commit(&gc.pacer);
    store_rlx(&gc.trigger, gc.pacer.trigger);
}

/* Metadata, and what is lost in spans, changes while the heap grows; with a limit the goal follows. */
void gc_follow_limit(struct m *m)
{
    enum { STEP = 1 << 20 };
    uint64_t limit = load_rlx(&heap.limit);
    if (likely(limit == UINT64_MAX) ||
        load_rlx(&gc.live) <
            load_rlx(&gc.limit_looked) + (limit / 256 < STEP ? limit / 256 : STEP)) {
        return;
    }
    m_enter(m);
    if (mutex_try_lock(&gc.pacer_lock)) {
        commit();
        mutex_unlock(&gc.pacer_lock);
    }
    m_leave(m);
}

/* Under pacer_lock. */
static void set_limit(uint64_t bytes)
{
    store_rlx(&heap.limit, bytes);
    if (bytes == UINT64_MAX) {
        store_rlx(&gc.limiting, false); /* nobody accounts any more */
    }
}

/* With room for what is not ours: the program's own data and stacks. The container's limit may change while the program
 * runs; it is read again after a cycle, once a second. */
void gc_read_container(void)
{
    enum { PERCENT = 90, PERIOD_NS = 1000000000 };
    static int64_t last;
    int64_t now = os_nanotime();
    if (!load_rlx(&gc.limit_auto) || (last != 0 && now - last < PERIOD_NS)) {
        return;
    }
    last = now;
    uint64_t bytes = os_cgroup_memory_limit("/proc/self/cgroup", "/sys/fs/cgroup");
    mutex_lock(&gc.pacer_lock);
    if (load_rlx(&gc.limit_auto)) { /* still: the program may have set another */
        set_limit(bytes == UINT64_MAX ? UINT64_MAX : bytes / 100 * PERCENT);
    }
    mutex_unlock(&gc.pacer_lock);
}

/* What objects own that the last cycle found dead is subtracted when their ends have run, after it: it was not alive then,
 * and the goal must not be as if it had been. */
static void lower_marked(uint64_t external)
{
    mutex_lock(&gc.pacer_lock);
    if (external < gc.external_marked) {
        uint64_t less = gc.external_marked - external;
        gc.external_marked = external;
        gc.pacer.marked -= less < gc.pacer.marked ? less : gc.pacer.marked;
        commit();
    }
    mutex_unlock(&gc.pacer_lock);
}

/* Never below zero: what was taken off too much is not remembered. */
void gc_count_external(struct m *m, int64_t delta)
{
    const uint64_t most = UINT64_C(1) << 62;
    uint64_t old = load_rlx(&gc.external);
    uint64_t now;
    ASSERT(m_busy(m) != 0);
    do {
        uint64_t by = delta < 0 ? -(uint64_t)delta : (uint64_t)delta;
        now = delta < 0 ? (by < old ? old - by : 0) : (by < most - old ? old + by : most);
    } while (!cas_rlx(&gc.external, &old, now));
    if (now > old) {
        add_rlx(&gc.live, now - old);
    } else {
        gc_live_sub(old - now);
        lower_marked(now);
    }
}

/* Of the marked bytes, and what is lost beside them: what the next cycle will not free either. */
uint64_t gc_must_stay(uint64_t marked)
{
    mutex_lock(&gc.pacer_lock);
    uint64_t overhead = gc.pacer.memory.overhead;
    mutex_unlock(&gc.pacer_lock);
    uint64_t external = load_rlx(&gc.external);
    return marked - (external < marked ? external : marked) + overhead;
}

void gc_commit_goal(void)
{
    mutex_lock(&gc.pacer_lock);
    commit();
    mutex_unlock(&gc.pacer_lock);
}

/* What the collector, and allocators for it, used of the processors since the start; the collector's thread. Without a
 * memory limit the goal is kept, whatever that costs: who sets a low GOGC wants it so. */
void gc_account_limiter(int64_t used_ns)
{
    int64_t used = used_ns + load_rlx(&gc.scavenge_assist_ns);
    int64_t all = os_process_cputime();
    int64_t gc_ns = used > gc.cpu.limiter_used ? used - gc.cpu.limiter_used : 0;
    int64_t all_ns = all - gc.cpu.limiter_all;
    gc.cpu.limiter_used = used;
    gc.cpu.limiter_all = all;
    mutex_lock(&gc.pacer_lock);
    pacer_limiter_account(&gc.limiter, gc_ns, all_ns > gc_ns ? all_ns - gc_ns : 0,
                          load_rlx(&gc.options.max_procs));
    bool limiting = gc.limiter.limiting && load_rlx(&heap.limit) != UINT64_MAX;
    store_rlx(&gc.limiting, limiting);
    if (limiting) { /* before a cycle begins it is that one's */
        store_rlx(&gc.limited, load_rlx(&gc.started) + (load_acq(&gc.phase) == GC_OFF ? 1 : 0));
    }
    mutex_unlock(&gc.pacer_lock);
}

int64_t gc_count_processors(void)
{
    mutex_lock(&gc.pacer_lock);
    int64_t now = os_nanotime();
    gc.cpu.there += (now - gc.cpu.there_at) * gc.cpu.there_procs; /* at first none */
    gc.cpu.there_at = now;
    gc.cpu.there_procs = load_rlx(&gc.options.max_procs);
    int64_t there = gc.cpu.there;
    mutex_unlock(&gc.pacer_lock);
    return there;
}

/* -- settings ---------------------------------------------------------------------------------- */

static void begin_setting(struct m *m)
{
    m_enter(m);
    mutex_lock(&gc.pacer_lock);
}

static void end_setting(struct m *m)
{
    mutex_unlock(&gc.pacer_lock);
    m_leave(m);
}

int gc_set_percent(struct m *m, int percent)
{
    begin_setting(m);
    int old = atomic_exchange_explicit(&gc.gc_percent, percent < 0 ? -1 : percent,
                                       memory_order_relaxed);
    commit();
    end_setting(m);
    if (old < 0 && percent >= 0) {
        gc_wake(); /* it sleeps without end */
    }
    return old;
}

/* A limit below what is mapped: a cycle at once, and what it frees goes back. */
int64_t gc_set_memory_limit(struct m *m, int64_t bytes)
{
    begin_setting(m);
    uint64_t old = load_rlx(&heap.limit);
    if (bytes >= 0) {
        store_rlx(&gc.limit_auto, false);
        set_limit(bytes == INT64_MAX ? UINT64_MAX : (uint64_t)bytes);
        commit();
    }
    bool exceeded = gc.pacer.memory.mapped > gc.pacer.memory.limit;
    end_setting(m);
    if (bytes >= 0 && exceeded) {
        store_rlx(&heap.over_limit, true);
        gc_scavenge_wake();
        gc_ask(); /* what the last cycle found alive, and the goal stands on, may be dead */
    }
    if (bytes >= 0) {
        gc_start_if_due(m);
    }
    return old == UINT64_MAX ? INT64_MAX : (int64_t)old;
}

double gc_set_cpu_limit(struct m *m, double share)
{
    begin_setting(m);
    double old = gc.limiter.share;
    if (share >= 0) { /* not for a NaN */
        gc.limiter.share = share > 1 ? 1 : share;
    }
    end_setting(m);
    return old;
}

int64_t gc_set_min_heap(struct m *m, int64_t bytes)
{
    begin_setting(m);
    int64_t old = pacer_min_heap(&gc.pacer);
    if (bytes >= 0) {
        gc.pacer.min_heap = bytes < INT64_C(1) << 62 ? bytes : INT64_C(1) << 62;
        commit();
    }
    end_setting(m);
    return old;
}
