/* test_scan.c - every kernel that this machine runs gives what scan_plain gives.
 *
 * Claim   [scan.same]: for every size of object, mask, choice of objects, region and pointer mask the
 *         same offsets in the same order; nothing is read but words of the chosen objects, so objects
 *         that end at an inaccessible page can be scanned; no more than 8 words behind the last
 *         possible offset are written. And scan_plain gives what the definition says.
 * Oracle  struct expected: a loop over all bits, of its own; scan_plain.
 * Replay  --seed N
 */
#include "gc/scan.h"

#include "base/bits.h"
#include "base/rng.h"
#include "os/os.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

enum {
    MOST = 64 * 64, /* words of 64 objects */
    BEHIND = 8,     /* that a kernel may overwrite */
    GUARD = 64,
    RANDOM_CASES = 20000,
};
#define CANARY UINT64_C(0xc0ffee5eedc0ffee)

static uint64_t seed, rng;

static struct {
    const char *name;
    scan_kernel *fn;
} kernels[4];
static size_t nkernels;

static void kernels_find(void)
{
    kernels[nkernels].name = "scan_plain";
    kernels[nkernels++].fn = scan_plain;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) {
        kernels[nkernels].name = "scan_avx2";
        kernels[nkernels++].fn = scan_avx2;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
        kernels[nkernels].name = "scan_avx512";
        kernels[nkernels++].fn = scan_avx512;
    }
#elif defined(__aarch64__)
    kernels[nkernels].name = "scan_neon";
    kernels[nkernels++].fn = scan_neon;
#endif
}

/* Readable words between two inaccessible pages. */
static uintptr_t *area, *area_end;

static int area_map(void **state)
{
    (void)state;
    size_t page = os_page_size();
    size_t bytes = align_up(MOST * sizeof(uintptr_t), page);
    char *p = os_reserve(bytes + 2 * page, page);
    assert_non_null(p);
    assert_true(os_commit(p + page, bytes));
    area = (uintptr_t *)(void *)(p + page);
    area_end = area + bytes / sizeof *area;
    return 0;
}

/* -- one case ---------------------------------------------------------------------------------- */

struct scan_case {
    const uintptr_t *base;
    size_t words;
    uint64_t mask, objects;
    struct scan_region region;
};

struct expected {
    size_t n;
    uintptr_t out[MOST];
};

static void expect(const struct scan_case *c, struct expected *e)
{
    e->n = 0;
    for (size_t i = 0; i < 64; i++) {
        for (size_t w = 0; w < c->words; w++) {
            if ((c->objects >> i & 1) == 0 || (c->mask >> w & 1) == 0) {
                continue;
            }
            uintptr_t address = c->base[i * c->words + w] & c->region.pointer_mask;
            bool inside = c->region.base <= UINTPTR_MAX - c->region.used
                              ? address >= c->region.base &&
                                    address < c->region.base + c->region.used
                              : address - c->region.base < c->region.used;
            if (inside) {
                e->out[e->n++] = address - c->region.base;
            }
        }
    }
}

static void check(const struct scan_case *c)
{
    static struct expected e;
    static uintptr_t out[MOST + BEHIND + GUARD];
    size_t room = popcount64(c->objects) * c->words + BEHIND;
    expect(c, &e);
    for (size_t k = 0; k < nkernels; k++) {
        for (size_t i = 0; i < GUARD; i++) {
            out[room + i] = CANARY;
        }
        size_t n = kernels[k].fn(c->base, c->words, c->mask, c->objects, &c->region, out);
        bool same = n == e.n && memcmp(out, e.out, n * sizeof out[0]) == 0;
        bool kept = true;
        for (size_t i = 0; i < GUARD; i++) {
            kept = kept && out[room + i] == CANARY;
        }
        if (!same || !kept) {
            fail_msg(
                "%s: %s; words %zu mask %#llx objects %#llx base %#llx used %#llx pointer mask "
                "%#llx: %zu offsets, expected %zu",
                kernels[k].name, same ? "writes too far" : "differs", c->words,
                (unsigned long long)c->mask, (unsigned long long)c->objects,
                (unsigned long long)c->region.base, (unsigned long long)c->region.used,
                (unsigned long long)c->region.pointer_mask, n, e.n);
        }
    }
}

/* -- making cases ------------------------------------------------------------------------------ */

static uint64_t below(uint64_t bound)
{
    return (rng_next(&rng) >> 11) % bound;
}

/* Each of the low n bits is set with a chance of percent / 100. */
static uint64_t random_bits(size_t n, unsigned percent)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < n; i++) {
        bits |= (uint64_t)(below(100) < percent) << i;
    }
    return bits;
}

static uintptr_t edge_word(const struct scan_region *r)
{
    const uintptr_t edges[] = {
        r->base - 8,
        r->base - 1,
        r->base,
        r->base + 1,
        r->base + r->used - 8,
        r->base + r->used - 1,
        r->base + r->used,
        r->base + r->used + 8,
        0,
        1,
        8,
        UINTPTR_MAX,
        UINTPTR_MAX - 7,
        UINTPTR_MAX / 2,
        UINTPTR_MAX / 2 + 1,
    };
    return edges[below(COUNT_OF(edges))];
}

