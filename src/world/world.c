/* world.c - attached threads, and how to reach each of them.
 *
 * Purpose     Registry of ms; handshakes (soft, nobody stops); world_stop (gcstoptheworld,
 *             gccheckmark and the heap dump only); the gate that keeps threads out of the library while one forks.
 * Model       A request is a number in m->request. Its thread answers by running world.fn on itself and
 *             copying the number to m->ack: in the signal handler if not busy, else when it stops being
 *             busy. For a thread that is M_BLOCKED the poster claims it and answers in its place.
 * Invariants  [m.busy]    a handler that finds busy != 0 changes nothing but errno-neutral reads.
 *             [m.claim]   M_BLOCKED -> M_CLAIMED by others, M_CLAIMED -> M_BLOCKED by the claimer,
 *                         M_BLOCKED -> M_RUNNING by the thread: so it never returns while claimed.
 *             [fork.gate] while the gate is shut no thread but the one that forks is deep, so fork's child finds
 *                         every structure whole. Threads are not stopped: they may hold locks of the C library's
 *                         malloc and stdio, which fork takes after all its handlers. One that waits for the
 *                         fork with such a lock breaks the gate after GATE_PATIENCE_NS, and the child has no heap.
 *             [world.registry]  phases change and threads attach under world.lock, so a new thread
 *                         starts in the present phase and is asked for every later one.
 * Locking     handshake_lock > world.lock; stop_lock > world.lock. The poster waits for answers with
 *             neither held but handshake_lock, which no program thread takes.
 * Ordering    the gate: who enters raises m->busy, then reads the gate; who forks shuts it, then reads busy, with a
 *             fence for all threads in between (os_fence_threads), so that entering needs none.
 *             request: release by the poster after world.fn, acquire in m_asked. ack and remaining:
 *             release by the answerer, acquire by the poster.
 * From Go     forEachP (ragged barrier) and preemptM; differs: every phase change is one.
 * Tests       tests/model, tests/api: threads.c, masked_thread.c, tests/stress
 */
#include "world/world.h"

#include "heap/fixalloc.h"
#include "world/probe.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

__thread struct m *m_self __attribute__((tls_model("initial-exec")));
struct world world;

_Atomic uint32_t world_gate;

static pthread_key_t exit_key;

/* -- the gate ---------------------------------------------------------------------------------- */

/* Of time spent waiting, not by the clock: a process that is stopped, or that the kernel copies, is not late. */
#define GATE_PATIENCE_NS INT64_C(5000000000)
#define GATE_ROUND_NS INT64_C(1000000)

/* For a thread that has raised busy, or will not stay. */
static bool gate_is_shut(void)
{
    if (likely(load_rlx(&world_gate) == GATE_OPEN)) { /* relaxed: see Ordering */
        return false;
    }
    fence_sc(); /* busy or at_gate, then the gate; pairs with shut_gate */
    uint32_t gate = load_acq(&world_gate); /* acquire: pairs with open_gate */
    CHECK(gate != GATE_NO_HEAP,
          "this process was forked while a thread of its parent was inside the library, since "
          "fork waited for a lock that it held, or was called in a signal handler over it: there "
          "is no heap here. exec or _exit (README.md, \"Limits\")");
    return gate == GATE_SHUT;
}

void world_mind_fork(int64_t *waited, int64_t ns)
{
    uint32_t gate = GATE_SHUT;
    *waited = gate_is_shut() ? *waited + ns : 0;
    /* seq_cst: before anything is changed: the child sees it, or nothing of that. */
    if (*waited > GATE_PATIENCE_NS && cas_sc(&world_gate, &gate, GATE_BROKEN)) {
        warnf("thread %d waits for a fork on another thread, and that perhaps for a lock that it "
              "holds (of malloc or stdio, below a signal handler); after %d s it goes on, and the "
              "child will have no heap",
              os_gettid(), (int)(GATE_PATIENCE_NS / 1000000000));
        os_futex_wake(&world_gate, INT_MAX);
        os_futex_wake(&world.fork_pending, INT_MAX); /* the collector goes on, too */
    }
}

COLD void m_pass_gate(struct m *m)
{
    if (m_deep(m) != 0) { /* a handler over such code: who forks waits for it */
        return;
    }
    int outer = load_rlx(&m->at_gate); /* this is a handler over such a wait */
    for (int64_t waited = 0; gate_is_shut(); world_mind_fork(&waited, GATE_ROUND_NS)) {
        store_rel(&m->at_gate, m_busy(m)); /* release: as leaving */
        os_futex_wait(&world_gate, GATE_SHUT, GATE_ROUND_NS);
        store_sc(&m->at_gate, outer);
    }
}

void world_enter_stranger(void)
{
    for (int64_t waited = 0;; world_mind_fork(&waited, GATE_ROUND_NS)) {
        add_rlx(&world.strangers, 1u);
        fence_sc(); /* strangers, then the gate; pairs with shut_gate */
        /* relaxed: the caller's own, if it forks: in a handler of the program's that fork calls after ours */
        if (!gate_is_shut() || load_rlx(&world.forker) == os_gettid()) {
            return;
        }
        world_leave_stranger();
        os_futex_wait(&world_gate, GATE_SHUT, GATE_ROUND_NS);
    }
}

