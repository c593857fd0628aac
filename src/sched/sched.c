/* sched.c - who runs next, and on which thread.
 *
 * Purpose     Queues of goroutines, parking and waking, the threads that run them, and the monitor that sees to it that
 *             one that does not come back holds nobody up.
 * Model       G parked -> ready: in the queue of a P, or the global one -> runs on the worker that owns the P -> parks:
 *             straight to the next goroutine of the queue, else to the worker's own stack, whose loop looks further
 *             (timers, the global queue, descriptors, others' queues) and sleeps.
 *             What a goroutine leaves to be done when nobody runs on its stack any more (let go of the channel's lock, go into
 *             a queue, be buried) is done by whoever comes after it: worker.after.
 * Invariants  [g.parked]   a stack is read or run by others only while its goroutine is G_PARKED; that is said by its
 *                          successor, on another stack.
 *             [p.owner]    the queue's end and the free list of a P are its owner's, while that is busy.
 *             [p.retake]   the monitor takes a P from a worker that is not busy: it says retake, makes all threads pass a
 *                          fence, and looks at busy. A worker is busy, then looks at retake and waits for the decision.
 *             [idle.last]  who goes to sleep has given its P back, does not count as spinning any more, and has then looked
 *                          at all queues once more; who puts something into a queue looks at both after it.
 * Locking     sched.lock, for moments; under it nothing but a futex wake.
 * From Go     proc.go; differs: memory is cached by thread, not by P (a thread without work has given its cache back with
 *             the last cycle); a goroutine that runs for long keeps its thread and loses its P, since C code cannot be
 *             interrupted at a point of our choice; no g0 between two goroutines.
 * Tests       tests/api/goroutines.c, goroutine_preempt.c, tests/stress/goroutine_graph.c
 */
#include "sched/sched.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/rng.h"
#include "heap/fixalloc.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <loam/sched.h>

#if defined(__SANITIZE_THREAD__)
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#endif
#if defined(__SANITIZE_ADDRESS__)
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *bytes);
#endif

enum {
    FAIR_TICKS = 61,           /* Go's: so often the global queue comes first */
    STEAL_ROUNDS = 4,          /* Go's */
    WORKERS_MOST = 10000,      /* Go's */
    SLICE_NS = 10000000,       /* Go's: who runs longer while others wait loses its P */
    MONITOR_QUICK_NS = 20000,  /* Go's: between two looks at first, */
    MONITOR_SLOW_NS = 5000000, /* and when nothing happens: half of Go's, so that nobody waits for 20 ms */
    MONITOR_QUICK = 50,
    ASK_NS = 200000,    /* so long after it came there the kernel is asked whether a worker sleeps */
    POLL_NS = 10000000, /* descriptors are looked at so often, whatever runs */
};

struct sched sched;

static struct {
    _Atomic uint32_t word; /* futex */
    _Atomic bool asleep;
    _Atomic bool wanted; /* a worker is */
    _Atomic bool ended;  /* a thread has: perhaps it was the last that could wake anybody */
} monitor;

/* -- the calling thread ------------------------------------------------------------------------ */

/* Not inlined: the compiler keeps addresses of thread-locals over a switch. */
static NOINLINE struct m *current_m(void)
{
    __asm__ volatile("");
    return m_self;
}

int *loam_errno_location(void)
{
    __asm__ volatile("");
    return __errno_location();
}

struct worker *sched_worker(void)
{
    struct m *m = current_m();
    return m == NULL ? NULL : m->worker;
}

/* [p.retake] Does w, which is busy, still have its P? */
static void look_at_p(struct worker *w)
{
    struct p *p = w->p;
    if (p == NULL) {
        return;
    }
    if (unlikely(load_rlx(&p->retake))) { /* relaxed: see [p.retake] */
        mutex_lock(&p->retake_lock);
        mutex_unlock(&p->retake_lock);
    }
    if (unlikely(load_acq(&p->owner) != w)) { /* acquire: pairs with take_p */
        w->p = NULL;
    }
}

/* -- switching --------------------------------------------------------------------------------- */

/* First thing on the stack that a worker has come to. */
ALWAYS_INLINE void arrive(struct worker *w)
{
    struct g *left = w->left;
    if (left != NULL) {
        void (*after)(struct g *, void *) = w->after;
        w->left = NULL;
        /* release: its stack and sp; pairs with claim_to_run, and with the collector's claim. */
        store_rel(&left->status, (uint32_t)G_PARKED);
        if (after != NULL) {
            after(left, w->after_arg);
        }
    }
}

/* Busy. Leave `from` for `to`, which is claimed; back when somebody switches to `from`. MAY_SWITCH */
static void switch_to(struct worker *w, struct g *from, struct g *to, bool for_good)
{
    int saved_errno = errno;
    (void)for_good;
    w->g = to == &w->g0 ? NULL : to;
    w->m->stack_low = to->stack_low;
    w->m->stack_high = to->stack_high;
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(to->fiber, 0);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? NULL : &from->fiber, (void *)to->stack_low,
                                   to->stack_high - to->stack_low);
#endif
    w = os_switch(&from->sp, to->sp, w);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from->fiber, NULL, NULL);
#endif
    arrive(w);
    errno = saved_errno;
}

