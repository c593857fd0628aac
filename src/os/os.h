/* os.h - everything that the library asks of the system; one .c per system and topic.
 *
 * This folder is the porting surface. Every call here that can fail is a fault-injection point:
 * os_fail_at (tests only) makes the Nth such call of the process fail as the system would.
 * Nothing here allocates from malloc, but os_thread_start and os_stack_bounds, inside the C library;
 * nothing here knows of heaps or threads of the library. errno is kept by whatever cannot fail.
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
 * or since os_discard. False: refused (ENOMEM), nothing in the range is lost (parts of it may have
 * become accessible, if it consisted of several mappings). */
bool os_commit(void *addr, size_t bytes);

/* Give the pages back; the range stays committed and reads as zero. */
void os_discard(void *addr, size_t bytes);

/* The same, but the system takes them when it needs them: until then they count as the process's, and read as they were,
 * or as zero. */
void os_discard_lazily(void *addr, size_t bytes);

/* The range shall, or shall not, have huge pages; a hint. */
void os_huge(void *addr, size_t bytes, bool yes);

/* Undo os_reserve or os_map. */
void os_release(void *addr, size_t bytes);

/* Fresh zeroed committed memory, or NULL. */
void *os_map(size_t bytes);

/* Lowest address such that [it, high) is mapped without a hole, not below low; high if not even the
 * last page is. PROT_NONE counts as mapped. Touches nothing; async-signal-safe; one system
 * call if all is mapped, else two for each halving of the range down to a page, at most. */
uintptr_t os_mapped_low(uintptr_t low, uintptr_t high);

/* Name a mapping for /proc/self/maps where the kernel can; a hint. Mappings of different names are
 * not merged by the kernel: name large ones only. */
void os_name(void *addr, size_t bytes, const char *name);

/* Soft limit on address space in bytes, or SIZE_MAX. */
size_t os_address_limit(void);

/* The memory limit of the container, bytes; UINT64_MAX: none. proc and sys: /proc/self/cgroup and /sys/fs/cgroup, or what a
 * test has in their place (cgroup.c). Not async-signal-safe; keeps errno. */
uint64_t os_cgroup_memory_limit(const char *proc, const char *sys);

/* -- nodes of memory (numa.c) ----------------------------------------------------------------- */

struct os_numa {
    uint64_t (*nodes)(void); /* a bit for each that has memory; at least one */
    int (*here)(void);       /* where the calling thread runs now */
    void (*prefer)(void *addr, size_t bytes,
                   int node); /* memory that is yet to be touched; a hint */
};
extern HIDDEN struct os_numa os_numa;
uint64_t os_numa_parse(const char *list); /* "0-1,3", as the kernel writes it */

/* -- waiting (futex.c) ------------------------------------------------------------------------ */

/* Sleep while *word == value, at most ns (< 0: without end). Returns on wake, change or signal. */
void os_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns);
void os_futex_wake(_Atomic uint32_t *word, int count);

/* What names the calling thread in a register of its own: where its thread-local storage hangs. */
ALWAYS_INLINE uintptr_t os_thread_pointer(void)
{
    uintptr_t tp;
#if defined(__x86_64__)
    __asm__("movq %%fs:0, %0" : "=r"(tp));
#elif defined(__aarch64__)
    __asm__("mrs %0, tpidr_el0" : "=r"(tp));
#else
#error "the thread pointer is known for x86-64 and aarch64"
#endif
    return tp;
}

/* A mutex of one word; zero is unlocked. Not recursive. Fair enough; sleeps when contended. */
struct mutex {
    _Atomic uint32_t word; /* 0 free, else the holder's mutex_self; + 1: somebody may sleep */
};
void mutex_lock_slow(struct mutex *mu);
void mutex_unlock_slow(struct mutex *mu);

/* Even, not 0. Two threads may have the same one, for an address has more bits. */
ALWAYS_INLINE uint32_t mutex_self(void)
{
    return ((uint32_t)(os_thread_pointer() >> 3) & ~1u) | 2u;
}

ALWAYS_INLINE void mutex_lock(struct mutex *mu)
{
    uint32_t expected = 0;
    /* acquire: pairs with mutex_unlock; what the last holder wrote is seen. */
    if (unlikely(!cas_acqrel(&mu->word, &expected, mutex_self()))) {
        mutex_lock_slow(mu);
    }
}

