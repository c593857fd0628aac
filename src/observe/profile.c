/* profile.c - the heap profile: samples, by who allocated them.
 *
 * Purpose     Each byte that is allocated is sampled with a probability of 1 in loam_set_mem_profile_rate
 *             (heap/mcache.c finds which object that is, without a word on the fast path). Here the calls that led
 *             to it are looked up, counted, and counted again when the object ends (gc/ends.c).
 * Model       hash -> bucket -> bucket, by calls, size and type.
 *             As of a cycle: an object that the last cycle has not looked at yet would count as in use though it
 *             may be garbage, and the profile would depend on when it is read. So what is allocated in cycle c counts
 *             once cycle c + 1 has ended, as what is found dead after that: future[(c + 2) % 3], future[(c + 1) % 3].
 *             What loam_free frees counts when its allocation does, at the earliest. Nobody walks the buckets at the end of
 *             a cycle: each is brought up to date when it is touched.
 * Locking     profile.lock, a leaf; taken while busy, or under ends.lock.
 * From Go     mprof.go, and the scaling of samples in protomem.go; differs: by type, too; samples are drawn by run, not by object; buckets are brought up to date one by
 *             one, under a lock.
 * Tests       tests/api/profile.c
 */
#include "observe/profile.h"

#include "observe/pprof.h"

#include "gc/ends.h"
#include "heap/fixalloc.h"
#include "malloc/malloc.h"

#include <string.h>

#include <loam/stats.h>

enum { CHAINS = 1 << 14 };

struct profile_counts {
    uint64_t allocs, frees, alloc_bytes, free_bytes;
};

/* All samples of one size and type that one chain of calls allocated. Never freed. */
struct profile_bucket {
    struct profile_bucket *next; /* in its hash chain; fixed once it is found there */
    struct profile_bucket *all;  /* of all, the one made before */
    uint32_t hash;
    uint32_t depth;
    const struct gctype *type;
    size_t size;
    struct profile_counts
        active; /* as of the last cycle that ended; this and what follows: profile.lock */
    struct profile_counts future[3]; /* of cycle n at [n % 3] */
    uint32_t cycle;                  /* up to which active has it */
    uintptr_t pcs[];
};

static struct {
    struct mutex lock;
    struct profile_bucket **chains; /* CHAINS; NULL: not needed yet */
    _Atomic(struct profile_bucket *) all;
    _Atomic uint64_t bytes;
} profile;

/* -- counting, under profile.lock --------------------------------------------------------------- */

static void counts_add(struct profile_counts *to, const struct profile_counts *from)
{
    to->allocs += from->allocs;
    to->frees += from->frees;
    to->alloc_bytes += from->alloc_bytes;
    to->free_bytes += from->free_bytes;
}

/* What became due since it was touched last; of further cycles than two ahead there is nothing. */
static void bring_to_locked(struct profile_bucket *b, uint32_t cycle)
{
    for (int i = 0; i < 3 && (int32_t)(cycle - b->cycle) > 0; i++) {
        struct profile_counts *due = &b->future[++b->cycle % 3];
        counts_add(&b->active, due);
        *due = (struct profile_counts){0};
    }
    if ((int32_t)(cycle - b->cycle) > 0) {
        b->cycle = cycle;
    }
}

static uint32_t cycle_now(void)
{
    return load_acq(&heap.sweepgen) / 2; /* acquire: pairs with the flip */
}

static void count_ended(void *what, uint32_t when)
{
    struct profile_bucket *b = what;
    mutex_lock(&profile.lock);
    uint32_t cycle = cycle_now();
    bring_to_locked(b, cycle);
    uint32_t due = (int32_t)(when + 2 - (cycle + 1)) > 0 ? when + 2 : cycle + 1;
    struct profile_counts *c = &b->future[due % 3];
    c->frees++;
    c->free_bytes += b->size;
    mutex_unlock(&profile.lock);
}