/* `percent` of the words lie in the region; the others anywhere else, or at an edge. */
static void fill_words(uintptr_t *from, uintptr_t *to, const struct scan_region *r,
                       unsigned percent)
{
    for (uintptr_t *p = from; p < to; p++) {
        uintptr_t word = rng_next(&rng);
        if (below(16) == 0) {
            word = edge_word(r);
        } else if (r->used != 0 && below(100) < percent) {
            word = r->base + below(r->used);
        }
        if (below(8) == 0) { /* a tag in bits that a mask may cut off */
            word ^= (uintptr_t)below(0x10000) << 48;
        }
        *p = word;
    }
}

static struct scan_region random_region(void)
{
    static const uintptr_t masks[] = {
        UINTPTR_MAX,   UINT64_C(0x00007ffffffffff8), UINT64_C(0x0000ffffffffffff),
        ~(uintptr_t)7, UINT64_C(0x00ffffffffffffff),
    };
    struct scan_region r;
    uint64_t kind = below(8);
    r.base = (uintptr_t)(1 + below(1 << 20)) << 26;
    r.used = kind == 0 ? 0 : kind < 5 ? (1 + below(1 << 14)) << 13 : (1 + below(1 << 14)) << 26;
    if (kind == 7) { /* numbers that no heap has: compares are of unsigned ones */
        r.base = rng_next(&rng);
        r.used = rng_next(&rng);
    }
    r.pointer_mask = masks[below(COUNT_OF(masks))];
    return r;
}

/* The chosen objects end, or the last of their chosen words ends, at the inaccessible page; or the
 * first begins at the one in front. */
static const uintptr_t *place(const struct scan_case *c, unsigned how)
{
    if (c->objects == 0 || c->mask == 0) {
        return area_end; /* nothing may be read at all */
    }
    size_t last = 63 - clz64(c->objects);
    if (how == 0) {
        return area - ctz64(c->objects) * c->words;
    }
    if (how == 1) {
        return area_end - (last + 1) * c->words;
    }
    return area_end - last * c->words - (64 - clz64(c->mask));
}

static void run_case(size_t words, unsigned mask_percent, unsigned object_percent, unsigned density)
{
    struct scan_case c = {.words = words, .region = random_region()};
    c.mask = random_bits(words, mask_percent);
    c.objects = random_bits(64, object_percent);
    fill_words(area, area_end, &c.region, density);
    /* Chosen objects lie in the area only if they span no more than it: they do, 64 of 64 words. */
    for (unsigned how = 0; how < 3; how++) {
        c.base = place(&c, how);
        check(&c);
    }
}

/* -- tests ------------------------------------------------------------------------------------- */

static void test_every_size_and_density(void **state)
{
    (void)state;
    static const unsigned some[] = {0, 3, 50, 100};
    for (size_t words = 1; words <= 64; words++) {
        for (unsigned density = 0; density <= 100; density += 20) {
            for (size_t i = 0; i < COUNT_OF(some); i++) {
                run_case(words, some[i], 100 - some[i] / 2, density);
                run_case(words, 100, some[i], density);
            }
        }
    }
}

/* Each word of an object alone, each object alone. */
static void test_single_bits(void **state)
{
    (void)state;
    struct scan_case c = {.region = random_region()};
    c.region.used = MIB(64);
    fill_words(area, area_end, &c.region, 50);
    for (c.words = 1; c.words <= 64; c.words++) {
        for (size_t w = 0; w < c.words; w++) {
            c.mask = UINT64_C(1) << w;
            c.objects = UINT64_C(1) << below(64);
            for (unsigned how = 0; how < 3; how++) {
                c.base = place(&c, how);
                check(&c);
            }
        }
    }
}

static void test_edges(void **state)
{
    (void)state;
    struct scan_case c = {.words = 1, .mask = 1, .objects = ~UINT64_C(0), .base = area};
    c.region = (struct scan_region){MIB(64) * 77, MIB(4), UINTPTR_MAX};
    const uintptr_t b = c.region.base, u = c.region.used;
    const uintptr_t words[] = {b - 8, b, b + u - 8, b + u, 0, UINTPTR_MAX, b + 8, b - 1, b + u - 1};
    const uintptr_t in[] = {0, u - 8, 8, u - 1};
    memset(area, 0, 64 * sizeof *area);
    memcpy(area, words, sizeof words);
    uintptr_t out[64 + BEHIND];
    for (size_t k = 0; k < nkernels; k++) {
        assert_int_equal(kernels[k].fn(area, 1, 1, ~UINT64_C(0), &c.region, out), COUNT_OF(in));
        assert_memory_equal(out, in, sizeof in);
    }
    check(&c);
}

static void test_random(void **state)
{
    (void)state;
    for (int i = 0; i < RANDOM_CASES; i++) {
        size_t words = 1 + below(64);
        run_case(words, (unsigned)below(101), (unsigned)below(101), (unsigned)below(101));
    }
}

static void test_choice_is_among_them(void **state)
{
    (void)state;
    scan_kernel *chosen = scan_choose();
    bool found = false;
    for (size_t k = 0; k < nkernels; k++) {
        found = found || kernels[k].fn == chosen;
    }
    assert_true(found);
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
    rng = seed * UINT64_C(0x9E3779B97F4A7C15) | 1;
    kernels_find();
    for (size_t k = 0; k < nkernels; k++) {
        printf("%s\n", kernels[k].name);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_single_bits),
        cmocka_unit_test(test_every_size_and_density),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_choice_is_among_them),
    };
    return cmocka_run_group_tests(tests, area_map, NULL);
}
