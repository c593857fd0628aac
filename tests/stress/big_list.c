/* A list of twenty million elements, the deepest graph there is: it is built while cycles run, collected without any
 * recursion, walked whole, cut in halves, and gone when it is dropped.
 *
 * --count N (elements)
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 240
 * TEST_RUN: small_heap | GOGC=25 | --count 5000000 | 240
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1 | --count 2000000 | 240 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct element {
    struct element *next;
    uint64_t number;
} element;
LOAM_TYPE(element, next);

static element *list;

/* On a thread of its own, with the smallest of stacks: marking may not recurse on it. */
static void *build(void *arg)
{
    uint64_t count = *(uint64_t *)arg;
    for (uint64_t i = 0; i < count; i++) {
        element *e = LOAM_NEW(element);
        if (e == NULL) {
            FAIL("no memory after %" PRIu64 " elements", i);
        }
        e->number = i;
        LOAM_SET(e->next, list);
        LOAM_SET(list, e);
    }
    return NULL;
}

/* Newest first: numbers fall from `first` by one. */
static NOINLINE uint64_t walk(uint64_t first)
{
    uint64_t length = 0;
    for (const element *e = list; e != NULL; e = e->next) {
        if (e->number != first - length) {
            FAIL("element %" PRIu64 " has number %" PRIu64, length, e->number);
        }
        length++;
    }
    return length;
}

static NOINLINE void cut_at(uint64_t at)
{
    element *e = list;
    for (uint64_t i = 1; i < at; i++) {
        e = e->next;
    }
    LOAM_SET(e->next, NULL);
}

static uint64_t objects_there(void)
{
    loam_memstats m;
    loam_read_memstats(&m);
    return m.heap_objects;
}

static double collect(void)
{
    uint64_t start = now_ns();
    loam_gc();
    return seconds_since(start);
}

/* A stale word that points to an early element keeps all that follow: what was expected to go may need some tries. */
static NOINLINE bool shrinks_to(uint64_t most)
{
    for (int i = 0; i < 10; i++) {
        scrub_stack();
        loam_gc();
        if (objects_there() <= most) {
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    uint64_t count = test_number("count", test_scaled(20000000));
    pthread_attr_t attr;
    pthread_t t;
    uint64_t start = now_ns();

    EXPECT_EQ(pthread_attr_init(&attr), 0);
    EXPECT_EQ(pthread_attr_setstacksize(&attr, 128 * 1024), 0);
    EXPECT_EQ(pthread_create(&t, &attr, build, &count), 0);
    thread_join(t);
    double built = seconds_since(start);
    double collected = collect();
    start = now_ns();
    EXPECT_EQ(walk(count - 1), count);
    printf("%" PRIu64 " elements built in %.2f s, collected in %.2f s, walked in %.2f s\n", count,
           built, collected, seconds_since(start));
    EXPECT_GE(objects_there(), count);
    collected = collect();
    EXPECT_EQ(walk(count - 1), count);

    cut_at(count / 2);
    EXPECT_MSG(shrinks_to(count / 2 + count / 20), "after the cut %" PRIu64 " objects are there",
               objects_there());
    EXPECT_EQ(walk(count - 1), count / 2);
    LOAM_SET(list, NULL);
    EXPECT_MSG(shrinks_to(count / 20), "after the end %" PRIu64 " objects are there",
               objects_there());
    pthread_attr_destroy(&attr);
    return test_end();
}
