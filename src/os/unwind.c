/* unwind.c - who called: the return addresses of the calling stack.
 *
 * Purpose     The stacks of the heap profile. By the unwind tables that every C compiler writes, with the unwinder
 *             that comes with it (libgcc, libunwind), since frames of C programs have no frame pointer. It allocates
 *             nothing and takes no lock of its own where the C library finds tables without one (glibc 2.35).
 * Model       The library's own frames, which are the first, are left out: in a static library its code is one
 *             section, loam_text (CMakeLists.txt), in libloam.so all code of the module.
 * Tests       tests/api/profile.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <unwind.h>

/* The linker's, in programs that the static library is linked into. */
extern const char __start_loam_text[] __attribute__((weak))
HIDDEN; /* NOLINT(bugprone-reserved-identifier) */
extern const char __stop_loam_text[] __attribute__((weak))
HIDDEN; /* NOLINT(bugprone-reserved-identifier) */

static struct {
    uintptr_t begin, end;
} own;

static void note_library(void *arg, const struct os_text *text)
{
    (void)arg;
    if (text->is_library) {
        own.begin = text->start;
        own.end = text->limit;
    }
}

void os_unwind_init(void)
{
    if (__start_loam_text != NULL) {
        own.begin = (uintptr_t)__start_loam_text;
        own.end = (uintptr_t)__stop_loam_text;
    } else {
        os_each_text(note_library, NULL);
    }
}

bool os_is_own_code(uintptr_t pc)
{
    return pc - own.begin < own.end - own.begin;
}

struct walk {
    uintptr_t *pcs;
    size_t n, most;
    uintptr_t high; /* end of the stack */
    bool outside;   /* the library's frames are behind */
};

static _Unwind_Reason_Code frame(struct _Unwind_Context *context, void *arg)
{
    struct walk *w = arg;
    int before = 0; /* the address is that of the instruction itself: a signal came there */
    uintptr_t pc = _Unwind_GetIPInfo(context, &before);
    uintptr_t cfa = _Unwind_GetCFA(context);
    if (pc == 0 || cfa > w->high) {
        return _URC_END_OF_STACK;
    }
    pc -= before ? 0 : 1; /* into the call: what follows it may be another line */
    w->outside = w->outside || !os_is_own_code(pc);
    if (w->outside) {
        w->pcs[w->n++] = pc;
    }
    return w->n < w->most ? _URC_NO_REASON : _URC_END_OF_STACK;
}

size_t os_unwind(uintptr_t *pcs, size_t most, uintptr_t high)
{
    struct walk w = {pcs, 0, most, high, false};
    (void)_Unwind_Backtrace(frame, &w);
    return w.n;
}
