/* An ephemeron's value lives exactly as long as the ephemeron and its key do, also if the value reaches the key, also
 * through chains of any length in any order, and a long chain costs about as much as a short one per link.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | | 120 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { BATCH = 1000 };

static loam_ephemeron **table; /* holds the ephemerons */
static item **keys;            /* holds keys, or some */
static struct watch key_watch, value_watch;

static void prepare(size_t count)
{
    watch_init(&key_watch, count);
    watch_init(&value_watch, count);
    LOAM_SET(table, LOAM_NEW_POINTERS(loam_ephemeron, count));
    LOAM_SET(keys, LOAM_NEW_POINTERS(item, count));
    EXPECT_NOT_NULL(table);
    EXPECT_NOT_NULL(keys);
}

static void drop_all(void)
{
    LOAM_SET(table, NULL);
    LOAM_SET(keys, NULL);
}

static void build_pairs(void *arg)
{
    bool value_reaches_key = *(bool *)arg;
    for (size_t i = 0; i < key_watch.count; i++) {
        item *key = item_new(i, NULL);
        item *value = item_new(i + BATCH, NULL);
        LOAM_SET(value->next, value_reaches_key ? key : item_new(i, NULL));
        watch_set(&key_watch, i, key);
        watch_set(&value_watch, i, value);
        LOAM_SET(keys[i], key);
        loam_ephemeron *e = loam_ephemeron_make(key, value);
        EXPECT_NOT_NULL(e);
        LOAM_SET(table[i], e);
        EXPECT_PTR_EQ(loam_ephemeron_value(e), value);
    }
}

static NOINLINE void check_values(void)
{
    for (size_t i = 0; i < key_watch.count; i++) {
        item *value = loam_ephemeron_value(table[i]);
        item_check(value);
        EXPECT_EQ(value->id, i + BATCH);
        item_check(value->next);
    }
}

static NOINLINE size_t values_gone(void)
{
    size_t gone = 0;
    for (size_t i = 0; i < key_watch.count; i++) {
        item *value = loam_ephemeron_value(table[i]);
        bool key_dead = watch_is_dead(&key_watch, i);
        if (value != NULL) {
            item_check(value);
        }
        EXPECT_MSG(!key_dead || loam_ephemeron_value(table[i]) == NULL,
                   "pair %zu: the key is gone, the value is not", i);
        gone += value == NULL ? 1 : 0;
    }
    return gone;
}

static void run_pairs(bool value_reaches_key)
{
    prepare(BATCH);
    call_deep(build_pairs, &value_reaches_key);
    for (int i = 0; i < 3; i++) {
        EXPECT_ALL_LIVE(&key_watch);
        EXPECT_ALL_LIVE(&value_watch);
        check_values();
    }
    LOAM_SET(keys, NULL); /* the ephemerons stay */
    EXPECT_MOST_DIE(&key_watch);
    EXPECT_MOST_DIE(&value_watch);
    EXPECT_GE(values_gone(), BATCH * 95 / 100);
    drop_all();
}

static void value_lives_while_the_key_does(void)
{
    run_pairs(false);
}

static void value_may_reach_the_key(void)
{
    run_pairs(true);
}

static void value_dies_with_the_ephemeron(void)
{
    bool value_reaches_key = true;
    prepare(BATCH);
    call_deep(build_pairs, &value_reaches_key);
    LOAM_SET(table, NULL); /* the keys stay */
    EXPECT_MOST_DIE(&value_watch);
    EXPECT_ALL_LIVE(&key_watch);
    drop_all();
}

/* Many ephemerons on one key; each value lives. */
static void many_on_one_key(void)
{
    prepare(BATCH);
    item *key = item_new(0, NULL);
    for (size_t i = 0; i < BATCH; i++) {
        LOAM_SET(table[i], loam_ephemeron_make(key, item_new(i, NULL)));
    }
    scrub_stack();
    loam_gc();
    for (size_t i = 0; i < BATCH; i++) {
        item *value = loam_ephemeron_value(table[i]);
        item_check(value);
        EXPECT_EQ(value->id, i);
    }
    loam_keep_alive(key);
    drop_all();
}

