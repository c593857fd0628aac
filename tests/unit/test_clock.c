/* test_clock.c - a cycle is forced when there was none for long.
 *
 * Claim   After the first cycle one follows another at the period, here a tenth of a second, without any
 *         allocation; not before the first; not with GOGC off, and again when it is turned on. They do not
 *         count as asked for by the program. No helper marks in them, until the program asks for a cycle.
 */
#include "gc/gc.h"

#include "loam/stats.h"

#include <setjmp.h>
#include <stdarg.h>
#include <time.h>

#include <cmocka.h>
#include <loam.h>

static const int64_t PERIOD = 100000000;

/* Not os_sleep_ns: of a system call that is not the C library's the thread sanitizer knows nothing, and holds the
 * library's signal back until it has ended. */
static void sleep_ns(int64_t ns)
{
    struct timespec left = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    while (nanosleep(&left, &left) != 0) {
    }
}

static uint32_t cycles_in(int64_t ns)
{
    loam_memstats before, after;
    loam_read_memstats(&before);
    sleep_ns(ns);
    loam_read_memstats(&after);
    assert_int_equal(after.num_forced_gc, before.num_forced_gc);
    return after.num_gc - before.num_gc;
}

static void test_clock(void **state)
{
    (void)state;
    gc.period_ns = PERIOD;
    assert_non_null(loam_alloc(100));
    assert_int_equal(cycles_in(5 * PERIOD), 0);
    loam_gc();
    assert_in_range(cycles_in(20 * PERIOD), 2, 20);
    loam_set_gc_percent(-1);
    sleep_ns(2 * PERIOD);
    assert_int_equal(cycles_in(5 * PERIOD), 0);
    loam_set_gc_percent(100);
    assert_in_range(cycles_in(20 * PERIOD), 2, 21);
}

/* -- helpers are left alone -------------------------------------------------------------------- */

static void (*library_starts)(void);
static void (*library_ended)(void);
static _Atomic uint32_t cycles;
static _Atomic int64_t helped_ns;

/* On the collector's thread, after each cycle. */
static void note_cycle(void)
{
    add_rlx(&helped_ns, gc.last.idle_ns);
    add_acqrel(&cycles, 1u);
    library_ended();
}

static void watch_cycles(void)
{
    library_starts();
    library_ended = gc.cycle_ended;
    gc.cycle_ended = note_cycle;
}

/* A heap that helpers would be woken for. */
static void test_quiet(void **state)
{
    enum { OBJECTS = 400000, CYCLES = 3 };
    (void)state;
    loam_set_gc_percent(-1);
    sleep_ns(2 * PERIOD);
    void **all = loam_alloc(OBJECTS * sizeof *all);
    assert_non_null(all);
    for (size_t i = 0; i < OBJECTS; i++) {
        LOAM_SET(all[i], loam_alloc(48));
    }
    loam_gc();
    uint32_t before = load_acq(&cycles);
    store_rlx(&helped_ns, INT64_C(0));
    loam_set_gc_percent(100000); /* the clock runs, and nothing else calls for a cycle */
    for (int i = 0; i < 1000 && load_acq(&cycles) < before + CYCLES; i++) {
        sleep_ns(PERIOD / 10);
    }
    assert_true(load_acq(&cycles) >= before + CYCLES);
    assert_int_equal(load_rlx(&helped_ns), 0);
    int64_t begin = os_nanotime();
    loam_gc();
    assert_true(os_nanotime() - begin < 20 * PERIOD);
    loam_keep_alive(all);
}

int main(void)
{
    library_starts = gc.at_start;
    gc.at_start = watch_cycles;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clock),
        cmocka_unit_test(test_quiet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
