/* Goroutines that sit in system calls, more of them than there are threads so far, hold up none of those in the queues of
 * the Ps that they had.
 *
 * Nor does one whose P is not among GOMAXPROCS any more.
 *
 * Each round has more of them than any before, so that each needs threads that are yet to be made; and none comes back
 * until those that do not wait have run.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: two_procs | GOMAXPROCS=2 | | 90
 * TEST_RUN: four_procs | GOMAXPROCS=4 GOGC=5 | | 90 */
#include "../support/test.h"

#include <loam/sched.h>

#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { RUNNERS = 3 };

static int silent[2];
static _Atomic(size_t) ran, back;

static void sit(void *arg)
{
    char c;
    (void)arg;
    EXPECT_EQ(read(silent[0], &c, 1), 1);
    atomic_fetch_add(&back, 1);
}

static void sit_and_say_so(void *arg)
{
    char c;
    (void)arg;
    loam_enter_blocking();
    EXPECT_EQ(read(silent[0], &c, 1), 1);
    loam_exit_blocking();
    atomic_fetch_add(&back, 1);
}

static void count(void *arg)
{
    (void)arg;
    atomic_fetch_add(&ran, 1);
}

static void more_sit_than_ever(void (*sitter)(void *), size_t most)
{
    for (size_t n = 1; n <= most; n++) {
        struct rng rng = rng_stream(n);
        size_t sitters = n;
        size_t runners = RUNNERS;
        EXPECT_EQ(pipe(silent), 0);
        atomic_store(&ran, 0);
        atomic_store(&back, 0);
        while (sitters + runners > 0) {
            bool sits = rng_below(&rng, sitters + runners) < sitters;
            go(sits ? sitter : count, NULL);
            sitters -= sits ? 1 : 0;
            runners -= sits ? 0 : 1;
        }
        PARK_UNTIL(20, atomic_load(&ran) == RUNNERS);
        for (size_t i = 0; i < n; i++) {
            EXPECT_EQ(write(silent[1], "x", 1), 1);
        }
        PARK_UNTIL(20, atomic_load(&back) == n);
        (void)close(silent[0]);
        (void)close(silent[1]);
    }
}

static void in_calls(void)
{
    more_sit_than_ever(sit, TEST_SANITIZED || emulated() ? 30 : 60);
}

static void in_calls_they_tell_of(void)
{
    more_sit_than_ever(sit_and_say_so, TEST_SANITIZED || emulated() ? 60 : 120);
}

static void lower_then_sit(void *arg)
{
    (void)loam_set_max_procs(1);
    go(count, NULL);
    sit(arg);
}

static _Atomic(bool) let_go;

static void spin(void *arg)
{
    (void)arg;
    while (!atomic_load(&let_go)) {
    }
}

/* GOMAXPROCS is lowered by one whose P is none of those that are left. */
static void lowered_beneath_them(void)
{
    int before = loam_set_max_procs(0);
    for (int i = 0; i < 20; i++) {
        int procs = 2 + i % 3;
        (void)loam_set_max_procs(procs);
        EXPECT_EQ(pipe(silent), 0);
        atomic_store(&ran, 0);
        atomic_store(&back, 0);
        atomic_store(&let_go, false);
        for (int k = 1; k < procs; k++) {
            go(spin, NULL);
        }
        loam_sleep(MILLISECONDS(2));
        go(lower_then_sit, NULL);
        PARK_UNTIL(20, loam_set_max_procs(0) == 1);
        atomic_store(&let_go, true);
        PARK_UNTIL(20, atomic_load(&ran) == 1);
        EXPECT_EQ(write(silent[1], "x", 1), 1);
        PARK_UNTIL(20, atomic_load(&back) == 1);
        (void)close(silent[0]);
        (void)close(silent[1]);
    }
    (void)loam_set_max_procs(before);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    start_watching();
    RUN_BOTH(in_calls);
    RUN_BOTH(in_calls_they_tell_of);
    RUN_BOTH(lowered_beneath_them);
    go_all_ended();
    return test_end();
}
