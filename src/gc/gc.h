/* gc.h - the collector's state, as its files share it.
 *
 *   cycle.c    the steps of a cycle, the collector's thread, triggers
 *   phase.c    the phase, held still
 *   work.c     spans that wait to be scanned
 *   mark.c     marking a word, scanning a span           scan.c  the kernels
 *   roots.c    data, registered ranges, pins, stacks
 *   barrier.c  stores while a cycle runs
 *   assist.c   allocators pay in marking                 pacer.c when, and how much
 *   sweep.c    unmarked slots become free
 *   ends.c     finalizers, cleanups, weak pointers, ephemerons
 *   checkmark.c  a second marker that finds what the first one missed
 *   walk.c     the words of an object, for who looks at the heap
 */
#ifndef GC_GC_H
#define GC_GC_H

#include "gc/pacer.h"
#include "world/world.h"

/* docs/internals/protocol.md names the steps. */
enum gc_phase {
    GC_OFF,   /* sweeping, or nothing to do */
    GC_ON,    /* [H-ON] posted: barrier on */
    GC_BLACK, /* [H-BLACK] posted: allocation turns black */
    GC_MARK,  /* all allocate black: [roots], [H-SCAN], marking; assists run */
    GC_END,   /* [mark-done]: nothing white is reachable; until the [flip] */
};

struct gc_options {
    int stress; /* GODEBUG gcstress: a cycle every so many allocations; 0: off */
    int trace;  /* gctrace */
    int pacer_trace;
    int scavenge_trace;
    bool checkmark;
    bool stop_the_world;
    bool clobber_free;
    bool disable_thp;
    bool mstack_move; /* mstackmove: managed stacks move at each push */
    int stack_sleep; /* stacksleep: cycles that a goroutine is parked until its stack sleeps; 0: never */
    _Atomic int max_procs;
};

struct gc {
    _Atomic uint32_t
        phase; /* changed under world.lock, or by the collector where nobody decides on it */
    _Atomic bool black;       /* a thread that attaches allocates black; under world.lock */
    bool scan_posted;         /* [H-SCAN] of this cycle; under world.lock */
    _Atomic uint32_t dirty;   /* somebody marked since the round began */
    _Atomic bool marks_stale; /* a fork cut a cycle short: clear all marks before the next one */

    /* work.c */
    _Atomic uint64_t batches[2]; /* the global queue; heads: tag << 32 | page number + 1 */
    _Atomic uint64_t large;      /* the same of large objects, which go before all others */
    _Atomic uint32_t drawn;      /* times they changed places: odd, [1] is taken from */
    _Atomic uint32_t work_seq;   /* futex: batches were pushed */
    _Atomic uint32_t sleepers;
    _Atomic uint32_t draining;      /* markers that hold local work */
    _Atomic bool paused;            /* a round is on: nobody drains */
    _Atomic bool quiet;             /* the cycle is due by the clock alone: no helper is woken */
    _Atomic(struct special *) keys; /* ephemerons whose key was marked; ends.c */

    /* counts of the cycle that runs or ran last */
    _Atomic uint64_t bytes_marked; /* marked, or allocated black */
    _Atomic uint64_t scan_work;    /* bytes scanned: heap, stacks, roots */
    _Atomic uint64_t stack_scan;
    _Atomic uint64_t globals_scan;
    _Atomic int64_t bg_credit;   /* scan work done in the background that assists may take */
    _Atomic int64_t assist_time; /* ns */
    _Atomic int64_t worker_time, idle_time;
    _Atomic uint64_t pause_max;   /* of threads that ended in this cycle; under world.lock */
    _Atomic uint64_t answer_max;  /* the same */
    _Atomic uint64_t pause_total; /* of threads that ended ever; under world.lock */

    /* heap size */
    _Atomic uint64_t live;     /* bytes allocated and not known to be dead, and external */
    uint64_t external_marked;  /* of the last cycle's marked bytes; under pacer_lock */
    _Atomic uint64_t external; /* bytes outside of the heap that objects own */
    _Atomic uint64_t trigger;  /* a cycle starts when live reaches it; UINT64_MAX: off */
    struct mutex pacer_lock;
    struct pacer pacer; /* changed under pacer_lock; allocators read atomics in it */

