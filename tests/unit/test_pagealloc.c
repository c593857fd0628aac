/* test_pagealloc.c - the page allocator against a byte-per-page model.
 *
 * Claim   Every answer of pagealloc and its caches is that of a naive first fit, whatever the size
 *         of the region, and pagealloc_check holds after every operation.
 * Oracle  struct model: a byte per page, searched from the first.
 * Replay  --seed N
 */
#include "heap/pagealloc.h"

#include "base/rng.h"
#include "os/os.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

static uint64_t seed;

static size_t below(uint64_t *rng, size_t bound)
{
    return (size_t)(rng_next(rng) >> 11) % bound;
}

/* Mostly small, sometimes up to bound; at least 1. */
static size_t skewed(uint64_t *rng, size_t bound)
{
    size_t limit = (size_t)1 << below(rng, 14);
    return 1 + below(rng, limit < bound ? limit : bound);
}

/* -- the model --------------------------------------------------------------------------------- */

/* Pages [base, base + npages); what lies below base is never grown. */
struct model {
    unsigned char *free;
    unsigned char *scav;
    size_t base;
    size_t npages;
    size_t end; /* grown up to here, an index */
};

static void model_init(struct model *m, size_t base, size_t npages)
{
    *m = (struct model){calloc(npages, 1), calloc(npages, 1), base, npages, 0};
    assert_non_null(m->free);
    assert_non_null(m->scav);
}

static void model_fini(struct model *m)
{
    free(m->free);
    free(m->scav);
}

static size_t model_find(const struct model *m, size_t npages)
{
    size_t at = 0;
    while (at + npages <= m->npages) {
        const unsigned char *from = memchr(m->free + at, 1, m->npages - at);
        if (from == NULL) {
            break;
        }
        at = (size_t)(from - m->free);
        const unsigned char *to = memchr(from, 0, m->npages - at);
        size_t run = to != NULL ? (size_t)(to - from) : m->npages - at;
        if (run >= npages) {
            return m->base + at;
        }
        at += run;
    }
    return PAGE_NONE;
}

static size_t model_take(struct model *m, size_t pn, size_t npages)
{
    size_t scavenged = 0;
    for (size_t i = pn - m->base; i < pn - m->base + npages; i++) {
        assert_true(m->free[i]);
        scavenged += m->scav[i];
        m->free[i] = 0;
        m->scav[i] = 0;
    }
    return scavenged;
}

static void model_put(struct model *m, size_t pn, size_t npages, unsigned char scav)
{
    memset(m->free + (pn - m->base), 1, npages);
    memset(m->scav + (pn - m->base), scav, npages);
}

/* Are the `align` pages from index i all free and unscavenged? */
static bool model_can_scavenge(const struct model *m, size_t i, size_t align)
{
    for (size_t k = i; k < i + align; k++) {
        if (!m->free[k] || m->scav[k]) {
            return false;
        }
    }
    return true;
}

/* base is a multiple of PALLOC_CHUNK_PAGES, so edges of chunks are those of indexes. */
static size_t model_scavenge(const struct model *m, size_t max, size_t align, size_t *pn_out)
{
    for (size_t top = align_down(m->npages, align); top >= align; top -= align) {
        size_t lo = top;
        size_t floor = align_down(top - 1, PALLOC_CHUNK_PAGES);
        while (lo >= floor + align && top - lo + align <= max &&
               model_can_scavenge(m, lo - align, align)) {
            lo -= align;
        }
        if (lo < top) {
            *pn_out = m->base + lo;
            return top - lo;
        }
    }
    return 0;
}

