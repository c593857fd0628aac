/* mheap.c - the region, its tables, and spans on loan from the page allocator.
 *
 * Purpose     Reserves the region at first use, commits it as it grows, hands out spans and takes
 *             them back, and answers "which object is around this address".
 * Model       region:  |arena 64 MiB|arena|arena|...........reserved, PROT_NONE...........|
 *             tables:  descs, bits, spans, qstate, qnext: one entry per page, committed by arena.
 * Invariants  [heap.zero]  table entries of pages that are in no span are zero.
 *             [heap.used]  every object lies below base + used; used never shrinks.
 * Locking     heap.lock: pages, committed_pages, meta_pages. Nothing is called under it but os/ and
 *             pagealloc.
 * Ordering    mspan_publish stores the descriptors with release after the span's fields; readers
 *             load them with acquire (heap_span_of, gc/mark.c).
 * From Go     mheap.go at go1.26; differs: one contiguous region, so no arena map; mark, alloc and
 *             scanned bits in a table by page, never inside the page; mspan is an array by page.
 * Tests       tests/unit/test_heap.c
 */
#include "heap/mheap.h"

#include "heap/fixalloc.h"
#include "heap/mcache.h"

#include <limits.h>
#include <string.h>

struct mheap heap = {
    .pointer_mask = UINTPTR_MAX, .limit = UINT64_MAX, .sample_rate = 512 << 10 /* Go's */};

enum { GROW_PAGES = 512 }; /* the heap grows by 4 MiB at least, by an arena if there are nodes */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define REGION_MAX GIB(64)
#else
#define REGION_MAX (GIB(1) << 10)
#endif
#define REGION_MIN MIB(64)
_Static_assert(REGION_MAX / MIB(64) <= ARENAS_MAX, "an entry for each arena");

static size_t table_bytes_per_page(void)
{
    return sizeof(pagedesc) + BITS_WORDS * sizeof(uint64_t) + sizeof(struct mspan) +
           sizeof(uint8_t) + sizeof(uint32_t);
}

/* A pointer of which the low half was overwritten by a small int is a multiple of 4 GiB or close behind,
 * and stacks are full of them: no object of a small heap lies there, for the first page holds none. */
static char *region_reserve(size_t bytes)
{
    char *base = os_reserve(bytes, bytes < GIB(4) ? bytes : GIB(4));
    return base != NULL ? base : os_reserve(bytes, MIB(64));
}

static bool region_try(size_t bytes)
{
    size_t npages = bytes >> PAGE_SHIFT;
    char *base = region_reserve(bytes);
    if (base == NULL) {
        return false;
    }
    char *t = os_reserve(npages * table_bytes_per_page(), MIB(4));
    if (t == NULL) {
        os_release(base, bytes);
        return false;
    }
    if (!mheap_nodes_init(npages)) {
        os_release(t, npages * table_bytes_per_page());
        os_release(base, bytes);
        return false;
    }
    heap.base = (uintptr_t)base;
    heap.reserved_pages = npages;
    heap.bits = (void *)t;
    t += npages * BITS_WORDS * sizeof(uint64_t);
    heap.spans = (void *)t;
    t += npages * sizeof(struct mspan);
    heap.descs = (void *)t;
    t += npages * sizeof(pagedesc);
    heap.qnext = (void *)t;
    t += npages * sizeof(uint32_t);
    heap.qstate = (void *)t;
    os_name(base, bytes, "loam heap");
    return true;
}

/* Size classes without a declared type, and the large objects of every type, have their span
 * class from the start. */
static bool fixed_centrals_init(void)
{
    for (uint32_t i = 0; i <= NUM_FIXED_SPANCLASSES / SPANCLASS_CHUNK; i++) {
        struct mcentral *chunk = persistentalloc(SPANCLASS_CHUNK * sizeof *chunk, CACHE_LINE,
                                                 &heap.stats.mcache_sys);
        if (chunk == NULL) {
            return false; /* the chunks made so far are found again: see below */
        }
        store_rel(&heap.centrals[i], chunk); /* release: pairs with mcentral_of */
    }
    for (uint32_t sc = 0; sc < NUM_FIXED_SPANCLASSES; sc++) {
        struct mcentral *c = mcentral_of(sc);
        c->spanclass = sc;
        c->sizeclass = (uint8_t)(sc / 2);
        c->noscan = sc % 2 == 1;
        c->type = c->noscan ? &gctype_noscan : &gctype_conservative;
    }
    store_rel(&heap.nspanclasses, NUM_FIXED_SPANCLASSES); /* release: pairs with its readers */
    return true;
}