    /* sweep.c */
    _Atomic uint32_t sweep_cursor; /* span class the background sweeper stands at */
    _Atomic bool sweep_done;
    _Atomic uint64_t pages_swept;
    _Atomic uint64_t sweep_basis; /* live at the [flip] */
    _Atomic uint64_t sweep_pages_per_mib;

    /* cycle.c */
    int64_t period_ns;         /* a cycle is forced after so long without one */
    _Atomic int64_t last_end;  /* of the last cycle; 0: none yet */
    struct mutex cycle_lock;   /* one cycle at a time */
    _Atomic uint32_t started;  /* cycles begun */
    _Atomic uint32_t finished; /* cycles swept to the end; futex */
    _Atomic uint32_t forced;   /* cycles up to this number were asked for */
    _Atomic uint32_t asked;    /* the same, by the program itself */
    _Atomic uint32_t progress; /* steps taken; futex of allocators over the goal */
    _Atomic uint32_t progress_waiters;
    _Atomic uint32_t wakeups; /* futex of the collector's thread */
    _Atomic uint32_t waiters; /* threads in loam_gc */
    _Atomic bool running;     /* the collector's thread exists */
    _Atomic bool limit_auto;  /* GOMEMLIMIT=auto, and the program has not set another limit */
    _Atomic bool limiting;    /* the CPU limiter: nobody is asked to help */
    _Atomic uint32_t num_forced;
    _Atomic int gc_percent;
    _Atomic uint64_t limit_looked; /* live heap when the goal was last set by the memory limit */
    struct pacer_limiter limiter;  /* changed under pacer_lock */
    struct gc_options options;

    _Atomic uintptr_t oom_arg[2]; /* roots: arguments of the out-of-memory handlers */

    /* Hooks of sched/, NULL until it is used, which may be amid a cycle. After [H-SCAN]: the stacks of goroutines that are
     * parked; fork's child, whose only thread is `self`; m ends (under world.lock). */
    void (*_Atomic walk_goroutines)(struct gcwork *w);
    void (*_Atomic goroutines_fork_child)(struct m *self);
    void (*_Atomic thread_ended)(struct m *m);
    bool (*_Atomic rest_goroutines)(void); /* between cycles, a step; true: there is more to do */

    /* The same of managed stacks, for m with m->mstacks: [H-SCAN]; m ends, and the phase holds still; the library's own
     * thread, m, halves one of small_stacks, or finds none. */
    void (*_Atomic scan_managed)(struct m *m);
    void (*_Atomic leave_managed)(struct m *m, uint32_t phase);
    bool (*_Atomic halve_managed)(struct m *m);
    _Atomic(const struct gctype *) managed_type; /* of managed stacks, once there are any */
    _Atomic(struct loam_mstack *) small_stacks;  /* that the last cycle found: [mstack.small] */

    /* Hooks of observe/: the library has started; a cycle has ended. */
    void (*at_start)(void);
    void (*cycle_ended)(void);
    struct gc_cycle_stats {
        uint32_t number;
        bool forced;
        int64_t begin, mark_begin, mark_end, given_back, end; /* ns */
        int64_t last_walltime;                                /* end of mark on the wall clock */
        int64_t handshake_ns;   /* longest from asking to the last answer */
        uint64_t pause_max_ns;  /* longest stretch a thread was kept from running */
        uint64_t answer_max_ns; /* of these, longest answer to a handshake, or stop */
        uint64_t live_begin, live_end, marked, goal, trigger;
        uint64_t stack_scan, globals_scan;
        uint64_t inuse_end; /* bytes of spans at the end of marking: the most in the cycle */
        int64_t assist_ns, worker_ns, idle_ns;
        uint32_t rounds;
    } last;
    struct gc_cpu { /* ns of processors' time since the start, or the fork that made this process */
        _Atomic int64_t assist, dedicated, idle; /* of cycles that have ended */
        int64_t limiter_used, limiter_all;       /* as accounted last; the collector's thread */
        /* Under pacer_lock: what GOMAXPROCS processors could do, until there_at; what was reported last, and does not fall. */
        int64_t there, there_at, user_told, unused_told;
        int there_procs;
    } cpu;
    struct histogram assists;           /* marking stretches of allocators */
    struct histogram waits;             /* of allocators, for a cycle to get on */
    _Atomic uint32_t limited;           /* the last cycle with the CPU limiter on; 0: none */
    _Atomic int64_t scavenge_assist_ns; /* of allocators, for the memory limit */
    _Atomic int64_t scavenge_ns;        /* in the background */
    _Atomic uint64_t scavenged_bg, scavenged_eager; /* bytes given back since the start */
};

