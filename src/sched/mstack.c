/* mstack.c - managed stacks: frames for interpreters, described by maps, that move.
 *
 * Purpose     A contiguous stack of frames that is searched precisely, grows by doubling and shrinks by halving, both by
 *             copying it and adjusting the addresses in it that point into it.
 * Model       struct loam_mstack is a heap object; the memory of its frames is another one, noscan, of a power of two bytes:
 *             so it comes from the size classes of the thread's cache, counts for pacing and limit, and dies with the stack.
 *             Before each frame lies its head: map, length, the frame below.
 *             MS_LEFT -> MS_ENTERED -> MS_LEFT, by loam_mstack_enter and _leave;  MS_LEFT -> MS_SCANNED -> MS_LEFT, by a
 *             marker that has come to the object;  MS_LEFT -> MS_HALVED -> MS_LEFT, by the library's own thread, which enters
 *             it as a program does.
 * Invariants  [mstack.owner]    frames are written, without a barrier, and moved, by who has entered the stack.
 *             [mstack.scanned]  what lies on it when it is left is marked before the cycle ends. It is searched with the stack
 *                               of who has entered it; else by the marker that comes to the object, or, since that happens
 *                               once in a cycle and perhaps too early, by who enters it or leaves it while a cycle marks.
 *                               Who has not answered [H-SCAN] may bring something that nobody has marked: he searches when he
 *                               leaves, whoever has done so before.
 *             [mstack.frame]    `frame` says all: a push writes it last, a pop first, and a handler that comes in between, or
 *                               leaves by siglongjmp, finds whole frames.
 *             [mstack.small]    gc.small_stacks is written while a cycle marks, dropped at its [roots], and taken from
 *                               between cycles: what lies on it was marked in the last one, or made alive again for its
 *                               finalizer, and is never freed by the program.
 * Locking     none. Who finds MS_SCANNED or MS_HALVED waits for it, not busy.
 * From Go     runtime/stack.go: newstack, copystack, shrinkstack, adjustframe; differs: memory of the heap instead of caches of
 *             its own, no stack cache is flushed; upwards; a frame has a head instead of a return address to look up.
 * Tests       tests/api/mstack.c, tests/stress/mstack_graph.c
 */
#include "sched/sched.h"

#include "base/bits.h"
#include "base/check.h"
#include "gc/mark.h"

#include <errno.h>
#include <string.h>

#include <loam/sched.h>

enum mstack_state { MS_LEFT, MS_ENTERED, MS_SCANNED, MS_HALVED };

enum {
    LEAST_BYTES = 2048, /* Go's */
    DEFAULT_MOST = 1000000000,
    MOST = 1 << 30,
    ALIGN = 16,
    POISON = 0xa5,
    PAUSE_NS = 1000,
};

struct frame_head {
    const loam_frame_map *map;
    uint32_t bytes; /* of the frame */
    uint32_t below; /* as loam_mstack.frame */
};
enum { HEAD = sizeof(struct frame_head) };
_Static_assert(sizeof(struct frame_head) == 16, "a frame lies behind its head, aligned");

/* Zeroed it is empty and left. All but state, scanned and arg: of who has entered it. */
struct loam_mstack {
    char *base;     /* the memory of its frames; NULL: none yet */
    uint32_t bytes; /* of it */
    uint32_t frame; /* offset of the topmost frame; 0: none */
    uint32_t
        limit; /* a frame that would end beyond takes the slow way: bytes or most; 0: the stack is to be moved */
    uint32_t most;
    _Atomic uint32_t state;    /* enum mstack_state */
    _Atomic uint32_t scanned;  /* the last cycle in which it was searched */
    struct loam_mstack *next;  /* entered by the same */
    struct loam_mstack *small; /* in gc.small_stacks, entered or not */
    uint32_t noted;            /* the last cycle in which it was put there; who searches it */
    void (*on_move)(loam_mstack *s, const loam_move *move, void *arg);
    void *arg;
};

static struct frame_head *head_of(const struct loam_mstack *s, uint32_t frame)
{
    return (struct frame_head *)(s->base + frame) - 1;
}

static uint32_t end_of(const struct loam_mstack *s, uint32_t frame)
{
    return frame == 0 ? 0 : frame + (uint32_t)align_up(head_of(s, frame)->bytes, ALIGN);
}

static uint32_t used_of(const struct loam_mstack *s)
{
    return end_of(s, s->frame);
}

/* -- the collector ----------------------------------------------------------------------------- */

