/* An object that was asked to be smaller than its type (an array of none, a realloc to less) is searched as any other:
 * not beyond its end, where its neighbours are.  So what only dead neighbours point to dies.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 | | 60
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1 | | 60 */
#include "../support/test.h"

#include "../support/heap.h"

typedef struct big {
    void *p[63];
    uint64_t n;
} big;
LOAM_TYPE(big, p);

/* 64 words are what a mask describes; this one is described otherwise. */
typedef struct huge {
    void *p[200];
    uint64_t n;
} huge;
LOAM_TYPE(huge, p);

enum { COUNT = 2000, EVERY = 20 };

struct batch {
    const loam_type *type;
    size_t count;  /* elements at first */
    size_t shrink; /* bytes; 0: as it is */
    struct watch targets;
    void **kept;
};

/* Of EVERY neighbours one is kept, without a target. */
static void build_neighbours(void *arg)
{
    struct batch *b = arg;
    for (size_t i = 0; i < COUNT; i++) {
        void **p = loam_new(b->type, b->count);
        EXPECT_NOT_NULL(p);
        if (b->shrink != 0) {
            p = loam_realloc(p, b->shrink);
            EXPECT_NOT_NULL(p);
        }
        if (i % EVERY == 0) {
            LOAM_SET(b->kept[i / EVERY], p);
        } else {
            void *target = loam_alloc(64);
            watch_set(&b->targets, i, target);
            LOAM_SET(*p, target);
        }
    }
}

static NOINLINE void search(const loam_type *type, size_t count, size_t shrink)
{
    struct batch b = {.type = type, .count = count, .shrink = shrink};
    b.kept = loam_alloc(COUNT / EVERY * sizeof(void *));
    EXPECT_NOT_NULL(b.kept);
    watch_init(&b.targets, COUNT);
    call_deep(build_neighbours, &b);
    EXPECT_MOST_DIE(&b.targets);
    loam_keep_alive(b.kept);
}

static void an_array_of_none(void)
{
    search(LOAM_TYPEOF(big), 0, 0);
    search(LOAM_TYPEOF(huge), 0, 0);
}

static void shrunk_below_the_type(void)
{
    search(LOAM_TYPEOF(big), 1, 16);
    search(LOAM_TYPEOF(big), 3, 16);
    search(LOAM_TYPEOF(huge), 1, 16);
}

static void shrunk_to_nothing(void)
{
    search(LOAM_TYPEOF(big), 1, 1);
    search(LOAM_TYPEOF(huge), 2, 1);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(an_array_of_none);
    RUN(shrunk_below_the_type);
    RUN(shrunk_to_nothing);
    return test_end();
}
