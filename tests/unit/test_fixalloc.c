/* test_fixalloc.c - metadata memory: persistentalloc, fixalloc, metaalloc.
 *
 * Claim   Blocks are aligned, zero, apart from each other, and counted; refusal changes nothing;
 *         the thread-safe ones survive threads and fork.
 * Oracle  Every live block is filled with a byte of its own and looked at before it is freed.
 * Replay  --seed N
 */
#include "heap/fixalloc.h"

#include "base/bits.h"
#include "base/rng.h"
#include "os/os.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

static uint64_t seed;

static size_t below(uint64_t *rng, size_t bound)
{
    return (size_t)(rng_next(rng) >> 11) % bound;
}

static bool is_filled(const unsigned char *p, size_t size, unsigned char with)
{
    for (size_t i = 0; i < size; i++) {
        if (p[i] != with) {
            return false;
        }
    }
    return true;
}

struct block {
    unsigned char *p;
    size_t size;
    unsigned char with;
};

/* It is aligned and zero; from now on it is ours. */
static void block_take(struct block *b, void *p, size_t size, size_t align, unsigned char with)
{
    *b = (struct block){p, size, with};
    assert_non_null(p);
    assert_int_equal((uintptr_t)p & (align - 1), 0);
    assert_true(is_filled(p, size, 0));
    memset(p, with, size);
}

static void block_check(const struct block *b)
{
    assert_true(is_filled(b->p, b->size, b->with));
}

/* -- persistentalloc --------------------------------------------------------------------------- */

static void test_persistent_blocks(void **state)
{
    (void)state;
    static struct block blocks[3000];
    static const size_t aligns[] = {1, 2, 8, 16, 64, 512, 4096};
    uint64_t rng = seed + 1;
    _Atomic uint64_t stat = 5;
    uint64_t want = 5;
    for (size_t i = 0; i < COUNT_OF(blocks); i++) {
        size_t size = 1 + below(&rng, (size_t)1 << below(&rng, 14));
        if (i % 500 == 0) {
            size = KIB(64) + below(&rng, KIB(400)); /* direct */
        }
        size_t align = aligns[below(&rng, COUNT_OF(aligns))];
        void *p = persistentalloc(size, align, &stat);
        block_take(&blocks[i], p, size, align, (unsigned char)(1 + i % 255));
        want += size;
        assert_int_equal(load_rlx(&stat), want);
    }
    for (size_t i = 0; i < COUNT_OF(blocks); i++) {
        block_check(&blocks[i]);
    }
    assert_true(persistentalloc_mapped_bytes() >= want - 5);
}

static void test_persistent_refused(void **state)
{
    (void)state;
    _Atomic uint64_t stat = 0;
    uint64_t mapped = persistentalloc_mapped_bytes();
    store_rlx(&os_fail_repeat, true);
    store_rlx(&os_fail_at, 1);
    assert_null(persistentalloc(KIB(64), 64, &stat));
    assert_int_equal(load_rlx(&stat), 0);
    uint64_t got = 0; /* what the current chunk still has is served */
    while (persistentalloc(KIB(32), 16, &stat) != NULL) {
        got += KIB(32);
        assert_true(got <= KIB(256));
    }
    assert_int_equal(load_rlx(&stat), got);
    assert_int_equal(persistentalloc_mapped_bytes(), mapped);
    store_rlx(&os_fail_at, 0);
    store_rlx(&os_fail_repeat, false);
    assert_non_null(persistentalloc(KIB(32), 16, &stat));
    assert_int_equal(persistentalloc_mapped_bytes(), mapped + KIB(256));
}

/* -- fixalloc ---------------------------------------------------------------------------------- */

static void test_fixalloc_random(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 8, 16, 24, 40, 64, 128, 200, 4096, 9000, 16384};
    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        static struct block live[400];
        size_t nlive = 0;
        size_t most = 0;
        uint64_t rng = seed + s + 1;
        _Atomic uint64_t stat = 0;
        struct fixalloc f;
        fixalloc_init(&f, sizes[s], &stat);
        size_t rounded = align_up(sizes[s], 16);
        for (int i = 0; i < 4000; i++) {
            if (nlive < COUNT_OF(live) && below(&rng, 100) < (i / 1000 % 2 == 0 ? 70 : 30)) {
                size_t align = sizes[s] % 64 == 0 ? 64 : 16;
                unsigned char with = (unsigned char)(1 + i % 255);
                block_take(&live[nlive++], fixalloc_alloc(&f), sizes[s], align, with);
                most = nlive > most ? nlive : most;
            } else if (nlive > 0) {
                struct block *b = &live[below(&rng, nlive)];
                block_check(b);
                fixalloc_free(&f, b->p);
                *b = live[--nlive];
            }
            assert_int_equal(f.inuse_bytes, nlive * rounded);
        }
        for (size_t i = 0; i < nlive; i++) {
            block_check(&live[i]);
        }
        /* Memory is reused: no more chunks than the most that lived at once needs. */
        size_t per_chunk = KIB(16) / rounded;
        assert_int_equal(load_rlx(&stat), (most + per_chunk - 1) / per_chunk * KIB(16));
    }
}

