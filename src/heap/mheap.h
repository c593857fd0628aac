/* mheap.h - the page heap and the spans cut from it: the data model of the library.
 *
 * One contiguous region of address space holds every object. Pages are numbered from its base
 * (`pn`), so all tables are arrays indexed by page number, and "is this word a heap address" is a
 * subtraction and a compare. Best first read after docs/internals/design.md.
 */
#ifndef HEAP_MHEAP_H
#define HEAP_MHEAP_H

#include "base/atomics.h"
#include "base/bits.h"
#include "base/check.h"
#include "heap/gctype.h"
#include "heap/pagealloc.h"
#include "heap/sizeclasses.h"
#include "os/os.h"

enum {
    HEAP_PAGE_SIZE = 1 << PAGE_SHIFT,
    ARENA_PAGES = 8192, /* 64 MiB */
    ARENAS_MAX = 1 << 14,
    NODES_MAX = 64,
    BITS_WORDS = 32,     /* 256 bytes of mark, alloc and scanned bits per page */
    MHEAP_FAR_PART = 32, /* of the memory limit: who is more than that beyond it is far beyond */

    /* Span classes 2*c (conservative) and 2*c+1 (noscan) are fixed; those of declared types follow. The
     * last ones are kept for types that only a function can scan: for others there is a substitute. */
    NUM_FIXED_SPANCLASSES = 2 * NUM_SIZE_CLASSES,
    SPANCLASS_CHUNK = 64,
    MAX_SPANCLASSES = 256 * SPANCLASS_CHUNK,
    SCAN_FN_SPANCLASSES = 16 * SPANCLASS_CHUNK,
    SPANCLASS_LARGE = 1, /* each object has a span to itself, as a large one: no run, no id */
};

/* What the marker needs of a page, in one word; 0: no object here.
 *   bits 0..6 size class (0: large), 7 in use, 8 noscan, 9 some object is an ephemeron's key,
 *   32..63 page number of the span's head.
 * Written when a span is born or dies, read by anybody at any time. */
typedef uint64_t pagedesc;
#define PAGEDESC_INUSE (UINT64_C(1) << 7)
#define PAGEDESC_NOSCAN (UINT64_C(1) << 8)
#define PAGEDESC_KEYS (UINT64_C(1) << 9)

ALWAYS_INLINE unsigned pagedesc_class(pagedesc d)
{
    return (unsigned)(d & 0x7f);
}
ALWAYS_INLINE size_t pagedesc_head(pagedesc d)
{
    return (size_t)(d >> 32);
}

struct special;
struct mcache;
struct span_list;

/* A span is one run of heap pages that holds objects of one size and one layout. At any instant one
 * of these owns it: the page heap (not in use), an mcentral list, an mcache, or a sweeper.
 *
 * Invariants (mspan_check):
 *   [mspan.bits]   marks is a subset of allocs, but for slots freed or not yet handed out;
 *                  bits at and beyond nelems are zero.
 *   [mspan.owner]  only the owner sets alloc bits and moves free_index; anybody may clear an alloc
 *                  bit (loam_free), with an atomic and.
 *   [mspan.dead]   while not in use all its bits and its pagedesc words are zero.
 * sweepgen, relative to heap.sweepgen sg:
 *   sg-2 to be swept; sg-1 being swept; sg swept; sg+1 cached before the flip, its owner has not
 *   yet given it back; sg+3 swept and cached. */
struct mspan {
    uintptr_t base;            /* first byte; fixed while in use */
    size_t elem_size;          /* bytes of a slot; fixed while in use */
    const struct gctype *type; /* layout of all its objects; fixed while in use */
    uint32_t npages;
    uint32_t nelems;
    uint32_t nwords;    /* words of each bitmap */
    uint32_t spanclass; /* index of its mcentral */
    uint8_t sizeclass;
    bool noscan;
    _Atomic bool needzero;     /* free slots may hold old bytes; set before a slot is freed */
    bool sample_next;          /* the first slot of the next run is to be sampled; owner */
    uint32_t free_index;       /* where the search for the next hole starts; owner writes */
    _Atomic uint32_t sweepgen; /* see above */
    _Atomic uint32_t freed;    /* slots given back by loam_free since the owner last searched */
    struct mspan *next, *prev; /* in `list`, under its mcentral's lock; next: heap.returned too */
    _Atomic(struct span_list *) list; /* it is on, or NULL; written under its mcentral's lock */
    _Atomic uint32_t batch_next;  /* gc/work.c: next batch in the global queue, page number + 1 */
    uint32_t batch_tail;          /* gc/work.c: last span of the batch that starts here */
    uint32_t batch_count;         /* gc/work.c: spans in that batch */
    _Atomic size_t scan_progress; /* gc/mark.c: bytes of a large object claimed for scanning */
    _Atomic(struct special **) specials; /* gc/ends.c: by object index, or NULL */
} CACHE_ALIGNED;
_Static_assert(sizeof(struct mspan) == 128, "one span record per two cache lines");

