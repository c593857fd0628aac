/* gscan.c - goroutines as the collector sees them.
 *
 * Purpose     All goroutines, by number; the stacks of those that are parked.
 * Model       A goroutine that runs is scanned with its thread, at [H-SCAN]. After that handshake the collector walks over all
 *             of them and scans the parked ones; one that is to run before its turn came is scanned by its worker. So each
 *             stack is scanned at least once while nobody runs on it, or by its own thread.
 *             What runs before its thread has answered [H-SCAN] may take over what that thread alone holds (thread-local
 *             storage): so it does not count as scanned, and the walk, or the next thread, scans it again.
 * Invariants  [gscan.once]   from the end of the walk to [mark-done] every goroutine was scanned in this cycle: parked, by the
 *                            walk or before it ran; running, by its thread's answer, or before it came there; born since the
 *                            answer of its creator, with its argument marked.
 *             [gscan.claim]  a parked stack is read, and its memory taken, by who has made it G_CLAIMED.
 * Locking     allgs.lock for growth alone.
 * From Go     markroot's stack jobs; differs: nobody is stopped for it.
 * Tests       tests/stress/goroutine_graph.c, goroutine_tls.c
 */
#include "sched/sched.h"

#include "gc/mark.h"
#include "heap/fixalloc.h"

#include <string.h>

enum {
    BLOCK = 1024,
    BLOCKS_MAX = 1 << 14, /* 16 million goroutines at a time */
    BETWEEN_LOOKS = 64,   /* goroutines, between two safepoints */
    CLAIM_PAUSE_NS = 10000,
    COLD_CYCLES = 2, /* so long an ended one keeps its memory */
};

static struct {
    struct mutex lock;
    _Atomic(struct g *) blocks[BLOCKS_MAX];
    _Atomic uint32_t n;
    uint32_t room;
} allgs;

struct g *allg_get(uint32_t index)
{
    return &load_acq(
        &allgs.blocks[index / BLOCK])[index % BLOCK]; /* acquire: pairs with allg_new */
}

uint32_t allg_count(void)
{
    return load_acq(&allgs.n); /* acquire: pairs with allg_new */
}

struct g *allg_new(void)
{
    struct g *g = NULL;
    mutex_lock(&allgs.lock);
    uint32_t n = load_rlx(&allgs.n);
    if (n == allgs.room && n < BLOCK * BLOCKS_MAX) {
        struct g *block = persistentalloc(BLOCK * sizeof *block, CACHE_LINE, &heap.stats.other_sys);
        if (block != NULL) {
            store_rel(&allgs.blocks[n / BLOCK], block); /* release: zeroes; pairs with allg_get */
            allgs.room += BLOCK;
        }
    }
    if (n < allgs.room) {
        g = &load_rlx(&allgs.blocks[n / BLOCK])[n % BLOCK];
        store_rel(&allgs.n, n + 1); /* release: its block; pairs with allg_count */
    }
    mutex_unlock(&allgs.lock);
    return g;
}

static void mark_stack(struct gcwork *w, struct g *g)
{
    mark_word(w, load_rlx(&g->arg));
    if (!sleeper_scan(w, g)) {
        mark_range(w, g->sp, g->stack_high);
    }
    if (unlikely(g->mstacks != NULL)) {
        mstack_scan_entered(w, g->mstacks);
    }
    add_rlx(&gc.stack_scan, (uint64_t)(g->stack_high - g->sp));
}

bool gscan_claim(struct g *g, uint32_t from)
{
    return cas_acqrel(&g->status, &from, G_CLAIMED); /* acquire: sp; pairs with arrive */
}

void gscan_unclaim(struct g *g)
{
    store_rel(&g->status, (uint32_t)G_PARKED); /* release: done; pairs with sched_claim_to_run */
}

static void cool_dead(struct g *g)
{
    if (gscan_claim(g, G_DEAD)) {
        if (g->stack_high != 0 && !g->cold) {
            if (++g->dead_cycles >= COLD_CYCLES) {
                stack_discard(g);
                g->cold = true;
            } else {
                stack_look(g, g->stack_high);
            }
        }
        store_rel(&g->status, (uint32_t)G_DEAD); /* release: done; pairs with born */
    }
}

