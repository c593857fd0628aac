/* A memory limit holds.  Threads allocate as fast as they can while what is alive is stepped from a tenth to nine tenths
 * of the limit and down again.
 *
 * Up to 80 % alive resident memory is never above the limit and 5 % of it; above that the program goes on.  With GOGC
 * off the same.  A limit that is set below what is mapped is kept a moment later, and one below what is alive leaves
 * the program half of the processors.  Threads beyond the limit sweep while a cycle ends, and lose nothing.
 *
 * --threads N (2) --seconds N (1) for each step
 *
 * TEST_LABEL: stress
 * TEST_RUN: one | | --only steps --threads 1 | 180
 * TEST_RUN: two | | --only steps --threads 2 | 180
 * TEST_RUN: eight | | --only steps --threads 8 | 180
 * TEST_RUN: gogc_off | GOGC=off | --only steps | 180
 * TEST_RUN: variable | GOGC=off GOMEMLIMIT=256MiB | --only variable | 120
 * TEST_RUN: lowered | | --only lowered | 120
 * TEST_RUN: crossing | GODEBUG=gcstress=1000,clobberfree=1 | --only crossing --threads 8 | 120 | quick
 * TEST_RUN: hopeless | | --only hopeless | 120 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { MIB = 1 << 20, LIMIT = 256 * MIB, PIECE = 4096, MOST = LIMIT / PIECE };

static void **pieces; /* what is alive: pieces[0, alive) */
static _Atomic(bool) stop;
static _Atomic(uint64_t) allocated, longest_ns;

static void *allocate(void *arg)
{
    struct team_member *me = arg;
    item *list = NULL;
    for (uint64_t i = 0; !atomic_load(&stop); i++) {
        uint64_t begin = now_ns();
        list = i % 64 == 0 ? NULL : list;
        list = item_new(i, list);
        size_t bytes = 16 + rng_below(&me->rng, 2000);
        if (i % 1024 == 0) {
            bytes = 64 << 10;
        }
        unsigned char *p = loam_alloc_noscan(bytes);
        EXPECT_NOT_NULL(p);
        memset(p, 1, bytes);
        uint64_t took = now_ns() - begin;
        if (took > atomic_load(&longest_ns)) {
            atomic_store(&longest_ns, took);
        }
        atomic_fetch_add(&allocated, bytes);
    }
    return NULL;
}

/* A whole one, which the program's allocating brings about. */
static void wait_for_cycle(void)
{
    loam_memstats st;
    loam_read_memstats(&st);
    for (uint32_t seen = st.num_gc; st.num_gc < seen + 2;) {
        sleep_us(1000);
        loam_read_memstats(&st);
    }
}

static NOINLINE void set_alive(size_t *alive, size_t wanted)
{
    for (; *alive < wanted; ++*alive) {
        unsigned char *p = loam_alloc_noscan(PIECE);
        EXPECT_NOT_NULL(p);
        memset(p, 1, PIECE);
        LOAM_SET(pieces[*alive], (void *)p);
    }
    while (*alive > wanted) {
        LOAM_SET(pieces[--*alive], NULL);
    }
}

static size_t most_resident(double seconds)
{
    size_t most = 0;
    for (uint64_t begin = now_ns(); (double)(now_ns() - begin) < seconds * 1e9;) {
        size_t now = resident();
        most = now > most ? now : most;
        sleep_us(2000);
    }
    return most;
}

static NOINLINE void make_room(void)
{
    LOAM_SET(pieces, (void **)loam_alloc(MOST * sizeof(void *)));
}

static void steps(void)
{
    static struct team team;
    static const unsigned percent[] = {10, 30, 50, 70, 80, 90, 60, 20};
    double seconds = (double)test_number("seconds", 1);
    size_t alive = 0;
    loam_set_memory_limit(LIMIT);
    make_room();
    team_start(&team, test_number("threads", 2), allocate, NULL);
    for (size_t i = 0; i < COUNT_OF(percent); i++) {
        uint64_t before = atomic_load(&allocated);
        atomic_store(&longest_ns, 0);
        bool falls = alive > (size_t)MOST * percent[i] / 100;
        set_alive(&alive, (size_t)MOST * percent[i] / 100);
        if (falls) {
            wait_for_cycle(); /* until then the step before is what is alive */
        }
        size_t most = most_resident(seconds);
        loam_memstats st;
        loam_read_memstats(&st);
        printf("%u%% alive: %.1f%% resident, %.0f MiB/s, longest %.1f ms, collector %.0f%%\n",
               percent[i], (double)most * 100 / LIMIT,
               (double)(atomic_load(&allocated) - before) / MIB / seconds,
               (double)atomic_load(&longest_ns) / 1e6, st.gc_cpu_fraction * 100);
        if (percent[i] <= 80 &&
            !TEST_SANITIZED) { /* whose own memory counts as resident, and grows */
            EXPECT_LE(most, (size_t)LIMIT + LIMIT / 20);
        }
        EXPECT_GT(atomic_load(&allocated), before);
    }
    atomic_store(&stop, true);
    team_join(&team);
}

static void variable(void)
{
    EXPECT_EQ(loam_set_memory_limit(-1), LIMIT);
    steps();
}

static void lowered(void)
{
    size_t alive = 0;
    make_room();
    set_alive(&alive, MOST);
    set_alive(&alive, MOST / 4);
    EXPECT_GE(resident(), (size_t)LIMIT);
    EXPECT_EQ(loam_set_memory_limit(LIMIT / 2), INT64_MAX);
    uint64_t begin = now_ns();
    while (resident() > LIMIT / 2 && now_ns() - begin < UINT64_C(10000000000)) {
        item_new(1, NULL);
        sleep_us(1000);
    }
    printf("%.2f s\n", (double)(now_ns() - begin) / 1e9);
    EXPECT_LE(resident(), (size_t)LIMIT / 2);
    EXPECT_EQ(loam_set_memory_limit(INT64_MAX), LIMIT / 2);
}

static void hopeless(void)
{
    static struct team team;
    size_t alive = 0;
    make_room();
    set_alive(&alive, MOST);
    loam_set_memory_limit(1);
    team_start(&team, 2, allocate, NULL);
    sleep_us(1000000);
    uint64_t before = atomic_load(&allocated);
    most_resident(4);
    loam_memstats st;
    loam_read_memstats(&st);
    printf("%.0f MiB/s, collector %.0f%%\n", (double)(atomic_load(&allocated) - before) / MIB / 4,
           st.gc_cpu_fraction * 100);
    EXPECT_GT(atomic_load(&allocated), before);
    atomic_store(&stop, true);
    team_join(&team);
}

static void *keep_lists(void *arg)
{
    struct team_member *me = arg;
    item *kept = NULL;
    while (!atomic_load(&stop)) {
        item *list = list_new(rng_below(&me->rng, 300));
        list_check(kept);
        kept = list;
        loam_alloc_noscan(rng_below(&me->rng, 20000));
    }
    list_check(kept);
    return NULL;
}

static void crossing(void)
{
    static struct team team;
    size_t alive = 0;
    make_room();
    set_alive(&alive, MOST / 64);
    loam_set_gc_cpu_limit(1);
    loam_set_memory_limit(LIMIT / 64);
    team_start(&team, test_number("threads", 2), keep_lists, NULL);
    most_resident((double)test_number("seconds", 4));
    atomic_store(&stop, true);
    team_join(&team);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(steps);
    RUN(variable);
    if (!TEST_TSAN) { /* whose shadow of what was touched stays resident */
        RUN(lowered);
    }
    RUN(crossing);
    RUN(hopeless);
    return test_end();
}
