/* cycle.c - the steps of a collection, and the thread that takes them.
 *
 * Purpose     Runs the protocol of docs/internals/protocol.md; decides when.
 * Model       [sweep-done] [H-ON] [H-BLACK] [roots] [H-SCAN] [drain] [H-FLUSH]... [mark-done] [H-OFF]
 *             [flip]+[H-GIVEBACK] [sweep]. One thread takes the steps; helpers and allocators mark.
 * Invariants  those of the model, cited at each step below.
 * Locking     cycle_lock: the whole cycle. The phase is closed (phase.c) for mark-done and the flip.
 * From Go     mgc.go; differs: no stop of the world; what Go does in its two stops is a handshake here.
 * Tests       tests/model/cycle.pml, tests/stress
 */
#define LOAM_LIBRARY_ 1 /* loam_write_barrier is ours to write */
#include "gc/mark.h"

#include "heap/fixalloc.h"
#include "world/probe.h"

#include <limits.h>
#include <string.h>

struct gc gc = {.period_ns = INT64_C(120000000000)};

/* The flag of the barrier, compiled into programs; see loam.h. */
volatile uint32_t loam_write_barrier;

enum {
    SLICE_NS = 200000, /* the collector marks so long before it yields */
    MAX_HELPERS = TRACE_HELPERS,
    PATIENCE_NS = 200000, /* before a helper that the kernel does not run is given priority */
};
static const uint64_t HELPERS_FROM = 8 << 20; /* live heap that is worth waking helpers for */

static struct {
    struct gcwork work;
    int tid;
    int nhelpers;
    _Atomic int helper_tid[MAX_HELPERS];
    int ndedicated; /* of these: helpers of normal priority; the others have what nobody wants */
    _Atomic int64_t dedicated_ns;
    _Atomic int64_t idle_ns;
    int64_t marked_before; /* by allocators and dedicated helpers, in cycles before this one; ns */
    bool boosted;
} collector;

/* Of the cycle's steps, whoever takes them. */
static struct trace_source *const tracing = &trace.library[TRACE_COLLECTOR];

static void set_barrier(uint32_t on)
{
    __atomic_store_n(&loam_write_barrier, on,
                     __ATOMIC_SEQ_CST); /* seen at the latest at the answer */
}

/* -- what a thread does at each handshake ------------------------------------------------------ */

/* [H-ON]: the answer says that the thread sees the barrier's flag, and that it is between no test of it and
 * the store that follows: not where it was found, nor below a handler of the program that it is in. */
static void h_on(struct m *m, const struct m_context *ctx)
{
    gc_restart_stores(m, ctx);
}

/* [H-BLACK] */
static void h_black(struct m *m, const struct m_context *ctx)
{
    (void)ctx;
    add_rlx(&gc.bytes_marked, (uint64_t)mcache_blacken(&m->cache));
}

/* [H-SCAN] */
static void h_scan(struct m *m, const struct m_context *ctx)
{
    gc_scan_thread(m, ctx);
}

/* [H-FLUSH] */
static void h_flush(struct m *m, const struct m_context *ctx)
{
    (void)ctx;
    gc_flush_wbbuf(m);
}

/* [H-OFF]: what the buffer holds is marked, or was stored after [mark-done] and is marked too. */
static void h_off(struct m *m, const struct m_context *ctx)
{
    (void)ctx;
    m->wbbuf.n = 0;
    m->assist_debt = 0;
}

/* [H-GIVEBACK] */
static void h_give_back(struct m *m, const struct m_context *ctx)
{
    (void)ctx;
    size_t rest = mcache_give_back(&m->cache, load_rlx(&heap.sweepgen));
    gc_live_sub(rest);
}

/* Under world.lock, with the posting: a thread that comes to [attach] sees all or nothing. */
static void post_on(void)
{
    store_rel(&gc.phase, GC_ON);
    set_barrier(1);
}

static void post_black(void)
{
    store_rel(&gc.phase, GC_BLACK);
    store_rlx(&gc.black, true);
}

static void post_off(void)
{
    set_barrier(0);
}

static void post_scan(void)
{
    gc.scan_posted = true;
}

