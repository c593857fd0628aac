/* sync.c - wait groups and mutexes that park.
 *
 * Model       Both: a word or two, and a queue of who waits, each in a node on his own stack, under a lock of the library.
 *             Mutex: LOCKED and WAITERS in one word, so that nobody who meets nobody takes that lock. Who unlocks wakes the
 *             first, who tries again: whoever runs just then may be quicker. Who has waited for STARVING_NS is
 *             given the mutex instead.
 * Invariants  [sync.last]  the last who touches a wait group or a mutex for an unlock does so by letting go of its lock:
 *                          it may be on the stack of who goes on then.
 * From Go     sync.Mutex, sync.WaitGroup; the rule for the starving is Go's.
 * Tests       tests/api/channels.c
 */
#include "sched/sched.h"

#include "base/check.h"

#include <loam/sched.h>

#define STARVING_NS INT64_C(1000000) /* Go's */

enum { SPINS = 30 };

struct node {
    struct waiter waiter;
    struct node *next;
    int64_t since; /* when it first waited; 0: not yet */
    bool given;    /* the mutex is its own */
};

struct queue {
    struct node *first, *last;
};

static void put_last(struct queue *q, struct node *n)
{
    n->next = NULL;
    if (q->last != NULL) {
        sleeper_touch(q->last);
        q->last->next = n;
    } else {
        q->first = n;
    }
    q->last = n;
}

static void put_first(struct queue *q, struct node *n)
{
    n->next = q->first;
    q->first = n;
    q->last = q->last == NULL ? n : q->last;
}

static struct node *take_first(struct queue *q)
{
    struct node *n = q->first;
    if (n != NULL) {
        sleeper_touch(n);
        q->first = n->next;
        q->last = q->first == NULL ? NULL : q->last;
    }
    return n;
}

static void unlock_inner(struct g *g, void *lock)
{
    (void)g;
    mutex_unlock(lock);
}

static void enter(enum sched_call call)
{
    CHECK(sched_enter(call) != NULL, "no memory for a thread that waits for goroutines");
}

/* -- wait groups ------------------------------------------------------------------------------- */

struct waitgroup {
    int32_t n;
    struct mutex lock;
    struct queue waiting;
};
_Static_assert(sizeof(struct waitgroup) <= sizeof(loam_waitgroup), "it fits");

void loam_waitgroup_add(loam_waitgroup *opaque, int delta)
{
    struct waitgroup *wg = (struct waitgroup *)opaque;
    enter(SCHED_STAYS);
    mutex_lock(&wg->lock);
    int64_t n = (int64_t)wg->n + delta;
    if (n < 0 || n > INT32_MAX) {
        mutex_unlock(&wg->lock);
        sched_misuse(n < 0 ? "wait group below zero" : "wait group above 2147483647");
    }
    wg->n = (int32_t)n;
    struct queue woken = {0};
    if (n == 0) {
        woken = wg->waiting;
        wg->waiting = (struct queue){0};
    }
    mutex_unlock(&wg->lock); /* [sync.last] */
    for (struct node *node; (node = take_first(&woken)) != NULL;) {
        waiter_wake(&node->waiter);
    }
    sched_leave(SCHED_STAYS);
}

void loam_waitgroup_done(loam_waitgroup *wg)
{
    loam_waitgroup_add(wg, -1);
}

void loam_waitgroup_wait(loam_waitgroup *opaque)
{
    struct waitgroup *wg = (struct waitgroup *)opaque;
    enter(SCHED_PARKS);
    mutex_lock(&wg->lock);
    if (wg->n == 0) {
        mutex_unlock(&wg->lock);
    } else {
        struct node node = {0};
        waiter_init(&node.waiter);
        put_last(&wg->waiting, &node);
        waiter_park(&node.waiter, unlock_inner, &wg->lock, "wait group");
    }
    sched_leave(SCHED_PARKS);
}

/* -- mutexes ----------------------------------------------------------------------------------- */

enum { LOCKED = 1, WAITERS = 2 };

struct park_mutex {
    _Atomic uint32_t state; /* WAITERS: changed under lock */
    struct mutex lock;
    struct queue waiting;
};
_Static_assert(sizeof(struct park_mutex) <= sizeof(loam_mutex), "it fits");

static bool try_lock(struct park_mutex *mu)
{
    uint32_t state = load_rlx(&mu->state);
    /* acquire: what the last holder wrote; pairs with the unlock. */
    return (state & LOCKED) == 0 && cas_acqrel(&mu->state, &state, state | LOCKED);
}

/* Under mu->lock: is it ours, or has whoever holds it been told that somebody waits? */
static bool lock_or_announce(struct park_mutex *mu)
{
    uint32_t state = load_rlx(&mu->state);
    for (;;) {
        bool ours = (state & LOCKED) == 0;
        if (cas_acqrel(&mu->state, &state, state | (ours ? LOCKED : WAITERS))) {
            return ours;
        }
    }
}

static NOINLINE void lock_slow(struct park_mutex *mu)
{
    struct node node = {0};
    for (int i = 0; i < SPINS && load_rlx(&sched.procs) > 1; i++) {
        if (try_lock(mu)) {
            return;
        }
        cpu_relax();
    }
    enter(SCHED_PARKS);
    while (!node.given) {
        mutex_lock(&mu->lock);
        if (lock_or_announce(mu)) {
            mutex_unlock(&mu->lock);
            break;
        }
        waiter_init(&node.waiter);
        if (node.since == 0) {
            node.since = os_nanotime();
            put_last(&mu->waiting, &node);
        } else {
            put_first(&mu->waiting, &node);
        }
        waiter_park(&node.waiter, unlock_inner, &mu->lock, "mutex");
    }
    sched_leave(SCHED_STAYS); /* who holds it is not switched away for no reason */
}

void loam_mutex_lock(loam_mutex *opaque)
{
    struct park_mutex *mu = (struct park_mutex *)opaque;
    if (unlikely(!try_lock(mu))) {
        lock_slow(mu);
    }
}

bool loam_mutex_trylock(loam_mutex *opaque)
{
    return try_lock((struct park_mutex *)opaque);
}

static NOINLINE void unlock_slow(struct park_mutex *mu)
{
    enter(SCHED_STAYS);
    mutex_lock(&mu->lock);
    if ((load_rlx(&mu->state) & LOCKED) == 0) {
        mutex_unlock(&mu->lock);
        sched_misuse("unlock of a mutex that is not locked");
    }
    struct node *node = take_first(&mu->waiting);
    uint32_t rest = mu->waiting.first != NULL ? WAITERS : 0;
    bool give = node != NULL && os_nanotime() - node->since > STARVING_NS;
    if (give) {
        node->given = true;
        rest |= LOCKED;
    }
    store_rel(&mu->state, rest); /* release: pairs with try_lock */
    mutex_unlock(&mu->lock);     /* [sync.last] */
    if (node != NULL) {
        waiter_wake(&node->waiter);
    }
    sched_leave(SCHED_STAYS);
}

void loam_mutex_unlock(loam_mutex *opaque)
{
    struct park_mutex *mu = (struct park_mutex *)opaque;
    uint32_t state = LOCKED;
    /* release: pairs with try_lock. */
    if (unlikely(!cas_acqrel(&mu->state, &state, 0u))) {
        unlock_slow(mu);
    }
}
