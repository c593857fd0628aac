/* tls.c - the thread-local storage of a thread, from its thread pointer.
 *
 * Purpose     Roots that live in __thread variables and in pthread_setspecific values.
 * Model       x86-64 (TLS variant II):  [static blocks | tp: struct pthread, with specific data]
 *             aarch64 (variant I):      [struct pthread | tp: dtv, 0 | static blocks]
 *             static    glibc says how large the area is; in a static executable, or when it does
 *                       not say, it is measured from the calling thread's own blocks at os_tls_init
 *             dynamic   the thread's dtv: an array of {block, what to free} by module id, its length
 *                       before its first element. A block with something to free is malloc's; how
 *                       large it is says the word before it; malloc_usable_size, if the program has
 *                       another malloc than glibc's.
 *             specific  in struct pthread: a block of 32 {seq, value}, and behind it 32 pointers to
 *                       such blocks, the first of them to that one. No header says where: os_tls_init
 *                       looks for the pointer to the block right before it, and proves the find
 *                       with a key of its own.
 *             musl: dtv[0] modules, then plain pointers; sizes are noted by module id.
 * Invariants  [tls.freed]  the loader frees the block of a library that is gone before it takes it out
 *             of the dtv, and a thread may be stopped in between. So what a dtv names is copied by the
 *             kernel, which refuses what is not mapped; what is stale in it is an address like others.
 * Limits      glibc >= 2.25 (layout of the dtv). A thread stopped inside the loader while that grows
 *             its dtv has, for some instructions, a dtv that was freed: an impossible length in it is
 *             recognised, and then its dynamic blocks are left out. Another malloc is asked for the
 *             size of a block that it has freed, or frees just then, in the same few instructions.
 * Locking     none; os_each_tls_range reads foreign memory.
 * Tests       tests/unit/test_os_tls.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"
#include "os/os_internal.h"

#include "base/bits.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

typedef void tls_range_fn(void *arg, uintptr_t start, size_t bytes);

static NO_SANITIZE uintptr_t tls_word(uintptr_t addr)
{
    return *(const uintptr_t *)addr;
}

/* Set by os_tls_init, constant after. */
static size_t tls_static_size; /* of the static blocks, below tp (x86-64) or from tp on (aarch64) */

/* Values of the calling thread, where struct pthread cannot be read. */
#define SPECIFIC_BATCH 64

static NO_SANITIZE void tls_specific_own(tls_range_fn *fn, void *arg)
{
    void *values[SPECIFIC_BATCH];
    size_t n = 0;
    for (unsigned key = 0; key < PTHREAD_KEYS_MAX; key++) {
        void *value = pthread_getspecific((pthread_key_t)key);
        if (value != NULL) {
            values[n++] = value;
        }
        if (n == SPECIFIC_BATCH || (n != 0 && key + 1 == PTHREAD_KEYS_MAX)) {
            fn(arg, (uintptr_t)values, n * sizeof(values[0]));
            n = 0;
        }
    }
}

#ifdef __GLIBC__

#define SPECIFIC_BLOCK 32u                     /* entries */
#define SPECIFIC_ENTRY (2 * sizeof(uintptr_t)) /* seq, value */
#define SPECIFIC_BYTES (SPECIFIC_BLOCK * SPECIFIC_ENTRY)
#define SPECIFIC_SEARCH 4096 /* struct pthread is about 2 KiB */

static intptr_t tls_specific_offset; /* of the array of 32 pointers, from tp; 0: not found */

/* In a static executable this is NULL unless the program uses it; it is not drawn in by us. */
#pragma weak dlsym

struct dtv_entry {
    uintptr_t block; /* DTV_UNALLOCATED: none yet */
    uintptr_t to_free;
};
#define DTV_UNALLOCATED UINTPTR_MAX
#define DTV_MOST 65536        /* more modules with thread-local storage than that are no length */
#define DTV_ALIGN_MOST MIB(1) /* nor is a block so far behind its start */

