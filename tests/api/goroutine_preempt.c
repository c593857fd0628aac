/* A goroutine that computes without end, or sits in a system call that the library does not know of, or between
 * loam_enter_blocking and loam_exit_blocking, keeps no other from running for more than 20 ms; and when it comes back
 * it is one of GOMAXPROCS again.
 *
 * The measure is how late a goroutine wakes that sleeps a millisecond at a time. A plain thread beside it does the same
 * with the system's own sleep: as late as that is the machine. What a machine does to one of them alone does not
 * come back, so each bound has three attempts, and the best counts.
 *
 * --seconds N: how long each attempt is, in tenths (10)
 *
 * TEST_LABEL: stress
 * TEST_RUN: one_proc | GOMAXPROCS=1 | | 120
 * TEST_RUN: two_procs | GOMAXPROCS=2 | | 120
 * TEST_RUN: collecting | GOMAXPROCS=2 GOGC=5 | | 120 */
#include "../support/test.h"

#include <loam/sched.h>

#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { DELAY_MOST_US = 20000 };

/* What instruments or emulates makes everything later, not this alone. */
static double allowance(void)
{
    return TEST_TSAN || emulated() ? 10 : TEST_SANITIZED ? 3 : 1;
}

static _Atomic(bool) stop;
static _Atomic(size_t) at_work;

/* ---- how late ---- */

enum { SAMPLES = 20000 };

struct lateness {
    uint32_t us[SAMPLES];
    size_t count;
    uint32_t median, percentile99, most;
};

static void note(struct lateness *l, uint64_t due)
{
    uint64_t now = now_ns();
    if (l->count < SAMPLES) {
        l->us[l->count++] = now > due ? (uint32_t)((now - due) / 1000) : 0;
    }
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void evaluate(struct lateness *l)
{
    EXPECT_GT(l->count, 0);
    qsort(l->us, l->count, sizeof l->us[0], by_value);
    l->median = l->us[l->count / 2];
    l->percentile99 = l->us[l->count * 99 / 100];
    l->most = l->us[l->count - 1];
}

static void tick(void *arg)
{
    struct lateness *l = arg;
    while (!atomic_load(&stop)) {
        uint64_t due = now_ns() + 1000000;
        loam_sleep(1000000);
        note(l, due);
    }
}

static void *tick_beside(void *arg)
{
    struct lateness *l = arg;
    while (!atomic_load(&stop)) {
        uint64_t due = now_ns() + 1000000;
        sleep_us(1000);
        note(l, due);
    }
    return NULL;
}

/* ---- who is in the way ---- */

/* ThreadSanitizer delivers signals at calls that it knows. */
static inline void compute_once(volatile uint64_t *n)
{
    *n = *n + 1;
    if (TEST_TSAN) {
        (void)now_ns();
    }
}

static void compute(void *arg)
{
    volatile uint64_t n = 0;
    (void)arg;
    atomic_fetch_add(&at_work, 1);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) { /* no call in it */
        compute_once(&n);
    }
}

/* Comes back every 35 ms, and is in the way anew. */
static void compute_and_yield(void *arg)
{
    volatile uint64_t n = 0;
    (void)arg;
    atomic_fetch_add(&at_work, 1);
    while (!atomic_load(&stop)) {
        for (uint64_t start = now_ns(); now_ns() - start < 35000000;) {
            for (int i = 0; i < 1000; i++) {
                compute_once(&n);
            }
        }
        loam_yield();
    }
}

/* Pipes that a plain thread writes to every 35 ms. */
enum { PIPES = 4 };
static int pipes[PIPES][2];

static void *write_now_and_then(void *arg)
{
    size_t count = *(size_t *)arg;
    while (!atomic_load(&stop)) {
        sleep_us(35000);
        for (size_t i = 0; i < count; i++) {
            EXPECT_EQ(write(pipes[i][1], "x", 1), 1);
        }
    }
    for (size_t i = 0; i < PIPES; i++) {
        close(pipes[i][1]);
    }
    return NULL;
}

static void sit_in_read(void *arg)
{
    char c;
    atomic_fetch_add(&at_work, 1);
    while (read(*(int *)arg, &c, 1) == 1) {
        loam_yield();
    }
    close(*(int *)arg);
}

static void sit_in_read_and_say_so(void *arg)
{
    bool more = true;
    atomic_fetch_add(&at_work, 1);
    while (more) {
        char c;
        loam_enter_blocking();
        more = read(*(int *)arg, &c, 1) == 1;
        loam_exit_blocking();
        loam_yield();
    }
    close(*(int *)arg);
}

static void collect(void *arg)
{
    (void)arg;
    atomic_fetch_add(&at_work, 1);
    while (!atomic_load(&stop)) {
        EXPECT_EQ(list_check(list_new(200)), 200);
        loam_gc();
    }
}

struct nuisance {
    const char *name;
    void (*fn)(void *arg);
    bool reads;
    size_t count; /* 0: one for each of GOMAXPROCS: each may keep one for its 10 ms */
};

static const struct nuisance nuisances[] = {
    {"compute", compute, false, 0}, {"compute and yield", compute_and_yield, false, 0},
    {"read", sit_in_read, true, 0}, {"read, said so", sit_in_read_and_say_so, true, PIPES},
    {"collect", collect, false, 1},
};