/* [flip]: one step with the posting of [H-GIVEBACK]; the phase closed, so that [weak] sees all of it. */
static void post_flip(void)
{
    gc_close_phase_locked();
    CHECK(gc_work_empty(), "something was marked after the end of marking"); /* [phase.late] */
    store_rlx(&gc.live, load_rlx(&gc.bytes_marked) + load_rlx(&gc.external));
    store_rlx(&gc.black, false);
    store_rel(&heap.sweepgen, load_rlx(&heap.sweepgen) + 2);
    store_rel(&gc.sweep_done, false); /* release: after sweepgen; pairs with sweep_from */
    store_rel(&gc.phase, GC_OFF);
    gc.scan_posted = false;
    gc_open_phase_locked();
}

/* [attach]: under world.lock, as the posting. */
static void on_attach(struct m *m)
{
    m->cache.black = load_rlx(&gc.black);
    m->cache.sweepgen = load_rlx(&heap.sweepgen);
    m->work.counted = true;
    m->scanned = gc.scan_posted ? load_rlx(&gc.started)
                                : 0; /* it holds nothing yet, and is not asked */
    if (gc.options.stress != 0) {
        m->cache.run_limit = 0;
    }
}

static void take_max(_Atomic uint64_t *from, _Atomic uint64_t *to)
{
    raise_rlx(to, xchg_rlx(from, UINT64_C(0))); /* relaxed: a report */
}

/* [exit]: what the buffer names nobody else may know of; marking it dirties the round. Under world.lock, so
 * the phase holds still. */
static void on_detach(struct m *m)
{
    if (gc_phase_marks(load_acq(&gc.phase))) {
        gc_scan_stacks(m); /* nobody's from now on, and [roots] may have been */
        gc_flush_wbbuf(m);
    }
    if (m->mstacks != NULL) {
        void (*leave)(struct m *,
                      uint32_t) = load_acq(&gc.leave_managed); /* acquire: loam_mstack_make */
        leave(m, load_acq(&gc.phase));
    }
    gc_live_sub(mcache_release(&m->cache));
    add_rlx(&gc.pause_total, load_rlx(&m->pause_total_ns));
    take_max(&m->pause_max_ns, &gc.pause_max); /* under world.lock, as take_pauses */
    take_max(&m->answer_max_ns, &gc.answer_max);
    void (*ended)(struct m *) = load_acq(&gc.thread_ended); /* acquire: pairs with gscan_init */
    if (ended != NULL) {
        ended(m);
    }
}

/* -- marking ----------------------------------------------------------------------------------- */

static void boost_helpers(bool on)
{
    if (collector.boosted == on) {
        return;
    }
    collector.boosted = on;
    for (int i = collector.ndedicated; i < collector.nhelpers; i++) {
        int tid = load_rlx(&collector.helper_tid[i]);
        if (tid != 0) {
            os_thread_set_priority(tid, on ? OS_PRIORITY_NORMAL : OS_PRIORITY_LOW);
        }
    }
}

/* A step was taken: who waited for the cycle to get on looks again. */
static void step_done(void)
{
    add_acqrel(&gc.progress, 1u);
    if (load_sc(&gc.progress_waiters) != 0) {
        os_futex_wake(&gc.progress, INT_MAX);
    }
}

/* The heap is over its goal and the collector has not yet come so far that the caller could help by
 * marking: the threads that keep it from getting on need the processors. Until its next step. */
int64_t gc_wait_progress(struct m *m, int64_t most_ns)
{
    uint32_t seen = load_acq(&gc.progress);
    if (m_busy(m) != 0) {
        return 0;
    }
    int64_t begin = os_nanotime();
    PROBE1(wait_begin, most_ns);
    struct m_wait wait;
    m_begin_wait(m, &wait);
    atomic_fetch_add_explicit(&gc.progress_waiters, 1, memory_order_seq_cst);
    os_futex_wait(&gc.progress, seen, most_ns);
    sub_rlx(&gc.progress_waiters, 1u);
    int64_t waited = os_nanotime() - begin;
    m_end_wait(m, &wait);
    PROBE1(wait_end, waited);
    if (trace_is_on(&m->trace)) {
        trace_end(&m->trace, TRACE_WAIT, begin, (uint64_t)most_ns, 0);
    }
    /* When the system gives it a processor again is not of our making. */
    return waited < most_ns ? waited : most_ns;
}

void gc_count_wait(struct m *m, int64_t ns)
{
    m_count_pause(m, ns);
    histogram_add(&gc.waits, ns);
}

