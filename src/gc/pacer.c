/* pacer.c - Go's pacer.
 *
 * Model       goal    = marked + (marked + stacks + globals) * GOGC / 100, at least 4 MiB * GOGC / 100
 *             with a memory limit not above
 *                       limit - what is neither objects nor free pages - what is mapped beyond the limit
 *                       - headroom (3 %, at least 1 MiB), and a little above marked; GOGC=off has it, too
 *             runway  = cons/mark * (1 - u) / u * scan work expected
 *             trigger = goal - runway, between 70 % and 95 % of the way from marked to goal; not below
 *                       the program's min_heap, which takes the goal with it
 *             assist  = (scan work left) / (bytes left to the goal)
 * From Go     mgcpacer.go; section 2.10 of the reference names each constant. Differs: a first cycle
 *             has no history and assumes that all of the live heap is to be scanned; the goal of a cycle that
 *             finds more than the last one does not leave the limit; a limit below the live heap does not make
 *             cycles without allocation.
 * Tests       tests/unit/test_pacer.c
 */
#include "gc/pacer.h"

#include "base/bits.h"

static const uint64_t GO_MIN_HEAP = 4 << 20; /* at GOGC=100 */

/* A limit that cannot be kept asks for a cycle at once, always: one for each 128th of the heap is as good. */
enum { LEAST_ROOM = 128, LEAST_ROOM_BYTES = 256 << 10 };

void pacer_init(struct pacer *p, int gc_percent)
{
    p->gc_percent = gc_percent;
    p->min_heap = -1;
    p->memory = (struct pacer_memory){.limit = PACER_NO_LIMIT};
    pacer_commit(p);
}

/* Products of large settings are larger than any heap: a conversion never overflows. */
static uint64_t bytes_of(double bytes)
{
    return bytes < 0x1p62 ? (uint64_t)bytes : UINT64_C(1) << 62;
}

static double roots_scan(const struct pacer *p)
{
    return (double)p->stack_scan + (double)p->globals_scan;
}

static double expected_scan(const struct pacer *p)
{
    return (double)p->heap_scan + roots_scan(p);
}

int64_t pacer_min_heap(const struct pacer *p)
{
    if (p->min_heap >= 0) {
        return p->min_heap;
    }
    return p->gc_percent < 0 ? 0 : (int64_t)GO_MIN_HEAP * p->gc_percent / 100;
}

/* No cycle below min_heap; once it is due, it has the same runway as any other, within bounds. */
static void raise_to_min_heap(struct pacer *p, uint64_t runway)
{
    uint64_t least = p->min_heap < 0 ? 0 : (uint64_t)p->min_heap;
    if (p->trigger < least) {
        uint64_t shortest = least / 16;
        uint64_t longest = least / 4;
        p->trigger = least;
        runway = runway < shortest ? shortest : runway > longest ? longest : runway;
        p->goal = p->goal < least + runway ? least + runway : p->goal;
    }
}

