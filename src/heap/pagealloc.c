/* pagealloc.c - first fit over the pages of the heap's region.
 *
 * Purpose     Finds the lowest run of n free pages, for any n, without walking the bitmaps, and
 *             keeps account of which free pages the system has back.
 * Model       A chunk of 512 pages has a free and a scavenged bitmap. A summary says of a node of
 *             the tree how many free pages lie at its start, in its longest run, and at its end;
 *             leaves are chunks, an inner node has 8 children, and the root level is scanned:
 *
 *                 level 0          up to 64 nodes (more from 1 TiB on)
 *                 ...              8 children each: one cache line
 *                 level nlevels-1  one node per chunk
 *
 *             A search scans a level for a run across neighbouring nodes or for a node that holds
 *             one inside, and goes down into that. Bits of pages that were never grown are 0, which
 *             reads as "not free", so fresh zero memory is a correct table of an empty region.
 * Invariants  pagealloc_check tests them:
 *             [pagealloc.sum]    each summary is what its bitmap, or its 8 children, say.
 *             [pagealloc.count]  free_pages and scavenged_pages are the number of set bits.
 *             [pagealloc.scav]   a scavenged page is free: whoever takes it is told and it is
 *                                forgotten.
 *             [pagealloc.hint]   no page below search_pn is free.
 *             [pagealloc.index]  a chunk with free unscavenged pages has its bit in scav_index; it
 *                                may be set without need.
 *             [pagealloc.end]    no page at or above end is free.
 * Locking     none here: the heap lock is held. A pagecache belongs to one thread.
 * From Go     runtime/mpagealloc.go, mpallocbits.go, mpagecache.go at go1.26; differs: page numbers
 *             instead of addresses, bits mean free instead of allocated, as many levels as the
 *             region needs, leaves are always recomputed from the bitmap, the scavenger's index
 *             is a bit per chunk.
 * Tests       tests/unit/test_pagealloc.c
 */
#include "heap/pagealloc.h"

#include "base/check.h"
#include "heap/sizeclasses.h"
#include "os/os.h"

#include <assert.h>

enum {
    PALLOC_SUM_BITS = 21,
    PALLOC_LEVEL_LOG = 3, /* children of a node, as a power of two */
    PALLOC_LEVEL_WIDTH = 1 << PALLOC_LEVEL_LOG,
    PALLOC_ROOT_ENTRIES = 64, /* no more levels once the root is this short */
};
#define PALLOC_SUM_LIMIT ((size_t)1 << PALLOC_SUM_BITS)
#define PALLOC_SUM_MASK ((UINT64_C(1) << PALLOC_SUM_BITS) - 1)
/* A wholly free node of 2^21 pages: the one summary whose counts need a 22nd bit. */
#define PALLOC_SUM_ALL_FREE (UINT64_C(1) << 63)

static_assert(3 * PALLOC_SUM_BITS < 64, "three counts must leave the top bit free");
static_assert(PALLOC_CHUNK_LOG + (PALLOC_MAX_LEVELS - 1) * PALLOC_LEVEL_LOG <= PALLOC_SUM_BITS,
              "a root node's count must fit");
static_assert(sizeof(struct palloc_chunk) == 128, "two bits per page");

/* -- summaries -------------------------------------------------------------------------------- */

static palloc_sum palloc_sum_pack(size_t start, size_t max, size_t end)
{
    ASSERT(start <= max && end <= max && max <= PALLOC_SUM_LIMIT);
    if (max == PALLOC_SUM_LIMIT) {
        return PALLOC_SUM_ALL_FREE;
    }
    return (uint64_t)start | (uint64_t)max << PALLOC_SUM_BITS |
           (uint64_t)end << 2 * PALLOC_SUM_BITS;
}

ALWAYS_INLINE size_t palloc_sum_count(palloc_sum sum, unsigned which)
{
    if (unlikely(sum & PALLOC_SUM_ALL_FREE)) {
        return PALLOC_SUM_LIMIT;
    }
    return sum >> which * PALLOC_SUM_BITS & PALLOC_SUM_MASK;
}

