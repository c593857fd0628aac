/* A loam_stack that changes hands: its owner ends, at any moment of a cycle, and what it holds is there for the next one;
 * it is taken over, removed and unmapped while its former owner, which lives on, is asked to scan its stacks.
 *
 * TEST_LABEL: quick
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 | | 60
 * TEST_RUN: stress | GODEBUG=gcstress=1,clobberfree=1 | | 60 */
#include "../support/test.h"

#include <sys/mman.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    uint64_t id;
    uint64_t check;
} item;
LOAM_TYPE_NOSCAN(item);

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return arg;
}

struct shared_stack {
    item **words;
    size_t bytes;
    loam_stack *stack;
    _Atomic(bool) taken;
};

static void map_and_add(struct shared_stack *s, size_t bytes)
{
    s->bytes = bytes;
    s->words = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_PTR_NE(s->words, MAP_FAILED);
    s->stack = loam_stack_add(s->words, bytes, NULL);
    EXPECT_NOT_NULL(s->stack);
}

static void take_over(struct shared_stack *s)
{
    EXPECT_EQ(loam_stack_set(s->stack, s->words, s->bytes), 0);
}

static void remove_and_unmap(struct shared_stack *s)
{
    loam_stack_remove(s->stack);
    EXPECT_EQ(munmap(s->words, s->bytes), 0);
}

/* ---- the owner ends ---- */

enum { ITEMS = 16 };

static void fill(void *arg)
{
    struct shared_stack *s = arg;
    for (size_t i = 0; i < ITEMS; i++) {
        item *it = LOAM_NEW(item);
        EXPECT_NOT_NULL(it);
        it->id = i;
        it->check = rng_mix(i);
        s->words[i] = it;
    }
}

static void check(const struct shared_stack *s)
{
    for (size_t i = 0; i < ITEMS; i++) {
        EXPECT_EQ(s->words[i]->id, i);
        EXPECT_EQ(s->words[i]->check, rng_mix(i));
    }
}

/* For a while, so that what it holds is older than the cycle in which it ends. */
static void *own_and_end(void *arg)
{
    struct team_member *me = arg;
    struct shared_stack *s = me->arg;
    map_and_add(&s[me->index], 4096);
    call_deep(fill, &s[me->index]);
    sleep_us(rng_below(&me->rng, 3000));
    return NULL;
}

static void its_owner_ends(void)
{
    enum { OWNERS = 16 };
    static struct team team;
    static struct shared_stack s[OWNERS];
    pthread_t collector;

    atomic_store(&stop, false);
    collector = thread_start(collect_until_stop, NULL);
    for (uint64_t start = now_ns(); seconds_since(start) < (double)test_number("seconds", 1);) {
        team_start(&team, OWNERS, own_and_end, s);
        team_join(&team);
        for (size_t i = 0; i < OWNERS; i++) {
            take_over(&s[i]);
            check(&s[i]);
            remove_and_unmap(&s[i]);
        }
    }
    atomic_store(&stop, true);
    thread_join(collector);
}

/* ---- the former owner scans ---- */

static void *add_and_live_on(void *arg)
{
    struct shared_stack *s = arg;
    map_and_add(s, 4 << 20); /* takes a while to scan */
    atomic_store(&s->taken, false);
    while (!atomic_load(&s->taken)) {
        if (TEST_TSAN) { /* it delivers signals in calls only */
            sleep_us(100);
        }
    }
    return NULL;
}

static void its_former_owner_scans(void)
{
    struct rng rng = rng_stream(1);
    pthread_t collector;
    size_t rounds = 0;

    atomic_store(&stop, false);
    collector = thread_start(collect_until_stop, NULL);
    for (uint64_t start = now_ns(); seconds_since(start) < (double)test_number("seconds", 1);
         rounds++) {
        static struct shared_stack s;
        atomic_store(&s.taken, true);
        pthread_t owner = thread_start(add_and_live_on, &s);
        WAIT_FOR(20, !atomic_load(&s.taken));
        sleep_us(rng_below(&rng, 3000));
        take_over(&s);
        remove_and_unmap(&s);
        atomic_store(&s.taken, true);
        thread_join(owner);
    }
    atomic_store(&stop, true);
    thread_join(collector);
    printf("  %zu stacks\n", rounds);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(its_owner_ends);
    RUN(its_former_owner_scans);
    return test_end();
}