void world_leave_stranger(void)
{
    sub_acqrel(&world.strangers, 1u); /* release: pairs with all_outside */
}

/* -- answering --------------------------------------------------------------------------------- */

void m_count_pause(struct m *m, int64_t ns)
{
    uint64_t t = ns > 0 ? (uint64_t)ns : 0;
    PROBE2(pause, m->tid, t);
    add_rlx(&m->pause_total_ns, t);
    histogram_add(&world.pauses, ns);
    raise_rlx(&m->pause_max_ns, t);
    if (unlikely(t > load_rlx(&trace.pause_bound) - 1)) { /* 0, for none, is the highest then */
        trace_long_pause(m->tid, t);
    }
}

/* pc: see m_context; anew with each answer, for one handler may give several. */
static void acknowledge(struct m *m, uint32_t seq, uintptr_t pc)
{
    store_rlx(&m->ack_pc, pc); /* relaxed: read after the ack */
    /* release: what the answer did is seen by the poster; pairs with wait_answers. */
    store_rel(&m->ack, seq);
    if (sub_acqrel(&world.remaining, 1u) == 1) {
        os_futex_wake(&world.remaining, 1);
    }
}

static void answer_stop(struct m *m, const struct m_context *ctx)
{
    if (&m->context != ctx) {
        m->context = *ctx;
    }
    store_rel(&m->state, M_STOPPED); /* release: the context; pairs with world_stop */
    add_acqrel(&world.stopped, 1u);
    os_futex_wake(&world.stopped, 1);
    for (;;) {
        uint32_t stop = load_acq(&m->stop); /* acquire: pairs with world_start */
        if (stop == 0) {
            break;
        }
        os_futex_wait(&m->stop, stop, -1);
    }
    /* A poster may be acting for us in this very moment: as after blocking. seq_cst: before the next look
     * at stop; pairs with world_stop, which stores stop and then looks who stands still. */
    uint32_t state = M_STOPPED;
    while (!cas_sc(&m->state, &state, M_RUNNING)) {
        os_futex_wait(&m->state, state, 1000000);
        state = M_STOPPED;
    }
}

/* Before it is acknowledged: the handshake is the one in progress until then. */
static void trace_answer(struct m *m, int64_t since)
{
    trace_end(&m->trace, TRACE_ANSWER, since, (uintptr_t)world.name,
              (uint64_t)(since - world.posted_at));
}

/* Do all that is asked of the calling thread, whose pointers are where ctx says; nothing while another one
 * forks, it is asked again. What it takes is counted in the thread's own processor time, for what the kernel
 * gives to others in between is not of our making; a stop in time on the wall. All signals are blocked: a
 * handler of the program would move pointers behind the back of a scan, take slots from a cache that changes,
 * or run in a world that stands still. */
static void m_answer(struct m *m, const struct m_context *ctx)
{
    int64_t begin = os_thread_cputime();
    int64_t stopped = 0;
    m_raise(&m->busy);
    if (gate_is_shut()) { /* not waited for: the code below may hold a lock of the C library */
        m_lower(&m->busy);
        return;
    }
    m_raise(&m->deep);
    do {
        uint32_t seq = load_acq(&m->request); /* acquire: world.fn; pairs with world_handshake */
        if (seq != load_rlx(&m->ack)) {
            int64_t since = trace_begin(&m->trace);
            PROBE1(answer_begin, world.name);
            world_delay(DELAY_STEP);
            world.fn(m, ctx);
            PROBE1(answer_end, world.name);
            trace_answer(m, since);
            acknowledge(m, seq, ctx->pc);
        }
        if (load_rlx(&m->stop) != 0) {
            int64_t since = os_nanotime();
            PROBE(stop_begin);
            answer_stop(m, ctx);
            PROBE(stop_end);
            int64_t until = os_nanotime();
            stopped += until - since;
            if (trace_is_on(&m->trace)) {
                trace_add(&m->trace, TRACE_STOP, since, until, 0, 0);
            }
        }
    } while (load_sc(&m->stop) != 0 || m_asked(m)); /* seq_cst: see answer_stop */
    m_lower(&m->deep);
    m_lower(&m->busy);
    int64_t used = os_thread_cputime() - begin;
    int64_t took = used + stopped;
    m_count_pause(m, took);
    histogram_add(&world.answers, took);
    add_rlx(&world.answer_cpu_ns, (uint64_t)(used > 0 ? used : 0));
    raise_rlx(&m->answer_max_ns, took > 0 ? (uint64_t)took : 0);
}

static void set_sp(struct m *m, struct m_context *ctx, uintptr_t sp)
{
    uintptr_t low;
    ctx->sp = sp;
    ctx->alt_limit = 0;
    if (likely(sp >= m->stack_low && sp < m->stack_high) ||
        os_altstack_bounds(sp, &low, &ctx->alt_limit)) {
        return;
    }
    /* Its limit was raised after the thread was attached. The system keeps a gap below this stack, so nothing else
     * is mapped next to it. */
    uintptr_t next = m->stack_low - os_page_size(); /* of a stack elsewhere, all that is asked */
    if (m->is_first && sp < m->stack_low && os_mapped_low(next, m->stack_low) == next &&
        os_mapped_low(sp, next) == sp) {
        m->stack_low = align_down(sp, os_page_size());
    }
}