static size_t palloc_sum_start(palloc_sum sum)
{
    return palloc_sum_count(sum, 0);
}

static size_t palloc_sum_max(palloc_sum sum)
{
    return palloc_sum_count(sum, 1);
}

static size_t palloc_sum_end(palloc_sum sum)
{
    return palloc_sum_count(sum, 2);
}

static size_t palloc_larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* The summary of a node from its children, each of which covers 1 << child_log pages. */
static palloc_sum palloc_sum_merge(const palloc_sum *children, unsigned child_log)
{
    size_t full = (size_t)1 << child_log;
    size_t start = 0;
    size_t max = 0;
    size_t run = 0; /* free pages just before child i */
    for (size_t i = 0; i < PALLOC_LEVEL_WIDTH; i++) {
        size_t child_start = palloc_sum_start(children[i]);
        if (start == i << child_log) {
            start += child_start;
        }
        max = palloc_larger(max, run + child_start);
        max = palloc_larger(max, palloc_sum_max(children[i]));
        run = child_start == full ? run + full : palloc_sum_end(children[i]);
    }
    return palloc_sum_pack(start, palloc_larger(max, run), run);
}

/* -- words and chunks ------------------------------------------------------------------------- */

/* Ones at the low end, and at the high end, of a word. */
static unsigned palloc_ones_low(uint64_t x)
{
    return x == ~UINT64_C(0) ? 64 : ctz64(~x);
}

static unsigned palloc_ones_high(uint64_t x)
{
    return x == ~UINT64_C(0) ? 64 : clz64(~x);
}

/* Bit i of the result: bits [i, i + n) of x are all set; 1 <= n <= 64. */
static uint64_t palloc_run_starts(uint64_t x, unsigned n)
{
    for (unsigned have = 1; have < n;) {
        unsigned step = have < n - have ? have : n - have;
        x &= x >> step;
        have += step;
    }
    return x;
}

/* The longest run of ones strictly inside some word, if longer than `max`. */
static size_t palloc_inner_max(const uint64_t *free, size_t max)
{
    for (size_t w = 0; w < PALLOC_CHUNK_WORDS && max < 64; w++) {
        uint64_t x = palloc_run_starts(free[w], (unsigned)max + 1);
        while (x != 0) {
            max++;
            x &= free[w] >> max;
        }
    }
    return max;
}

static palloc_sum palloc_chunk_summarize(const struct palloc_chunk *chunk)
{
    size_t start = PAGE_NONE;
    size_t max = 0;
    size_t run = 0;
    for (size_t w = 0; w < PALLOC_CHUNK_WORDS; w++) {
        uint64_t x = chunk->free[w];
        if (x == ~UINT64_C(0)) {
            run += 64;
            continue;
        }
        run += palloc_ones_low(x);
        if (start == PAGE_NONE) {
            start = run;
        }
        max = palloc_larger(max, run);
        run = palloc_ones_high(x);
    }
    if (start == PAGE_NONE) {
        start = run;
    }
    max = palloc_inner_max(chunk->free, palloc_larger(max, run));
    return palloc_sum_pack(start, max, run);
}

/* The lowest run of npages in the chunk, as an index, or PAGE_NONE. */
static size_t palloc_chunk_find(const struct palloc_chunk *chunk, size_t npages)
{
    size_t run = 0; /* free pages just before word w */
    for (size_t w = 0; w < PALLOC_CHUNK_WORDS; w++) {
        uint64_t x = chunk->free[w];
        if (run + palloc_ones_low(x) >= npages) {
            return w * 64 - run;
        }
        if (x == ~UINT64_C(0)) {
            run += 64;
            continue;
        }
        uint64_t inner = npages < 64 ? palloc_run_starts(x, (unsigned)npages) : 0;
        if (inner != 0) {
            return w * 64 + ctz64(inner);
        }
        run = palloc_ones_high(x);
    }
    return PAGE_NONE;
}