ALWAYS_INLINE bool mutex_try_lock(struct mutex *mu)
{
    uint32_t expected = 0;
    return cas_acqrel(&mu->word, &expected, mutex_self()); /* acquire: pairs with mutex_unlock */
}

ALWAYS_INLINE void mutex_unlock(struct mutex *mu)
{
    /* release: pairs with mutex_lock. */
    if (unlikely((xchg_acqrel(&mu->word, 0u) & 1u) != 0)) {
        mutex_unlock_slow(mu);
    }
}

ALWAYS_INLINE bool mutex_is_held(struct mutex *mu)
{
    return load_rlx(&mu->word) != 0;
}

/* Does the calling thread hold it, so that one of its signal handlers must not wait for it? Rarely true
 * of another one that holds it; never false of the holder. */
ALWAYS_INLINE bool mutex_may_be_mine(struct mutex *mu)
{
    return (load_rlx(&mu->word) & ~1u) == mutex_self(); /* relaxed: what this thread wrote itself */
}

/* -- time (clock.c) --------------------------------------------------------------------------- */
int64_t os_nanotime(void);        /* CLOCK_MONOTONIC */
int64_t os_walltime(void);        /* CLOCK_REALTIME, ns since 1970 */
int64_t os_thread_cputime(void);  /* of the calling thread */
int64_t os_process_cputime(void); /* of the process */
void os_sleep_ns(int64_t ns); /* at least so long, signals notwithstanding; no cancellation point */

/* -- threads (thread.c) ----------------------------------------------------------------------- */
int os_ncpu(void); /* processors this process may use, at least 1 */
int os_gettid(void);
void os_yield(void);
/* Threads of the process that os_thread_start has not made; -1: unknown. */
int os_count_threads(void);
/* Its name, at most 15 bytes; false: it has ended. */
enum { OS_THREAD_NAME = 16 };
bool os_thread_name(int tid, char name[OS_THREAD_NAME]);
bool os_thread_sleeps(int tid);  /* in a call of the system, at this moment; /proc tells */
void os_thread_fork_child(void); /* there are none */

/* A full fence in every thread of the process at some moment of the call; false: the system has none
 * (Linux before 4.14, some sandboxes). membarrier(2). */
bool os_fence_threads(void);
int os_tgkill(int tid, int signo); /* 0, or an errno value (ESRCH: gone) */

enum os_priority {
    OS_PRIORITY_NORMAL,
    OS_PRIORITY_LOW, /* a tenth of a processor that others want too, all of one that nobody wants */
    OS_PRIORITY_QUICK, /* normal, in short slices: runs soon when it wakes up (Linux 6.12) */
};
/* A library thread: all signals blocked, detached, small stack, named (15 bytes seen). 0 or an errno
 * value. Waits until the thread runs; it allocates in the C library, so hold no lock that malloc may
 * want. */
int os_thread_start(void (*fn)(void *arg), void *arg, const char *name);
/* A hint; tid 0: the caller. Without CAP_SYS_NICE or RLIMIT_NICE >= 20 the way to LOW is one-way:
 * Linux refuses the way back, silently here. */
void os_thread_set_priority(int tid, enum os_priority priority);

/* Bounds [*low, *high) of the calling thread's native stack. False: unknown. On glibc the high part
 * of a created thread's stack includes its static thread-local storage. For the main thread low is
 * what RLIMIT_STACK allowed when asked: a bound, not mapped memory. Opens a file for the main thread:
 * ask once, and not in a handler. */
bool os_stack_bounds(uintptr_t *low, uintptr_t *high);

/* -- signals (signal.c) ----------------------------------------------------------------------- */
typedef void os_signal_fn(int signo, void *siginfo, void *ucontext);

/* Make fn the handler of signo: SA_RESTART, SA_ONSTACK, all signals blocked while it runs. What the
 * program had there is kept for os_signal_chain. Call it again at leisure (one sigaction query): when
 * the program has replaced our handler, its new one is remembered, ours goes back, and *changed
 * (may be NULL) is true, as it is the first time. One caller at a time. 0 or an errno value. */