static NO_SANITIZE const struct dtv_entry *tls_dtv(uintptr_t tp, size_t *length)
{
#if defined(__x86_64__)
    const struct dtv_entry *dtv = (const struct dtv_entry *)tls_word(tp + sizeof(uintptr_t));
#else
    const struct dtv_entry *dtv = (const struct dtv_entry *)tls_word(tp);
#endif
    *length = 0;
    if (dtv != NULL && dtv[-1].block <= DTV_MOST) {
        *length = dtv[-1].block;
    }
    return dtv; /* entries 1..length */
}

/* Copied by the kernel, which refuses what is not mapped. */
static bool tls_copy(void *to, uintptr_t from, size_t bytes)
{
    struct iovec local = {to, bytes};
    struct iovec remote = {(void *)from, bytes};
    int saved = errno;
    ssize_t n = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
    if (n < 0 && errno != EFAULT) { /* a sandbox forbids it, or an emulator has no such call */
        memcpy(to, (const void *)from, bytes);
        n = (ssize_t)bytes;
    }
    errno = saved;
    return n == (ssize_t)bytes;
}

static bool tls_malloc_has_heads; /* as glibc's; set by os_tls_init, constant after */

/* What the word before a block of glibc's malloc says of its size; 0: there is none. */
static size_t tls_block_told(uintptr_t start)
{
    enum { IS_MAPPED = 2, FLAGS = 7 }; /* the size is the chunk's, with its head or two */
    uintptr_t head = 0;
    if (!tls_copy(&head, start - sizeof head, sizeof head)) {
        return 0;
    }
    size_t size = head & ~(uintptr_t)FLAGS;
    size_t over = (head & IS_MAPPED) != 0 ? 2 * sizeof head : sizeof head;
    return size > over ? size - over : 0;
}

static size_t tls_block_bytes(uintptr_t start)
{
    return tls_malloc_has_heads ? tls_block_told(start) : malloc_usable_size((void *)start);
}

/* The program may have another malloc than glibc's. */
static void tls_malloc_probe(void)
{
    static const size_t sizes[] = {40, 1001, 5000, 300001}; /* the last is mapped by itself */
    tls_malloc_has_heads = true;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *block = malloc(sizes[i]);
        if (block == NULL || tls_block_told((uintptr_t)block) != malloc_usable_size(block)) {
            tls_malloc_has_heads = false;
        }
        free(block);
    }
}

static void tls_block(uintptr_t start, tls_range_fn *fn, void *arg)
{
    uintptr_t words[128]; /* not more: the stack may be a small alternate one */
    size_t bytes = align_down(tls_block_bytes(start), sizeof words[0]);
    while (bytes != 0) {
        size_t n = bytes < sizeof words ? bytes : sizeof words;
        if (!tls_copy(words, start, n)) {
            return;
        }
        fn(arg, (uintptr_t)words, n);
        start += n;
        bytes -= n;
    }
}

static NO_SANITIZE void tls_dynamic(uintptr_t tp, tls_range_fn *fn, void *arg)
{
    size_t length;
    const struct dtv_entry *dtv = tls_dtv(tp, &length);
    for (size_t i = 1; i <= length; i++) {
        uintptr_t block = dtv[i].block;
        uintptr_t start = dtv[i].to_free;
        if (block == DTV_UNALLOCATED || start == 0) {
            continue; /* none, or in the static area */
        }
        if (block - start < DTV_ALIGN_MOST && start % sizeof(uintptr_t) == 0) {
            tls_block(start, fn, arg); /* [tls.freed] */
        }
    }
}