static void wake_markers(void)
{
    if (load_rlx(&gc.quiet)) {
        return;
    }
    add_acqrel(&gc.work_seq, 1u); /* release: phase, paused; pairs with helper_main */
    os_futex_wake(&gc.work_seq, INT_MAX);
}

/* Others still hold work; one of them may be a helper that does not get a processor. */
static void wait_draining(int64_t since)
{
    if (os_nanotime() - since > PATIENCE_NS) {
        boost_helpers(true);
    }
    os_sleep_ns(10000);
    world_safepoint();
}

static void step(handshake_fn *fn, void (*posting)(void), const char *name)
{
    world_handshake(fn, posting, name);
    step_done();
}

/* [H-FLUSH]: is nothing white reachable? Nobody drains meanwhile. */
static bool round_is_clean(void)
{
    int64_t begin = os_nanotime();
    int64_t traced = trace_begin(tracing);
    store_sc(&gc.paused, true); /* seq_cst: pairs with gc_drain */
    while (load_sc(&gc.draining) != 0) {
        wait_draining(begin);
    }
    bool clean = false;
    if (gc_work_empty()) {
        store_sc(&gc.dirty, 0u);
        gc.last.rounds++;
        step(h_flush, NULL, "H-FLUSH");
        world_delay(DELAY_STEP);
        gc_close_phase();
        clean = load_sc(&gc.dirty) == 0 && gc_work_empty();
        if (clean) {
            world_delay(DELAY_STEP);
            store_rel(&gc.phase, GC_END); /* [mark-done] */
        }
        gc_open_phase();
    }
    trace_end(tracing, TRACE_ROUND, traced, clean, 0);
    store_sc(&gc.paused, false);
    if (!clean) {
        wake_markers();
    }
    return clean;
}

/* The background's share is a quarter of the processors, of one of them if nobody needs the cycle: with
 * few of them the collector rests between slices, unless somebody waits for it. */
static void rest(int64_t worked)
{
    int procs = load_rlx(&gc.quiet) ? 1 : load_rlx(&gc.options.max_procs);
    double share = PACER_UTILIZATION * procs;
    if (share < 1.0 && load_rlx(&gc.waiters) == 0 && !gc.options.stop_the_world) {
        os_sleep_ns((int64_t)((double)worked * (1.0 - share) / share));
    }
}

static void account_limiter(void)
{
    if (load_rlx(&heap.limit) == UINT64_MAX) {
        return; /* the limiter works with a memory limit only */
    }
    gc_account_limiter(os_thread_cputime() + collector.marked_before + load_rlx(&gc.assist_time) +
                       load_rlx(&collector.dedicated_ns));
}

/* The program wants its memory after all. */
static void end_quiet(void)
{
    if (load_rlx(&gc.quiet) && gc_is_due()) {
        store_rlx(&gc.quiet, false);
        wake_markers();
    }
}

static void mark_to_the_end(void)
{
    struct gcwork *w = &collector.work;
    int64_t idle_since = 0;
    for (;;) {
        int64_t begin = os_nanotime();
        uint64_t done = gc_drain(w, UINT64_MAX, begin + SLICE_NS);
        if (done != 0) {
            add_rlx(&gc.bg_credit, (int64_t)done);
            if (trace_is_on(tracing)) {
                trace_end(tracing, TRACE_DRAIN, begin, done, 0);
            }
            idle_since = 0;
        }
        mutex_lock(&gc.pacer_lock);
        pacer_revise(&gc.pacer, load_rlx(&gc.live),
                     load_rlx(&gc.scan_work) + load_rlx(&gc.stack_scan));
        mutex_unlock(&gc.pacer_lock);
        account_limiter();
        end_quiet();
        world_safepoint();
        if (!gc_work_empty()) {
            rest(os_nanotime() - begin);
        } else if (load_sc(&gc.draining) != 0) {
            idle_since = idle_since == 0 ? begin : idle_since;
            wait_draining(idle_since);
        } else if (round_is_clean()) {
            return;
        }
    }
}

/* -- a cycle ----------------------------------------------------------------------------------- */

static void stop_once(void *stopped, uintptr_t start, size_t bytes)
{
    (void)start, (void)bytes;
    if (!*(bool *)stopped) {
        *(bool *)stopped = true;
        world_stop();
    }
}

/* The loader's lock is ours while the threads stop: none of them stands still with it in its hands, so
 * the roots in data can be walked afterwards. */