/* The lowest free page of a chunk that has one. */
static size_t palloc_chunk_first(const struct palloc_chunk *chunk)
{
    size_t w = 0;
    while (chunk->free[w] == 0) {
        w++;
        CHECK(w < PALLOC_CHUNK_WORDS, "page summary of a full chunk says that a page is free");
    }
    return w * 64 + ctz64(chunk->free[w]);
}

/* The part of [pn, pn + npages) that lies in the word of pn. */
struct palloc_part {
    uint64_t *free;
    uint64_t *scav;
    uint64_t mask;
    size_t npages;
};

static struct palloc_part palloc_part_of(struct pagealloc *pa, size_t pn, size_t npages)
{
    struct palloc_chunk *chunk = &pa->chunks[pn >> PALLOC_CHUNK_LOG];
    size_t word = pn / 64 % PALLOC_CHUNK_WORDS;
    unsigned from = pn % 64;
    unsigned to = npages < 64 - from ? from + (unsigned)npages : 64;
    return (struct palloc_part){
        .free = &chunk->free[word],
        .scav = &chunk->scav[word],
        .mask = bit_range(from, to),
        .npages = to - from,
    };
}

/* -- tables ----------------------------------------------------------------------------------- */

/* Pages that one node of the level covers, as a power of two. */
static unsigned pagealloc_level_log(const struct pagealloc *pa, unsigned level)
{
    return PALLOC_CHUNK_LOG + (pa->nlevels - 1 - level) * PALLOC_LEVEL_LOG;
}

/* Bytes of table t that describe pages [0, npages), in whole pages of the system. Summaries come
 * first, then the chunks, then the scavenger's index. A page holds whole blocks of 8 summaries. */
static size_t pagealloc_table_bytes(const struct pagealloc *pa, unsigned t, size_t npages)
{
    size_t nchunks = (npages + PALLOC_CHUNK_PAGES - 1) >> PALLOC_CHUNK_LOG;
    size_t bytes;
    if (t < pa->nlevels) {
        unsigned log = pagealloc_level_log(pa, t);
        bytes = ((npages + ((size_t)1 << log) - 1) >> log) * sizeof(palloc_sum);
    } else if (t == pa->nlevels) {
        bytes = nchunks * sizeof(struct palloc_chunk);
    } else {
        bytes = (nchunks + 63) / 64 * sizeof(uint64_t);
    }
    return align_up(bytes, os_page_size());
}

bool pagealloc_init(struct pagealloc *pa, size_t max_pages)
{
    CHECK(max_pages > 0 && max_pages <= (size_t)1 << 48, "page allocator for %zu pages", max_pages);
    *pa = (struct pagealloc){.max_pages = max_pages, .nlevels = 1};
    size_t root = (max_pages + PALLOC_CHUNK_PAGES - 1) >> PALLOC_CHUNK_LOG;
    while (root > PALLOC_ROOT_ENTRIES && pa->nlevels < PALLOC_MAX_LEVELS) {
        root = (root + PALLOC_LEVEL_WIDTH - 1) >> PALLOC_LEVEL_LOG;
        pa->nlevels++;
    }
    pa->scav_align = palloc_larger(os_page_size() >> PAGE_SHIFT, 1);
    CHECK(pa->scav_align <= 64, "system pages of %zu bytes are too large", os_page_size());

    for (unsigned t = 0; t < pa->nlevels + 2; t++) {
        pa->reserved_bytes += pagealloc_table_bytes(pa, t, max_pages);
    }
    pa->reserved = os_reserve(pa->reserved_bytes, os_page_size());
    if (pa->reserved == NULL) {
        return false;
    }
    char *at = pa->reserved;
    for (unsigned t = 0; t < pa->nlevels + 2; t++) {
        pa->tables[t].base = at;
        at += pagealloc_table_bytes(pa, t, max_pages);
    }
    for (unsigned level = 0; level < pa->nlevels; level++) {
        pa->summary[level] = (palloc_sum *)(void *)pa->tables[level].base;
    }
    pa->chunks = (struct palloc_chunk *)(void *)pa->tables[pa->nlevels].base;
    pa->scav_index = (uint64_t *)(void *)pa->tables[pa->nlevels + 1].base;
    return true;
}