int os_signal_install(int signo, os_signal_fn *fn, bool *changed);

/* From our handler: call the program's handler of signo, in its manner; nothing if it has none. A
 * program's handler that in turn calls ours (which it found installed) is not called a second time.
 * May not return (siglongjmp). */
void os_signal_chain(int signo, void *siginfo, void *ucontext);

/* The same of a signal that ends the process where nobody handles it: it does, when the handler has returned. */
void os_signal_chain_fault(int signo, void *siginfo, void *ucontext);

/* Sent by tgkill from this process: by os_tgkill, or by a pthread_kill or raise of the program. A
 * kernel that is out of memory for signals delivers without saying by whom: so a handler answers
 * what is asked of its thread in any case, and asks this only to decide whether to chain too. */
bool os_signal_is_ours(const void *siginfo);

/* What a handler was given as its third argument, reduced to what a conservative scan and a restart
 * need. Vector registers, which may hold the only copy of a pointer, are in the signal's frame on the
 * stack that the handler runs on: scan that from the handler's own sp, not only from os_context_sp. */
uintptr_t os_context_sp(const void *ucontext);
uintptr_t os_context_pc(const void *ucontext);
void os_context_set_pc(void *ucontext, uintptr_t pc);
/* The general registers in it: *n words from the result. */
const uintptr_t *os_context_regs(const void *ucontext, size_t *n);

/* In each frame that a signal left within [from, to), stack of a thread that stands still or of the
 * caller: a saved pc strictly inside a known store sequence goes back to its start. So a handler of the
 * program that lies over a store, and from which the thread answers, returns to the test before it. */
void os_signal_frames_restart(uintptr_t from, uintptr_t to);

/* Bounds of the alternate signal stack of the calling thread if sp lies in it. One system call. With
 * SS_AUTODISARM the kernel forgets the stack while a handler runs on it: false then. */
bool os_altstack_bounds(uintptr_t sp, uintptr_t *low, uintptr_t *high);

/* Call fn(arg, sp) with every callee-saved register spilled at or above sp (spill.S). */
void os_call_spilled(void (*fn)(void *arg, uintptr_t sp), void *arg);

/* -- stacks of our own (stack.c, switch.S) ---------------------------------------------------- */

/* Leave the calling stack, *save = where, and go on on the one that was left at `to`: there it is the result of the
 * os_switch by which it was left, or the argument of its first function, that says `arg`. */
void *os_switch(uintptr_t *save, uintptr_t to, void *arg);

/* Where a fresh stack that ends at `top` begins with entry(arg), which never returns. */
uintptr_t os_switch_prepare(uintptr_t top, void (*entry)(void *arg));

/* Whoever touches [addr, addr + bytes) of committed memory gets SIGSEGV from now on. Without a mapping of its own where
 * the kernel can (MADV_GUARD_INSTALL, Linux 6.13), else with one, of which there can be 65 530 by default
 * (vm.max_map_count). False: refused. */
bool os_guard(void *addr, size_t bytes);

/* Has the system memory for the page at addr, which is mapped? */
bool os_resident(void *addr);
/* The lowest such page of [low, high), which is mapped, looked for from high downwards up to a hole of 64 pages or more (of
 * 128 surely); high: none. */
uintptr_t os_lowest_resident(uintptr_t low, uintptr_t high);

/* Return addresses of a stack that was left at sp, of which some KiB below sp are free; of the calling one where a signal's
 * context is given. How many; 0 where the C library has no unwinder. It allocates at its first call: os_backtrace_prepare. */
size_t os_backtrace_of(uintptr_t sp, void **pcs, size_t n);
size_t os_backtrace_context(const void *ucontext, void **pcs, size_t n);
void os_backtrace_write(void **pcs, size_t n, int fd); /* a line for each; allocates nothing */
void os_backtrace_prepare(void);

/* unwind.c: the calls that lead to the caller, innermost first, each an address within the call instruction, the library's
 * own left out. At most `most`, and only while frames lie below `high`. How many. */