void gc_stop_world(void)
{
    bool stopped = false;
    os_each_data_range(stop_once, &stopped);
    if (!stopped) {
        world_stop();
    }
}

static void clear_stale_marks(void)
{
    size_t end = load_rlx(&heap.used) >> PAGE_SHIFT;
    for (size_t pn = 0; pn < end;) {
        pagedesc d = load_acq(&heap.descs[pn]);
        if (d == 0 || pagedesc_head(d) != pn) {
            pn++;
            continue;
        }
        struct mspan *s = &heap.spans[pn];
        for (size_t i = 0; i < s->nwords; i++) {
            store_rlx(&mspan_marks(s)[i], UINT64_C(0));
            if (!s->noscan) {
                store_rlx(&mspan_scans(s)[i], UINT64_C(0));
            }
        }
        store_rlx(&s->scan_progress, (size_t)0);
        store_rlx(&heap.qstate[pn], (uint8_t)0);
        pn += s->npages;
    }
    store_rlx(&gc.marks_stale, false);
}

static void begin_counts(struct gc_cycle_stats *st)
{
    memset(st, 0, sizeof *st);
    st->begin = os_nanotime();
    st->number = load_rlx(&gc.started);
    /* As Go counts: not by the clock, gcstress, or an allocation that found no memory. */
    st->forced = (int32_t)(load_acq(&gc.asked) - st->number) >= 0;
    st->live_begin = load_rlx(&gc.live);
    mutex_lock(&gc.pacer_lock);
    store_rlx(&gc.pacer.assist_goal, gc.pacer.goal);
    st->goal = gc.pacer.goal;
    st->trigger = gc.pacer.trigger;
    mutex_unlock(&gc.pacer_lock);
    store_rlx(&gc.bytes_marked, UINT64_C(0));
    store_rlx(&gc.scan_work, UINT64_C(0));
    store_rlx(&gc.stack_scan, UINT64_C(0));
    store_rlx(&gc.globals_scan, UINT64_C(0));
    store_rlx(&gc.bg_credit, INT64_C(0));
    collector.marked_before += load_rlx(&gc.assist_time) + load_rlx(&collector.dedicated_ns);
    store_rlx(&gc.assist_time, INT64_C(0));
    store_rlx(&collector.dedicated_ns, INT64_C(0));
    store_rlx(&collector.idle_ns, INT64_C(0));
    store_rlx(&world.handshake_max_ns, UINT64_C(0));
}

static void end_of_mark_counts(struct gc_cycle_stats *st, int64_t worker_ns)
{
    st->mark_end = os_nanotime();
    st->last_walltime = os_walltime();
    st->live_end = load_rlx(&gc.live);
    st->inuse_end = load_rlx(&heap.stats.heap_inuse);
    uint64_t external = load_rlx(&gc.external);
    st->marked = load_rlx(&gc.bytes_marked) + external;
    st->stack_scan = load_rlx(&gc.stack_scan);
    st->globals_scan = load_rlx(&gc.globals_scan);
    st->assist_ns = load_rlx(&gc.assist_time);
    st->worker_ns = worker_ns + load_rlx(&collector.dedicated_ns);
    st->idle_ns = load_rlx(&collector.idle_ns);
    struct pacer_cycle c = {
        .live = st->live_end,
        .marked = st->marked,
        .scan_work = load_rlx(&gc.scan_work) + st->stack_scan,
        .stack_scan = st->stack_scan,
        .globals_scan = st->globals_scan,
        .duration_ns = (double)(st->mark_end - st->mark_begin),
        .assist_ns = (double)st->assist_ns,
        .idle_ns = (double)st->idle_ns,
        .procs = load_rlx(&gc.options.max_procs),
    };
    mutex_lock(&gc.pacer_lock);
    pacer_end_cycle(&gc.pacer, &c);
    gc.external_marked = external;
    mutex_unlock(&gc.pacer_lock);
    gc_commit_goal();
}

static void take_pauses(struct gc_cycle_stats *st)
{
    mutex_lock(&world.lock);
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        take_max(&m->pause_max_ns, &gc.pause_max);
        take_max(&m->answer_max_ns, &gc.answer_max);
    }
    st->pause_max_ns = xchg_rlx(&gc.pause_max, UINT64_C(0));
    st->answer_max_ns = xchg_rlx(&gc.answer_max, UINT64_C(0));
    mutex_unlock(&world.lock);
}

