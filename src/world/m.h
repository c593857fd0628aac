/* m.h - the record of an attached thread, and how it is reached wherever it is.
 *
 * `m` is Go's word for an operating-system thread. Its record outlives the thread and is reused.
 */
#ifndef WORLD_M_H
#define WORLD_M_H

#include "base/histogram.h"
#include "heap/mcache.h"
#include "world/trace.h"

enum {
    WBBUF_ENTRIES = 512,
#if defined(__SANITIZE_ADDRESS__)
    CONTEXT_REGS = 512, /* frames are larger there */
#else
    CONTEXT_REGS = 64, /* the frames of those who lead into blocking fit too */
#endif
    HIST_BUCKETS = 64, /* powers of the square root of two, from 1 ns */
};

/* Where a thread that stands still has its pointers. */
struct m_context {
    uintptr_t
        pc; /* of a handler: where it found the thread, if in no store that it knows; else 0 */
    uintptr_t sp; /* what lies below is dead, but for the handler's frame */
    uintptr_t
        alt_limit; /* where the alternate signal stack that sp lies on ends; 0: on another one */
    /* Where the kernel put the registers that are not in regs (vector registers hold pointers too);
     * empty where there is no signal. */
    uintptr_t frame, frame_limit;
    size_t nregs;
    uintptr_t regs[CONTEXT_REGS];
};

enum m_state {
    M_RUNNING,
    M_BLOCKED, /* promises not to touch the heap; others may act for it */
    M_CLAIMED, /* somebody acts for it; it must not return before M_BLOCKED again */
    M_STOPPED, /* waits in world_stop, context saved */
};

/* Overwritten and new targets of stores, not yet shaded. Owner only, while busy. */
struct wbbuf {
    uint32_t n;
    uintptr_t entries[WBBUF_ENTRIES];
};

enum { GCWORK_CANDIDATES = 1024 };

/* What one marker keeps to itself: a first-in first-out list of spans to scan, and its counts. */
struct gcwork {
    uint32_t head, tail; /* page number + 1; 0: empty */
    uint32_t count;
    bool counted;          /* a program thread's: whoever marks through it dirties the round */
    uint64_t bytes_marked; /* not yet added to gc.bytes_marked */
    uint64_t scan_work;    /* bytes looked at, not yet added to gc.scan_work */
    uint64_t stop_at;      /* gc_drain ends when scan_work is there, */
    int64_t deadline;      /* or at this time; the clock is */
    uint64_t look_at;      /* looked at when scan_work is there */
    uintptr_t candidates[GCWORK_CANDIDATES]; /* offsets into the region found by a scan kernel */
};

/* A range that is searched with its thread's own stack: the contract's loam_stack. */
struct loam_stack {
    uintptr_t start, limit;
    void *const *top; /* where the program keeps the live end; NULL: see live */
    /* The former owner may be scanning while the new one writes: whatever it makes of them is within the
     * stack, and the new owner shades. */
    _Atomic uintptr_t live, live_limit; /* used when top is NULL, or parked */
    _Atomic bool parked;                /* the program said what is live */
    _Atomic(struct m *) owner;          /* who scans it; NULL: its thread has ended */
    _Atomic uint32_t scanners; /* who look at it now: it stays mapped until they are done */
    bool in_use;               /* on world.stacks */
    struct loam_stack *next,
        *prev; /* world.stacks, under world.lock; records are reused, never freed */
};

/* A thread's note of a stack that it may own; see gc/roots.c. */
struct stack_ref {
    struct loam_stack *stack;
    struct stack_ref *next;
};

/* Fields are written by their own thread alone unless it says otherwise. */
struct m {
    struct mcache cache;

    _Atomic int busy;    /* in library code that a handshake must not interrupt */
    _Atomic int deep;    /* of these: sections that hold a lock or change the cache */
    _Atomic int at_gate; /* [fork.gate] so busy it waits there, inside nothing; 0: it does not */
    _Atomic uint32_t request; /* handshake asked for; written by its poster */
    _Atomic uint32_t ack;     /* handshake answered; also by who acts for the thread */
    _Atomic uint32_t stop;    /* world_stop asks for it; written by the stopper */
    _Atomic uint32_t state;   /* enum m_state; claimed and released by others too */
    _Atomic bool signaled;    /* a signal of ours is on its way */
    _Atomic uintptr_t ack_pc; /* m_context.pc of the last answer; written with ack */
    struct m_context context; /* valid while M_BLOCKED, M_CLAIMED, M_STOPPED */
    int blocking_depth;
    bool forks;      /* from the first to the last of fork's handlers */
    int exit_rounds; /* of pthread_setspecific's destructors, as the thread ends */

    _Atomic uint32_t hold; /* gc/phase.c */
    struct wbbuf wbbuf;
    struct gcwork work;
    int64_t assist_debt;    /* bytes of scan work owed; negative: credit */
    uint64_t stress_count;  /* allocations since gcstress last started a cycle */
    uint32_t stress_ticket; /* that cycle's number */

    int tid;
    uintptr_t tp; /* thread pointer, where its thread-local storage hangs */
    uintptr_t stack_low, stack_high;
    bool is_library; /* one of the library's own threads, which runs functions of the program */
    bool is_first;   /* the process's first thread, whose stack may grow below stack_low */
    struct stack_ref *stacks;
    struct loam_mstack
        *mstacks;     /* entered by it, or by the goroutine that it runs; sched/mstack.c */
    uint32_t scanned; /* the last cycle whose [H-SCAN] it has answered */
    /* sched/: not NULL, it runs goroutines; stack_low and stack_high are those of the one that runs. */
    struct worker *worker;
    struct trace_source trace;

