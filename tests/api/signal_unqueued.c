/* The kernel may have no memory to queue a signal: it arrives without saying who sent it.  A thread that only such
 * signals reach holds no collection up, and keeps what it holds.
 *
 * TEST_LABEL: quick
 * TEST_ENV: GODEBUG=clobberfree=1 */
#include "../support/test.h"

#include <sys/resource.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    uint64_t id;
    uint64_t check;
} item;
LOAM_TYPE_NOSCAN(item);

static _Atomic(size_t) spinning, collections;
static _Atomic(bool) stop;

static void *hold_and_spin(void *arg)
{
    item *it = LOAM_NEW(item);
    EXPECT_NOT_NULL(it);
    it->id = 8;
    it->check = rng_mix(8);
    atomic_fetch_add(&spinning, 1);
    while (!atomic_load(&stop)) {
        if (TEST_TSAN) { /* it delivers signals in calls only */
            sleep_us(100);
        }
    }
    EXPECT_EQ(it->check, rng_mix(it->id));
    return arg;
}

static void *collect(void *arg)
{
    for (int i = 0; i < 20; i++) {
        loam_gc();
        atomic_fetch_add(&collections, 1);
    }
    return arg;
}

static void reach_a_thread(void)
{
    struct rlimit limit;
    EXPECT_EQ(getrlimit(RLIMIT_SIGPENDING, &limit), 0);
    limit.rlim_cur = 0;
    EXPECT_EQ(setrlimit(RLIMIT_SIGPENDING, &limit), 0);
    pthread_t holder = thread_start(hold_and_spin, NULL);
    WAIT_FOR(20, atomic_load(&spinning) == 1);
    pthread_t collector = thread_start(collect, NULL);
    WAIT_FOR(20, atomic_load(&collections) == 20);
    atomic_store(&stop, true);
    thread_join(holder);
    thread_join(collector);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(reach_a_thread);
    return test_end();
}
