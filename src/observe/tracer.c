/* tracer.c - loam_trace_start: the thread that takes events out of the rings.
 *
 * Purpose     What threads have noted goes to the trace's descriptor, to the flight recorder, or to both.
 * Model       loam-trace is there while one of the two is on. It drains all rings ten times a second, when a ring is half
 *             full and after a pause that is too long. Nobody waits for it: where it is too slow, or its reader is, events
 *             are dropped and counted.
 * Locking     tracer.calls: one start, stop or write at a time. tracer.lock: what the thread works on. Both are waited for
 *             as a blocked thread, and never by who holds off a fork. Under them world.lock, gc.pacer_lock.
 * From Go     trace.go (the reader), runtime/trace; differs: events are text at once, so that no tool of ours is needed to
 *             read them.
 * Tests       tests/api/trace.c
 */
#include "observe/tracer.h"

#include "base/check.h"
#include "malloc/malloc.h"
#include "sched/sched.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <loam/stats.h>

enum {
    TICK_NS = 100000000,
    SAMPLE_NS = 10000000, /* between two looks at the figures, at least */
    NAMES = 1024,         /* threads whose name is known; a power of two */
};

static struct {
    struct mutex calls;
    struct mutex lock;
    bool runs;               /* under calls: the thread is there, the rings are on */
    bool told;               /* under lock, as what follows: why the trace has ended by itself */
    struct trace_out out;    /* of the trace */
    uint64_t dropped;        /* by rings, ever */
    uint64_t dropped_before; /* when the trace began */
    uint64_t dropped_told;
    int64_t sampled;
    struct {
        bool known;
        uint32_t tid;
        char name[OS_THREAD_NAME];
    } names[NAMES];
    _Atomic bool quit;
    _Atomic uint32_t ended; /* futex: the thread touches nothing any more */
} tracer;

void *tracer_map(size_t bytes)
{
    void *at = os_map(bytes);
    add_rlx(&heap.stats.trace_bytes, at != NULL ? (uint64_t)bytes : UINT64_C(0));
    return at;
}

void tracer_unmap(void *at, size_t bytes)
{
    os_release(at, bytes);
    sub_rlx(&heap.stats.trace_bytes, (uint64_t)bytes);
}

/* -- calls ------------------------------------------------------------------------------------- */

/* Single-threaded; what the parent's thread had in hand is its own. */
static void fork_child(void)
{
    trace_out_close(&tracer.out);
    recorder_fork_child();
    memset(&tracer, 0, sizeof tracer);
}

bool tracer_enter(struct tracer_call *c, const char *name)
{
    c->m = malloc_self();
    if (c->m == NULL) {
        return false;
    }
    CHECK(m_busy(c->m) == 0, "%s was called by a signal handler, over the library", name);
    m_begin_wait(c->m, &c->wait);
    store_rlx(&trace.fork_child, fork_child); /* before a child can inherit the lock */
    mutex_lock(&tracer.calls);
    return true;
}

void tracer_leave(struct tracer_call *c)
{
    mutex_unlock(&tracer.calls);
    m_end_wait(c->m, &c->wait);
}

void tracer_lock(void)
{
    mutex_lock(&tracer.lock);
    world_lib_resume();
}

void tracer_unlock(void)
{
    world_lib_pause();
    mutex_unlock(&tracer.lock);
}

/* -- draining ---------------------------------------------------------------------------------- */

/* A thread that ends may lose its name first. */
static void know_thread(uint32_t tid)
{
    uint32_t i = tid % NAMES;
    if (tracer.names[i].tid == tid && tracer.names[i].known) {
        return;
    }
    tracer.names[i].known = true;
    tracer.names[i].tid = tid;
    if (tid == 0) { /* steps of a cycle without a thread of its own */
        strcpy(tracer.names[i].name, "loam-gc");
    } else if (!os_thread_name((int)tid, tracer.names[i].name)) {
        strcpy(tracer.names[i].name, "(ended)");
    }
    if (tracer.out.buf != NULL) {
        trace_out_thread(&tracer.out, tid, tracer.names[i].name);
    }
}

void tracer_names(struct trace_out *o)
{
    for (uint32_t i = 0; i < NAMES; i++) {
        if (tracer.names[i].known) {
            trace_out_thread(o, tracer.names[i].tid, tracer.names[i].name);
        }
    }
}

static void consume(const struct trace_event *e)
{
    if (tracer.out.buf != NULL) {
        trace_out_event(&tracer.out, e);
    }
    recorder_put(e);
}

static void figure(enum trace_kind kind, int64_t now, uint64_t a, uint64_t b)
{
    struct trace_event e = {.begin = now, .end = now, .a = a, .b = b, .kind = kind};
    consume(&e);
}

static void sample(void)
{
    int64_t now = os_nanotime();
    if (now - tracer.sampled < SAMPLE_NS) {
        return;
    }
    tracer.sampled = now;
    mutex_lock(&gc.pacer_lock);
    uint64_t goal = gc.pacer.goal;
    mutex_unlock(&gc.pacer_lock);
    figure(TRACE_HEAP, now, load_rlx(&gc.live), goal);
    figure(TRACE_LIMITS, now, load_rlx(&gc.trigger), load_rlx(&heap.limit));
    if (load_acq(&sched.started)) { /* acquire: the Ps; pairs with start_locked */
        uint64_t procs = (uint64_t)load_rlx(&sched.procs);
        uint64_t idle = load_rlx(&sched.nidle_ps);
        figure(TRACE_SCHED, now, load_rlx(&sched.ngs), procs > idle ? procs - idle : 0);
    }
    uint64_t dropped = tracer.dropped - tracer.dropped_before + tracer.out.dropped;
    if (dropped != tracer.dropped_told) {
        tracer.dropped_told = dropped;
        figure(TRACE_DROPPED, now, dropped, 0);
    }
}

