/* chan.c - channels and select.
 *
 * Purpose     Go's channels: elements go from hand to hand, through a ring if the channel has one.
 * Model       A lock for each channel, its ring, and two queues of who waits. Each waiting case is a `sudog` on the
 *             stack of who waits. Who finds a partner copies straight from one stack to the other and wakes him.
 *             select enters a sudog into each of its channels, locked in the order of their addresses; the first partner
 *             that decides its waiter has it, the others pass it over.
 * Invariants  [chan.queue]    while there is room or an element no one waits for it, but cases of a decided select.
 *             [chan.barrier]  an element that may hold pointers is copied with the write barrier wherever it goes: the
 *                             stack that it comes to may have been scanned already.
 * Locking     the channel's lock, until who waits has left his stack; under it timers.lock, and what a copy takes.
 * From Go     chan.go, select.go.
 * Tests       tests/api/channels.c, tests/stress/channels_random.c
 */
#include "sched/sched.h"

#include "base/check.h"
#include "base/rng.h"

#include <errno.h>
#include <string.h>

#include <loam/sched.h>

struct sudog {
    struct waiter *waiter;
    loam_chan *chan;
    void *elem;
    struct sudog *next, *prev;
    bool is_select; /* the waiter has to be decided */
    bool is_send;
    bool success; /* an element went over; else the channel was closed */
    bool queued;
    int index;
};

struct waitq {
    struct sudog *first, *last;
};

/* A heap object, of which only buf is a pointer to the collector: who waits is on his own stack. */
struct loam_chan {
    void *buf;
    struct mutex lock;
    bool closed;
    bool has_pointers;
    size_t elem_bytes;
    size_t capacity, count;
    size_t send_at, recv_at;
    struct waitq senders, receivers;
};
/* NOLINTNEXTLINE(bugprone-sizeof-expression): so the macro counts its fields */
LOAM_TYPE(loam_chan, buf);

static loam_chan *make(size_t elem_bytes, size_t capacity, const loam_type *elem)
{
    if (elem_bytes != 0 && capacity > SIZE_MAX / 2 / elem_bytes) {
        errno = EINVAL;
        return NULL;
    }
    loam_chan *c = LOAM_NEW(loam_chan);
    if (c == NULL) {
        return NULL;
    }
    if (capacity != 0 && elem_bytes != 0) {
        void *buf = elem != NULL ? loam_new(elem, capacity)
                                 : loam_alloc_noscan(elem_bytes * capacity);
        if (buf == NULL) {
            return NULL;
        }
        gc_store(malloc_self(), &c->buf, (uintptr_t)buf);
    }
    c->elem_bytes = elem_bytes;
    c->capacity = capacity;
    c->has_pointers = elem != NULL;
    return c;
}

loam_chan *loam_chan_make(const loam_type *elem, size_t capacity)
{
    if (elem == NULL || (elem->flags & LOAM_TYPE_IS_FLEX) != 0) {
        errno = EINVAL;
        return NULL;
    }
    return make(elem->size, capacity, elem);
}

loam_chan *loam_chan_make_bytes(size_t elem_size, size_t capacity)
{
    return make(elem_size, capacity, NULL);
}

size_t loam_chan_len(const loam_chan *c)
{
    return c == NULL ? 0 : __atomic_load_n(&c->count, __ATOMIC_RELAXED); /* of some moment */
}

size_t loam_chan_cap(const loam_chan *c)
{
    return c == NULL ? 0 : c->capacity;
}

/* -- elements and queues ----------------------------------------------------------------------- */

static void copy(struct m *m, const loam_chan *c, void *to, const void *from)
{
    if (to == NULL || c->elem_bytes == 0) {
        return;
    }
    CHECK(from != NULL, "an element to be sent is NULL, and has %zu bytes", c->elem_bytes);
    if (c->has_pointers) {
        gc_copy(m, to, from, c->elem_bytes);
    } else {
        memcpy(to, from, c->elem_bytes);
    }
}

static void zero(struct m *m, const loam_chan *c, void *elem)
{
    if (elem == NULL || c->elem_bytes == 0) {
        return;
    }
    if (c->has_pointers) {
        gc_clear(m, elem, c->elem_bytes);
    } else {
        memset(elem, 0, c->elem_bytes);
    }
}

static void *slot(const loam_chan *c, size_t i)
{
    return (char *)c->buf + i * c->elem_bytes;
}

static size_t after_slot(const loam_chan *c, size_t i)
{
    return i + 1 == c->capacity ? 0 : i + 1;
}

