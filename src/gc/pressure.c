/* pressure.c - the program is told that memory is short, so that its caches can shrink.
 *
 * Model       After a cycle: what must stay, that is what was marked and what the library needs for it, is near the
 *             memory limit, at it, or over it. Before an allocation fails: over it. The level is posted, and
 *             the thread that runs finalizers calls the handlers, in the order in which they were added.
 * Locking     pressure.lock: the list; not held while a handler runs. A record is freed by who removes it, so a walk
 *             goes by number.
 * Tests       tests/api/pressure.c
 */
#include "gc/ends.h"

#include "heap/fixalloc.h"

#include <limits.h>
#include <string.h>

enum {
    NEAR_PERCENT = 75, /* of the limit */
    AT_PERCENT = 95,   /* little more than the headroom is left: cycles follow one another */
    PATIENCE_NS = 1000000000,
};

struct handler {
    void (*fn)(loam_pressure level, void *arg);
    void *arg; /* pinned */
    struct handler *next;
};

static struct {
    struct mutex lock;
    struct handler *first;
    _Atomic uint32_t count;
    _Atomic uint32_t posted; /* level that the handlers are to be told; 0: none */
    _Atomic uint32_t told;   /* times they were; futex */
} pressure;

bool gc_pressure_add(struct m *m, void (*fn)(loam_pressure level, void *arg), void *arg)
{
    if (arg != NULL && !gc_pin(m, (uintptr_t)arg)) {
        return false;
    }
    m_enter(m);
    struct handler *h = metaalloc(sizeof *h);
    if (h != NULL) {
        *h = (struct handler){fn, arg, NULL};
        mutex_lock(&pressure.lock);
        struct handler **last = &pressure.first;
        while (*last != NULL) {
            last = &(*last)->next;
        }
        *last = h;
        add_rlx(&pressure.count, 1u);
        mutex_unlock(&pressure.lock);
    }
    m_leave(m);
    if (h == NULL && arg != NULL) {
        (void)gc_unpin(m, (uintptr_t)arg);
    }
    if (h != NULL) {
        ends_prepare(m); /* when memory is refused, so is a thread's stack */
    }
    return h != NULL;
}

bool gc_pressure_remove(struct m *m, void (*fn)(loam_pressure level, void *arg), void *arg)
{
    m_enter(m);
    mutex_lock(&pressure.lock);
    struct handler **at = &pressure.first;
    while (*at != NULL && ((*at)->fn != fn || (*at)->arg != arg)) {
        at = &(*at)->next;
    }
    struct handler *h = *at;
    if (h != NULL) {
        *at = h->next;
        sub_rlx(&pressure.count, 1u);
    }
    mutex_unlock(&pressure.lock);
    if (h != NULL) {
        metafree(h, sizeof *h);
    }
    m_leave(m);
    if (h != NULL && arg != NULL) {
        (void)gc_unpin(m, (uintptr_t)arg);
    }
    return h != NULL;
}

static void post(uint32_t level)
{
    if (load_rlx(&pressure.count) != 0 && load_rlx(&pressure.posted) < level) {
        store_rel(&pressure.posted, level); /* release: pairs with gc_pressure_tell */
        ends_call();
    }
}

void gc_pressure_cycle_ended(uint64_t must_stay)
{
    uint64_t limit = load_rlx(&heap.limit);
    if (limit == UINT64_MAX) {
        return;
    }
    if (must_stay > limit) {
        post(LOAM_PRESSURE_OVER);
    } else if (must_stay > limit / 100 * AT_PERCENT) {
        post(LOAM_PRESSURE_AT);
    } else if (must_stay > limit / 100 * NEAR_PERCENT) {
        post(LOAM_PRESSURE_NEAR);
    }
}

static bool handler_number(struct m *m, uint32_t number, struct handler *out)
{
    m_enter(m);
    mutex_lock(&pressure.lock);
    const struct handler *h = pressure.first;
    for (uint32_t i = 0; h != NULL && i < number; i++) {
        h = h->next;
    }
    if (h != NULL) {
        *out = *h;
    }
    mutex_unlock(&pressure.lock);
    m_leave(m);
    return h != NULL;
}

bool gc_pressure_tell(struct m *m)
{
    uint32_t level = xchg_acqrel(&pressure.posted, 0u);
    if (level == 0) {
        return false;
    }
    struct handler h;
    for (uint32_t i = 0; handler_number(m, i, &h); i++) {
        h.fn((loam_pressure)level, h.arg);
    }
    add_acqrel(&pressure.told, 1u); /* release: what the handlers dropped; pairs with the waiter */
    os_futex_wake(&pressure.told, INT_MAX);
    return true;
}

/* Where the caller is the thread that runs the handlers, within one or within a finalizer, they cannot help it. */
bool gc_pressure_ask(struct m *m)
{
    if (load_rlx(&pressure.count) == 0 || ends_is_runner(m)) {
        return false;
    }
    uint32_t told = load_acq(&pressure.told);
    post(LOAM_PRESSURE_OVER);
    struct m_wait wait;
    m_begin_wait(m, &wait);
    os_futex_wait(&pressure.told, told, PATIENCE_NS);
    m_end_wait(m, &wait);
    return true;
}

void gc_pressure_fork_child(void)
{
    memset(&pressure.lock, 0, sizeof pressure.lock);
    store_rlx(&pressure.posted, 0u);
}
