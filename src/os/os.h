/* os.h - everything that the library asks of the system; one .c per system and topic.
 *
 * This folder is the porting surface. Every call here that can fail is a fault-injection point:
 * os_fail_at (tests only) makes the Nth such call of the process fail as the system would.
 * Nothing here allocates from malloc; nothing here knows of heaps or threads of the library.
 */
#ifndef OS_OS_H
#define OS_OS_H

#include "base/atomics.h"
#include "base/compiler.h"

/* -- memory (mem.c) ---------------------------------------------------------------------------
 * All sizes in bytes, multiples of os_page_size(). */

size_t os_page_size(void);

/* Reserve address space, inaccessible, aligned to `align` (a power of two). NULL: refused. */
void *os_reserve(size_t bytes, size_t align);

/* Make reserved memory readable and writable; it reads as zero when never used since the reserve
 * or since os_discard. False: refused (ENOMEM), the range is as it was. */
bool os_commit(void *addr, size_t bytes);

/* Give the pages back; the range stays committed and reads as zero. */
void os_discard(void *addr, size_t bytes);

/* Undo os_reserve. */
void os_release(void *addr, size_t bytes);

/* Fresh zeroed committed memory, or NULL. */
void *os_map(size_t bytes);

/* Lowest address such that [it, high) is mapped without a hole, not below low. */
uintptr_t os_mapped_low(uintptr_t low, uintptr_t high);

/* Name a mapping for /proc/self/maps where the kernel can; a hint. */
void os_name(void *addr, size_t bytes, const char *name);

/* Soft limit on address space in bytes, or SIZE_MAX. */
size_t os_address_limit(void);

/* -- waiting (futex.c) ------------------------------------------------------------------------ */

/* Sleep while *word == value, at most ns (< 0: without end). Returns on wake, change or signal. */
void os_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns);
void os_futex_wake(_Atomic uint32_t *word, int count);

/* A mutex of one word; zero is unlocked. Not recursive. Fair enough; sleeps when contended. */
struct mutex {
    _Atomic uint32_t word; /* 0 free, 1 held, 2 held and somebody sleeps */
};
void mutex_lock_slow(struct mutex *mu);
void mutex_unlock_slow(struct mutex *mu);

ALWAYS_INLINE void mutex_lock(struct mutex *mu)
{
    uint32_t expected = 0;
    /* acquire: pairs with mutex_unlock; what the last holder wrote is seen. */
    if (unlikely(!cas_acqrel(&mu->word, &expected, 1u))) {
        mutex_lock_slow(mu);
    }
}

ALWAYS_INLINE bool mutex_try_lock(struct mutex *mu)
{
    uint32_t expected = 0;
    return cas_acqrel(&mu->word, &expected, 1u); /* acquire: pairs with mutex_unlock */
}

ALWAYS_INLINE void mutex_unlock(struct mutex *mu)
{
    /* release: pairs with mutex_lock. */
    if (unlikely(xchg_acqrel(&mu->word, 0u) == 2)) {
        mutex_unlock_slow(mu);
    }
}

ALWAYS_INLINE bool mutex_is_held(struct mutex *mu)
{
    return load_rlx(&mu->word) != 0;
}

/* -- time (clock.c) --------------------------------------------------------------------------- */
int64_t os_nanotime(void);        /* CLOCK_MONOTONIC */
int64_t os_walltime(void);        /* CLOCK_REALTIME, ns since 1970 */
int64_t os_thread_cputime(void);  /* of the calling thread */
int64_t os_process_cputime(void); /* of the process */
void os_sleep_ns(int64_t ns);

/* -- threads (thread.c) ----------------------------------------------------------------------- */
int os_ncpu(void); /* processors this process may use, at least 1 */
int os_gettid(void);
int os_tgkill(int tid, int signo); /* 0, or an errno value (ESRCH: gone) */

enum os_priority {
    OS_PRIORITY_NORMAL,
    OS_PRIORITY_IDLE, /* runs only where nobody else wants to */
};
/* A library thread: all signals blocked, detached, small stack, named. 0 or an errno value. */
int os_thread_start(void (*fn)(void *arg), void *arg, const char *name);
void os_thread_set_priority(int tid, enum os_priority priority); /* a hint; tid 0: the caller */

/* Bounds [*low, *high) of the calling thread's native stack. False: unknown. On glibc the high part
 * of a created thread's stack includes its static thread-local storage. */
bool os_stack_bounds(uintptr_t *low, uintptr_t *high);

/* -- signals (signal.c) ----------------------------------------------------------------------- */
/* What a handler was given, reduced to what a conservative scan and a restart need. */
struct os_context;
typedef void os_signal_fn(int signo, void *siginfo, void *ucontext);
int os_signal_install(int signo, os_signal_fn *fn, bool *changed); /* keeps the program's old action for os_signal_chain; 0 or errno */
void os_signal_chain(int signo, void *siginfo, void *ucontext);
bool os_signal_is_ours(const void *siginfo); /* sent by os_tgkill of this process */
uintptr_t os_context_sp(const void *ucontext);
uintptr_t os_context_pc(const void *ucontext);
void os_context_set_pc(void *ucontext, uintptr_t pc);
/* The general registers in it: *n words from the result. */
const uintptr_t *os_context_regs(const void *ucontext, size_t *n);
/* Bounds of the alternate signal stack if sp lies in it. */
bool os_altstack_bounds(uintptr_t sp, uintptr_t *low, uintptr_t *high);

/* Call fn(arg, sp) with every callee-saved register spilled at or above sp (spill_*.S). */
void os_call_spilled(void (*fn)(void *arg, uintptr_t sp), void *arg);

/* -- modules and thread-local storage (modules.c) --------------------------------------------- */
/* Call fn for each writable data range of each loaded module, while none can be unloaded.
 * fn must not allocate, load or unload. Ranges of the library itself, when it is a module of its
 * own, are left out. */
void os_each_data_range(void (*fn)(void *arg, uintptr_t start, size_t bytes), void *arg);

/* Restartable store sequences of all modules: a snapshot that os_stores_refresh renews when
 * modules have come or gone (cheap if not). Returns its generation. One caller at a time. */
uint64_t os_stores_refresh(void);
/* Async-signal-safe: if pc is strictly inside a known sequence, its start; else pc. */
uintptr_t os_stores_restart(uintptr_t pc);

/* Call fn for each block of thread-local storage of the thread whose thread pointer is tp: static,
 * dynamic, pthread_setspecific values. Async-signal-safe for the calling thread; for another one
 * only while that thread stands still. os_tls_init once per process before. */
void os_tls_init(void);
uintptr_t os_thread_pointer(void);
void os_each_tls_range(uintptr_t tp, void (*fn)(void *arg, uintptr_t start, size_t bytes), void *arg);

/* -- fault injection (fault.c) ---------------------------------------------------------------- */
/* Tests: countdown to the failing call; 0 off. Set to N: the Nth fallible call from now fails, and,
 * if os_fail_repeat, all after it too. */
extern _Atomic int64_t os_fail_at;
extern _Atomic bool os_fail_repeat;
bool os_fault(void); /* called first by every fallible function of this folder: true: fail now */

#endif