static void set_count(loam_chan *c, size_t n)
{
    __atomic_store_n(&c->count, n, __ATOMIC_RELAXED); /* for loam_chan_len */
}

static struct waitq *queue_of(loam_chan *c, bool send)
{
    return send ? &c->senders : &c->receivers;
}

static void enqueue(struct sudog *s)
{
    struct waitq *q = queue_of(s->chan, s->is_send);
    s->queued = true;
    s->next = NULL;
    s->prev = q->last;
    if (q->last != NULL) {
        sleeper_touch(q->last);
        q->last->next = s;
    } else {
        q->first = s;
    }
    q->last = s;
}

static void unqueue(struct sudog *s)
{
    struct waitq *q = queue_of(s->chan, s->is_send);
    if (s->prev != NULL) {
        s->prev->next = s->next;
    } else {
        q->first = s->next;
    }
    if (s->next != NULL) {
        s->next->prev = s->prev;
    } else {
        q->last = s->prev;
    }
    s->queued = false;
}

/* The first of who waits that is still to be had. */
static struct sudog *dequeue(struct waitq *q)
{
    while (q->first != NULL) {
        struct sudog *s = q->first;
        sleeper_touch(s);
        sleeper_touch(s->next);
        unqueue(s);
        uint32_t undecided = 0;
        /* acquire: pairs with nobody but itself: who has decided it is the only one that wakes it. */
        if (!s->is_select || cas_acqrel(&s->waiter->decided, &undecided, WAITER_CHOSEN)) {
            return s;
        }
    }
    return NULL;
}

/* c is unlocked; then s, which is on his stack, is his again. */
static void wake(struct sudog *s, bool success)
{
    struct waiter *waiter = s->waiter;
    s->success = success;
    if (s->is_select) {
        store_rel(&waiter->decided, (uint32_t)(s->index + 2)); /* see select_wait */
    }
    waiter_wake(waiter);
}

/* -- one operation on a locked channel --------------------------------------------------------- */

enum outcome { WOULD_BLOCK, DONE, CLOSED };

/* *partner is to be woken once c is unlocked. */
static enum outcome try_send(struct m *m, loam_chan *c, const void *elem, struct sudog **partner)
{
    if (c->closed) {
        return CLOSED;
    }
    struct sudog *s = dequeue(&c->receivers);
    if (s != NULL) {
        copy(m, c, s->elem, elem);
        *partner = s;
        return DONE;
    }
    if (c->count == c->capacity) {
        return WOULD_BLOCK;
    }
    copy(m, c, slot(c, c->send_at), elem);
    c->send_at = after_slot(c, c->send_at);
    set_count(c, c->count + 1);
    return DONE;
}

static enum outcome try_recv(struct m *m, loam_chan *c, void *elem, struct sudog **partner)
{
    if (c->count != 0) {
        void *from = slot(c, c->recv_at);
        copy(m, c, elem, from);
        struct sudog *s = dequeue(&c->senders);
        if (s != NULL) { /* the ring is full: its element takes the place */
            copy(m, c, from, s->elem);
            c->recv_at = c->send_at = after_slot(c, c->recv_at);
            *partner = s;
        } else {
            zero(m, c, from);
            c->recv_at = after_slot(c, c->recv_at);
            set_count(c, c->count - 1);
        }
        return DONE;
    }
    struct sudog *s = dequeue(&c->senders);
    if (s != NULL) {
        copy(m, c, elem, s->elem);
        *partner = s;
        return DONE;
    }
    if (c->closed) {
        zero(m, c, elem);
        return CLOSED;
    }
    return WOULD_BLOCK;
}

static void unlock_chan(struct g *g, void *arg)
{
    (void)g;
    mutex_unlock(&((loam_chan *)arg)->lock);
}

static struct m *enter(void)
{
    struct m *m = sched_enter(SCHED_PARKS);
    CHECK(m != NULL, "no memory for a thread that uses a channel");
    return m;
}

static void wait_for_ever(void)
{
    struct waiter waiter;
    (void)enter();
    waiter_init(&waiter);
    waiter_park(&waiter, NULL, NULL, "channel that is NULL");
    sched_leave(SCHED_STAYS);
}

/* c is locked. What the partner did with the element: was it taken, or given? */
static bool wait_in_queue(loam_chan *c, void *elem, bool send)
{
    struct waiter waiter;
    waiter_init(&waiter);
    struct sudog s = {.waiter = &waiter, .chan = c, .elem = elem, .is_send = send};
    enqueue(&s);
    waiter_park(&waiter, unlock_chan, c, send ? "channel send" : "channel receive");
    return s.success;
}

