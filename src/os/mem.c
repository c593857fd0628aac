/* mem.c - address space and the memory behind it.
 *
 * Purpose     Reserve, commit, give back; ask what is mapped, without touching it.
 * Model       reserved  PROT_NONE, MAP_NORESERVE: costs no memory and no commit charge
 *             committed PROT_READ|PROT_WRITE: zero at first use
 *             discarded committed, pages given back: zero again
 * From Go     runtime/mem_linux.go: sysReserve, sysMap, sysUnused, sysFree. Go's Prepared and
 *             Ready are one state here, as on Linux in Go.
 * Tests       tests/unit/test_os_memory.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

/* In case the C library's headers are older than the kernel (5.17). */
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

size_t os_page_size(void)
{
    static _Atomic size_t page_size;
    size_t size = load_rlx(&page_size);
    if (unlikely(size == 0)) {
        size = (size_t)sysconf(_SC_PAGESIZE);
        store_rlx(&page_size, size); /* relaxed: everyone computes the same */
    }
    return size;
}

static void *mem_mmap(size_t bytes, int prot, int flags)
{
    void *p = mmap(NULL, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void *os_reserve(size_t bytes, size_t align)
{
    size_t page = os_page_size();
    ASSERT(bytes != 0 && bytes % page == 0);
    ASSERT(align != 0 && (align & (align - 1)) == 0);
    if (os_fault()) {
        return NULL;
    }
    /* As it comes, it is often aligned already. */
    char *p = mem_mmap(bytes, PROT_NONE, MAP_NORESERVE);
    if (p == NULL || ((uintptr_t)p & (align - 1)) == 0) {
        return p;
    }
    (void)munmap(p, bytes);

    size_t extra = align - page;
    if (bytes > SIZE_MAX - extra) {
        return NULL;
    }
    p = mem_mmap(bytes + extra, PROT_NONE, MAP_NORESERVE);
    if (p == NULL) {
        return NULL;
    }
    char *start = (char *)align_up((uintptr_t)p, align);
    size_t before = (size_t)(start - p);
    /* A refused trim (too many mappings) leaves address space behind, nothing else. */
    if (before != 0) {
        (void)munmap(p, before);
    }
    if (before != extra) {
        (void)munmap(start + bytes, extra - before);
    }
    return start;
}

bool os_commit(void *addr, size_t bytes)
{
    ASSERT((uintptr_t)addr % os_page_size() == 0 && bytes % os_page_size() == 0);
    return !os_fault() && mprotect(addr, bytes, PROT_READ | PROT_WRITE) == 0;
}

void os_discard(void *addr, size_t bytes)
{
    ASSERT((uintptr_t)addr % os_page_size() == 0 && bytes % os_page_size() == 0);
    int saved_errno = errno;
    if (unlikely(madvise(addr, bytes, MADV_DONTNEED) != 0)) {
        /* Locked by mlockall: the pages cannot go, the promise of zeroes is kept. */
        memset(addr, 0, bytes);
    }
    errno = saved_errno;
}

void os_discard_lazily(void *addr, size_t bytes)
{
    int saved_errno = errno;
    if (unlikely(madvise(addr, bytes, MADV_FREE) != 0)) { /* locked, or an old kernel */
        os_discard(addr, bytes);
    }
    errno = saved_errno;
}

void os_huge(void *addr, size_t bytes, bool yes)
{
    int saved_errno = errno;
    (void)madvise(addr, bytes, yes ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    errno = saved_errno;
}

void os_release(void *addr, size_t bytes)
{
    int saved_errno = errno;
    if (unlikely(munmap(addr, bytes) != 0)) {
        /* It would split a mapping, and there are too many: the memory goes, the addresses stay. */
        (void)madvise(addr, bytes, MADV_DONTNEED);
    }
    errno = saved_errno;
}

void *os_map(size_t bytes)
{
    return os_fault() ? NULL : mem_mmap(bytes, PROT_READ | PROT_WRITE, 0);
}

/* Is all of [addr, addr + bytes) mapped? With MS_ASYNC nothing is written, no page is looked at: only
 * the list of mappings is, where mincore would go through the page tables. */
static bool mem_is_mapped(uintptr_t addr, size_t bytes)
{
    return msync((void *)addr, bytes, MS_ASYNC) == 0;
}

uintptr_t os_mapped_low(uintptr_t low, uintptr_t high)
{
    size_t page = os_page_size();
    if (low >= high) {
        return high;
    }
    int saved_errno = errno;
    uintptr_t bottom = align_down(low, page);
    uintptr_t at = align_up(high, page); /* [at, high) is mapped */
    size_t step = at - bottom;
    while (at > bottom) {
        size_t bytes = at - bottom < step ? at - bottom : step;
        if (mem_is_mapped(at - bytes, bytes)) {
            at -= bytes;
        } else if (bytes == page) {
            break;
        } else {
            step = align_up(bytes / 2, page);
        }
    }
    errno = saved_errno;
    return at < low ? low : at < high ? at : high;
}

void os_name(void *addr, size_t bytes, const char *name)
{
    int saved_errno = errno;
    (void)prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, bytes, name);
    errno = saved_errno;
}

size_t os_address_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return SIZE_MAX;
    }
    return (size_t)limit.rlim_cur;
}