struct span_list {
    struct mspan *head;
    _Atomic size_t count; /* written under the lock; a hint to others */
};

/* Spans of one span class, shared by all caches. Two generations of each list, indexed by
 * (sweepgen / 2) & 1: the index of the current generation holds swept spans, the other one spans
 * that wait for the sweeper; a flip changes the roles. */
struct mcentral {
    struct mutex lock;
    struct span_list partial[2]; /* with a free slot */
    struct span_list full[2];    /* without */
    const struct gctype *type;
    uint32_t spanclass;
    uint8_t sizeclass;
    bool noscan;
    _Atomic uint64_t nmalloc; /* slots handed to caches; less what they still hold: allocations */
    _Atomic uint64_t nfree;   /* objects freed, by the sweeper or by loam_free */
} CACHE_ALIGNED;

/* Bytes mapped, by purpose; each counted where it happens. */
struct heap_stats {
    _Atomic uint64_t heap_sys;   /* committed heap pages */
    _Atomic uint64_t heap_inuse; /* pages of spans in use */
    _Atomic uint64_t gc_sys;     /* bits, page descriptors, queue links */
    _Atomic uint64_t mspan_sys;
    _Atomic uint64_t mspan_inuse;
    _Atomic uint64_t mcache_sys;
    _Atomic uint64_t other_sys;
    _Atomic uint64_t trace_bytes; /* mapped for the execution trace */
    _Atomic uint64_t stack_bytes; /* memory of goroutines' stacks: sched/stack.c */
    _Atomic uint64_t large_alloc; /* bytes ever allocated as large objects */
    _Atomic uint64_t large_free;  /* bytes ever freed of these */
    _Atomic uint64_t class_inuse[NUM_SIZE_CLASSES]; /* of heap_inuse, by size class; [0]: large */
};

struct mheap {
    uintptr_t base;         /* fixed once set */
    _Atomic size_t used;    /* bytes from base that may hold objects; grows only */
    uintptr_t pointer_mask; /* bits of a word that make an address; before the first allocation */
    _Atomic(pagedesc) *descs;
    _Atomic uint64_t *bits; /* BITS_WORDS per page */
    struct mspan *spans;
    _Atomic uint8_t *qstate; /* gc/work.c: span is queued */
    uint32_t *qnext;         /* gc/work.c: next span of the same batch, page number + 1 */

    struct mutex lock; /* guards pages, committed, growth; innermost but for persistentalloc's */
    struct pagealloc pages[NODES_MAX]; /* free pages of each node: nnodes; see nodes.c */
    int nnodes;                        /* fixed once set */
    int node_id[NODES_MAX];            /* the kernel's number; fixed once set */
    uint8_t arena_node[ARENAS_MAX];    /* whose the pages of an arena are */
    size_t reserved_pages;
    size_t committed_pages; /* heap memory, in steps of 4 MiB, of an arena if there are nodes */
    size_t meta_pages;      /* pages whose table entries are committed, in arenas */

    _Atomic uint64_t
        reserve; /* pages for signal handlers: first << 32 | count; see mcache_alloc_nested */

    _Atomic uint32_t sweepgen;
    _Atomic uint32_t sweeping; /* threads between taking an unswept span and having swept it */
    _Atomic(struct mspan *) returned; /* spans given back by caches, to be swept; lock-free push */
    _Atomic(struct mcache *) idle;    /* caches that gave up their pages, or did; lock-free push */
    _Atomic uint32_t
        give_up_pages; /* not 0: at the next H-GIVEBACK all caches give up their pages */

    struct mutex spanclass_lock; /* guards creation of span classes */
    _Atomic uint32_t nspanclasses;
    _Atomic(struct mcentral *) centrals[MAX_SPANCLASSES / SPANCLASS_CHUNK]; /* chunks */

    struct heap_stats stats;

    /* The memory limit. */
    _Atomic uint64_t limit;  /* bytes mapped; UINT64_MAX: none */
    _Atomic bool over_limit; /* pages were taken that lead beyond it; gc/scavenge.c */

    _Atomic int64_t
        sample_rate; /* bytes per sample of the heap profile; 0: none, 1: every object */

    /* Hooks of the layers below, set once at start. */
    bool (*sweep_span)(struct mspan *s, bool keep); /* gc/sweep.c */

    bool discard_lazily; /* GODEBUG madvdontneed=0; set once at start */
};

extern HIDDEN struct mheap heap;

/* Reserve the region and its tables. False: the system refused; may be called again. */
bool mheap_init(void);