static void poll_spilled(void *arg, uintptr_t sp)
{
    struct m_context ctx = {0};
    set_sp(arg, &ctx, sp);
    m_answer(arg, &ctx);
}

/* All but those that say what this very thread did: blocked, they would end the process. */
static void block_signals(sigset_t *before)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t set;
    sigfillset(&set);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) {
        sigdelset(&set, own[i]);
    }
    pthread_sigmask(SIG_SETMASK, &set, before);
}

void m_poll(struct m *m)
{
    int saved = errno;
    sigset_t before;
    block_signals(&before);
    /* Blocked all the while, as in a fork between enter and exit: then others answer. */
    while (m_asked(m) && load_rlx(&m->state) == M_RUNNING && !gate_is_shut()) {
        os_call_spilled(poll_spilled, m);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
}

enum { FRAME_MOST = 16384 }; /* bytes of a signal frame with all its vector registers */

static void save_context(struct m *m, struct m_context *ctx, const void *ucontext, uintptr_t frame)
{
    set_sp(m, ctx, os_context_sp(ucontext));
    ctx->frame = frame;
    ctx->frame_limit = ctx->sp; /* the usual case: the frame lies right below what it interrupted */
    if (frame > ctx->sp || ctx->sp - frame > FRAME_MOST) { /* the handler has a stack of its own */
        uintptr_t low, high;
        bool known = os_altstack_bounds(frame, &low, &high);
        ctx->frame_limit = known && high - frame < FRAME_MOST ? high : (uintptr_t)ucontext;
    }
    const uintptr_t *regs = os_context_regs(ucontext, &ctx->nregs);
    ASSERT(ctx->nregs <= CONTEXT_REGS);
    memcpy(ctx->regs, regs, ctx->nregs * sizeof *regs);
}

/* Answer from the handler. ThreadSanitizer calls it late, at some call of the thread, with a copy of the
 * context in which the signal arrived: that says nothing of where the thread is now. */
static void answer_interrupted(struct m *m, void *ucontext)
{
#if defined(__SANITIZE_THREAD__)
    (void)ucontext, (void)save_context;
    m_poll(m);
#else
    uintptr_t pc = os_context_pc(ucontext);
    uintptr_t restart = os_stores_restart(pc);
    if (restart != pc) {
        os_context_set_pc(ucontext, restart);
    }
    struct m_context ctx = {.pc = restart == pc ? pc : 0};
    save_context(m, &ctx, ucontext, (uintptr_t)__builtin_frame_address(0));
    m_answer(m, &ctx);
#endif
}

static void on_signal(int signo, void *info, void *ucontext)
{
    int saved = errno;
    struct m *m = m_self;
    if (!os_signal_is_ours(info) || m == NULL || !xchg_rlx(&m->signaled, false)) {
        os_signal_chain(signo, info, ucontext); /* the program's own, also from itself */
    }
    m = m_self; /* that may have attached it */
    if (m != NULL && m_busy(m) == 0 && m_asked(m) && load_rlx(&m->state) == M_RUNNING) {
        answer_interrupted(m, ucontext);
    }
    errno = saved;
}

static int send_signal(struct m *m)
{
    store_rlx(&m->signaled, true);
    return os_tgkill(m->tid, world.signo);
}

/* -- registry ---------------------------------------------------------------------------------- */

static void link_m_locked(struct m *m)
{
    m->prev = NULL;
    m->next = world.ms;
    if (world.ms != NULL) {
        world.ms->prev = m;
    }
    world.ms = m;
    world.nms++;
}

/* [exit]: m answers what it still owes, hands over what it holds and leaves the registry. */
static void unlink_m_locked(struct m *m)
{
    uint32_t seq = load_acq(&m->request); /* acquire: as in m_answer */
    world.detach(m); /* covers whatever a pending handshake asks: nothing of m remains */
    if (seq != load_rlx(&m->ack)) {
        acknowledge(m, seq, 0);
    }
    for (struct stack_ref *ref = m->stacks; ref != NULL;) {
        struct stack_ref *next = ref->next;
        struct m *owner = m;
        (void)cas_acqrel(&ref->stack->owner, &owner, NULL);
        metafree(ref, sizeof *ref);
        ref = next;
    }
    m->stacks = NULL;
    trace_detach_locked(m);
    if (m->prev != NULL) {
        m->prev->next = m->next;
    } else {
        world.ms = m->next;
    }
    if (m->next != NULL) {
        m->next->prev = m->prev;
    }
    world.nms--;
}

static struct m *new_m(void)
{
    mutex_lock(&world.lock);
    struct m *m = world.free_ms;
    if (m != NULL) {
        world.free_ms = m->next;
    }
    mutex_unlock(&world.lock);
    if (m == NULL) {
        m = persistentalloc(sizeof *m, CACHE_LINE, &heap.stats.mcache_sys);
    }
    return m;
}

static void free_m(struct m *m)
{
    mutex_lock(&world.lock);
    m->next = world.free_ms;
    world.free_ms = m;
    mutex_unlock(&world.lock);
}

/* A C library that is out of memory does not say them, nor one that finds no /proc: then no attempt
 * succeeds, and somebody should know why. */
static bool stack_bounds(struct m *m)
{
    static _Atomic bool warned;
    bool ok = os_stack_bounds(&m->stack_low, &m->stack_high);
    if (!ok && !xchg_rlx(&warned, true)) { /* relaxed: once is enough, twice no harm */
        warnf("cannot attach thread %d: the bounds of its stack are unknown", m->tid);
    }
    return ok;
}

static struct m *attach(void)
{
    struct m *m = new_m();
    if (m == NULL) {
        return NULL;
    }
    memset(m, 0, sizeof *m);
    mcache_init(&m->cache);
    store_rlx(&m->busy, 1);
    store_rlx(&m->deep, 1);
    m->tid = os_gettid();
    m->is_first = m->tid == getpid() && !world.forked;
    m->tp = os_thread_pointer();
    if (!stack_bounds(m) || pthread_setspecific(exit_key, m) != 0) {
        free_m(m);
        return NULL;
    }
    world_delay(DELAY_STEP);
    mutex_lock(&world.lock); /* [attach] */
    world.attach(m);
    store_rlx(&m->stop, load_rlx(&world.is_stopped) ? 1u : 0u);
    store_rlx(&m->request, load_rlx(&world.seq)); /* asked for nothing that was posted before */
    store_rlx(&m->ack, load_rlx(&world.seq));
    link_m_locked(m);
    trace_attach_locked(m);
    m_self = m;
    mutex_unlock(&world.lock);
    world_delay(DELAY_STEP);
    store_rel(&m->deep, 0); /* release: as in m_leave */
    store_rel(&m->busy, 0);
    return m;
}

/* Signals are blocked meanwhile: a handler of the program that allocates would attach a second time. */
COLD struct m *m_attach(void)
{
    sigset_t old;
    block_signals(&old);
    /* Such a handler may have run since the caller looked. */
    struct m *m = m_self;
    if (m == NULL) {
        world_enter_stranger();
        m = attach();
        world_leave_stranger();
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (m == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    if (m_busy(m) == 0 && m_asked(m)) {
        m_poll(m);
    }
    return m;
}

/* Signals are blocked: a handler that allocates would attach a second time. */
static void detach(struct m *m)
{
    while (m->blocking_depth > 0) {
        m_exit_blocking(m);
    }
    m_enter(m); /* for good: nobody interrupts what follows */
    mutex_lock(&world.lock);
    unlink_m_locked(m);
    m_self = NULL;
    world_delay(DELAY_STEP);
    mcache_fini(&m->cache); /* under the lock: a fork waits for it, and for no other from now on */
    mutex_unlock(&world.lock);
    pthread_setspecific(exit_key, NULL);
    free_m(m);
}

void m_detach(void)
{
    if (m_self == NULL) {
        return;
    }
    sigset_t old;
    block_signals(&old);
    detach(m_self);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

#ifndef PTHREAD_DESTRUCTOR_ITERATIONS
#define PTHREAD_DESTRUCTOR_ITERATIONS 4 /* POSIX asks for as many at least */
#endif
#if defined(__SANITIZE_THREAD__) /* its own destructor ends the thread for it in the last round */
enum { EXIT_ROUNDS = PTHREAD_DESTRUCTOR_ITERATIONS - 1 };
#else
enum { EXIT_ROUNDS = PTHREAD_DESTRUCTOR_ITERATIONS };
#endif

/* Destructors of keys made after ours come after this one: their values are roots until the last round.
 * A thread that attaches in a late round never sees its own last: it is reaped.
 * Signals stay blocked from then on, as the C library has them right after: what a handler finds in the
 * thread's locals is collected now. */
static void on_thread_exit(void *arg)
{
    struct m *m = arg;
    if (++m->exit_rounds < EXIT_ROUNDS && pthread_setspecific(exit_key, m) == 0) {
        return;
    }
    sigset_t unused;
    block_signals(&unused);
    if (m_self != NULL) { /* a handler may have detached it */
        detach(m_self);
    }
}

#if defined( \
    __SANITIZE_THREAD__) /* that a thread is dead orders what it did, but only the kernel knows */
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);
#define TOUCH_DEAD_BEGIN \
    (AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__))
#define TOUCH_DEAD_END \
    (AnnotateIgnoreWritesEnd(__FILE__, __LINE__), AnnotateIgnoreReadsEnd(__FILE__, __LINE__))
#define DEAD_IS_UNORDERED 1 /* its record is not used again */
#else
#define DEAD_IS_UNORDERED 0
#define TOUCH_DEAD_BEGIN ((void)0)
#define TOUCH_DEAD_END ((void)0)
#endif

/* Its thread does not exist any more: what it cached returns, its stack is gone. */
static void bury_locked(struct m *m)
{
    unlink_m_locked(m);
    mcache_fini(&m->cache);
    if (!DEAD_IS_UNORDERED) {
        m->next = world.free_ms;
        world.free_ms = m;
    }
}

/* A thread that ended without its destructors (a raw clone, a key destroyed): act for it. */
static void reap(struct m *dead)
{
    mutex_lock(&world.lock);
    struct m *m = world.ms;
    while (m != NULL && m != dead) {
        m = m->next;
    }
    if (m != NULL) {
        TOUCH_DEAD_BEGIN;
        bury_locked(m);
        TOUCH_DEAD_END;
    }
    mutex_unlock(&world.lock);
}

/* -- blocking ---------------------------------------------------------------------------------- */

struct blocking {
    struct m *m;
    uintptr_t frame_end;
};

/* Apart, for the sanitizer has to see it. */
static NOINLINE void say_blocked(struct m *m)
{
    /* [block]. release: the context; pairs with the claim. seq_cst: pairs with world_handshake, which sets
     * request and then looks at state; one of the two sees the other. */
    store_sc(&m->state, M_BLOCKED);
}

/* Where the thread is, then that it blocks. No handler of ours answers in between, or the context would
 * be that of a frame that is left. */
static NO_SANITIZE void block_spilled(void *arg, uintptr_t sp)
{
    const struct blocking *b = arg;
    struct m *m = b->m;
    size_t words = (b->frame_end - sp) / sizeof(uintptr_t);
    CHECK(words <= CONTEXT_REGS, "%zu words of frames before blocking", words);
    m->context.pc = 0;
    set_sp(m, &m->context, b->frame_end);
    m->context.frame = m->context.frame_limit = 0;
    m->context.nregs = words;
    for (size_t i = 0; i < words; i++) {
        m->context.regs[i] = ((const volatile uintptr_t *)sp)[i];
    }
    say_blocked(m);
}

void m_enter_blocking(struct m *m, uintptr_t frame_end)
{
    if (m->blocking_depth++ > 0) {
        return;
    }
    world_delay(DELAY_SHADE);
    struct blocking b = {m, frame_end};
    for (;;) {
        m_raise(&m->busy);
        os_call_spilled(block_spilled, &b);
        m_lower(&m->busy);
        if ((load_sc(&m->request) == load_rlx(&m->ack) && load_sc(&m->stop) == 0) ||
            gate_is_shut()) { /* asked again after the fork */
            return;
        }
        uint32_t state = M_BLOCKED;
        if (!cas_acqrel(&m->state, &state, M_RUNNING)) {
            return; /* claimed: the poster answers for us */
        }
        m_poll(m);
    }
}

void m_exit_blocking(struct m *m)
{
    if (m->blocking_depth == 0 || --m->blocking_depth > 0) {
        return;
    }
    int64_t since = 0; /* it had to wait */
    world_delay(DELAY_SHADE);
    for (;;) {
        m_raise(&m->busy); /* while the world is stopped, no handler changes the context */
        uint32_t state = M_BLOCKED;
        uint32_t stop = 0;
        /* [unblock]. acquire: what was done in our name; pairs with unclaim. seq_cst: state, then stop;
         * world_stop stores stop, then looks who stands still: one of the two sees the other. */
        bool running = cas_sc(&m->state, &state, M_RUNNING);
        if (running && (stop = load_sc(&m->stop)) != 0) {
            store_rel(&m->state, M_BLOCKED); /* release: as in m_enter_blocking */
        }
        m_lower(&m->busy);
        if (running && stop == 0) {
            break;
        }
        since = since == 0 ? os_nanotime() : since;
        if (running) {
            os_futex_wait(&m->stop, stop, -1);
        } else {
            os_futex_wait(&m->state, state, -1);
        }
    }
    if (since != 0) {
        m_count_pause(m, os_nanotime() - since);
    }
    if (unlikely(m_busy(m) != 0)) { /* in a handler: the code below has perhaps passed the gate */
        m_pass_gate(m);
    }
    if (m_asked(m)) {
        m_poll(m);
    }
}

void m_begin_wait(struct m *m, struct m_wait *w)
{
    _Static_assert(sizeof(sigset_t) <= sizeof w->signals, "the mask fits");
    block_signals((sigset_t *)w->signals);
    m_enter_blocking(m, FRAME_END);
}

void m_end_wait(struct m *m, struct m_wait *w)
{
    m_exit_blocking(m);
    pthread_sigmask(SIG_SETMASK, (sigset_t *)w->signals, NULL);
}

void m_begin_walk(struct m *m, struct m_wait *w)
{
    m_begin_wait(m, w);
    world_enter_stranger();
}

void m_end_walk(struct m *m, struct m_wait *w)
{
    world_leave_stranger();
    m_end_wait(m, w);
}

/* -- handshakes -------------------------------------------------------------------------------- */

/* [block]: keep m where it stands; false: it runs. */
static bool claim(struct m *m, uint32_t *state)
{
    /* seq_cst: after the store of request; pairs with m_enter_blocking. */
    *state = load_sc(&m->state);
    /* acquire: the context; pairs with m_enter_blocking and answer_stop. */
    return (*state == M_BLOCKED || *state == M_STOPPED) &&
           cas_acqrel(&m->state, state, (uint32_t)M_CLAIMED);
}

static void unclaim(struct m *m, uint32_t state)
{
    store_rel(&m->state,
              state); /* release: what was done in its name; pairs with m_exit_blocking */
    os_futex_wake(&m->state, 1);
}

/* One round over those who have not answered: act for who stands still, signal the others. */
static void ask(uint32_t seq)
{
    struct m *dead = NULL;
    mutex_lock(&world.lock);
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        uint32_t state;
        if (load_acq(&m->ack) == seq || load_rlx(&m->request) != seq) {
            continue;
        }
        if (claim(m,
                  &state)) { /* a claimed m stays in the registry: no lock needed to act for it */
            mutex_unlock(&world.lock);
            if (load_acq(&m->ack) != seq) {
                int64_t since = trace_begin(&trace.library[TRACE_COLLECTOR]);
                world.fn(m, &m->context);
                trace_end(&trace.library[TRACE_COLLECTOR], TRACE_ANSWER_FOR, since,
                          (uintptr_t)world.name, (uint64_t)m->tid);
                /* Stopped within an unknown store it will not go on before the cycle has ended. */
                acknowledge(m, seq, 0);
            }
            mutex_lock(&world.lock);
            unclaim(m, state);
        } else if (m != m_self && load_rlx(&m->state) == M_RUNNING && send_signal(m) == ESRCH) {
            dead = m;
        }
    }
    mutex_unlock(&world.lock);
    if (dead != NULL) {
        reap(dead);
    }
}