static void sweep_in_background(void)
{
    mheap_take_idle_pages();
    for (;;) {
        int64_t begin = os_nanotime();
        bool more = true;
        uint64_t spans = 0;
        while (more && os_nanotime() - begin < SLICE_NS) {
            more = gc_sweep_one();
            spans += more;
        }
        if (trace_is_on(tracing)) {
            trace_end(tracing, TRACE_SPANS, begin, spans, 0);
        }
        end_quiet();
        world_safepoint();
        if (!more) {
            break;
        }
        rest(os_nanotime() - begin);
    }
    gc_sweep_finish();
}

/* A phase ends at a time that gctrace tells too. */
static void trace_phase(enum trace_kind phase, int64_t begin, int64_t end)
{
    PROBE3(phase_end, (int)phase, begin, end);
    if (trace_is_on(tracing)) {
        const struct gc_cycle_stats *st = &gc.last;
        trace_add(tracing, phase, begin, end, st->number, st->forced);
        trace_add(tracing, TRACE_HEAP, end, end, load_rlx(&gc.live), st->goal);
    }
}

static void scan_parked(void)
{
    /* acquire: pairs with gscan_init. A goroutine that was made before its thread passed [H-SCAN] is seen. */
    void (*walk)(struct gcwork *) = load_acq(&gc.walk_goroutines);
    if (walk != NULL) {
        int64_t begin = trace_begin(tracing);
        walk(&collector.work);
        trace_end(tracing, TRACE_STACKS, begin, 0, 0);
    }
}

static void mark_roots(void)
{
    int64_t begin = trace_begin(tracing);
    gc_mark_roots(&collector.work);
    trace_end(tracing, TRACE_ROOTS, begin, 0, 0);
}

static void cycle(void)
{
    struct gc_cycle_stats *st = &gc.last;
    int64_t cpu = os_thread_cputime();
    gc_sweep_finish(); /* [sweep-done] */
    if (load_rlx(&gc.marks_stale)) {
        clear_stale_marks();
    }
    world_check_signal();
    add_acqrel(&gc.started, 1u);
    begin_counts(st);
    if (gc.options.stop_the_world) {
        gc_stop_world();
    }
    step(h_on, post_on, "H-ON");          /* [H-ON] */
    step(h_black, post_black, "H-BLACK"); /* [H-BLACK] */
    st->mark_begin = os_nanotime();
    trace_phase(TRACE_BEGIN, st->begin, st->mark_begin);
    mutex_lock(&gc.pacer_lock);
    pacer_start_cycle(&gc.pacer, st->live_begin);
    mutex_unlock(&gc.pacer_lock);
    store_rel(&gc.phase, GC_MARK);     /* release: assists may begin; pairs with malloc's look */
    mark_roots();                      /* [roots] */
    step(h_scan, post_scan, "H-SCAN"); /* [H-SCAN] */
    scan_parked();
    if (load_rlx(&gc.live) >= HELPERS_FROM) {
        wake_markers();
    }
    mark_to_the_end(); /* [drain], [H-FLUSH], [mark-done] */
    boost_helpers(false);
    if (gc.options.checkmark) {
        gc_checkmark();
    }
    step(h_off, post_off, "H-OFF"); /* [H-OFF] */
    end_of_mark_counts(st, os_thread_cputime() - cpu);
    trace_phase(TRACE_MARK, st->mark_begin, st->mark_end);
    step(h_give_back, post_flip, "H-GIVEBACK"); /* [flip], [H-GIVEBACK] */
    st->given_back = os_nanotime();
    trace_phase(TRACE_END, st->mark_end, st->given_back);
    gc_sweep_began();
    if (gc.options.stop_the_world) {
        world_start();
    }
    st->handshake_ns = (int64_t)load_rlx(&world.handshake_max_ns);
    take_pauses(st);
    sweep_in_background(); /* [sweep] */
    st->end = os_nanotime();
    trace_phase(TRACE_SWEEP, st->given_back, st->end);
    trace_phase(TRACE_CYCLE, st->begin, st->end);
    store_rlx(&gc.last_end, st->end);
    add_rlx(&gc.cpu.assist, st->assist_ns);
    add_rlx(&gc.cpu.dedicated, os_thread_cputime() - cpu + load_rlx(&collector.dedicated_ns));
    add_rlx(&gc.cpu.idle, st->idle_ns);
}

static bool forced(void)
{
    return (int32_t)(load_acq(&gc.forced) - load_acq(&gc.started)) > 0;
}

