/* assist.c - allocators pay for their growth in marking, so that the heap keeps to its goal.
 *
 * Model       debt += bytes allocated * (scan work left / bytes left to the goal); paid first from what
 *             the background did ahead, then by marking, never for longer than ASSIST_NS at a time; the
 *             rest stays as debt. Where there is nothing to take and the heap is at its goal, the
 *             thread waits a moment for the markers.
 * From Go     gcAssistAlloc; differs: bounded per allocation, the rest is carried.
 * Tests       tests/stress, bench/latency.c
 */
#include "gc/work.h"

#include "gc/mark.h"

enum {
    ASSIST_NS = 100000,      /* longest marking stretch of an allocation */
    ASSIST_WAIT_NS = 100000, /* longest wait for others */
    ASSIST_MIN = 32 << 10,   /* bytes of scan work worth beginning for */
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

void gc_assist(struct m *m, size_t bytes)
{
    uint64_t per_mib = load_rlx(&gc.pacer.assist_work_per_mib);
    double owed = (double)bytes * (double)per_mib / (double)MIB(1);
    m->assist_debt += owed > (double)MIB(64) ? (int64_t)MIB(64) : (int64_t)owed;
    if (m->assist_debt < ASSIST_MIN) {
        return;
    }
    m->assist_debt -= take_credit(m->assist_debt);
    if (m->assist_debt < ASSIST_MIN) {
        return;
    }
    int64_t begin = os_nanotime();
    m_enter(m);
    int64_t done = (int64_t)gc_drain(&m->work, (uint64_t)m->assist_debt, begin + ASSIST_NS);
    m_leave(m);
    m->assist_debt -= done;
    if (done == 0 && load_rlx(&gc.live) > load_rlx(&gc.pacer.assist_goal) &&
        load_rlx(&gc.phase) == GC_MARK) {
        m_enter_blocking(m);
        uint32_t seq = load_rlx(&gc.work_seq);
        add_rlx(&gc.sleepers, 1u);
        os_futex_wait(&gc.work_seq, seq, ASSIST_WAIT_NS);
        sub_rlx(&gc.sleepers, 1u);
        m_exit_blocking(m);
    }
    int64_t took = os_nanotime() - begin;
    add_rlx(&gc.assist_time, took);
    add_rlx(&m->assist_ns, (uint64_t)took);
    m_count_pause(m, took);
}