static void scan_claimed(struct gcwork *w, struct g *g, uint32_t cycle)
{
    if (load_rlx(&g->scanned) != cycle) {
        mark_stack(w, g);
        store_rlx(&g->scanned, cycle);
    }
    if (g->ran) {
        g->ran = false;
        store_rlx(&g->parked_cycles, (uint8_t)0);
        stack_look(g, g->sp);
    } else {
        sleeper_count(g);
    }
    gscan_unclaim(g);
}

/* What is left of [gscan.once] for g. */
static void visit(struct gcwork *w, struct g *g, uint32_t cycle)
{
    uint32_t status;
    while ((status = load_acq(&g->status)) == G_PARKED || status == G_CLAIMED) {
        if (status == G_CLAIMED) {
            os_sleep_ns(CLAIM_PAUSE_NS); /* a report looks at it, and is busy meanwhile */
        } else if (load_rlx(&g->scanned) == cycle) {
            return;
        } else if (gscan_claim(g, G_PARKED)) {
            scan_claimed(w, g, cycle);
            return;
        }
    }
    if (status == G_DEAD) {
        cool_dead(g);
    }
}

/* The collector, after [H-SCAN]. */
static void walk(struct gcwork *w)
{
    uint32_t cycle = load_rlx(&gc.started);
    uint32_t n = allg_count();
    for (uint32_t i = 0; i < n; i++) {
        visit(w, allg_get(i), cycle);
        if (i % BETWEEN_LOOKS == BETWEEN_LOOKS - 1) {
            gcwork_publish(w);
            world_safepoint();
        }
    }
    gcwork_publish(w);
}

COLD static void scan_first(struct m *m, struct g *g)
{
    struct phase_hold h = gc_hold_phase(m);
    if (h.phase == GC_MARK) {
        uint32_t cycle = load_rlx(&gc.started);
        if (load_rlx(&g->scanned) != cycle) {
            mark_stack(&m->work, g);
            gcwork_publish(&m->work);
        }
        store_rlx(&g->scanned, m->scanned == cycle ? cycle : cycle - 1);
    }
    gc_release_phase(m, h);
}

void gscan_resume(struct m *m, struct g *g)
{
    /* acquire: pairs with the cycle */
    if (unlikely(load_acq(&gc.phase) == GC_MARK) &&
        (load_rlx(&g->scanned) != load_rlx(&gc.started) || m->scanned != load_rlx(&gc.started))) {
        scan_first(m, g);
    }
}

void gscan_born(struct m *m, struct g *g, uintptr_t arg)
{
    g->dead_cycles = 0;
    store_rlx(&g->arg, arg);
    store_rlx(&g->scanned, load_rlx(&gc.started) - 1);
    gscan_resume(m, g); /* its stack is empty, but for a frame */
}

void gscan_init(void)
{
    store_rel(&gc.walk_goroutines, walk); /* release: this folder's start; pairs with the cycle */
    store_rel(&gc.goroutines_fork_child, sched_fork_child);
    store_rel(&gc.thread_ended, sched_thread_ended);
    store_rel(&gc.rest_goroutines, sleeper_step);
}

/* -- for reports ------------------------------------------------------------------------------- */

bool gscan_is_parked(const struct g *g)
{
    return load_acq(&g->status) == G_PARKED; /* acquire: sp; pairs with arrive */
}

void gscan_each_root(const struct g *g, root_fn *fn, void *arg)
{
    struct walk_roots e = {fn, arg, {.kind = ROOT_STACK, .start = g->sp}};
    if (!sleeper_each_word(g, walk_root_word, &e)) {
        walk_range(g->sp, g->stack_high, walk_root_word, &e);
    }
    e.root.start = 0;
    e.root.kind = ROOT_ARGUMENT;
    walk_root_word(&e, 0, load_rlx(&g->arg));
    e.root.kind = ROOT_MSTACK;
    mstack_each_entered(g->mstacks, walk_root_word, &e);
}

void gscan_fork_child(void)
{
    for (uint32_t i = 0; i < load_rlx(&allgs.n); i++) {
        struct g *g = allg_get(i);
        if (load_rlx(&g->status) != G_RUNNING && g->mstacks != NULL) {
            mstack_fork_child(&g->mstacks);
        }
    }
    memset(&allgs.lock, 0, sizeof allgs.lock);
    store_rlx(&allgs.n, 0u);
    allgs.room = 0;
    memset((void *)allgs.blocks, 0, sizeof allgs.blocks);
}