void pagealloc_fini(struct pagealloc *pa)
{
    os_release(pa->reserved, pa->reserved_bytes);
    *pa = (struct pagealloc){0};
}

static bool pagealloc_commit(struct pagealloc *pa, unsigned t, size_t npages)
{
    struct palloc_table *table = &pa->tables[t];
    size_t need = pagealloc_table_bytes(pa, t, npages);
    if (need <= table->committed_bytes) {
        return true;
    }
    size_t more = need - table->committed_bytes;
    if (!os_commit(table->base + table->committed_bytes, more)) {
        return false;
    }
    table->committed_bytes = need;
    pa->meta_bytes += more;
    return true;
}

/* -- changing the bitmaps --------------------------------------------------------------------- */

/* Restore [pagealloc.sum] after the bits of [pn, pn + npages) changed. */
static void pagealloc_update(struct pagealloc *pa, size_t pn, size_t npages)
{
    size_t lo = pn >> PALLOC_CHUNK_LOG;
    size_t hi = (pn + npages - 1) >> PALLOC_CHUNK_LOG;
    unsigned level = pa->nlevels - 1;
    bool changed = false;
    for (size_t c = lo; c <= hi; c++) {
        palloc_sum sum = palloc_chunk_summarize(&pa->chunks[c]);
        changed |= sum != pa->summary[level][c];
        pa->summary[level][c] = sum;
    }
    while (changed && level > 0) {
        unsigned child_log = pagealloc_level_log(pa, level);
        const palloc_sum *children = pa->summary[level];
        level--;
        lo >>= PALLOC_LEVEL_LOG;
        hi >>= PALLOC_LEVEL_LOG;
        changed = false;
        for (size_t i = lo; i <= hi; i++) {
            palloc_sum sum = palloc_sum_merge(&children[i << PALLOC_LEVEL_LOG], child_log);
            changed |= sum != pa->summary[level][i];
            pa->summary[level][i] = sum;
        }
    }
}

/* Free pages become allocated; returns how many were scavenged. */
static size_t pagealloc_take(struct pagealloc *pa, size_t pn, size_t npages)
{
    size_t scavenged = 0;
    for (size_t done = 0; done < npages;) {
        struct palloc_part part = palloc_part_of(pa, pn + done, npages - done);
        ASSERT((*part.free & part.mask) == part.mask);
        scavenged += popcount64(*part.scav & part.mask);
        *part.free &= ~part.mask;
        *part.scav &= ~part.mask;
        done += part.npages;
    }
    pa->free_pages -= npages;
    pa->scavenged_pages -= scavenged;
    pagealloc_update(pa, pn, npages);
    return scavenged;
}

/* Allocated pages become free; scav is the scavenged bit of all of them, in every bit. */
static void pagealloc_put(struct pagealloc *pa, size_t pn, size_t npages, uint64_t scav)
{
    CHECK(npages > 0 && npages <= pa->end && pn <= pa->end - npages,
          "free of pages [%zu, +%zu) outside of the heap's %zu", pn, npages, pa->end);
    for (size_t done = 0; done < npages;) {
        struct palloc_part part = palloc_part_of(pa, pn + done, npages - done);
        CHECK((*part.free & part.mask) == 0, "free of a page that is free, in [%zu, +%zu)", pn,
              npages);
        *part.free |= part.mask;
        *part.scav |= part.mask & scav;
        done += part.npages;
    }
    pa->free_pages += npages;
    pa->scavenged_pages += scav != 0 ? npages : 0;
    if (pn < pa->search_pn) {
        pa->search_pn = pn; /* [pagealloc.hint] */
    }
    pagealloc_update(pa, pn, npages);
}

