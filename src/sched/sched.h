/* sched.h - goroutines (G), the threads that run them (M, here `worker`), and the right to run one (P).
 *
 *   sched.c    a goroutine's life, parking             runq.c     queues
 *   worker.c   threads, and what they do without work  monitor.c  who does not come back
 *   stack.c    stacks                         sleeper.c  those that nobody has used for long
 *   mstack.c   managed stacks, for interpreters
 *   chan.c     channels and select            sync.c   wait groups and mutexes
 *   timer.c    sleeping                       netpoll.c  descriptors
 *   gscan.c    what the collector does with goroutines
 *   report.c   what each goroutine does, for people
 *
 * A function that says MAY_SWITCH may come back on another thread: what was read from m_self before is stale.
 */
#ifndef SCHED_SCHED_H
#define SCHED_SCHED_H

#include "gc/walk.h"
#include "malloc/malloc.h"
#include "world/probe.h"

enum {
    RUNQ_SLOTS = 256, /* Go's */
    GFREE_MOST = 64,  /* ended goroutines that a P keeps, Go's */
    NAME_BYTES = 32,
};

enum g_status {
    G_DEAD,    /* ended, or not yet started: on a free list */
    G_PARKED,  /* waits, or is in a queue; its registers lie at sp */
    G_RUNNING, /* on a worker, or on its way from or to one */
    G_CLAIMED, /* as G_PARKED or G_DEAD, and the collector or a report looks at its stack */
};

/* A goroutine. Never freed; fields are written by itself, or by who has it while it is parked. */
struct g {
    uintptr_t sp;                    /* while parked */
    uintptr_t stack_low, stack_high; /* [guard.. low, high) */
    _Atomic uint32_t status;         /* enum g_status */
    _Atomic uint32_t scanned; /* the last cycle that found it parked, and scanned its stack */
    struct g *next;           /* in the queue or the free list that it is on */
    void (*fn)(void *arg);
    _Atomic uintptr_t arg; /* until it starts: a root */
    struct run_call *run;  /* who waits for its end; NULL: nobody */
    uint64_t id;
    _Atomic(const char *) why; /* what it waits for; NULL: for a processor */
    int64_t deadline;          /* of its timer; under timers.lock */
    struct waiter *timed;      /* what the timer decides; NULL: it alone wakes the goroutine */
    uint32_t timer;       /* its place in the heap of timers, from 1; 0: none; under timers.lock */
    uint32_t stack_pages; /* [stack.count] */
    uint8_t stack_class;
    uint8_t dead_cycles; /* ends of cycles since it ended */
    int64_t ready_at;    /* when it was readied, of some; 0: of the others */
    bool ran;            /* since its stack was last looked at for what is not used any more */
    bool cold;           /* dead: its stack has no memory */
    _Atomic uint8_t parked_cycles; /* since it last ran or was touched; whoever has claimed it */
    struct slept *slept;           /* NULL: awake; see [sleep.owner] */
    struct loam_mstack *mstacks;   /* that it has entered, while it is parked */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    void *fiber; /* the sanitizer's; of ASan the fake stack */
#endif
    char name[NAME_BYTES];
};

struct gqueue {
    struct g *head, *tail;
    uint32_t n;
};

/* The right to run goroutines: GOMAXPROCS of them. Fields without a word: of the worker that owns it, while it is busy. */
struct p {
    _Atomic uint32_t head;    /* of ring: owner and thieves take */
    _Atomic uint32_t tail;    /* the owner puts */
    _Atomic(struct g *) next; /* runs before the ring; thieves take it late */
    _Atomic(struct g *) ring[RUNQ_SLOTS];

    _Atomic(struct worker *) owner; /* NULL: idle; see [p.retake] in sched.c */
    _Atomic bool retake;            /* the monitor decides whether to take it */
    _Atomic bool preempt;           /* its goroutine has run for long: it yields at its next call */
    struct mutex retake_lock;
    _Atomic uint32_t tick; /* goroutines it has run */
    uint32_t id;
    bool retired;        /* not among GOMAXPROCS; under sched.lock */
    struct p *idle_next; /* under sched.lock */
    uint64_t rng;
    struct g *free;
    uint32_t nfree;

    /* The monitor's. */
    uint32_t seen_tick;
    int64_t seen_at;
    bool seen_blocked;
} CACHE_ALIGNED;