bool mheap_init(void)
{
    if (heap.base == 0) {
        size_t limit = os_address_limit();
        for (size_t bytes = REGION_MAX;; bytes /= 2) {
            if (bytes < REGION_MIN) {
                return false;
            }
            if ((limit == SIZE_MAX || bytes <= limit / 2) && region_try(bytes)) {
                break;
            }
        }
        store_rlx(&heap.sweepgen, 2u);
        mcache_offsets_init();
    }
    return load_rlx(&heap.nspanclasses) != 0 || fixed_centrals_init();
}

/* -- growth ------------------------------------------------------------------------------------ */

/* Commit the table entries of pages [heap.meta_pages, end), end a multiple of an arena. */
static bool tables_commit_locked(size_t end)
{
    struct {
        char *table;
        size_t entry;
    } tables[] = {
        {(char *)heap.descs, sizeof(pagedesc)},
        {(char *)heap.bits, BITS_WORDS * sizeof(uint64_t)},
        {(char *)heap.spans, sizeof(struct mspan)},
        {(char *)heap.qnext, sizeof(uint32_t)},
        {(char *)heap.qstate, sizeof(uint8_t)},
    };
    size_t from = heap.meta_pages;
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        /* Commits that succeed before one fails are harmless: they are repeated next time. */
        size_t bytes = (end - from) * tables[i].entry;
        if (!os_commit(tables[i].table + from * tables[i].entry, bytes)) {
            return false;
        }
    }
    add_rlx(&heap.stats.mspan_sys, (end - from) * sizeof(struct mspan));
    add_rlx(&heap.stats.gc_sys, (end - from) * (table_bytes_per_page() - sizeof(struct mspan)));
    heap.meta_pages = end;
    return true;
}

static bool mheap_grow_locked(size_t npages, int node)
{
    size_t from = heap.committed_pages;
    size_t grow = align_up(npages + (from == 0), heap.nnodes == 1 ? GROW_PAGES : ARENA_PAGES);
    if (grow > heap.reserved_pages - from) {
        return false;
    }
    size_t end = from + grow;
    size_t meta_end = align_up(end, ARENA_PAGES);
    if (meta_end > heap.meta_pages && !tables_commit_locked(meta_end)) {
        return false;
    }
    if (!os_commit((char *)heap.base + (from << PAGE_SHIFT), grow << PAGE_SHIFT)) {
        return false;
    }
    if (!pagealloc_grow(&heap.pages[node], from, grow)) {
        return false; /* the commit is repeated next time */
    }
    if (heap.nnodes != 1) {
        memset(&heap.arena_node[from / ARENA_PAGES], node, grow / ARENA_PAGES);
        os_numa.prefer((char *)heap.base + (from << PAGE_SHIFT), grow << PAGE_SHIFT,
                       heap.node_id[node]);
    }
    if (from == 0) {
        /* The region's base lies in our own data, which is searched when we are linked statically: an
         * object there would never die. */
        size_t scavenged;
        size_t first = pagealloc_alloc(&heap.pages[node], 1, &scavenged);
        CHECK(first == 0, "the first page of the heap is taken");
    }
    heap.committed_pages = end;
    add_rlx(&heap.stats.heap_sys, grow << PAGE_SHIFT);
    /* release: pairs with nobody yet; an address below it is published by a descriptor. */
    store_rel(&heap.used, end << PAGE_SHIFT);
    return true;
}

uint64_t mheap_mapped_locked(void)
{
    struct mheap_pages pages = mheap_pages_locked();
    return (heap.committed_pages - pages.scavenged) * (HEAP_PAGE_SIZE + table_bytes_per_page()) +
           pages.meta_bytes + persistentalloc_mapped_bytes() + metaalloc_mapped_bytes() +
           os_stores_bytes() + load_rlx(&heap.stats.stack_bytes) +
           load_rlx(&heap.stats.trace_bytes);
}