/* Restore [pagealloc.index] after pages of [pn, pn + npages) became free and not scavenged. */
static void pagealloc_index_set(struct pagealloc *pa, size_t pn, size_t npages)
{
    size_t hi = (pn + npages - 1) >> PALLOC_CHUNK_LOG;
    for (size_t c = pn >> PALLOC_CHUNK_LOG; c <= hi; c++) {
        pa->scav_index[c / 64] |= UINT64_C(1) << c % 64;
    }
}

bool pagealloc_grow(struct pagealloc *pa, size_t pn, size_t npages)
{
    CHECK(npages > 0 && pn >= pa->end && pn <= pa->max_pages && npages <= pa->max_pages - pn,
          "heap grows to pages [%zu, +%zu) of %zu, has %zu", pn, npages, pa->max_pages, pa->end);
    for (unsigned t = 0; t < pa->nlevels + 2; t++) {
        if (!pagealloc_commit(pa, t, pn + npages)) {
            return false; /* what was committed serves the next try */
        }
    }
    pa->end = pn + npages;
    pagealloc_put(pa, pn, npages, ~UINT64_C(0));
    return true;
}

void pagealloc_free(struct pagealloc *pa, size_t pn, size_t npages)
{
    pagealloc_put(pa, pn, npages, 0);
    pagealloc_index_set(pa, pn, npages);
}

/* -- searching -------------------------------------------------------------------------------- */

/* What a scan of neighbouring summaries found. */
struct palloc_scan {
    size_t first; /* the first node with any free page, or PAGE_NONE */
    size_t run;   /* first page of a run that starts at or before a node's edge, or PAGE_NONE */
    size_t node;  /* otherwise a node that holds a run inside, or PAGE_NONE */
};

static struct palloc_scan pagealloc_scan(const struct pagealloc *pa, unsigned level, size_t from,
                                         size_t limit, size_t npages)
{
    struct palloc_scan found = {PAGE_NONE, PAGE_NONE, PAGE_NONE};
    unsigned log = pagealloc_level_log(pa, level);
    size_t full = (size_t)1 << log;
    size_t run = 0; /* free pages just before node i */
    for (size_t i = from; i < limit; i++) {
        palloc_sum sum = pa->summary[level][i];
        if (sum == 0) {
            run = 0;
            continue;
        }
        if (found.first == PAGE_NONE) {
            found.first = i;
        }
        size_t start = palloc_sum_start(sum);
        if (run + start >= npages) {
            found.run = (i << log) - run;
            break;
        }
        if (palloc_sum_max(sum) >= npages) {
            found.node = i;
            break;
        }
        run = start == full ? run + full : palloc_sum_end(sum);
    }
    return found;
}

/* The lowest run of npages, or PAGE_NONE. No page below *first_free is free, found or not. */
static size_t pagealloc_find(const struct pagealloc *pa, size_t npages, size_t *first_free)
{
    unsigned log = pagealloc_level_log(pa, 0);
    size_t from = 0;
    size_t limit = (pa->end + ((size_t)1 << log) - 1) >> log;
    bool narrowing = true; /* the path down is still that to the lowest free page */
    *first_free = pa->search_pn;
    for (unsigned level = 0; level < pa->nlevels; level++) {
        log = pagealloc_level_log(pa, level);
        size_t hint = pa->search_pn >> log;
        if (hint > from) {
            from = hint < limit ? hint : limit;
        }
        struct palloc_scan found = pagealloc_scan(pa, level, from, limit, npages);
        if (narrowing) {
            size_t first = found.first == PAGE_NONE ? pa->end : found.first << log;
            *first_free = palloc_larger(*first_free, first);
        }
        if (found.node == PAGE_NONE) {
            CHECK(level == 0 || found.run != PAGE_NONE,
                  "page summary at level %u promises %zu pages that are not there", level, npages);
            return found.run;
        }
        narrowing = narrowing && found.node == found.first;
        from = found.node << PALLOC_LEVEL_LOG;
        limit = from + PALLOC_LEVEL_WIDTH;
    }
    size_t c = from >> PALLOC_LEVEL_LOG;
    size_t index = palloc_chunk_find(&pa->chunks[c], npages);
    CHECK(index != PAGE_NONE, "page summary of chunk %zu promises %zu pages", c, npages);
    if (narrowing) {
        *first_free = (c << PALLOC_CHUNK_LOG) + palloc_chunk_first(&pa->chunks[c]);
    }
    return (c << PALLOC_CHUNK_LOG) + index;
}

