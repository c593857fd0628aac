/* sleeper.c - stacks of goroutines that wait for long sleep: they keep their live bytes, and no pages.
 *
 * Purpose     A goroutine that has been parked for two cycles costs its live bytes and a few words.
 * Model       The pages from sp to the end are moved away in one step; from them the live bytes are copied into a `slept`, which
 *             the collector scans in place of the stack. Its own goroutine puts the pages back before it runs. Whoever else
 *             touches the stack meanwhile (a local whose address was handed out, a channel that delivers into it, the kernel in
 *             a call that was given it) waits in the kernel until the pager's thread has put them: so it is found as it was
 *             left, at the same address.
 *             The slots of those that sleep are watched, and no others: a page of a watched slot comes from that thread, which is
 *             slow. Neighbours that are watched are one mapping.
 * Invariants  [sleep.whole]   a stack is asleep or awake as a whole: under its lock, from watched to all pages moved, and from
 *                             the first page put to unwatched (if that is refused it stays watched, and the pager's
 *                             thread brings fresh pages). While it sleeps its `slept` does not change.
 *             [sleep.pager]   the pager's thread takes these locks alone, which nobody holds while he touches a stack, and never
 *                             stops at a safepoint: a thread that is busy may wait for it.
 *             [sleep.owner]   g->slept and what it points to are changed and freed by who has the goroutine (G_CLAIMED, or about
 *                             to run it); the pager says `awake` and no more.
 * Locking     one of LOCKS by chunk.
 * Needs       os_pager_open, and a mapping for each run of neighbours (vm.max_map_count). Without them stacks stay awake.
 * Tests       tests/api/goroutine_sleep.c
 */
#include "sched/sched.h"

#include "base/bits.h"
#include "base/check.h"
#include "gc/mark.h"
#include "heap/fixalloc.h"

#include <errno.h>
#include <string.h>

enum {
    LOCKS = 8,
    PAGES_MOST = 4, /* of a stack that sleeps; deeper ones have little to give */
    AWAY_PAGES = 64,
    STEP_SLEEPS = 128, /* stacks, and looks at goroutines, in one step */
    STEP_LOOKS = 8192,
};

struct slept {
    _Atomic bool awake; /* the pages are there, and may have changed */
    uint32_t pages;
    uint32_t bytes, offset; /* of the live ones, in the first page */
    uintptr_t at;           /* of the first page */
    char live[];
};

struct asleep_in { /* by the slot's place in its chunk */
    _Atomic(struct slept *) slot[1];
};

static struct {
    enum { UNTRIED, WORKS, CANNOT } state; /* the collector's thread alone */
    char *away;                            /* AWAY_PAGES that were moved */
    char *zeroes;                          /* a page */
    uint32_t away_used;
    uint32_t cursor;
    _Atomic uint32_t candidates; /* of the last walk */
    _Atomic(struct asleep_in *) chunks[STACK_CHUNKS_MAX];
    struct {
        struct mutex lock;
        char *pages; /* PAGES_MOST, to be put */
    } locked[LOCKS];
} sleeper;

_Atomic uint64_t sleeper_asleep;

static size_t pages_bytes(uint32_t n)
{
    return (size_t)n * os_page_size();
}

/* -- waking ------------------------------------------------------------------------------------ */

static void slot_of(const struct slept *s, void **at, size_t *bytes)
{
    uintptr_t low;
    *bytes = stack_slot_bytes(s->at, &low);
    *at = (void *)low;
}

/* Refused when there are too many mappings: then it stays watched, and awake. */
static void unwatch(const struct slept *s)
{
    void *at;
    size_t bytes;
    slot_of(s, &at, &bytes);
    (void)os_pager_unwatch(at, bytes);
}

/* Locked. */
static void put_back(uint32_t lock, struct slept *s)
{
    char *pages = sleeper.locked[lock].pages;
    size_t bytes = pages_bytes(s->pages);
    memset(pages, 0, bytes);
    memcpy(pages + s->offset, s->live, s->bytes);
    CHECK(os_pager_put((void *)s->at, pages, bytes),
          "the stack of a goroutine that slept cannot be put back (errno %d)", errno);
    unwatch(s); /* who waits for it is told */
    sub_rlx(&sleeper_asleep, UINT64_C(1));
    store_rel(&s->awake, true); /* release: the pages; pairs with who has the goroutine */
}

/* Locked. */
static void forget(struct g *g)
{
    struct slept *s = g->slept;
    struct asleep_in *in = load_rlx(&sleeper.chunks[stack_chunk(s->at)]);
    store_rlx(&in->slot[stack_slot_at(s->at)], NULL);
    g->slept = NULL;
    metafree(s, sizeof *s + s->bytes);
}

COLD void sleeper_wake(struct g *g)
{
    struct slept *s = g->slept;
    uint32_t lock = stack_chunk(s->at) % LOCKS;
    mutex_lock(&sleeper.locked[lock].lock);
    if (!load_rlx(&s->awake)) {
        put_back(lock, s);
    }
    forget(g);
    mutex_unlock(&sleeper.locked[lock].lock);
}

