/* A hundred thousand threads live and end, 32 at a time, while one cycle follows the other; each allocates, checks what
 * it is handed, and hands an object over: by a pinned pointer as its result, through a global queue, or to the thread
 * that it starts itself.  Nothing is lost, nothing of an ended thread is held, and the process does not grow.
 *
 * How many cycles end and how many threads meet one is the scheduler's: threads go on coming until there was one cycle
 * for each thousand of them, and a quarter of --count amid one.
 *
 * --count N (threads), --threads N (at a time)
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 240
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | --count 20000 | 240
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | --count 3000 | 240
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | --count 10000 | 240 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { QUEUE = 64 };
static item *_Atomic queue[QUEUE];
static _Atomic(uint64_t) started, handed, amid_cycle, cycles;
static uint64_t count;
static _Atomic(bool) stop;
static __thread item *in_tls;
static pthread_key_t key;

/* arg: a pinned item, or NULL */
static void *live(void *arg)
{
    EXPECT_EQ(loam_attach(), 0);
    bool amid = barrier_is_on();
    item *given = arg;
    struct rng rng = rng_stream(atomic_fetch_add(&started, 1));
    if (given != NULL) {
        EXPECT_GE(list_check(given), 1);
        loam_unpin(given);
    }
    item *list = item_new(rng_next(&rng), NULL);
    for (size_t n = rng_below(&rng, 40); n > 0; n--) {
        list = item_new(n, list);
    }
    in_tls = item_new(1, list);
    EXPECT_EQ(pthread_setspecific(key, item_new(2, NULL)), 0);
    item *old = loam_exchange(&queue[rng_below(&rng, QUEUE)], list);
    if (old != NULL) {
        list_check(old);
        atomic_fetch_add(&handed, 1);
    }
    if (given != NULL) {
        EXPECT_GE(list_check(given), 1); /* held by this frame since the unpin */
    }
    list_check(in_tls);
    list_check(pthread_getspecific(key));
    atomic_fetch_add(&amid_cycle, amid || barrier_is_on() ? 1 : 0);
    return loam_pin(list);
}

static uint64_t mapped(void)
{
    loam_memstats m;
    loam_read_memstats(&m);
    return m.sys - m.heap_released;
}

static bool enough(void)
{
    return atomic_load(&started) >= count && atomic_load(&cycles) * 1000 >= count &&
           (atomic_load(&amid_cycle) * 4 >= count ||
            test_godebug("gcstoptheworld")); /* nobody runs while the barrier is on */
}

static void *run_column(void *arg)
{
    struct team_member *me = arg;
    item *carried = NULL;
    while (!enough()) {
        pthread_t t = thread_start(live, carried);
        carried = thread_join(t);
        EXPECT_GE(list_check(carried), 1);
        if (rng_below(&me->rng, 3) == 0) {
            loam_unpin(carried);
            carried = NULL;
        }
    }
    if (carried != NULL) {
        loam_unpin(carried);
    }
    return NULL;
}

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
        atomic_fetch_add(&cycles, 1);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static struct team team;
    loam_memstats m;
    test_begin(argc, argv);
    EXPECT_EQ(pthread_key_create(&key, NULL), 0);
    EXPECT_EQ(loam_attach(), 0);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    count = test_number("count", test_scaled(100000));
    team_start(&team, test_number("threads", 32), run_column, NULL);
    WAIT_FOR(200, atomic_load(&started) >= 500);
    uint64_t before = mapped();
    team_join(&team);
    atomic_store(&stop, true);
    thread_join(collector);
    loam_gc();
    uint64_t after = mapped();
    loam_read_memstats(&m);
    for (size_t i = 0; i < QUEUE; i++) {
        list_check(atomic_load(&queue[i]));
    }
    printf("%" PRIu64 " threads, %" PRIu64 " of them amid one of %u cycles, %" PRIu64
           " lists handed over, %" PRIu64 " KiB mapped, then %" PRIu64 "\n",
           atomic_load(&started), atomic_load(&amid_cycle), m.num_gc, atomic_load(&handed),
           before >> 10, after >> 10);
    EXPECT_GE(m.num_gc, count / 1000);
    EXPECT_MSG(after < before + (32 << 20), "%" PRIu64 " KiB more are mapped",
               (after - before) >> 10);
    return test_end();
}
