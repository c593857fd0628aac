/* loam_realloc keeps contents up to the smaller size, zeroes what is new, and keeps type and scan kind.  The oracle is
 * a copy of every block in plain memory; for pointers, weak pointers to the targets.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 60 */
#include "../support/test.h"

#include "../support/heap.h"

typedef struct pair {
    void *listed;
    uintptr_t secret;
} pair;
LOAM_TYPE(pair, listed);

typedef struct row {
    void *head;
    uint64_t count;
    void *items[];
} row;
LOAM_TYPE_FLEX(row, items, head);

struct model {
    unsigned char *bytes;
    size_t size;
};

enum { BLOCKS = 48 };

static size_t random_size(struct rng *rng)
{
    return rng_below(rng, (size_t)1 << rng_between(rng, 3, rng_below(rng, 50) == 0 ? 20 : 14));
}

static void check_model(const unsigned char *p, const struct model *m)
{
    for (size_t i = 0; i < m->size; i++) {
        if (p[i] != m->bytes[i]) {
            FAIL("byte %zu of %zu is %#x, expected %#x", i, m->size, p[i], m->bytes[i]);
        }
    }
}

static void step(struct rng *rng, unsigned char **slot, struct model *m)
{
    size_t size = random_size(rng);
    check_model(*slot, m);
    unsigned char *p = loam_realloc(*slot, size == 0 ? 1 : size);
    EXPECT_NOT_NULL(p);
    LOAM_SET(*slot, p);
    size = size == 0 ? 1 : size;
    EXPECT_GE(loam_usable_size(p), size);
    EXPECT_PTR_EQ(loam_base(p), p);
    m->bytes = realloc(m->bytes, size);
    if (size > m->size) {
        memset(m->bytes + m->size, 0, size - m->size);
    }
    m->size = size;
    check_model(p, m);
    size_t from = rng_below(rng, size);
    size_t count = rng_below(rng, size - from + 1);
    int fill = (int)rng_between(rng, 1, 255);
    memset(p + from, fill, count);
    memset(m->bytes + from, fill, count);
}

/* Shrinking forgets: bytes that come back by growing again are new ones, and zero. */
static void compare_with_model(void)
{
    struct rng rng = rng_stream(1);
    unsigned char **slots = LOAM_NEW_POINTERS(unsigned char, BLOCKS);
    struct model models[BLOCKS];
    size_t rounds = test_scaled(30000);

    for (size_t i = 0; i < BLOCKS; i++) {
        models[i] = (struct model){calloc(1, 1), 1};
        LOAM_SET(slots[i], i % 2 == 0 ? loam_alloc_noscan(1) : loam_alloc(1));
    }
    for (size_t i = 0; i < rounds; i++) {
        size_t b = rng_below(&rng, BLOCKS);
        step(&rng, &slots[b], &models[b]);
        if (i % 4096 == 4095) {
            loam_gc();
        }
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        check_model(slots[i], &models[i]);
        free(models[i].bytes);
    }
}

static void from_null(void)
{
    struct rng rng = rng_stream(2);
    for (int i = 0; i < 1000; i++) {
        size_t size = random_size(&rng);
        unsigned char *p = loam_realloc(NULL, size);
        EXPECT_NOT_NULL(p);
        for (size_t k = 0; k < size; k++) {
            EXPECT_EQ(p[k], 0);
        }
    }
}

static void too_large_leaves_it(void)
{
    char *p = loam_alloc(100);
    memset(p, 0x33, 100);
    EXPECT_ERRNO(loam_realloc(p, SIZE_MAX), NULL, ENOMEM);
    EXPECT_ERRNO(loam_realloc(p, SIZE_MAX / 2 + 1), NULL, ENOMEM);
    EXPECT_ERRNO(loam_realloc(NULL, SIZE_MAX - 15), NULL, ENOMEM);
    EXPECT_PTR_EQ(loam_base(p), p);
    for (int i = 0; i < 100; i++) {
        EXPECT_EQ(p[i], 0x33);
    }
}

static void **holders;
static struct watch listed;
static struct watch unlisted;

static void *target(void)
{
    return loam_alloc_noscan(64);
}