/* Not in pieces: a stack is searched as a whole, as others are. */
static void mark_frames(struct gcwork *w, struct loam_mstack *s)
{
    uint32_t used = used_of(s), cycle = load_rlx(&gc.started);
    mark_word(w, (uintptr_t)s->base);
    for (uint32_t at = s->frame; at != 0; at = head_of(s, at)->below) {
        const struct frame_head *head = head_of(s, at);
        scan_typed(w, gctype_known(head->map->type), (uintptr_t)(s->base + at), head->bytes);
    }
    w->look_at -= w->look_at < used ? w->look_at
                                    : used; /* the marker looks at the clock the sooner */
    if (load_rlx(&gc.phase) == GC_MARK && xchg_rlx(&s->scanned, cycle) != cycle) {
        add_rlx(&gc.stack_scan, (uint64_t)used);
    }
}

void mstack_each_entered(struct loam_mstack *first, walk_fn *fn, void *arg)
{
    for (struct loam_mstack *s = first; s != NULL; s = s->next) {
        fn(arg, 0, (uintptr_t)s);
    }
}

/* As mark_frames. */
void mstack_each_word(const struct loam_mstack *s, walk_fn *fn, void *arg)
{
    fn(arg, (uintptr_t)&s->base, (uintptr_t)s->base);
    fn(arg, (uintptr_t)&s->arg, (uintptr_t)s->arg);
    for (uint32_t at = s->frame; at != 0; at = head_of(s, at)->below) {
        const struct frame_head *head = head_of(s, at);
        walk_typed(gctype_known(head->map->type), (uintptr_t)(s->base + at), head->bytes, fn, arg);
    }
}

static bool is_small(const struct loam_mstack *s)
{
    return s->bytes > LEAST_BYTES && used_of(s) < s->bytes / 4;
}

/* Once in a cycle, however often it is searched (as one with a finalizer). */
static void note_small(struct loam_mstack *s)
{
    if (s->noted == load_rlx(&gc.started)) {
        return;
    }
    s->noted = load_rlx(&gc.started);
    struct loam_mstack *head = load_rlx(&gc.small_stacks);
    do {
        s->small = head;
    } while (!cas_acqrel(&gc.small_stacks, &head, s)); /* release: small; pairs with take_small */
}

/* A marker has come to the object. */
static void mstack_scan(const struct loam_mstack *obj, size_t bytes, loam_marker *marker)
{
    struct loam_mstack *s = (struct loam_mstack *)(uintptr_t)obj;
    uint32_t left = MS_LEFT;
    (void)bytes;
    loam_mark(marker, __atomic_load_n(&s->arg, __ATOMIC_RELAXED)); /* as any field */
    /* To a checker it is no witness, as other stacks: it is written without a barrier. */
    if (marker->fn == NULL && cas_acqrel(&s->state, &left, MS_SCANNED)) {
        mark_frames(marker->w, s);
        if (is_small(s) && s->on_move == NULL) {
            note_small(s);
        }
        store_rel(&s->state, (uint32_t)MS_LEFT); /* release: searched; pairs with claim */
    }
}
LOAM_TYPE_SCANNED(loam_mstack, mstack_scan);

/* Of a thread at [H-SCAN], or of a goroutine that is parked. */
void mstack_scan_entered(struct gcwork *w, struct loam_mstack *first)
{
    for (struct loam_mstack *s = first; s != NULL; s = s->next) {
        mark_word(w, (uintptr_t)s);
        mark_frames(w, s);
        if (is_small(s)) {
            s->limit = 0; /* the next push finds it; as Go's poisoned stack guard */
        }
    }
}

static void scan_managed(struct m *m)
{
    mstack_scan_entered(&m->work, m->mstacks);
}

/* [mstack] when s is left; busy, and the phase holds still. */
static void search_left(struct m *m, struct loam_mstack *s, uint32_t phase)
{
    uint32_t cycle = load_rlx(&gc.started);
    bool done = phase == GC_MARK && m->scanned == cycle && load_rlx(&s->scanned) == cycle;
    if (gc_phase_marks(phase) && !done) {
        mark_frames(&m->work, s);
        gcwork_publish(&m->work);
    }
}

/* [mstack] when it is entered; busy. Before GC_MARK it will be searched with the caller's stack. */
static void search_entered(struct m *m, struct loam_mstack *s)
{
    struct phase_hold h = gc_hold_phase(m);
    if (h.phase == GC_MARK && load_rlx(&s->scanned) != load_rlx(&gc.started)) {
        mark_frames(&m->work, s);
        gcwork_publish(&m->work);
    }
    gc_release_phase(m, h);
}