static void warn_slow(uint32_t seq, int64_t waited_ns)
{
    mutex_lock(&world.lock);
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        if (load_acq(&m->ack) != seq && load_rlx(&m->request) == seq) {
            warnf("thread %d has not answered the collector for %lld s: does it mask signal %d? "
                  "(the heap grows until it allocates, or calls loam_enter_blocking)",
                  m->tid, (long long)(waited_ns / 1000000000), world.signo);
            break;
        }
    }
    mutex_unlock(&world.lock);
}

static void wait_answers(uint32_t seq)
{
    int64_t begin = os_nanotime();
    int64_t patience = 50000;
    int64_t next_warning = 10000000000;
    for (;;) {
        ask(seq);
        int64_t until = os_nanotime() + patience;
        for (;;) {
            /* acquire: all that the answers did; pairs with acknowledge. */
            uint32_t left = load_acq(&world.remaining);
            if (left == 0) {
                return;
            }
            world_safepoint();
            int64_t now = os_nanotime();
            if (now >= until) {
                break;
            }
            os_futex_wait(&world.remaining, left, until - now);
        }
        patience = patience < 10000000 ? patience * 2 : patience;
        if (os_nanotime() - begin > next_warning) {
            warn_slow(seq, os_nanotime() - begin);
            next_warning *= 2;
        }
    }
}