static void compare(const struct pagealloc *pa, const struct model *m)
{
    size_t free_pages = 0;
    size_t scavenged_pages = 0;
    for (size_t i = 0; i < m->npages; i++) {
        size_t pn = m->base + i;
        free_pages += m->free[i];
        scavenged_pages += m->scav[i];
        if (i >= m->end) {
            continue; /* the table may not be committed */
        }
        const struct palloc_chunk *chunk = &pa->chunks[pn / PALLOC_CHUNK_PAGES];
        size_t word = pn / 64 % PALLOC_CHUNK_WORDS;
        assert_int_equal(chunk->free[word] >> pn % 64 & 1, m->free[i]);
        assert_int_equal(chunk->scav[word] >> pn % 64 & 1, m->scav[i]);
    }
    assert_int_equal(pa->free_pages, free_pages);
    assert_int_equal(pa->scavenged_pages, scavenged_pages);
    assert_true(pagealloc_check(pa));
}

/* -- random operations ------------------------------------------------------------------------- */

enum { MAX_RUNS = 4096, CACHES = 3 };

struct run {
    size_t pn;
    size_t npages;
};

struct fixture {
    struct pagealloc pa;
    struct model m;
    struct run runs[MAX_RUNS]; /* allocated */
    size_t nruns;
    struct pagecache caches[CACHES];
    uint64_t rng;
    size_t largest; /* pages of an allocation */
};

static void add_run(struct fixture *f, size_t pn, size_t npages)
{
    assert_true(f->nruns < MAX_RUNS);
    f->runs[f->nruns++] = (struct run){pn, npages};
}

static void do_grow(struct fixture *f)
{
    size_t left = f->m.npages - f->m.end;
    if (left == 0) {
        return;
    }
    size_t gap = below(&f->rng, 8) == 0 ? below(&f->rng, left) / 16 : 0;
    size_t npages = skewed(&f->rng, left - gap);
    if (below(&f->rng, 2) == 0) {
        npages = left - gap < PALLOC_CHUNK_PAGES ? left - gap : PALLOC_CHUNK_PAGES;
    }
    size_t pn = f->m.base + f->m.end + gap;
    assert_true(pagealloc_grow(&f->pa, pn, npages));
    model_put(&f->m, pn, npages, 1);
    f->m.end += gap + npages;
}

static void do_alloc(struct fixture *f)
{
    size_t npages = skewed(&f->rng, f->largest);
    size_t scavenged;
    size_t want = model_find(&f->m, npages);
    size_t got = pagealloc_alloc(&f->pa, npages, &scavenged);
    assert_int_equal(got, want);
    if (got != PAGE_NONE) {
        assert_int_equal(scavenged, model_take(&f->m, got, npages));
        add_run(f, got, npages);
    }
}

/* Give back one run, or a part of it. */
static void do_free(struct fixture *f)
{
    if (f->nruns == 0) {
        return;
    }
    struct run *r = &f->runs[below(&f->rng, f->nruns)];
    size_t npages = below(&f->rng, 4) == 0 ? 1 + below(&f->rng, r->npages) : r->npages;
    pagealloc_free(&f->pa, r->pn, npages);
    model_put(&f->m, r->pn, npages, 0);
    r->pn += npages;
    r->npages -= npages;
    if (r->npages == 0) {
        *r = f->runs[--f->nruns];
    }
}

static void do_cache_fill(struct fixture *f)
{
    struct pagecache *c = &f->caches[below(&f->rng, CACHES)];
    if (c->free != 0) {
        pagealloc_cache_flush(&f->pa, c);
        return;
    }
    size_t want = model_find(&f->m, 1);
    *c = pagealloc_alloc_to_cache(&f->pa);
    assert_int_equal(c->free == 0, want == PAGE_NONE);
    if (want != PAGE_NONE) {
        assert_int_equal(c->base_pn, align_down(want, PAGECACHE_PAGES));
    }
}

