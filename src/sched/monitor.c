/* monitor.c - the thread that sees to it that no goroutine holds up the others.
 *
 * Purpose     Takes the P from a worker whose goroutine has run for long, or waits in the system, while others wait; makes workers;
 *             looks at descriptors and timers when all Ps are busy. It sleeps while no P is in use.
 * Invariants  [p.retake]  at sched.c
 * Locking     retake_lock of a P, for the decision; sched.lock. One of the library's own threads: it attaches nowhere.
 * From Go     proc.go: sysmon, retake; differs: preemption is taking the P, the goroutine keeps its thread.
 * Tests       tests/api/goroutine_preempt.c
 */
#include "sched/runq.h"

#include "base/check.h"
#include "heap/fixalloc.h"

#include <errno.h>
#include <string.h>

enum {
    WORKERS_MOST = 10000,       /* Go's */
    SLICE_NS = 10000000,        /* Go's: who runs longer while others wait loses its P */
    QUICK_NS = 20000,           /* Go's: between two looks at first, */
    AGAIN_MOST_NS = 1280000000, /* after a thread has ended, the last look whether all are asleep */
    SLOW_NS = 5000000, /* and when nothing happens: half of Go's, so that nobody waits for 20 ms */
    QUICK_LOOKS = 50,
    ASK_NS = 200000, /* so long after it came there the kernel is asked whether a worker sleeps */
    RETRY_MOST_NS = 1000000000,
    POLL_NS = 10000000, /* descriptors are looked at so often, whatever runs */
};

static struct {
    _Atomic uint32_t word; /* futex */
    _Atomic bool asleep;
    _Atomic bool wanted;      /* a worker is */
    _Atomic bool ended;       /* a thread has: perhaps it was the last that could wake anybody */
    _Atomic bool refused;     /* a worker could not be made */
    _Atomic int64_t retry_ns; /* 0: none was refused since one was made */
    /* Its own. */
    int64_t retry_at;
    int64_t again_ns;      /* so long later it looks again whether all are asleep; 0: no more */
    struct worker *unused; /* whose thread could not be made */
} monitor;

static void wake(void)
{
    add_acqrel(&monitor.word, 1u);
    os_futex_wake(&monitor.word, 1);
}

void monitor_p_taken(void)
{
    if (unlikely(load_sc(&monitor.asleep))) { /* seq_cst: see sleep_deeply */
        wake();
    }
}

void monitor_want_worker(void)
{
    if (!load_rlx(&monitor.wanted) && !xchg_acqrel(&monitor.wanted, true)) {
        wake();
    }
}

/* Under world.lock, at any moment. */
void sched_thread_ended(struct m *m)
{
    CHECK(m != m_self || m->worker == NULL,
          "a goroutine ended its thread (pthread_exit, loam_detach)");
    if (load_rlx(&sched.waiting_threads) != 0 || load_rlx(&sched.ngs) != 0) {
        store_sc(&monitor.ended, true);
        if (load_sc(&monitor.asleep)) {
            wake();
        }
    }
}

/* [p.retake] Take p from w; false: w is busy, or has lost it. */
static bool take_p(struct p *p, struct worker *w)
{
    bool taken = false;
    mutex_lock(&p->retake_lock);
    store_sc(&p->retake, true);
    bool fenced = os_fence_threads();
    fence_sc();
    /* busy first: w may have given p away until it was not, and then does nothing to it without retake_lock. acquire:
     * what it did to p; pairs with m_leave. */
    if ((fenced || world.gate_at_rest != GATE_OPEN) && load_acq(&w->m->busy) == 0 &&
        load_acq(&p->owner) == w) {
        store_rel(&p->owner, NULL);
        taken = true;
    }
    store_rel(&p->retake, false);
    mutex_unlock(&p->retake_lock);
    return taken;
}