static uint32_t post(void (*posting)(void))
{
    mutex_lock(&world.lock);
    uint32_t seq = load_rlx(&world.seq) + 1;
    store_rlx(&world.seq, seq);
    store_rlx(&world.remaining, world.nms);
    if (posting != NULL) {
        posting();
    }
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        /* release: world.fn and the phase; pairs with m_asked. seq_cst: see m_enter_blocking. */
        store_sc(&m->request, seq);
    }
    mutex_unlock(&world.lock);
    return seq;
}

enum { PCS_AT_ONCE = 64 };

/* Where threads were found at their last answers; each is told once. How many. */
static size_t take_pcs(uintptr_t pcs[PCS_AT_ONCE])
{
    size_t n = 0;
    mutex_lock(&world.lock);
    for (struct m *m = world.ms; m != NULL && n < PCS_AT_ONCE; m = m->next) {
        pcs[n] = load_rlx(&m->ack_pc);
        if (pcs[n] != 0) {
            store_rlx(&m->ack_pc, (uintptr_t)0);
            n++;
        }
    }
    mutex_unlock(&world.lock);
    return n;
}

/* Was a thread answered for inside a store sequence that its handler did not know, because the
 * module came after the refresh, or there was no memory for that? Then its answer says nothing about that
 * store. Once the module is known all answer again: the store may be one that a handler of the program lies over. */
