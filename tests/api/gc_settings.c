/* GOGC and the minimum heap do what they say: cycles come as often as the heap's growth asks, not at all when off, never
 * below the minimum. loam_gc is a whole new cycle.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 120
 * TEST_ENV: GOGC=100 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/threads.h"

static uint32_t cycles(void)
{
    loam_memstats m;
    loam_read_memstats(&m);
    return m.num_gc;
}

static void garbage(void *arg)
{
    for (size_t mib = *(size_t *)arg; mib > 0; mib--) {
        for (int i = 0; i < 1024; i++) {
            EXPECT_NOT_NULL(loam_alloc(1024));
        }
    }
}

static uint32_t cycles_of_garbage(size_t mib)
{
    loam_gc();
    uint32_t before = cycles();
    call_deep(garbage, &mib);
    return cycles() - before;
}

static uint64_t goal(void)
{
    loam_memstats m;
    loam_read_memstats(&m);
    return m.next_gc;
}

/* By the goal, in which the program's own data counts. */
static double expected_cycles(double mib)
{
    return mib * (1 << 20) / (double)goal();
}

static void percent(void)
{
    EXPECT_EQ(loam_set_gc_percent(-1), 100);
    EXPECT_EQ(cycles_of_garbage(100), 0);
    EXPECT(loam_set_gc_percent(100) < 0);
    double normal = cycles_of_garbage(200);
    EXPECT_GE(normal, expected_cycles(200) * 0.4);
    EXPECT_LE(normal, expected_cycles(200) * 4);
    EXPECT_EQ(loam_set_gc_percent(400), 100);
    double seldom = cycles_of_garbage(400);
    EXPECT_GE(seldom, expected_cycles(400) * 0.4);
    EXPECT_LT(seldom, normal);
    EXPECT_EQ(loam_set_gc_percent(100), 400);
}

/* Switched while cycles run, by many threads. */
static _Atomic(bool) stop;

static void *switch_settings(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        loam_set_gc_percent((int)rng_below(&me->rng, 300) - 50);
        loam_set_min_heap((int64_t)rng_below(&me->rng, 16 << 20));
        loam_set_max_procs((int)rng_between(&me->rng, 1, 6));
        loam_set_memory_limit((int64_t)rng_below(&me->rng, 64 << 20) - 100);
        loam_set_gc_cpu_limit((double)rng_below(&me->rng, 120) / 100 - 0.1);
        size_t one = 1;
        garbage(&one);
    }
    return NULL;
}

static void switched_by_many_threads(void)
{
    static struct team team;
    int64_t heap = loam_set_min_heap(-1);
    int procs = loam_set_max_procs(0);
    atomic_store(&stop, false);
    team_start(&team, 4, switch_settings, NULL);
    sleep_us(700000);
    atomic_store(&stop, true);
    team_join(&team);
    loam_set_gc_percent(100);
    loam_set_min_heap(heap);
    loam_set_max_procs(procs);
    loam_set_memory_limit(INT64_MAX);
    loam_set_gc_cpu_limit(0.5);
    EXPECT_GE(cycles_of_garbage(100), 5);
}

static void min_heap(void)
{
    int64_t before = loam_set_min_heap(64 << 20);
    uint32_t n = cycles_of_garbage(200);
    EXPECT_GE(n, 1);
    EXPECT_LE(n, 8); /* not one at every 4 MiB */
    loam_set_gc_percent(10);
    loam_gc();
    n = cycles_of_garbage(200);
    EXPECT_GE(n, 1);
    EXPECT_LE(n, 8); /* in bytes: GOGC does not scale it */
    loam_set_gc_percent(100);
    EXPECT_EQ(loam_set_min_heap(before), 64 << 20);
}

/* loam_gc is a whole new cycle, also when one runs, also from many threads at once. */
static void *collect_some(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20; i++) {
        uint32_t before = cycles();
        loam_gc();
        EXPECT_GT(cycles(), before);
    }
    return NULL;
}

static void only_those_are_forced(void)
{
    loam_memstats before, after;
    loam_read_memstats(&before);
    cycles_of_garbage(100); /* begins with a loam_gc */
    loam_read_memstats(&after);
    EXPECT_GT(after.num_gc, before.num_gc + 1);
    EXPECT_EQ(after.num_forced_gc, before.num_forced_gc + 1);
}

static void collected_by_many_threads(void)
{
    static struct team team;
    team_start(&team, 6, collect_some, NULL);
    team_join(&team);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(percent);
    RUN(switched_by_many_threads);
    RUN(min_heap);
    RUN(only_those_are_forced);
    RUN(collected_by_many_threads);
    return test_end();
}