/* Flushes are mirrored at the call above and below; fills here. */
static void model_cache(struct fixture *f, struct pagecache before, struct pagecache after)
{
    for (unsigned i = 0; i < PAGECACHE_PAGES; i++) {
        if (before.free >> i & 1) {
            model_put(&f->m, before.base_pn + i, 1, before.scav >> i & 1);
        }
        if (after.free >> i & 1) {
            assert_int_equal(model_take(&f->m, after.base_pn + i, 1), after.scav >> i & 1);
        }
    }
    if (after.free != 0) { /* all of the block: nothing free is left in it */
        for (size_t i = 0; i < PAGECACHE_PAGES; i++) {
            size_t index = after.base_pn + i - f->m.base;
            assert_true(index >= f->m.npages || !f->m.free[index]);
        }
    }
}

static void do_cache_move(struct fixture *f)
{
    struct pagecache before[CACHES];
    memcpy(before, f->caches, sizeof before);
    do_cache_fill(f);
    for (size_t i = 0; i < CACHES; i++) {
        if (memcmp(&before[i], &f->caches[i], sizeof before[i]) != 0) {
            model_cache(f, before[i], f->caches[i]);
        }
    }
}

static void do_cache_alloc(struct fixture *f)
{
    struct pagecache *c = &f->caches[below(&f->rng, CACHES)];
    struct pagecache was = *c;
    size_t npages = 1 + below(&f->rng, PAGECACHE_MAX_ALLOC - 1);
    npages = below(&f->rng, 2) ? 1 : npages;
    size_t want = PAGE_NONE;
    size_t want_scavenged = 0;
    for (size_t i = 0; i + npages <= PAGECACHE_PAGES && want == PAGE_NONE; i++) {
        uint64_t mask = bit_range((unsigned)i, (unsigned)(i + npages));
        if ((was.free & mask) == mask) {
            want = was.base_pn + i;
            want_scavenged = popcount64(was.scav & mask);
        }
    }
    size_t scavenged;
    size_t got = pagecache_alloc(c, npages, &scavenged);
    assert_int_equal(got, want);
    if (got != PAGE_NONE) {
        assert_int_equal(scavenged, want_scavenged);
        assert_int_equal(popcount64(c->free), popcount64(was.free) - npages);
        assert_int_equal(c->scav & ~c->free, 0);
        add_run(f, got, npages);
    }
}

static void do_scavenge(struct fixture *f)
{
    size_t align = f->pa.scav_align;
    size_t max = align * (1 + below(&f->rng, PALLOC_CHUNK_PAGES / align));
    size_t want_pn = 0;
    size_t pn = 0;
    size_t want = model_scavenge(&f->m, max, align, &want_pn);
    size_t got = pagealloc_scavenge(&f->pa, max, &(size_t){SIZE_MAX}, false, &pn);
    assert_int_equal(got, want);
    if (got == 0) {
        return;
    }
    assert_int_equal(pn, want_pn);
    assert_int_equal(model_take(&f->m, pn, got), 0);
    if (below(&f->rng, 8) == 0) {
        add_run(f, pn, got); /* the discard is still going on */
        return;
    }
    pagealloc_scavenged(&f->pa, pn, got);
    model_put(&f->m, pn, got, 1);
}

static void step(struct fixture *f, bool mostly_free)
{
    switch (below(&f->rng, 16)) {
    case 0:
        do_grow(f);
        break;
    case 1:
    case 2:
        do_cache_move(f);
        break;
    case 3:
    case 4:
        do_cache_alloc(f);
        break;
    case 5:
        do_scavenge(f);
        break;
    case 6:
    case 7:
    case 8:
    case 9:
        do_free(f);
        break;
    default:
        if (mostly_free || f->nruns > MAX_RUNS - 4) {
            do_free(f);
        } else {
            do_alloc(f);
        }
    }
}

struct region {
    const char *what;
    size_t max_pages;
    size_t base; /* first page that is grown */
    size_t npages;
    size_t scav_align; /* 0: what the system has */
    unsigned nlevels;
};