/* What glibc says of the static area; 0: nothing. */
static size_t tls_static_told(void)
{
    if (dlsym == NULL) {
        return 0;
    }
    typedef void info_fn(size_t * size, size_t * align);
    uintptr_t info = (uintptr_t)dlsym(RTLD_DEFAULT, "_dl_get_tls_static_info");
    if (info == 0) {
        return 0;
    }
    size_t size = 0;
    size_t align = 0;
    ((info_fn *)info)(&size, &align);
#if defined(__x86_64__)
    /* The size includes struct pthread, above tp; without its size we would begin too low, and the
     * main thread has nothing mapped there. */
    const uint32_t *tcb = dlsym(RTLD_DEFAULT, "_thread_db_sizeof_pthread");
    size = tcb != NULL && *tcb < size ? size - *tcb : 0;
#endif
    return size;
}

struct tls_measure {
    uintptr_t tp;
    size_t size;
};

static NO_SANITIZE int tls_measure_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct tls_measure *m = arg;
    size_t length;
    const struct dtv_entry *dtv = tls_dtv(m->tp, &length);
    size_t id = info->dlpi_tls_modid;
    (void)size;
    if (id == 0 || id > length || dtv[id].block == DTV_UNALLOCATED || dtv[id].to_free != 0) {
        return 0;
    }
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type == PT_TLS) {
#if defined(__x86_64__)
            size_t far = m->tp - dtv[id].block;
#else
            size_t far = dtv[id].block + info->dlpi_phdr[i].p_memsz - m->tp;
#endif
            m->size = far > m->size ? far : m->size;
        }
    }
    return 0;
}

/* Fallback: up to the farthest static block of the modules present. A library loaded later that asks
 * for a static place is not found. */
static size_t tls_static_measured(void)
{
    struct tls_measure m = {.tp = os_thread_pointer(), .size = 0};
    (void)dl_iterate_phdr(tls_measure_module, &m);
    return m.size;
}

/* Is the word at addr the first of the 32 pointers? key has been set to value by this thread. */
static NO_SANITIZE bool tls_specific_is(uintptr_t addr, pthread_key_t key, uintptr_t value)
{
    if (tls_word(addr) != addr - SPECIFIC_BYTES) {
        return false;
    }
    uintptr_t block = tls_word(addr + key / SPECIFIC_BLOCK * sizeof(uintptr_t));
    if (block == 0 || block % sizeof(uintptr_t) != 0) {
        return false;
    }
    uintptr_t entry = block + key % SPECIFIC_BLOCK * SPECIFIC_ENTRY;
    return tls_word(entry + sizeof(uintptr_t)) == value;
}

/* The part of struct pthread's neighbourhood that is mapped: [*low, *high). */
static void tls_search_bounds(uintptr_t tp, uintptr_t *low, uintptr_t *high)
{
    uintptr_t page = os_page_size();
#if defined(__x86_64__)
    *low = tp;
    *high = align_down(tp, page) + page;
    while (*high < tp + SPECIFIC_SEARCH && os_mapped_low(*high, *high + page) == *high) {
        *high += page;
    }
    *high = *high < tp + SPECIFIC_SEARCH ? *high : tp + SPECIFIC_SEARCH;
#else
    *high = tp;
    *low = os_mapped_low(tp - SPECIFIC_SEARCH, tp);
    (void)page;
#endif
}

static intptr_t tls_specific_search(uintptr_t tp, pthread_key_t key, uintptr_t value)
{
    uintptr_t low;
    uintptr_t high;
    tls_search_bounds(tp, &low, &high);
    size_t pointers = SPECIFIC_BLOCK * sizeof(uintptr_t);
    for (uintptr_t at = low + SPECIFIC_BYTES; at + pointers <= high; at += sizeof(uintptr_t)) {
        if (tls_specific_is(at, key, value)) {
            return (intptr_t)(at - tp);
        }
    }
    return 0;
}

static void tls_specific_probe(void)
{
    pthread_key_t key;
    if (pthread_key_create(&key, NULL) != 0) {
        return;
    }
    static char unique; /* an address that nothing else has as a value */
    if (pthread_setspecific(key, &unique) == 0) {
        tls_specific_offset = tls_specific_search(os_thread_pointer(), key, (uintptr_t)&unique);
        (void)pthread_setspecific(key, NULL);
    }
    (void)pthread_key_delete(key);
}

