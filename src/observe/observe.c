/* observe.c - each cycle's end is recorded.
 *
 * Purpose     The collector calls cycle_ended after each cycle, before anybody who waits for it
 *             goes on.
 * Locking     observe.lock: the record.
 * Tests       tests/unit/test_memstats.c, tests/api/memstats.c
 */
#include "observe/observe.h"

#include "observe/profile.h"

struct observe observe;

static void record_cycle(const struct gc_cycle_stats *st)
{
    size_t i = (st->number + PAUSE_RING - 1) % PAUSE_RING;
    mutex_lock(&observe.lock);
    observe.num_gc = st->number;
    observe.num_forced = load_rlx(&gc.num_forced);
    observe.last_gc = (uint64_t)st->last_walltime;
    observe.pause_ns[i] = st->pause_max_ns;
    observe.pause_end[i] = (uint64_t)st->last_walltime;
    mutex_unlock(&observe.lock);
}

static void cycle_ended(void)
{
    record_cycle(&gc.last);
    if (gc.options.trace > 0) {
        gctrace_print_cycle();
    }
    if (gc.options.pacer_trace > 0) {
        gctrace_print_pacer();
    }
    if (gc.options.scavenge_trace > 0) {
        gctrace_print_scavenger(false);
    }
}

double observe_gc_cpu_fraction(void)
{
    double all = (double)gc_count_processors();
    /* relaxed: a report */
    double used =
        (double)(load_rlx(&gc.cpu.assist) + load_rlx(&gc.cpu.dedicated) + load_rlx(&gc.cpu.idle));
    if (all <= 0 || used <= 0) {
        return 0;
    }
    return used < all ? used / all : 1;
}

void observe_init(void)
{
    if (observe.start == 0) {
        observe.start = os_nanotime();
        (void)gc_count_processors();
    }
    gc.cycle_ended = cycle_ended;
    profile_init();
}
