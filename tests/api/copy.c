/* loam_copy is memmove and loam_clear is memset to zero, to the byte, for every alignment and overlap; words are never
 * torn, and no pointer that is moved while a cycle runs is lost.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | | 90 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    uint64_t id;
    uint64_t check;
    uint64_t fill[2];
} item;
LOAM_TYPE_NOSCAN(item);

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
    EXPECT_NOT_NULL(it);
    EXPECT_EQ(it->check, rng_mix(it->id));
}

enum { ROOM = 4096 };

static void expect_same(const unsigned char *got, const unsigned char *want, size_t bytes,
                        const char *what)
{
    for (size_t i = 0; i < bytes; i++) {
        if (got[i] != want[i]) {
            FAIL("%s: byte %zu is %#x, expected %#x", what, i, got[i], want[i]);
        }
    }
}

static void bytes_as_memmove(void)
{
    struct rng rng = rng_stream(1);
    unsigned char want[ROOM];
    unsigned char *memory[4] = {loam_alloc(ROOM), loam_alloc_noscan(ROOM), malloc(ROOM),
                                loam_alloc(ROOM)};
    size_t rounds = test_scaled(40000);

    for (size_t i = 0; i < rounds; i++) {
        size_t most = rng_below(&rng, 4) == 0 ? ROOM : 80;
        unsigned char *p = memory[i % 3];
        size_t bytes = rng_below(&rng, most);
        size_t from = rng_below(&rng, ROOM - bytes + 1);
        size_t to = rng_below(&rng, 2) == 0 ? rng_below(&rng, ROOM - bytes + 1) : from;
        if (rng_below(&rng, 2) == 0 && from + 16 + bytes <= ROOM) {
            to = from + rng_below(&rng, 17); /* overlaps by nearly all, either way */
        }
        for (size_t k = 0; k < ROOM && i % 16 == 0; k++) {
            p[k] = (unsigned char)rng_next(&rng);
        }
        memcpy(want, p, ROOM);
        if (i % 2 == 0) {
            memmove(want + to, want + from, bytes);
            loam_copy(p + to, p + from, bytes);
        } else {
            memmove(want + from, want + to, bytes);
            loam_copy(p + from, p + to, bytes);
        }
        expect_same(p, want, ROOM, "loam_copy");
        memcpy(want, memory[3], ROOM);
        memcpy(want + to, p + from, bytes);
        loam_copy(memory[3] + to, p + from, bytes);
        expect_same(memory[3], want, ROOM, "loam_copy to another object");
        if (i % 5 == 0) {
            memcpy(want, p, ROOM);
            memset(want + from, 0, bytes);
            loam_clear(p + from, bytes);
            expect_same(p, want, ROOM, "loam_clear");
        }
    }
    free(memory[2]);
}

static void nothing_to_do(void)
{
    char *p = loam_alloc(64);
    memset(p, 7, 64);
    loam_copy(p, p, 0);
    loam_copy(p + 64, p + 64, 0);
    loam_copy(p, p, 64);
    loam_clear(p, 0);
    loam_clear(p + 64, 0);
    for (int i = 0; i < 64; i++) {
        EXPECT_EQ(p[i], 7);
    }
}

static struct watch batch;
static item **held;

static void build_held(void *arg)
{
    (void)arg;
    LOAM_SET(held, LOAM_NEW_POINTERS(item, batch.count));
    for (size_t i = 0; i < batch.count; i++) {
        item *it = item_new(i);
        watch_set(&batch, i, it);
        LOAM_SET(held[i], it);
    }
}

static void what_is_cleared_dies(void)
{
    watch_init(&batch, 1000);
    call_deep(build_held, NULL);
    EXPECT_ALL_LIVE(&batch);
    loam_clear(held, batch.count * sizeof *held);
    EXPECT_MOST_DIE(&batch);
    LOAM_SET(held, NULL);
}

/* ---- while cycles run ---- */

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void run_team_while_collecting(size_t count, void *(*fn)(void *))
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, count, fn, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

/* Rotate an array of unique objects by one in either direction: each object is overwritten in its place before or
 * after it is written into the next, and one is only in a local meanwhile.  Lengths up to where marking takes pieces. */