static NO_SANITIZE void tls_specific(uintptr_t tp, tls_range_fn *fn, void *arg)
{
    uintptr_t pointers = tp + (uintptr_t)tls_specific_offset;
    for (size_t i = 0; i < SPECIFIC_BLOCK; i++) {
        uintptr_t block = tls_word(pointers + i * sizeof(uintptr_t));
        if (block != 0) {
            fn(arg, block, SPECIFIC_BYTES);
        }
    }
}

void os_tls_init(void)
{
    tls_static_size = tls_static_told();
    if (tls_static_size == 0) {
        tls_static_size = tls_static_measured();
    }
    tls_malloc_probe();
    tls_specific_probe();
}

void os_each_tls_range(uintptr_t tp, void (*fn)(void *arg, uintptr_t start, size_t bytes),
                       void *arg)
{
    size_t bytes = align_down(tls_static_size, sizeof(uintptr_t));
    if (bytes != 0) {
#if defined(__x86_64__)
        fn(arg, tp - bytes, bytes);
#else
        fn(arg, tp, bytes);
#endif
    }
    tls_dynamic(tp, fn, arg);
    if (tls_specific_offset != 0) {
        tls_specific(tp, fn, arg);
    } else if (tp == os_thread_pointer()) {
        tls_specific_own(fn, arg);
    }
}

#else /* musl */

#define TLS_MODULES 256 /* with thread-local storage; later ones are not found */

/* Bytes of each module's block by module id; musl never unloads. 0: none, or not seen yet. */
static _Atomic size_t tls_module_bytes[TLS_MODULES];

void tls_module_seen(const struct dl_phdr_info *info, size_t size)
{
    (void)size;
    size_t id = info->dlpi_tls_modid;
    for (size_t i = 0; i < info->dlpi_phnum && id != 0 && id < TLS_MODULES; i++) {
        if (info->dlpi_phdr[i].p_type == PT_TLS) {
            /* relaxed: a module's threads are scanned only after the refresh that saw it. */
            store_rlx(&tls_module_bytes[id], (size_t)info->dlpi_phdr[i].p_memsz);
        }
    }
}

static int tls_each_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)arg;
    tls_module_seen(info, size);
    return 0;
}

void os_tls_init(void)
{
    /* musl gives the first thread its array of values at its first key; it is read unasked below. */
    pthread_key_t key;
    if (pthread_key_create(&key, NULL) == 0) {
        (void)pthread_key_delete(key);
    }
    (void)dl_iterate_phdr(tls_each_module, NULL);
    tls_static_size = 0;
    for (size_t i = 0; i < TLS_MODULES; i++) {
        tls_static_size += load_rlx(&tls_module_bytes[i]);
    }
}

NO_SANITIZE void os_each_tls_range(uintptr_t tp,
                                   void (*fn)(void *arg, uintptr_t start, size_t bytes), void *arg)
{
#if defined(__x86_64__)
    const uintptr_t *dtv = (const uintptr_t *)tls_word(tp + sizeof(uintptr_t));
#else
    const uintptr_t *dtv = (const uintptr_t *)tls_word(tp - sizeof(uintptr_t));
#endif
    size_t length = dtv == NULL ? 0 : dtv[0];
    for (size_t i = 1; i <= length && i < TLS_MODULES; i++) {
        uintptr_t start = align_up(dtv[i], sizeof(uintptr_t));
        size_t bytes = align_down(load_rlx(&tls_module_bytes[i]), sizeof(uintptr_t));
        if (dtv[i] != 0 && bytes != 0) {
            fn(arg, start, bytes);
        }
    }
    if (tp == os_thread_pointer()) {
        tls_specific_own(fn, arg);
    }
}

#endif

size_t os_tls_static_bytes(void)
{
    return tls_static_size;
}
