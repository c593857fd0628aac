/* What a goroutine takes over from thread-local storage lives, though the goroutine parks at once, before its thread has told the
 * collector what its thread-local storage held.
 *
 * A range of roots as large as this makes that moment long.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | GODEBUG=clobberfree=1 | --seconds 2 | 60
 * TEST_RUN: one_proc | GOMAXPROCS=1 GODEBUG=clobberfree=1 | --seconds 2 | 60
 * TEST_RUN: stress | GOMAXPROCS=4 GODEBUG=gcstress=100,clobberfree=1 | --seconds 10 | 90 | stress */
#include "../support/test.h"

#include <loam/sched.h>

#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { GOROUTINES = 16, YIELDS_LOG = 16, ROOT_BYTES = 16 << 20 };

static __thread item *of_thread;
static _Atomic(bool) stop;
static _Atomic(uint64_t) taken;

/* Not inlined: the address of a thread-local is not kept over a call that parks. */
NOINLINE static item *take_and_put(item *fresh)
{
    item *old = of_thread;
    of_thread = fresh;
    return old;
}

static void take_over(void *arg)
{
    struct rng rng = rng_stream((uint64_t)(uintptr_t)arg);
    for (uint64_t id = 0; !atomic_load(&stop); id++) {
        item *it = take_and_put(item_new(id, item_new(id + 1, NULL)));
        /* Some hold it until the cycle has ended. */
        for (uint64_t n = rng_below(&rng, UINT64_C(1) << rng_below(&rng, YIELDS_LOG + 1)); n > 0;
             n--) {
            loam_yield();
        }
        if (it != NULL) {
            item_check(it);
            item_check(it->next);
            atomic_fetch_add(&taken, 1);
        }
    }
}

static void *collect(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void taken_over(void)
{
    static struct crew crew;
    void *roots = calloc(1, ROOT_BYTES);
    EXPECT_EQ(loam_add_roots(roots, ROOT_BYTES), 0);
    pthread_t collector = thread_start(collect, NULL);
    for (int i = 0; i < GOROUTINES; i++) {
        crew_start(&crew, ON_GOROUTINE, take_over, (void *)(uintptr_t)i);
    }
    loam_sleep((int64_t)test_number("seconds", 1) * 1000000000);
    atomic_store(&stop, true);
    crew_join(&crew);
    thread_join(collector);
    EXPECT_EQ(loam_remove_roots(roots, ROOT_BYTES), 0);
    free(roots);
    EXPECT_GT(atomic_load(&taken), 0);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(taken_over);
    return test_end();
}