static uint64_t percent_goal(const struct pacer *p)
{
    if (p->gc_percent < 0) {
        return UINT64_MAX;
    }
    double percent = p->gc_percent;
    uint64_t goal = p->marked + bytes_of(((double)p->marked + roots_scan(p)) * percent / 100.0);
    if (p->min_heap < 0) {
        uint64_t floor = bytes_of((double)GO_MIN_HEAP * percent / 100.0);
        goal = goal < floor ? floor : goal;
    }
    return goal;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

/* Go's memoryLimitHeapGoal. */
static uint64_t limit_goal(const struct pacer *p)
{
    const struct pacer_memory *mem = &p->memory;
    if (mem->limit == PACER_NO_LIMIT) {
        return UINT64_MAX;
    }
    uint64_t headroom = mem->limit / 100 * 3;
    headroom = headroom < MIB(1) ? MIB(1) : headroom;
    uint64_t goal = less(mem->limit, mem->overhead) + mem->external;
    goal = less(less(goal, less(mem->mapped, mem->limit)), headroom);
    uint64_t least = p->marked + p->marked / LEAST_ROOM + LEAST_ROOM_BYTES;
    return goal < least ? least : goal;
}

void pacer_commit(struct pacer *p)
{
    uint64_t limit = limit_goal(p);
    p->goal = percent_goal(p);
    bool limited = limit < p->goal;
    p->goal = limited ? limit : p->goal;
    if (p->goal == UINT64_MAX) {
        p->trigger = UINT64_MAX;
        store_rlx(&p->assist_goal, UINT64_MAX);
        return;
    }

    double cons_mark = 0;
    for (int i = 0; i < 4; i++) {
        cons_mark = p->cons_mark[i] > cons_mark ? p->cons_mark[i] : cons_mark;
    }
    uint64_t runway =
        bytes_of(cons_mark * (1 - PACER_UTILIZATION) / PACER_UTILIZATION * expected_scan(p));
    uint64_t room = p->goal - p->marked;
    uint64_t low = p->marked + room / 64 * 45;
    uint64_t high = p->marked + room / 64 * 61;
    if (p->goal > GO_MIN_HEAP && high < p->goal - GO_MIN_HEAP) {
        high = p->goal - GO_MIN_HEAP;
    }
    p->trigger = runway > p->goal ? low : p->goal - runway;
    p->trigger = p->trigger < low ? low : p->trigger > high ? high : p->trigger;
    if (!limited) {
        raise_to_min_heap(p, runway);
    }
    store_rlx(&p->assist_goal, p->goal);
}

void pacer_start_cycle(struct pacer *p, uint64_t live)
{
    p->triggered = live;
    if (p->goal != UINT64_MAX && p->goal < live + KIB(64)) {
        p->goal = live + KIB(64);
    }
    pacer_revise(p, live, 0);
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

void pacer_revise(struct pacer *p, uint64_t live, uint64_t scan_done)
{
    double heap = (double)live;
    double done = (double)scan_done;
    double goal = p->goal == UINT64_MAX ? heap * 1.5 + (double)MIB(1) : (double)p->goal;
    double expected = expected_scan(p);
    double worst = heap + roots_scan(p);
    if (done >= expected || expected <= 0) {
        /* More than last time: the worst case is that all of the heap is live and scannable; the goal
         * moves in proportion, but not further than one more GOGC. */
        if (expected > 0 && p->gc_percent >= 0) {
            double began = (double)p->triggered;
            double grown = (goal - began) / expected * worst + began;
            double cap = goal * (1.0 + p->gc_percent / 100.0);
            double limit = (double)limit_goal(p);
            cap = cap < limit ? cap : larger(limit, goal);
            goal = larger(goal, grown < cap ? grown : cap);
        }
        expected = larger(worst, done);
    }
    if (heap > goal) {
        goal *= 1.1;
        expected = larger(worst, expected);
    }
    double left = larger(expected - done, 1000);
    double room = larger(goal - heap, 1);
    double per_mib = left / room * (double)MIB(1);
    store_rlx(&p->assist_work_per_mib, per_mib > 1e15 ? UINT64_C(1) << 49 : (uint64_t)per_mib + 1);
    store_rlx(&p->assist_goal, bytes_of(goal));
}

void pacer_end_cycle(struct pacer *p, const struct pacer_cycle *c)
{
    double cpu = c->duration_ns * c->procs;
    if (cpu > 0 && c->scan_work > 0) {
        double util = PACER_UTILIZATION + c->assist_ns / cpu;
        double idle = c->idle_ns / cpu;
        util = util > 0.95 ? 0.95 : util;
        double grown = c->live > p->triggered ? (double)(c->live - p->triggered) : 0;
        double cons_mark = grown * (util + idle) / ((double)c->scan_work * (1 - util));
        for (int i = 3; i > 0; i--) {
            p->cons_mark[i] = p->cons_mark[i - 1];
        }
        p->cons_mark[0] = cons_mark;
    }
    p->marked = c->marked;
    p->stack_scan = c->stack_scan;
    p->globals_scan = c->globals_scan;
    uint64_t roots = c->stack_scan + c->globals_scan;
    p->heap_scan = c->scan_work > roots ? c->scan_work - roots : 0;
    pacer_commit(p);
}

void pacer_limiter_init(struct pacer_limiter *l)
{
    *l = (struct pacer_limiter){.share = 0.5};
}

void pacer_limiter_account(struct pacer_limiter *l, int64_t collector_ns, int64_t program_ns,
                           int procs)
{
    double capacity = 1e9 * procs; /* Go's: a second of each processor */
    double fill = (double)collector_ns * (1 - l->share) - (double)program_ns * l->share;
    l->fill_ns += 2 * fill;                 /* as Go's, where the share is a half */
    double most = capacity + capacity / 16; /* what was used too much just now is drained, too */
    l->fill_ns = l->fill_ns < 0 ? 0 : l->fill_ns > most ? most : l->fill_ns;
    l->limiting = l->fill_ns >= capacity;
}
