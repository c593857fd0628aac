/* The memory of goroutines' stacks is told by loam_memstats, follows what they use and no longer use, and counts for the memory limit.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | GODEBUG=stacksleep=0 | | 60
 * TEST_RUN: asleep | GODEBUG=stacksleep=1 | | 60
 * TEST_RUN: off | GOGC=off GODEBUG=stacksleep=0 | | 60 */
#include "../support/test.h"

#include <loam/sched.h>
#include <loam/stats.h>

#include "../support/goroutines.h"
#include "../support/heap.h"

enum { MANY = 4000, DEEP_ONES = 200, DIVE_BYTES = 150 << 10 };

static loam_chan *gate; /* closed, to let them go on */
static loam_waitgroup ended;
static _Atomic(size_t) waiting;
static size_t page;

static void wait_at_the_gate(void *arg)
{
    (void)arg;
    atomic_fetch_add(&waiting, 1);
    loam_chan_recv(gate, NULL);
    loam_waitgroup_done(&ended);
}

/* Not inlined: its frame is the depth. */
NOINLINE static void dive_and_wait(void *arg)
{
    volatile char depth[DIVE_BYTES];
    for (size_t i = 0; i < sizeof depth; i += 1024) {
        depth[i] = (char)i;
    }
    wait_at_the_gate(arg);
    depth[1] = depth[0];
}

NOINLINE static void dive_and_come_back(void *arg)
{
    volatile char depth[DIVE_BYTES];
    for (size_t i = 0; i < sizeof depth; i += 1024) {
        depth[i] = (char)i;
    }
    depth[1] = depth[0];
    (void)arg;
}

static void come_back_and_wait(void *arg)
{
    dive_and_come_back(arg);
    loam_yield();
    wait_at_the_gate(arg);
}

static uint64_t stack_bytes(void)
{
    loam_memstats m;
    loam_gc();
    loam_read_memstats(&m);
    EXPECT_EQ(m.stack_inuse, m.stack_sys);
    return m.stack_inuse;
}

static uint64_t goal(void)
{
    loam_memstats m;
    loam_gc();
    loam_read_memstats(&m);
    return m.next_gc;
}

static void begin(size_t n, void (*fn)(void *))
{
    LOAM_SET(gate, loam_chan_make_bytes(0, 0));
    atomic_store(&waiting, 0);
    for (size_t i = 0; i < n; i++) {
        loam_waitgroup_add(&ended, 1);
        go(fn, NULL);
    }
    PARK_UNTIL(60, atomic_load(&waiting) == n);
    loam_sleep(MILLISECONDS(10)); /* the last ones have parked, too */
}

static void end(void)
{
    loam_chan_close(gate);
    loam_waitgroup_wait(&ended);
    go_all_ended();
    for (int i = 0; i < 4; i++) {
        loam_gc(); /* their stacks are warm for two of them */
    }
}

static void one_page_each(void)
{
    size_t n = go_most(MANY);
    uint64_t before = stack_bytes();
    begin(n, wait_at_the_gate);
    if (!test_godebug("stacksleep=1")) {
        EXPECT_GE(stack_bytes() - before, n * page);
        EXPECT_LE(stack_bytes() - before, n * page * (TEST_SANITIZED ? 16 : 3));
    }
    end();
    EXPECT_LE(stack_bytes(), before + n * page / 10);
}

static void as_deep_as_they_are(void)
{
    size_t n = go_most(DEEP_ONES);
    uint64_t before = stack_bytes();
    begin(n, dive_and_wait);
    EXPECT_GE(stack_bytes() - before, n * DIVE_BYTES);
    EXPECT_LE(stack_bytes() - before, n * (DIVE_BYTES + 100 * 1024));
    end();
    begin(n, come_back_and_wait);
    EXPECT_LE(stack_bytes(), before + n * 64 * 1024); /* less than a quarter was used */
    end();
}

static void count_for_the_limit(void)
{
    if (!test_godebug("stacksleep=0")) {
        return;
    }
    size_t n = go_most(MANY);
    int64_t limit = (int64_t)((84 << 20) + n * page);
    if (TEST_SANITIZED) {
        test_skip("stacks are larger than a small limit under a sanitizer");
        return;
    }
    loam_set_memory_limit(limit);
    int percent = loam_set_gc_percent(-1);
    uint64_t before = goal();
    begin(n, wait_at_the_gate);
    uint64_t with = goal();
    EXPECT_LE(with + n * page, before + (1 << 20));
    end();
    loam_set_gc_percent(percent);
    loam_set_memory_limit(INT64_MAX);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    page = (size_t)sysconf(_SC_PAGESIZE);
    RUN(one_page_each);
    RUN(as_deep_as_they_are);
    RUN(count_for_the_limit);
    return test_end();
}
