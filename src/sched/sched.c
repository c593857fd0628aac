/* sched.c - who runs next, and on which thread.
 *
 * Purpose     A goroutine's life, from its start over parking to its end; the calls that are not of a file of their own. And
 *             what all files of this folder keep to.
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
 *             [idle.last]  who goes to sleep has given its P back, does not count as spinning any more, can be found among
 *                          those that sleep, and has then looked at all queues once more; who puts something into a queue
 *                          looks at all three after it. Who is made or woken for work spins: it wakes one more if it finds
 *                          any. Model: tests/model/idle.pml.
 * Locking     sched.lock, for moments; under it nothing but a futex wake.
 * From Go     proc.go; differs: memory is cached by thread, not by P (a thread without work has given its cache back with
 *             the last cycle); a goroutine that runs for long keeps its thread and loses its P, since C code cannot be
 *             interrupted at a point of our choice; no g0 between two goroutines.
 * Tests       tests/api/goroutines.c, goroutine_preempt.c, goroutine_blocked.c, tests/stress/goroutine_graph.c
 */
#include "sched/runq.h"

#include "base/check.h"
#include "heap/fixalloc.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <loam/sched.h>

#if defined(__SANITIZE_THREAD__)
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#endif
#if defined(__SANITIZE_ADDRESS__)
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t bytes);
void __asan_unpoison_memory_region(const volatile void *at, size_t bytes);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *bytes);
#endif

struct sched sched;

/* -- the calling thread ------------------------------------------------------------------------ */

/* Not inlined: the compiler keeps addresses of thread-locals over a switch. */
NOINLINE struct m *sched_m(void)
{
    __asm__ volatile("");
    return m_self;
}

/* Not inlined: as sched_m. */
NOINLINE int *loam_errno_location(void)
{
    __asm__ volatile("");
    return __errno_location();
}

struct worker *sched_worker(void)
{
    struct m *m = sched_m();
    return m == NULL ? NULL : m->worker;
}

/* -- switching --------------------------------------------------------------------------------- */

/* First thing on the stack that a worker has come to. */
ALWAYS_INLINE void arrive(struct worker *w)
{
    struct g *left = w->left;
    if (left != NULL) {
        void (*after)(struct g *, void *) = w->after;
        w->left = NULL;
        /* release: its stack and sp; pairs with sched_claim_to_run, and with the collector's claim. */
        store_rel(&left->status, (uint32_t)G_PARKED);
        if (after != NULL) {
            after(left, w->after_arg);
        }
    }
}

/* One event for a stretch in which a goroutine ran, and one look at the clock. */
static NOINLINE void trace_switch(struct worker *w, const struct g *from, const struct g *to,
                                  bool for_good)
{
    struct trace_source *s = &w->m->trace;
    int64_t now = os_nanotime();
    if (from != &w->g0) {
        const char *why = for_good ? "ended" : load_rlx(&from->why);
        trace_add(s, TRACE_G, w->since, now, from->id, (uintptr_t)why);
    }
    w->since = to != &w->g0 ? now : 0;
}