/* Locked. Whatever sleeps at `at`. */
static void wake_at(uint32_t lock, uintptr_t at)
{
    struct asleep_in *in = load_rlx(&sleeper.chunks[stack_chunk(at)]);
    struct slept *s = in == NULL ? NULL : load_rlx(&in->slot[stack_slot_at(at)]);
    if (s != NULL && !load_rlx(&s->awake)) {
        put_back(lock, s);
    }
}

void sleeper_touch_slow(const void *at)
{
    uintptr_t addr = (uintptr_t)at;
    uint32_t chunk = stack_chunk(addr);
    if (!stack_is_one(addr)) {
        return;
    }
    struct asleep_in *in = load_acq(&sleeper.chunks[chunk]); /* acquire: pairs with in_chunk */
    if (in != NULL && load_rlx(&in->slot[stack_slot_at(addr)]) != NULL) { /* a hint */
        mutex_lock(&sleeper.locked[chunk % LOCKS].lock);
        wake_at(chunk % LOCKS, addr);
        mutex_unlock(&sleeper.locked[chunk % LOCKS].lock);
    }
}

/* Not one of those that stop at safepoints: [sleep.pager] */
static void pager_main(void *arg)
{
    (void)arg;
    os_thread_set_priority(0, OS_PRIORITY_QUICK); /* others stand still meanwhile */
    for (;;) {
        uintptr_t at = os_pager_next();
        uint32_t lock = stack_chunk(at) % LOCKS;
        mutex_lock(&sleeper.locked[lock].lock);
        wake_at(lock, at);
        /* It is there; or it is fresh, of a stack that could not be unwatched; or nobody waits any more. */
        (void)os_pager_put((void *)at, sleeper.zeroes, os_page_size());
        mutex_unlock(&sleeper.locked[lock].lock);
    }
}

/* -- falling asleep ---------------------------------------------------------------------------- */

static bool open_pager(void)
{
    size_t own = pages_bytes(LOCKS * PAGES_MOST + 1);
    size_t away = pages_bytes(AWAY_PAGES);
    if (!os_pager_open()) {
        return false;
    }
    char *pages = os_map(own);
    sleeper.away = os_map(away);
    if (pages == NULL || sleeper.away == NULL || !os_pager_watch(sleeper.away, away) ||
        os_thread_start(pager_main, NULL, "loam-stacks") != 0) {
        os_pager_close();
        if (pages != NULL) {
            os_release(pages, own);
        }
        if (sleeper.away != NULL) {
            os_release(sleeper.away, away);
        }
        return false;
    }
    /* Before anything sleeps, and so before the thread looks at it. */
    for (uint32_t i = 0; i < LOCKS; i++) {
        sleeper.locked[i].pages = pages + pages_bytes(i * PAGES_MOST);
    }
    sleeper.zeroes = pages + pages_bytes(LOCKS * PAGES_MOST);
    return true;
}

static struct asleep_in *in_chunk(uint32_t chunk)
{
    struct asleep_in *in = load_rlx(&sleeper.chunks[chunk]);
    size_t slots = stack_slots_of(chunk);
    if (in == NULL && slots != 0) {
        in = persistentalloc(slots * sizeof in->slot[0], CACHE_LINE, &heap.stats.other_sys);
        store_rel(&sleeper.chunks[chunk], in); /* release: zeroes; pairs with sleeper_touch_slow */
    }
    return in;
}

static char *away(uint32_t pages)
{
    if (sleeper.away_used + pages > AWAY_PAGES) {
        os_discard(sleeper.away, pages_bytes(AWAY_PAGES));
        sleeper.away_used = 0;
    }
    char *at = sleeper.away + pages_bytes(sleeper.away_used);
    sleeper.away_used += pages;
    return at;
}

/* Locked. false: its pages stay where they are. */
static bool take_pages(struct slept *s, char *to)
{
    void *slot;
    size_t bytes;
    slot_of(s, &slot, &bytes);
    if (!os_pager_watch(slot, bytes)) {
        return false;
    }
    if (!os_pager_take(to, (void *)s->at, pages_bytes(s->pages))) {
        unwatch(s);
        return false;
    }
    memcpy(s->live, to + s->offset, s->bytes);
    return true;
}

/* Claimed. */
static void fall_asleep(struct g *g)
{
    size_t page = os_page_size();
    uintptr_t first = align_down(g->sp, page);
    size_t pages = (align_up(g->stack_high, page) - first) / page;
    size_t live = g->stack_high - g->sp;
    if (pages > PAGES_MOST || live + sizeof(struct slept) > pages * page - page / 4) {
        return; /* not worth it */
    }
    struct asleep_in *in = in_chunk(stack_chunk(first));
    struct slept *s = in == NULL ? NULL : metaalloc(sizeof *s + live);
    if (s == NULL) {
        return;
    }
    s->pages = (uint32_t)pages;
    s->bytes = (uint32_t)live;
    s->offset = (uint32_t)(g->sp - first);
    s->at = first;
    os_discard((void *)g->stack_low, first - g->stack_low); /* what is dead */
    char *to = away(s->pages);
    struct mutex *lock = &sleeper.locked[stack_chunk(first) % LOCKS].lock;
    mutex_lock(lock);
    bool taken = take_pages(s, to);
    if (taken) {
        store_rlx(&in->slot[stack_slot_at(first)], s);
        g->slept = s;
        stack_count(g, 0);
        add_rlx(&sleeper_asleep, UINT64_C(1));
    }
    mutex_unlock(lock);
    if (!taken) {
        sleeper.away_used -= s->pages;
        metafree(s, sizeof *s + live);
        store_rlx(&g->parked_cycles, (uint8_t)0); /* later */
    }
}