static bool answered_in_unknown_store(void)
{
    if (!os_stores_changed(world.stores_generation)) {
        return false;
    }
    world.stores_generation = os_stores_refresh();
    if (world.stores_generation != 0) {
        return true;
    }
    bool found = false;
    uintptr_t pcs[PCS_AT_ONCE];
    for (size_t n = take_pcs(pcs); n != 0; n = take_pcs(pcs)) {
        for (size_t i = 0; i < n && !found; i++) {
            found = os_stores_find(pcs[i]) != pcs[i];
        }
    }
    return found;
}

void world_handshake(handshake_fn *fn, void (*posting)(void), const char *name)
{
    mutex_lock(&world.handshake_lock);
    world_delay(DELAY_STEP);
    int64_t begin = os_nanotime();
    PROBE1(handshake_begin, name);
    world.stores_generation = os_stores_refresh();
    world.fn = fn;
    world.name = name;
    world.posted_at = begin;
    wait_answers(post(posting));
    while (answered_in_unknown_store()) {
        wait_answers(post(NULL)); /* every handshake's function may run twice */
    }
    int64_t end = os_nanotime();
    uint64_t took = (uint64_t)(end - begin);
    PROBE2(handshake_end, name, took);
    if (trace_is_on(&trace.library[TRACE_COLLECTOR])) {
        trace_add(&trace.library[TRACE_COLLECTOR], TRACE_HANDSHAKE, begin, end, (uintptr_t)name, 0);
    }
    raise_rlx(&world.handshake_max_ns, took);
    histogram_add(&world.handshakes, (int64_t)took);
    mutex_unlock(&world.handshake_lock);
}

/* -- the real stop ----------------------------------------------------------------------------- */

static bool stands_still(struct m *m)
{
    /* acquire: the context; seq_cst: after the store of stop; pairs with answer_stop, m_*_blocking. */
    uint32_t state = load_sc(&m->state);
    return m == world.stopper || state == M_STOPPED || state == M_BLOCKED;
}