/* Key i+1 is reached by value i alone.  `order` says where in the table link i lies. */
struct chain {
    size_t count;
    size_t *order;
};

static void build_chain(void *arg)
{
    const struct chain *chain = arg;
    item *key = item_new(0, NULL);
    LOAM_SET(keys[0], key);
    for (size_t i = 0; i < chain->count; i++) {
        item *value = item_new(i + 1, NULL);
        if (i % 3 == 0) { /* the next key is the value, or hangs from it */
            item *inner = item_new(i + 1, NULL);
            LOAM_SET(value->next, inner);
        }
        if (i < key_watch.count) {
            watch_set(&value_watch, i, value);
            watch_set(&key_watch, i, key);
        }
        loam_ephemeron *e = loam_ephemeron_make(key, value);
        EXPECT_NOT_NULL(e);
        LOAM_SET(table[chain->order[i]], e);
        key = value->next != NULL ? value->next : value;
    }
}

static NOINLINE void walk_chain(const struct chain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        item *value = loam_ephemeron_value(table[chain->order[i]]);
        item_check(value);
        EXPECT_EQ(value->id, i + 1);
    }
}

static double time_of_gc(void)
{
    uint64_t start = now_ns();
    loam_gc();
    return seconds_since(start);
}

/* A stale word that points to an early link keeps all that follow: one of three chains may fail to die. */
static unsigned chains_kept;

static double run_chain(const struct chain *chain)
{
    prepare(chain->count);
    call_deep(build_chain, (void *)(uintptr_t)chain);
    scrub_stack();
    double best = time_of_gc();
    for (int i = 0; i < 2; i++) {
        double again = time_of_gc();
        best = again < best ? again : best;
    }
    walk_chain(chain);
    LOAM_SET(keys, NULL);
    scrub_stack();
    bool died = watch_collect(&value_watch, 95) * 100 >= chain->count * 95 &&
                watch_collect(&key_watch, 95) * 100 >= chain->count * 95;
    chains_kept += died ? 0 : 1;
    drop_all();
    return best;
}

/* The links lie forward, backward, and at random: worst for a collector that goes over its table until nothing
 * changes.  Twenty times the time of the best order plus half a second is far from the square. */
static void long_chains(void)
{
    struct rng rng = rng_stream(1);
    size_t count = test_scaled(100000);
    size_t *order = calloc(count, sizeof *order);
    struct chain chain = {count, order};

    for (size_t i = 0; i < count; i++) {
        order[i] = i;
    }
    double forward = run_chain(&chain);
    for (size_t i = 0; i < count; i++) {
        order[i] = count - 1 - i;
    }
    double backward = run_chain(&chain);
    rng_shuffle(&rng, order, count);
    double random = run_chain(&chain);
    printf("  %zu links: forward %.3f s, backward %.3f s, random %.3f s\n", count, forward,
           backward, random);
    double best = forward < backward ? forward : backward;
    best = random < best ? random : best;
    EXPECT_MSG(forward < 20 * best + 0.5, "forward took %g s, the best order %g s", forward, best);
    EXPECT_MSG(backward < 20 * best + 0.5, "backward took %g s, the best order %g s", backward,
               best);
    EXPECT_MSG(random < 20 * best + 0.5, "random took %g s, the best order %g s", random, best);
    EXPECT_LE(chains_kept, 1);
    EXPECT_MSG(best < 5, "the best order took %g s", best);
    free(order);
}

/* Rings: every key is reached through the value of another only, so all of them are garbage together. */
static void build_ring(void *arg)
{
    (void)arg;
    item *first = item_new(0, NULL);
    item *key = first;
    for (size_t i = 0; i < key_watch.count; i++) {
        item *next = i + 1 == key_watch.count ? first : item_new(i + 1, NULL);
        item *value = item_new(i + BATCH, NULL);
        LOAM_SET(value->next, next);
        watch_set(&key_watch, i, key);
        watch_set(&value_watch, i, value);
        LOAM_SET(table[i], loam_ephemeron_make(key, value));
        key = next;
    }
    LOAM_SET(keys[0], first);
}