static void *rotate(void *arg)
{
    struct team_member *me = arg;
    size_t count = me->index == 0 ? 40000 : 2 + rng_below(&me->rng, 600);
    item **array = LOAM_NEW_POINTERS(item, count);
    for (size_t i = 0; i < count; i++) {
        LOAM_SET(array[i], item_new(i));
    }
    uint64_t first = 0; /* the id at array[0] */
    while (!atomic_load(&stop)) {
        size_t by = rng_between(&me->rng, 1, count < 8 ? count - 1 : 7);
        item *carried[7];
        if (rng_below(&me->rng, 2) == 0) {
            memcpy(carried, array, by * sizeof *array); /* to the stack: plain C */
            loam_copy(array, array + by, (count - by) * sizeof *array);
            loam_copy(array + count - by, carried, by * sizeof *array);
            first = (first + by) % count;
        } else {
            memcpy(carried, array + count - by, by * sizeof *array);
            loam_copy(array + by, array, (count - by) * sizeof *array);
            loam_copy(array, carried, by * sizeof *array);
            first = (first + count - by) % count;
        }
        size_t look = rng_below(&me->rng, count);
        item_check(array[look]);
        EXPECT_EQ(array[look]->id, (first + look) % count);
        item_new(0);
    }
    for (size_t i = 0; i < count; i++) {
        item_check(array[i]);
        EXPECT_EQ(array[i]->id, (first + i) % count);
    }
    return NULL;
}

static void rotating_while_marking(void)
{
    run_team_while_collecting(4, rotate);
}

/* Readers see whole pointers while others copy over them. */
enum { SHARED = 512 };
static item **shared;

static void *copy_and_read(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        size_t count = rng_between(&me->rng, 1, SHARED / 2);
        size_t from = rng_below(&me->rng, SHARED - count + 1);
        size_t to = rng_below(&me->rng, SHARED - count + 1);
        if (me->index % 2 == 0) {
            loam_copy(shared + to, shared + from, count * sizeof *shared);
            LOAM_SET(shared[rng_below(&me->rng, SHARED)], item_new(rng_next(&me->rng)));
        } else {
            for (size_t i = 0; i < count; i++) {
                item *it = LOAD_SLOT(shared[from + i]);
                item_check(it);
                EXPECT_PTR_EQ(loam_base(it), it);
            }
        }
    }
    return NULL;
}

static void words_are_never_torn(void)
{
    LOAM_SET(shared, LOAM_NEW_POINTERS(item, SHARED));
    for (size_t i = 0; i < SHARED; i++) {
        LOAM_SET(shared[i], item_new(i));
    }
    run_team_while_collecting(4, copy_and_read);
    LOAM_SET(shared, NULL);
}

/* An array grows and shrinks by the pattern of every vector: insert in the middle, delete from the middle. */
static void *insert_and_delete(void *arg)
{
    enum { MOST = 700 };
    struct team_member *me = arg;
    item **v = LOAM_NEW_POINTERS(item, MOST);
    uint64_t model[MOST];
    size_t count = 0;
    while (!atomic_load(&stop)) {
        size_t at = rng_below(&me->rng, count + 1);
        if (count < MOST && (count == 0 || rng_below(&me->rng, 2) == 0)) {
            uint64_t id = rng_next(&me->rng);
            loam_copy(v + at + 1, v + at, (count - at) * sizeof *v);
            LOAM_SET(v[at], item_new(id));
            memmove(model + at + 1, model + at, (count - at) * sizeof *model);
            model[at] = id;
            count++;
        } else if (at < count) {
            loam_copy(v + at, v + at + 1, (count - at - 1) * sizeof *v);
            LOAM_SET(v[count - 1], NULL);
            memmove(model + at, model + at + 1, (count - at - 1) * sizeof *model);
            count--;
        }
        if (count > 0) {
            size_t look = rng_below(&me->rng, count);
            item_check(v[look]);
            EXPECT_EQ(v[look]->id, model[look]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        item_check(v[i]);
        EXPECT_EQ(v[i]->id, model[i]);
    }
    return NULL;
}

static void vectors(void)
{
    run_team_while_collecting(4, insert_and_delete);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(bytes_as_memmove);
    RUN(nothing_to_do);
    RUN(what_is_cleared_dies);
    RUN(rotating_while_marking);
    RUN(words_are_never_torn);
    RUN(vectors);
    return test_end();
}