bool gc_is_due(void)
{
    return forced() || load_rlx(&gc.live) >= load_rlx(&gc.trigger);
}

/* Of a thread between world_lib_resume and _pause: fork waits for who holds the lock, but not for who waits
 * for it. */
static void lock_cycle(void)
{
    world_lib_pause();
    mutex_lock(&gc.cycle_lock);
    world_lib_resume();
}

static void run_cycle(void)
{
    lock_cycle();
    account_limiter();
    cycle();
    gc_read_container();
    gc_commit_goal(); /* all is swept: what is lost in spans is known */
    if (gc.last.forced) {
        add_rlx(&gc.num_forced, 1u);
    }
    if (gc.cycle_ended != NULL) {
        gc.cycle_ended();
    }
    store_rel(&gc.finished, load_rlx(&gc.started)); /* release: pairs with gc_collect */
    gc_scavenge_cycle_ended(gc.last.inuse_end);
    mutex_unlock(&gc.cycle_lock);
    gc_pressure_cycle_ended(gc_must_stay(gc.last.marked));
    ends_cycle_ended();
    os_futex_wake(&gc.finished, INT_MAX);
}

/* -- the library's threads --------------------------------------------------------------------- */

static void helper_main(void *arg)
{
    int i = (int)(intptr_t)arg;
    world_lib_resume();
    struct gcwork *w = metaalloc(sizeof *w);
    struct trace_source *source = &trace.library[TRACE_HELPER + i];
    trace_library_begins(TRACE_HELPER + i);
    world_lib_pause();
    if (w == NULL) {
        return;
    }
    bool dedicated = i < collector.ndedicated;
    store_rlx(&collector.helper_tid[i], os_gettid());
    if (!dedicated) {
        os_thread_set_priority(0, OS_PRIORITY_LOW);
    }
    for (;;) {
        uint32_t seq = load_sc(&gc.work_seq);
        if (load_acq(&gc.phase) == GC_MARK && !load_sc(&gc.paused) && !gc_work_empty()) {
            world_lib_resume();
            int64_t cpu = os_thread_cputime();
            int64_t begin = trace_begin(source);
            uint64_t done = 0, some;
            while ((some = gc_drain(w, UINT64_MAX, os_nanotime() + SLICE_NS)) != 0) {
                done += some;
                world_safepoint();
            }
            trace_end(source, TRACE_DRAIN, begin, done, 0);
            add_rlx(dedicated ? &collector.dedicated_ns : &collector.idle_ns,
                    os_thread_cputime() - cpu);
            world_lib_pause();
            continue;
        }
        atomic_fetch_add_explicit(&gc.sleepers, 1, memory_order_seq_cst);
        if (gc_work_empty() || load_sc(&gc.paused) || load_acq(&gc.phase) != GC_MARK) {
            os_futex_wait(&gc.work_seq, seq, -1);
        }
        sub_rlx(&gc.sleepers, 1u);
    }
}

/* With the collector itself, a quarter of the processors marks whatever the program does. */
static void start_helpers(void)
{
    int want = load_rlx(&gc.options.max_procs) - 1;
    if (collector.nhelpers == 0 && want >= 7) {
        collector.ndedicated = (int)(PACER_UTILIZATION * (want + 1)) - 1;
    }
    want = want > MAX_HELPERS ? MAX_HELPERS : want;
    while (collector.nhelpers < want) {
        if (os_thread_start(helper_main, (void *)(intptr_t)collector.nhelpers, "loam-mark") != 0) {
            return; /* the collector marks alone */
        }
        collector.nhelpers++;
    }
}

/* How long until a cycle is forced for there was none; -1: none will be. As in Go not before the first. */
static int64_t until_forced_ns(void)
{
    int64_t last = load_rlx(&gc.last_end);
    if (last == 0 || load_rlx(&gc.gc_percent) < 0) {
        return -1;
    }
    int64_t left = last + gc.period_ns - os_nanotime();
    return left > 0 ? left : 0;
}

/* A step, so that a cycle that is due waits for no longer. */
static bool rest_goroutines(void)
{
    bool (*hook)(void) = load_acq(&gc.rest_goroutines); /* acquire: pairs with gscan_init */
    return hook != NULL && hook();
}