/* The run for an allocation: most are in the chunk of the hint. */
static size_t pagealloc_find_near(const struct pagealloc *pa, size_t npages, size_t *first_free)
{
    size_t c = pa->search_pn >> PALLOC_CHUNK_LOG;
    if (pa->search_pn < pa->end && palloc_sum_max(pa->summary[pa->nlevels - 1][c]) >= npages) {
        size_t index = palloc_chunk_find(&pa->chunks[c], npages);
        CHECK(index != PAGE_NONE, "page summary of chunk %zu promises %zu pages", c, npages);
        *first_free = (c << PALLOC_CHUNK_LOG) + palloc_chunk_first(&pa->chunks[c]);
        return (c << PALLOC_CHUNK_LOG) + index;
    }
    return pagealloc_find(pa, npages, first_free);
}

size_t pagealloc_alloc(struct pagealloc *pa, size_t npages, size_t *scavenged)
{
    CHECK(npages > 0, "allocation of no pages");
    *scavenged = 0;
    if (npages > pa->free_pages) {
        return PAGE_NONE;
    }
    size_t first_free;
    size_t pn = pagealloc_find_near(pa, npages, &first_free);
    pa->search_pn = first_free; /* found or not; never lower than it was */
    if (pn == PAGE_NONE) {
        return PAGE_NONE;
    }
    *scavenged = pagealloc_take(pa, pn, npages);
    if (pn == pa->search_pn) {
        pa->search_pn = pn + npages;
    }
    return pn;
}

/* -- page caches ------------------------------------------------------------------------------ */

struct pagecache pagealloc_alloc_to_cache(struct pagealloc *pa)
{
    struct pagecache c = {0};
    if (pa->free_pages == 0) {
        return c;
    }
    size_t first_free;
    size_t pn = pagealloc_find_near(pa, 1, &first_free);
    CHECK(pn != PAGE_NONE, "%zu pages are free and none is found", pa->free_pages);
    c.base_pn = align_down(pn, PAGECACHE_PAGES);
    struct palloc_part part = palloc_part_of(pa, c.base_pn, PAGECACHE_PAGES);
    c.free = *part.free;
    c.scav = *part.scav;
    *part.free = 0;
    *part.scav = 0;
    pa->free_pages -= popcount64(c.free);
    pa->scavenged_pages -= popcount64(c.scav);
    pa->search_pn = c.base_pn + PAGECACHE_PAGES; /* pn was the lowest, its block is taken */
    pagealloc_update(pa, c.base_pn, PAGECACHE_PAGES);
    return c;
}

void pagealloc_cache_flush(struct pagealloc *pa, struct pagecache *c)
{
    if (c->free == 0) {
        return;
    }
    struct palloc_part part = palloc_part_of(pa, c->base_pn, PAGECACHE_PAGES);
    CHECK((*part.free & c->free) == 0, "a page is free and in the cache of block %zu", c->base_pn);
    ASSERT((c->scav & ~c->free) == 0);
    *part.free |= c->free;
    *part.scav |= c->scav;
    pa->free_pages += popcount64(c->free);
    pa->scavenged_pages += popcount64(c->scav);
    size_t lowest = c->base_pn + ctz64(c->free);
    if (lowest < pa->search_pn) {
        pa->search_pn = lowest; /* [pagealloc.hint] */
    }
    if (c->free != c->scav) {
        pagealloc_index_set(pa, c->base_pn, 1);
    }
    pagealloc_update(pa, c->base_pn, PAGECACHE_PAGES);
    *c = (struct pagecache){0};
}