static bool may_sleep(const struct g *g)
{
    return g->slept == NULL && !g->ran &&
           load_rlx(&g->parked_cycles) >= (uint32_t)gc.options.stack_sleep;
}

bool sleeper_step(void)
{
    uint32_t n = allg_count();
    uint32_t slept = 0;
    if (load_rlx(&sleeper.candidates) == 0 || sleeper.state == CANNOT) {
        return false;
    }
    if (sleeper.state == UNTRIED) {
        sleeper.state = open_pager() ? WORKS : CANNOT;
        return sleeper.state == WORKS;
    }
    for (uint32_t looks = 0; looks < STEP_LOOKS && slept < STEP_SLEEPS; looks++) {
        if (sleeper.cursor >= n) {
            sleeper.cursor = 0;
            store_rlx(&sleeper.candidates, 0u);
            return false;
        }
        struct g *g = allg_get(sleeper.cursor++);
        if (load_rlx(&g->parked_cycles) >= (uint32_t)gc.options.stack_sleep &&
            gscan_claim(g, G_PARKED)) {
            if (may_sleep(g)) {
                fall_asleep(g);
                slept++;
            }
            gscan_unclaim(g);
        }
    }
    return true;
}

/* Claimed, by the walk: one cycle more. */
void sleeper_count(struct g *g)
{
    if (g->slept != NULL && load_acq(&g->slept->awake)) { /* acquire: pairs with put_back */
        uint32_t lock = stack_chunk(g->stack_low) % LOCKS;
        stack_count(g, g->slept->pages);
        mutex_lock(&sleeper.locked[lock].lock);
        forget(g);
        mutex_unlock(&sleeper.locked[lock].lock);
        store_rlx(&g->parked_cycles, (uint8_t)0);
    }
    if (g->slept == NULL && load_rlx(&g->parked_cycles) < UINT8_MAX) {
        store_rlx(&g->parked_cycles, (uint8_t)(load_rlx(&g->parked_cycles) + 1));
    }
    if (gc.options.stack_sleep != 0 && may_sleep(g)) {
        store_rlx(&sleeper.candidates, load_rlx(&sleeper.candidates) + 1);
    }
}

bool sleeper_scan(struct gcwork *w, const struct g *g)
{
    if (g->slept == NULL || load_acq(&g->slept->awake)) { /* acquire: pairs with put_back */
        return false;
    }
    mark_range(w, (uintptr_t)g->slept->live, (uintptr_t)g->slept->live + g->slept->bytes);
    return true;
}

/* A page that is there was put, and perhaps changed since: it counts, and not what was copied. */
NO_SANITIZE bool sleeper_each_word(const struct g *g, walk_fn *fn, void *arg)
{
    const struct slept *s = g->slept;
    if (s == NULL || load_acq(&s->awake)) { /* acquire: pairs with put_back */
        return false;
    }
    uintptr_t page = 0, start = s->at + s->offset;
    bool there = false;
    for (size_t done = 0; done + sizeof page <= s->bytes; done += sizeof page) {
        if (page != align_down(start + done, os_page_size())) {
            page = align_down(start + done, os_page_size());
            there = os_resident((void *)page);
        }
        const char *from = there ? (const char *)start : s->live;
        fn(arg, start + done, *(const volatile uintptr_t *)(from + done));
    }
    return true;
}

/* By bytes: the sanitizer's marks within the frames are none of our business. */
NO_SANITIZE static void copy_bytes(volatile char *to, const volatile char *from, size_t n)
{
    while (n-- != 0) {
        *to++ = *from++;
    }
}

/* In the child nobody puts pages: all stacks are awake. A page that is there was put, and perhaps changed since. */
void sleeper_fork_child(void)
{
    os_pager_close(); /* it is the parent's memory that it would change */
    for (uint32_t i = 0; i < allg_count(); i++) {
        struct slept *s = allg_get(i)->slept;
        if (s == NULL || load_rlx(&s->awake)) {
            continue;
        }
        for (size_t done = 0; done < s->bytes;) {
            uintptr_t at = s->at + s->offset + done;
            size_t n = align_down(at, os_page_size()) + os_page_size() - at;
            n = n < s->bytes - done ? n : s->bytes - done;
            if (!os_resident((void *)align_down(at, os_page_size()))) {
                copy_bytes((volatile char *)at, s->live + done, n);
            }
            done += n;
        }
    }
    store_rlx(&sleeper_asleep, UINT64_C(0));
    memset(&sleeper, 0, sizeof sleeper);
}
