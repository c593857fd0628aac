/* A pin keeps its object wherever the pointer is kept, until as many unpins as pins.  Pointers are kept disguised in
 * plain memory, so that nothing but the pin holds them.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 60 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    struct item *inner;
    uint64_t id;
    uint64_t check;
    uint64_t fill[3];
} item;
LOAM_TYPE(item, inner);

static item *item_new(uint64_t id)
{
    item *it = LOAM_NEW(item);
    EXPECT_NOT_NULL(it);
    it->id = id;
    it->check = rng_mix(id);
    return it;
}

static void item_check(const item *it)
{
    EXPECT_EQ(it->check, rng_mix(it->id));
}

static struct watch batch;
static struct watch inner;
static uintptr_t *notes; /* disguised, in plain memory */

static void build_pinned(void *arg)
{
    size_t pins = *(size_t *)arg;
    for (size_t i = 0; i < batch.count; i++) {
        item *it = item_new(i);
        LOAM_SET(it->inner, item_new(i));
        watch_set(&batch, i, it);
        watch_set(&inner, i, it->inner);
        notes[i] = disguise(it);
        for (size_t k = 0; k < pins; k++) {
            EXPECT_PTR_EQ(loam_pin(it), it);
        }
    }
}

static void unpin_all(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < batch.count; i++) {
        item *it = reveal(notes[i]);
        item_check(it);
        item_check(it->inner);
        loam_unpin(it);
    }
}

static void counted(void)
{
    size_t pins = 3;
    watch_init(&batch, 10000);
    watch_init(&inner, 10000);
    notes = calloc(batch.count, sizeof *notes);
    call_deep(build_pinned, &pins);
    for (size_t k = 0; k < pins; k++) {
        EXPECT_ALL_LIVE(&batch);
        EXPECT_ALL_LIVE(&inner);
        call_deep(unpin_all, NULL);
    }
    EXPECT_MOST_DIE(&batch);
    EXPECT_MOST_DIE(&inner);
    free(notes);
}

static void build_middle(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < batch.count; i++) {
        item *it = item_new(i);
        watch_set(&batch, i, it);
        char *middle = (char *)it + offsetof(item, fill) + 3;
        notes[i] = disguise(middle);
        EXPECT_PTR_EQ(loam_pin(middle), middle);
    }
}

static void unpin_middle(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < batch.count; i++) {
        loam_unpin(reveal(notes[i]));
    }
}

static void into_the_middle(void)
{
    watch_init(&batch, 1000);
    notes = calloc(batch.count, sizeof *notes);
    call_deep(build_middle, NULL);
    EXPECT_ALL_LIVE(&batch);
    call_deep(unpin_middle, NULL);
    EXPECT_MOST_DIE(&batch);
    free(notes);
}

static void outside_the_heap(void)
{
    static int in_data;
    int local = 0;
    EXPECT_PTR_EQ(loam_pin(&in_data), &in_data);
    EXPECT_PTR_EQ(loam_pin(&local), &local);
    loam_gc();
    loam_unpin(&local);
    loam_unpin(&in_data);
}

/* Many threads pin and unpin the same objects; the count must not drift. */
enum { SHARED = 20 };
static uintptr_t shared[SHARED];

static void *pin_and_unpin(void *arg)
{
    struct team_member *me = arg;
    size_t rounds = test_scaled(20000);
    for (size_t i = 0; i < rounds; i++) {
        item *it = reveal(shared[rng_below(&me->rng, SHARED)]);
        EXPECT_PTR_EQ(loam_pin(it), it);
        item_check(it);
        if (i % 64 == 0) {
            item_new(i);
        }
        loam_unpin(it);
        if (i % 5000 == 0) {
            loam_gc();
        }
    }
    return NULL;
}

static void shared_between_threads(void)
{
    static struct team team;
    for (size_t i = 0; i < SHARED; i++) {
        shared[i] = disguise(loam_pin(item_new(i)));
    }
    team_start(&team, 6, pin_and_unpin, NULL);
    team_join(&team);
    scrub_stack();
    loam_gc();
    for (size_t i = 0; i < SHARED; i++) {
        item *it = reveal(shared[i]);
        item_check(it);
        loam_unpin(it);
    }
}

/* The contract's own case: an object handed to a new thread, and one that it returns. */
static void *take_and_return(void *arg)
{
    EXPECT_EQ(loam_attach(), 0);
    item *given = arg;
    item_check(given);
    loam_unpin(given);
    item *result = item_new(given->id + 1);
    LOAM_SET(result->inner, given);
    return loam_pin(result);
}

static void make_and_free_pinned(void *arg)
{
    uintptr_t *hidden = arg;
    char *p = loam_alloc_noscan(100);
    *hidden = ~(uintptr_t)p;
    loam_pin(p);
    loam_free(p);
    loam_unpin(p);
}

static void take_the_same_place(void *arg)
{
    const uintptr_t *hidden = arg;
    for (int i = 0; i < 10000 && loam_base((void *)~*hidden) == NULL; i++) {
        EXPECT_NOT_NULL(loam_alloc_noscan(100));
    }
    EXPECT_PTR_EQ(loam_base((void *)~*hidden), (void *)~*hidden);
}

/* The pin goes with its unpin, whatever happened to the object, and holds nothing that comes there next. */
static void freed_while_pinned(void)
{
    uintptr_t hidden = 0;
    call_deep(make_and_free_pinned, &hidden);
    call_deep(take_the_same_place, &hidden);
    loam_gc();
    loam_gc();
    EXPECT_NULL(loam_base((void *)~hidden));
}

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void handed_to_a_thread_and_back(void)
{
    pthread_t collector = thread_start(collect_until_stop, NULL);
    for (uint64_t i = 0; i < 300; i++) {
        pthread_t t = thread_start(take_and_return, loam_pin(item_new(i)));
        sleep_us(i % 3 == 0 ? 300 : 0);
        item *result = thread_join(t);
        item_check(result);
        loam_unpin(result);
        EXPECT_EQ(result->id, i + 1);
        EXPECT_EQ(result->inner->id, i);
        item_check(result->inner);
    }
    atomic_store(&stop, true);
    thread_join(collector);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(counted);
    RUN(into_the_middle);
    RUN(outside_the_heap);
    RUN(shared_between_threads);
    RUN(freed_while_pinned);
    RUN(handed_to_a_thread_and_back);
    return test_end();
}