    struct m *next, *prev; /* registry, under world.lock; free list */
    int64_t blocked_at;    /* in loam_enter_blocking; 0: not traced */

    /* Stretches in which the collector kept this thread from running; read by reporters. */
    _Atomic uint64_t pause_max_ns;  /* in this cycle; taken and reset by the collector */
    _Atomic uint64_t answer_max_ns; /* of these, of answers to handshakes */
    _Atomic uint64_t pause_total_ns;
    _Atomic uint64_t assist_ns;

    struct os_calls calls; /* observe/profile.c */
};

/* The calling thread's record, NULL: not attached. The only thread-local of the library. */
extern HIDDEN __thread struct m *m_self __attribute__((tls_model("initial-exec")));

/* Answer everything that is asked, as from within the library: registers are spilled. */
COLD void m_poll(struct m *m);

ALWAYS_INLINE bool m_asked(const struct m *m)
{
    /* acquire: pairs with the poster's release; the handshake's subject is seen. */
    return load_acq(&m->request) != load_rlx(&m->ack) || load_rlx(&m->stop) != 0;
}

/* How often m, the caller's own or one that cannot run, has entered. */
ALWAYS_INLINE int m_busy(const struct m *m)
{
    return load_rlx(&m->busy);
}
ALWAYS_INLINE int m_deep(const struct m *m)
{
    return load_rlx(&m->deep);
}

/* Of busy and deep, by their thread: what follows, or came before, stays inside. */
ALWAYS_INLINE void m_raise(_Atomic int *count)
{
    store_rlx(count, load_rlx(count) + 1); /* relaxed: for its own handlers, and see [fork.gate] */
    compiler_barrier();
}
ALWAYS_INLINE void m_lower(_Atomic int *count)
{
    store_rel(count, load_rlx(count) - 1); /* release: pairs with stands_outside */
    compiler_barrier();
}

/* Bracket for code that must not be interrupted by a handshake, takes no lock and leaves the cache
 * alone: a signal handler of the program that interrupts it may allocate as usual. Nests. */
ALWAYS_INLINE void m_enter_shallow(struct m *m)
{
    m_raise(&m->busy);
}
ALWAYS_INLINE void m_leave_shallow(struct m *m)
{
    m_lower(&m->busy);
    if (unlikely(m_busy(m) == 0 && m_asked(m))) {
        m_poll(m);
    }
}

/* [fork.gate] What a thread finds where it enters code that holds locks or changes the cache. */
enum gate {
    GATE_OPEN,
    GATE_WATCHED, /* open, but the system has no fence for all threads: who enters makes his own */
    GATE_SHUT,    /* a thread forks */
    GATE_BROKEN,  /* a thread forks, but others go in: */
    GATE_NO_HEAP, /* its child */
};
extern HIDDEN _Atomic uint32_t world_gate; /* enum gate */

/* For m, which is busy: wait while the gate is shut. */
COLD void m_pass_gate(struct m *m);

/* The same for code that holds locks or changes the cache. */
ALWAYS_INLINE void m_enter(struct m *m)
{
    m_enter_shallow(m);
    if (unlikely(load_rlx(&world_gate) != GATE_OPEN)) {
        m_pass_gate(m);
    }
    m_raise(&m->deep);
}
ALWAYS_INLINE void m_leave(struct m *m)
{
    m_lower(&m->deep);
    m_leave_shallow(m);
}

/* The calling thread's record, attaching it if need be; NULL: no memory (errno ENOMEM). */
COLD struct m *m_attach(void);
ALWAYS_INLINE struct m *m_get(void)
{
    struct m *m = m_self;
    return likely(m != NULL) ? m : m_attach();
}
void m_detach(void);

/* The thread promises to touch no heap memory until m_exit_blocking, its signal handlers neither. Nests.
 * Frames that are left while it blocks may hold registers of frames that are not: what lies below
 * frame_end, the FRAME_END of the outermost function that returns meanwhile, is kept in the context. */
void m_enter_blocking(struct m *m, uintptr_t frame_end);
/* Where the frame of the function that says it ends, the return address included. */
#define FRAME_END ((uintptr_t)__builtin_dwarf_cfa())
void m_exit_blocking(struct m *m);

/* The same for the library's own waits: signals are blocked meanwhile, so that the promise holds for
 * handlers of the program that know nothing of it. */
struct m_wait {
    uint64_t signals[16]; /* the mask to come back to */
};
void m_begin_wait(struct m *m, struct m_wait *w);
void m_end_wait(struct m *m, struct m_wait *w);

/* The same around what takes the loader's lock and touches no heap: no fork comes between, whose child would find that lock
 * taken for ever. */
void m_begin_walk(struct m *m, struct m_wait *w);
void m_end_walk(struct m *m, struct m_wait *w);

/* The object around addr. A slot that waits in this thread's cache is none; of a slot in another one's
 * cache that cannot be told. */
ALWAYS_INLINE bool m_find_object(uintptr_t addr, struct mspan **s, size_t *index)
{
    return heap_find_object(addr, s, index) &&
           !(m_self != NULL && mcache_holds(&m_self->cache, *s, addr));
}

/* A stretch in which the collector kept m from running. */
void m_count_pause(struct m *m, int64_t ns);

#endif
