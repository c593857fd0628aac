/* GOGC, the memory limit and the minimum heap do what they say: cycles come as often as the heap's growth asks, not at
 * all when off, never below the minimum, and in time to stay near the limit; caches hear of the pressure.
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

static void percent(void)
{
    EXPECT_EQ(loam_set_gc_percent(-1), 100);
    EXPECT_EQ(cycles_of_garbage(100), 0);
    EXPECT(loam_set_gc_percent(100) < 0);
    uint32_t normal = cycles_of_garbage(200); /* at 4 MiB each */
    EXPECT_GE(normal, 20);
    EXPECT_LE(normal, 200);
    EXPECT_EQ(loam_set_gc_percent(400), 100);
    uint32_t seldom = cycles_of_garbage(200);
    EXPECT_GE(seldom, 4);
    EXPECT_LT(seldom * 2, normal);
    EXPECT_EQ(loam_set_gc_percent(100), 400);
}

/* Switched while cycles run, by many threads. */
static _Atomic(bool) stop;

static void *switch_settings(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        loam_set_gc_percent((int)rng_below(&me->rng, 300) - 50);
        loam_set_memory_limit(rng_below(&me->rng, 2) == 0 ? INT64_MAX : (int64_t)rng_between(&me->rng, 8 << 20, 1 << 30));
        loam_set_min_heap((int64_t)rng_below(&me->rng, 16 << 20));
        loam_set_max_procs((int)rng_between(&me->rng, 1, 6));
        size_t one = 1;
        garbage(&one);
        loam_add_external_bytes(1 << 20);
        loam_add_external_bytes(-(1 << 20));
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
    loam_set_memory_limit(INT64_MAX);
    loam_set_min_heap(heap);
    loam_set_max_procs(procs);
    EXPECT_GE(cycles_of_garbage(100), 5);
}

static void min_heap(void)
{
    int64_t before = loam_set_min_heap(64 << 20);
    uint32_t n = cycles_of_garbage(200);
    EXPECT_GE(n, 1);
    EXPECT_LE(n, 8); /* not one at every 4 MiB */
    EXPECT_EQ(loam_set_min_heap(before), 64 << 20);
}

/* Memory outside that heap objects own brings the next cycle nearer. */
static void external_bytes(void)
{
    uint32_t before = cycles();
    for (int i = 0; i < 2000; i++) {
        EXPECT_NOT_NULL(loam_alloc_noscan(64));
        loam_add_external_bytes(1 << 20); /* 2 GB in 128 KB of heap */
    }
    loam_alloc(100000);
    uint32_t after = cycles();
    loam_add_external_bytes(-INT64_C(2000) * (1 << 20));
    EXPECT_GT(after, before);
}

/* A heap of 100 MiB that is alive, garbage beside it, and a limit: what the library maps stays near it. */
static uint64_t mapped(void)
{
    loam_memstats m;
    loam_read_memstats(&m);
    return m.sys - m.heap_released;
}

static _Atomic(unsigned) heard[3];

static void on_pressure(loam_pressure level, void *arg)
{
    EXPECT_PTR_EQ(arg, &heard);
    EXPECT_LT(level, 3);
    EXPECT_NOT_NULL(loam_alloc(100)); /* it may allocate */
    atomic_fetch_add(&heard[level], 1);
}

static void *build_live(size_t mib)
{
    void **table = LOAM_NEW_POINTERS(void, mib * 1024);
    for (size_t i = 0; i < mib * 1024; i++) {
        LOAM_SET(table[i], loam_alloc_noscan(1024));
    }
    return (void *)table;
}

static void memory_limit(void)
{
    const uint64_t limit = 160 << 20;
    EXPECT_EQ(loam_add_pressure_handler(on_pressure, &heard), 0);
    loam_free_os_memory();
    EXPECT_EQ(loam_set_memory_limit((int64_t)limit), INT64_MAX);
    EXPECT_EQ(loam_set_gc_percent(-1), 100); /* only the limit makes cycles now */
    void *live = build_live(100);
    uint32_t before = cycles();
    uint64_t most = 0;
    for (int i = 0; i < 40; i++) {
        size_t mib = 20;
        call_deep(garbage, &mib);
        uint64_t now = mapped();
        most = now > most ? now : most;
    }
    uint32_t n = cycles() - before;
    EXPECT_GE(n, 10); /* 800 MiB through at most 60 */
    EXPECT_MSG(most < limit + limit / 8, "%" PRIu64 " MiB mapped under a limit of %" PRIu64, most >> 20, limit >> 20);
    WAIT_FOR(10, atomic_load(&heard[LOAM_PRESSURE_AT]) > 0 || atomic_load(&heard[LOAM_PRESSURE_NEAR]) > 0);

    /* A limit below what lives: soft, so the program goes on, and the collector leaves it time. */
    loam_set_memory_limit(50 << 20);
    uint64_t start = now_ns();
    size_t mib = 30;
    call_deep(garbage, &mib);
    EXPECT_MSG(seconds_since(start) < 20, "30 MiB took %g s under a limit that cannot be met", seconds_since(start));
    WAIT_FOR(10, atomic_load(&heard[LOAM_PRESSURE_OVER]) > 0);
    loam_keep_alive(live);
    loam_set_memory_limit(INT64_MAX);
    loam_set_gc_percent(100);
    EXPECT_EQ(loam_remove_pressure_handler(on_pressure, &heard), 0);
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
    RUN(external_bytes);
    RUN(memory_limit);
    RUN(collected_by_many_threads);
    return test_end();
}