size_t pagecache_alloc_run(struct pagecache *c, size_t npages, size_t *scavenged)
{
    CHECK(npages > 0 && npages < PAGECACHE_MAX_ALLOC, "%zu pages from a page cache", npages);
    uint64_t starts = palloc_run_starts(c->free, (unsigned)npages);
    if (starts == 0) {
        return PAGE_NONE;
    }
    unsigned i = ctz64(starts);
    uint64_t mask = bit_range(i, i + (unsigned)npages);
    *scavenged = popcount64(c->scav & mask);
    c->free &= ~mask;
    c->scav &= ~mask;
    return c->base_pn + i;
}

/* -- scavenging ------------------------------------------------------------------------------- */

/* Of x, the aligned groups of n bits that are wholly set; n is a power of two of at most 64. */
static uint64_t palloc_whole_groups(uint64_t x, size_t n)
{
    if (n == 1) {
        return x;
    }
    uint64_t group = bit_range(0, (unsigned)n);
    /* n is not 0, so neither is group. NOLINTNEXTLINE(clang-analyzer-core.*) */
    return (palloc_run_starts(x, (unsigned)n) & ~UINT64_C(0) / group) * group;
}

/* The top max pages of the highest run of free unscavenged pages in the chunk; 0: none. */
static size_t palloc_chunk_find_scavenge(const struct palloc_chunk *chunk, size_t align, size_t max,
                                         size_t *index)
{
    size_t run = 0;
    size_t run_end = 0;
    for (size_t w = PALLOC_CHUNK_WORDS; w-- > 0 && run < max;) {
        uint64_t x = palloc_whole_groups(chunk->free[w] & ~chunk->scav[w], align);
        unsigned skip = 0;
        if (run == 0) {
            if (x == 0) {
                continue;
            }
            skip = clz64(x);
            run_end = w * 64 + 64 - skip;
        }
        unsigned ones = palloc_ones_high(x << skip);
        run += ones;
        if (skip + ones < 64) {
            break;
        }
    }
    run = run < max ? run : max;
    *index = run_end - run;
    return run;
}

static bool palloc_chunk_is_dense(const struct palloc_chunk *chunk)
{
    size_t free = 0;
    for (size_t w = 0; w < PALLOC_CHUNK_WORDS; w++) {
        free += popcount64(chunk->free[w]);
    }
    return free <= PALLOC_DENSE_FREE;
}

size_t pagealloc_scavenge(struct pagealloc *pa, size_t max_pages, size_t *below, bool spare_dense,
                          size_t *pn_out)
{
    size_t max = max_pages < PALLOC_CHUNK_PAGES ? max_pages : PALLOC_CHUNK_PAGES;
    max = palloc_larger(align_down(max, pa->scav_align), pa->scav_align);
    size_t limit = *below < pa->end ? *below : pa->end;
    if (pa->free_pages == pa->scavenged_pages) {
        limit = 0;
    }
    size_t nchunks = (limit + PALLOC_CHUNK_PAGES - 1) >> PALLOC_CHUNK_LOG;
    for (size_t w = (nchunks + 63) / 64; w-- > 0;) {
        size_t here = nchunks - w * 64;
        uint64_t chunks = pa->scav_index[w] &
                          (here < 64 ? bit_range(0, (unsigned)here) : UINT64_MAX);
        while (chunks != 0) {
            unsigned bit = 63 - clz64(chunks);
            size_t c = w * 64 + bit;
            size_t index;
            chunks &= ~(UINT64_C(1) << bit);
            if (spare_dense && palloc_chunk_is_dense(&pa->chunks[c])) {
                continue;
            }
            size_t n = palloc_chunk_find_scavenge(&pa->chunks[c], pa->scav_align, max, &index);
            if (n > 0) {
                *pn_out = (c << PALLOC_CHUNK_LOG) + index;
                *below = (c + 1) << PALLOC_CHUNK_LOG;
                pagealloc_take(pa, *pn_out, n);
                return n;
            }
            pa->scav_index[w] &= ~(UINT64_C(1) << bit);
        }
    }
    *below = 0;
    return 0;
}

