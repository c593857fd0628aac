/* worker.c - the threads that run goroutines, and the Ps that let them.
 *
 * Model       A worker has a P and runs what its queue holds; without work it looks at timers, the global queue, descriptors and
 *             other Ps' queues, then gives its P back and sleeps: one in the poll, until something happens or is due, the
 *             others in a futex, until they are given a P.
 * Invariants  [idle.last]  at sched.c
 * Locking     sched.lock, for moments; under it nothing but a futex wake.
 * From Go     proc.go: findRunnable, startm, stopm, wakep.
 * Tests       tests/api/goroutines.c
 */
#include "sched/runq.h"

#include "base/check.h"

#include <pthread.h>
#include <signal.h>

#if defined(__SANITIZE_THREAD__)
void *__tsan_get_current_fiber(void);
#endif

void gfree_put_locked(struct g *g)
{
    g->next = load_rlx(&sched.free);
    store_rlx(&sched.free, g);
}

struct g *gfree_take_locked(void)
{
    struct g *g = load_rlx(&sched.free);
    if (g != NULL) {
        store_rlx(&sched.free, g->next);
    }
    return g;
}

/* -- Ps and workers ---------------------------------------------------------------------------- */

static struct p *take_idle_p_locked(void)
{
    struct p *p = sched.idle_ps;
    if (p != NULL) {
        sched.idle_ps = p->idle_next;
        sub_rlx(&sched.nidle_ps, 1u);
    }
    return p;
}

static void retire_locked(struct p *p)
{
    for (struct g *g; (g = runq_take_next(p)) != NULL || (g = runq_take(p)) != NULL;) {
        gqueue_put(&sched.global, g);
    }
    store_rlx(&sched.nglobal, sched.global.n);
    while (p->free != NULL) {
        struct g *g = p->free;
        p->free = g->next;
        gfree_put_locked(g);
    }
    p->nfree = 0;
    p->retired = true;
}

void sched_give_idle_p_locked(struct p *p)
{
    store_rel(&p->owner, NULL); /* release: its queue and lists; pairs with own_p */
    if (unlikely(p->id >= (uint32_t)load_rlx(&sched.procs))) {
        retire_locked(p);
        return;
    }
    p->idle_next = sched.idle_ps;
    sched.idle_ps = p;
    add_rlx(&sched.nidle_ps, 1u); /* ordered by the lock, and by the fence of who goes to sleep */
}

void sched_retire_idle_ps_locked(void)
{
    struct p *idle = sched.idle_ps;
    sched.idle_ps = NULL;
    store_rlx(&sched.nidle_ps, 0u);
    while (idle != NULL) {
        struct p *p = idle;
        idle = p->idle_next;
        sched_give_idle_p_locked(p);
    }
}

static void own_p(struct worker *w, struct p *p)
{
    w->p = p;
    store_rlx(&p->preempt, false);
    store_rel(&p->owner, w); /* release: with the taking under the lock, all that was done before */
    monitor_p_taken();
}

bool sched_acquire_p(struct worker *w)
{
    if (load_rlx(&sched.nidle_ps) == 0) {
        return false;
    }
    mutex_lock(&sched.lock);
    struct p *p = take_idle_p_locked();
    mutex_unlock(&sched.lock);
    if (p != NULL) {
        own_p(w, p);
    }
    return p != NULL;
}

/* One worker that sleeps gets P, and looks for work. */
bool sched_hand_over_locked(struct p *p, bool spinning)
{
    struct worker *w = sched.idle_workers;
    if (w == NULL) {
        return false;
    }
    sched.idle_workers = w->idle_next;
    sched.nidle_workers--;
    w->spinning = spinning;
    own_p(w, p);
    store_rel(&w->wake, 1u); /* release: all of that; pairs with sleep_idle */
    os_futex_wake(&w->wake, 1);
    return true;
}

bool sched_hand_idle_over_locked(struct p **p, bool spinning)
{
    *p = sched.idle_ps;
    if (*p == NULL || sched.idle_workers == NULL) {
        return false; /* not taken for a moment: who comes from the poll just then would find none */
    }
    return sched_hand_over_locked(take_idle_p_locked(), spinning);
}