static const struct region regions[] = {
    {"one page", 1, 0, 1, 0, 1},
    {"less than a chunk", 511, 0, 511, 0, 1},
    {"a chunk", 512, 0, 512, 0, 1},
    {"a chunk and a page", 513, 0, 513, 0, 1},
    {"one level", 64 * 512, 0, 64 * 512, 0, 1},
    {"two levels", 64 * 512 + 1, 0, 64 * 512 + 1, 0, 2},
    {"system pages of 32 KiB", 16 * 512, 0, 16 * 512, 4, 1},
    {"system pages of 64 KiB", 16 * 512, 0, 16 * 512, 8, 1},
    {"three levels", (size_t)1 << 20, 4096 - 1024, 16 * 512, 0, 3},
    {"four levels", (size_t)1 << 23, ((size_t)1 << 18) - 8192, 32 * 512, 0, 4},
    {"1 TiB across a root edge", (size_t)1 << 27, ((size_t)1 << 21) - 8192, 32 * 512, 0, 5},
    {"256 GiB at the far end", (size_t)1 << 25, ((size_t)1 << 25) - 8192, 8192, 0, 5},
};

static void run_region(const struct region *r, uint64_t rng)
{
    static struct fixture f;
    f = (struct fixture){.rng = rng, .largest = r->npages};
    assert_true(pagealloc_init(&f.pa, r->max_pages));
    assert_int_equal(f.pa.nlevels, r->nlevels);
    if (r->scav_align != 0) {
        f.pa.scav_align = r->scav_align;
    }
    model_init(&f.m, r->base, r->npages);
    for (size_t i = 0; i < 6000; i++) {
        step(&f, i / 700 % 3 == 2);
        if (i % 16 == 0) {
            assert_true(pagealloc_check(&f.pa));
        }
        if (i % 256 == 0) {
            compare(&f.pa, &f.m);
        }
    }
    for (size_t i = 0; i < CACHES; i++) {
        model_cache(&f, f.caches[i], (struct pagecache){0});
        pagealloc_cache_flush(&f.pa, &f.caches[i]);
        assert_int_equal(f.caches[i].free, 0);
    }
    while (f.nruns > 0) {
        do_free(&f);
    }
    compare(&f.pa, &f.m);
    model_fini(&f.m);
    pagealloc_fini(&f.pa);
}

static void test_random_against_model(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(regions); i++) {
        print_message("  %s\n", regions[i].what);
        run_region(&regions[i], (seed + 1) * (2 * i + 1));
    }
}

/* -- first fit, case by case ------------------------------------------------------------------- */

/* Of 3 chunks, all pages are taken but these; then npages are asked for. */
static const struct {
    struct run holes[3];
    size_t npages;
    size_t want;
} fits[] = {
    {{{0, 1}}, 1, 0},
    {{{0, 1}}, 2, PAGE_NONE},
    {{{1535, 1}}, 1, 1535},
    {{{511, 2}}, 2, 511},                /* across chunks */
    {{{500, 12}, {600, 13}}, 13, 600},   /* not at the edge, inside the next */
    {{{500, 12}, {512, 600}}, 612, 500}, /* all of a chunk in the middle */
    {{{0, 1536}}, 1536, 0},              /* everything */
    {{{0, 1535}}, 1536, PAGE_NONE},
    {{{62, 4}, {100, 64}}, 4, 62},   /* across words */
    {{{62, 4}, {100, 64}}, 64, 100}, /* 64 that are not a word */
    {{{64, 64}, {130, 62}}, 62, 64}, /* a word exactly; 62 inside the next */
    {{{129, 62}}, 62, 129},          /* the longest run strictly inside a word */
    {{{1, 62}, {64, 63}, {600, 65}}, 63, 64},
    {{{1, 62}, {64, 63}, {600, 65}}, 65, 600},
    {{{10, 5}, {20, 6}, {1000, 5}}, 6, 20},
};