/* A thread that runs goroutines. Its own stack is that of g0, where the scheduler runs when it has none. */
struct worker {
    struct m *m;
    struct p *p; /* NULL: it has lost it, or is idle */
    struct g *g; /* NULL: on its own stack */
    struct g g0;
    /* What is to be done on the next stack, once the one that is left can be used by others. */
    struct g *left;
    void (*after)(struct g *left, void *arg);
    void *after_arg;
    _Atomic bool in_call;     /* its goroutine waits in a call of the system */
    bool spinning;            /* looks for work in others' queues, counted in sched.spinning */
    _Atomic uint32_t wake;    /* futex: 1: it has been given a P, or work */
    struct worker *idle_next; /* under sched.lock */
    int64_t since;            /* g runs; 0: not known, it was not traced */
};

struct sched {
    struct mutex lock; /* what follows up to a blank line */
    struct gqueue global;
    _Atomic(struct g *) free; /* ended goroutines beyond what Ps keep */
    struct p *idle_ps;
    struct worker *idle_workers;
    uint32_t nworkers, nidle_workers;
    uint32_t starting; /* workers that the monitor makes, and that are not there yet */

    _Atomic uint32_t nglobal; /* global.n, for who has no lock */
    _Atomic uint32_t nidle_ps;
    _Atomic uint32_t spinning;
    _Atomic uint64_t ngs; /* that have not ended */
    _Atomic uint64_t next_id;
    _Atomic uint32_t waiting_threads; /* plain threads that wait for goroutines */
    struct p *ps;
    int max_ps;             /* entries of ps */
    _Atomic int procs;      /* of these in use */
    _Atomic int most_procs; /* the most there ever were: the others may still have a queue */
    _Atomic bool started;
    _Atomic bool polling;       /* a worker waits in the poll, or for the next timer */
    _Atomic int64_t poll_until; /* and until then; INT64_MAX: without end */
    _Atomic int64_t polled_at;
    _Atomic bool in_hand; /* the monitor takes goroutines from timers and descriptors to a queue */
    struct histogram latencies; /* from being readied to running, of some */
    uint64_t mask[16];          /* signals of a worker */
};

extern HIDDEN struct sched sched;

/* -- sched.c ----------------------------------------------------------------------------------- */

/* The library's part of a call: from sched_enter to sched_leave m is busy. */
struct m *sched_m(void);           /* the calling thread's, read anew; NULL: not attached */
struct worker *sched_worker(void); /* the same; NULL: a plain thread */

enum sched_call { SCHED_STAYS, SCHED_PARKS };
/* NULL and errno: memory. For SCHED_PARKS: MAY_SWITCH, so that a worker has a P. */
struct m *sched_enter(enum sched_call call);
/* For SCHED_PARKS: MAY_SWITCH, if the slice of the goroutine is over. */
void sched_leave(enum sched_call call);

/* Who waits: a goroutine, or a plain thread in a futex. Lies on its stack. */
struct waiter {
    struct g *g;
    bool counted; /* a thread of the program, in sched.waiting_threads */
    _Atomic uint32_t woken;
    _Atomic uint32_t decided; /* where several may wake it: WAITER_..., by the first; 0: none yet */
};
enum { WAITER_CHOSEN = 1, WAITER_LATE };
void waiter_init(struct waiter *w);
/* Busy. Leave the processor until waiter_wake. after(g, arg) runs as soon as others may wake it (g NULL: a thread).
 * MAY_SWITCH; still busy. */
void waiter_park(struct waiter *w, void (*after)(struct g *g, void *arg), void *arg,
                 const char *why);
void waiter_wake(struct waiter *w); /* busy; no lock that who wakes may want */

/* Busy. Leave `from` for `to`, which is claimed; back when somebody switches to `from`. MAY_SWITCH */
void sched_switch_to(struct worker *w, struct g *from, struct g *to, bool for_good);
/* g is in no queue any more. false: it is not yet parked, or the collector looks at its stack just now. */
bool sched_claim_to_run(struct worker *w, struct g *g);

/* g was made ready by m's thread, or (NULL) by the monitor. */
ALWAYS_INLINE void sched_trace_ready(struct m *m, const struct g *g)
{
    PROBE1(goroutine_ready, g->id);
    trace_now(m != NULL ? &m->trace : &trace.library[TRACE_MONITOR], TRACE_READY, g->id, 0);
}