static void collector_main(void *arg)
{
    (void)arg;
    collector.tid = os_gettid();
    os_thread_set_priority(0, OS_PRIORITY_QUICK);
    world_lib_resume();
    trace_library_begins(TRACE_COLLECTOR);
    lock_cycle();
    if (!load_acq(&gc.sweep_done)) { /* fork's child goes on where its parent's thread was */
        sweep_in_background();
    }
    mutex_unlock(&gc.cycle_lock);
    for (;;) {
        uint32_t seen = load_acq(&gc.wakeups);
        int64_t left = until_forced_ns();
        bool due = gc_is_due();
        bool more = rest_goroutines();
        if (left == 0 || due) {
            if (due && load_rlx(&gc.live) >= HELPERS_FROM) {
                start_helpers();
            }
            store_rlx(&gc.quiet, !due);
            run_cycle();
            store_rlx(&gc.quiet, false);
            continue;
        }
        if (more) {
            world_safepoint();
            continue;
        }
        lock_cycle(); /* as a cycle's sweep: who holds it finds the heap at rest */
        int64_t scavenge = gc_scavenge_step();
        mutex_unlock(&gc.cycle_lock);
        if (scavenge >= 0 && (left < 0 || scavenge < left)) {
            left = scavenge;
        }
        world_lib_pause();
        os_futex_wait(&gc.wakeups, seen, left);
        world_lib_resume();
    }
}

static bool collector_started(void)
{
    bool running = false;
    if (load_acq(&gc.running)) {
        return true;
    }
    if (cas_acqrel(&gc.running, &running, true)) {
        if (os_thread_start(collector_main, NULL, "loam-gc") != 0) {
            store_rel(&gc.running, false);
            return false;
        }
    }
    return true;
}

/* Not later than at the start of the library: making a thread takes malloc, which a handler of the
 * program that allocates may have interrupted. Where none can be had, it is tried again. */
void gc_start_collector(void)
{
    (void)collector_started();
}

/* No thread could be had: the caller takes the steps itself, as a blocked thread that the collector,
 * which is itself, answers for. */
static void collect_inline(struct m *m)
{
    struct m_wait wait;
    m_begin_wait(m, &wait);
    world_lib_resume();
    run_cycle();
    world_lib_pause();
    m_end_wait(m, &wait);
}

void gc_wake(void)
{
    add_acqrel(&gc.wakeups, 1u);
    os_futex_wake(&gc.wakeups, 1);
}

void gc_start_if_due(struct m *m)
{
    if (load_rlx(&gc.phase) != GC_OFF || !load_acq(&gc.sweep_done)) {
        if (!load_rlx(&gc.running)) {
            collector_started(); /* in fork's child a sweep may wait for its thread */
        }
        return;
    }
    gc_follow_limit(m);
    if (!gc_is_due()) {
        return;
    }
    if (collector_started()) {
        gc_wake();
    } else {
        collect_inline(m);
    }
}

static void raise_to(_Atomic uint32_t *word, uint32_t ticket)
{
    uint32_t old = load_rlx(word);
    while ((int32_t)(ticket - old) > 0 && !cas_acqrel(word, &old, ticket)) {
    }
}

/* The number of the next cycle to begin, which is asked for. */
static uint32_t ask_for_cycle(bool by_program)
{
    uint32_t ticket = load_acq(&gc.started) + 1;
    if (by_program) {
        raise_to(&gc.asked, ticket);
    }
    raise_to(&gc.forced, ticket);
    return ticket;
}

void gc_ask(void)
{
    (void)ask_for_cycle(false);
    gc_wake();
}

static void wait_for_cycle(struct m *m, uint32_t ticket)
{
    const int64_t second = 1000000000;
    int64_t waited = 0;
    int64_t traced = trace_begin(&m->trace);
    PROBE1(wait_cycle_begin, ticket);
    struct m_wait wait;
    m_begin_wait(m, &wait);
    for (;;) {
        uint32_t done = load_acq(&gc.finished); /* acquire: pairs with run_cycle */
        if ((int32_t)(done - ticket) >= 0) {
            break;
        }
        os_futex_wait(&gc.finished, done, second);
        world_mind_fork(&waited, second);
    }
    m_end_wait(m, &wait);
    PROBE1(wait_cycle_end, ticket);
    trace_end(&m->trace, TRACE_WAIT_CYCLE, traced, ticket, 0);
}

/* gcstress: the cycle that this thread asked for last has to be over before it asks for the next one, so
 * that there is one for every so many allocations, and it runs beside them. */
