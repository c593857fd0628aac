/* goroutines.c - the goroutine profile: how many wait where.
 *
 * Model       Goroutines that were parked by the same calls for the same reason are one group; groups in a hash table
 *             that doubles. Each goroutine is looked at by itself (sched/report.c), so the sum is of no one moment.
 * Locking     none.
 * From Go     runtime/pprof's goroutine profile; differs: nothing is stopped, so of one that runs nobody knows where.
 * Tests       tests/api/profile.c
 */
#include "observe/pprof.h"

#include "heap/fixalloc.h"
#include "malloc/malloc.h"
#include "sched/sched.h"

#include <errno.h>
#include <string.h>

#include <loam/stats.h>

struct group {
    struct group *next;
    uint64_t hash, count;
    const char *why;
    size_t depth;
    uintptr_t pcs[];
};

struct groups {
    struct group **chains;
    size_t nchains; /* a power of two */
    size_t n, npcs;
};

static size_t group_bytes(size_t depth)
{
    return sizeof(struct group) + depth * sizeof(uintptr_t);
}

static void groups_fini(struct groups *gs)
{
    for (size_t i = 0; gs->chains != NULL && i < gs->nchains; i++) {
        struct group *next;
        for (struct group *g = gs->chains[i]; g != NULL; g = next) {
            next = g->next;
            metafree(g, group_bytes(g->depth));
        }
    }
    metafree(gs->chains, gs->nchains * sizeof(void *));
}

/* False: no memory, and nothing changed. */
static bool groups_grow(struct groups *gs)
{
    size_t n = gs->nchains == 0 ? 256 : 2 * gs->nchains;
    struct group **chains = metaalloc(n * sizeof(void *));
    if (chains == NULL) {
        return false;
    }
    for (size_t i = 0; i < gs->nchains; i++) {
        struct group *next;
        for (struct group *g = gs->chains[i]; g != NULL; g = next) {
            next = g->next;
            g->next = chains[g->hash & (n - 1)];
            chains[g->hash & (n - 1)] = g;
        }
    }
    metafree(gs->chains, gs->nchains * sizeof(void *));
    gs->chains = chains;
    gs->nchains = n;
    return true;
}

/* Where the program called: what the library did to park it says `why`. */
static size_t callers_of(const struct goroutine_look *look, uintptr_t pcs[GOROUTINE_FRAMES])
{
    size_t n = 0;
    for (size_t i = 0; i < look->n; i++) {
        uintptr_t pc = (uintptr_t)look->pcs[i] - 1; /* into the call */
        if (n != 0 || !os_is_own_code(pc)) {
            pcs[n++] = pc;
        }
    }
    return n;
}

/* False: no memory. */
static bool groups_count(struct groups *gs, const struct goroutine_look *look)
{
    uintptr_t pcs[GOROUTINE_FRAMES];
    size_t n = callers_of(look, pcs);
    uint64_t hash = pprof_hash(pcs, n, (uintptr_t)look->why);
    if (gs->n >= gs->nchains && !groups_grow(gs)) {
        return false;
    }
    struct group **chain = &gs->chains[hash & (gs->nchains - 1)];
    for (struct group *g = *chain; g != NULL; g = g->next) {
        if (g->hash == hash && g->why == look->why && g->depth == n &&
            memcmp(g->pcs, pcs, n * sizeof *pcs) == 0) {
            g->count++;
            return true;
        }
    }
    struct group *g = metaalloc(group_bytes(n));
    if (g == NULL) {
        return false;
    }
    *g = (struct group){.next = *chain, .hash = hash, .count = 1, .why = look->why, .depth = n};
    memcpy(g->pcs, pcs, n * sizeof *pcs);
    *chain = g;
    gs->n++;
    gs->npcs += n;
    return true;
}

static int write_groups(struct m *m, int fd, const struct groups *gs)
{
    static const struct pprof_type types[] = {{"goroutine", "count"}};
    struct pprof_head head = {types, 1, types[0], 1};
    struct pprof *w = pprof_begin(m, fd, &head, gs->npcs, gs->n);
    if (w == NULL) {
        return -1;
    }
    for (size_t i = 0; i < gs->nchains; i++) {
        for (const struct group *g = gs->chains[i]; g != NULL; g = g->next) {
            struct pprof_sample s = {.pcs = g->pcs,
                                     .depth = g->depth,
                                     .values = {g->count},
                                     .nvalues = 1,
                                     .labels = {{.key = "state", .text = g->why}},
                                     .nlabels = 1};
            pprof_put(w, &s);
        }
    }
    return pprof_end(w);
}

int loam_write_goroutine_profile(int fd)
{
    struct groups gs = {0};
    struct goroutine_look look;
    struct m *m = malloc_self();
    bool ok = m != NULL;
    for (uint32_t i = 0; ok && i < allg_count(); i++) {
        ok = !report_look(i, &look) || groups_count(&gs, &look);
    }
    int result = ok ? write_groups(m, fd, &gs) : -1;
    int error = ok ? errno : ENOMEM;
    groups_fini(&gs);
    errno = error;
    return result;
}