/* There may be work for one more. [idle.last] */
void sched_wake_p(void)
{
    for (;;) {
        uint32_t none = 0;
        if (load_sc(&sched.nidle_ps) == 0 || load_sc(&sched.spinning) != 0 ||
            !cas_sc(&sched.spinning, &none, 1u)) {
            return;
        }
        struct p *p;
        mutex_lock(&sched.lock);
        bool done = sched_hand_idle_over_locked(&p, true);
        mutex_unlock(&sched.lock);
        if (done) {
            return;
        }
        /* seq_cst: who saw it has left his work to us, as to somebody who spins */
        sub_sc(&sched.spinning, 1u);
        if (p != NULL) {
            if (load_sc(&sched.polling)) {
                os_poll_wake();
            } else {
                monitor_want_worker();
            }
            return;
        }
    }
}

/* Who has counted as spinning for a worker that is not there does not any more. Who saw it has left his work to it: if there
 * was no P, there may be one now, and who went to sleep since has not looked further. */
void sched_spin_in_vain(bool no_p)
{
    sub_sc(&sched.spinning, 1u);
    mutex_lock(&sched.lock);
    bool slept = sched.idle_workers != NULL;
    mutex_unlock(&sched.lock);
    if (no_p || slept) {
        sched_wake_p();
    } else if (load_sc(&sched.polling)) {
        os_poll_wake();
    }
}

static void stop_spinning(struct worker *w, bool found)
{
    if (w->spinning) {
        w->spinning = false;
        if (sub_sc(&sched.spinning, 1u) == 1 && found) {
            sched_wake_p(); /* where there was one there may be more */
        }
    }
}

/* -- waking ------------------------------------------------------------------------------------ */

void sched_ready(struct g *g)
{
    struct m *m = sched_m();
    struct worker *w = m != NULL ? m->worker : NULL;
    sched_trace_ready(m, g);
    if (w == NULL || w->p == NULL) {
        g->ready_at = os_nanotime();
        runq_put_global(g);
        fence_sc(); /* [idle.last] */
    } else {
        if (unlikely(load_rlx(&w->p->tick) % LATENCY_TICKS == 0)) {
            g->ready_at = os_nanotime();
        }
        /* seq_cst: [idle.last] */
        struct g *old = xchg_sc(&w->p->next, g);
        if (old != NULL) {
            runq_put(w->p, old);
        }
    }
    sched_wake_p();
}

void sched_ready_list(struct gqueue *ready)
{
    if (ready->n == 0) {
        return;
    }
    uint32_t n = ready->n;
    ready->head->ready_at = os_nanotime();
    runq_put_all_global(ready);
    *ready = (struct gqueue){0};
    fence_sc(); /* [idle.last] */
    for (uint32_t i = 0; i < n && load_rlx(&sched.nidle_ps) != 0; i++) {
        sched_wake_p();
    }
}

static void take_due(struct gqueue *ready)
{
    if (timers_next() != INT64_MAX) {
        (void)timers_take(ready, os_nanotime());
    }
}

static void take_happened(struct gqueue *ready)
{
    if (netpoll_waiters() != 0) {
        struct netpoll_events events;
        netpoll_wait(&events, 0);
        netpoll_take(ready, &events);
    }
}

void sched_poll_and_timers(struct gqueue *ready)
{
    take_due(ready);
    take_happened(ready);
}

/* -- the loop of a worker ---------------------------------------------------------------------- */

bool sched_any_work(void)
{
    if (load_rlx(&sched.nglobal) != 0) {
        return true;
    }
    int n = load_rlx(&sched.most_procs);
    for (int i = 0; i < n; i++) {
        if (!runq_is_empty(&sched.ps[i])) {
            return true;
        }
    }
    return false;
}

/* Is w without a P: until it is given one, or nobody else waits for descriptors and times and it does. */
static void wait_idle(struct worker *w)
{
    struct m_wait wait;
    m_leave(w->m);
    m_begin_wait(w->m, &wait);
    while (load_acq(&w->wake) == 0) { /* acquire: pairs with sched_hand_over_locked */
        os_futex_wait(&w->wake, 0, -1);
    }
    m_end_wait(w->m, &wait);
    m_enter(w->m);
}