void pagealloc_scavenged(struct pagealloc *pa, size_t pn, size_t npages)
{
    pagealloc_put(pa, pn, npages, ~UINT64_C(0));
}

bool pagealloc_any_scavenged(const struct pagealloc *pa, size_t pn, size_t npages)
{
    for (size_t c = pn >> PALLOC_CHUNK_LOG; c < (pn + npages) >> PALLOC_CHUNK_LOG; c++) {
        for (size_t w = 0; w < PALLOC_CHUNK_WORDS; w++) {
            if (pa->chunks[c].scav[w] != 0) {
                return true;
            }
        }
    }
    return false;
}

/* -- checking --------------------------------------------------------------------------------- */

/* One chunk's part of the invariants; adds its counts. */
static bool pagealloc_check_chunk(const struct pagealloc *pa, size_t c, size_t *free_pages,
                                  size_t *scavenged_pages)
{
    const struct palloc_chunk *chunk = &pa->chunks[c];
    uint64_t to_scavenge = 0;
    for (size_t w = 0; w < PALLOC_CHUNK_WORDS; w++) {
        uint64_t x = chunk->free[w];
        size_t pn = (c << PALLOC_CHUNK_LOG) + w * 64;
        if ((chunk->scav[w] & ~x) != 0) {
            return false; /* [pagealloc.scav] */
        }
        if (x != 0 && pn + ctz64(x) < pa->search_pn) {
            return false; /* [pagealloc.hint] */
        }
        if (x != 0 && pn + 64 - clz64(x) > pa->end) {
            return false; /* [pagealloc.end] */
        }
        *free_pages += popcount64(x);
        *scavenged_pages += popcount64(chunk->scav[w]);
        to_scavenge |= palloc_whole_groups(x & ~chunk->scav[w], pa->scav_align);
    }
    if (to_scavenge != 0 && (pa->scav_index[c / 64] >> c % 64 & 1) == 0) {
        return false; /* [pagealloc.index] */
    }
    return palloc_chunk_summarize(chunk) == pa->summary[pa->nlevels - 1][c]; /* [pagealloc.sum] */
}

bool pagealloc_check(const struct pagealloc *pa)
{
    size_t free_pages = 0;
    size_t scavenged_pages = 0;
    size_t nchunks = (pa->end + PALLOC_CHUNK_PAGES - 1) >> PALLOC_CHUNK_LOG;
    for (size_t c = 0; c < nchunks; c++) {
        if (!pagealloc_check_chunk(pa, c, &free_pages, &scavenged_pages)) {
            return false;
        }
    }
    if (free_pages != pa->free_pages || scavenged_pages != pa->scavenged_pages) {
        return false; /* [pagealloc.count] */
    }
    size_t nodes = nchunks;
    for (unsigned level = pa->nlevels - 1; level > 0; level--) {
        unsigned child_log = pagealloc_level_log(pa, level);
        nodes = (nodes + PALLOC_LEVEL_WIDTH - 1) >> PALLOC_LEVEL_LOG;
        for (size_t i = 0; i < nodes; i++) {
            const palloc_sum *children = &pa->summary[level][i << PALLOC_LEVEL_LOG];
            if (palloc_sum_merge(children, child_log) != pa->summary[level - 1][i]) {
                return false; /* [pagealloc.sum] */
            }
        }
    }
    return true;
}
