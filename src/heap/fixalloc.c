/* fixalloc.c - memory for the library's own structures.
 *
 * Purpose     Metadata that is not on the heap and not from malloc: descriptors that live for ever,
 *             objects of one size, and tables of any size.
 * Model       persistentalloc cuts chunks of 256 KiB from the front; the rest of one that is too
 *             short for the next block is given up. From 64 KiB on a block is mapped alone.
 *             fixalloc keeps freed objects in a list and cuts 16 KiB pieces of the former.
 *             metaalloc has a list of free blocks for each power of two from 16 B to 1 MiB, and
 *             maps and unmaps what is larger.
 * Invariants  [fixalloc.zero]    what is handed out reads as zero: fresh memory of the system is,
 *                                recycled memory is cleared.
 *             [fixalloc.stable]  memory of persistentalloc is never unmapped, so memory of a
 *                                fixalloc keeps its type.
 * Locking     persistent.lock is a leaf. meta.lock may be held when it is taken, never the other
 *             way. Blocks are cleared after the lock is released.
 * From Go     runtime/mfixalloc.go and persistentalloc in malloc.go at go1.26; differs: one chunk
 *             for all instead of one per P; metaalloc is ours.
 * Tests       tests/unit/test_fixalloc.c
 */
#include "heap/fixalloc.h"

#include "base/bits.h"
#include "base/check.h"
#include "os/os.h"

#include <assert.h>
#include <string.h>

enum {
    PERSISTENT_MAX_ALIGN = 4096,
    FIXALLOC_ALIGN = 16,
    META_MIN_LOG = 4,  /* 16 B */
    META_MAX_LOG = 20, /* 1 MiB */
    META_BUCKETS = META_MAX_LOG - META_MIN_LOG + 1,
};
#define PERSISTENT_CHUNK_BYTES KIB(256)
#define PERSISTENT_DIRECT_BYTES KIB(64)
#define FIXALLOC_CHUNK_BYTES KIB(16)

static_assert(KIB(16) + PERSISTENT_MAX_ALIGN < KIB(64), "a fixalloc chunk fits a persistent one");

/* -- persistentalloc -------------------------------------------------------------------------- */

static struct {
    struct mutex lock;
    char *chunk;       /* rest of the current chunk; under lock */
    size_t chunk_left; /* its bytes; under lock */
    _Atomic uint64_t mapped_bytes;
} persistent;

/* A fresh mapping for one block. Mappings are aligned to a page of the system, at least 4096. */
static void *persistent_map(size_t bytes)
{
    void *p = os_map(bytes);
    if (p != NULL) {
        add_rlx(&persistent.mapped_bytes, bytes); /* relaxed: a counter, read only for reports */
    }
    return p;
}

/* Cut from the current chunk, or from a new one. */
static void *persistent_cut_locked(size_t size, size_t align)
{
    size_t pad = -(uintptr_t)persistent.chunk & (align - 1);
    if (persistent.chunk_left < pad + size) {
        char *chunk = persistent_map(PERSISTENT_CHUNK_BYTES);
        if (chunk == NULL) {
            return NULL;
        }
        persistent.chunk = chunk;
        persistent.chunk_left = PERSISTENT_CHUNK_BYTES;
        pad = 0;
    }
    char *p = persistent.chunk + pad;
    persistent.chunk += pad + size;
    persistent.chunk_left -= pad + size;
    return p;
}

void *persistentalloc(size_t size, size_t align, _Atomic uint64_t *stat)
{
    CHECK(size > 0 && size <= SIZE_MAX / 2, "persistentalloc of %zu bytes", size);
    CHECK(align > 0 && (align & (align - 1)) == 0 && align <= PERSISTENT_MAX_ALIGN,
          "persistentalloc with alignment %zu", align);
    void *p;
    if (size >= PERSISTENT_DIRECT_BYTES) {
        p = persistent_map(align_up(size, os_page_size()));
    } else {
        mutex_lock(&persistent.lock);
        p = persistent_cut_locked(size, align);
        mutex_unlock(&persistent.lock);
    }
    if (p != NULL) {
        ASSERT(((uintptr_t)p & (align - 1)) == 0);
        add_rlx(stat, size); /* relaxed: a counter, read only for reports */
    }
    return p;
}

uint64_t persistentalloc_mapped_bytes(void)
{
    return load_rlx(&persistent.mapped_bytes);
}

/* -- fixalloc --------------------------------------------------------------------------------- */