static void leave_all(struct m *m, uint32_t phase)
{
    struct loam_mstack *next;
    for (struct loam_mstack *s = m->mstacks; s != NULL; s = next) {
        next = s->next;
        search_left(m, s, phase);
        store_rel(&s->state, (uint32_t)MS_LEFT); /* release: its frames; pairs with claim */
    }
    m->mstacks = NULL;
}

void mstack_leave_all(struct m *m)
{
    struct phase_hold h = gc_hold_phase(m);
    leave_all(m, h.phase);
    gc_release_phase(m, h);
}

/* Whoever had entered them is not there. */
void mstack_fork_child(struct loam_mstack **first)
{
    for (struct loam_mstack *s = *first; s != NULL; s = s->next) {
        store_rlx(&s->state, (uint32_t)MS_LEFT);
    }
    *first = NULL;
}

/* -- entering ---------------------------------------------------------------------------------- */

/* The state that was found: MS_LEFT, it is the caller's now. */
static uint32_t claim(struct m *m, struct loam_mstack *s, uint32_t as)
{
    uint32_t state = MS_LEFT;
    m_enter(m);
    /* acquire: its frames; pairs with unclaim, and with the end of a search. */
    if (cas_acqrel(&s->state, &state, as)) {
        if (unlikely(load_acq(&gc.phase) == GC_MARK)) { /* acquire: pairs with the cycle */
            search_entered(m, s);
        }
        s->next = m->mstacks;
        compiler_barrier(); /* a handler finds whole lists */
        m->mstacks = s;
    }
    m_leave(m);
    return state;
}

int loam_mstack_enter(loam_mstack *s)
{
    struct m *m = malloc_self();
    if (m == NULL) {
        return -1;
    }
    uint32_t found;
    while ((found = claim(m, s, MS_ENTERED)) == MS_SCANNED || found == MS_HALVED) {
        os_sleep_ns(PAUSE_NS);
    }
    if (found == MS_ENTERED) {
        errno = EBUSY;
        return -1;
    }
    return 0;
}

static bool unclaim(struct m *m, struct loam_mstack *s)
{
    m_enter(m);
    struct loam_mstack **at = &m->mstacks;
    while (*at != NULL && *at != s) {
        at = &(*at)->next;
    }
    bool ours = *at != NULL;
    if (ours) {
        struct phase_hold h = gc_hold_phase(m);
        search_left(m, s, h.phase);
        *at = s->next;
        store_rel(&s->state, (uint32_t)MS_LEFT); /* release: its frames; pairs with claim */
        gc_release_phase(m, h);
    }
    m_leave(m);
    return ours;
}

void loam_mstack_leave(loam_mstack *s)
{
    struct m *m = malloc_self();
    CHECK(m != NULL && unclaim(m, s), "loam_mstack_leave of %p, which the caller has not entered",
          (void *)s);
}

ALWAYS_INLINE void must_be_entered(const struct loam_mstack *s, const char *call)
{
    /* relaxed: it does not change while the caller has it */
    CHECK(load_rlx(&s->state) == MS_ENTERED, "%s of %p, which the caller has not entered", call,
          (const void *)s);
}

/* -- moving ------------------------------------------------------------------------------------ */

static void adjust_inner(const loam_frame_map *map, char *frame, size_t bytes, const loam_move *mv)
{
    size_t size = map->type->size;
    bool flex = (map->type->flags & LOAM_TYPE_IS_FLEX) != 0;
    size_t n = flex ? 1 : bytes / size;
    for (size_t i = 0; i < n; i++, frame += size) {
        for (uint32_t f = 0; f < map->ninner; f++) {
            uintptr_t *word = (uintptr_t *)(frame + map->inner[f].offset);
            for (uint32_t w = 0; w < map->inner[f].words; w++) {
                word[w] = (uintptr_t)loam_moved(mv, (void *)word[w]);
            }
        }
    }
}

/* In the copy of s's frames at `to`. */
static void adjust_frames(const struct loam_mstack *s, char *to)
{
    loam_move mv = {(uintptr_t)s->base, (uintptr_t)to, s->bytes};
    for (uint32_t at = s->frame; at != 0;) {
        const struct frame_head *head = (struct frame_head *)(to + at) - 1;
        const loam_frame_map *map = head->map;
        if (map->ninner != 0) {
            adjust_inner(map, to + at, head->bytes, &mv);
        }
        if (map->adjust != NULL) {
            map->adjust(to + at, head->bytes, &mv);
        }
        at = head->below;
    }
}

