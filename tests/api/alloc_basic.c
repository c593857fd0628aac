/* Every size gives zeroed, aligned, disjoint memory of at least that size, and loam_base finds an object's start from
 * any byte of it and from no byte outside.  The oracle is a table of every live block with its fill byte.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: gcstress | GODEBUG=gcstress=1 | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 60 */
#include "../support/test.h"

#include "../support/heap.h"

enum { RING = 64 };

/* The last blocks given out; `fill` was written over all usable bytes. */
struct block {
    unsigned char *p;
    size_t usable;
    unsigned char fill;
};

static size_t first_other(const unsigned char *p, size_t bytes, unsigned char value)
{
    size_t i = 0;
    while (i < bytes && p[i] == value) {
        i++;
    }
    return i;
}

static void check_block(unsigned char *p, size_t bytes)
{
    EXPECT_NOT_NULL(p);
    size_t usable = loam_usable_size(p);
    EXPECT_EQ((uintptr_t)p % (bytes >= 16 ? 16 : 8), 0);
    EXPECT_GE(usable, bytes);
    EXPECT_EQ(first_other(p, bytes, 0), bytes);
    EXPECT_PTR_EQ(loam_base(p), p);
    if (usable > 0) {
        EXPECT_PTR_EQ(loam_base(p + usable - 1), p);
        EXPECT_PTR_EQ(loam_base(p + usable / 2), p);
        EXPECT_PTR_NE(loam_base(p + usable), p);
    }
    EXPECT_PTR_NE(loam_base(p - 1), p);
}

static void take_into_ring(struct block *b, size_t bytes, unsigned char fill, bool noscan)
{
    if (b->p != NULL) {
        EXPECT_EQ(first_other(b->p, b->usable, b->fill), b->usable);
    }
    unsigned char *p = noscan ? loam_alloc_noscan(bytes) : loam_alloc(bytes);
    check_block(p, bytes);
    *b = (struct block){p, loam_usable_size(p), fill};
    memset(p, fill, b->usable);
}

static void all_small_sizes(void)
{
    struct rng rng = rng_stream(1);
    struct block ring[2][RING] = {{{NULL, 0, 0}}};
    size_t step = test_godebug("gcstress") ? 17 : 1;

    for (size_t bytes = 0, i = 0; bytes <= 40000; i++) {
        unsigned char fill = (unsigned char)rng_between(&rng, 1, 255);
        take_into_ring(&ring[0][i % RING], bytes, fill, false);
        take_into_ring(&ring[1][i % RING], bytes, fill, true);
        bytes += bytes < 1100 ? step : rng_between(&rng, 1, 40 * step);
    }
}

static void large_sizes(void)
{
    static const size_t sizes[] = {
        32760,          32767,    32768,          32769,          40960,
        65535,          65536,    (1 << 20) - 1,  (1 << 20) + 1,  (4 << 20) + 8191,
        (64 << 20) - 1, 64 << 20, (64 << 20) + 1, (100 << 20) + 7};
    struct rng rng = rng_stream(2);

    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        for (size_t again = 0; again < 2; again++) {
            unsigned char *p = (again + i) % 2 == 0 ? loam_alloc(sizes[i])
                                                    : loam_alloc_noscan(sizes[i]);
            check_block(p, sizes[i]);
            memset(p, 0x5A, loam_usable_size(p));
            for (int k = 0; k < 100; k++) {
                EXPECT_PTR_EQ(loam_base(p + rng_below(&rng, loam_usable_size(p))), p);
            }
            loam_free(p);
        }
    }
}

/* Memory that was full of garbage and was freed or collected comes back zeroed. */
static void reused_memory_is_zeroed(void)
{
    struct rng rng = rng_stream(3);
    size_t rounds = test_scaled(60000);

    for (size_t i = 0; i < rounds; i++) {
        size_t bytes = rng_below(&rng, (size_t)1 << rng_between(&rng, 3, i % 64 == 0 ? 18 : 12));
        unsigned char *p = rng_below(&rng, 2) == 0 ? loam_alloc(bytes) : loam_alloc_noscan(bytes);
        EXPECT_NOT_NULL(p);
        EXPECT_EQ(first_other(p, bytes, 0), bytes);
        memset(p, 0xA5, loam_usable_size(p));
        if (rng_below(&rng, 4) == 0) {
            loam_free(p);
        }
        if (i % 8192 == 8191) {
            loam_gc();
        }
    }
}

