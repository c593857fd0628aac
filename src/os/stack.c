/* stack.c - stacks that are no thread's: their first frame, their guards.
 *
 * Purpose     What the scheduler needs of the system and of the machine to keep stacks of its own.
 * Model       os_switch_prepare builds the frame that os_switch (switch.S) pops.
 * Tests       tests/unit/test_os_stack.c, tests/api/goroutines.c, tests/api/goroutine_sync.c (reports)
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>
#if __has_include(<execinfo.h>)
#include <execinfo.h>
#define HAS_BACKTRACE 1
#else
#define HAS_BACKTRACE 0
#endif
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

/* Where a fresh stack returns to; not called from C. */
extern HIDDEN const char os_switch_begin[];

#if defined(__x86_64__)
enum { FRAME_WORDS = 8, FRAME_ENTRY = 5, FRAME_RETURN = 7 };
#else
enum { FRAME_WORDS = 22, FRAME_ENTRY = 2, FRAME_RETURN = 1, FRAME_CONTROL = 20 };
#endif

uintptr_t os_switch_prepare(uintptr_t top, void (*entry)(void *arg))
{
    uintptr_t *frame = (uintptr_t *)(align_down(top, 16) - 16) - FRAME_WORDS;
    memset(frame, 0, (FRAME_WORDS + 2) * sizeof *frame); /* a frame pointer of 0 ends the chain */
    frame[FRAME_ENTRY] = (uintptr_t)entry;
    frame[FRAME_RETURN] = (uintptr_t)os_switch_begin;
#if defined(__x86_64__)
    /* As the calling thread has it: sixteen bits of x87 control above the vectors' word. */
    uint32_t mxcsr;
    uint16_t control;
    __asm__("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(control));
    frame[0] = (uintptr_t)control << 32 | mxcsr;
#else
    __asm__("mrs %0, fpcr" : "=r"(frame[FRAME_CONTROL]));
#endif
    return (uintptr_t)frame;
}

bool os_guard(void *addr, size_t bytes)
{
    static _Atomic bool cannot; /* relaxed: a fact that all find out */
    if (os_fault()) {
        return false;
    }
    int saved_errno = errno;
    bool ok = false;
    if (!load_rlx(&cannot)) {
        ok = madvise(addr, bytes, MADV_GUARD_INSTALL) == 0;
        if (!ok && errno == EINVAL) {
            store_rlx(&cannot, true);
        }
    }
    if (load_rlx(&cannot)) {
        ok = mprotect(addr, bytes, PROT_NONE) == 0;
    }
    errno = saved_errno;
    return ok;
}

bool os_resident(void *addr)
{
    unsigned char there = 0;
    int saved_errno = errno;
    bool known = mincore(addr, os_page_size(), &there) == 0;
    errno = saved_errno;
    return known && (there & 1) != 0;
}

uintptr_t os_lowest_resident(uintptr_t low, uintptr_t high)
{
    enum { WINDOW = 64 };
    unsigned char there[WINDOW];
    size_t page = os_page_size();
    int saved_errno = errno;
    uintptr_t lowest = high;
    for (uintptr_t end = high, from; end > low; end = from) {
        from = end - low > WINDOW * page ? end - WINDOW * page : low;
        size_t n = (end - from) / page, first = 0;
        if (mincore((void *)from, n * page, there) != 0) {
            break;
        }
        while (first < n && (there[first] & 1) == 0) {
            first++;
        }
        if (first == n) { /* the end of it */
            break;
        }
        lowest = from + first * page;
    }
    errno = saved_errno;
    return lowest;
}

/* -- walking ----------------------------------------------------------------------------------- */

void os_call_beneath(void (*fn)(void *arg), void *arg, uintptr_t sp);

struct walk {
    void **pcs;
    size_t n, found;
};

#if HAS_BACKTRACE
static void walk(void *arg)
{
    struct walk *w = arg;
    int n = backtrace(w->pcs, (int)w->n);
    w->found = n > 0 ? (size_t)n : 0;
}

void os_backtrace_write(void **pcs, size_t n, int fd)
{
    backtrace_symbols_fd(pcs, (int)n, fd);
}
#else
static void walk(void *arg)
{
    (void)arg;
}

void os_backtrace_write(void **pcs, size_t n, int fd)
{
    (void)pcs, (void)n, (void)fd;
}
#endif

enum { OWN_FRAMES = 2 }; /* walk, os_call_beneath */

size_t os_backtrace_of(uintptr_t sp, void **pcs, size_t n)
{
    void *found[128];
    struct walk w = {found, n + OWN_FRAMES < 128 ? n + OWN_FRAMES : 128, 0};
    os_call_beneath(walk, &w, sp);
    size_t skip = w.found < OWN_FRAMES ? w.found : OWN_FRAMES;
    for (size_t i = skip; i < w.found; i++) {
        pcs[i - skip] = found[i];
    }
    return w.found - skip;
}

size_t os_backtrace_context(const void *ucontext, void **pcs, size_t n)
{
    void *found[128];
    struct walk w = {found, n + 4 < 128 ? n + 4 : 128, 0};
    walk(&w);
    size_t skip = 0; /* what lies above the frame that the signal interrupted */
    while (skip < w.found && (uintptr_t)found[skip] != os_context_pc(ucontext)) {
        skip++;
    }
    skip = skip == w.found ? 0 : skip;
    size_t count = w.found - skip < n ? w.found - skip : n;
    for (size_t i = 0; i < count; i++) {
        pcs[i] = found[skip + i];
    }
    return count;
}

void os_backtrace_prepare(void)
{
    void *pcs[2];
    struct walk w = {pcs, 2, 0};
    walk(&w);
}

/* -- faults ------------------------------------------------------------------------------------ */

bool os_altstack_install(void)
{
    stack_t now;
    if (sigaltstack(NULL, &now) == 0 && (now.ss_flags & SS_DISABLE) == 0) {
        return true;
    }
    size_t bytes = align_up((size_t)SIGSTKSZ + KIB(64), os_page_size());
    stack_t mine = {.ss_sp = os_map(bytes), .ss_size = bytes};
    if (mine.ss_sp == NULL) {
        return false;
    }
    if (sigaltstack(&mine, NULL) != 0) {
        os_release(mine.ss_sp, bytes);
        return false;
    }
    return true;
}

uintptr_t os_fault_address(const void *siginfo)
{
    return (uintptr_t)((const siginfo_t *)siginfo)->si_addr;
}