/* Element k of holder i, in every kind of memory that is searched. */
static void build_typed(void *arg)
{
    struct rng rng = rng_stream(3);
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        size_t count = rng_between(&rng, 1, 40);
        size_t grown = rng_between(&rng, count + 1, i % 10 == 0 ? 8000 : 400);
        pair *p = LOAM_NEW_ARRAY(pair, count);
        void *kept = target();
        void *late = target();
        void *lost = target();
        watch_set(&listed, 2 * i, kept);
        watch_set(&listed, 2 * i + 1, late);
        watch_set(&unlisted, i, lost);
        LOAM_SET(p[count - 1].listed, kept);
        p = loam_realloc(p, grown * sizeof *p);
        EXPECT_NOT_NULL(p);
        EXPECT_PTR_EQ(p[count - 1].listed, kept);
        LOAM_SET(p[grown - 1].listed, late);
        p[grown - 1].secret = (uintptr_t)lost;
        LOAM_SET(holders[i], p);
    }
}

static void build_flex(void *arg)
{
    struct rng rng = rng_stream(4);
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        size_t count = rng_between(&rng, 1, 40);
        size_t grown = rng_between(&rng, count + 1, i % 10 == 0 ? 8000 : 400);
        row *r = LOAM_NEW_FLEX(row, count);
        void *kept = target();
        void *late = target();
        void *lost = target();
        watch_set(&listed, 2 * i, kept);
        watch_set(&listed, 2 * i + 1, late);
        watch_set(&unlisted, i, lost);
        LOAM_SET(r->head, kept);
        r = loam_realloc(r, sizeof *r + grown * sizeof r->items[0]);
        EXPECT_NOT_NULL(r);
        EXPECT_PTR_EQ(r->head, kept);
        LOAM_SET(r->items[grown - 1], late);
        r->count = (uintptr_t)lost;
        LOAM_SET(holders[i], r);
    }
}

/* Untyped stays searched, noscan stays unsearched. */
static void build_kinds(void *arg)
{
    struct rng rng = rng_stream(5);
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        size_t words = rng_between(&rng, 2, i % 10 == 0 ? 10000 : 200);
        void **scan = LOAM_NEW_POINTERS(void, 1);
        uintptr_t *noscan = loam_alloc_noscan(8);
        void **both = LOAM_NEW_POINTERS(void, 2);
        void *kept = target();
        void *late = target();
        void *lost = target();
        watch_set(&listed, 2 * i, kept);
        watch_set(&listed, 2 * i + 1, late);
        watch_set(&unlisted, i, lost);
        LOAM_SET(scan[0], kept);
        scan = loam_realloc((void *)scan, words * sizeof *scan);
        LOAM_SET(scan[words - 1], late);
        noscan = loam_realloc(noscan, words * sizeof *noscan);
        noscan[words - 1] = (uintptr_t)lost;
        LOAM_SET(both[0], (void *)scan);
        LOAM_SET(both[1], (void *)noscan);
        LOAM_SET(holders[i], (void *)both);
    }
}

static void check_kind(void (*build)(void *))
{
    size_t count = 300;
    watch_init(&listed, 2 * count);
    watch_init(&unlisted, count);
    LOAM_SET(holders, LOAM_NEW_POINTERS(void, count));
    call_deep(build, &count);
    EXPECT_ALL_LIVE(&listed);
    EXPECT_MOST_DIE(&unlisted);
    EXPECT_ALL_LIVE(&listed);
    LOAM_SET(holders, NULL);
    EXPECT_MOST_DIE(&listed);
}

static void keeps_the_type(void)
{
    check_kind(build_typed);
}

static void keeps_the_flexible_tail(void)
{
    check_kind(build_flex);
}

static void keeps_the_scan_kind(void)
{
    check_kind(build_kinds);
}

/* An array that doubles, as every program has one: linear memory, correct contents. */
static void doubling(void)
{
    size_t room = 1;
    uint64_t *numbers = loam_alloc_noscan(sizeof *numbers);
    for (size_t i = 0; i < 1000000; i++) {
        if (i == room) {
            room *= 2;
            numbers = loam_realloc(numbers, room * sizeof *numbers);
            EXPECT_NOT_NULL(numbers);
        }
        EXPECT_EQ(numbers[i], 0);
        numbers[i] = i;
    }
    for (size_t i = 0; i < 1000000; i++) {
        EXPECT_EQ(numbers[i], i);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(compare_with_model);
    RUN(from_null);
    RUN(too_large_leaves_it);
    RUN(keeps_the_type);
    RUN(keeps_the_flexible_tail);
    RUN(keeps_the_scan_kind);
    RUN(doubling);
    return test_end();
}