/* Then who allocates waits with each span (gc/scavenge.c), and must not take a cache full of pages for it. */
static bool far_beyond_limit_locked(void)
{
    uint64_t limit = load_rlx(&heap.limit); /* relaxed: who changes it looks himself */
    return limit != UINT64_MAX && mheap_mapped_locked() > limit + limit / MHEAP_FAR_PART;
}

/* -- pages and spans --------------------------------------------------------------------------- */

static void flush_cache_locked(struct mcache *c)
{
    pagealloc_cache_flush(mheap_pages_of(c->pages.base_pn), &c->pages);
}

/* Of at most so many caches; false: none is left. Only who holds the lock takes any off the list. */
static bool take_idle_pages_locked(int most)
{
    /* acquire: pairs with the push in give_up_pages. */
    struct mcache *c = load_acq(&heap.idle);
    while (c != NULL && most > 0) {
        if (!cas_acqrel(&heap.idle, &c, c->next_idle)) {
            continue; /* another one came */
        }
        /* acq_rel: first off the list, then the look; a cache gives up in the other order. */
        (void)xchg_acqrel(&c->pages_given, false);
        if (load_acq(&c->pages_idle)) {
            flush_cache_locked(c);
            store_rel(&c->pages_idle, false); /* release: pairs with own_pages; the last touch */
        }
        c = load_acq(&heap.idle);
        most--;
    }
    return c != NULL;
}

void mheap_take_idle_pages(void)
{
    enum { PIECE = 16 }; /* caches */
    for (bool more = true; more;) {
        mutex_lock(&heap.lock);
        more = take_idle_pages_locked(PIECE);
        mutex_unlock(&heap.lock);
    }
}

/* What the caller's cache gave up it may have back, if it is still there. */
static void own_pages(struct mcache *c)
{
    if (unlikely(load_acq(&c->pages_idle))) { /* acquire: what was flushed is seen to be gone */
        mutex_lock(&heap.lock);
        store_rlx(&c->pages_idle, false); /* relaxed: the lock orders it */
        mutex_unlock(&heap.lock);
    }
}

static size_t alloc_pages_locked(struct mcache *c, size_t npages, int node, size_t *scavenged)
{
    if (c != NULL && npages < PAGECACHE_MAX_ALLOC) {
        flush_cache_locked(c);
        c->pages = pagealloc_alloc_to_cache(&heap.pages[node]);
        size_t pn = pagecache_alloc(&c->pages, npages, scavenged);
        if (pn != PAGE_NONE) {
            return pn;
        }
    }
    return pagealloc_alloc(&heap.pages[node], npages, scavenged);
}

static size_t alloc_pages(struct mcache *c, size_t npages, size_t *scavenged)
{
    if (c != NULL && npages < PAGECACHE_MAX_ALLOC) {
        own_pages(c);
        size_t pn = pagecache_alloc(&c->pages, npages, scavenged);
        if (likely(pn != PAGE_NONE)) {
            return pn;
        }
    }
    int node = mheap_node_here();
    mutex_lock(&heap.lock);
    c = far_beyond_limit_locked() ? NULL : c;
    size_t pn = alloc_pages_locked(c, npages, node, scavenged);
    if (pn == PAGE_NONE && load_rlx(&heap.idle) != NULL) { /* relaxed: a hint */
        (void)take_idle_pages_locked(INT_MAX);
        pn = alloc_pages_locked(c, npages, node, scavenged);
    }
    if (pn == PAGE_NONE && mheap_grow_locked(npages, node)) {
        pn = alloc_pages_locked(c, npages, node, scavenged);
    }
    for (int other = 0; pn == PAGE_NONE && other < heap.nnodes; other++) {
        pn = other != node ? alloc_pages_locked(c, npages, other, scavenged) : PAGE_NONE;
    }
    uint64_t limit = load_rlx(&heap.limit); /* relaxed: who changes it looks himself */
    if (unlikely(limit != UINT64_MAX) && mheap_mapped_locked() > limit) {
        store_rlx(&heap.over_limit, true);
    }
    mutex_unlock(&heap.lock);
    return pn;
}

struct mspan *mheap_alloc_span(struct mcache *c, size_t npages, struct mcentral *central)
{
    size_t scavenged = 0;
    size_t pn = alloc_pages(c, npages, &scavenged);
    return pn == PAGE_NONE ? NULL : mheap_init_span(pn, npages, scavenged, central);
}

