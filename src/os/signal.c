/* signal.c - one handler of ours beside the program's, and what a signal's context says.
 *
 * Purpose     Install a handler without taking the signal from the program; read and edit contexts.
 * Model       For each signal number one word remembers the program's action: its handler's address
 *             with two flags in the top bits, which no user-space code address has. One word, so
 *             that a handler on any thread reads handler and flags together.
 * Invariants  [signal.not-ours] the remembered action is never our own handler.
 *             [frame.others]    at frame_restart.
 * Ordering    signal_previous[signo] is written before sigaction makes our handler reachable; the
 *             system call orders the two for whoever then runs our handler.
 * From Go     runtime/signal_unix.go: Go owns its signals and forwards to earlier handlers as here
 *             (sigfwdgo); a program that comes later than Go and takes the signal keeps it there,
 *             here the next os_signal_install notices.
 * Tests       tests/unit/test_os_signal.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define SIGNAL_COUNT 65 /* 1..64 on Linux */

#define ACTION_SIGINFO (UINT64_C(1) << 63)   /* the program's handler takes three arguments */
#define ACTION_RESETHAND (UINT64_C(1) << 62) /* and is to be called once */
#define ACTION_HANDLER (ACTION_RESETHAND - 1)

/* The program's action of each signal. Written by os_signal_install, and by os_signal_chain when a
 * one-shot handler is used up. */
static _Atomic uint64_t signal_previous[SIGNAL_COUNT];

static uint64_t signal_pack(const struct sigaction *sa)
{
    bool siginfo = (sa->sa_flags & SA_SIGINFO) != 0;
    uint64_t word = siginfo ? (uintptr_t)sa->sa_sigaction : (uintptr_t)sa->sa_handler;
    if (sa->sa_handler == SIG_DFL || sa->sa_handler == SIG_IGN) {
        return 0;
    }
    ASSERT((word & ~ACTION_HANDLER) == 0);
    return word | (siginfo ? ACTION_SIGINFO : 0) |
           ((unsigned)sa->sa_flags & (unsigned)SA_RESETHAND ? ACTION_RESETHAND : 0);
}

static bool signal_runs(const struct sigaction *sa, os_signal_fn *fn)
{
    return (sa->sa_flags & SA_SIGINFO) != 0 && (uintptr_t)sa->sa_sigaction == (uintptr_t)fn;
}

#if defined(__x86_64__)
/* Where a handler returns to: the C library's, the same for all of them. A signal's frame begins with it. */
static _Atomic uintptr_t signal_restorer;

struct kernel_sigaction { /* of the system call, which the C library hides */
    uintptr_t handler, flags, restorer;
    uint64_t mask;
};

static void restorer_learn(int signo)
{
    struct kernel_sigaction now;
    if (syscall(SYS_rt_sigaction, signo, NULL, &now, sizeof(now.mask)) == 0) {
        store_rlx(&signal_restorer, now.restorer); /* relaxed: a number */
    }
}
#else
static void restorer_learn(int signo)
{
    (void)signo; /* handlers return to the vDSO */
}
#endif

int os_signal_install(int signo, os_signal_fn *fn, bool *changed)
{
    struct sigaction now;
    if (changed != NULL) {
        *changed = false;
    }
    if (os_fault()) {
        return ENOMEM;
    }
    if (signo <= 0 || signo >= SIGNAL_COUNT) {
        return EINVAL;
    }
    if (sigaction(signo, NULL, &now) != 0) {
        return errno;
    }
    if (likely(signal_runs(&now, fn))) {
        return 0;
    }

    struct sigaction ours;
    memset(&ours, 0, sizeof(ours));
    ours.sa_sigaction = (void (*)(int, siginfo_t *, void *))fn;
    ours.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
    sigfillset(&ours.sa_mask);

    uint64_t before = load_rlx(&signal_previous[signo]);
    /* relaxed: sigaction below publishes it, see Ordering. [signal.not-ours] by the test above */
    store_rlx(&signal_previous[signo], signal_pack(&now));
    struct sigaction old;
    if (sigaction(signo, &ours, &old) != 0) {
        store_rlx(&signal_previous[signo], before);
        return errno;
    }
    restorer_learn(signo);
    if (!signal_runs(&old, fn)) {
        /* Mostly the same again; another one if the program was just replacing it. */
        store_rlx(&signal_previous[signo], signal_pack(&old));
    }
    if (changed != NULL) {
        *changed = true;
    }
    return 0;
}

/* A program's handler that was installed over ours may call ours for what is not its own; ours, back
 * on top, would chain to it again, without end. So chaining leaves a mark in the context, in uc_link:
 * the kernel sets it to NULL at each delivery, so a handler that jumped out leaves no stale mark
 * behind, and does not read it at the return. */
static char chain_mark;