static void test_first_fit_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(fits); i++) {
        struct pagealloc pa;
        size_t scavenged;
        assert_true(pagealloc_init(&pa, 1536));
        assert_true(pagealloc_grow(&pa, 0, 1536));
        assert_int_equal(pagealloc_alloc(&pa, 1536, &scavenged), 0);
        assert_int_equal(scavenged, 1536);
        for (size_t h = 0; h < COUNT_OF(fits[i].holes) && fits[i].holes[h].npages != 0; h++) {
            pagealloc_free(&pa, fits[i].holes[h].pn, fits[i].holes[h].npages);
        }
        assert_true(pagealloc_check(&pa));
        size_t pn = pagealloc_alloc(&pa, fits[i].npages, &scavenged);
        if (pn != fits[i].want) {
            fail_msg("case %zu: page %zu instead of %zu", i, pn, fits[i].want);
        }
        assert_int_equal(scavenged, 0);
        assert_true(pagealloc_check(&pa));
        pagealloc_fini(&pa);
    }
}

/* -- growth ------------------------------------------------------------------------------------ */

static void test_grow_at_chunk_edges(void **state)
{
    (void)state;
    static const struct run grows[] = {
        {0, 511},     {511, 1},  {512, 512}, {1024, 1},
        {1025, 1022}, {2047, 2}, {3000, 72}, {3072, 1024},
    };
    struct pagealloc pa;
    size_t scavenged;
    size_t total = 0;
    assert_true(pagealloc_init(&pa, 4096));
    assert_int_equal(pagealloc_alloc(&pa, 1, &scavenged), PAGE_NONE);
    assert_int_equal(pagealloc_alloc_to_cache(&pa).free, 0);
    for (size_t i = 0; i < COUNT_OF(grows); i++) {
        assert_true(pagealloc_grow(&pa, grows[i].pn, grows[i].npages));
        total += grows[i].npages;
        assert_int_equal(pa.free_pages, total);
        assert_int_equal(pa.scavenged_pages, total);
        assert_true(pagealloc_check(&pa));
    }
    assert_int_equal(pagealloc_alloc(&pa, 2049, &scavenged), 0);
    assert_int_equal(pagealloc_alloc(&pa, 1097, &scavenged), PAGE_NONE); /* 2049..2999 is a gap */
    assert_int_equal(pagealloc_alloc(&pa, 1096, &scavenged), 3000);
    assert_int_equal(pa.free_pages, 0);
    assert_true(pagealloc_check(&pa));
    pagealloc_fini(&pa);
}

/* One page at a time until nothing is left: each page once, in order. */
static void test_exhaustion(void **state)
{
    (void)state;
    enum { PAGES = 5 * 512 + 77 };
    struct pagealloc pa;
    size_t scavenged;
    assert_true(pagealloc_init(&pa, PAGES));
    assert_true(pagealloc_grow(&pa, 0, PAGES));
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < PAGES; i++) {
            assert_int_equal(pagealloc_alloc(&pa, 1, &scavenged), i);
            assert_int_equal(scavenged, round == 0);
        }
        assert_int_equal(pagealloc_alloc(&pa, 1, &scavenged), PAGE_NONE);
        assert_int_equal(pagealloc_alloc(&pa, 3 * PAGES, &scavenged), PAGE_NONE);
        assert_int_equal(pagealloc_alloc(&pa, SIZE_MAX, &scavenged), PAGE_NONE);
        assert_int_equal(pagealloc_alloc_to_cache(&pa).free, 0);
        assert_true(pagealloc_check(&pa));
        for (size_t i = PAGES; i-- > 0;) {
            pagealloc_free(&pa, i, 1);
        }
        assert_int_equal(pa.free_pages, PAGES);
        assert_true(pagealloc_check(&pa));
    }
    pagealloc_fini(&pa);
}

/* -- large regions ----------------------------------------------------------------------------- */