void os_unwind_init(void);         /* once, at start */
bool os_unwind_locks(void);        /* it takes the loader's lock */
bool os_is_own_code(uintptr_t pc); /* false in doubt */
enum { OS_CALLS = 32 };            /* deeper chains are walked anew */
struct os_calls {                  /* of the calling thread's last walk */
    uint32_t n;                    /* 0: not known */
    bool under_way;
    uintptr_t pcs[OS_CALLS], slots[OS_CALLS];
};
size_t os_unwind(uintptr_t *pcs, size_t most, uintptr_t high, struct os_calls *last);

/* An alternate signal stack for the calling thread, if it has none; it lasts as long as the thread. False: no memory. */
bool os_altstack_install(void);
/* Handlers of faults (SIGSEGV, SIGBUS) are given the address. */
uintptr_t os_fault_address(const void *siginfo);

/* -- pages that are brought when they are touched (pager.c) ------------------------------------- */

/* Once; false: the system has it not, or not for us. What follows only after that; addresses and bytes are of whole pages. */
bool os_pager_open(void);
/* Who touches a page of this memory that is not there waits for os_pager_put from now on, or until it is not watched any more.
 * Neighbours that are watched are one mapping. False: refused (too many mappings). */
bool os_pager_watch(void *addr, size_t bytes);
bool os_pager_unwatch(void *addr, size_t bytes);
/* Move pages within watched memory, to where there are none. False: nothing was moved (the kernel holds one for a device, or a
 * child of fork shares it). */
bool os_pager_take(void *to, void *from, size_t bytes);
/* Put pages where there are none; those that are there stay as they are. Who waits for them goes on. False: no memory. */
bool os_pager_put(void *at, const void *from, size_t bytes);
/* Waits until a page is touched that is not there. For one thread. */
uintptr_t os_pager_next(void);
void os_pager_close(
    void); /* nothing is watched any more; in a fork's child, where nothing is, too */

/* -- events of descriptors (poll.c) ----------------------------------------------------------- */

struct os_poll_event {
    int fd;
    uint32_t ask; /* the number of the ask that it answers */
    int events;   /* poll's */
};

/* One set for the process. 0, or an errno value. Any thread. */
int os_poll_open(void);
/* Say once when one of poll's events is there at fd; what was asked for it before is forgotten, unless the number meant
 * another file then, which is still open elsewhere: that is known by the number of the ask. 0, or an errno value: EBADF,
 * ENOMEM; EPERM: always ready. */
int os_poll_ask(int fd, int events, uint32_t ask);
/* How many came, at most n; waits for at most ns (< 0: without end), until os_poll_wake. */
int os_poll_wait(struct os_poll_event *events, int n, int64_t ns);
void os_poll_wake(void); /* who waits comes back soon; if nobody does, who waits next */
void os_poll_fork_child(void);

/* -- writing (write.c) -------------------------------------------------------------------------- */

/* What fd takes of n bytes, waiting at most wait_ns until it takes any: how many, 0: none yet; or a negative errno value.
 * Without SIGPIPE. The descriptor may block or not: a reader that has stopped holds nobody up. */
int64_t os_write(int fd, const void *from, size_t n, int64_t wait_ns);

/* A descriptor of our own for the same file, closed by exec; a negative errno value: fd is none that can be written to. */
int os_write_open(int fd);
void os_write_close(int fd);

/* -- modules (modules.c) ----------------------------------------------------------------------
 * All of these but os_stores_restart take the loader's lock, and a dlclose on another thread calls
 * free while it holds that: so hold no lock that malloc or free of the library may want. */

/* Call fn for each readable and writable data range of each loaded module, while none can be unloaded.
 * fn must not allocate, load or unload. Ranges of the library itself, when it is a module of its
 * own, are left out. */
void os_each_data_range(void (*fn)(void *arg, uintptr_t start, size_t bytes), void *arg);

/* Code of the executable and the shared objects, the executable's first. All valid during the call only. */
struct os_text {
    uintptr_t start, limit, offset; /* in memory; in the file */
    const char *file;               /* "": the executable */
    const uint8_t *build_id;        /* NULL: none */
    size_t build_id_bytes;
    bool is_library; /* libloam.so */
};
void os_each_text(void (*fn)(void *arg, const struct os_text *text), void *arg);