#define STOP_PATIENCE_NS INT64_C(5000000000)

/* Ask those who still run; how many. */
static uint32_t ask_stop_locked(void)
{
    uint32_t running = 0;
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        if (stands_still(m)) {
            continue;
        }
        if (send_signal(m) != ESRCH) {
            running++;
        }
    }
    return running;
}

/* Attached threads that start to run meanwhile (new ones, ones back from blocking) stop before they
 * touch the heap, so nothing is locked while the world is stopped but stop_lock. */
void world_stop(void)
{
    mutex_lock(&world.stop_lock);
    mutex_lock(&world.lock);
    world.stopper = m_self;
    store_rlx(&world.is_stopped, true);
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        if (m != world.stopper) {
            store_sc(&m->stop, 1u); /* seq_cst: see m_enter_blocking */
        }
    }
    int64_t begin = os_nanotime();
    for (int64_t wait = 50000;; wait = wait < 1000000 ? wait * 2 : wait) {
        uint32_t seen = load_acq(&world.stopped);
        uint32_t running = ask_stop_locked();
        mutex_unlock(&world.lock);
        if (running == 0) {
            return;
        }
        os_futex_wait(&world.stopped, seen, wait);
        if (os_nanotime() - begin > STOP_PATIENCE_NS) {
            warnf("a thread does not stop (does it mask signal %d?); going on without it",
                  world.signo);
            return;
        }
        mutex_lock(&world.lock);
    }
}

void world_start(void)
{
    mutex_lock(&world.lock);
    store_rlx(&world.is_stopped, false);
    world.stopper = NULL;
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        store_rel(&m->stop, 0u); /* release: pairs with answer_stop */
        os_futex_wake(&m->stop, 1);
    }
    mutex_unlock(&world.lock);
    mutex_unlock(&world.stop_lock);
}

/* -- the library's own threads, and fork ------------------------------------------------------- */

void world_lib_resume(void)
{
    for (;;) {
        add_acqrel(&world.lib_active, 1u);
        /* seq_cst: this add, then the load; world_hold stores, then loads: one sees the other. */
        fence_sc();
        uint32_t pending = load_sc(&world.fork_pending);
        if (pending == 0 || load_sc(&world_gate) == GATE_BROKEN) {
            return;
        }
        world_lib_pause();
        os_futex_wait(&world.fork_pending, pending, 1000000000);
    }
}

void world_lib_pause(void)
{
    if (sub_acqrel(&world.lib_active, 1u) == 1) {
        os_futex_wake(&world.lib_active, 1);
    }
}

/* Is m where the child may find it: in nothing that holds a lock or changes the heap? */
static bool stands_outside(struct m *m)
{
    /* acquire: what it did inside; pairs with m_leave, m_pass_gate. seq_cst: see m_exit_blocking. */
    int busy = load_acq(&m->busy);
    return m == m_self || busy == 0 || busy == load_acq(&m->at_gate) ||
           (load_sc(&m->state) == M_BLOCKED && load_acq(&m->deep) == 0);
}

static bool all_outside(void)
{
    mutex_lock(&world.lock); /* who ends is inside until it lets go of that */
    struct m *m = world.ms;
    while (m != NULL && stands_outside(m)) {
        m = m->next;
    }
    mutex_unlock(&world.lock);
    /* acquire: pairs with world_leave_stranger. */
    return m == NULL && load_acq(&world.strangers) == 0;
}

static void shut_gate(void)
{
    store_rlx(&world.forker, os_gettid());
    store_sc(&world_gate, (uint32_t)GATE_SHUT);
    /* acquire: pairs with world_init */
    if (load_acq(&world.started) && world.gate_at_rest == GATE_OPEN && !os_fence_threads()) {
        world.gate_at_rest = GATE_WATCHED; /* refused since the start */
        os_sleep_ns(10000000);             /* once: what was on its way to memory is there */
    }
    fence_sc(); /* the gate, then busy and strangers; pairs with gate_is_shut */
    int64_t pause = 10000;
    for (int64_t waited = 0; !all_outside(); waited += pause) {
        if (waited > GATE_PATIENCE_NS) {
            warnf("fork: a thread does not leave the library; the child will have no heap");
            store_sc(&world_gate, (uint32_t)GATE_BROKEN);
            return;
        }
        pause = pause < GATE_ROUND_NS ? pause * 2 : pause;
        os_sleep_ns(pause);
    }
}

static void open_gate(void)
{
    store_rlx(&world.forker, 0);
    store_sc(&world_gate, world.gate_at_rest); /* release: pairs with gate_is_shut */
    os_futex_wake(&world_gate, INT_MAX);
}

/* The library's threads come to their safepoints and stay there; no other thread forks. Waited for as a
 * blocked thread: the collector may need an answer to get there. */
NOINLINE void world_hold(struct m *m)
{
    if (m != NULL) {
        m_enter_blocking(m, FRAME_END);
    }
    mutex_lock(&world.fork_lock);
    store_sc(&world.fork_pending, 1u);
    fence_sc();
    for (;;) {
        uint32_t active = load_sc(&world.lib_active);
        if (active == 0) {
            break;
        }
        os_futex_wait(&world.lib_active, active, 1000000);
    }
    if (m != NULL) {
        m_exit_blocking(m);
    }
}

