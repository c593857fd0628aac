/* assist.c - allocators pay for their growth in marking, so that the heap keeps to its goal.
 *
 * Model       debt += bytes allocated * (scan work left / bytes left to the goal); paid first from what
 *             the background did ahead, then by marking, never for longer than ASSIST_NS at a time; the
 *             rest stays as debt. Where there is nothing to take and the heap is over its goal, the
 *             thread waits a moment for the markers.
 * From Go     gcAssistAlloc; differs: bounded per allocation, the rest is carried.
 * Tests       tests/stress, bench/latency.c
 */
#include "gc/work.h"

#include "gc/mark.h"
#include "world/probe.h"

enum {
    ASSIST_NS = 100000,    /* longest marking stretch of an allocation */
    ASSIST_MIN = 32 << 10, /* bytes of scan work worth beginning for */
    WAIT_NS = 100000,      /* for the collector's next step, close to the goal */
};

static int64_t take_credit(int64_t debt)
{
    int64_t credit = load_rlx(&gc.bg_credit); /* relaxed: an account, checked by the exchange */
    while (credit > 0) {
        int64_t take = credit < debt ? credit : debt;
        if (cas_rlx(&gc.bg_credit, &credit, credit - take)) {
            return take;
        }
    }
    return 0;
}

/* Over the goal, with nothing to mark: before the mark phase and between its rounds the caller lets the
 * threads that have not yet answered have the processor. Far over it, longer: there the collector has not had
 * one for milliseconds. A little over it not at all (0): where all processors are busy, who waits a tenth of a
 * millisecond may come back after some. */
static int64_t must_wait_ns(void)
{
    uint64_t goal = load_rlx(&gc.pacer.assist_goal);
    uint64_t live = load_rlx(&gc.live);
    if (goal == 0 || live <= goal + goal / 32 || (load_acq(&gc.phase) == GC_OFF && !gc_is_due())) {
        return 0;
    }
    return live - goal < goal / 8 ? WAIT_NS : 10 * WAIT_NS;
}

static int64_t owed(size_t bytes)
{
    double per_mib = (double)load_rlx(&gc.pacer.assist_work_per_mib);
    double work = (double)bytes * per_mib / (double)MIB(1);
    return work > (double)MIB(64) ? (int64_t)MIB(64) : (int64_t)work;
}

static void count(struct m *m, int64_t took)
{
    add_rlx(&gc.assist_time, took);
    add_rlx(&m->assist_ns, (uint64_t)took);
    m_count_pause(m, took);
    histogram_add(&gc.assists, took);
}

/* Marking on the caller's processor time; false: there was nothing to take. */
static bool mark_some(struct m *m)
{
    int64_t begin = os_thread_cputime();
    int64_t traced = trace_begin(&m->trace);
    PROBE(assist_begin);
    m_enter(m);
    int64_t done = (int64_t)gc_drain(&m->work, (uint64_t)m->assist_debt, os_nanotime() + ASSIST_NS);
    int64_t took = os_thread_cputime() - begin;
    PROBE1(assist_end, done);
    trace_end(&m->trace, TRACE_ASSIST, traced, (uint64_t)done, 0);
    m_leave(m); /* which may answer, and counts that itself */
    m->assist_debt -= done;
    count(m, took);
    return done != 0;
}

void gc_assist(struct m *m, size_t bytes)
{
    if (unlikely(load_rlx(&gc.limiting))) {
        return;
    }
    if (load_acq(&gc.phase) == GC_MARK) { /* acquire: pairs with the cycle */
        m->assist_debt += owed(bytes);
        if (m->assist_debt < ASSIST_MIN) {
            return;
        }
        m->assist_debt -= take_credit(m->assist_debt);
        if (m->assist_debt < ASSIST_MIN || mark_some(m)) {
            return;
        }
    }
    int64_t wait = must_wait_ns();
    if (wait != 0) {
        gc_count_wait(m, gc_wait_progress(m, wait)); /* no processor's time: not gc.assist_time */
    }
}