/* A P without an owner is idle; somebody takes it if there is anything to do. */
static void pass_on(struct p *p)
{
    mutex_lock(&sched.lock);
    sched_give_idle_p_locked(p);
    mutex_unlock(&sched.lock);
    fence_sc(); /* then the look; pairs with who parks, and finds that somebody polls */
    if (!runq_is_empty(p) || load_rlx(&sched.nglobal) != 0 || sched_any_waits()) {
        sched_wake_p();
    }
}

/* Has the worker of p run one goroutine for too long, or does that wait in the system? If not yet, *next is when it
 * will have. */
static bool retake(struct p *p, int64_t now, int64_t *next)
{
    struct worker *w = load_acq(&p->owner);
    if (w == NULL) {
        return false;
    }
    uint32_t tick = load_rlx(&p->tick);
    bool others = !runq_is_empty(p) || load_rlx(&sched.nglobal) != 0 ||
                  (load_rlx(&sched.nidle_ps) == 0 &&
                   (netpoll_waiters() != 0 || timers_next() <= now));
    bool blocked = load_rlx(&w->in_call) ||
                   (load_acq(&w->m->state) != M_RUNNING && load_rlx(&w->m->busy) == 0);
    if (p->seen_tick != tick || p->seen_at == 0) {
        p->seen_tick = tick;
        p->seen_at = now;
        p->seen_blocked = blocked;
        return false;
    }
    if (others && !blocked && now - p->seen_at >= ASK_NS) {
        blocked = os_thread_sleeps(w->m->tid); /* a call of which nobody told us */
    }
    bool long_enough = now - p->seen_at >= SLICE_NS || (blocked && p->seen_blocked);
    p->seen_blocked = blocked;
    if (!long_enough || !others) {
        *next = others && p->seen_at + SLICE_NS < *next ? p->seen_at + SLICE_NS : *next;
        return false;
    }
    store_rlx(&p->preempt, true); /* at its next call, if that comes before the P is gone */
    if (!take_p(p, w)) {
        return false;
    }
    p->seen_at = 0;
    trace_now(&trace.library[TRACE_MONITOR], TRACE_RETAKE, (uint64_t)w->m->tid, 0);
    pass_on(p);
    return true;
}

/* It spins from the start: where it finds work there may be more, in the queue of another P that was taken. [idle.last] */
static void make_worker(void)
{
    static bool warned;
    struct p *p;
    uint32_t none = 0;
    if (!cas_sc(&sched.spinning, &none, 1u)) {
        return;
    }
    mutex_lock(&sched.lock);
    bool handed = sched_hand_idle_over_locked(&p, true); /* one has gone to sleep meanwhile */
    bool more = !handed && p != NULL && sched.nworkers + sched.starting < WORKERS_MOST;
    sched.starting += more ? 1 : 0;
    mutex_unlock(&sched.lock);
    if (handed) {
        return;
    }
    if (!more) {
        sched_spin_in_vain(p == NULL);
        return;
    }
    if (monitor.unused == NULL) {
        monitor.unused = persistentalloc(sizeof *monitor.unused, CACHE_LINE, &heap.stats.other_sys);
    }
    int err = monitor.unused == NULL ? ENOMEM
                                     : os_thread_start(worker_main, monitor.unused, "loam-worker");
    if (err == 0) {
        monitor.unused = NULL;
    } else {
        worker_start_failed();
        if (!warned) {
            warned = true;
            warnf("a thread for goroutines cannot be made (error %d); those that there are go on",
                  err);
        }
    }
}

void monitor_worker_runs(void)
{
    store_rlx(&monitor.retry_ns, INT64_C(0)); /* relaxed: how patient to be */
}

void monitor_worker_refused(void)
{
    store_rlx(&monitor.refused, true);
    wake();
}

