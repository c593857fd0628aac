/* pagealloc.h - which pages of the heap's region are free: bitmaps under a radix tree of summaries.
 *
 * Pages are numbers (`pn`) from the base of the region; nothing here touches the pages themselves.
 * A page is unknown until pagealloc_grow, then free or allocated. A free page may be scavenged: its
 * memory was given back to the system, or was never used, and reads as zero.
 *
 * The caller holds the heap lock in every call but pagecache_alloc, whose cache has one owner.
 */
#ifndef HEAP_PAGEALLOC_H
#define HEAP_PAGEALLOC_H

#include "base/bits.h"

#define PAGE_NONE SIZE_MAX

enum {
    PALLOC_CHUNK_LOG = 9,
    PALLOC_CHUNK_PAGES = 1 << PALLOC_CHUNK_LOG, /* 4 MiB: the leaf of the tree */
    PALLOC_CHUNK_WORDS = PALLOC_CHUNK_PAGES / 64,
    PALLOC_MAX_LEVELS = 5,
    PALLOC_DENSE_FREE = 16, /* Go's: 496 of 512 pages in use */
    PAGECACHE_PAGES = 64,
    PAGECACHE_MAX_ALLOC = 16, /* requests below this may be served by a pagecache */
};

/* Free pages under one node of the tree, as three counts; see pagealloc.c. Zero: none is free. */
typedef uint64_t palloc_sum;

/* One bit per page, bit 0 of word 0 first. All zero: pages that are unknown or allocated. */
struct palloc_chunk {
    uint64_t free[PALLOC_CHUNK_WORDS];
    uint64_t scav[PALLOC_CHUNK_WORDS]; /* a subset of free */
};

/* A table in reserved address space, committed from its start as the heap grows. */
struct palloc_table {
    char *base;
    size_t committed_bytes;
};

/* All fields: under the heap lock. */
struct pagealloc {
    struct palloc_chunk *chunks;            /* [end rounded up to chunks] */
    palloc_sum *summary[PALLOC_MAX_LEVELS]; /* [0] is the root, [nlevels - 1] has one per chunk */
    uint64_t *scav_index;                   /* a bit per chunk; 0: nothing in it to scavenge */
    unsigned nlevels;
    size_t max_pages;       /* pages of the region */
    size_t end;             /* one past the highest page that was grown */
    size_t search_pn;       /* no page below it is free */
    size_t free_pages;      /* pages in caches count as allocated */
    size_t scavenged_pages; /* of free_pages */
    size_t meta_bytes;      /* committed for the tables */
    size_t scav_align;      /* pages in a page of the system, at least 1 */
    struct palloc_table tables[PALLOC_MAX_LEVELS + 2];
    char *reserved;
    size_t reserved_bytes;
};

/* Reserve the tables for max_pages pages. False: refused; *pa needs no fini. */
__attribute__((warn_unused_result)) bool pagealloc_init(struct pagealloc *pa, size_t max_pages);
void pagealloc_fini(struct pagealloc *pa);

/* Pages [pn, pn + npages) become free and scavenged; they lie above all that was grown before.
 * False: metadata could not be committed, no page changed. */
__attribute__((warn_unused_result)) bool pagealloc_grow(struct pagealloc *pa, size_t pn,
                                                        size_t npages);

/* Take the lowest run of npages (at least 1). PAGE_NONE: there is none. *scavenged: how many of
 * them were scavenged; all npages: the memory is zero. */
size_t pagealloc_alloc(struct pagealloc *pa, size_t npages, size_t *scavenged);

/* Give allocated pages back, unscavenged. */
void pagealloc_free(struct pagealloc *pa, size_t pn, size_t npages);

/* Free pages of one aligned block of 64: taken from the tree at once, handed out without a lock. */
struct pagecache {
    size_t base_pn;
    uint64_t free;
    uint64_t scav; /* a subset of free */
};

/* All free pages of the block that has the lowest free page. free == 0: the heap is full. */
struct pagecache pagealloc_alloc_to_cache(struct pagealloc *pa);

/* Give back what is left in the cache; it is empty then. */
void pagealloc_cache_flush(struct pagealloc *pa, struct pagecache *c);

size_t pagecache_alloc_run(struct pagecache *c, size_t npages, size_t *scavenged);

/* As pagealloc_alloc, from the cache; npages < PAGECACHE_MAX_ALLOC. */
ALWAYS_INLINE size_t pagecache_alloc(struct pagecache *c, size_t npages, size_t *scavenged)
{
    if (c->free == 0) {
        return PAGE_NONE;
    }
    if (npages != 1) {
        return pagecache_alloc_run(c, npages, scavenged);
    }
    unsigned i = ctz64(c->free);
    *scavenged = c->scav >> i & 1;
    c->free &= c->free - 1;
    c->scav &= c->free;
    return c->base_pn + i;
}

/* Find the highest free unscavenged pages in the chunks that begin below page *below: the top
 * max_pages (rounded to whole pages of the system, at least one) of the highest run of them in one
 * chunk; spare_dense leaves out chunks that are in use but for PALLOC_DENSE_FREE pages. They are marked allocated,
 * so that nobody takes them while they are being discarded. Returns how many, the first in *pn_out, and in
 * *below where to go on; 0: none, also in *below. */
size_t pagealloc_scavenge(struct pagealloc *pa, size_t max_pages, size_t *below, bool spare_dense,
                          size_t *pn_out);

/* Allocated pages that were discarded become free and scavenged. */
void pagealloc_scavenged(struct pagealloc *pa, size_t pn, size_t npages);

/* Whole chunks that were grown: is any of their pages scavenged? */
bool pagealloc_any_scavenged(const struct pagealloc *pa, size_t pn, size_t npages);

/* Recompute every summary and count from the bitmaps; false: something differs. */
bool pagealloc_check(const struct pagealloc *pa);

#endif