static void count_allocated(struct profile_bucket *b, uint32_t when)
{
    mutex_lock(&profile.lock);
    bring_to_locked(b, cycle_now());
    struct profile_counts *c = (int32_t)(when + 2 - b->cycle) > 0 ? &b->future[(when + 2) % 3]
                                                                  : &b->active;
    c->allocs++;
    c->alloc_bytes += b->size;
    mutex_unlock(&profile.lock);
}

static struct profile_counts counts_of(struct m *m, struct profile_bucket *b)
{
    m_enter(m);
    mutex_lock(&profile.lock);
    uint32_t cycle = cycle_now();
    bring_to_locked(b, cycle);
    struct profile_counts c = b->active;
    if (load_acq(&gc.sweep_done)) { /* acquire: all that the last cycle found dead was told */
        counts_add(&c, &b->future[(cycle + 1) % 3]);
    }
    mutex_unlock(&profile.lock);
    m_leave(m);
    return c;
}

/* -- buckets ----------------------------------------------------------------------------------- */

static bool is_same(const struct profile_bucket *b, const struct profile_bucket *like,
                    const uintptr_t *pcs)
{
    return b->hash == like->hash && b->depth == like->depth && b->size == like->size &&
           b->type == like->type && memcmp(b->pcs, pcs, like->depth * sizeof *pcs) == 0;
}

static struct profile_bucket *bucket_make_locked(const struct profile_bucket *like,
                                                 const uintptr_t *pcs)
{
    size_t bytes = sizeof *like + like->depth * sizeof *pcs;
    struct profile_bucket *b = persistentalloc(bytes, sizeof(void *), &profile.bytes);
    if (b == NULL) {
        return NULL;
    }
    *b = *like;
    b->cycle = cycle_now();
    memcpy(b->pcs, pcs, like->depth * sizeof *pcs);
    struct profile_bucket **chain = &profile.chains[like->hash % CHAINS];
    b->next = *chain;
    *chain = b;
    b->all = load_rlx(&profile.all);
    store_rel(&profile.all, b); /* release: *b; pairs with loam_write_heap_profile */
    return b;
}

/* NULL: no memory. */
static struct profile_bucket *bucket_of(const struct profile_bucket *like, const uintptr_t *pcs)
{
    struct profile_bucket *b = NULL;
    mutex_lock(&profile.lock);
    if (profile.chains == NULL) {
        profile.chains = persistentalloc(CHAINS * sizeof(void *), CACHE_LINE, &profile.bytes);
    }
    if (profile.chains != NULL) {
        b = profile.chains[like->hash % CHAINS];
        while (b != NULL && !is_same(b, like, pcs)) {
            b = b->next;
        }
        b = b != NULL ? b : bucket_make_locked(like, pcs);
    }
    mutex_unlock(&profile.lock);
    return b;
}

/* On stacks that the program made nobody is said to have called: where such a stack ends may lie any word, and an unwinder that
 * takes it for an address of code reads there. Nor on a handler's stack, which may have no room for the unwinder, nor in a
 * handler that has interrupted it. */
static uint32_t callers(struct m *m, uintptr_t *pcs)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    uint32_t n = 0;
    if (here < m->stack_low || here >= m->stack_high || m->calls.under_way) {
        return 0;
    }
    *(volatile bool *)&m->calls.under_way = true;
    if (unlikely(os_unwind_locks())) {
        struct m_wait wait;
        m_begin_walk(m, &wait);
        n = (uint32_t)os_unwind(pcs, PPROF_DEPTH, m->stack_high, &m->calls);
        m_end_walk(m, &wait);
    } else {
        n = (uint32_t)os_unwind(pcs, PPROF_DEPTH, m->stack_high, &m->calls);
    }
    *(volatile bool *)&m->calls.under_way = false;
    return n;
}