/* As long as a worker is wanted that could not be made, it is tried again. */
static void look_for_refusal(void)
{
    if (xchg_acqrel(&monitor.refused, false)) {
        int64_t ns = load_rlx(&monitor.retry_ns);
        ns = ns == 0 ? SLOW_NS : ns < RETRY_MOST_NS / 2 ? ns * 2 : RETRY_MOST_NS;
        store_rlx(&monitor.retry_ns, ns);
        monitor.retry_at = os_nanotime() + ns;
    }
    if (monitor.retry_at == 0) {
        return;
    }
    if (load_sc(&sched.nidle_ps) == 0 || (!sched_any_work() && !sched_any_waits())) {
        monitor.retry_at = 0; /* nobody wants it any more, or there is one */
        report_if_stuck();    /* who went to sleep meanwhile waited for it */
    } else if (os_nanotime() >= monitor.retry_at) {
        monitor.retry_at = 0; /* a refusal says so again */
        store_rlx(&monitor.wanted, true);
    }
}

/* Nothing runs: until something does. */
static void sleep_deeply(uint32_t seen)
{
    store_sc(&monitor.asleep, true); /* seq_cst: then the look; pairs with own_p */
    if (load_sc(&sched.nidle_ps) >= (uint32_t)load_rlx(&sched.procs) && !load_sc(&monitor.wanted) &&
        !load_sc(&monitor.ended)) {
        world_lib_pause();
        os_futex_wait(&monitor.word, seen, monitor.again_ns != 0 ? monitor.again_ns : -1);
        world_lib_resume();
    }
    store_sc(&monitor.asleep, false);
    if (monitor.again_ns != 0) {
        monitor.again_ns = monitor.again_ns < AGAIN_MOST_NS ? 2 * monitor.again_ns : 0;
        report_if_stuck();
    }
}

static void poll_late(int64_t now)
{
    struct gqueue ready = {0};
    if (now - load_rlx(&sched.polled_at) > POLL_NS) {
        store_rlx(&sched.polled_at, now);
        store_sc(&sched.in_hand, true);
        sched_poll_and_timers(&ready);
        sched_ready_list(&ready);
        store_sc(&sched.in_hand, false);
        fence_sc();
        if (load_rlx(&sched.nidle_ps) >= (uint32_t)load_rlx(&sched.procs)) {
            report_if_stuck(); /* who went to sleep meanwhile left it to us */
        }
    }
}

void monitor_main(void *arg)
{
    (void)arg;
    os_backtrace_prepare(); /* here nobody waits for it */
    world_lib_resume();
    trace_library_begins(TRACE_MONITOR);
    int64_t pause = QUICK_NS, until_look = pause;
    int quiet = 0;
    for (;;) {
        uint32_t seen = load_acq(&monitor.word);
        if (xchg_acqrel(&monitor.wanted, false)) {
            make_worker();
        }
        look_for_refusal();
        if (xchg_acqrel(&monitor.ended, false)) {
            os_sleep_ns(SLOW_NS); /* until it is gone */
            report_if_stuck();
            monitor.again_ns = 2 * SLOW_NS; /* it may have had no processor to end on */
        }
        if (load_rlx(&sched.nidle_ps) >= (uint32_t)load_rlx(&sched.procs) &&
            monitor.retry_at == 0) {
            sleep_deeply(seen);
            pause = until_look = QUICK_NS;
            quiet = 0;
            continue;
        }
        world_lib_pause();
        os_futex_wait(&monitor.word, seen, until_look);
        world_lib_resume();
        int64_t now = os_nanotime();
        int64_t next = INT64_MAX;
        bool did = false;
        for (int i = 0; i < load_rlx(&sched.most_procs); i++) {
            did = retake(&sched.ps[i], now, &next) || did;
        }
        poll_late(now);
        quiet = did ? 0 : quiet + 1;
        pause = did ? QUICK_NS : quiet > QUICK_LOOKS && pause < SLOW_NS ? pause * 2 : pause;
        pause = pause < SLOW_NS ? pause : SLOW_NS;
        until_look = next < now + pause ? next - now + QUICK_NS : pause;
    }
}

void monitor_fork_child(void)
{
    memset(&monitor, 0, sizeof monitor);
}