/* g is in no queue any more. false: the collector looks at its stack just now. */
static bool claim_to_run(struct worker *w, struct g *g)
{
    uint32_t parked = G_PARKED;
    /* acquire: what it left; pairs with arrive. */
    if (unlikely(!cas_acqrel(&g->status, &parked, G_RUNNING))) {
        return false;
    }
    gscan_resume(w->m, g);
    g->ran = true;
    store_rlx(&w->p->tick, load_rlx(&w->p->tick) + 1);
    store_rlx(&g->why, NULL);
    return true;
}

/* -- queues ------------------------------------------------------------------------------------ */

static void global_put(struct gqueue *q)
{
    mutex_lock(&sched.lock);
    if (sched.global.tail != NULL) {
        sched.global.tail->next = q->head;
    } else {
        sched.global.head = q->head;
    }
    sched.global.tail = q->tail;
    sched.global.n += q->n;
    store_rlx(&sched.nglobal, sched.global.n);
    mutex_unlock(&sched.lock);
}

static void global_put_one(struct g *g)
{
    struct gqueue q = {0};
    gqueue_put(&q, g);
    global_put(&q);
}

/* To the end of the queue of w's P; half of a full one goes to the global queue. */
static void runq_put(struct p *p, struct g *g)
{
    for (;;) {
        uint32_t head = load_acq(&p->head); /* acquire: the slots are free; pairs with who took */
        uint32_t tail = load_rlx(&p->tail);
        if (tail - head < RUNQ_SLOTS) {
            store_rlx(&p->ring[tail % RUNQ_SLOTS], g);
            store_rel(&p->tail, tail + 1); /* release: the slot; pairs with runq_take */
            return;
        }
        uint32_t n = RUNQ_SLOTS / 2;
        struct g *half[RUNQ_SLOTS / 2];
        for (uint32_t i = 0; i < n; i++) {
            half[i] = load_rlx(&p->ring[(head + i) % RUNQ_SLOTS]);
        }
        if (cas_acqrel(&p->head, &head, head + n)) {
            struct gqueue q = {0};
            for (uint32_t i = 0; i < n; i++) {
                gqueue_put(&q, half[i]);
            }
            gqueue_put(&q, g);
            global_put(&q);
            return;
        }
    }
}

static struct g *runq_take(struct p *p)
{
    uint32_t head = load_acq(&p->head);
    while (head != load_acq(&p->tail)) { /* acquire: the slot; pairs with runq_put */
        struct g *g = load_rlx(&p->ring[head % RUNQ_SLOTS]);
        if (cas_acqrel(&p->head, &head, head + 1)) {
            return g;
        }
    }
    return NULL;
}

static struct g *next_take(struct p *p)
{
    struct g *g = load_rlx(&p->next);
    return g != NULL && cas_acqrel(&p->next, &g, NULL) ? g : NULL;
}

static bool runq_is_empty(struct p *p)
{
    return load_acq(&p->head) == load_acq(&p->tail) && load_acq(&p->next) == NULL;
}

/* A share of the global queue for w's P, at most `most`; the first of it. */
static struct g *global_take(struct p *p, uint32_t most)
{
    if (load_rlx(&sched.nglobal) == 0) {
        return NULL;
    }
    mutex_lock(&sched.lock);
    uint32_t n = sched.global.n / (uint32_t)load_rlx(&sched.procs) + 1;
    n = n > most ? most : n;
    struct g *first = gqueue_take(&sched.global);
    struct gqueue rest = {0};
    for (uint32_t i = 1; i < n && sched.global.n != 0; i++) {
        gqueue_put(&rest, gqueue_take(&sched.global));
    }
    store_rlx(&sched.nglobal, sched.global.n);
    mutex_unlock(&sched.lock);
    for (struct g *g; (g = gqueue_take(&rest)) != NULL;) {
        runq_put(p, g);
    }
    return first;
}

/* Half of the victim's queue to the end of p's own, which is empty; the last of them. */
static struct g *steal_from(struct p *p, struct p *victim, bool next_too)
{
    for (;;) {
        uint32_t head = load_acq(&victim->head);
        uint32_t tail = load_acq(&victim->tail); /* acquire: the slots; pairs with runq_put */
        uint32_t n = tail - head;
        n -= n / 2;
        if (n == 0) {
            struct g *g = next_too ? load_acq(&victim->next) : NULL;
            if (g == NULL) {
                return NULL;
            }
            if (load_rlx(&victim->owner) != NULL) {
                /* Who readied it is about to park, most often: then it runs there, warm. */
                os_sleep_ns(3000);
            }
            return load_acq(&victim->next) == g && cas_acqrel(&victim->next, &g, NULL) ? g : NULL;
        }
        if (n > RUNQ_SLOTS / 2) { /* head and tail are not of one moment */
            continue;
        }
        uint32_t own = load_rlx(&p->tail);
        for (uint32_t i = 0; i < n; i++) {
            store_rlx(&p->ring[(own + i) % RUNQ_SLOTS],
                      load_rlx(&victim->ring[(head + i) % RUNQ_SLOTS]));
        }
        if (cas_acqrel(&victim->head, &head, head + n)) {
            struct g *g = load_rlx(&p->ring[(own + n - 1) % RUNQ_SLOTS]);
            store_rel(&p->tail, own + n - 1); /* release: the slots; pairs with runq_take */
            return g;
        }
    }
}

