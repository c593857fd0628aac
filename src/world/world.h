/* world.h - all attached threads: the registry, handshakes, and the real stop.
 *
 * A handshake runs one function once on behalf of every attached thread, by the thread itself at a
 * moment when it is not busy, or by the poster while the thread is blocked or stopped. Nobody waits
 * for anybody but the poster. What the functions do is the collector's affair.
 */
#ifndef WORLD_WORLD_H
#define WORLD_WORLD_H

#include "world/m.h"

typedef void handshake_fn(struct m *m, const struct m_context *ctx);

struct world {
    struct mutex lock; /* the registry: list of ms, phases as seen by attach, loam_stacks */
    struct m *ms;
    uint32_t nms;
    struct m *free_ms;
    struct loam_stack *stacks;      /* all of them */
    struct loam_stack *free_stacks; /* records to be reused */

    struct mutex handshake_lock; /* one handshake at a time */
    handshake_fn *fn;            /* of the handshake in progress; read after m->request */
    const char *name;            /* the same */
    int64_t posted_at;           /* the same; before the asking */
    _Atomic uint32_t seq;
    _Atomic uint32_t remaining; /* threads that have not yet answered */
    uint64_t stores_generation;

    struct mutex stop_lock;   /* one stop at a time; held while the world is stopped */
    _Atomic uint32_t stopped; /* ms that wait in a stop; futex */
    struct m *stopper;        /* the m that stopped the world, or NULL */
    _Atomic bool is_stopped;

    struct mutex fork_lock;      /* one fork at a time */
    _Atomic uint32_t lib_active; /* the library's own threads that run now */
    _Atomic uint32_t fork_pending;
    bool forked;                /* a child: its first thread may have any stack */
    _Atomic bool started;       /* world_init is done */
    _Atomic int forker;         /* while the gate is shut: its tid */
    _Atomic uint32_t strangers; /* threads that attach, or start the library */
    uint32_t gate_at_rest;      /* GATE_OPEN, or GATE_WATCHED */

    /* Hooks of the layers below, set once at start. */
    void (*attach)(struct m *m); /* under world.lock: take the present phase */
    void (*detach)(struct m *m); /* under world.lock: hand over what it holds */
    /* In the child, single-threaded, other ms still listed; the heap is whole, or not to be touched. */
    void (*fork_child)(bool whole);
    void (*delay)(int rarity); /* gcstress: a random delay at a protocol point, or NULL */

    _Atomic uint64_t handshake_max_ns; /* longest from posting to the last answer, this cycle */
    struct histogram handshakes;       /* from posting to the last answer */
    struct histogram answers;          /* as a thread's processor time, or stop */
    struct histogram pauses;           /* of all kinds: m_count_pause */
    _Atomic uint64_t answer_cpu_ns;    /* processor time of all answers */
    int signo;                         /* of the handshake; fixed at first use */
};

extern HIDDEN struct world world;

/* Before the first attach. False: the signal could not be installed. */
bool world_init(void);

/* Is the handshake's handler still ours? Reinstalls it, and says so, where the program replaced it. */
void world_check_signal(void);

/* Run fn for every attached thread; returns when all have answered. `posting` (or NULL) runs under
 * world.lock in the same critical section that asks the threads: phases that attach reads change there.
 * `name`, a literal, is for the trace. */
void world_handshake(handshake_fn *fn, void (*posting)(void), const char *name);

/* Stop every attached thread but the caller's own, at a moment when it is not busy; and start them.
 * While stopped, world_handshake acts for all. */
void world_stop(void);
void world_start(void);

/* No fork, and the library's own threads at their safepoints, from one to the other: what they change is whole. m, or NULL:
 * the caller's, not busy; it waits as blocked. */
void world_hold(struct m *m);
void world_let_go(void);

/* For a thread that has just waited for ns, perhaps for what a fork holds up: breaks the gate ([fork.gate]) when it was
 * shut for five seconds of that. */
void world_mind_fork(int64_t *waited, int64_t ns);

/* [fork.gate] for threads that are not attached. */
void world_enter_stranger(void);
void world_leave_stranger(void);

/* The library's own threads bracket their running by these, and call world_safepoint where they hold
 * no lock and their state is whole: fork waits for that. */
void world_lib_resume(void);
void world_lib_pause(void);
ALWAYS_INLINE void world_safepoint(void)
{
    /* Not while they themselves have the world stopped: who forks is stopped too, and comes later. */
    /* relaxed: a hint; pause and resume order what matters */
    if (unlikely(load_rlx(&world.fork_pending) != 0) && !load_rlx(&world.is_stopped)) {
        world_lib_pause();
        world_lib_resume();
    }
}

/* How seldom, a power of two, a point is delayed: a store comes more often than a handshake. */
enum { DELAY_STEP = 2, DELAY_SHADE = 5, DELAY_STORE = 9 };

/* Delay at a protocol point under gcstress. Async-signal-safe. */
ALWAYS_INLINE void world_delay(int rarity)
{
    if (unlikely(world.delay != NULL)) {
        world.delay(rarity);
    }
}

#endif
