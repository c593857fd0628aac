/* loam_memstats is true: on a quiet process its counts are the test's own to the object, its sums add up, and what only
 * grows only grows, also while threads allocate.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: small_heap | GOGC=5 | | 60
 * TEST_RUN: off | GOGC=off | | 60 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/threads.h"

static void check_sums(const loam_memstats *m)
{
    EXPECT_EQ(m->heap_objects, m->mallocs - m->frees);
    EXPECT_EQ(m->alloc, m->heap_alloc);
    EXPECT_LE(m->heap_alloc, m->total_alloc);
    EXPECT_LE(m->heap_alloc, m->heap_inuse);
    EXPECT_EQ(m->heap_sys, m->heap_inuse + m->heap_idle);
    EXPECT_LE(m->heap_released, m->heap_idle);
    EXPECT_LE(m->mspan_inuse, m->mspan_sys);
    EXPECT_LE(m->mcache_inuse, m->mcache_sys);
    EXPECT_LE(m->stack_inuse, m->stack_sys);
    EXPECT_EQ(m->sys, m->heap_sys + m->stack_sys + m->mspan_sys + m->mcache_sys + m->buck_hash_sys +
                          m->gc_sys + m->other_sys);
    EXPECT_EQ(m->lookups, 0);
    EXPECT_LE(m->num_forced_gc, m->num_gc);
    EXPECT(m->enable_gc);
    EXPECT(m->gc_cpu_fraction >= 0 && m->gc_cpu_fraction <= 1);
    uint64_t mallocs = 0, frees = 0;
    for (size_t i = 1; i < COUNT_OF(m->by_size); i++) {
        EXPECT_GT(m->by_size[i].size, m->by_size[i - 1].size);
        EXPECT_LE(m->by_size[i].frees, m->by_size[i].mallocs);
        mallocs += m->by_size[i].mallocs;
        frees += m->by_size[i].frees;
    }
    EXPECT_LE(mallocs, m->mallocs);
    EXPECT_LE(frees, m->frees);
}

static void check_growth(const loam_memstats *a, const loam_memstats *b)
{
    EXPECT_LE(a->total_alloc, b->total_alloc);
    EXPECT_LE(a->mallocs, b->mallocs);
    EXPECT_LE(a->frees, b->frees);
    EXPECT_LE(a->num_gc, b->num_gc);
    EXPECT_LE(a->num_forced_gc, b->num_forced_gc);
    EXPECT_LE(a->pause_total_ns, b->pause_total_ns);
    EXPECT_LE(a->last_gc, b->last_gc);
    for (size_t i = 0; i < COUNT_OF(a->by_size); i++) {
        EXPECT_LE(a->by_size[i].mallocs, b->by_size[i].mallocs);
        EXPECT_LE(a->by_size[i].frees, b->by_size[i].frees);
        EXPECT_EQ(a->by_size[i].size, b->by_size[i].size);
    }
}

/* Go's size classes (runtime/sizeclasses.go). */
static void size_classes(void)
{
    static const uint64_t sizes[68] = {
        0,     8,     16,    24,    32,    48,    64,    80,    96,    112,   128,   144,
        160,   176,   192,   208,   224,   240,   256,   288,   320,   352,   384,   416,
        448,   480,   512,   576,   640,   704,   768,   896,   1024,  1152,  1280,  1408,
        1536,  1792,  2048,  2304,  2688,  3072,  3200,  3456,  4096,  4864,  5376,  6144,
        6528,  6784,  6912,  8192,  9472,  9728,  10240, 10880, 12288, 13568, 14336, 16384,
        18432, 19072, 20480, 21760, 24576, 27264, 28672, 32768};
    loam_memstats m;
    loam_read_memstats(&m);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        EXPECT_EQ(m.by_size[i].size, sizes[i]);
    }
    check_sums(&m);
}

/* With the collector off, every count is exact. */
static void allocations_are_counted(void)
{
    static const size_t sizes[] = {16, 32, 48, 100, 512, 1000, 5000, 32768, 40000, 1000000};
    loam_memstats before, after;
    int percent = loam_set_gc_percent(-1);

    loam_gc();
    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        size_t count = sizes[s] > 30000 ? 20 : 777;
        uint64_t bytes = 0;
        loam_read_memstats(&before);
        for (size_t i = 0; i < count; i++) {
            bytes += loam_usable_size(i % 2 == 0 ? loam_alloc(sizes[s])
                                                 : loam_alloc_noscan(sizes[s]));
        }
        loam_read_memstats(&after);
        check_sums(&after);
        check_growth(&before, &after);
        EXPECT_EQ(after.num_gc, before.num_gc);
        EXPECT_EQ(after.mallocs - before.mallocs, count);
        EXPECT_EQ(after.frees - before.frees, 0);
        EXPECT_EQ(after.heap_objects - before.heap_objects, count);
        EXPECT_EQ(after.total_alloc - before.total_alloc, bytes);
        EXPECT_EQ(after.heap_alloc - before.heap_alloc, bytes);
        uint64_t in_class = 0;
        for (size_t i = 1; i < COUNT_OF(after.by_size); i++) {
            uint64_t more = after.by_size[i].mallocs - before.by_size[i].mallocs;
            EXPECT(more == 0 ||
                   (after.by_size[i].size >= sizes[s] && after.by_size[i - 1].size < sizes[s]));
            in_class += more;
        }
        EXPECT_EQ(in_class, sizes[s] <= 32768 ? count : 0);
    }
    loam_set_gc_percent(percent);
}