struct mspan *mheap_init_span(size_t pn, size_t npages, size_t scavenged, struct mcentral *central)
{
    struct mspan *s = &heap.spans[pn];
    unsigned sc = central->sizeclass;
    s->base = heap.base + (pn << PAGE_SHIFT);
    s->npages = (uint32_t)npages;
    s->elem_size = sc == 0 ? npages << PAGE_SHIFT : class_to_size[sc];
    s->nelems = sc == 0 ? 1 : class_to_objs[sc];
    s->nwords = (s->nelems + 63) / 64;
    s->type = central->type;
    s->spanclass = central->spanclass;
    s->sizeclass = (uint8_t)sc;
    s->noscan = central->noscan;
    store_rlx(&s->needzero, scavenged != npages || heap.discard_lazily);
    s->free_index = 0;
    store_rlx(&s->freed, 0u);
    store_rlx(&s->scan_progress, (size_t)0);
    ASSERT(load_rlx(&s->list) == NULL);
    add_rlx(&heap.stats.heap_inuse, npages << PAGE_SHIFT);
    add_rlx(&heap.stats.class_inuse[sc], npages << PAGE_SHIFT);
    add_rlx(&heap.stats.mspan_inuse, sizeof *s);
    return s;
}

void mspan_publish(struct mspan *s)
{
    size_t pn = mspan_pn(s);
    pagedesc d = s->sizeclass | PAGEDESC_INUSE | (s->noscan ? PAGEDESC_NOSCAN : 0) |
                 (uint64_t)pn << 32;
    for (size_t i = 0; i < s->npages; i++) {
        /* release: the span's fields and bits are seen by who finds it; pairs with heap_span_of. */
        store_rel(&heap.descs[pn + i], d);
    }
}

void mheap_free_span(struct mspan *s)
{
    size_t pn = mspan_pn(s);
    size_t npages = s->npages;
    ASSERT(load_rlx(&s->list) == NULL);
    ASSERT(load_rlx(&s->specials) == NULL);
    for (size_t i = 0; i < npages; i++) {
        store_rlx(&heap.descs[pn + i], (pagedesc)0); /* relaxed: nobody marks while spans die */
    }
    sub_rlx(&heap.stats.heap_inuse, npages << PAGE_SHIFT);
    sub_rlx(&heap.stats.class_inuse[s->sizeclass], npages << PAGE_SHIFT);
    sub_rlx(&heap.stats.mspan_inuse, sizeof *s);
    mutex_lock(&heap.lock);
    pagealloc_free(mheap_pages_of(pn), pn, npages);
    mutex_unlock(&heap.lock);
}

static void discard_entries(void *table, size_t entry, size_t pn, size_t npages)
{
    uintptr_t from = align_up((uintptr_t)table + pn * entry, os_page_size());
    uintptr_t to = align_down((uintptr_t)table + (pn + npages) * entry, os_page_size());
    if (from < to) {
        os_discard((void *)from, to - from);
    }
}

/* [heap.zero]; and nobody looks at the record of a span that is not there, but for a marker that pops it a second time
 * (gc/work.c), and fails. The other tables are too small to be worth a call. */
void mheap_discard(size_t pn, size_t npages)
{
    void *start = (void *)(heap.base + (pn << PAGE_SHIFT));
    mheap_hugepages_hole(pn);
    if (heap.discard_lazily) {
        os_discard_lazily(start, npages << PAGE_SHIFT);
    } else {
        os_discard(start, npages << PAGE_SHIFT);
    }
    discard_entries(heap.bits, BITS_WORDS * sizeof(uint64_t), pn, npages);
    discard_entries(heap.spans, sizeof(struct mspan), pn, npages);
}

void mheap_flush_pagecache(struct mcache *c)
{
    /* acquire: when it is not idle, nobody else touches it */
    if (load_acq(&c->pages_idle) || load_acq(&c->pages_given) || c->pages.free != 0) {
        mutex_lock(&heap.lock);
        (void)take_idle_pages_locked(INT_MAX); /* c is on no list any more */
        flush_cache_locked(c);
        mutex_unlock(&heap.lock);
    }
}

/* -- the reserve of signal handlers ------------------------------------------------------------ */

enum { RESERVE_PAGES = 512, RESERVE_LOW = 384 };