static void rings(void)
{
    prepare(BATCH);
    call_deep(build_ring, NULL);
    EXPECT_ALL_LIVE(&value_watch);
    EXPECT_ALL_LIVE(&key_watch);
    LOAM_SET(keys[0], NULL);
    /* A single stale word would keep the whole ring, so it is asked for with patience. */
    size_t dead = watch_collect(&key_watch, 95);
    if (dead * 100 < key_watch.count * 95) {
        call_deep(build_ring, NULL);
        LOAM_SET(keys[0], NULL);
        EXPECT_MOST_DIE(&key_watch);
    }
    EXPECT_MOST_DIE(&value_watch);
    drop_all();
}

static void errors_and_odd_values(void)
{
    static item in_data;
    item *key = item_new(1, NULL);
    EXPECT_ERRNO(loam_ephemeron_make(NULL, key), NULL, EINVAL);
    EXPECT_ERRNO(loam_ephemeron_make(&in_data, key), NULL, EINVAL);
    EXPECT_ERRNO(loam_ephemeron_make((char *)key + 8, key), NULL, EINVAL);
    loam_ephemeron *e = loam_ephemeron_make(key, NULL);
    EXPECT_NOT_NULL(e);
    EXPECT_NULL(loam_ephemeron_value(e));
    e = loam_ephemeron_make(key, &in_data);
    EXPECT_PTR_EQ(loam_ephemeron_value(e), &in_data);
    loam_ephemeron *odd = loam_ephemeron_make(key, (void *)(uintptr_t)12345);
    EXPECT_PTR_EQ(loam_ephemeron_value(odd), (void *)(uintptr_t)12345);
    loam_ephemeron *self = loam_ephemeron_make(key, key);
    EXPECT_PTR_EQ(loam_ephemeron_value(self), key);
    loam_gc();
    EXPECT_PTR_EQ(loam_ephemeron_value(e), &in_data);
    EXPECT_PTR_EQ(loam_ephemeron_value(self), key);
    loam_keep_alive(key);
}

/* A weak table used by many threads while cycles run. */
static _Atomic(bool) stop;
static loam_ephemeron *_Atomic shared[128];

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void *use_table(void *arg)
{
    struct team_member *me = arg;
    item *mine[32] = {NULL};
    loam_ephemeron *pairs[32] = {NULL};
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, COUNT_OF(mine));
        if (mine[i] == NULL || rng_below(&me->rng, 4) == 0) {
            mine[i] = item_new(rng_next(&me->rng), NULL);
            item *value = item_new(mine[i]->id + 1, NULL);
            LOAM_SET(value->next, mine[i]);
            pairs[i] = loam_ephemeron_make(mine[i], value);
            EXPECT_NOT_NULL(pairs[i]);
            LOAM_SET(shared[rng_below(&me->rng, COUNT_OF(shared))], pairs[i]);
        } else {
            item *value =
                loam_ephemeron_value(pairs[i]); /* its key is held here: it must be there */
            EXPECT_NOT_NULL(value);
            item_check(value);
            EXPECT_EQ(value->id, mine[i]->id + 1);
            EXPECT_PTR_EQ(value->next, mine[i]);
        }
        loam_ephemeron *e = atomic_load_explicit(&shared[rng_below(&me->rng, COUNT_OF(shared))],
                                                 memory_order_acquire);
        item *value = e != NULL ? loam_ephemeron_value(e) : NULL;
        if (value != NULL) { /* somebody's: while it is held here, so is its key */
            item_check(value);
            item_check(value->next);
            EXPECT_EQ(value->id, value->next->id + 1);
        }
    }
    return NULL;
}

static void a_table_while_cycles_run(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, use_table, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(value_lives_while_the_key_does);
    RUN(value_may_reach_the_key);
    RUN(value_dies_with_the_ephemeron);
    RUN(many_on_one_key);
    RUN(long_chains);
    RUN(rings);
    RUN(errors_and_odd_values);
    RUN(a_table_while_cycles_run);
    return test_end();
}