static void frees_are_counted(void)
{
    enum { COUNT = 500 };
    static const size_t sizes[] = {16, 64, 1000, 20000, 100000};
    loam_memstats before, after;
    int percent = loam_set_gc_percent(-1);
    void **p = calloc(COUNT, sizeof *p);

    loam_gc();
    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        uint64_t bytes = 0;
        for (size_t i = 0; i < COUNT; i++) {
            p[i] = loam_alloc(sizes[s]); /* the collector is off: nothing is lost */
            bytes += loam_usable_size(p[i]);
        }
        loam_read_memstats(&before);
        for (size_t i = 0; i < COUNT; i++) {
            loam_free(p[i]);
        }
        loam_read_memstats(&after);
        check_sums(&after);
        check_growth(&before, &after);
        EXPECT_EQ(after.frees - before.frees, COUNT);
        EXPECT_EQ(after.mallocs, before.mallocs);
        EXPECT_EQ(before.heap_alloc - after.heap_alloc, bytes);
        EXPECT_EQ(after.total_alloc, before.total_alloc);
    }
    free(p);
    loam_set_gc_percent(percent);
}

static void build_garbage(void *arg)
{
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        EXPECT_NOT_NULL(loam_alloc(200));
    }
}

static void collections_are_counted(void)
{
    size_t count = 20000;
    loam_memstats before, middle, after;
    int percent = loam_set_gc_percent(-1);

    loam_gc();
    scrub_stack();
    loam_gc();
    loam_read_memstats(&before);
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    call_deep(build_garbage, &count);
    loam_read_memstats(&middle);
    EXPECT_EQ(middle.mallocs - before.mallocs, count);
    loam_gc();
    loam_gc();
    loam_gc();
    loam_read_memstats(&after);
    check_sums(&after);
    check_growth(&middle, &after);
    EXPECT_EQ(after.num_gc, before.num_gc + 3);
    EXPECT_EQ(after.num_forced_gc, before.num_forced_gc + 3);
    EXPECT_GE(after.frees - middle.frees, count * 95 / 100);
    EXPECT_LE(after.heap_objects, before.heap_objects + count / 20);
    EXPECT_LE(after.heap_alloc, before.heap_alloc + count * 208 / 20);
    uint64_t wall_ns = (uint64_t)wall.tv_sec * UINT64_C(1000000000) + (uint64_t)wall.tv_nsec;
    EXPECT_GE(after.last_gc + 1000000000, wall_ns);
    EXPECT_LE(after.last_gc, wall_ns + UINT64_C(600000000000));
    EXPECT_EQ(after.pause_end[(after.num_gc + 255) % 256] == 0, 0);
    loam_set_gc_percent(percent);
}

static void the_collector_off_and_on(void)
{
    loam_memstats m;
    int percent = loam_set_gc_percent(-1);
    loam_read_memstats(&m);
    EXPECT_EQ(m.next_gc, UINT64_MAX);
    EXPECT(m.enable_gc);
    loam_set_gc_percent(100);
    loam_gc();
    loam_read_memstats(&m);
    EXPECT_GE(m.next_gc, 4 << 20);
    EXPECT_LT(m.next_gc, 1 << 30);
    loam_set_gc_percent(percent);
}

static void freed_to_the_system(void)
{
    loam_memstats m;
    size_t count = 300000;
    call_deep(build_garbage, &count);
    loam_free_os_memory();
    loam_read_memstats(&m);
    check_sums(&m);
    EXPECT_MSG(m.heap_idle - m.heap_released <= m.heap_idle / 10 + (1 << 20),
               "after loam_free_os_memory %" PRIu64 " of %" PRIu64 " idle bytes are not released",
               m.heap_idle - m.heap_released, m.heap_idle);
}

/* Threads allocate known amounts; the counts of ended threads are not lost. */
enum { THREADS = 8, EACH = 20000 };

static void *allocate_known(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < EACH; i++) {
        EXPECT_NOT_NULL(i % 2 == 0 ? loam_alloc(64) : loam_alloc_noscan(64));
    }
    return NULL;
}

static void threads_are_counted(void)
{
    static struct team team;
    loam_memstats before, last, now;
    for (int round = 0; round < 3; round++) {
        loam_read_memstats(&before);
        last = before;
        team_start(&team, THREADS, allocate_known, NULL);
        for (int i = 0; i < 100; i++) {
            loam_read_memstats(&now);
            check_growth(&last, &now);
            EXPECT_EQ(now.heap_objects, now.mallocs - now.frees);
            last = now;
            if (i % 30 == 0) {
                loam_gc();
            }
        }
        team_join(&team);
        loam_read_memstats(&now);
        check_sums(&now);
        EXPECT_GE(now.mallocs - before.mallocs, THREADS * EACH);
        /* A thread that a cycle's end meets within an allocation may leave a slot that nobody uses: one in each cycle.
         * One cycle may have come so far and is not in num_gc yet. */
        uint64_t left = (uint64_t)(now.num_gc - before.num_gc + 1) * THREADS;
        EXPECT_LE(now.mallocs - before.mallocs, THREADS * EACH + left);
        EXPECT_GE(now.total_alloc - before.total_alloc, (uint64_t)THREADS * EACH * 64);
        EXPECT_LE(now.total_alloc - before.total_alloc, (THREADS * EACH + left) * 64);
        uint64_t in_class = 0;
        for (size_t i = 1; i < COUNT_OF(now.by_size); i++) {
            in_class += now.by_size[i].size == 64
                            ? now.by_size[i].mallocs - before.by_size[i].mallocs
                            : 0;
        }
        EXPECT_GE(in_class, THREADS * EACH);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(size_classes);
    RUN(allocations_are_counted);
    RUN(frees_are_counted);
    RUN(collections_are_counted);
    RUN(the_collector_off_and_on);
    RUN(freed_to_the_system);
    RUN(threads_are_counted);
    return test_end();
}
