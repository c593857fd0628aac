/* timer.c - goroutines that wait for a time.
 *
 * Model       A heap of four children by deadline; a goroutine is in it at most once, and knows its place.
 * Locking     timers.lock, for moments; taken under none but a channel's, a descriptor's.
 * Ordering    timers.next is a hint that is right once the lock is let go.
 * From Go     time.go; differs: one heap, not one for each P.
 * Tests       tests/api/goroutines.c
 */
#include "sched/sched.h"

#include "base/check.h"
#include "heap/fixalloc.h"

#include <string.h>

enum { CHILDREN = 4, FIRST_ROOM = 64 };

static struct {
    struct mutex lock;
    struct g **heap;
    uint32_t n, room;
    _Atomic int64_t next;
} timers = {.next = INT64_MAX};

static void put(uint32_t i, struct g *g)
{
    timers.heap[i] = g;
    g->timer = i + 1;
}

static void sift_up(uint32_t i, struct g *g)
{
    while (i != 0 && timers.heap[(i - 1) / CHILDREN]->deadline > g->deadline) {
        put(i, timers.heap[(i - 1) / CHILDREN]);
        i = (i - 1) / CHILDREN;
    }
    put(i, g);
}

static void sift_down(uint32_t i, struct g *g)
{
    for (;;) {
        uint32_t least = i * CHILDREN + 1;
        for (uint32_t c = least + 1; c < timers.n && c <= (i + 1) * CHILDREN; c++) {
            least = timers.heap[c]->deadline < timers.heap[least]->deadline ? c : least;
        }
        if (least >= timers.n || timers.heap[least]->deadline >= g->deadline) {
            break;
        }
        put(i, timers.heap[least]);
        i = least;
    }
    put(i, g);
}

static void remove_locked(struct g *g)
{
    uint32_t i = g->timer - 1;
    struct g *last = timers.heap[--timers.n];
    ASSERT(timers.heap[i] == g);
    g->timer = 0;
    if (last != g) {
        if (last->deadline < g->deadline) {
            sift_up(i, last);
        } else {
            sift_down(i, last);
        }
    }
}

static bool grow_locked(void)
{
    uint32_t room = timers.room == 0 ? FIRST_ROOM : 2 * timers.room;
    struct g **bigger = metaalloc(room * sizeof(struct g *));
    if (bigger == NULL) {
        return false;
    }
    if (timers.n != 0) {
        memcpy(bigger, timers.heap, timers.n * sizeof(struct g *));
    }
    metafree(timers.heap, timers.room * sizeof(struct g *));
    timers.heap = bigger;
    timers.room = room;
    return true;
}

static void say_next_locked(void)
{
    store_rlx(&timers.next, timers.n == 0 ? INT64_MAX : timers.heap[0]->deadline);
}

bool timer_start(struct g *g, int64_t deadline)
{
    mutex_lock(&timers.lock);
    bool ok = timers.n < timers.room || grow_locked();
    if (ok) {
        g->deadline = deadline;
        sift_up(timers.n++, g);
        say_next_locked();
    }
    mutex_unlock(&timers.lock);
    return ok;
}

bool timer_stop(struct g *g)
{
    mutex_lock(&timers.lock);
    bool there = g->timer != 0;
    if (there) {
        remove_locked(g);
        say_next_locked();
    }
    mutex_unlock(&timers.lock);
    return there;
}

bool timers_take(struct gqueue *ready, int64_t now)
{
    bool any = false;
    if (load_rlx(&timers.next) > now) {
        return false;
    }
    struct m *m = sched_m();
    mutex_lock(&timers.lock);
    while (timers.n != 0 && timers.heap[0]->deadline <= now) {
        struct g *g = timers.heap[0];
        remove_locked(g);
        uint32_t undecided = 0;
        sleeper_touch(g->timed);
        /* acquire: pairs with who decided otherwise. The waiter lies on g's stack, and g does not go on before
         * timer_stop has had the lock. */
        if (g->timed == NULL || cas_acqrel(&g->timed->decided, &undecided, WAITER_LATE)) {
            sched_trace_ready(m, g);
            gqueue_put(ready, g);
            any = true;
        }
    }
    say_next_locked();
    mutex_unlock(&timers.lock);
    return any;
}

int64_t timers_next(void)
{
    return load_rlx(&timers.next);
}

void timers_fork_child(void)
{
    memset(&timers.lock, 0, sizeof timers.lock);
    timers.n = 0;
    store_rlx(&timers.next, INT64_MAX);
}