void loam_chan_send(loam_chan *c, const void *elem)
{
    if (c == NULL) {
        wait_for_ever();
        return;
    }
    struct m *m = enter();
    struct sudog *partner = NULL;
    mutex_lock(&c->lock);
    enum outcome outcome = try_send(m, c, elem, &partner);
    if (outcome == WOULD_BLOCK) {
        CHECK(elem != NULL || c->elem_bytes == 0,
              "an element to be sent is NULL, and has %zu bytes", c->elem_bytes);
        outcome = wait_in_queue(c, (void *)(uintptr_t)elem, true) ? DONE : CLOSED;
    } else {
        mutex_unlock(&c->lock);
    }
    if (partner != NULL) {
        wake(partner, true);
    }
    if (outcome == CLOSED) {
        sched_misuse("send on a closed channel");
    }
    sched_leave(SCHED_PARKS);
}

bool loam_chan_recv(loam_chan *c, void *elem)
{
    if (c == NULL) {
        wait_for_ever();
        return false;
    }
    struct m *m = enter();
    struct sudog *partner = NULL;
    mutex_lock(&c->lock);
    enum outcome outcome = try_recv(m, c, elem, &partner);
    if (outcome == WOULD_BLOCK) {
        outcome = wait_in_queue(c, elem, false) ? DONE : CLOSED;
    } else {
        mutex_unlock(&c->lock);
    }
    if (partner != NULL) {
        wake(partner, true);
    }
    sched_leave(SCHED_PARKS);
    return outcome == DONE;
}

void loam_chan_close(loam_chan *c)
{
    CHECK(c != NULL, "close of a channel that is NULL");
    struct m *m = enter();
    struct sudog *all = NULL;
    mutex_lock(&c->lock);
    if (c->closed) {
        mutex_unlock(&c->lock);
        sched_misuse("close of a closed channel");
    }
    c->closed = true;
    for (struct sudog *s; (s = dequeue(&c->receivers)) != NULL;) {
        zero(m, c, s->elem);
        s->next = all;
        all = s;
    }
    for (struct sudog *s; (s = dequeue(&c->senders)) != NULL;) {
        s->next = all;
        all = s;
    }
    mutex_unlock(&c->lock);
    while (all != NULL) {
        struct sudog *next = all->next;
        wake(all, false);
        all = next;
    }
    sched_leave(SCHED_PARKS);
}

/* -- select ------------------------------------------------------------------------------------ */

enum { ON_STACK = 8 };

/* Cases of a select in the order of their channels' addresses, in which these are locked. */
struct selection {
    loam_select_case *cases;
    size_t n;
    uint16_t *by_address;
    uint16_t *by_lot;
    struct sudog *sudogs;
};

static loam_chan *chan_at(const struct selection *sel, size_t i)
{
    return sel->cases[sel->by_address[i]].chan;
}

/* Heap sort: no memory, no recursion. */
static void sift(struct selection *sel, size_t i, size_t n)
{
    uint16_t at = sel->by_address[i];
    uintptr_t key = (uintptr_t)sel->cases[at].chan;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && (uintptr_t)chan_at(sel, child + 1) > (uintptr_t)chan_at(sel, child)) {
            child++;
        }
        if ((uintptr_t)chan_at(sel, child) <= key) {
            break;
        }
        sel->by_address[i] = sel->by_address[child];
    }
    sel->by_address[i] = at;
}

static void order(struct selection *sel, uint64_t *rng)
{
    for (size_t i = 0; i < sel->n; i++) {
        sel->by_address[i] = (uint16_t)i;
        size_t j = (size_t)((rng_next(rng) >> 32) * (i + 1) >> 32); /* Fisher and Yates */
        sel->by_lot[i] = sel->by_lot[j];
        sel->by_lot[j] = (uint16_t)i;
    }
    for (size_t i = sel->n / 2; i-- > 0;) {
        sift(sel, i, sel->n);
    }
    for (size_t end = sel->n; end-- > 1;) {
        uint16_t top = sel->by_address[0];
        sel->by_address[0] = sel->by_address[end];
        sel->by_address[end] = top;
        sift(sel, 0, end);
    }
}

static void lock_all(const struct selection *sel)
{
    for (size_t i = 0; i < sel->n; i++) {
        loam_chan *c = chan_at(sel, i);
        if (c != NULL && (i == 0 || c != chan_at(sel, i - 1))) {
            mutex_lock(&c->lock);
        }
    }
}