static int by_address(const void *a, const void *b)
{
    const struct block *x = a;
    const struct block *y = b;
    return x->p < y->p ? -1 : x->p > y->p;
}

static void blocks_are_disjoint(void)
{
    struct rng rng = rng_stream(4);
    size_t count = test_scaled(20000);
    unsigned char **held = LOAM_NEW_POINTERS(unsigned char, count);
    struct block *all = calloc(count, sizeof *all);

    for (size_t i = 0; i < count; i++) {
        size_t bytes = rng_below(&rng, (size_t)1 << rng_between(&rng, 3, 11));
        bool pointers = rng_below(&rng, 2) == 0;
        unsigned char *p = pointers ? loam_alloc(bytes) : loam_alloc_noscan(bytes);
        LOAM_SET(held[i], p);
        all[i] = (struct block){p, loam_usable_size(p), (unsigned char)i};
        memset(p, pointers ? 0x11 : (int)(i & 0xFF), all[i].usable);
        all[i].fill = pointers ? 0x11 : (unsigned char)i;
    }
    loam_gc();
    qsort(all, count, sizeof *all, by_address);
    for (size_t i = 0; i < count; i++) {
        EXPECT_EQ(first_other(all[i].p, all[i].usable, all[i].fill), all[i].usable);
        if (i + 1 < count && all[i].usable > 0) {
            EXPECT_MSG(all[i].p + all[i].usable <= all[i + 1].p,
                       "block %p of %zu bytes overlaps block %p", (void *)all[i].p, all[i].usable,
                       (void *)all[i + 1].p);
        }
    }
    loam_keep_alive(held);
    free(all);
}

static void base_of_what_is_no_object(void)
{
    static int in_data = 1;
    int on_stack = 0;
    void *from_malloc = malloc(100);
    struct rng rng = rng_stream(5);
    char *p = loam_alloc(100);

    EXPECT_NULL(loam_base(NULL));
    EXPECT_NULL(loam_base(&in_data));
    EXPECT_NULL(loam_base(&on_stack));
    EXPECT_NULL(loam_base(from_malloc));
    EXPECT_NULL(loam_base((void *)(uintptr_t)1));
    EXPECT_NULL(loam_base((void *)UINTPTR_MAX));
    EXPECT_EQ(loam_usable_size(NULL), 0);
    for (int i = 0; i < 200000; i++) {
        uintptr_t near = (uintptr_t)p + (rng_next(&rng) >> rng_between(&rng, 16, 63));
        uintptr_t any = i % 2 == 0 ? near : (uintptr_t)rng_next(&rng);
        char *base = loam_base((void *)any);
        if (base != NULL) {
            /* Nothing but this address may name the object: then it may be collected before it is asked for its size. */
            size_t usable = loam_usable_size(base);
            EXPECT_LE((uintptr_t)base, any);
            EXPECT(usable != 0 ? any - (uintptr_t)base < usable : loam_base(base) == NULL);
        }
    }
    loam_keep_alive(p);
    free(from_malloc);
}

static void a_freed_slot_has_no_base(void)
{
    void *neighbour = loam_alloc(64);
    void *p = loam_alloc(64);
    loam_free(p);
    EXPECT_NULL(loam_base(p));
    loam_keep_alive(neighbour);
}

static void no_finalizer(void *obj, void *arg)
{
    (void)obj, (void)arg;
}

/* The slots behind a fresh object, which its thread's cache holds, are no objects yet. */
static void a_slot_not_handed_out_has_no_base(void)
{
    static uint64_t arg;
    for (int i = 0; i < 300; i++) {
        char *p = loam_alloc_noscan(32);
        EXPECT_NOT_NULL(p);
        if (loam_base(p + 32) != NULL) { /* allocated before, or it is one of this thread's */
            EXPECT_PTR_EQ(loam_base(p + 32), p + 32);
            continue;
        }
        EXPECT_EQ(loam_usable_size(p + 32), 0);
        EXPECT_ERRNO(loam_set_finalizer(p + 32, no_finalizer, &arg), -1, EINVAL);
    }
}

static void size_zero(void)
{
    for (int i = 0; i < 1000; i++) {
        void *p = loam_alloc(0);
        void *q = loam_alloc_noscan(0);
        EXPECT_NOT_NULL(p);
        EXPECT_NOT_NULL(q);
        loam_free(i % 2 == 0 ? NULL : q);
    }
}