void gc_stress(struct m *m)
{
    if (!collector_started()) {
        collect_inline(m);
        return;
    }
    if (m->stress_ticket != 0) {
        wait_for_cycle(m, m->stress_ticket);
    }
    m->stress_ticket = ask_for_cycle(false);
    gc_wake();
}

static void collect(struct m *m, bool by_program)
{
    uint32_t ticket = ask_for_cycle(by_program);
    if (!collector_started()) {
        collect_inline(m);
        return;
    }
    add_acqrel(&gc.waiters, 1u);
    gc_wake();
    wait_for_cycle(m, ticket);
    sub_acqrel(&gc.waiters, 1u);
}

void gc_collect(struct m *m)
{
    collect(m, true);
}

bool gc_emergency(struct m *m, int tries)
{
    if (m_busy(m) != 0 || tries > 1 || (tries == 1 && !gc_pressure_ask(m))) {
        return false;
    }
    collect(m, false);
    return true;
}

/* -- start, and fork --------------------------------------------------------------------------- */

/* [fork]: the child has one thread, the one that forked. A cycle that was under way is dropped; its marks
 * are cleared before the next [H-ON]. */
static void on_fork_child(bool whole)
{
    if (load_rlx(&gc.phase) != GC_OFF) {
        set_barrier(0);
        store_rlx(&gc.phase, GC_OFF);
        store_rlx(&gc.black, false);
        store_rlx(&gc.marks_stale, true);
        gc.scan_posted = false;
    }
    void (*goroutines)(struct m *) =
        load_acq(&gc.goroutines_fork_child); /* acquire: gscan_init, loam_mstack_make */
    if (goroutines != NULL) {
        goroutines(m_self);
    }
    if (!whole) {
        return;
    }
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        m->wbbuf.n = 0;
        m->work.head = m->work.tail = m->work.count = 0;
        m->assist_debt = 0;
        m->stress_ticket = 0;    /* nobody has asked for it here */
        store_rlx(&m->hold, 0u); /* a store that fills its buffer may be inside */
        if (m->cache.sweepgen != load_rlx(&heap.sweepgen)) {
            h_give_back(m, NULL); /* flipped, not yet answered */
        }
        m->cache.black = false;
    }
    gc_work_reset();
    memset(&collector, 0, sizeof collector);
    memset(&gc.cycle_lock, 0, sizeof gc.cycle_lock);
    memset(&gc.pacer_lock, 0, sizeof gc.pacer_lock);
    store_rlx(&heap.sweeping, 0u);
    store_rlx(&heap.give_up_pages, 0u);
    store_rlx(&gc.running, false);
    store_rlx(&gc.quiet, false);
    store_rlx(&gc.waiters, 0u);
    store_rlx(&gc.finished, load_rlx(&gc.started));
    store_rlx(&gc.forced, load_rlx(&gc.started));
    store_rlx(&gc.asked, load_rlx(&gc.started));
    gc_roots_fork_child();
    memset(&gc.cpu, 0, sizeof gc.cpu);
    (void)gc_count_processors();
    store_rlx(&gc.assist_time, INT64_C(0));
    store_rlx(&world.answer_cpu_ns, UINT64_C(0));
    gc_scavenge_fork_child();
    gc_pressure_fork_child();
    ends_fork_child();
}

static void stress_delay(int rarity)
{
    static _Atomic uint64_t seed = 88172645463325252;
    uint64_t x = add_rlx(&seed, UINT64_C(0x9E3779B97F4A7C15));
    x ^= x >> 29;
    x *= UINT64_C(0xBF58476D1CE4E5B9);
    if (x >> (64 - rarity) == 0) {
        os_sleep_ns((int64_t)(x & 0xffff));
    }
}

bool gc_init(void)
{
    heap.sweep_span = gc_sweep_span;
    world.attach = on_attach;
    world.detach = on_detach;
    world.fork_child = on_fork_child;
    if (gc.options.stress != 0) {
        world.delay = stress_delay;
    }
    if (load_rlx(&gc.options.max_procs) < 1) {
        store_rlx(&gc.options.max_procs, os_ncpu());
    }
    pacer_init(&gc.pacer, load_rlx(&gc.gc_percent));
    pacer_limiter_init(&gc.limiter);
    gc_commit_goal();
    store_rlx(&gc.sweep_done, true);
    return ends_init();
}