static void unlock_all(struct g *g, void *arg)
{
    const struct selection *sel = arg;
    loam_chan *last = NULL;
    (void)g;
    /* With the last lock goes the right to look at sel, which is on the stack of who waits. */
    for (size_t i = sel->n; i-- > 0;) {
        loam_chan *c = chan_at(sel, i);
        if (c == NULL || c == last) {
            continue;
        }
        if (last != NULL) {
            mutex_unlock(&last->lock);
        }
        last = c;
    }
    if (last != NULL) {
        mutex_unlock(&last->lock);
    }
}

/* Locked. The first case by lot that can be done; -1: none. */
static int try_all(struct m *m, struct selection *sel, struct sudog **partner,
                   enum outcome *outcome)
{
    for (size_t i = 0; i < sel->n; i++) {
        loam_select_case *k = &sel->cases[sel->by_lot[i]];
        if (k->chan == NULL) {
            continue;
        }
        *outcome = k->direction == LOAM_SEND ? try_send(m, k->chan, k->elem, partner)
                                             : try_recv(m, k->chan, k->elem, partner);
        if (*outcome != WOULD_BLOCK) {
            return sel->by_lot[i];
        }
    }
    return -1;
}

/* Locked. Waits in all queues until one of them decides. */
static int select_wait(struct selection *sel, enum outcome *outcome)
{
    struct waiter waiter;
    waiter_init(&waiter);
    for (size_t i = 0; i < sel->n; i++) {
        loam_select_case *k = &sel->cases[i];
        sel->sudogs[i] = (struct sudog){.waiter = &waiter,
                                        .chan = k->chan,
                                        .elem = k->elem,
                                        .is_send = k->direction == LOAM_SEND,
                                        .is_select = true,
                                        .index = (int)i};
        if (k->chan != NULL) {
            CHECK(k->elem != NULL || k->direction == LOAM_RECV || k->chan->elem_bytes == 0,
                  "an element to be sent is NULL, and has %zu bytes", k->chan->elem_bytes);
            enqueue(&sel->sudogs[i]);
        }
    }
    waiter_park(&waiter, unlock_all, sel, "select");
    int chosen = (int)load_acq(&waiter.decided) - 2; /* acquire: pairs with wake */
    lock_all(sel);
    for (size_t i = 0; i < sel->n; i++) {
        if (sel->sudogs[i].queued) {
            unqueue(&sel->sudogs[i]);
        }
    }
    unlock_all(NULL, sel);
    *outcome = sel->sudogs[chosen].success ? DONE : CLOSED;
    return chosen;
}

static int select_in(struct selection *sel, bool block)
{
    static _Atomic uint64_t seed = 0x2545F4914F6CDD1D;
    struct m *m = enter();
    uint64_t rng = add_rlx(&seed, UINT64_C(0x9E3779B97F4A7C15)) | 1;
    rng_next(&rng);
    order(sel, &rng);
    struct sudog *partner = NULL;
    enum outcome outcome = WOULD_BLOCK;
    lock_all(sel);
    int chosen = try_all(m, sel, &partner, &outcome);
    if (chosen < 0 && block) {
        chosen = select_wait(sel, &outcome);
    } else {
        unlock_all(NULL, sel);
    }
    if (partner != NULL) {
        wake(partner, true);
    }
    if (chosen >= 0) {
        loam_select_case *k = &sel->cases[chosen];
        if (k->direction == LOAM_SEND && outcome == CLOSED) {
            sched_misuse("send on a closed channel");
        }
        k->received = k->direction == LOAM_RECV && outcome == DONE;
    }
    sched_leave(SCHED_PARKS);
    return chosen;
}

int loam_select(loam_select_case *cases, size_t n, bool block)
{
    CHECK(n <= 65536, "select of %zu cases: 65536 are allowed", n);
    if (n == 0 && block) {
        wait_for_ever();
    }
    if (n <= ON_STACK) {
        uint16_t orders[2 * ON_STACK];
        struct sudog sudogs[ON_STACK];
        struct selection sel = {cases, n, orders, orders + ON_STACK, sudogs};
        return select_in(&sel, block);
    }
    /* From the heap, and held by this frame. */
    char *room = loam_alloc_noscan(n * (sizeof(struct sudog) + 2 * sizeof(uint16_t)));
    CHECK(room != NULL, "no memory for a select of %zu cases", n);
    uint16_t *orders = (uint16_t *)(room + n * sizeof(struct sudog));
    struct selection sel = {cases, n, orders, orders + n, (struct sudog *)room};
    int chosen = select_in(&sel, block);
    malloc_free(malloc_self(), room);
    return chosen;
}
