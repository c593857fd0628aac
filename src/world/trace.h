/* trace.h - what threads do, noted in rings for the execution trace. Off, a point costs a load and a branch.
 *
 * Model       Each thread has a ring of its own, into which it and its signal handlers put events; one reader
 *             (observe/trace.c) takes them out. Where a ring is full an event is dropped, and counted.
 *             Who is not attached (the library's own threads) has a source in trace.library.
 * Invariants  [trace.slot]   a slot is taken by one instruction that a handler cannot divide, so that a handler which
 *                            interrupts an event puts its own behind it. A slot that is taken is filled in the end:
 *                            the reader waits for it, and takes them in order.
 *             [trace.owner]  a ring belongs to one source until its thread has ended; switching off takes only the
 *                            pointer by which it is reached, so who is about to fill a slot may go on.
 */
#ifndef WORLD_TRACE_H
#define WORLD_TRACE_H

#include "os/os.h"

enum {
    TRACE_SLOTS = 4096, /* a power of two: 160 KiB */
    TRACE_HELPERS = 63, /* threads that mark beside the collector */
};

/* What a and b are stands behind each. observe/trace_json.c has the names. */
enum trace_kind {
    TRACE_CYCLE, /* number; 1: the program asked for it */
    TRACE_BEGIN, /* the phases of a cycle, as in gctrace */
    TRACE_MARK,
    TRACE_END,
    TRACE_SWEEP,
    TRACE_HANDSHAKE,  /* name */
    TRACE_ANSWER_FOR, /* name; thread that stands still */
    TRACE_ROOTS,
    TRACE_STACKS,   /* of parked goroutines */
    TRACE_DRAIN,    /* bytes scanned */
    TRACE_ROUND,    /* 1: it was clean */
    TRACE_SPANS,    /* swept */
    TRACE_SCAVENGE, /* bytes given back */
    TRACE_ANSWER,   /* name of the handshake; ns since it was asked for */
    TRACE_STOP,
    TRACE_ASSIST,     /* bytes scanned */
    TRACE_WAIT,       /* for the cycle to get on; ns at most */
    TRACE_WAIT_CYCLE, /* for the end of a cycle; its number */
    TRACE_BLOCKED,
    TRACE_G,      /* a goroutine ran: its number; why it stopped, NULL: to let others run */
    TRACE_GO,     /* number of the new one */
    TRACE_READY,  /* number */
    TRACE_RETAKE, /* thread whose P was taken */
    /* The reader's own. */
    TRACE_HEAP,    /* bytes live; goal */
    TRACE_LIMITS,  /* bytes: trigger; memory limit */
    TRACE_SCHED,   /* goroutines; Ps in use */
    TRACE_PAUSE,   /* ns */
    TRACE_DROPPED, /* events, since the trace began */
    TRACE_KINDS,
};

/* Times by os_nanotime; of what takes no time begin and end are one. */
struct trace_event {
    int64_t begin, end;
    uint64_t a, b;
    uint32_t tid;
    uint32_t kind; /* enum trace_kind */
};

struct trace_slot {
    _Atomic uint32_t seq; /* place in the ring's history + 1, once it is filled */
    uint32_t tag;         /* thread << 8 | kind */
    int64_t begin, end;
    uint64_t a, b;
};

struct trace_ring {
    _Atomic uint32_t head;    /* slots ever taken; its thread and the handlers over it */
    _Atomic uint32_t dropped; /* events; the reader sets it back */
    _Atomic uint32_t tid;     /* of the source that it belongs to */
    struct trace_ring *next;  /* of all; fixed */
    struct trace_ring *free;  /* under world.lock */
    char apart[CACHE_LINE];   /* what the reader writes is on another line */
    _Atomic uint32_t tail;    /* slots ever read; the reader */
    struct trace_slot slots[TRACE_SLOTS];
};

/* Who puts events somewhere. Written under world.lock. */
struct trace_source {
    _Atomic(struct trace_ring *) ring; /* NULL: off */
    struct trace_ring *own;            /* [trace.owner] */
    int tid;                           /* of a thread that is not attached; 0: there is none yet */
};

enum trace_library { TRACE_COLLECTOR, TRACE_MONITOR, TRACE_HELPER };

struct trace {
    bool on;                            /* under world.lock: who attaches is given a ring */
    _Atomic(struct trace_ring *) rings; /* all there ever were; pushed under world.lock */
    struct trace_ring *free_rings;      /* of threads that have ended; under world.lock */
    struct trace_source library[TRACE_HELPER + TRACE_HELPERS]; /* by enum trace_library */
    _Atomic uint32_t word;                                     /* futex of the reader */
    _Atomic uint32_t refused;     /* threads without a ring, for lack of memory */
    _Atomic uint64_t pause_bound; /* ns; a longer pause wakes the reader; 0: none does */
    _Atomic uint64_t pause_ns;    /* the last one that did; 0: none */
    _Atomic uint32_t pause_tid;
    void (*_Atomic fork_child)(void); /* the reader's, once there was one */
};
extern HIDDEN struct trace trace;

/* The library's own threads, when they begin. Of the collector's source: who holds gc.cycle_lock. */
void trace_library_begins(int which);

struct m;
void trace_attach_locked(struct m *m);             /* under world.lock */
void trace_detach_locked(struct m *m);             /* the same, m ends */
void trace_fork_child(struct m *self, bool whole); /* whole: world.ms can be walked */

/* The reader. */
void trace_switch_on(void);
void trace_switch_off(
    void); /* events may still come for a moment, and are seen after the next start */
bool trace_take(struct trace_ring *ring, struct trace_event *e);
void trace_wake_reader(void); /* async-signal-safe */

COLD void trace_long_pause(int tid, uint64_t ns);

/* An event, if there is a ring. Any moment, a signal handler too. */
NOINLINE void trace_add(struct trace_source *s, enum trace_kind kind, int64_t begin, int64_t end,
                        uint64_t a, uint64_t b);

ALWAYS_INLINE bool trace_is_on(const struct trace_source *s)
{
    return unlikely(load_rlx(&s->ring) != NULL); /* relaxed: trace_add looks again */
}

/* When something begins; 0: it is not traced. */
ALWAYS_INLINE int64_t trace_begin(const struct trace_source *s)
{
    return trace_is_on(s) ? os_nanotime() : 0;
}

ALWAYS_INLINE void trace_end(struct trace_source *s, enum trace_kind kind, int64_t begin,
                             uint64_t a, uint64_t b)
{
    if (unlikely(begin != 0)) {
        trace_add(s, kind, begin, os_nanotime(), a, b);
    }
}

ALWAYS_INLINE void trace_now(struct trace_source *s, enum trace_kind kind, uint64_t a, uint64_t b)
{
    int64_t now = trace_begin(s);
    if (unlikely(now != 0)) {
        trace_add(s, kind, now, now, a, b);
    }
}

#endif