ALWAYS_INLINE size_t mspan_pn(const struct mspan *s)
{
    return (size_t)(s - heap.spans);
}
ALWAYS_INLINE _Atomic uint64_t *mspan_marks(const struct mspan *s)
{
    return heap.bits + mspan_pn(s) * BITS_WORDS;
}
ALWAYS_INLINE _Atomic uint64_t *mspan_allocs(const struct mspan *s)
{
    return mspan_marks(s) + s->nwords;
}
/* Scanned bits: of scan spans only (nelems <= 512). */
ALWAYS_INLINE _Atomic uint64_t *mspan_scans(const struct mspan *s)
{
    return mspan_marks(s) + 2 * (size_t)s->nwords;
}
ALWAYS_INLINE size_t mspan_bytes(const struct mspan *s)
{
    return (size_t)s->npages << PAGE_SHIFT;
}
ALWAYS_INLINE size_t mspan_index(const struct mspan *s, uintptr_t addr)
{
    return s->sizeclass == 0 ? 0 : (size_t)((addr - s->base) * class_to_magic[s->sizeclass] >> 32);
}
ALWAYS_INLINE uintptr_t mspan_object(const struct mspan *s, size_t index)
{
    return s->base + index * s->elem_size;
}
ALWAYS_INLINE bool bitmap_get(const _Atomic uint64_t *map, size_t i)
{
    return load_acq(&map[i / 64]) >> (i % 64) & 1; /* acquire: pairs with the setter's release */
}

/* Does `used` cover off, for who loaded the address before? A plain load of an address that was just
 * published, in memory that was just added, may be overtaken by the load of `used`. */
COLD bool heap_covers(uintptr_t off);

/* The span in use around addr, or NULL. Safe on any value, at any time, without a lock. */
ALWAYS_INLINE struct mspan *heap_span_of(uintptr_t addr)
{
    uintptr_t off = addr - heap.base;
    /* relaxed: grows only; a published address lies below. */
    if (off >= load_rlx(&heap.used) && !heap_covers(off)) {
        return NULL;
    }
    /* acquire: pairs with mspan_publish; the span's fields are seen. */
    pagedesc d = load_acq(&heap.descs[off >> PAGE_SHIFT]);
    return d == 0 ? NULL : &heap.spans[pagedesc_head(d)];
}

/* The span and slot of the allocated object around addr; false: no object there. */
bool heap_find_object(uintptr_t addr, struct mspan **span, size_t *index);

struct mcentral *mcentral_of(uint32_t spanclass);

/* The span class of objects of `type` in `sizeclass`, made at first use. When no id is left: that of
 * untyped or noscan memory of the size class, or SPANCLASS_LARGE if only a function can scan the type.
 * 0: no memory. */
uint32_t heap_spanclass(struct gctype *type, unsigned sizeclass);

/* Pages for a span; from c's page cache when that can serve it. The span is filled in but not yet
 * to be found by address (mspan_publish). NULL: no memory. */
struct mspan *mheap_alloc_span(struct mcache *c, size_t npages, struct mcentral *central);
struct mspan *mheap_init_span(size_t pn, size_t npages, size_t scavenged, struct mcentral *central);
void mspan_publish(struct mspan *s);
/* Give a span's pages back; all its bits must be zero. */
void mheap_free_span(struct mspan *s);

/* Bytes that the library has from the system: heap pages that are not scavenged, their entries in the tables, and its
 * other metadata. */
uint64_t mheap_mapped_locked(void);

/* nodes.c, under heap.lock but for the first two */
bool mheap_nodes_init(size_t npages);
int mheap_node_here(void); /* where the calling thread runs; may be a system call */
struct pagealloc *mheap_pages_of(size_t pn);
struct mheap_pages {
    size_t free, scavenged; /* scavenged: of free */
    size_t meta_bytes;
};
struct mheap_pages mheap_pages_locked(void); /* of all nodes */
/* Where a search for pages to give back has come to; from {0, SIZE_MAX}. */
struct mheap_cursor {
    int node; /* nnodes: it has seen all */
    size_t below;
};
/* As pagealloc_scavenge, on one node after the other. */
size_t mheap_scavenge_locked(struct mheap_cursor *at, size_t max_pages, bool spare_dense,
                             size_t *pn);

/* The memory of pages that are in no span and that nobody can take (pagealloc_scavenge), and of their entries in the
 * tables, goes back to the system. */
void mheap_discard(size_t pn, size_t npages);

/* hugepages.c */
void mheap_hugepages_off(void);       /* at the start */
void mheap_hugepages_hole(size_t pn); /* some pages from pn on go back to the system */
void mheap_hugepages_filled(void);    /* after a cycle */

void mheap_flush_pagecache(struct mcache *c);
/* Put the pages that idle caches gave up back into the heap. */
void mheap_take_idle_pages(void);

bool mspan_check(const struct mspan *s);
bool mheap_check(void); /* world stopped or single thread */

void span_list_push(struct span_list *l, struct mspan *s);
void span_list_remove(struct mspan *s);

#endif