/* A byte behind the topmost frame is within the block, so that an address of its end is one of this stack. */
static uint32_t limit_of(const struct loam_mstack *s)
{
    uint32_t room = s->bytes == 0 ? 0 : s->bytes - ALIGN;
    return gc.options.mstack_move ? 0 : room < s->most ? room : s->most;
}

/* s is the caller's. Its frames go to `to`, which has room for them; gives what they leave. Until base is written, whoever
 * searches s finds the old ones, which are as good: so this takes its time. */
static char *move_frames(struct m *m, struct loam_mstack *s, char *to, size_t bytes)
{
    char *old = s->base;
    if (s->frame != 0) {
        memcpy(to, old, used_of(s));
        adjust_frames(s, to);
    }
    m_enter(m); /* whole in the child of a fork, too */
    s->base = to;
    s->bytes = (uint32_t)bytes;
    s->limit = limit_of(s);
    m_leave(m);
    return old;
}

static void free_memory(struct m *m, char *old, size_t bytes)
{
    if (old != NULL) {
        if (gc.options.mstack_move) {
            memset(old, POISON, bytes);
        }
        malloc_free(m, old);
    }
}

/* Room for a frame that ends at `end`; errno. */
static NOINLINE bool make_room(struct loam_mstack *s, size_t end)
{
    if (end > s->most) {
        errno = EOVERFLOW;
        return false;
    }
    size_t bytes = s->bytes != 0 ? s->bytes : LEAST_BYTES;
    if (bytes > LEAST_BYTES && end < bytes / 4) {
        bytes /= 2;
    }
    while (bytes < end + ALIGN) {
        bytes *= 2;
    }
    if (bytes == s->bytes && !gc.options.mstack_move) {
        s->limit = limit_of(s);
        return true;
    }
    struct m *m = malloc_self();
    bool has_room = end + ALIGN <= s->bytes; /* then it can do without, and nobody is told */
    char *to = has_room ? malloc_quietly(m, &gctype_noscan, bytes) : loam_alloc_noscan(bytes);
    if (to == NULL) {
        s->limit = limit_of(s);
        return has_room;
    }
    loam_move mv = {(uintptr_t)s->base, (uintptr_t)to, s->bytes};
    char *old = move_frames(m, s, to, bytes);
    if (s->on_move != NULL && old != NULL) {
        s->on_move(s, &mv, s->arg);
    }
    free_memory(malloc_self(), old, mv.bytes);
    return true;
}

/* Between cycles, or none: [mstack.small]. */
static struct loam_mstack *take_small(struct m *m)
{
    struct loam_mstack *s = NULL;
    m_enter(m);                          /* so no cycle comes to [roots] meanwhile */
    if (load_acq(&gc.phase) == GC_OFF) { /* acquire: pairs with the flip */
        s = load_acq(&gc.small_stacks);  /* acquire: small; pairs with note_small */
        if (s != NULL) {
            store_rlx(&gc.small_stacks, s->small);
        }
    }
    m_leave(m);
    return s;
}

/* Half of what s has, if that is small and nobody is on it; else 0. */
static size_t half_of(struct m *m, struct loam_mstack *s)
{
    size_t half = 0;
    if (claim(m, s, MS_HALVED) == MS_LEFT) {
        half = is_small(s) && s->on_move == NULL ? s->bytes / 2 : 0;
        (void)unclaim(m, s);
    }
    return half;
}

/* The library's own thread: one of those that the last cycle found small. */
static bool halve_one(struct m *m)
{
    struct loam_mstack *s = take_small(m);
    size_t half = s == NULL ? 0 : half_of(m, s);
    char *unused = half == 0 ? NULL
                             : malloc_quietly(m, &gctype_noscan, half); /* nobody waits for it */
    if (unused != NULL && claim(m, s, MS_HALVED) == MS_LEFT) {
        if (is_small(s) && s->on_move == NULL && s->bytes / 2 == half) { /* still */
            unused = move_frames(m, s, unused, half);
            half *= 2;
        }
        (void)unclaim(m, s);
    }
    free_memory(m, unused, half);
    return s != NULL;
}

/* -- frames ------------------------------------------------------------------------------------ */