void tracer_drain(void)
{
    struct trace_event e;
    /* acquire: its next; pairs with new_ring_locked */
    for (struct trace_ring *ring = load_acq(&trace.rings); ring != NULL; ring = ring->next) {
        for (int i = 0; i < TRACE_SLOTS && trace_take(ring, &e); i++) {
            know_thread(e.tid);
            consume(&e);
        }
        tracer.dropped += xchg_rlx(&ring->dropped, 0u); /* relaxed: a count */
    }
    sample();
}

uint64_t tracer_dropped(void)
{
    return tracer.dropped;
}

static void look_for_pause(void)
{
    uint64_t ns = xchg_rlx(&trace.pause_ns, UINT64_C(0));
    if (ns != 0) {
        int64_t now = os_nanotime();
        struct trace_event e = {.begin = now,
                                .end = now,
                                .a = ns,
                                .tid = load_rlx(&trace.pause_tid),
                                .kind = TRACE_PAUSE};
        uint64_t bound = load_rlx(&trace.pause_bound);
        consume(&e);
        if (bound != 0 && ns >= bound) { /* else it was an earlier recorder's */
            recorder_pause();
        }
    }
}

/* Nobody takes what is written any more. */
static void look_for_error(void)
{
    if (tracer.out.buf != NULL && tracer.out.err != 0 && !tracer.told) {
        tracer.told = true;
        warnf("the execution trace has ended, for it cannot be written: error %d", tracer.out.err);
        if (!recorder_is_on()) {
            trace_switch_off();
        }
    }
}

static void tracer_main(void *arg)
{
    (void)arg;
    while (!load_acq(&tracer.quit)) { /* acquire: pairs with tracer_rest */
        uint32_t seen = load_acq(&trace.word);
        tracer_lock();
        tracer_drain();
        if (tracer.out.buf != NULL) {
            trace_out_flush(&tracer.out, 0);
        }
        look_for_pause();
        look_for_error();
        tracer_unlock();
        os_futex_wait(&trace.word, seen, TICK_NS);
    }
    store_rel(&tracer.ended, 1u); /* release: it is done; pairs with tracer_rest */
    os_futex_wake(&tracer.ended, 1);
}

/* -- on and off -------------------------------------------------------------------------------- */

int tracer_run(void)
{
    if (tracer.runs) {
        trace_switch_on(); /* a trace that has ended by itself may have switched it off */
        return 0;
    }
    memset(tracer.names, 0, sizeof tracer.names); /* numbers may be others' by now */
    store_rlx(&tracer.quit, false);
    store_rlx(&tracer.ended, 0u);
    int err = os_thread_start(tracer_main, NULL, "loam-trace");
    if (err == 0) {
        tracer.runs = true;
        trace_switch_on();
    }
    return err;
}

void tracer_rest(void)
{
    if (!tracer.runs || tracer.out.buf != NULL || recorder_is_on()) {
        return;
    }
    trace_switch_off();
    store_rel(&tracer.quit, true); /* release: pairs with tracer_main */
    trace_wake_reader();
    while (load_acq(&tracer.ended) == 0) { /* acquire: pairs with tracer_main */
        os_futex_wait(&tracer.ended, 0, -1);
    }
    tracer.runs = false;
}

/* With the lock. 0, or an errno value. */
static int open_trace(int fd)
{
    if (tracer.out.buf != NULL) {
        return EBUSY;
    }
    int err = trace_out_open(&tracer.out, fd, os_nanotime());
    if (err != 0) {
        return err;
    }
    trace_out_head(&tracer.out);
    tracer_names(&tracer.out);
    tracer.told = false;
    tracer.sampled = 0;
    tracer.dropped_before = tracer.dropped;
    tracer.dropped_told = 0;
    return 0;
}

int loam_trace_start(int fd)
{
    struct tracer_call call;
    if (!tracer_enter(&call, "loam_trace_start")) {
        return -1;
    }
    tracer_lock();
    tracer_drain(); /* what is left from an earlier one */
    int err = open_trace(fd);
    tracer_unlock();
    if (err == 0) {
        err = tracer_run();
        if (err != 0) {
            trace_out_close(&tracer.out);
        }
    }
    tracer_leave(&call);
    errno = err != 0 ? err : errno;
    return err == 0 ? 0 : -1;
}

static void close_trace(void)
{
    struct trace_out *o = &tracer.out;
    tracer.sampled = 0; /* how it ended */
    tracer_drain();
    trace_out_tail(o, tracer.dropped - tracer.dropped_before);
    trace_out_flush(o, TRACER_PATIENCE_NS);
    if (o->n != 0 && o->err == 0) {
        o->err = ETIMEDOUT;
    }
    look_for_error();
    trace_out_close(o);
}

void loam_trace_stop(void)
{
    struct tracer_call call;
    if (!tracer_enter(&call, "loam_trace_stop")) {
        return;
    }
    tracer_lock();
    if (tracer.out.buf != NULL) {
        close_trace();
    }
    tracer_unlock();
    tracer_rest();
    tracer_leave(&call);
}