void mheap_fill_reserve(void)
{
    uint64_t old = load_rlx(&heap.reserve);
    if ((uint32_t)old >= RESERVE_LOW) {
        return;
    }
    size_t scavenged;
    int node = mheap_node_here();
    mutex_lock(&heap.lock);
    size_t pn = pagealloc_alloc(&heap.pages[node], RESERVE_PAGES, &scavenged);
    if (pn == PAGE_NONE && mheap_grow_locked(RESERVE_PAGES, node)) {
        pn = pagealloc_alloc(&heap.pages[node], RESERVE_PAGES, &scavenged);
    }
    if (pn != PAGE_NONE) {
        old = xchg_acqrel(&heap.reserve, (uint64_t)pn << 32 | RESERVE_PAGES);
        if ((uint32_t)old != 0) {
            pagealloc_free(mheap_pages_of((size_t)(old >> 32)), (size_t)(old >> 32), (uint32_t)old);
        }
    }
    mutex_unlock(&heap.lock);
}

static size_t reserve_take(size_t npages)
{
    uint64_t old = load_rlx(&heap.reserve);
    uint64_t rest;
    do {
        if ((uint32_t)old < npages) {
            return PAGE_NONE;
        }
        rest = ((old >> 32) + npages) << 32 | ((uint32_t)old - npages);
    } while (!cas_acqrel(&heap.reserve, &old, rest));
    return (size_t)(old >> 32);
}

/* What the interrupted code holds, if anything, is not what the holder of heap.lock waits for: that one
 * takes no other lock. So it may be waited for, unless the interrupted code is that holder. */
static size_t nested_pages(size_t npages)
{
    size_t scavenged;
    if (!mutex_may_be_mine(&heap.lock)) {
        size_t pn = alloc_pages(NULL, npages, &scavenged);
        if (pn != PAGE_NONE) {
            return pn;
        }
    }
    return reserve_take(npages);
}

struct mspan *mcache_alloc_nested(struct mcache *c, size_t bytes, struct gctype *type)
{
    size_t npages = bytes == 0 ? 1 : (bytes + HEAP_PAGE_SIZE - 1) >> PAGE_SHIFT;
    size_t pn = nested_pages(npages);
    if (pn == PAGE_NONE) {
        return NULL;
    }
    struct mspan *s = mheap_init_span(pn, npages, 0, mcentral_of(type->kind == SCAN_NONE ? 1 : 0));
    s->type = type;
    s->free_index = 1;
    memset((void *)s->base, 0, mspan_bytes(s));
    mcache_publish_alone(c, s);
    return s;
}

bool heap_covers(uintptr_t off)
{
    fence_acq(); /* acquire: the load that gave off; pairs with the publication of the address */
    return off < load_rlx(&heap.used);
}

bool heap_find_object(uintptr_t addr, struct mspan **span, size_t *index)
{
    struct mspan *s = heap_span_of(addr);
    if (s == NULL) {
        return false;
    }
    size_t i = mspan_index(s, addr);
    if (i >= s->nelems || !bitmap_get(mspan_allocs(s), i)) {
        return false;
    }
    *span = s;
    *index = i;
    return true;
}

/* -- span classes of declared types ------------------------------------------------------------ */

struct mcentral *mcentral_of(uint32_t spanclass)
{
    /* acquire: pairs with the release of the chunk. */
    struct mcentral *chunk = load_acq(&heap.centrals[spanclass / SPANCLASS_CHUNK]);
    return &chunk[spanclass % SPANCLASS_CHUNK];
}

/* Untyped memory is searched by word: it finds all that a mask, a list of fields or a tail names. */
static uint32_t spanclass_substitute(const struct gctype *type, unsigned sizeclass)
{
    switch (type->kind) {
    case SCAN_FN:
        return SPANCLASS_LARGE;
    case SCAN_NONE:
        return 2 * sizeclass + 1;
    default:
        return 2 * sizeclass;
    }
}