static struct g *steal(struct worker *w)
{
    int n = load_rlx(&sched.procs);
    for (int round = 0; round < STEAL_ROUNDS; round++) {
        uint32_t from = (uint32_t)(rng_next(&w->p->rng) >> 33);
        for (int i = 0; i < n; i++) {
            struct p *victim = &sched.ps[(from + (uint32_t)i) % (uint32_t)n];
            struct g *g = victim == w->p
                              ? NULL
                              : steal_from(w->p, victim, round == STEAL_ROUNDS - 1);
            if (g != NULL) {
                return g;
            }
        }
    }
    return NULL;
}

/* -- Ps and workers ---------------------------------------------------------------------------- */

static void wake_monitor(void)
{
    add_acqrel(&monitor.word, 1u);
    os_futex_wake(&monitor.word, 1);
}

static struct p *take_idle_p_locked(void)
{
    struct p *p = sched.idle_ps;
    if (p != NULL) {
        sched.idle_ps = p->idle_next;
        sub_rlx(&sched.nidle_ps, 1u);
    }
    return p;
}

static void give_idle_p_locked(struct p *p)
{
    store_rel(&p->owner, NULL); /* release: its queue and lists; pairs with own_p */
    p->idle_next = sched.idle_ps;
    sched.idle_ps = p;
    add_rlx(&sched.nidle_ps, 1u); /* ordered by the lock, and by the fence of who goes to sleep */
}

static void own_p(struct worker *w, struct p *p)
{
    w->p = p;
    store_rlx(&p->preempt, false);
    store_rel(&p->owner, w); /* release: with the taking under the lock, all that was done before */
    if (unlikely(load_sc(&monitor.asleep))) { /* seq_cst: see monitor_sleep */
        wake_monitor();
    }
}

static bool acquire_p(struct worker *w)
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
static bool hand_over_locked(struct p *p, bool spinning)
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

static void want_worker(void)
{
    if (!load_rlx(&monitor.wanted) && !xchg_acqrel(&monitor.wanted, true)) {
        wake_monitor();
    }
}

/* There may be work for one more. [idle.last] */
static void wake_p(void)
{
    uint32_t none = 0;
    if (load_sc(&sched.nidle_ps) == 0 || load_sc(&sched.spinning) != 0 ||
        !cas_sc(&sched.spinning, &none, 1u)) {
        return;
    }
    mutex_lock(&sched.lock);
    struct p *p = take_idle_p_locked();
    bool done = p != NULL && hand_over_locked(p, true);
    if (p != NULL && !done) {
        give_idle_p_locked(p);
    }
    mutex_unlock(&sched.lock);
    if (!done) {
        sub_acqrel(&sched.spinning, 1u);
        if (p != NULL && load_sc(&sched.polling)) {
            os_poll_wake();
        } else if (p != NULL) {
            want_worker();
        }
    }
}

static void stop_spinning(struct worker *w, bool found)
{
    if (w->spinning) {
        w->spinning = false;
        uint32_t left = atomic_fetch_sub_explicit(&sched.spinning, 1, memory_order_seq_cst);
        if (found && left == 1) {
            wake_p(); /* where there was one there may be more */
        }
    }
}

/* -- waking ------------------------------------------------------------------------------------ */

void sched_ready(struct g *g)
{
    struct worker *w = sched_worker();
    if (w == NULL || w->p == NULL) {
        global_put_one(g);
        fence_sc(); /* [idle.last] */
    } else {
        /* seq_cst: [idle.last] */
        struct g *old = xchg_sc(&w->p->next, g);
        if (old != NULL) {
            runq_put(w->p, old);
        }
    }
    wake_p();
}

void sched_ready_list(struct gqueue *ready)
{
    if (ready->n == 0) {
        return;
    }
    uint32_t n = ready->n;
    global_put(ready);
    *ready = (struct gqueue){0};
    fence_sc(); /* [idle.last] */
    for (uint32_t i = 0; i < n && load_rlx(&sched.nidle_ps) != 0; i++) {
        wake_p();
    }
}

static bool poll_and_timers(struct gqueue *ready)
{
    bool any = false;
    if (timers_next() != INT64_MAX) {
        any = timers_take(ready, os_nanotime());
    }
    if (netpoll_waiters() != 0) {
        any = netpoll(ready, 0) || any;
    }
    return any;
}

/* -- the loop of a worker ---------------------------------------------------------------------- */