static void sleep_idle(struct worker *w)
{
    store_rlx(&w->wake, 0u);
    mutex_lock(&sched.lock);
    w->idle_next = sched.idle_workers;
    sched.idle_workers = w;
    sched.nidle_workers++;
    uint32_t awake = sched.nworkers - sched.nidle_workers;
    mutex_unlock(&sched.lock);
    fence_sc(); /* [idle.last]; and for the look at polling, as in become_poller */
    if (sched_any_work()) {
        sched_wake_p();
    } else if (awake == 0 || (awake == 1 && load_rlx(&sched.polling))) {
        report_if_stuck();
    }
    wait_idle(w);
}

static void put_all(struct p *p, struct gqueue *ready)
{
    for (struct g *g; (g = gqueue_take(ready)) != NULL;) {
        runq_put(p, g);
    }
}

bool sched_any_waits(void)
{
    return netpoll_waiters() != 0 || timers_next() != INT64_MAX;
}

/* w is to wait for descriptors and times. False: there are none, or somebody else does. */
static bool become_poller(void)
{
    while (sched_any_waits()) {
        bool nobody = false;
        if (load_rlx(&sched.polling) || !cas_sc(&sched.polling, &nobody, true)) {
            return false;
        }
        /* seq_cst: polling, then a look at what there is; pairs with sched_poke_poller: one of the two sees the other. */
        fence_sc();
        if (sched_any_waits()) {
            return true;
        }
        /* Who waited does not any more. In the poll nobody would find out that all are asleep. */
        store_sc(&sched.polling, false);
        fence_sc(); /* and who has seen it meanwhile has left it to us to look once more */
    }
    return false;
}

/* Wait for descriptors and times without a P. While polling is set, w has no goroutine in its hands. */
static bool wait_polling(struct worker *w)
{
    if (!become_poller()) {
        return false;
    }
    int64_t until = timers_next();
    store_sc(&sched.poll_until, until);
    int64_t again = timers_next();
    until = again < until ? again : until; /* its starter may have seen an earlier poll_until */
    int64_t now = until == INT64_MAX ? 0 : os_nanotime();
    struct gqueue ready = {0};
    struct netpoll_events events;
    struct m_wait wait;
    m_leave(w->m);
    m_begin_wait(w->m, &wait);
    netpoll_wait(&events, until == INT64_MAX ? -1 : until > now ? until - now : 0);
    m_end_wait(w->m, &wait);
    m_enter(w->m);
    store_rlx(&sched.poll_until, INT64_MAX);
    store_sc(&sched.polling, false);
    fence_sc(); /* then a look for a P; pairs with sched_wake_p, which gives one back and looks at polling */
    now = os_nanotime();
    store_rlx(&sched.polled_at, now);
    netpoll_take(&ready, &events);
    (void)timers_take(&ready, now);
    if (sched_acquire_p(w)) {
        put_all(w->p, &ready);
        /* So that somebody else takes over the poll, at the latest when w finds work. */
        w->spinning = true;
        add_acqrel(&sched.spinning, 1u);
    } else {
        sched_ready_list(&ready);
    }
    return true;
}

void sched_poke_poller(int64_t when)
{
    fence_sc(); /* the timer or the ask, then polling; pairs with wait_polling */
    if (load_sc(&sched.polling)) {
        if (when < load_rlx(&sched.poll_until)) {
            os_poll_wake();
        }
    } else {
        sched_wake_p(); /* who finds nothing to do polls */
    }
}

/* w, which has found nothing, gives its P back, and sleeps if there is still nothing. */
static void go_idle(struct worker *w)
{
    mutex_lock(&sched.lock);
    if (sched.global.n != 0) {
        mutex_unlock(&sched.lock);
        return;
    }
    sched_give_idle_p_locked(w->p);
    w->p = NULL;
    mutex_unlock(&sched.lock);
    fence_sc(); /* then a look at polling; pairs with wait_polling */
    /* Who comes back for a queue spins, that is, looks at all of them: else he would turn in circles. So does who has not
     * spun, and left the queues to others: they may have been none that look (sched_spin_in_vain). */
    if (w->spinning) {
        stop_spinning(w, false);
        fence_sc(); /* [idle.last] */
    }
    if (sched_any_work()) {
        if (sched_acquire_p(w)) {
            w->spinning = true;
            add_acqrel(&sched.spinning, 1u);
        }
        return; /* or somebody else has it */
    }
    if (wait_polling(w)) {
        return;
    }
    sleep_idle(w);
}

