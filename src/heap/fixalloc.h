/* fixalloc.h - memory for the library's own structures, off the heap.
 *
 *   persistentalloc  bump; never freed
 *   fixalloc         one size, free list over persistentalloc; the caller's lock
 *   metaalloc        any size, freed with its size; thread-safe
 *
 * All of it is zero when handed out. NULL: the system refused; nothing changed.
 */
#ifndef HEAP_FIXALLOC_H
#define HEAP_FIXALLOC_H

#include "base/atomics.h"

/* align: a power of two of at most 4096; size bytes are added to *stat. Thread-safe. */
__attribute__((warn_unused_result)) void *persistentalloc(size_t size, size_t align,
                                                          _Atomic uint64_t *stat);

/* Objects of one size. The memory of a freed object is only ever an object of this fixalloc again,
 * so a stale pointer to one still points at one. All fields: under the caller's lock. */
struct fixalloc {
    size_t size;            /* of an object, rounded up to 16 */
    void *free_list;        /* freed objects, linked through their first word */
    char *chunk;            /* rest of the current chunk */
    size_t chunk_left;      /* its bytes */
    size_t inuse_bytes;     /* in objects that are out */
    _Atomic uint64_t *stat; /* where chunks are counted */
};

void fixalloc_init(struct fixalloc *f, size_t size, _Atomic uint64_t *stat);
__attribute__((warn_unused_result)) void *fixalloc_alloc(struct fixalloc *f);
void fixalloc_free(struct fixalloc *f, void *p);

/* Blocks aligned to 16 (to 64 from 64 bytes on). metafree takes the size that was asked for; its p
 * may be NULL. */
__attribute__((warn_unused_result)) void *metaalloc(size_t size);
void metafree(void *p, size_t size);

/* Bytes that metaalloc holds, free blocks included; of these, those of blocks above 1 MiB, each a
 * mapping of its own; bytes that persistentalloc has mapped, metaalloc's other blocks among them.
 * Reports only. */
uint64_t metaalloc_held_bytes(void);
uint64_t metaalloc_mapped_bytes(void);
uint64_t persistentalloc_mapped_bytes(void);

#endif