static bool any_queue_has_work(void)
{
    if (load_rlx(&sched.nglobal) != 0) {
        return true;
    }
    int n = load_rlx(&sched.procs);
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
    while (load_acq(&w->wake) == 0) { /* acquire: pairs with hand_over_locked */
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
    bool last = sched.nidle_workers == sched.nworkers;
    mutex_unlock(&sched.lock);
    if (last) {
        report_if_stuck();
    }
    wait_idle(w);
}

/* Wait for descriptors and times without a P. False: somebody else does. */
static bool wait_polling(struct worker *w)
{
    bool nobody = false;
    if (load_rlx(&sched.polling) || !cas_sc(&sched.polling, &nobody, true)) {
        return false;
    }
    /* seq_cst: polling, then a look at the timers; pairs with sched_poke_poller: one of the two sees the other. */
    fence_sc();
    int64_t until = timers_next();
    store_sc(&sched.poll_until, until);
    if (timers_next() < until) { /* who started that may have seen what an earlier poller waited for */
        until = timers_next();
    }
    int64_t now = until == INT64_MAX ? 0 : os_nanotime();
    struct gqueue ready = {0};
    struct m_wait wait;
    m_leave(w->m);
    m_begin_wait(w->m, &wait);
    (void)netpoll(&ready, until == INT64_MAX ? -1 : until > now ? until - now : 0);
    m_end_wait(w->m, &wait);
    m_enter(w->m);
    store_rlx(&sched.poll_until, INT64_MAX);
    store_sc(&sched.polling, false);
    store_rlx(&sched.polled_at, os_nanotime());
    (void)timers_take(&ready, os_nanotime());
    if (acquire_p(w)) {
        for (struct g *g; (g = gqueue_take(&ready)) != NULL;) {
            runq_put(w->p, g);
        }
        w->spinning = true; /* so that somebody else takes over the poll, at the latest when w finds work */
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
        wake_p(); /* who finds nothing to do polls */
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
    give_idle_p_locked(w->p);
    w->p = NULL;
    mutex_unlock(&sched.lock);
    bool spun = w->spinning;
    stop_spinning(w, false);
    fence_sc(); /* [idle.last] */
    if (any_queue_has_work()) {
        if (acquire_p(w)) {
            w->spinning = spun;
            if (spun) {
                add_acqrel(&sched.spinning, 1u);
            }
        }
        return; /* or somebody else has it */
    }
    if ((netpoll_waiters() != 0 || timers_next() != INT64_MAX) && wait_polling(w)) {
        return;
    }
    sleep_idle(w);
}

static void free_put_locked(struct g *g)
{
    g->next = load_rlx(&sched.free);
    store_rlx(&sched.free, g);
}

static struct g *free_take_locked(void)
{
    struct g *g = load_rlx(&sched.free);
    if (g != NULL) {
        store_rlx(&sched.free, g->next);
    }
    return g;
}

/* GOMAXPROCS was lowered: this P is none of them. */
static bool is_retired(struct worker *w)
{
    struct p *p = w->p;
    if (likely(p->id < (uint32_t)load_rlx(&sched.procs))) {
        return false;
    }
    struct gqueue q = {0};
    for (struct g *g; (g = next_take(p)) != NULL || (g = runq_take(p)) != NULL;) {
        gqueue_put(&q, g);
    }
    w->p = NULL;
    mutex_lock(&sched.lock);
    while (p->free != NULL) {
        struct g *g = p->free;
        p->free = g->next;
        free_put_locked(g);
    }
    p->nfree = 0;
    p->retired = true;
    store_rel(&p->owner, NULL);
    mutex_unlock(&sched.lock);
    sched_ready_list(&q);
    return true;
}

static bool may_spin(struct worker *w)
{
    return w->spinning || 2 * (int64_t)load_rlx(&sched.spinning) <
                              load_rlx(&sched.procs) - (int64_t)load_rlx(&sched.nidle_ps);
}

static struct g *look_for_work(struct worker *w)
{
    struct p *p = w->p;
    struct gqueue ready = {0};
    if (poll_and_timers(&ready)) {
        struct g *first = gqueue_take(&ready);
        for (struct g *g; (g = gqueue_take(&ready)) != NULL;) {
            runq_put(p, g);
        }
        if (first != NULL) {
            return first;
        }
    }
    struct g *g = load_rlx(&p->tick) % FAIR_TICKS == 0 ? global_take(p, 1) : NULL;
    g = g != NULL ? g : next_take(p);
    g = g != NULL ? g : runq_take(p);
    g = g != NULL ? g : global_take(p, RUNQ_SLOTS / 2);
    if (g == NULL && may_spin(w)) {
        if (!w->spinning) {
            w->spinning = true;
            add_acqrel(&sched.spinning, 1u);
        }
        g = steal(w);
    }
    return g;
}

static struct g *find_runnable(struct worker *w)
{
    for (;;) {
        look_at_p(w);
        if (w->p == NULL && !acquire_p(w)) {
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
        if (claim_to_run(w, g)) {
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
        switch_to(w, &w->g0, g, false);
    }
}

static void starting_failed(void)
{
    mutex_lock(&sched.lock);
    sched.starting--;
    mutex_unlock(&sched.lock);
}

static void worker_main(void *arg)
{
    struct worker *w = arg;
    struct m *m = m_get();
    if (m == NULL || !os_altstack_install()) {
        warnf("no memory for a thread that runs goroutines; those that there are go on");
        starting_failed();
        return;
    }
    w->m = m;
    w->g0.stack_low = m->stack_low;
    w->g0.stack_high = m->stack_high;
#if defined(__SANITIZE_THREAD__)
    w->g0.fiber = __tsan_get_current_fiber();
#endif
    m->worker = w;
    mutex_lock(&sched.lock);
    sched.starting--;
    sched.nworkers++;
    w->all_next = sched.workers;
    sched.workers = w;
    mutex_unlock(&sched.lock);
    pthread_sigmask(SIG_SETMASK, (const sigset_t *)sched.mask, NULL); /* it is the program's */
    worker_loop(w);
}

/* -- the monitor ------------------------------------------------------------------------------- */

/* [p.retake] The P of a worker that is not busy; NULL: it is, or has none. */
static bool take_p(struct p *p, struct worker *w)
{
    bool taken = false;
    mutex_lock(&p->retake_lock);
    store_sc(&p->retake, true);
    bool fenced = os_fence_threads();
    fence_sc();
    if ((fenced || world.gate_at_rest != GATE_OPEN) && load_acq(&p->owner) == w &&
        load_acq(&w->m->busy) == 0) { /* acquire: what it did to p; pairs with m_leave */
        store_rel(&p->owner, NULL);
        taken = true;
    }
    store_rel(&p->retake, false);
    mutex_unlock(&p->retake_lock);
    return taken;
}

/* A P without an owner goes to a worker, or to the idle ones. */
static void pass_on(struct p *p)
{
    mutex_lock(&sched.lock);
    bool idle = runq_is_empty(p) && sched.global.n == 0 && netpoll_waiters() == 0 &&
                timers_next() == INT64_MAX;
    bool handed = !idle && hand_over_locked(p, false);
    if (!handed) {
        give_idle_p_locked(p);
    }
    mutex_unlock(&sched.lock);
    if (!idle && !handed) {
        store_rlx(&monitor.wanted, true);
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
    pass_on(p);
    return true;
}

static void make_worker(void)
{
    static bool warned;
    mutex_lock(&sched.lock);
    bool enough = sched.nworkers + sched.starting >= WORKERS_MOST || sched.starting != 0;
    sched.starting += enough ? 0 : 1;
    mutex_unlock(&sched.lock);
    if (enough) {
        return;
    }
    struct worker *w = persistentalloc(sizeof *w, CACHE_LINE, &heap.stats.other_sys);
    int err = w == NULL ? ENOMEM
                        : os_thread_start(worker_main, w, "loam-worker");
    if (err != 0) {
        starting_failed();
        if (!warned) {
            warned = true;
            warnf("a thread for goroutines cannot be made (error %d); those that there are go on",
                  err);
        }
    }
}

/* Nothing runs: until something does. */
static void monitor_sleep(uint32_t seen)
{
    store_sc(&monitor.asleep, true); /* seq_cst: then the look; pairs with own_p */
    if (load_sc(&sched.nidle_ps) >= (uint32_t)load_rlx(&sched.procs) && !load_sc(&monitor.wanted) &&
        !load_sc(&monitor.ended)) {
        world_lib_pause();
        os_futex_wait(&monitor.word, seen, -1);
        world_lib_resume();
    }
    store_sc(&monitor.asleep, false);
}

static void poll_late(int64_t now)
{
    struct gqueue ready = {0};
    if (now - load_rlx(&sched.polled_at) > POLL_NS && poll_and_timers(&ready)) {
        store_rlx(&sched.polled_at, now);
        sched_ready_list(&ready);
    }
}

static void monitor_main(void *arg)
{
    (void)arg;
    os_backtrace_prepare(); /* here nobody waits for it */
    world_lib_resume();
    int64_t pause = MONITOR_QUICK_NS, until_look = pause;
    int quiet = 0;
    for (;;) {
        uint32_t seen = load_acq(&monitor.word);
        if (xchg_acqrel(&monitor.wanted, false)) {
            make_worker();
        }
        if (xchg_acqrel(&monitor.ended, false)) {
            os_sleep_ns(MONITOR_SLOW_NS); /* until it is gone */
            report_if_stuck();
        }
        if (load_rlx(&sched.nidle_ps) >= (uint32_t)load_rlx(&sched.procs)) {
            monitor_sleep(seen);
            pause = until_look = MONITOR_QUICK_NS;
            quiet = 0;
            continue;
        }
        world_lib_pause();
        os_futex_wait(&monitor.word, seen, until_look);
        world_lib_resume();
        int64_t now = os_nanotime();
        int64_t next = INT64_MAX;
        bool did = false;
        for (int i = 0; i < load_rlx(&sched.procs); i++) {
            did = retake(&sched.ps[i], now, &next) || did;
        }
        poll_late(now);
        quiet = did ? 0 : quiet + 1;
        pause = did ? MONITOR_QUICK_NS
                    : quiet > MONITOR_QUICK && pause < MONITOR_SLOW_NS ? pause * 2 : pause;
        pause = pause < MONITOR_SLOW_NS ? pause : MONITOR_SLOW_NS;
        until_look = next < now + pause ? next - now + MONITOR_QUICK_NS : pause;
    }
}

/* -- start ------------------------------------------------------------------------------------- */

static bool make_ps(void)
{
    int n = os_ncpu() > 256 ? os_ncpu() : 256; /* what loam_set_max_procs may ask for later */
    sched.ps = persistentalloc((size_t)n * sizeof *sched.ps, CACHE_LINE, &heap.stats.other_sys);
    if (sched.ps == NULL) {
        return false;
    }
    sched.max_ps = n;
    int procs = load_rlx(&gc.options.max_procs);
    store_rlx(&sched.procs, procs < n ? procs : n);
    for (int i = 0; i < n; i++) {
        sched.ps[i].id = (uint32_t)i;
        sched.ps[i].rng = (uint64_t)i * UINT64_C(0x9E3779B97F4A7C15) + 1;
        sched.ps[i].retired = i >= load_rlx(&sched.procs);
    }
    mutex_lock(&sched.lock);
    for (int i = load_rlx(&sched.procs); i-- > 0;) {
        give_idle_p_locked(&sched.ps[i]);
    }
    mutex_unlock(&sched.lock);
    return true;
}

static struct mutex start_lock;

/* Each step may be repeated when a later one was refused. */
static int start_locked(void)
{
    if (sched.ps == NULL && !make_ps()) {
        return ENOMEM;
    }
    int err = netpoll_open();
    if (err != 0) {
        return err;
    }
    gscan_init();
    report_init();
    pthread_sigmask(SIG_SETMASK, NULL, (sigset_t *)sched.mask);
    err = os_thread_start(monitor_main, NULL, "loam-monitor");
    if (err == 0) {
        store_rel(&sched.started, true); /* release: pairs with sched_start */
    }
    return err;
}

bool sched_start(void)
{
    if (likely(load_acq(&sched.started))) { /* acquire: pairs with start_locked */
        return true;
    }
    world_enter_stranger();
    mutex_lock(&start_lock);
    int err = load_rlx(&sched.started) ? 0 : start_locked();
    mutex_unlock(&start_lock);
    world_leave_stranger();
    errno = err != 0 ? err : errno;
    return err == 0;
}

/* -- a goroutine's life ------------------------------------------------------------------------ */

enum run_state { RUN_RUNS, RUN_AWAITED, RUN_ENDED };

/* A loam_run that waits; on its caller's stack. */
struct run_call {
    struct waiter waiter;
    _Atomic uint32_t state; /* enum run_state */
};

static void tell_end(struct run_call *r)
{
    struct waiter *waiter = &r->waiter;
    /* acquire, release: what it did; pairs with await_run. */
    if (xchg_acqrel(&r->state, (uint32_t)RUN_ENDED) == RUN_AWAITED) {
        waiter_wake(waiter);
    }
}

static void bury(struct g *g, void *arg)
{
    (void)arg;
    struct worker *w = sched_worker();
    uint32_t parked = G_PARKED; /* [gscan.claim] */
    while (!cas_acqrel(&g->status, &parked, G_RUNNING)) {
        parked = G_PARKED;
        cpu_relax();
    }
    if (g->stack_class != STACK_DEFAULT_CLASS) {
        stack_free(g);
    }
    sub_rlx(&sched.ngs, UINT64_C(1));
    if (g->run != NULL) {
        tell_end(g->run);
    }
    store_rel(&g->status, (uint32_t)G_DEAD); /* release: all of it; pairs with born */
    struct p *p = w->p;
    if (p != NULL && p->nfree < GFREE_MOST) {
        g->next = p->free;
        p->free = g;
        p->nfree++;
        return;
    }
    mutex_lock(&sched.lock);
    free_put_locked(g);
    mutex_unlock(&sched.lock);
}

static _Noreturn void end_goroutine(void)
{
    struct m *m = current_m();
    if (m->worker == NULL) {
        exit(0); /* fork's child: its goroutine was all there is */
    }
    m_enter(m);
    struct worker *w = m->worker;
    look_at_p(w);
    struct g *g = w->g;
    w->left = g;
    w->after = bury;
    struct g *next = NULL;
    if (w->p != NULL && load_rlx(&w->p->tick) % FAIR_TICKS != 0) {
        next = next_take(w->p);
        next = next != NULL ? next : runq_take(w->p);
        if (next != NULL && !claim_to_run(w, next)) {
            runq_put(w->p, next);
            next = NULL;
        }
    }
    switch_to(w, g, next != NULL ? next : &w->g0, true);
    __builtin_unreachable();
}

static void goroutine_main(void *arg)
{
    struct worker *w = arg;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    arrive(w);
    struct g *g = w->g;
    void (*fn)(void *) = g->fn;
    void *fn_arg = (void *)load_rlx(&g->arg);
    errno = 0;
    /* From here on the stack holds it. */
    store_rlx(&g->arg, (uintptr_t)0);
    m_leave(w->m);
    fn(fn_arg);
    end_goroutine();
}

static struct g *take_free(struct p *p)
{
    if (p != NULL && p->free != NULL) {
        struct g *g = p->free;
        p->free = g->next;
        p->nfree--;
        return g;
    }
    if (load_rlx(&sched.free) == NULL) { /* relaxed: a hint */
        return NULL;
    }
    mutex_lock(&sched.lock);
    struct g *g = free_take_locked();
    while (p != NULL && p->nfree < GFREE_MOST / 2 && load_rlx(&sched.free) != NULL) {
        struct g *more = free_take_locked();
        more->next = p->free;
        p->free = more;
        p->nfree++;
    }
    mutex_unlock(&sched.lock);
    return g;
}

static void give_free(struct g *g)
{
    mutex_lock(&sched.lock);
    free_put_locked(g);
    mutex_unlock(&sched.lock);
}

/* A goroutine with a stack of the class, in no queue. */
static struct g *born(struct m *m, uint8_t class)
{
    struct p *p = m->worker != NULL ? m->worker->p : NULL;
    struct g *g = take_free(p);
    if (g == NULL) {
        g = allg_new();
        if (g == NULL) {
            return NULL;
        }
    }
    uint32_t dead = G_DEAD;
    /* acquire: pairs with bury, and with the collector, which takes the stack's memory. */
    while (!cas_acqrel(&g->status, &dead, G_RUNNING)) {
        dead = G_DEAD;
        cpu_relax();
    }
    if (g->stack_high != 0 && g->stack_class != class) {
        stack_free(g);
    }
    if (g->stack_high == 0 && !stack_alloc(g, class)) {
        store_rel(&g->status, (uint32_t)G_DEAD);
        give_free(g);
        return NULL;
    }
    return g;
}

/* Busy. 0, or an errno value. */
static int start(const loam_go_options *options, void (*fn)(void *arg), void *arg,
                 struct run_call *run)
{
    uint8_t class = STACK_DEFAULT_CLASS;
    if (options != NULL && !stack_class_for(options->stack_bytes, &class)) {
        return EINVAL;
    }
    struct m *m = current_m();
    struct g *g = born(m, class);
    if (g == NULL) {
        return ENOMEM;
    }
    g->sp = os_switch_prepare(g->stack_high, goroutine_main);
    g->cold = false;
    g->fn = fn;
    g->run = run;
    g->id = add_rlx(&sched.next_id, UINT64_C(1)) + 1;
    g->name[0] = 0;
    if (options != NULL && options->name != NULL) {
        strncpy(g->name, options->name, NAME_BYTES - 1);
    }
    store_rlx(&g->why, NULL);
    gscan_born(m, g, (uintptr_t)arg);
#if defined(__SANITIZE_THREAD__)
    if (g->fiber == NULL) {
        g->fiber = __tsan_create_fiber(0);
    }
#endif
    add_rlx(&sched.ngs, UINT64_C(1));
    store_rel(&g->status, (uint32_t)G_PARKED); /* release: all of it; pairs with claim_to_run */
    sched_ready(g);
    return 0;
}

int loam_go_with(const loam_go_options *options, void (*fn)(void *arg), void *arg)
{
    if (fn == NULL) {
        errno = EINVAL;
        return -1;
    }
    if (sched_enter(SCHED_STAYS) == NULL) {
        return -1;
    }
    int err = start(options, fn, arg, NULL);
    sched_leave(SCHED_STAYS);
    errno = err != 0 ? err : errno;
    return err == 0 ? 0 : -1;
}

int loam_go(void (*fn)(void *arg), void *arg)
{
    return loam_go_with(NULL, fn, arg);
}

size_t loam_num_goroutine(void)
{
    return (size_t)load_rlx(&sched.ngs);
}

uint64_t loam_goroutine_id(void)
{
    struct worker *w = sched_worker();
    return w == NULL || w->g == NULL ? 0 : w->g->id;
}

/* -- parking ----------------------------------------------------------------------------------- */

static struct g *next_of_queue(struct worker *w)
{
    struct p *p = w->p;
    /* So often the loop looks at everything else; while there are timers, more often. */
    uint32_t tick = load_rlx(&p->tick);
    if (tick % FAIR_TICKS == 0 || (tick % 8 == 0 && timers_next() != INT64_MAX) ||
        unlikely(p->id >= (uint32_t)load_rlx(&sched.procs))) {
        return NULL;
    }
    struct g *g = next_take(p);
    g = g != NULL ? g : runq_take(p);
    if (g != NULL && !claim_to_run(w, g)) {
        runq_put(p, g);
        return NULL;
    }
    return g;
}

/* Busy. MAY_SWITCH */
static void park(struct worker *w, void (*after)(struct g *g, void *arg), void *arg,
                 const char *why)
{
    struct g *g = w->g;
    store_rlx(&g->why, why);
    look_at_p(w);
    struct g *next = w->p != NULL ? next_of_queue(w) : NULL;
    w->left = g;
    w->after = after;
    w->after_arg = arg;
    switch_to(w, g, next != NULL ? next : &w->g0, false);
}

static void to_queue(struct g *g, void *arg)
{
    (void)arg;
    struct worker *w = sched_worker();
    if (w->p != NULL) {
        runq_put(w->p, g);
    } else {
        global_put_one(g);
    }
}

static void to_global_queue(struct g *g, void *arg)
{
    (void)arg;
    global_put_one(g);
    fence_sc(); /* [idle.last] */
    wake_p();
}

/* Its slice is over. */
static void look_for_preemption(struct worker *w)
{
    if (w->p != NULL && unlikely(load_rlx(&w->p->preempt))) {
        store_rlx(&w->p->preempt, false);
        park(w, to_global_queue, NULL, NULL);
    }
}

struct m *sched_enter(enum sched_call call)
{
    struct m *m = malloc_self();
    if (m == NULL || (!load_acq(&sched.started) && !sched_start())) {
        return NULL;
    }
    CHECK(m_busy(m) == 0,
          "a function of <loam/sched.h> was called by a signal handler, over the library");
    m_enter(m);
    struct worker *w = m->worker;
    if (w != NULL && w->g != NULL) {
        look_at_p(w);
        if (unlikely(w->p == NULL) && call == SCHED_PARKS && !acquire_p(w)) {
            park(w, to_global_queue, NULL, NULL);
            m = current_m();
        }
    }
    return m;
}

void sched_leave(enum sched_call call)
{
    struct m *m = current_m();
    struct worker *w = m->worker;
    if (w != NULL && w->g != NULL && call == SCHED_PARKS) {
        look_for_preemption(w);
        m = current_m();
    }
    m_leave(m);
}

void waiter_init(struct waiter *wt)
{
    struct worker *w = sched_worker();
    wt->g = w == NULL ? NULL : w->g;
    store_rlx(&wt->woken, 0u);
    store_rlx(&wt->decided, 0u);
}

#if defined(__SANITIZE_THREAD__) /* which keeps the handler of a handshake from running until the wait is over */
enum { WAIT_NS = 1000000 };
#else
enum { WAIT_NS = -1 };
#endif

void waiter_park(struct waiter *wt, void (*after)(struct g *g, void *arg), void *arg,
                 const char *why)
{
    if (wt->g != NULL) {
        park(sched_worker(), after, arg, why);
        return;
    }
    struct m *m = current_m();
    wt->counted = !m->is_library;
    add_acqrel(&sched.waiting_threads, wt->counted ? 1u : 0u);
    if (after != NULL) {
        after(NULL, arg);
    }
    m_leave(m);
    report_if_stuck();
    /* Not as a blocked thread: handlers of the program run meanwhile, and may use the heap. */
    while (load_acq(&wt->woken) == 0) { /* acquire: what who woke did; pairs with waiter_wake */
        os_futex_wait(&wt->woken, 0, WAIT_NS);
        if (m_asked(m)) {
            m_poll(m);
        }
    }
    m_enter(m);
}

void waiter_wake(struct waiter *wt)
{
    if (wt->g != NULL) {
        sched_ready(wt->g);
        return;
    }
    sub_acqrel(&sched.waiting_threads, wt->counted ? 1u : 0u);
    store_rel(&wt->woken, 1u); /* release: pairs with waiter_park. Its frame may be left from now on: */
    os_futex_wake(&wt->woken, 1); /* a wake of what is something else by then is harmless */
}

void loam_yield(void)
{
    struct m *m = current_m();
    struct worker *w = m == NULL ? NULL : m->worker;
    if (w == NULL) {
        os_yield();
        return;
    }
    m = sched_enter(SCHED_PARKS);
    w = m->worker;
    if (w->p != NULL) {
        store_rlx(&w->p->preempt, false);
        if (!runq_is_empty(w->p) || load_rlx(&sched.nglobal) != 0 ||
            load_rlx(&w->p->tick) % FAIR_TICKS == 0) {
            park(w, to_queue, NULL, NULL);
        } else {
            store_rlx(&w->p->tick, load_rlx(&w->p->tick) + 1);
        }
    }
    sched_leave(SCHED_STAYS);
}

void loam_sleep(int64_t ns)
{
    if (ns <= 0) {
        return;
    }
    struct worker *w = sched_worker();
    if (w == NULL || w->g == NULL) {
        os_sleep_ns(ns);
        return;
    }
    int64_t now = os_nanotime();
    int64_t until = ns > INT64_MAX - 1 - now ? INT64_MAX - 1 : now + ns;
    w = sched_enter(SCHED_PARKS)->worker;
    w->g->timed = NULL;
    bool started = timer_start(w->g, until); /* before it is parked: who takes it waits for that */
    if (started) {
        sched_poke_poller(until);
        park(w, NULL, NULL, "sleep");
    }
    sched_leave(SCHED_STAYS);
    if (!started) { /* no memory for the timer */
        os_sleep_ns(ns);
    }
}

/* -- loam_run ---------------------------------------------------------------------------------- */

static void await_run(struct g *g, void *arg)
{
    struct run_call *r = arg;
    uint32_t state = RUN_RUNS;
    if (!cas_acqrel(&r->state, &state, RUN_AWAITED)) {
        if (g != NULL) {
            sched_ready(g);
        } else {
            waiter_wake(&r->waiter);
        }
    }
}

int loam_run(void (*fn)(void *arg), void *arg)
{
    if (fn == NULL) {
        errno = EINVAL;
        return -1;
    }
    struct run_call r = {0};
    if (sched_enter(SCHED_PARKS) == NULL) {
        return -1;
    }
    waiter_init(&r.waiter);
    int err = start(NULL, fn, arg, &r);
    if (err == 0) {
        waiter_park(&r.waiter, await_run, &r, "loam_run");
    }
    sched_leave(SCHED_STAYS);
    errno = err != 0 ? err : errno;
    return err == 0 ? 0 : -1;
}

/* Under world.lock, at any moment. */
void sched_thread_ended(void)
{
    if (load_rlx(&sched.waiting_threads) != 0 || load_rlx(&sched.ngs) != 0) {
        store_sc(&monitor.ended, true);
        if (load_sc(&monitor.asleep)) {
            wake_monitor();
        }
    }
}

/* -- GOMAXPROCS, fork, misuse ------------------------------------------------------------------ */

void sched_set_procs(int n)
{
    if (!load_acq(&sched.started)) {
        return; /* make_ps reads it */
    }
    mutex_lock(&sched.lock);
    n = n < sched.max_ps ? n : sched.max_ps;
    store_rlx(&sched.procs, n);
    /* Those beyond are found out when they are next looked at. */
    for (int i = 0; i < n; i++) {
        if (sched.ps[i].retired) {
            sched.ps[i].retired = false;
            give_idle_p_locked(&sched.ps[i]);
        }
    }
    mutex_unlock(&sched.lock);
    wake_p();
}

/* The goroutine that forked goes on as an ordinary thread; the others, and all threads, are not there. */
void sched_fork_child(struct m *self)
{
    if (!load_rlx(&sched.started)) {
        memset(&start_lock, 0, sizeof start_lock);
        return;
    }
    netpoll_fork_child();
    timers_fork_child();
    gscan_fork_child();
    memset(&sched, 0, sizeof sched);
    memset(&monitor, 0, sizeof monitor);
    memset(&start_lock, 0, sizeof start_lock);
    if (self != NULL) {
        self->worker = NULL;
    }
}

_Noreturn COLD void sched_misuse(const char *what)
{
    struct worker *w = sched_worker();
    if (w != NULL && w->g != NULL) {
        throwf("%s (goroutine %llu %s)", what, (unsigned long long)w->g->id, w->g->name);
    }
    throwf("%s", what);
}