static void test_small_heap_in_1tib_is_cheap(void **state)
{
    (void)state;
    struct pagealloc pa;
    assert_true(pagealloc_init(&pa, (size_t)1 << 27));
    assert_int_equal(pa.meta_bytes, 0);
    assert_true(pagealloc_grow(&pa, 0, 8192)); /* 64 MiB */
    assert_true(pa.meta_bytes <= 7 * os_page_size());
    size_t before = pa.meta_bytes;
    assert_true(pagealloc_grow(&pa, 8192, 1 << 17)); /* 1 GiB: 34 KiB of bitmaps and summaries */
    assert_true(pa.meta_bytes - before <= KIB(34) + 7 * os_page_size());
    assert_true(pagealloc_check(&pa));
    pagealloc_fini(&pa);
}

/* Runs longer than a root node, root nodes that are wholly free, and the time that 4 GiB takes. */
static void test_huge_requests(void **state)
{
    (void)state;
    const size_t root = (size_t)1 << 21;
    const size_t four_gib = (size_t)1 << 19;
    struct pagealloc pa;
    size_t scavenged;
    assert_true(pagealloc_init(&pa, (size_t)1 << 27));
    assert_true(pagealloc_grow(&pa, 0, 3 * root + 5));
    assert_true(pagealloc_check(&pa));
    assert_int_equal(pagealloc_alloc(&pa, 7, &scavenged), 0);
    assert_int_equal(pagealloc_alloc(&pa, 3 * root - 1, &scavenged), PAGE_NONE);
    assert_int_equal(pagealloc_alloc(&pa, 3 * root - 2, &scavenged), 7);
    assert_int_equal(scavenged, 3 * root - 2);
    assert_int_equal(pa.free_pages, 0);
    pagealloc_free(&pa, 7, 3 * root - 2);
    assert_true(pagealloc_check(&pa));
    assert_int_equal(pagealloc_alloc(&pa, 2 * root, &scavenged), 7);
    assert_true(pagealloc_check(&pa));

    int64_t best = INT64_MAX;
    for (int i = 0; i < 10; i++) {
        int64_t start = os_nanotime();
        size_t pn = pagealloc_alloc(&pa, four_gib, &scavenged);
        pagealloc_free(&pa, pn, four_gib);
        int64_t took = os_nanotime() - start;
        assert_int_equal(pn, 2 * root + 7);
        best = took < best ? took : best;
    }
    print_message("  4 GiB taken and given back in %lld us\n", (long long)(best / 1000));
    assert_true(best < 20 * 1000 * 1000);
    pagealloc_fini(&pa);
}

/* -- scavenging -------------------------------------------------------------------------------- */