/* With the first of them; those who make it at a time write the same. */
static COLD void start(void)
{
    store_rlx(&gc.managed_type, gctype_known(LOAM_TYPEOF(loam_mstack)));
    store_rel(&gc.leave_managed, leave_all);
    store_rel(&gc.halve_managed, halve_one);
    store_rel(&gc.goroutines_fork_child, sched_fork_child);
    store_rel(&gc.scan_managed,
              scan_managed); /* release: the last; pairs with who finds m->mstacks */
}

loam_mstack *loam_mstack_make(size_t max_bytes)
{
    if (max_bytes > MOST) {
        errno = EINVAL;
        return NULL;
    }
    loam_mstack *s = LOAM_NEW(loam_mstack);
    if (s != NULL) {
        s->most = max_bytes != 0 ? (uint32_t)max_bytes : DEFAULT_MOST;
        if (unlikely(load_acq(&gc.scan_managed) == NULL)) { /* acquire: pairs with start */
            start();
        }
    }
    return s;
}

/* Its type is ready to be searched by. False: errno. */
static NOINLINE bool know_type(const loam_frame_map *map)
{
    if (map == NULL || map->type == NULL) {
        errno = EINVAL;
        return false;
    }
    struct m *m = malloc_self();
    m_enter(m);
    bool ok = gctype_intern(map->type) != NULL;
    m_leave(m);
    return ok;
}

/* MOST where it is too much. */
ALWAYS_INLINE size_t frame_bytes(const loam_type *t, size_t count)
{
    size_t bytes;
    bool flex = (t->flags & LOAM_TYPE_IS_FLEX) != 0;
    if (__builtin_mul_overflow(flex ? t->tail_size : t->size, count, &bytes) || bytes > MOST) {
        return MOST;
    }
    bytes += flex ? t->tail_offset : 0;
    return flex && bytes < t->size ? t->size : bytes;
}

void *loam_mstack_push(loam_mstack *s, const loam_frame_map *map, size_t count)
{
    must_be_entered(s, "loam_mstack_push");
    if (unlikely(map == NULL || map->type == NULL || gctype_known(map->type) == NULL) &&
        !know_type(map)) {
        return NULL;
    }
    size_t bytes = frame_bytes(map->type, count);
    size_t room = align_up(bytes, ALIGN);
    uint32_t at = used_of(s) + HEAD;
    if (unlikely(at + room > s->limit) && !make_room(s, at + room)) {
        return NULL;
    }
    memset(s->base + at, 0, room);
    *head_of(s, at) = (struct frame_head){map, (uint32_t)bytes, s->frame};
    compiler_barrier(); /* [mstack.frame] */
    s->frame = at;
    return s->base + at;
}

void loam_mstack_pop(loam_mstack *s)
{
    must_be_entered(s, "loam_mstack_pop");
    CHECK(s->frame != 0, "loam_mstack_pop of %p, which is empty", (void *)s);
    s->frame = head_of(s, s->frame)->below;
    compiler_barrier(); /* [mstack.frame] */
}

void loam_mstack_unwind(loam_mstack *s, const void *frame)
{
    must_be_entered(s, "loam_mstack_unwind");
    uint32_t at = s->frame;
    uintptr_t to = frame == NULL ? 0 : (uintptr_t)frame - (uintptr_t)s->base;
    while (at != 0 && at != to) {
        at = head_of(s, at)->below;
    }
    CHECK(at == to, "loam_mstack_unwind to %p, which is no frame of %p", frame, (void *)s);
    s->frame = at;
    compiler_barrier(); /* [mstack.frame] */
}

void *loam_mstack_top(const loam_mstack *s)
{
    must_be_entered(s, "loam_mstack_top");
    return s->frame == 0 ? NULL : s->base + s->frame;
}

void *loam_mstack_below(const loam_mstack *s, const void *frame)
{
    must_be_entered(s, "loam_mstack_below");
    uintptr_t at = (uintptr_t)frame - (uintptr_t)s->base;
    CHECK(at >= HEAD && at <= s->frame, "loam_mstack_below of %p, which is no frame of %p", frame,
          (const void *)s);
    uint32_t below = head_of(s, (uint32_t)at)->below;
    return below == 0 ? NULL : s->base + below;
}

size_t loam_mstack_bytes(const loam_mstack *s, size_t *used)
{
    must_be_entered(s, "loam_mstack_bytes");
    if (used != NULL) {
        *used = used_of(s);
    }
    return s->bytes;
}

void loam_mstack_on_move(loam_mstack *s, void (*fn)(loam_mstack *, const loam_move *, void *),
                         void *arg)
{
    s->on_move = fn;
    gc_store(malloc_self(), &s->arg, (uintptr_t)arg);
}