extern HIDDEN struct gc gc;

/* cycle.c */
bool gc_init(void);
void gc_collect(struct m *m);      /* loam_gc */
void gc_start_if_due(struct m *m); /* after an allocation grew the heap; not busy */
bool gc_is_due(void);
void gc_start_collector(void);
void gc_wake(void);
void gc_ask(void);           /* a whole cycle, soon; nobody waits for it */
void gc_stress(struct m *m); /* as many allocations as GODEBUG gcstress says were made */
int64_t gc_wait_progress(struct m *m, int64_t most_ns); /* for the cycle to get on; how long */
void gc_count_wait(struct m *m, int64_t ns);            /* what one allocation waited in all */
void gc_stop_world(void);                               /* ended by world_start */
/* Before an allocation fails, tries times tried again: false, nothing to hope for. */
bool gc_emergency(struct m *m, int tries);
void gc_count_external(struct m *m, int64_t delta); /* busy */

/* goal.c; the settings give the old value */
int gc_set_percent(struct m *m, int percent);
int64_t gc_set_min_heap(struct m *m, int64_t bytes);
int64_t gc_set_memory_limit(struct m *m, int64_t bytes); /* INT64_MAX: none */
double gc_set_cpu_limit(struct m *m, double share);
void gc_commit_goal(void);
void gc_read_container(void);           /* GOMEMLIMIT=auto: what the limit is now */
uint64_t gc_must_stay(uint64_t marked); /* bytes, of what counts for the memory limit */
void gc_follow_limit(struct m *m);      /* the heap has grown; not busy */
void gc_account_limiter(int64_t used_ns);
int64_t gc_count_processors(void); /* GOMAXPROCS has changed, or is asked for: ns there were */

/* Live bytes that go before the next cycle finds out; never below zero. */
ALWAYS_INLINE void gc_live_sub(uint64_t bytes)
{
    uint64_t live = load_rlx(&gc.live); /* relaxed: an estimate that every cycle sets right */
    while (!cas_rlx(&gc.live, &live, live > bytes ? live - bytes : 0)) {
    }
}

/* options.c: GOGC, GODEBUG, GOMAXPROCS, once. What cannot be parsed is named on stderr and ignored. */
void gc_options_read(void);

ALWAYS_INLINE bool gc_phase_marks(uint32_t phase)
{
    return phase != GC_OFF && phase != GC_END;
}

/* phase.c. Busy from holding to releasing; may be held already, below a handler of the program. */
struct phase_hold {
    /* GC_OFF is not held: it may become GC_ON, and nothing later, since that waits for an answer. */
    uint32_t phase;
    bool entered;
};
struct phase_hold gc_hold_phase(struct m *m);
void gc_release_phase(struct m *m, struct phase_hold h);
/* The collector: nobody holds the phase until it is opened; world.lock is held meanwhile. */
void gc_close_phase(void);
void gc_open_phase(void);
void gc_close_phase_locked(void); /* under world.lock */
void gc_open_phase_locked(void);

/* barrier.c */
void gc_store(struct m *m, void *slot, uintptr_t value); /* any time; one word */
uintptr_t gc_exchange(struct m *m, void *slot, uintptr_t value);
bool gc_compare_exchange(struct m *m, void *slot, void *expected, uintptr_t desired);
void gc_store_as(struct m *m, void *slot, uintptr_t word, uintptr_t old, uintptr_t now);
void gc_copy(struct m *m, void *dst, const void *src, size_t bytes);
void gc_clear(struct m *m, void *dst, size_t bytes);
void gc_record(struct m *m, uintptr_t old, uintptr_t now); /* busy, flag set: shade both, later */
void gc_flush_wbbuf(struct m *m); /* no [mark-done] meanwhile: an answer, or the phase is held */
void gc_shade(struct m *m, uintptr_t word); /* busy; mark at once, if a cycle marks */