/* The link of a free object or block lies in its first word. */
static void *fixalloc_next(void *p)
{
    void *next;
    memcpy(&next, p, sizeof next);
    return next;
}

static void fixalloc_link(void *p, void *next)
{
    memcpy(p, &next, sizeof next);
}

void fixalloc_init(struct fixalloc *f, size_t size, _Atomic uint64_t *stat)
{
    CHECK(size > 0 && size <= FIXALLOC_CHUNK_BYTES, "fixalloc of objects of %zu bytes", size);
    *f = (struct fixalloc){.size = align_up(size, FIXALLOC_ALIGN), .stat = stat};
}

void *fixalloc_alloc(struct fixalloc *f)
{
    CHECK(f->size != 0, "fixalloc that was not initialised");
    void *p = f->free_list;
    if (p != NULL) {
        f->free_list = fixalloc_next(p);
        f->inuse_bytes += f->size;
        return memset(p, 0, f->size); /* [fixalloc.zero] */
    }
    if (f->chunk_left < f->size) {
        char *chunk = persistentalloc(FIXALLOC_CHUNK_BYTES, CACHE_LINE, f->stat);
        if (chunk == NULL) {
            return NULL;
        }
        f->chunk = chunk;
        f->chunk_left = FIXALLOC_CHUNK_BYTES;
    }
    p = f->chunk;
    f->chunk += f->size;
    f->chunk_left -= f->size;
    f->inuse_bytes += f->size;
    return p;
}

void fixalloc_free(struct fixalloc *f, void *p)
{
    CHECK(p != NULL && f->inuse_bytes >= f->size, "fixalloc_free of %p, %zu bytes in use", p,
          f->inuse_bytes);
    fixalloc_link(p, f->free_list);
    f->free_list = p;
    f->inuse_bytes -= f->size;
}

/* -- metaalloc -------------------------------------------------------------------------------- */

static struct {
    struct mutex lock;
    void *free_list[META_BUCKETS]; /* under lock */
    _Atomic uint64_t small_bytes;  /* of persistentalloc's, free blocks included */
    _Atomic uint64_t mapped_bytes; /* of larger blocks */
} meta;

static bool meta_is_direct(size_t size)
{
    return size > (size_t)1 << META_MAX_LOG;
}

/* The smallest bucket whose blocks hold size bytes. */
static unsigned meta_bucket(size_t size)
{
    if (size <= (size_t)1 << META_MIN_LOG) {
        return 0;
    }
    return 64 - clz64(size - 1) - META_MIN_LOG;
}

static void *meta_alloc_direct(size_t size)
{
    if (size > SIZE_MAX / 2) {
        return NULL;
    }
    size_t bytes = align_up(size, os_page_size());
    void *p = os_map(bytes);
    if (p != NULL) {
        add_rlx(&meta.mapped_bytes, bytes); /* relaxed: a counter, read only for reports */
    }
    return p;
}

void *metaalloc(size_t size)
{
    if (meta_is_direct(size)) {
        return meta_alloc_direct(size);
    }
    unsigned bucket = meta_bucket(size);
    size_t block = (size_t)1 << (bucket + META_MIN_LOG);
    mutex_lock(&meta.lock);
    void *p = meta.free_list[bucket];
    if (p != NULL) {
        meta.free_list[bucket] = fixalloc_next(p);
    }
    mutex_unlock(&meta.lock);
    if (p != NULL) {
        return memset(p, 0, block); /* [fixalloc.zero] */
    }
    return persistentalloc(block, block < CACHE_LINE ? block : CACHE_LINE, &meta.small_bytes);
}

void metafree(void *p, size_t size)
{
    if (p == NULL) {
        return;
    }
    if (meta_is_direct(size)) {
        size_t bytes = align_up(size, os_page_size());
        os_release(p, bytes);
        sub_rlx(&meta.mapped_bytes, bytes); /* relaxed: a counter, read only for reports */
        return;
    }
    unsigned bucket = meta_bucket(size);
    mutex_lock(&meta.lock);
    fixalloc_link(p, meta.free_list[bucket]);
    meta.free_list[bucket] = p;
    mutex_unlock(&meta.lock);
}

uint64_t metaalloc_held_bytes(void)
{
    return load_rlx(&meta.small_bytes) + load_rlx(&meta.mapped_bytes);
}

uint64_t metaalloc_mapped_bytes(void)
{
    return load_rlx(&meta.mapped_bytes);
}