/* [p.retake] Does w, which is busy, still have its P? */
ALWAYS_INLINE void sched_look_at_p(struct worker *w)
{
    struct p *p = w->p;
    if (p == NULL) {
        return;
    }
    if (unlikely(load_rlx(&p->retake))) { /* relaxed: see [p.retake] */
        mutex_lock(&p->retake_lock);
        mutex_unlock(&p->retake_lock);
    }
    if (unlikely(load_acq(&p->owner) != w)) { /* acquire: pairs with take_p */
        w->p = NULL;
    }
}

void sched_set_procs(struct m *m, int n); /* not busy; GOMAXPROCS has changed */
void sched_fork_child(struct m *self);
bool sched_start(void); /* false and errno */
_Noreturn COLD void sched_misuse(const char *what);

enum { LATENCY_TICKS = 64 }; /* of so many one is timed: a look at the clock is half of a switch */
enum { FAIR_TICKS = 61 };    /* Go's: so often the global queue comes first */

/* -- worker.c ---------------------------------------------------------------------------------- */
void worker_main(void *arg);
void worker_start_failed(void);
void sched_ready(struct g *g);               /* busy */
void sched_ready_list(struct gqueue *ready); /* the same of several; not a worker's, perhaps */
void sched_poke_poller(int64_t when); /* there is something to wait for no longer than `when` */
void sched_poll_and_timers(struct gqueue *ready);
bool sched_acquire_p(struct worker *w); /* an idle one */
void sched_wake_p(void);                /* there may be work for one more. [idle.last] */
void sched_spin_in_vain(bool no_p);
bool sched_any_work(void);  /* in any queue */
bool sched_any_waits(void); /* for a time or a descriptor */
/* Under sched.lock. One worker that sleeps gets P, and looks for work; false: none sleeps. */
bool sched_hand_over_locked(struct p *p, bool spinning);
/* The same with an idle P; *p is NULL if there is none. */
bool sched_hand_idle_over_locked(struct p **p, bool spinning);
void sched_give_idle_p_locked(struct p *p); /* or it retires, and its queue is the global one's */
void sched_retire_idle_ps_locked(void);     /* GOMAXPROCS was lowered */
void gfree_put_locked(struct g *g);         /* ended goroutines beyond what Ps keep */
struct g *gfree_take_locked(void);

/* -- monitor.c --------------------------------------------------------------------------------- */
void monitor_main(void *arg);
void monitor_p_taken(void); /* a P that was idle is in use */
void monitor_want_worker(void);
void monitor_worker_refused(void);
void monitor_worker_runs(void);
void sched_thread_ended(struct m *m); /* under world.lock, at any moment */
void monitor_fork_child(void);

ALWAYS_INLINE void gqueue_put(struct gqueue *q, struct g *g)
{
    g->next = NULL;
    if (q->tail != NULL) {
        q->tail->next = g;
    } else {
        q->head = g;
    }
    q->tail = g;
    q->n++;
}

ALWAYS_INLINE struct g *gqueue_take(struct gqueue *q)
{
    struct g *g = q->head;
    if (g != NULL) {
        q->head = g->next;
        q->tail = q->head == NULL ? NULL : q->tail;
        q->n--;
    }
    return g;
}

/* -- stack.c ----------------------------------------------------------------------------------- */
enum { STACK_DEFAULT_CLASS = 2 };                   /* 256 KiB */
bool stack_class_for(size_t bytes, uint8_t *class); /* false: too much */
size_t stack_default_bytes(void);
bool stack_alloc(struct g *g, uint8_t class); /* false: no memory or addresses */
void stack_free(struct g *g);
void stack_discard(struct g *g); /* all of it, it is not in use */
/* g is claimed, its stack is live from sp on: how much has memory; of more than four times that, what is not used goes back. */
void stack_look(struct g *g, uintptr_t sp);
void stack_count(struct g *g, size_t pages); /* so many have memory now */
bool stack_guards(const struct g *g, uintptr_t addr);
enum { STACK_CHUNKS_MAX = 1 << 14 };
/* Of an address within a stack that is no run of chunks: its chunk, the number of its slot there, the slot. */
uint32_t stack_chunk(uintptr_t addr);
bool stack_is_one(uintptr_t addr); /* is it within the stacks at all? */
uint32_t stack_slot_at(uintptr_t addr);
size_t stack_slot_bytes(uintptr_t addr, uintptr_t *at);
uint32_t stack_slots_of(uint32_t chunk); /* 0: a part of a larger stack */