/* Restartable store sequences of all modules: a snapshot that os_stores_refresh renews when
 * modules have come or gone (cheap if not). Returns its generation; 0: there was no memory for it, the
 * old snapshot stays in force, do not rely on it, try again. */
uint64_t os_stores_refresh(void);
/* Have modules come or gone since the refresh that returned generation? A handler that ran in between
 * may have missed a sequence: refresh, and do again what it was meant to protect. */
bool os_stores_changed(uint64_t generation);
/* Async-signal-safe: if pc is strictly inside a known sequence, its start; else pc. */
uintptr_t os_stores_restart(uintptr_t pc);
/* The same from the loader's own lists, where os_stores_refresh had no memory; not in a handler. */
uintptr_t os_stores_find(uintptr_t pc);
size_t os_stores_bytes(void); /* mapped for the snapshots; for reports only */

/* Make this copy of the library the one that works in this process. False: another does already. The
 * names of the modules that hold this one and that one, cut at `bytes`. Copies in other namespaces
 * (dlmopen) are not seen, nor those from before there was such a note. May be repeated. */
bool os_copy_claim(char *own, char *other, size_t bytes);

/* In fork's child. The fork waited until no other thread was in a function above, but for handlers in os_stores_restart:
 * a child that inherits the loader's lock from a thread of ours would wait for it for ever. */
void os_modules_fork_child(void);

/* -- names of variables and functions (symbols.c) ---------------------------------------------- */

enum os_symbols_of { OS_VARIABLES, OS_FUNCTIONS };

struct os_symbol {
    uintptr_t start;
    size_t bytes;
    const char *name, *module; /* module: its file, without the folder */
};
struct os_symbols {
    enum os_symbols_of of;
    struct os_symbol *symbols; /* by address */
    size_t count, capacity;
    struct os_module *modules; /* names lie there */
    size_t nmodules;
};
/* Which modules there are, with the loader's lock; then what their files name, without it. What memory or a file does not give
 * is left out. To be released. */
void os_symbols_begin(struct os_symbols *s, enum os_symbols_of of);
void os_symbols_read(struct os_symbols *s);
void os_symbols_release(struct os_symbols *s);
const struct os_symbol *os_symbols_find(const struct os_symbols *s, uintptr_t addr); /* or NULL */

/* -- a copy of the process (snapshot.c) -------------------------------------------------------- */

/* Copy the process, as it is at this moment: its number, 0 in the copy, where the calling thread alone goes on, or an errno
 * value, negative. All signals are blocked by the caller. The copy takes no lock that another thread may have held. */
int os_snapshot_process(void);
/* In the copy. */
void os_snapshot_keep_file(
    int fd); /* close all others but the standard ones: others may wait for their end */
_Noreturn void os_snapshot_exit(int error);                     /* 0, or an errno value */
bool os_snapshot_thread_name(int tid, char *name, size_t size); /* of the process that was copied */
/* Has the copy come to its end? *error is what it ended with; EIO: it was killed. */
bool os_snapshot_ended(int pid, int *error);

/* -- thread-local storage (tls.c) -------------------------------------------------------------
 * os_tls_init once per process, before the others; it asks the loader, so not from a handler. */
void os_tls_init(void);

/* Call fn for each block of thread-local storage of the thread whose thread pointer is tp: static,
 * dynamic, pthread_setspecific values. Async-signal-safe for the calling thread; for another one
 * only while that thread stands still. Blocks may overlap the stack (see os_stack_bounds). Where the
 * C library keeps its secrets (musl; a glibc whose struct pthread is not as expected), the values
 * of pthread_setspecific are found for the calling thread only. */
void os_each_tls_range(uintptr_t tp, void (*fn)(void *arg, uintptr_t start, size_t bytes),
                       void *arg);

/* Bytes of a new thread's stack that its static thread-local storage takes; 0 before os_tls_init. */
size_t os_tls_static_bytes(void);

/* -- fault injection (fault.c) ---------------------------------------------------------------- */
/* Tests: countdown to the failing call; 0 off. Set to N: the Nth fallible call from now fails, and,
 * if os_fail_repeat, all after it too. */
extern _Atomic int64_t os_fail_at;
extern _Atomic bool os_fail_repeat;
bool os_fault(void); /* called first by every fallible function of this folder: true: fail now */

#endif
