/* mark.h - shading a word: the smallest step of the collector. */
#ifndef GC_MARK_H
#define GC_MARK_H

#include "gc/ends.h"
#include "gc/work.h"

extern HIDDEN const uint8_t class_to_words[NUM_SIZE_CLASSES]; /* words of a bitmap, by size class */

/* Where the mark bit of the object at an offset of the region lies. */
struct mark_bit {
    pagedesc desc;
    _Atomic uint64_t *word; /* of the marks; the alloc word is `stride` further */
    size_t stride;
    uint64_t mask;
    size_t index;
};

/* False: no object can be there. off < heap.used. Safe at any time on any value. */
ALWAYS_INLINE bool mark_bit_of(uintptr_t off, struct mark_bit *b)
{
    /* acquire: pairs with mspan_publish. */
    pagedesc d = load_acq(&heap.descs[off >> PAGE_SHIFT]);
    if (d == 0) {
        return false;
    }
    size_t head = pagedesc_head(d);
    unsigned sc = pagedesc_class(d);
    size_t index = 0;
    if (likely(sc != 0)) {
        index = class_object_index(sc, off - (head << PAGE_SHIFT));
        if (unlikely(index >= class_to_objs[sc])) {
            return false; /* the tail of the span */
        }
    }
    b->desc = d;
    b->stride = class_to_words[sc];
    b->word = heap.bits + head * BITS_WORDS + index / 64;
    b->mask = UINT64_C(1) << (index % 64);
    b->index = index;
    return true;
}

/* Mark the object around base + off, if there is one, and queue its span. */
ALWAYS_INLINE void mark_offset(struct gcwork *w, uintptr_t off)
{
    struct mark_bit b;
    if (!mark_bit_of(off, &b) || (load_rlx(b.word) & b.mask) != 0) {
        return; /* relaxed: a hint, decided below */
    }
    /* acquire: pairs with mcache's release; a slot of a black run is seen marked below. A slot that is
     * not allocated is ignored: a stale word must not bring anything back. */
    if ((load_acq(b.word + b.stride) & b.mask) == 0) {
        return;
    }
    if (w->counted) {
        store_rlx(&gc.dirty,
                  1u); /* before the mark: who sees the mark sees this; pairs with a round */
    }
    if ((or_sc(b.word, b.mask) & b.mask) != 0) {
        return;
    }
    ASSERT(gc_phase_marks(load_rlx(&gc.phase))); /* [phase.late] */
    unsigned sc = pagedesc_class(b.desc);
    size_t head = pagedesc_head(b.desc);
    w->bytes_marked += sc != 0 ? class_to_size[sc] : heap.spans[head].elem_size;
    if (unlikely(b.desc & PAGEDESC_KEYS)) {
        ends_key_marked(&heap.spans[head], b.index);
    }
    if (b.desc & PAGEDESC_NOSCAN) {
        return;
    }
    if (likely(sc != 0)) {
        gcwork_put(w, head, class_to_size[sc] > GCWORK_SMALL);
    } else {
        gcwork_put_alone(head);
    }
}

ALWAYS_INLINE void mark_word(struct gcwork *w, uintptr_t word)
{
    uintptr_t off = (word & heap.pointer_mask) - heap.base;
    if (off < load_rlx(&heap.used)) { /* relaxed: what lies beyond is black: Ordering in mark.c */
        mark_offset(w, off);
    }
}

ALWAYS_INLINE bool object_is_marked(const struct mspan *s, size_t index)
{
    return bitmap_get(mspan_marks(s), index);
}

/* The contract's loam_marker: a program's scan function marks through it; or, where fn is set, shows
 * a checker each word. */
struct loam_marker {
    struct gcwork *w;
    void (*fn)(void *arg, uintptr_t word);
    void *arg;
};

/* Look at words of memory, unaligned bounds rounded inwards; mark what they point to. */
void mark_range(struct gcwork *w, uintptr_t start, uintptr_t limit);

/* Scan `bytes` at addr, which are elements of t, or its head with a tail. */
void scan_typed(struct gcwork *w, const struct gctype *t, uintptr_t addr, size_t bytes);

/* Scan the fields of one object without marking it. */
void scan_object(struct gcwork *w, const struct mspan *s, size_t index);

/* Scan spans until nothing is left, `budget` bytes are done or the clock passes `deadline` (looked at every
 * few KiB). Bytes scanned. Does nothing while a round is on. */
uint64_t gc_drain(struct gcwork *w, uint64_t budget, int64_t deadline);

#endif