/* -- mstack.c ---------------------------------------------------------------------------------- */
void mstack_scan_entered(struct gcwork *w, struct loam_mstack *first);
void mstack_leave_all(struct m *m); /* busy */
void mstack_fork_child(struct loam_mstack **first);
/* In a frozen copy of the process: fn(arg, where, word) for each stack that is entered, where 0, or for each word that one
 * holds, of its frames too. */
void mstack_each_entered(struct loam_mstack *first, walk_fn *fn, void *arg);
void mstack_each_word(const struct loam_mstack *s, walk_fn *fn, void *arg);

/* -- sleeper.c --------------------------------------------------------------------------------- */
void sleeper_wake(struct g *g); /* g->slept is there, and g about to run */
/* Before the library touches what lies on the stack of one who waits: without it the pager's thread would be asked. */
extern HIDDEN _Atomic uint64_t sleeper_asleep; /* stacks */
void sleeper_touch_slow(const void *at);
ALWAYS_INLINE void sleeper_touch(const void *at)
{
    if (unlikely(load_rlx(&sleeper_asleep) != 0)) { /* relaxed: the fault would find it too */
        sleeper_touch_slow(at);
    }
}
/* The collector. g is claimed: one more cycle in which it has not run; its live bytes, if they are not on its stack. */
void sleeper_count(struct g *g);
bool sleeper_scan(struct gcwork *w, const struct g *g);
bool sleeper_step(void); /* between cycles; true: there is more to do */
void sleeper_fork_child(void);
/* In a frozen copy of the process, where nothing is watched: what is on g's stack; false: it is awake. */
bool sleeper_each_word(const struct g *g, walk_fn *fn, void *arg);

/* -- timer.c ----------------------------------------------------------------------------------- */
/* Busy. Wake g at deadline unless it is stopped before. False: no memory. */
bool timer_start(struct g *g, int64_t deadline);
bool timer_stop(struct g *g); /* true: it has not fired, and does not */
bool timers_take(struct gqueue *ready, int64_t now);
int64_t timers_next(void); /* INT64_MAX: none */
void timers_fork_child(void);

/* -- netpoll.c --------------------------------------------------------------------------------- */
uint32_t netpoll_waiters(void);
int netpoll_open(void); /* 0, or an errno value */
enum { NETPOLL_EVENTS = 128 };
struct netpoll_events {
    struct os_poll_event event[NETPOLL_EVENTS];
    int n;
};
void netpoll_wait(struct netpoll_events *events, int64_t ns); /* who waits is not yet woken */
void netpoll_take(struct gqueue *ready, const struct netpoll_events *events);
void netpoll_fork_child(void);

/* -- gscan.c ----------------------------------------------------------------------------------- */
struct g *allg_new(void);           /* registered; NULL: no memory */
struct g *allg_get(uint32_t index); /* below allg_count */
uint32_t allg_count(void);
/* g is about to run: its stack, if a cycle still wants it. */
void gscan_resume(struct m *m, struct g *g);
void gscan_born(struct m *m, struct g *g, uintptr_t arg); /* not yet parked */
bool gscan_claim(struct g *g, uint32_t from); /* [gscan.claim]; false: it is not `from` now */
void gscan_unclaim(struct g *g);              /* it was parked */
void gscan_init(void);
/* In a frozen copy of the process: what a goroutine that is parked holds. */
bool gscan_is_parked(const struct g *g);
void gscan_each_root(const struct g *g, root_fn *fn, void *arg);
void gscan_fork_child(void);

/* -- report.c ---------------------------------------------------------------------------------- */
/* What the goroutine at an index of allg_get does, and where it was parked: return addresses, the innermost first. False: it has
 * ended, or somebody else has had it in hand for 10 ms. */
enum { GOROUTINE_FRAMES = 64 };
struct goroutine_look {
    const char *why; /* lives for ever */
    void *pcs[GOROUTINE_FRAMES];
    size_t n; /* 0: it runs, or has no room for a look */
};
bool report_look(uint32_t index, struct goroutine_look *look);
/* Busy, or the monitor. Ends the process when nothing can go on any more. */
void report_if_stuck(void);
void report_init(void); /* crashes name the goroutine */

#endif