/* GOMAXPROCS was lowered: this P is none of them. */
static bool is_retired(struct worker *w)
{
    struct p *p = w->p;
    if (likely(p->id < (uint32_t)load_rlx(&sched.procs))) {
        return false;
    }
    w->p = NULL;
    mutex_lock(&sched.lock);
    sched_give_idle_p_locked(p); /* idle, if GOMAXPROCS was raised meanwhile */
    mutex_unlock(&sched.lock);
    fence_sc(); /* [idle.last] */
    if (sched_any_work()) {
        sched_wake_p();
    }
    return true;
}

static bool may_spin(struct worker *w)
{
    return w->spinning || 2 * (int64_t)load_rlx(&sched.spinning) <
                              load_rlx(&sched.procs) - (int64_t)load_rlx(&sched.nidle_ps);
}

/* In Go's order: the system is asked for descriptors when there is nothing else to do, or it is their turn. */
static struct g *look_for_work(struct worker *w)
{
    struct p *p = w->p;
    bool fair = load_rlx(&p->tick) % FAIR_TICKS == 0;
    struct gqueue ready = {0};
    if (fair) {
        take_happened(&ready);
        sched_ready_list(&ready); /* behind those that wait already */
    }
    take_due(&ready);
    struct g *g = gqueue_take(&ready);
    put_all(p, &ready);
    g = g == NULL && fair ? runq_take_global(p, 1) : g;
    g = g != NULL ? g : runq_take_next(p);
    g = g != NULL ? g : runq_take(p);
    g = g != NULL ? g : runq_take_global(p, RUNQ_SLOTS / 2);
    if (g == NULL) {
        take_happened(&ready);
        g = gqueue_take(&ready);
        put_all(p, &ready);
    }
    if (g == NULL && may_spin(w)) {
        if (!w->spinning) {
            w->spinning = true;
            add_acqrel(&sched.spinning, 1u);
        }
        g = runq_steal(w);
    }
    return g;
}

static struct g *find_runnable(struct worker *w)
{
    for (;;) {
        sched_look_at_p(w);
        if (w->p == NULL && !sched_acquire_p(w)) {
            stop_spinning(w, false);
            sleep_idle(w);
            continue;
        }
        if (is_retired(w)) {
            continue;
        }
        struct g *g = look_for_work(w);
        if (g == NULL) {
            go_idle(w);
            continue;
        }
        stop_spinning(w, true);
        if (sched_claim_to_run(w, g)) {
            return g;
        }
        runq_put(w->p, g);
        cpu_relax();
    }
}

static _Noreturn void worker_loop(struct worker *w)
{
    m_enter(w->m);
    for (;;) {
        struct g *g = find_runnable(w);
        sched_switch_to(w, &w->g0, g, false);
    }
}

/* What was left to it goes to one that has gone to sleep meanwhile, or the monitor tries again. */
void worker_start_failed(void)
{
    struct p *p;
    mutex_lock(&sched.lock);
    sched.starting--;
    bool handed = sched_hand_idle_over_locked(&p, true);
    mutex_unlock(&sched.lock);
    if (!handed) {
        sched_spin_in_vain(p == NULL);
    }
    monitor_worker_refused(); /* after it: while somebody spins the monitor makes nobody */
}

void worker_main(void *arg)
{
    struct worker *w = arg;
    struct m *m = m_get();
    if (m == NULL || !os_altstack_install()) {
        static _Atomic bool warned;
        if (!xchg_rlx(&warned, true)) { /* relaxed: once is enough */
            warnf("no memory for a thread that runs goroutines; those that there are go on");
        }
        worker_start_failed();
        return;
    }
    w->m = m;
    w->g0.stack_low = m->stack_low;
    w->g0.stack_high = m->stack_high;
#if defined(__SANITIZE_THREAD__)
    w->g0.fiber = __tsan_get_current_fiber();
#endif
    m->worker = w;
    w->spinning = true;
    mutex_lock(&sched.lock);
    sched.starting--;
    sched.nworkers++;
    mutex_unlock(&sched.lock);
    monitor_worker_runs();
    pthread_sigmask(SIG_SETMASK, (const sigset_t *)sched.mask, NULL); /* it is the program's */
    worker_loop(w);
}