static void test_fixalloc_refused(void **state)
{
    (void)state;
    _Atomic uint64_t stat = 0;
    struct fixalloc f;
    fixalloc_init(&f, 16384, &stat);
    store_rlx(&os_fail_repeat, true);
    store_rlx(&os_fail_at, 1);
    size_t got = 0;
    while (fixalloc_alloc(&f) != NULL) {
        got++;
        assert_true(got <= 16);
    }
    assert_int_equal(f.inuse_bytes, got * KIB(16));
    store_rlx(&os_fail_at, 0);
    store_rlx(&os_fail_repeat, false);
    void *p = fixalloc_alloc(&f);
    assert_non_null(p);
    fixalloc_free(&f, p);
    store_rlx(&os_fail_repeat, true);
    store_rlx(&os_fail_at, 1);
    assert_ptr_equal(fixalloc_alloc(&f), p); /* a freed object needs nobody's consent */
    store_rlx(&os_fail_at, 0);
    store_rlx(&os_fail_repeat, false);
}

/* -- metaalloc --------------------------------------------------------------------------------- */

/* Around every power of two, and random between. */
static size_t meta_size(uint64_t *rng)
{
    size_t size = (size_t)1 << below(rng, 22);
    switch (below(rng, 4)) {
    case 0:
        return size;
    case 1:
        return size + 1;
    case 2:
        return size - 1; /* 0 too */
    default:
        return size + below(rng, size);
    }
}

static void meta_churn(uint64_t rng, int steps, unsigned tag)
{
    struct block live[40];
    size_t nlive = 0;
    for (int i = 0; i < steps; i++) {
        if (nlive < COUNT_OF(live) && below(&rng, 2) == 0) {
            size_t size = meta_size(&rng);
            size_t align = size >= 64 ? 64 : 16;
            unsigned char with = (unsigned char)(1 + (tag + 8 * (unsigned)i) % 255);
            block_take(&live[nlive++], metaalloc(size), size, align, with);
        } else if (nlive > 0) {
            struct block *b = &live[below(&rng, nlive)];
            block_check(b);
            metafree(b->p, b->size);
            *b = live[--nlive];
        }
    }
    while (nlive > 0) {
        block_check(&live[--nlive]);
        metafree(live[nlive].p, live[nlive].size);
    }
}

static void test_meta_random(void **state)
{
    (void)state;
    metafree(NULL, 100);
    meta_churn(seed + 1, 2000, 0);
    uint64_t held = metaalloc_held_bytes();
    meta_churn(seed + 1, 2000, 0); /* the same again finds all it needs in the lists */
    assert_int_equal(metaalloc_held_bytes(), held);
}

static void test_meta_buckets_and_direct(void **state)
{
    (void)state;
    for (size_t size = 16; size <= MIB(1); size *= 2) {
        void *p = metaalloc(size);
        assert_non_null(p);
        memset(p, 0xff, size);
        metafree(p, size);
        struct block b;
        void *again = metaalloc(size / 2 + 1); /* the same bucket */
        assert_ptr_equal(again, p);
        block_take(&b, again, size, size < 64 ? 16 : 64, 1);
        metafree(again, size / 2 + 1);
    }
    uint64_t held = metaalloc_held_bytes();
    void *p = metaalloc(MIB(1) + 1);
    assert_non_null(p);
    assert_int_equal(metaalloc_held_bytes(), held + align_up(MIB(1) + 1, os_page_size()));
    metafree(p, MIB(1) + 1);
    assert_int_equal(metaalloc_held_bytes(), held);
}

static void test_meta_refused(void **state)
{
    (void)state;
    store_rlx(&os_fail_repeat, true);
    store_rlx(&os_fail_at, 1);
    uint64_t held = metaalloc_held_bytes();
    assert_null(metaalloc(MIB(4)));
    assert_int_equal(metaalloc_held_bytes(), held);
    void *kept[64] = {0};
    size_t n = 0;
    while ((kept[n] = metaalloc(MIB(1))) != NULL) {
        n++;
        assert_true(n < COUNT_OF(kept));
    }
    assert_int_equal(metaalloc_held_bytes(), held);
    store_rlx(&os_fail_at, 0);
    store_rlx(&os_fail_repeat, false);
    assert_null(metaalloc(SIZE_MAX));
    assert_null(metaalloc(SIZE_MAX / 2));
    while (n > 0) {
        metafree(kept[--n], MIB(1));
    }
}

static void *churn_thread(void *arg)
{
    uint64_t tag = (uint64_t)(uintptr_t)arg;
    meta_churn(seed * 8 + tag + 1, 1500, (unsigned)tag);
    _Atomic uint64_t stat = 0;
    for (size_t i = 0; i < 500; i++) {
        struct block b;
        block_take(&b, persistentalloc(1 + i, 8, &stat), 1 + i, 8, (unsigned char)(tag + 1));
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t threads[4];
    for (uintptr_t i = 0; i < COUNT_OF(threads); i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, churn_thread, (void *)i), 0);
    }
    for (size_t i = 0; i < COUNT_OF(threads); i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
}

int main(int argc, char **argv)
{
    seed = (uint64_t)os_nanotime() % 1000000;
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0) {
            seed = strtoull(argv[i + 1], NULL, 0);
        }
    }
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_persistent_blocks), cmocka_unit_test(test_persistent_refused),
        cmocka_unit_test(test_fixalloc_random),   cmocka_unit_test(test_fixalloc_refused),
        cmocka_unit_test(test_meta_random),       cmocka_unit_test(test_meta_buckets_and_direct),
        cmocka_unit_test(test_meta_refused),      cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