void os_signal_chain(int signo, void *siginfo, void *ucontext)
{
    if (signo <= 0 || signo >= SIGNAL_COUNT || ucontext == NULL) {
        return;
    }
    uint64_t action = load_rlx(&signal_previous[signo]); /* relaxed: see Ordering */
    ucontext_t *uc = ucontext;
    if (action == 0 || (void *)uc->uc_link == &chain_mark) {
        return;
    }
    if ((action & ACTION_RESETHAND) != 0 && !cas_rlx(&signal_previous[signo], &action, 0)) {
        return; /* relaxed: only one thread gets it. Another did. */
    }
    void *link = uc->uc_link;
    uc->uc_link = (void *)&chain_mark;
    uintptr_t handler = (uintptr_t)(action & ACTION_HANDLER);
    if ((action & ACTION_SIGINFO) != 0) {
        ((os_signal_fn *)handler)(signo, siginfo, ucontext);
    } else {
        ((void (*)(int))handler)(signo);
    }
    uc->uc_link = link;
}

void os_signal_chain_fault(int signo, void *siginfo, void *ucontext)
{
    if (signo > 0 && signo < SIGNAL_COUNT && load_rlx(&signal_previous[signo]) == 0) {
        struct sigaction none;
        memset(&none, 0, sizeof none);
        none.sa_handler = SIG_DFL;
        (void)sigaction(signo, &none, NULL); /* what faulted does it again */
        return;
    }
    os_signal_chain(signo, siginfo, ucontext);
}

bool os_signal_is_ours(const void *siginfo)
{
    const siginfo_t *si = siginfo;
    /* getpid is a short system call; a copy of it would be wrong after vfork and clone. */
    return si->si_code == SI_TKILL && si->si_pid == getpid();
}

#if defined(__x86_64__)

/* r8-r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp; then rip and what is no general register. */
_Static_assert(REG_R8 == 0 && REG_RSP == 15 && REG_RIP == 16, "order of gregs");
#define CONTEXT_REGS 16

uintptr_t os_context_sp(const void *ucontext)
{
    const ucontext_t *uc = ucontext;
    return (uintptr_t)uc->uc_mcontext.gregs[REG_RSP];
}

uintptr_t os_context_pc(const void *ucontext)
{
    const ucontext_t *uc = ucontext;
    return (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
}

void os_context_set_pc(void *ucontext, uintptr_t pc)
{
    ucontext_t *uc = ucontext;
    uc->uc_mcontext.gregs[REG_RIP] = (greg_t)pc;
}

const uintptr_t *os_context_regs(const void *ucontext, size_t *n)
{
    const ucontext_t *uc = ucontext;
    *n = CONTEXT_REGS;
    return (const uintptr_t *)(const void *)uc->uc_mcontext.gregs;
}

#elif defined(__aarch64__)

#define CONTEXT_REGS 31 /* x0-x30 */

uintptr_t os_context_sp(const void *ucontext)
{
    const ucontext_t *uc = ucontext;
    return (uintptr_t)uc->uc_mcontext.sp;
}

uintptr_t os_context_pc(const void *ucontext)
{
    const ucontext_t *uc = ucontext;
    return (uintptr_t)uc->uc_mcontext.pc;
}

void os_context_set_pc(void *ucontext, uintptr_t pc)
{
    ucontext_t *uc = ucontext;
    uc->uc_mcontext.pc = pc;
}

const uintptr_t *os_context_regs(const void *ucontext, size_t *n)
{
    const ucontext_t *uc = ucontext;
    *n = CONTEXT_REGS;
    return (const uintptr_t *)(const void *)uc->uc_mcontext.regs;
}

#else
#error "contexts are known for x86-64 and aarch64"
#endif

/* [frame.others] A word of the stack may be another thread's to write, if it only looks like a frame's: the
 * lock in the thread's own descriptor, which who signals it holds and lets go of meanwhile. So it is read
 * once, and changed only if it is still what was read. */
static NO_SANITIZE void frame_restart(uintptr_t word)
{
    _Atomic uintptr_t *at = (_Atomic uintptr_t *)word;
    uintptr_t pc = load_rlx(at);
    uintptr_t start = os_stores_restart(pc);
    if (unlikely(start != pc)) {
        (void)cas_rlx(at, &pc, start);
    }
}

#if defined(__x86_64__)

NO_SANITIZE void os_signal_frames_restart(uintptr_t from, uintptr_t to)
{
    enum { PC = sizeof(uintptr_t) + offsetof(ucontext_t, uc_mcontext.gregs[REG_RIP]) };
    uintptr_t restorer = load_rlx(&signal_restorer);
    for (uintptr_t p = align_up(from, sizeof(p)); p + PC + sizeof(p) <= to; p += sizeof(p)) {
        if (unlikely(*(volatile uintptr_t *)p == restorer)) {
            frame_restart(p + PC);
        }
    }
}

#else

/* Nothing marks a frame here. What lies strictly within a sequence is no return address. */
NO_SANITIZE void os_signal_frames_restart(uintptr_t from, uintptr_t to)
{
    for (uintptr_t p = align_up(from, sizeof(p)); p + sizeof(p) <= to; p += sizeof(p)) {
        frame_restart(p);
    }
}

#endif

bool os_altstack_bounds(uintptr_t sp, uintptr_t *low, uintptr_t *high)
{
    stack_t ss;
    if (sigaltstack(NULL, &ss) != 0 || (ss.ss_flags & SS_DISABLE) != 0) {
        return false;
    }
    uintptr_t base = (uintptr_t)ss.ss_sp;
    if (sp - base >= ss.ss_size) {
        return false;
    }
    *low = base;
    *high = base + ss.ss_size;
    return true;
}