void world_let_go(void)
{
    store_sc(&world.fork_pending, 0u);
    os_futex_wake(&world.fork_pending, INT_MAX);
    mutex_unlock(&world.fork_lock);
}

/* Of the fork in progress, under fork_lock. */
static struct {
    struct m *m;      /* of the thread that forks; NULL: it was not attached when that began */
    sigset_t signals; /* its mask */
    bool by_first;    /* it is the process's first */
} forking;

/* Asked in each of the three handlers of a fork, and the same in all of them. A handler of the program over the library
 * that forks: the collector may wait for the code below. */
static bool forks_without_heap(const struct m *m)
{
    return load_rlx(&world_gate) == GATE_NO_HEAP || (m != NULL && m_busy(m) != 0 && !m->forks);
}

/* Bring the process to a state that a single thread can go on from: the library's threads at their
 * safepoints, all others outside. No lock is held over the fork but fork_lock: who breaks the gate may want it.
 * Signals stay blocked until it is done: a handler that allocates would change what the child is to find whole. */
static void fork_prepare(void)
{
    sigset_t before;
    block_signals(&before);
    struct m *m = m_self; /* no handler attaches it any more */
    if (forks_without_heap(m)) {
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return;
    }
    world_hold(m);
    forking.m = m;
    forking.signals = before;
    forking.by_first = os_gettid() == getpid() && !world.forked;
    if (m != NULL) {
        m->forks = true;
        m_enter(m);
    }
    shut_gate();
}

static void leave_fork(struct m *m, const sigset_t *signals)
{
    if (m != NULL) {
        m->forks = false;
        m_leave(m);
    }
    pthread_sigmask(SIG_SETMASK, signals, NULL);
}

static void fork_parent(void)
{
    if (forks_without_heap(m_self)) {
        return;
    }
    struct m *m = forking.m;
    sigset_t signals = forking.signals;
    open_gate();
    world_let_go();
    leave_fork(m, &signals);
}

static void bury_others(const struct m *self)
{
    for (struct m *m = world.ms; m != NULL;) {
        struct m *next = m->next;
        if (m != self) {
            store_rlx(&m->ack, load_rlx(&m->request));
            bury_locked(m);
        }
        m = next;
    }
}

static void fork_child(void)
{
    struct m *self = m_self;
    if (forks_without_heap(self)) {
        store_sc(&world_gate, (uint32_t)GATE_NO_HEAP);
        return;
    }
    os_modules_fork_child();
    os_thread_fork_child();
    memset(&world.lock, 0, sizeof world.lock);
    memset(&world.stop_lock, 0, sizeof world.stop_lock);
    memset(&world.handshake_lock, 0, sizeof world.handshake_lock);
    memset(&world.fork_lock, 0, sizeof world.fork_lock);
    store_rlx(&world.remaining, 0u);
    store_rlx(&world.lib_active, 0u);
    store_rlx(&world.strangers, 0u);
    store_rlx(&world.fork_pending, 0u);
    /* Once the gate is broken the collector may stop the world. */
    store_rlx(&world.is_stopped, false);
    world.stopper = NULL;
    world.forked = !forking.by_first;
    bool whole = load_rlx(&world_gate) != GATE_BROKEN;
    trace_fork_child(self, whole);
    if (self != NULL) {
        self->tid = os_gettid();
        store_rlx(&self->ack, load_rlx(&self->request));
        store_rlx(&self->stop, 0u);
    }
    if (load_rlx(&world.started)) {
        world.fork_child(whole);
    }
    if (whole) {
        bury_others(self);
        open_gate();
    } else {
        store_sc(&world_gate, (uint32_t)GATE_NO_HEAP);
    }
    leave_fork(forking.m, &forking.signals);
}

static bool handles_fork;

/* Before most of the program's own, so that fork calls these after them: a handler of the program may want a lock that
 * a thread holds which waits at the gate. */
__attribute__((constructor(101))) static void handle_fork(void)
{
    handles_fork = handles_fork || pthread_atfork(fork_prepare, fork_parent, fork_child) == 0;
}

bool world_init(void)
{
    bool changed;
    if (world.signo == 0) {
        world.signo = SIGURG;
    }
    if (pthread_key_create(&exit_key, on_thread_exit) != 0) {
        return false;
    }
    os_tls_init();
    handle_fork();
    if (!handles_fork || os_signal_install(world.signo, on_signal, &changed) != 0) {
        pthread_key_delete(exit_key);
        return false;
    }
    world.gate_at_rest = os_fence_threads() ? GATE_OPEN : GATE_WATCHED;
    uint32_t gate = GATE_OPEN;
    store_rel(&world.started, true); /* release: gate_at_rest; pairs with shut_gate */
    (void)cas_acqrel(&world_gate, &gate,
                     world.gate_at_rest); /* shut: who forks waits for us, and opens it */
    return true;
}

void world_check_signal(void)
{
    bool changed = false;
    if (os_signal_install(world.signo, on_signal, &changed) == 0 && changed) {
        warnf(
            "the program replaced the handler of signal %d, which the collector uses; it is back, "
            "and calls the program's (loam_set_signal chooses another)",
            world.signo);
    }
}