static void test_scavenge_from_the_top(void **state)
{
    (void)state;
    struct pagealloc pa;
    size_t scavenged;
    size_t pn;
    assert_true(pagealloc_init(&pa, 4096));
    pa.scav_align = 1;
    assert_true(pagealloc_grow(&pa, 0, 2048));
    assert_int_equal(pagealloc_scavenge(&pa, 512, &(size_t){SIZE_MAX}, false, &pn),
                     0); /* never used: nothing to give back */
    assert_int_equal(pagealloc_alloc(&pa, 2000, &scavenged), 0);
    pagealloc_free(&pa, 100, 700);
    pagealloc_free(&pa, 1500, 60);

    assert_int_equal(pagealloc_scavenge(&pa, 512, &(size_t){SIZE_MAX}, false, &pn),
                     24); /* the part in the highest chunk */
    assert_int_equal(pn, 1536);
    assert_int_equal(pa.free_pages, 48 + 700 + 36);
    assert_true(pagealloc_check(&pa));
    pagealloc_scavenged(&pa, pn, 24);
    assert_int_equal(pa.scavenged_pages, 48 + 24);

    assert_int_equal(pagealloc_scavenge(&pa, 10, &(size_t){SIZE_MAX}, false, &pn), 10);
    assert_int_equal(pn, 1526);
    pagealloc_free(&pa, pn, 10); /* the discard did not happen */
    assert_int_equal(pagealloc_scavenge(&pa, SIZE_MAX, &(size_t){SIZE_MAX}, false, &pn), 36);
    assert_int_equal(pn, 1500);
    pagealloc_scavenged(&pa, pn, 36);
    assert_int_equal(pagealloc_scavenge(&pa, SIZE_MAX, &(size_t){SIZE_MAX}, false, &pn), 288);
    assert_int_equal(pn, 512);
    pagealloc_scavenged(&pa, pn, 288);
    assert_int_equal(pagealloc_scavenge(&pa, SIZE_MAX, &(size_t){SIZE_MAX}, false, &pn), 412);
    assert_int_equal(pn, 100);
    pagealloc_scavenged(&pa, pn, 412);
    assert_int_equal(pagealloc_scavenge(&pa, SIZE_MAX, &(size_t){SIZE_MAX}, false, &pn), 0);
    assert_int_equal(pa.scavenged_pages, pa.free_pages);
    assert_int_equal(pagealloc_alloc(&pa, 60, &scavenged), 100);
    assert_int_equal(scavenged, 60);
    assert_true(pagealloc_check(&pa));
    pagealloc_fini(&pa);
}

/* Pages that lay in a cache while the scavenger passed are found when they come back. */
static void test_scavenge_after_a_cache(void **state)
{
    (void)state;
    struct pagealloc pa;
    size_t scavenged;
    size_t pn;
    assert_true(pagealloc_init(&pa, 1024));
    pa.scav_align = 1;
    assert_true(pagealloc_grow(&pa, 0, 1024));
    assert_int_equal(pagealloc_alloc(&pa, 1024, &scavenged), 0);
    pagealloc_free(&pa, 582, 20);
    struct pagecache c = pagealloc_alloc_to_cache(&pa);
    assert_int_equal(c.base_pn, 576);
    assert_int_equal(c.free, bit_range(6, 26));
    pagealloc_free(&pa, 100, 1); /* below, so that the scavenger comes past the cache's chunk */
    assert_int_equal(pagealloc_scavenge(&pa, SIZE_MAX, &(size_t){SIZE_MAX}, false, &pn), 1);
    assert_int_equal(pn, 100);
    pagealloc_scavenged(&pa, pn, 1);
    pagealloc_cache_flush(&pa, &c);
    assert_true(pagealloc_check(&pa));
    assert_int_equal(pagealloc_scavenge(&pa, SIZE_MAX, &(size_t){SIZE_MAX}, false, &pn), 20);
    assert_int_equal(pn, 582);
    pagealloc_fini(&pa);
}

/* Where the system's pages are larger than the heap's, only whole ones are given back. */
static void test_scavenge_whole_system_pages(void **state)
{
    (void)state;
    struct pagealloc pa;
    size_t scavenged;
    size_t pn;
    assert_true(pagealloc_init(&pa, 512));
    pa.scav_align = 4;
    assert_true(pagealloc_grow(&pa, 0, 512));
    assert_int_equal(pagealloc_alloc(&pa, 512, &scavenged), 0);
    pagealloc_free(&pa, 101, 21); /* whole: [104, 120) */
    assert_int_equal(pagealloc_scavenge(&pa, 7, &(size_t){SIZE_MAX}, false, &pn),
                     4); /* rounded down */
    assert_int_equal(pn, 116);
    pagealloc_scavenged(&pa, pn, 4);
    assert_int_equal(pagealloc_scavenge(&pa, 1, &(size_t){SIZE_MAX}, false, &pn),
                     4); /* at least one */
    assert_int_equal(pn, 112);
    pagealloc_scavenged(&pa, pn, 4);
    assert_int_equal(pagealloc_scavenge(&pa, SIZE_MAX, &(size_t){SIZE_MAX}, false, &pn), 8);
    assert_int_equal(pn, 104);
    pagealloc_scavenged(&pa, pn, 8);
    assert_int_equal(pagealloc_scavenge(&pa, SIZE_MAX, &(size_t){SIZE_MAX}, false, &pn), 0);
    assert_int_equal(pa.free_pages - pa.scavenged_pages, 5);
    assert_true(pagealloc_check(&pa));
    pagealloc_fini(&pa);
}

