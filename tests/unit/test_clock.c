/* test_clock.c - a cycle is forced when there was none for long.
 *
 * Claim   After the first cycle one follows another at the period, here a tenth of a second, without any
 *         allocation; not before the first; not with GOGC off, and again when it is turned on. They do not
 *         count as asked for by the program.
 */
#include "gc/gc.h"

#include "loam/stats.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const int64_t PERIOD = 100000000;

static uint32_t cycles_in(int64_t ns)
{
    loam_memstats before, after;
    loam_read_memstats(&before);
    os_sleep_ns(ns);
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
    os_sleep_ns(2 * PERIOD);
    assert_int_equal(cycles_in(5 * PERIOD), 0);
    loam_set_gc_percent(100);
    assert_in_range(cycles_in(20 * PERIOD), 2, 21);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_clock)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
