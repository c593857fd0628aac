/* mcache.h - what one thread keeps of the heap so that it need not share. */
#ifndef HEAP_MCACHE_H
#define HEAP_MCACHE_H

#include "heap/mheap.h"

/* Consecutive free slots of one span, zeroed, alloc bits set: the next objects of a span class.
 * An allocation takes [ptr, ptr+size) by one unlocked add that a signal handler on the same thread
 * can only see before or after; see malloc/malloc.c. ptr may run past end. */
struct run {
    uintptr_t ptr;
    uintptr_t end;
    size_t size;
    struct mspan *span; /* NULL: none */
};

/* Invariants:
 *   [mcache.black]  from its thread's answer to [H-BLACK] to that to [H-GIVEBACK] every slot of
 *                   every run is marked and scanned.
 *   [mcache.gen]    sweepgen is heap.sweepgen as of the last answer to [H-GIVEBACK]; cached spans
 *                   carry sweepgen + 3.
 *   [mcache.sample] each byte of each run and large object is sampled with a probability of 1/rate. A run
 *                   ends before the object that holds such a byte, and the next one of that span begins with
 *                   it; so who takes an object out of a run has nothing to ask.
 * Only its thread touches it, or who acts for that thread while it stands still. */
struct mcache {
    struct run runs[NUM_FIXED_SPANCLASSES];
    struct run *typed[MAX_SPANCLASSES / SPANCLASS_CHUNK]; /* chunks; [0],[1],[2] in part unused */
    uint32_t ntyped_chunks;                               /* chunks in use lie below */
    bool black;
    bool used; /* some run was filled since the last give-back */
    uint32_t sweepgen;
    size_t run_limit; /* most bytes in a run; 0: one object (gcstress) */
    uintptr_t
        oom_seal; /* malloc.c: where the running handler's seal is, or that of one left; 0: none */
    bool sampled; /* the next object of the run that was filled last is to be sampled */
    int64_t
        sample_left; /* bytes to be allocated up to the next one that is sampled: [mcache.sample] */
    int64_t sample_rate; /* heap.sample_rate, as sample_left was drawn for it */
    uint64_t sample_rng;
    struct pagecache pages;
    /* Given up by a thread that does not allocate: whoever needs pages puts them back into the heap. */
    _Atomic bool pages_idle;  /* set by the owner, cleared under heap.lock */
    _Atomic bool pages_given; /* on heap.idle */
    struct mcache *next_idle;
};

/* Where in an mcache the run for untyped memory of a size lies, by ceil(size / 8), size at most
 * SMALL_SIZE_MAX: byte offsets. Index 0 is a run that is always empty. */
extern HIDDEN uint16_t run_offset_noscan[SIZE_TO_CLASS8_LEN];
extern HIDDEN uint16_t run_offset_scan[SIZE_TO_CLASS8_LEN];
void mcache_offsets_init(void);

/* False: no memory. */
bool mcache_init(struct mcache *c);
void mcache_fini(struct mcache *c); /* after mcache_release */

/* The run of a span class, its chunk made when needed; NULL: no memory. */
struct run *mcache_run_slow(struct mcache *c, uint32_t spanclass);
ALWAYS_INLINE struct run *mcache_run(struct mcache *c, uint32_t spanclass)
{
    if (spanclass < NUM_FIXED_SPANCLASSES) {
        return &c->runs[spanclass];
    }
    struct run *chunk = c->typed[spanclass / SPANCLASS_CHUNK];
    return likely(chunk != NULL) ? &chunk[spanclass % SPANCLASS_CHUNK]
                                 : mcache_run_slow(c, spanclass);
}

/* [refill]: fill r with the next hole of its span or of another. Bytes added to it, 0: no memory. */
size_t mcache_refill(struct mcache *c, struct run *r, uint32_t spanclass);

/* A large object's span: pages only; then, after zeroing, publish (white or black as c is). */
struct mspan *mcache_alloc_large(struct mcache *c, size_t bytes, struct gctype *type);
void mcache_publish_large(struct mcache *c, struct mspan *s);
/* Is a large object of so many bytes to be sampled? Once for each that is allocated. */
bool mcache_sample_large(struct mcache *c, size_t bytes);
void mcache_publish_alone(struct mcache *c, struct mspan *s); /* the same without a lock */

/* For a signal handler of the program that interrupted the library: an object in pages of its own,
 * without the caller's runs and with no lock but heap.lock; where that is the interrupted code's, from a
 * reserve. NULL: no memory. */
struct mspan *mcache_alloc_nested(struct mcache *c, size_t bytes, struct gctype *type);
void mheap_fill_reserve(void); /* not nested; cheap when full */

/* [H-BLACK]: from now on black. Returns the bytes newly marked. */
size_t mcache_blacken(struct mcache *c);
/* [H-GIVEBACK]: give every cached span back to be swept, be white, adopt the new generation; and give up
 * the cached pages if no run was filled since the last one. Lock-free. Returns bytes of unallocated
 * slots given back. */
size_t mcache_give_back(struct mcache *c, uint32_t new_sweepgen);
/* [exit]: its spans return to their mcentrals in the present generation. */
size_t mcache_release(struct mcache *c);

/* Bytes and slots not yet handed out, of span class sc; readable by others as an estimate that is
 * exact when the owner stands still. */
size_t mcache_unused(const struct mcache *c, uint32_t spanclass);

/* Is addr in a slot that the cache holds and has not handed out? The owner asks. */
bool mcache_holds(const struct mcache *c, const struct mspan *s, uintptr_t addr);

/* In a frozen copy of the process: clear the alloc bits of the slots that c has not handed out. */
void mcache_disown_unused(struct mcache *c);

/* mcentral.c */
struct mspan *mcentral_cache_span(struct mcache *c, struct mcentral *central);
void mcentral_uncache(struct mcache *c, struct mspan *s);
void mcentral_add_large(struct mcache *c, struct mspan *s);
/* A swept span goes to its list of the current generation. */
void mcentral_add_swept(struct mspan *s, bool has_free);
/* Take some span that waits for the sweeper, now "being swept"; NULL: none left in this class. */
struct mspan *mcentral_take_unswept(struct mcentral *central, uint32_t sweepgen);
/* Move the spans that caches gave back to the lists of the unswept. */
void mcentral_drain_returned(void);
/* A swept large span is the caller's to free; false: it is not swept, or somebody else has it. */
bool mcentral_remove_large(struct mspan *s, uint32_t sweepgen);
/* After loam_free cleared an alloc bit: make the slot findable. s was of this mcentral before, and may
 * be another span by now. */
void mcentral_slot_freed(struct mcentral *central, struct mspan *s);

#endif