static uint32_t spanclass_make_locked(struct gctype *type, unsigned sizeclass)
{
    uint32_t id = load_rlx(&heap.nspanclasses);
    if (id >= MAX_SPANCLASSES - (type->kind == SCAN_FN ? 0 : SCAN_FN_SPANCLASSES)) {
        return spanclass_substitute(type, sizeclass);
    }
    if (load_rlx(&heap.centrals[id / SPANCLASS_CHUNK]) == NULL) {
        struct mcentral *chunk = persistentalloc(SPANCLASS_CHUNK * sizeof *chunk, CACHE_LINE,
                                                 &heap.stats.mcache_sys);
        if (chunk == NULL) {
            return 0;
        }
        store_rel(&heap.centrals[id / SPANCLASS_CHUNK],
                  chunk); /* release: pairs with mcentral_of */
    }
    struct mcentral *c = mcentral_of(id);
    c->type = type;
    c->spanclass = id;
    c->sizeclass = (uint8_t)sizeclass;
    c->noscan = type->kind == SCAN_NONE;
    /* release: the mcentral is whole; pairs with the acquire of who walks them all. */
    store_rel(&heap.nspanclasses, id + 1);
    return id;
}

uint32_t heap_spanclass(struct gctype *type, unsigned sizeclass)
{
    /* acquire: pairs with the release below; the mcentral is whole. */
    uint32_t id = load_acq(&type->spanclass[sizeclass]);
    if (likely(id != 0)) {
        return id;
    }
    mutex_lock(&heap.spanclass_lock);
    id = load_rlx(&type->spanclass[sizeclass]);
    if (id == 0) {
        id = spanclass_make_locked(type, sizeclass);
        store_rel(&type->spanclass[sizeclass], id); /* release: pairs with the acquire above */
    }
    mutex_unlock(&heap.spanclass_lock);
    return id;
}

/* -- lists and checkers ------------------------------------------------------------------------ */

void span_list_push(struct span_list *l, struct mspan *s)
{
    ASSERT(load_rlx(&s->list) == NULL);
    store_rlx(&s->list, l); /* relaxed, all of them: the lock orders it; see mcentral_slot_freed */
    s->prev = NULL;
    s->next = l->head;
    if (l->head != NULL) {
        l->head->prev = s;
    }
    l->head = s;
    store_rel(&l->count, load_rlx(&l->count) + 1); /* release: pairs with mcentral's hints */
}

void span_list_remove(struct mspan *s)
{
    struct span_list *l = load_rlx(&s->list);
    ASSERT(l != NULL);
    ASSERT(load_rlx(&l->count) > 0);
    if (s->prev != NULL) {
        s->prev->next = s->next;
    } else {
        l->head = s->next;
    }
    if (s->next != NULL) {
        s->next->prev = s->prev;
    }
    s->next = s->prev = NULL;
    store_rlx(&s->list, NULL);
    store_rel(&l->count, load_rlx(&l->count) - 1); /* release: as above */
}

bool mspan_check(const struct mspan *s)
{
    if (s->nelems == 0 || s->nwords != (s->nelems + 63) / 64 || s->base % HEAP_PAGE_SIZE != 0) {
        return false;
    }
    if (s->nelems % 64 != 0) { /* [mspan.bits] */
        uint64_t beyond = ~bit_range(0, s->nelems % 64);
        if ((load_rlx(&mspan_marks(s)[s->nwords - 1]) & beyond) != 0 ||
            (load_rlx(&mspan_allocs(s)[s->nwords - 1]) & beyond) != 0) {
            return false;
        }
    }
    for (size_t i = 0; i < s->npages; i++) {
        pagedesc d = load_rlx(&heap.descs[mspan_pn(s) + i]);
        if (pagedesc_head(d) != mspan_pn(s) || pagedesc_class(d) != s->sizeclass) {
            return false;
        }
    }
    return true;
}

bool mheap_check(void)
{
    size_t inuse = 0;
    for (size_t pn = 0; pn < heap.committed_pages;) {
        pagedesc d = load_rlx(&heap.descs[pn]);
        if (d == 0) {
            pn++;
            continue;
        }
        const struct mspan *s = &heap.spans[pn];
        if (pagedesc_head(d) != pn || !mspan_check(s)) {
            return false;
        }
        inuse += s->npages;
        pn += s->npages;
    }
    bool ok = inuse << PAGE_SHIFT <= load_rlx(&heap.stats.heap_inuse);
    for (int node = 0; ok && node < heap.nnodes; node++) {
        ok = pagealloc_check(&heap.pages[node]);
    }
    return ok;
}