/* Busy. Leave `from` for `to`, which is claimed; back when somebody switches to `from`. MAY_SWITCH */
void sched_switch_to(struct worker *w, struct g *from, struct g *to, bool for_good)
{
    int saved_errno = errno;
    (void)for_good;
    PROBE2(goroutine_switch, from->id, to->id); /* 0: none */
    if (trace_is_on(&w->m->trace)) {
        trace_switch(w, from, to, for_good);
    }
    w->g = to == &w->g0 ? NULL : to;
    w->m->stack_low = to->stack_low;
    w->m->stack_high = to->stack_high;
    from->mstacks = w->m->mstacks;
    w->m->mstacks = to->mstacks;
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
bool sched_claim_to_run(struct worker *w, struct g *g)
{
    uint32_t parked = G_PARKED;
    /* acquire: what it left; pairs with arrive. */
    if (unlikely(!cas_acqrel(&g->status, &parked, G_RUNNING))) {
        return false;
    }
    if (unlikely(g->slept != NULL)) {
        sleeper_wake(g);
    }
    gscan_resume(w->m, g);
    if (unlikely(g->ready_at != 0)) {
        histogram_add(&sched.latencies, os_nanotime() - g->ready_at);
        g->ready_at = 0;
    }
    g->ran = true;
    store_rlx(&w->p->tick, load_rlx(&w->p->tick) + 1);
    store_rlx(&g->why, NULL);
    return true;
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
    store_rlx(&sched.most_procs, load_rlx(&sched.procs));
    for (int i = 0; i < n; i++) {
        sched.ps[i].id = (uint32_t)i;
        sched.ps[i].rng = (uint64_t)i * UINT64_C(0x9E3779B97F4A7C15) + 1;
        sched.ps[i].retired = i >= load_rlx(&sched.procs);
    }
    mutex_lock(&sched.lock);
    for (int i = load_rlx(&sched.procs); i-- > 0;) {
        sched_give_idle_p_locked(&sched.ps[i]);
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

static void give_free(struct g *g)
{
    mutex_lock(&sched.lock);
    gfree_put_locked(g);
    mutex_unlock(&sched.lock);
}

static void bury(struct g *g, void *arg)
{
    (void)arg;
    struct worker *w = sched_worker();
    uint32_t parked = G_PARKED; /* [gscan.claim] */
    while (!cas_acqrel(&g->status, &parked, G_RUNNING)) {
        parked = G_PARKED;
        os_yield();
    }
    if (g->stack_class != STACK_DEFAULT_CLASS) {
        stack_free(g);
    }
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(g->fiber);
    g->fiber = NULL;
#endif
    struct run_call *run = g->run;
    store_rel(&g->status, (uint32_t)G_DEAD); /* release: all of it; pairs with born */
    sub_acqrel(&sched.ngs, UINT64_C(1)); /* release: it is gone; pairs with loam_num_goroutine */
    if (run != NULL) {
        tell_end(run); /* who waited finds it gone */
    }
    struct p *p = w->p;
    if (p != NULL && p->nfree < GFREE_MOST) {
        g->next = p->free;
        p->free = g;
        p->nfree++;
    } else {
        give_free(g);
    }
}

static struct g *next_of_queue(struct worker *w)
{
    struct p *p = w->p;
    /* So often the loop looks at everything else; while there are timers, more often. */
    uint32_t tick = load_rlx(&p->tick);
    if (tick % FAIR_TICKS == 0 || (tick % 8 == 0 && timers_next() != INT64_MAX) ||
        unlikely(p->id >= (uint32_t)load_rlx(&sched.procs))) {
        return NULL;
    }
    struct g *g = runq_take_next(p);
    g = g != NULL ? g : runq_take(p);
    if (g != NULL && !sched_claim_to_run(w, g)) {
        runq_put(p, g);
        return NULL;
    }
    return g;
}

static _Noreturn void end_goroutine(void)
{
    struct m *m = sched_m();
    if (m->worker == NULL) {
        exit(0); /* fork's child: its goroutine was all there is */
    }
    m_enter(m);
    if (m->mstacks != NULL) {
        mstack_leave_all(m);
    }
    struct worker *w = m->worker;
    sched_look_at_p(w);
    struct g *g = w->g;
    w->left = g;
    w->after = bury;
    struct g *next = w->p != NULL ? next_of_queue(w) : NULL;
    sched_switch_to(w, g, next != NULL ? next : &w->g0, true);
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
    struct g *g = gfree_take_locked();
    while (p != NULL && p->nfree < GFREE_MOST / 2 && load_rlx(&sched.free) != NULL) {
        struct g *more = gfree_take_locked();
        more->next = p->free;
        p->free = more;
        p->nfree++;
    }
    mutex_unlock(&sched.lock);
    return g;
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
        os_yield();
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
    struct m *m = sched_m();
    struct g *g = born(m, class);
    if (g == NULL) {
        return ENOMEM;
    }
#if defined(__SANITIZE_ADDRESS__) /* the last frames of who had it before were never left */
    __asan_unpoison_memory_region((void *)g->stack_low, g->stack_high - g->stack_low);
#endif
    g->sp = os_switch_prepare(g->stack_high, goroutine_main);
    g->cold = false;
    if (g->stack_pages == 0) {
        stack_count(g, 1);
    }
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
    g->fiber = __tsan_create_fiber(0);
#endif
    PROBE1(goroutine_go, g->id);
    trace_now(&m->trace, TRACE_GO, g->id, 0);
    add_rlx(&sched.ngs, UINT64_C(1));
    store_rel(&g->status,
              (uint32_t)G_PARKED); /* release: all of it; pairs with sched_claim_to_run */
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
    return (size_t)load_acq(
        &sched.ngs); /* acquire: who is not counted is not listed; pairs with bury */
}

uint64_t loam_goroutine_id(void)
{
    struct worker *w = sched_worker();
    return w == NULL || w->g == NULL ? 0 : w->g->id;
}

/* -- parking ----------------------------------------------------------------------------------- */

/* Busy. MAY_SWITCH */
static void park(struct worker *w, void (*after)(struct g *g, void *arg), void *arg,
                 const char *why)
{
    struct g *g = w->g;
    store_rlx(&g->why, why);
    sched_look_at_p(w);
    struct g *next = w->p != NULL ? next_of_queue(w) : NULL;
    w->left = g;
    w->after = after;
    w->after_arg = arg;
    sched_switch_to(w, g, next != NULL ? next : &w->g0, false);
}

static void to_queue(struct g *g, void *arg)
{
    (void)arg;
    struct worker *w = sched_worker();
    if (w->p != NULL) {
        runq_put(w->p, g);
    } else {
        runq_put_global(g);
    }
}

static void to_global_queue(struct g *g, void *arg)
{
    (void)arg;
    runq_put_global(g);
    fence_sc(); /* [idle.last] */
    sched_wake_p();
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
        sched_look_at_p(w);
        if (unlikely(w->p == NULL) && call == SCHED_PARKS && !sched_acquire_p(w)) {
            park(w, to_global_queue, NULL, NULL);
            m = sched_m();
        }
    }
    return m;
}

void sched_leave(enum sched_call call)
{
    struct m *m = sched_m();
    struct worker *w = m->worker;
    if (w != NULL && w->g != NULL && call == SCHED_PARKS) {
        look_for_preemption(w);
        m = sched_m();
    }
    m_leave(m);
}

/* ThreadSanitizer keeps a handler from running until the wait is over: there a thread that waits looks for itself. */
#if defined(__SANITIZE_THREAD__)
enum { WAIT_NS = 1000000 };
#else
enum { WAIT_NS = -1 };
#endif

void waiter_init(struct waiter *wt)
{
    struct worker *w = sched_worker();
    wt->g = w == NULL ? NULL : w->g;
    store_rlx(&wt->woken, 0u);
    store_rlx(&wt->decided, 0u);
}

void waiter_park(struct waiter *wt, void (*after)(struct g *g, void *arg), void *arg,
                 const char *why)
{
    if (wt->g != NULL) {
        park(sched_worker(), after, arg, why);
        return;
    }
    struct m *m = sched_m();
    wt->counted = !m->is_library;
    add_acqrel(&sched.waiting_threads, wt->counted ? 1u : 0u);
    if (after != NULL) {
        after(NULL, arg);
    }
    report_if_stuck();
    m_leave(m);
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
    store_rel(&wt->woken,
              1u); /* release: pairs with waiter_park. Its frame may be left from now on: */
    os_futex_wake(&wt->woken, 1); /* a wake of what is something else by then is harmless */
}

void loam_yield(void)
{
    struct m *m = sched_m();
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

static void sleep_as_thread(int64_t ns)
{
    struct m *m = sched_m();
    for (int64_t left = ns; left > 0; left -= WAIT_NS) {
        os_sleep_ns(WAIT_NS > 0 && left > WAIT_NS ? WAIT_NS : left);
        if (m != NULL && m_asked(m)) {
            m_poll(m);
        }
        if (WAIT_NS < 0) {
            break;
        }
    }
}

void loam_sleep(int64_t ns)
{
    if (ns <= 0) {
        return;
    }
    struct worker *w = sched_worker();
    if (w == NULL || w->g == NULL) {
        sleep_as_thread(ns);
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
        sleep_as_thread(ns);
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

/* -- GOMAXPROCS, fork, misuse ------------------------------------------------------------------ */

void sched_set_procs(struct m *m, int n)
{
    if (!load_acq(&sched.started)) {
        return; /* make_ps reads it */
    }
    m_enter(m);
    mutex_lock(&sched.lock);
    n = n < sched.max_ps ? n : sched.max_ps;
    store_rlx(&sched.procs, n);
    store_rlx(&sched.most_procs, n > load_rlx(&sched.most_procs) ? n : load_rlx(&sched.most_procs));
    sched_retire_idle_ps_locked(); /* the others are found out when they are next looked at */
    for (int i = 0; i < n; i++) {
        if (sched.ps[i].retired) {
            sched.ps[i].retired = false;
            sched_give_idle_p_locked(&sched.ps[i]);
        }
    }
    mutex_unlock(&sched.lock);
    fence_sc(); /* [idle.last]: queues have moved, and Ps were not idle for a moment */
    sched_wake_p();
    m_leave(m);
}

/* The goroutine that forked goes on as an ordinary thread; the others, and all threads, are not there. */
void sched_fork_child(struct m *self)
{
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        if (m != self && m->mstacks != NULL) {
            mstack_fork_child(&m->mstacks);
        }
    }
    if (!load_rlx(&sched.started)) {
        memset(&start_lock, 0, sizeof start_lock);
        return;
    }
    netpoll_fork_child();
    timers_fork_child();
    sleeper_fork_child();
    gscan_fork_child();
    memset(&sched, 0, sizeof sched);
    monitor_fork_child();
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