/* -- failure ----------------------------------------------------------------------------------- */

static void test_refused_memory(void **state)
{
    (void)state;
    struct pagealloc pa;
    store_rlx(&os_fail_at, 1);
    assert_false(pagealloc_init(&pa, 4096));
    assert_true(pagealloc_init(&pa, (size_t)1 << 27));
    assert_true(pagealloc_grow(&pa, 0, 100));

    struct palloc_chunk was = pa.chunks[0];
    int64_t failures = 0;
    for (;; failures++) {
        store_rlx(&os_fail_at, failures + 1);
        if (pagealloc_grow(&pa, 100, 1 << 20)) {
            break;
        }
        size_t scavenged;
        assert_memory_equal(&was, &pa.chunks[0], sizeof was);
        assert_int_equal(pa.end, 100);
        assert_int_equal(pa.free_pages, 100);
        assert_int_equal(pagealloc_alloc(&pa, 101, &scavenged), PAGE_NONE);
        assert_true(pagealloc_check(&pa));
    }
    store_rlx(&os_fail_at, 0);
    assert_true(failures >= 2); /* the bitmaps and the leaves, at least */
    assert_int_equal(pa.free_pages, 100 + (1 << 20));
    assert_true(pagealloc_check(&pa));
    pagealloc_fini(&pa);
}

/* What the caller may not do ends the process. */
static void free_twice(struct pagealloc *pa)
{
    pagealloc_free(pa, 10, 1);
    pagealloc_free(pa, 9, 3);
}

static void free_outside(struct pagealloc *pa)
{
    pagealloc_free(pa, 600, 1);
}

static void free_to_overflow(struct pagealloc *pa)
{
    pagealloc_free(pa, 5, SIZE_MAX - 2);
}

static void grow_below_end(struct pagealloc *pa)
{
    (void)!pagealloc_grow(pa, 599, 1);
}

static void grow_outside(struct pagealloc *pa)
{
    (void)!pagealloc_grow(pa, 1000, 25);
}

static void test_misuse_is_fatal(void **state)
{
    (void)state;
    static void (*const misuses[])(struct pagealloc *) = {
        free_twice, free_outside, free_to_overflow, grow_below_end, grow_outside,
    };
    for (size_t i = 0; i < COUNT_OF(misuses); i++) {
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            struct pagealloc pa;
            size_t scavenged;
            setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
            signal(SIGABRT, SIG_DFL);
            close(STDERR_FILENO);
            if (pagealloc_init(&pa, 1024) && pagealloc_grow(&pa, 0, 600) &&
                pagealloc_alloc(&pa, 600, &scavenged) == 0) {
                misuses[i](&pa);
            }
            _exit(0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) {
            fail_msg("misuse %zu went through", i);
        }
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
        cmocka_unit_test(test_first_fit_cases),
        cmocka_unit_test(test_grow_at_chunk_edges),
        cmocka_unit_test(test_exhaustion),
        cmocka_unit_test(test_small_heap_in_1tib_is_cheap),
        cmocka_unit_test(test_huge_requests),
        cmocka_unit_test(test_scavenge_from_the_top),
        cmocka_unit_test(test_scavenge_after_a_cache),
        cmocka_unit_test(test_scavenge_whole_system_pages),
        cmocka_unit_test(test_refused_memory),
        cmocka_unit_test(test_misuse_is_fatal),
        cmocka_unit_test(test_random_against_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
