/* unwind.c - who called: the return addresses of the calling stack.
 *
 * Purpose     The stacks of the heap profile. By the unwind tables that every C compiler writes, with the unwinder
 *             that comes with it (libgcc, libunwind), since frames of C programs have no frame pointer. It allocates
 *             nothing and takes no lock of its own where the C library finds tables without one (glibc 2.35).
 * Model       What a thread's last walk found is kept, with the places of the return addresses: where those hold the same
 *             addresses still, the same calls are under way, and need not be unwound (1 400 instructions each). A frame
 *             whose size is found at run time may deceive this, if all beyond it is as it was: then a chain is
 *             wrong that would have been nearly the same.
 *             The library's own frames, which are the first, are left out: in a static library its code is one
 *             section, loam_text (CMakeLists.txt), in libloam.so all code of the module.
 * Tests       tests/api/profile.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <unwind.h>

/* The linker's, in programs that the static library is linked into. */
extern HIDDEN const char __start_loam_text[] __attribute__((weak));
extern HIDDEN const char __stop_loam_text[] __attribute__((weak));

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

/* glibc 2.35: unwind tables are found without the loader's lock, by unwinders that know of it (gcc 12). */
extern int _dl_find_object(void *pc, void *result) __attribute__((weak));

bool os_unwind_locks(void)
{
    return _dl_find_object == NULL;
}

void os_unwind_init(void)
{
    if (__start_loam_text != NULL) {
        own.begin = (uintptr_t)__start_loam_text;
        own.end = (uintptr_t)__stop_loam_text;
    } else {
        os_each_text(note_library, NULL);
    }
    /* The first walk of a process initializes the unwinder, once: here no handler of the program comes between. */
    struct os_calls calls = {0};
    uintptr_t pcs[1];
    (void)os_unwind(pcs, 1, UINTPTR_MAX, &calls);
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
    bool known;     /* slots[0..n) are where the return addresses lie */
    const struct os_calls *last;
    uintptr_t slots[OS_CALLS];
};

/* Where a call left its return address, given the stack pointer that it found; 0: that is not known. */
static uintptr_t return_slot(uintptr_t cfa)
{
#if defined(__x86_64__)
    return cfa - sizeof(uintptr_t);
#else
    (void)cfa;
    return 0;
#endif
}

/* Are the first n calls of c, from the i-th on, whose slot is on this stack, under way still? A handler of the program
 * may have written another walk over them meanwhile, so nothing that is read is trusted. */
static NO_SANITIZE bool calls_hold(const struct os_calls *c, size_t i, size_t n, uintptr_t slot,
                                   uintptr_t high)
{
    for (; i < n; i++) {
        uintptr_t at = *(const volatile uintptr_t *)&c->slots[i];
        if (at < slot || at >= high || *(const volatile uintptr_t *)at != c->pcs[i] + 1) {
            return false;
        }
        slot = at + sizeof(uintptr_t);
    }
    return n != 0;
}

/* Those that the last walk found, too, need not be found again. */
static bool rest_is_known(struct walk *w, uintptr_t slot)
{
    const struct os_calls *last = w->last;
    size_t n = *(const volatile uint32_t *)&last->n;
    size_t i = 0;
    while (i < n && last->slots[i] < slot) {
        i++;
    }
    if (i == n || last->slots[i] != slot || w->n + n - i > w->most || w->n + n - i > OS_CALLS ||
        !calls_hold(last, i, n, slot, w->high)) {
        return false;
    }
    for (; i < n; i++, w->n++) {
        w->pcs[w->n] = last->pcs[i];
        w->slots[w->n] = last->slots[i];
    }
    return true;
}

static NO_SANITIZE void note_slot(struct walk *w, uintptr_t slot, uintptr_t pc)
{
    w->known = w->known && w->n < OS_CALLS && slot != 0 &&
               (w->n == 0 || slot > w->slots[w->n - 1]) &&
               *(const volatile uintptr_t *)slot == pc + 1;
    if (w->known) {
        w->slots[w->n] = slot;
    }
}

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
        w->known = w->known && !before;
        if (w->known && rest_is_known(w, return_slot(cfa))) {
            return _URC_END_OF_STACK;
        }
        note_slot(w, return_slot(cfa), pc);
        w->pcs[w->n++] = pc;
    }
    return w->n < w->most ? _URC_NO_REASON : _URC_END_OF_STACK;
}

/* Where the program called the library, by the library's frame pointers; 0: unknown. */
static NO_SANITIZE uintptr_t first_slot(uintptr_t fp, uintptr_t high)
{
    for (uintptr_t next; fp != 0 && fp % sizeof(uintptr_t) == 0 && fp < high; fp = next) {
        const volatile uintptr_t *at = (const volatile uintptr_t *)fp;
        if (!os_is_own_code(at[1] - 1)) {
            return fp + sizeof(uintptr_t);
        }
        next = at[0];
        if (next <= fp) {
            break;
        }
    }
    return 0;
}

static void note_calls(struct os_calls *last, const struct walk *w)
{
    *(volatile uint32_t *)&last->n = 0;
    size_t n = w->known && w->n <= OS_CALLS ? w->n : 0;
    for (size_t i = 0; i < n; i++) {
        last->pcs[i] = w->pcs[i];
        last->slots[i] = w->slots[i];
    }
    *(volatile uint32_t *)&last->n = (uint32_t)n;
}

size_t os_unwind(uintptr_t *pcs, size_t most, uintptr_t high, struct os_calls *last)
{
    size_t n = *(const volatile uint32_t *)&last->n;
    bool bounded = high != UINTPTR_MAX;
    uintptr_t slot = bounded && n <= most ? first_slot((uintptr_t)__builtin_frame_address(0), high)
                                          : 0;
    if (slot != 0 && last->slots[0] == slot && calls_hold(last, 0, n, slot, high)) {
        for (size_t i = 0; i < n; i++) {
            pcs[i] = last->pcs[i];
        }
        return n;
    }
    struct walk w = {.pcs = pcs, .most = most, .high = high, .known = bounded, .last = last};
    (void)_Unwind_Backtrace(frame, &w);
    note_calls(last, &w);
    return w.n;
}