/* What cannot be counted for lack of memory is not. */
static void sampled(struct m *m, void *obj)
{
    uintptr_t pcs[PPROF_DEPTH];
    struct mspan *s;
    size_t index;
    struct profile_bucket like = {.depth = callers(m, pcs)};
    m_enter(m);
    if (heap_find_object((uintptr_t)obj, &s, &index)) {
        like.type = s->type;
        like.size = s->elem_size;
        like.hash = (uint32_t)pprof_hash(pcs, like.depth, like.size ^ (uintptr_t)like.type);
        struct profile_bucket *b = bucket_of(&like, pcs);
        /* As the sweeper sees it: its span is of that generation. */
        uint32_t when = m->cache.sweepgen / 2;
        if (b != NULL && ends_add_sample(obj, b, when)) {
            count_allocated(b, when);
        }
    }
    m_leave(m);
}

/* -- writing ----------------------------------------------------------------------------------- */

/* e^-x for x >= 0: by halving it until the series is short. */
static double exp_minus(double x)
{
    if (x > 40) {
        return 0;
    }
    int halvings = 0;
    while (x > 1.0 / 16) {
        x /= 2;
        halvings++;
    }
    double e = 1 - x * (1 - x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5))));
    for (; halvings > 0; halvings--) {
        e *= e;
    }
    return e;
}

/* An object of size bytes was sampled with a probability of 1 - e^(-size / rate). */
static double scale_of(size_t size, int64_t rate)
{
    return rate <= 1 ? 1 : 1 / (1 - exp_minus((double)size / (double)rate));
}

static void put_bucket(struct pprof *w, struct m *m, struct profile_bucket *b, int64_t rate)
{
    struct profile_counts c = counts_of(m, b);
    if (c.allocs == 0) {
        return;
    }
    double scale = scale_of(b->size, rate);
    const uint64_t counted[] = {c.allocs, c.alloc_bytes, c.allocs - c.frees,
                                c.alloc_bytes - c.free_bytes};
    struct pprof_sample s = {
        .pcs = b->pcs,
        .depth = b->depth,
        .nvalues = 4,
        .labels = {{.key = "bytes", .number = b->size}, {.key = "type", .text = b->type->name}},
        .nlabels = 2,
    };
    for (size_t i = 0; i < s.nvalues; i++) {
        s.values[i] = (uint64_t)((double)counted[i] * scale + 0.5);
    }
    pprof_put(w, &s);
}

int loam_write_heap_profile(int fd)
{
    static const struct pprof_type types[] = {{"alloc_objects", "count"},
                                              {"alloc_space", "bytes"},
                                              {"inuse_objects", "count"},
                                              {"inuse_space", "bytes"}};
    struct m *m = malloc_self();
    if (m == NULL) {
        return -1;
    }
    /* acquire: pairs with bucket_make_locked. Those that come later are not in it. */
    struct profile_bucket *first = load_acq(&profile.all);
    size_t npcs = 0, nbuckets = 0;
    for (struct profile_bucket *b = first; b != NULL; b = b->all) {
        npcs += b->depth;
        nbuckets++;
    }
    struct pprof_head head = {types, 4, {"space", "bytes"}, load_rlx(&heap.sample_rate)};
    struct pprof *w = pprof_begin(m, fd, &head, npcs, nbuckets);
    if (w == NULL) {
        return -1;
    }
    for (struct profile_bucket *b = first; b != NULL; b = b->all) {
        put_bucket(w, m, b, head.period);
    }
    return pprof_end(w);
}

/* -- outside ----------------------------------------------------------------------------------- */

void profile_init(void)
{
    os_unwind_init();
    ends_sample_ended = count_ended;
    malloc_sampled = sampled;
}

uint64_t profile_bytes(void)
{
    return load_rlx(&profile.bytes);
}

int loam_set_mem_profile_rate(int bytes)
{
    (void)malloc_self(); /* what GODEBUG says came before */
    return (int)xchg_rlx(&heap.sample_rate, bytes > 0 ? (int64_t)bytes : 0); /* relaxed: a rate */
}