static void measure(const struct nuisance *n, struct lateness *ours, struct lateness *theirs)
{
    static struct crew crew;
    pthread_t writer = pthread_self();
    size_t count = n->count > 0 ? n->count : (size_t)loam_set_max_procs(0);
    ours->count = theirs->count = 0;
    atomic_store(&stop, false);
    atomic_store(&at_work, 0);
    if (n->reads) {
        EXPECT_LE(count, PIPES);
        for (size_t i = 0; i < PIPES; i++) {
            EXPECT_EQ(pipe(pipes[i]), 0);
        }
        writer = thread_start(write_now_and_then, &count);
    }
    pthread_t beside = thread_start(tick_beside, theirs);
    crew_start(&crew, ON_GOROUTINE, tick, ours);
    for (size_t i = 0; i < count; i++) {
        crew_start(&crew, ON_GOROUTINE, n->fn, n->reads ? &pipes[i][0] : NULL);
    }
    WAIT_FOR(20, atomic_load(&at_work) == count);
    sleep_us(test_number("seconds", 10) * 100000);
    atomic_store(&stop, true);
    thread_join(beside);
    if (n->reads) {
        thread_join(writer);
    }
    crew_join(&crew);
    evaluate(ours);
    evaluate(theirs);
    printf("  %-18s %5zu wakes, late by %u us (half), %u us (99 %%), %u us (most); a thread: %zu, "
           "%u, %u, %u\n",
           n->name, ours->count, ours->median, ours->percentile99, ours->most, theirs->count,
           theirs->median, theirs->percentile99, theirs->most);
}

static void delays_nobody(void)
{
    static struct lateness ours;
    static struct lateness theirs;
    double most = DELAY_MOST_US * allowance();
    for (size_t i = 0; i < COUNT_OF(nuisances); i++) {
        bool good = false;
        for (int attempt = 0; attempt < 3 && !good; attempt++) {
            measure(&nuisances[i], &ours, &theirs);
            good = ours.median < theirs.median + most / 4 &&
                   ours.percentile99 < theirs.percentile99 + most && ours.most < theirs.most + most;
        }
        EXPECT_MSG(good, "beside \"%s\" a goroutine woke late by %u us (99 %%), %u us (most)",
                   nuisances[i].name, ours.percentile99, ours.most);
    }
}

/* ---- as many threads as it takes, and no more ---- */

static void compute_shortly(void *arg)
{
    volatile uint64_t n = 0;
    for (uint64_t start = now_ns(); now_ns() - start < 15000000;) {
        compute_once(&n);
    }
    atomic_fetch_add(&at_work, 1);
    (void)arg;
}

static void threads_are_used_again(void)
{
    size_t before = threads_of_process();
    size_t count = TEST_SANITIZED || emulated() ? 20 : 60;
    atomic_store(&at_work, 0);
    for (size_t i = 0; i < count; i++) {
        go(compute_shortly, NULL);
        go(compute_shortly, NULL);
        PARK_UNTIL(30, atomic_load(&at_work) == 2 * (i + 1));
    }
    size_t now = threads_of_process();
    printf("  %zu threads, %zu before\n", now, before);
    EXPECT_LT(now, before + 16);
}

/* ---- all get there ----
 *
 * Goroutines that spin until all have come need as many threads, whatever GOMAXPROCS is. */

enum { MEETING = 4 };

static void spin_until_all_came(void *arg)
{
    volatile uint64_t n = 0;
    (void)arg;
    atomic_fetch_add(&at_work, 1);
    while (atomic_load_explicit(&at_work, memory_order_relaxed) < MEETING) {
        compute_once(&n);
    }
}

static void spinners_meet(void)
{
    for (int round = 0; round < 5; round++) {
        static struct crew crew;
        uint64_t start = now_ns();
        atomic_store(&at_work, 0);
        for (int i = 0; i < MEETING; i++) {
            crew_start(&crew, ON_GOROUTINE, spin_until_all_came, NULL);
        }
        crew_join(&crew);
        EXPECT_MSG(seconds_since(start) < 5 * allowance(), "they met after %g s",
                   seconds_since(start));
    }
}

/* Beside one that computes, collections end, and what it holds stays. */
static void hold_and_compute(void *arg)
{
    item *mine = list_new(100);
    compute(arg);
    EXPECT_EQ(list_check(mine), 100);
}

static void collected_beside_them(void)
{
    static struct crew crew;
    atomic_store(&stop, false);
    atomic_store(&at_work, 0);
    for (int i = 0; i < 3; i++) {
        crew_start(&crew, ON_GOROUTINE, hold_and_compute, NULL);
    }
    PARK_UNTIL(20, atomic_load(&at_work) == 3);
    for (int i = 0; i < 10; i++) {
        uint64_t start = now_ns();
        loam_gc();
        list_new(1000);
        EXPECT_MSG(seconds_since(start) < 5 * allowance(), "a collection took %g s",
                   seconds_since(start));
    }
    atomic_store(&stop, true);
    crew_join(&crew);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    start_watching();
    RUN(spinners_meet);
    RUN_BOTH(collected_beside_them);
    RUN(threads_are_used_again);
    RUN(delays_nobody);
    go_all_ended();
    return test_end();
}
