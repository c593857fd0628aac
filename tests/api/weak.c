/* Weak pointers: one for each object, true while it lives, NULL from its end on for ever, and strong again by a load
 * that races with the end of a cycle without ever giving a dead object.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | | 90
 * TEST_RUN: gcstress | GODEBUG=gcstress=1 | | 120 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static void one_for_each_object(void)
{
    enum { COUNT = 300 };
    item **items = LOAM_NEW_POINTERS(item, COUNT);
    loam_weak **weak = LOAM_NEW_POINTERS(loam_weak, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        LOAM_SET(items[i], item_new(i, NULL));
        LOAM_SET(weak[i], loam_weak_make(items[i]));
        EXPECT_PTR_EQ(loam_weak_make(items[i]), weak[i]);
    }
    for (int round = 0; round < 4; round++) {
        loam_gc();
        for (size_t i = 0; i < COUNT; i++) {
            EXPECT_PTR_EQ(loam_weak_make(items[i]), weak[i]);
            EXPECT_PTR_EQ(loam_weak_value(weak[i]), items[i]);
            EXPECT(i == 0 || weak[i] != weak[i - 1]);
        }
    }
}

static struct watch batch;

static void build(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < batch.count; i++) {
        watch_set(&batch, i, item_new(i, NULL));
    }
}

static void null_from_the_end_on(void)
{
    watch_init(&batch, 2000);
    call_deep(build, NULL);
    EXPECT_MOST_DIE(&batch);
    bool *was_dead = calloc(batch.count, sizeof *was_dead);
    for (int round = 0; round < 5; round++) {
        for (size_t i = 0; i < batch.count; i++) {
            bool dead = watch_is_dead(&batch, i);
            EXPECT(dead || !was_dead[i]);
            was_dead[i] = dead;
        }
        for (uint64_t i = 0; i < test_scaled(5000); i++) {
            item_new(i, NULL); /* the slots are used again, but not by what these point to */
        }
        loam_gc();
    }
    free(was_dead);
}

/* The pointers themselves are heap objects: unheld ones go, held ones stay after their object has gone. */
static void build_twice(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < batch.count; i++) {
        /* A weak pointer to a weak pointer. */
        watch_set(&batch, i, loam_weak_make(item_new(i, NULL)));
    }
}

static void weak_pointers_die_too(void)
{
    watch_init(&batch, 1000);
    call_deep(build_twice, NULL);
    EXPECT_MOST_DIE(&batch);
}

/* An object with a held weak pointer whose weak pointer was dropped and made again. */
static void made_again(void)
{
    item **items = LOAM_NEW_POINTERS(item, 500);
    for (size_t i = 0; i < 500; i++) {
        LOAM_SET(items[i], item_new(i, NULL));
    }
    for (int round = 0; round < 5; round++) {
        for (size_t i = 0; i < 500; i++) {
            EXPECT_PTR_EQ(loam_weak_value(loam_weak_make(items[i])), items[i]);
        }
        scrub_stack();
        loam_gc();
    }
}

/* A freed slot's next object gets a weak pointer of its own. */
static void slots_used_again(void)
{
    for (uint64_t i = 0; i < 3000; i++) {
        item *it = item_new(i, NULL);
        loam_weak *old = loam_weak_make(it);
        loam_free(it);
        EXPECT_NULL(loam_weak_value(old));
        item *fresh = item_new(i, NULL);
        loam_weak *young = loam_weak_make(fresh);
        EXPECT_PTR_NE(young, old);
        EXPECT_NULL(loam_weak_value(old));
        EXPECT_PTR_EQ(loam_weak_value(young), fresh);
    }
}

static void errors(void)
{
    static item in_data;
    item *it = item_new(1, NULL);
    EXPECT_ERRNO(loam_weak_make(NULL), NULL, EINVAL);
    EXPECT_ERRNO(loam_weak_make(&in_data), NULL, EINVAL);
    EXPECT_ERRNO(loam_weak_make((char *)it + 8), NULL, EINVAL);
    EXPECT_ERRNO(loam_weak_make((char *)it - 8), NULL, EINVAL);
    item_check(it);
}

/* ---- weak to strong, racing with the end of marking ---- */

enum { CACHE = 256 };
static loam_weak *_Atomic cache[CACHE];
static _Atomic(bool) stop;
static _Atomic(uint64_t) hits, misses;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

/* A cache of weak values: what comes out must be whole, stay whole while it is held by this frame alone, and be put
 * into the graph without being lost. */
static void *use_cache(void *arg)
{
    struct team_member *me = arg;
    item *kept[32] = {NULL};
    item *holder = item_new(0, NULL);
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, CACHE);
        loam_weak *w = atomic_load_explicit(&cache[i], memory_order_acquire);
        item *it = w != NULL ? loam_weak_value(w) : NULL;
        if (it == NULL) {
            atomic_fetch_add_explicit(&misses, 1, memory_order_relaxed);
            it = item_new(i, NULL);
            LOAM_SET(cache[i], loam_weak_make(it));
        } else {
            atomic_fetch_add_explicit(&hits, 1, memory_order_relaxed);
            item_check(it);
            EXPECT_EQ(it->id, i);
            EXPECT_PTR_EQ(loam_weak_make(it), w);
        }
        size_t k = rng_below(&me->rng, COUNT_OF(kept));
        if (kept[k] != NULL) {
            item_check(kept[k]);
        }
        kept[k] = rng_below(&me->rng, 4) == 0 ? it : NULL;
        if (rng_below(&me->rng, 16) == 0) {
            LOAM_SET(holder->next, it);
        }
        item_check(holder);
        if (holder->next != NULL) {
            item_check(holder->next);
        }
    }
    return NULL;
}

static void weak_to_strong_while_cycles_run(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, use_cache, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
    printf("  %" PRIu64 " hits, %" PRIu64 " misses\n", atomic_load(&hits), atomic_load(&misses));
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(one_for_each_object);
    RUN(null_from_the_end_on);
    RUN(weak_pointers_die_too);
    RUN(made_again);
    RUN(slots_used_again);
    RUN(errors);
    RUN(weak_to_strong_while_cycles_run);
    return test_end();
}