static void strings(void)
{
    char text[5000];
    struct rng rng = rng_stream(6);

    EXPECT_STR_EQ(loam_strdup(""), "");
    for (size_t bytes = 0; bytes < sizeof text; bytes += rng_between(&rng, 1, 100)) {
        for (size_t i = 0; i < bytes; i++) {
            text[i] = (char)rng_between(&rng, 1, 255);
        }
        text[bytes] = '\0';
        char *copy = loam_strdup(text);
        EXPECT_PTR_NE(copy, text);
        EXPECT_STR_EQ(copy, text);
    }
}

typedef struct quad {
    _Alignas(16) struct quad *next;
    long double value;
} quad;
LOAM_TYPE(quad, next);

typedef struct byte {
    char c;
} byte;
LOAM_TYPE_NOSCAN(byte);

static void typed_memory_is_aligned_and_zeroed(void)
{
    static const quad zero_quad;
    for (size_t count = 0; count < 300; count++) {
        quad *q = LOAM_NEW_ARRAY(quad, count);
        EXPECT_NOT_NULL(q);
        EXPECT_EQ((uintptr_t)q % 16, 0);
        EXPECT_GE(loam_usable_size(q), count * sizeof *q);
        for (size_t i = 0; i < count; i++) {
            EXPECT_EQ(memcmp(&q[i], &zero_quad, sizeof zero_quad), 0);
        }
        byte *b = LOAM_NEW_ARRAY(byte, count);
        EXPECT_GE(loam_usable_size(b), count);
        EXPECT_EQ(first_other((unsigned char *)b, count, 0), count);
    }
}

typedef struct vector {
    _Alignas(16) float lane[4];
} vector;
LOAM_TYPE_NOSCAN(vector);

typedef struct lanes { /* nothing but a tail */
    _Alignas(16) char data[0];
} lanes;
LOAM_TYPE_FLEX(lanes, data);

typedef struct counted {
    size_t count;
    _Alignas(16) char data[];
} counted;
LOAM_TYPE_FLEX(counted, data);

/* In an empty object, and in one that is smaller than its alignment, too. Neighbours, since every other slot of 8 bytes
 * is aligned by chance. */
static void few_bytes_are_aligned(void)
{
    void *kept[9 * 8 * 4] = {NULL};
    size_t used = 0;
    for (size_t count = 0; count <= 8; count++) {
        for (int i = 0; i < 8; i++) {
            kept[used++] = LOAM_NEW_ARRAY(quad, count / 8);
            kept[used++] = LOAM_NEW_ARRAY(vector, count / 8);
            kept[used++] = LOAM_NEW_FLEX(lanes, count);
            kept[used++] = LOAM_NEW_FLEX(counted, count);
        }
    }
    EXPECT_EQ(used, COUNT_OF(kept));
    for (size_t i = 0; i < used; i++) {
        EXPECT_NOT_NULL(kept[i]);
        EXPECT_EQ((uintptr_t)kept[i] % 16, 0);
    }
}

static void batches(void)
{
    enum { COUNT = 500 };
    void *out[COUNT];

    for (size_t count = 0; count <= COUNT; count += 50) {
        memset(out, 0xEE, sizeof out);
        EXPECT_EQ(loam_new_batch(LOAM_TYPEOF(quad), count, out), count);
        loam_gc();
        for (size_t i = 0; i < count; i++) {
            quad *q = out[i];
            EXPECT_PTR_EQ(loam_base(q), q);
            EXPECT_EQ((uintptr_t)q % 16, 0);
            EXPECT_NULL(q->next);
            q->value = (long double)i;
        }
        for (size_t i = 0; i < count; i++) {
            EXPECT_EQ((size_t)((quad *)out[i])->value, i); /* so no two are one */
        }
        if (count < COUNT) {
            EXPECT_EQ((uintptr_t)out[count] & 0xFF, 0xEE);
        }
    }
}

static void version(void)
{
    EXPECT_STR_EQ(loam_version(), LOAM_VERSION);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(version);
    RUN(all_small_sizes);
    RUN(large_sizes);
    RUN(reused_memory_is_zeroed);
    RUN(blocks_are_disjoint);
    RUN(base_of_what_is_no_object);
    RUN(a_freed_slot_has_no_base);
    RUN(a_slot_not_handed_out_has_no_base);
    RUN(size_zero);
    RUN(strings);
    RUN(typed_memory_is_aligned_and_zeroed);
    RUN(few_bytes_are_aligned);
    RUN(batches);
    return test_end();
}