/* roots.c */
void gc_mark_roots(struct gcwork *w);
void gc_scan_thread(struct m *m, const struct m_context *ctx);    /* [H-SCAN] */
void gc_restart_stores(struct m *m, const struct m_context *ctx); /* [H-ON] */
void gc_scan_stacks(struct m *m); /* its loam_stacks, when it ends */
int gc_add_roots(struct m *m, uintptr_t start, size_t bytes);
int gc_remove_roots(struct m *m, uintptr_t start, size_t bytes);
bool gc_pin(struct m *m, uintptr_t obj);
bool gc_unpin(struct m *m, uintptr_t obj);
struct loam_stack *gc_stack_add(struct m *m, uintptr_t start, size_t bytes, void *const *top);
int gc_stack_set(struct m *m, struct loam_stack *s, uintptr_t live, size_t bytes);
void gc_stack_remove(struct m *m, struct loam_stack *s);
/* A word outside of the heap that counts as a pointer, and where it is. */
enum root_kind {
    ROOT_DATA,
    ROOT_RANGE, /* registered */
    ROOT_PIN,
    ROOT_HANDLER, /* argument of an out-of-memory handler */
    ROOT_STACK,
    ROOT_REGISTER,
    ROOT_TLS,
    ROOT_ARGUMENT, /* of a goroutine that has not begun */
    ROOT_MSTACK,   /* a managed stack that somebody has entered */
};
struct root {
    enum root_kind kind;
    uintptr_t start; /* of the range, or of the live part of the stack, around it; else 0 */
    uintptr_t where; /* its address; of a register the number; 0: it has none */
    uintptr_t word;
};
typedef void root_fn(void *arg, const struct root *r);
/* Those that belong to no thread. World stopped, or a frozen copy. */
void gc_each_root(root_fn *fn, void *arg);
/* Those of m, which stands still where ctx says; NULL: it runs, nobody knows where. A frozen copy. */
void gc_each_thread_root(struct m *m, const struct m_context *ctx, root_fn *fn, void *arg);
void gc_roots_fork_child(void);

/* pressure.c */
bool gc_pressure_add(struct m *m, void (*fn)(loam_pressure level, void *arg), void *arg);
bool gc_pressure_remove(struct m *m, void (*fn)(loam_pressure level, void *arg), void *arg);
void gc_pressure_cycle_ended(uint64_t must_stay);
bool gc_pressure_tell(
    struct m *m); /* the library's own thread, not busy; false: there was nothing to tell */
bool gc_pressure_ask(
    struct m *m); /* memory is out: handlers have run, or a second has passed; false: none */
void gc_pressure_fork_child(void);

/* assist.c */
void gc_assist(struct m *m, size_t bytes);

/* sweep.c */
bool gc_sweep_span(struct mspan *s, bool keep);
bool gc_sweep_one(void);        /* false: nothing left that waits */
void gc_sweep_finish(void);     /* the collector: all of it */
void gc_sweep_pay(struct m *m); /* proportional sweeping before an allocation */
void gc_sweep_began(void);

/* scavenge.c */
void gc_scavenge_all(struct m *m); /* every free page back to the system */
void gc_scavenge_wake(void);       /* pages were freed: perhaps they are not needed */
void gc_scavenge_pay(struct m *m,
                     size_t bytes); /* after an allocation that led beyond the memory limit */
void gc_scavenge_cycle_ended(uint64_t most_in_use);
int64_t gc_scavenge_step(void); /* the collector's thread; ns until the next step, -1: none */
void gc_scavenge_fork_child(void);

/* checkmark.c: world stopped, mark done. Aborts with a report when a reachable object is unmarked. */
void gc_checkmark(void);

#endif
