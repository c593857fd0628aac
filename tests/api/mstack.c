/* A managed stack keeps its frames whatever happens to it: doubled, halved, left, handed on, forked; what its maps name lives and what
 * they do not name dies; addresses within it are true after each move. With a move at each push nothing else comes out.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: moves | GODEBUG=mstackmove=1,clobberfree=1 | | 60
 * TEST_RUN: stress | GODEBUG=gcstress=20,clobberfree=1 | | 120
 * TEST_RUN: stress_moves | GODEBUG=gcstress=20,clobberfree=1,mstackmove=1 | | 120
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1 GOGC=5 | | 120
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1,clobberfree=1 GOGC=5 | | 120 */
#include "../support/test.h"

#include <sys/resource.h>

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

/* An interpreter's: some words of its own, addresses within the stack, registers. */
typedef struct frame {
    item *constant;
    struct frame *caller;
    item **window; /* the caller's register 0, or one of its own */
    uint64_t depth;
    item *regs[];
} frame;
LOAM_TYPE_FLEX(frame, regs, constant);
LOAM_FRAME_INNER(frame, caller, window);

/* Without anything within the stack; one word is not named. */
typedef struct plain {
    item *named;
    uintptr_t unnamed;
} plain;
LOAM_TYPE(plain, named);
LOAM_FRAME(plain);

/* Tagged words: the lowest bit says that the rest is an address within the stack. */
typedef struct tagged {
    uintptr_t word[6];
} tagged;
static void tagged_scan(const tagged *t, size_t bytes, loam_marker *m)
{
    for (size_t i = 0; i < bytes / sizeof t->word[0]; i++) {
        uintptr_t word = ((const volatile uintptr_t *)t->word)[i];
        if ((word & 1) == 0) {
            loam_mark(m, (const void *)word);
        }
    }
}
static void tagged_adjust(tagged *t, size_t bytes, const loam_move *move)
{
    for (size_t i = 0; i < bytes / sizeof t->word[0]; i++) {
        if ((t->word[i] & 1) != 0) {
            t->word[i] = (uintptr_t)loam_moved(move, (void *)(t->word[i] - 1)) + 1;
        }
    }
}
LOAM_TYPE_SCANNED(tagged, tagged_scan);
LOAM_FRAME_ADJUSTED(tagged, tagged_adjust);

static bool moves_always(void)
{
    return test_godebug("mstackmove=1");
}

static loam_mstack *entered(size_t max_bytes)
{
    loam_mstack *s = loam_mstack_make(max_bytes);
    EXPECT_NOT_NULL(s);
    EXPECT_EQ(loam_mstack_enter(s), 0);
    return s;
}

static size_t bytes_of(loam_mstack *s)
{
    return loam_mstack_bytes(s, NULL);
}

/* ---- frames ---- */

enum { REGS = 5 };

static void push_one(loam_mstack *s, uint64_t depth)
{
    frame *below = loam_mstack_top(s);
    EXPECT(below == NULL || below->depth + 1 == depth);
    frame *f = LOAM_PUSH(s, frame, REGS);
    EXPECT_NOT_NULL(f);
    EXPECT_EQ((uintptr_t)f % 16, 0);
    EXPECT_PTR_EQ(f, loam_mstack_top(s));
    EXPECT(f->constant == NULL && f->caller == NULL && f->depth == 0);
    for (int i = 0; i < REGS; i++) {
        EXPECT_NULL(f->regs[i]);
    }
    f->depth = depth;
    f->caller = loam_mstack_below(s, f);
    f->window = f->caller != NULL ? &f->caller->regs[0] : &f->regs[REGS - 1];
    f->constant = item_new(depth, NULL);
    f->regs[depth % REGS] = item_new(depth + 1, item_new(depth + 2, NULL));
}

static void check_one(loam_mstack *s, const frame *f, uint64_t depth)
{
    EXPECT_EQ(f->depth, depth);
    EXPECT_EQ(f->constant->id, depth);
    item_check(f->constant);
    EXPECT_EQ(list_check(f->regs[depth % REGS]), 2);
    EXPECT_EQ(f->regs[depth % REGS]->id, depth + 1);
    EXPECT_PTR_EQ(f->caller, loam_mstack_below(s, f));
    EXPECT_PTR_EQ(f->window, f->caller != NULL ? &f->caller->regs[0]
                                               : &((frame *)(uintptr_t)f)->regs[REGS - 1]);
}

static void check_all(loam_mstack *s, uint64_t depth)
{
    const frame *f = loam_mstack_top(s);
    for (; f != NULL; f = loam_mstack_below(s, f)) {
        check_one(s, f, --depth);
    }
    EXPECT_EQ(depth, 0);
}

static void push_many(loam_mstack *s, uint64_t from, uint64_t to)
{
    for (uint64_t d = from; d < to; d++) {
        push_one(s, d);
    }
}

static void frames(void)
{
    size_t depth = moves_always() || test_godebug("gcstress") ? 300 : 3000;
    loam_mstack *s = entered(0);
    size_t used = 1;
    EXPECT_NULL(loam_mstack_top(s));
    EXPECT_EQ(loam_mstack_bytes(s, &used), 0);
    EXPECT_EQ(used, 0);
    push_one(s, 0);
    EXPECT_EQ(loam_mstack_bytes(s, &used), 2048);
    EXPECT(used >= sizeof(frame) + REGS * sizeof(item *) && used <= 128);
    push_many(s, 1, depth);
    loam_gc();
    check_all(s, depth);
    EXPECT_GE(loam_mstack_bytes(s, &used), used);
    EXPECT_EQ(bytes_of(s) & (bytes_of(s) - 1), 0);
    for (size_t d = depth; d > depth / 2; d--) {
        check_one(s, loam_mstack_top(s), d - 1);
        loam_mstack_pop(s);
    }
    check_all(s, depth / 2);
    frame *f = loam_mstack_top(s);
    for (int i = 0; i < 10; i++) {
        f = loam_mstack_below(s, f);
    }
    loam_mstack_unwind(s, f);
    EXPECT_PTR_EQ(loam_mstack_top(s), f);
    check_all(s, depth / 2 - 10);
    push_many(s, depth / 2 - 10, depth / 2);
    check_all(s, depth / 2);
    loam_mstack_unwind(s, NULL);
    EXPECT_NULL(loam_mstack_top(s));
    push_one(s, 0);
    loam_mstack_leave(s);
}

/* Of all sizes, also none, and far larger than the stack was. */
static void sizes(void)
{
    struct rng rng = rng_stream(1);
    loam_mstack *s = entered(0);
    for (int round = 0; round < 40; round++) {
        size_t count = 1 + rng_below(&rng, UINT64_C(1) << rng_below(&rng, 13));
        plain *p = LOAM_PUSH(s, plain, count);
        for (size_t i = 0; i < count; i++) {
            EXPECT(p[i].named == NULL && p[i].unnamed == 0);
            p[i].unnamed = i;
        }
        p[count - 1].named = item_new(count, NULL);
        EXPECT_NOT_NULL(LOAM_PUSH(s, plain, 0));
    }
    loam_gc();
    for (int round = 0; round < 40; round++) {
        loam_mstack_pop(s);
        plain *p = loam_mstack_top(s);
        size_t n = 1;
        while (p[n - 1].named == NULL) {
            EXPECT_EQ(p[n - 1].unnamed, n - 1);
            n++;
        }
        item_check(p[n - 1].named);
        EXPECT_EQ(p[n - 1].named->id, n);
        loam_mstack_pop(s);
    }
    EXPECT_NULL(loam_mstack_top(s));
    loam_mstack_leave(s);
}

static void tagged_words(void)
{
    loam_mstack *s = entered(0);
    size_t n = moves_always() || test_godebug("gcstress") ? 100 : 2000;
    for (size_t i = 0; i < n; i++) {
        EXPECT_NOT_NULL(LOAM_PUSH(s, tagged, 1));
        tagged *t = loam_mstack_top(s);
        tagged *below = loam_mstack_below(s, t);
        t->word[0] = (uintptr_t)item_new(i, NULL);
        t->word[1] = (uintptr_t)(below != NULL ? below : t) + 1;
        t->word[2] = (uintptr_t)&t->word[5] + 1;
        t->word[3] = (uintptr_t)t; /* not tagged: stays as it is */
        t->word[4] = i * 2 + 1;    /* tagged, and points nowhere */
    }
    loam_gc();
    for (size_t i = n; i-- > 0;) {
        tagged *t = loam_mstack_top(s);
        item_check((item *)t->word[0]);
        EXPECT_EQ(((item *)t->word[0])->id, i);
        tagged *below = loam_mstack_below(s, t);
        EXPECT_EQ(t->word[1], (uintptr_t)(below != NULL ? below : t) + 1);
        EXPECT_EQ(t->word[2], (uintptr_t)&t->word[5] + 1);
        EXPECT_EQ(t->word[4], i * 2 + 1);
        loam_mstack_pop(s);
    }
    loam_mstack_leave(s);
}

/* The end of a frame, which may be where the block would end. */
typedef struct operand {
    struct operand *end;
} operand;
LOAM_TYPE_NOSCAN(operand);
LOAM_FRAME_INNER(operand, end);

static void ends_of_frames(void)
{
    loam_mstack *s = entered(0);
    for (int i = 0; i < 600; i++) {
        operand *o = LOAM_PUSH(s, operand, 2); /* with its head 32 bytes */
        operand *below = loam_mstack_below(s, o);
        EXPECT(below == NULL || below->end == below + 2);
        o->end = o[1].end = o + 2;
    }
    for (operand *o = loam_mstack_top(s); o != NULL; o = loam_mstack_below(s, o)) {
        EXPECT_PTR_EQ(o->end, o + 2);
        EXPECT_PTR_EQ(o[1].end, o + 2);
    }
    loam_mstack_leave(s);
}

/* ---- what lives, and what dies ---- */

enum { BATCH = 300 };

struct batch {
    loam_mstack *stack;
    struct watch named, unnamed, popped;
};

static void fill_batch(void *arg)
{
    struct batch *b = arg;
    watch_init(&b->named, BATCH);
    watch_init(&b->unnamed, BATCH);
    watch_init(&b->popped, BATCH);
    b->stack = entered(0);
    for (size_t i = 0; i < BATCH; i++) {
        item *named = item_new(i, NULL);
        item *unnamed = item_new(i, NULL);
        watch_set(&b->named, i, named);
        watch_set(&b->unnamed, i, unnamed);
        plain *p = LOAM_PUSH(b->stack, plain, 1);
        p->named = named;
        p->unnamed = (uintptr_t)unnamed;
    }
    for (size_t i = 0; i < BATCH; i++) {
        item *popped = item_new(i, NULL);
        watch_set(&b->popped, i, popped);
        plain *p = LOAM_PUSH(b->stack, plain, 1);
        p->named = popped;
    }
    for (size_t i = 0; i < BATCH; i++) {
        loam_mstack_pop(b->stack);
    }
}

static void searched_precisely(void)
{
    struct batch b;
    memset(&b, 0, sizeof b);
    call_deep(fill_batch, &b);
    EXPECT_MOST_DIE(&b.unnamed);
    EXPECT_MOST_DIE(&b.popped);
    EXPECT_ALL_LIVE(&b.named);
    loam_mstack_leave(b.stack);
    EXPECT_ALL_LIVE(&b.named);
    EXPECT_EQ(loam_mstack_enter(b.stack), 0);
    EXPECT_ALL_LIVE(&b.named);
    loam_mstack_unwind(b.stack, NULL);
    EXPECT_MOST_DIE(&b.named);
    loam_mstack_leave(b.stack);
}

/* A coroutine that nothing names goes with its stack, though its own frames name it. */
typedef struct coroutine {
    loam_mstack *stack;
    item *result;
} coroutine;
LOAM_TYPE(coroutine, stack, result);

typedef struct own_frame {
    coroutine *self;
    loam_mstack *stack;
} own_frame;
LOAM_TYPE(own_frame, self, stack);
LOAM_FRAME(own_frame);

static void leave_coroutines(void *arg)
{
    struct watch *w = arg;
    watch_init(w, BATCH);
    for (size_t i = 0; i < BATCH; i++) {
        coroutine *c = LOAM_NEW(coroutine);
        loam_mstack *s = entered(0);
        LOAM_SET(c->stack, s);
        own_frame *f = LOAM_PUSH(s, own_frame, 1);
        f->self = c;
        f->stack = s;
        loam_mstack_leave(s);
        watch_set(w, i, c);
    }
}

static void unreachable_ones_are_collected(void)
{
    struct watch w;
    call_deep(leave_coroutines, &w);
    EXPECT_MOST_DIE(&w);
}

/* ---- halved ---- */

static void halved_by_a_push(void)
{
    loam_mstack *s = entered(0);
    push_many(s, 0, 1000);
    size_t high = bytes_of(s);
    while (((frame *)loam_mstack_top(s))->depth > 10) {
        loam_mstack_pop(s);
    }
    for (int i = 0; i < 20 && bytes_of(s) > 2048; i++) {
        loam_gc();
        loam_gc();
        push_one(s, 11);
        check_all(s, 12);
        loam_mstack_pop(s);
    }
    EXPECT_GT(high, 32768);
    EXPECT_LE(bytes_of(s), 4096);
    check_all(s, 11);
    loam_mstack_leave(s);
}

static size_t bytes_when_entered(loam_mstack *s)
{
    EXPECT_EQ(loam_mstack_enter(s), 0);
    size_t bytes = bytes_of(s);
    loam_mstack_leave(s);
    return bytes;
}

static void halved_while_left(void)
{
    loam_mstack *s[6];
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        s[i] = entered(0);
        push_many(s[i], 0, 500);
        while (((frame *)loam_mstack_top(s[i]))->depth > 10) {
            loam_mstack_pop(s[i]);
        }
        EXPECT_GT(bytes_of(s[i]), 16384);
        loam_mstack_leave(s[i]);
    }
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        COLLECT_UNTIL(30, bytes_when_entered(s[i]) <= 4096);
        EXPECT_EQ(loam_mstack_enter(s[i]), 0);
        check_all(s[i], 11);
        push_many(s[i], 11, 300);
        check_all(s[i], 300);
        loam_mstack_leave(s[i]);
    }
}

/* However often it is searched in a cycle, as one with a finalizer is; and the thread that halves is done at some time. */
static void no_finalizer(void *obj, void *arg)
{
    (void)obj;
    (void)arg;
}

static double processor_seconds(void)
{
    struct timespec t;
    EXPECT_EQ(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t), 0);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void halved_with_a_finalizer(void)
{
    loam_mstack *s[4];
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        s[i] = entered(0);
        EXPECT_EQ(loam_set_finalizer(s[i], no_finalizer, NULL), 0);
        push_many(s[i], 0, 500);
        while (((frame *)loam_mstack_top(s[i]))->depth > 10) {
            loam_mstack_pop(s[i]);
        }
        loam_mstack_leave(s[i]);
    }
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        COLLECT_UNTIL(30, bytes_when_entered(s[i]) <= 4096);
    }
    loam_sleep(MILLISECONDS(50));
    double before = processor_seconds();
    loam_sleep(MILLISECONDS(200));
    EXPECT(processor_seconds() - before < 0.15);
}

/* What has room asks nobody for memory, though the collector wants it smaller. */
static void refuse(void *arg)
{
    (void)arg;
    FAIL("the out-of-memory handler is called for a push that has room");
}

static void child_halved_without_memory(void)
{
    loam_mstack *s = entered(0);
    push_many(s, 0, 1000);
    while (((frame *)loam_mstack_top(s))->depth > 10) {
        loam_mstack_pop(s);
    }
    struct rlimit limit = {0, 0};
    loam_gc();
    EXPECT_EQ(setrlimit(RLIMIT_DATA, &limit), 0);
    void **kept = NULL; /* all there is, in a list */
    for (size_t bytes = 1 << 20; bytes >= 16; bytes /= 2) {
        for (void **more; (more = loam_alloc(bytes)) != NULL; kept = more) {
            LOAM_SET(more[0], (void *)kept);
        }
    }
    loam_set_oom_handler(refuse, NULL);
    frame *f = LOAM_PUSH(s, frame, REGS);
    EXPECT_NOT_NULL(f);
    loam_keep_alive(kept);
}

static void halving_needs_no_memory(void)
{
    struct child c;
    if (TEST_SANITIZED || emulated() || test_godebug("gcstress")) {
        test_skip("memory cannot be refused, or only slowly");
        return;
    }
    child_run(&c, "halved_without_memory", NULL, 60);
    EXPECT_CHILD_PASSED(&c);
}

/* ---- who keeps an address elsewhere is told ---- */

typedef struct outside {
    frame *at;
    uint64_t moves;
} outside;
LOAM_TYPE(outside, at);

static void told(loam_mstack *s, const loam_move *move, void *arg)
{
    outside *o = arg;
    (void)s;
    LOAM_SET(o->at, loam_moved(move, o->at));
    o->moves++;
}

static void told_of_each_move(void)
{
    loam_mstack *s = entered(0);
    outside *o = LOAM_NEW(outside);
    loam_mstack_on_move(s, told, o);
    push_one(s, 0);
    push_one(s, 1);
    LOAM_SET(o->at, loam_mstack_top(s));
    push_many(s, 2, 500);
    EXPECT_GE(o->moves, moves_always() ? 497 : 5);
    EXPECT_EQ(o->at->depth, 1);
    check_one(s, o->at, 1);
    loam_mstack_unwind(s, o->at);
    EXPECT_PTR_EQ(loam_mstack_top(s), o->at);
    frame *before = o->at;
    loam_mstack_leave(s);
    loam_gc();
    loam_gc();
    loam_sleep(MILLISECONDS(20));
    EXPECT_EQ(loam_mstack_enter(s), 0);
    EXPECT_PTR_EQ(loam_mstack_top(s), before); /* nobody moved it behind our back */
    loam_mstack_on_move(s, NULL, NULL);
    loam_mstack_leave(s);
}

/* ---- several at once, handed on, ends of threads ---- */

static void several_at_once(void)
{
    loam_mstack *s[8];
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        s[i] = entered(0);
    }
    for (uint64_t d = 0; d < 50; d++) {
        for (size_t i = 0; i < COUNT_OF(s); i++) {
            push_one(s[i], d);
        }
    }
    loam_gc();
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        check_all(s[i], 50);
    }
    static const size_t order[] = {3, 0, 7, 1, 6, 2, 5, 4}; /* not the last one first */
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        loam_mstack_leave(s[order[i]]);
        loam_gc();
    }
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        EXPECT_EQ(loam_mstack_enter(s[i]), 0);
        check_all(s[i], 50);
        EXPECT_ERRNO(loam_mstack_enter(s[i]), -1, EBUSY);
        loam_mstack_leave(s[i]);
    }
}

/* Ends without having left. */
static void enter_and_end(void *arg)
{
    loam_mstack *s = arg;
    EXPECT_EQ(loam_mstack_enter(s), 0);
    push_many(s, 20, 40);
}

static void *enter_and_end_thread(void *arg)
{
    enter_and_end(arg);
    return NULL;
}

static void left_at_the_end(void)
{
    static loam_mstack *s;
    LOAM_SET(s, entered(0));
    push_many(s, 0, 20);
    loam_mstack_leave(s);
    thread_run(enter_and_end_thread, s);
    EXPECT_EQ(loam_mstack_enter(s), 0);
    check_all(s, 40);
    loam_mstack_unwind(s, NULL);
    push_many(s, 0, 20);
    loam_mstack_leave(s);
    go_run(enter_and_end, s);
    EXPECT_EQ(loam_mstack_enter(s), 0);
    check_all(s, 40);
    loam_mstack_leave(s);
    LOAM_SET(s, NULL);
}

/* A goroutine keeps what it has entered, wherever it goes on. */
static _Atomic(size_t) migrants;

static void migrate(void *arg)
{
    (void)arg;
    loam_mstack *s = entered(0);
    for (uint64_t d = 0; d < 100; d++) {
        push_one(s, d);
        loam_yield();
    }
    loam_sleep(MILLISECONDS(5));
    check_all(s, 100);
    loam_mstack_leave(s);
    atomic_fetch_add(&migrants, 1);
}

static void kept_by_goroutines(void)
{
    static struct crew crew;
    atomic_store(&migrants, 0);
    for (int i = 0; i < 32; i++) {
        crew_start(&crew, ON_GOROUTINE, migrate, NULL);
    }
    crew_join(&crew);
    EXPECT_EQ(atomic_load(&migrants), 32);
}

/* ---- fork ---- */

struct forked {
    loam_mstack *stack;
    _Atomic(bool) ready, stop;
};

static void *push_and_pop(void *arg)
{
    struct forked *f = arg;
    EXPECT_EQ(loam_mstack_enter(f->stack), 0);
    push_many(f->stack, 0, 10);
    atomic_store(&f->ready, true);
    while (!atomic_load(&f->stop)) {
        push_many(f->stack, 10, 60);
        loam_mstack_unwind(f->stack, NULL);
        push_many(f->stack, 0, 10);
    }
    loam_mstack_leave(f->stack);
    return NULL;
}

static void in_the_child(void)
{
    static struct forked f;
    if (emulated()) {
        test_skip("fork beside running threads, which qemu-user does not survive");
        return;
    }
    loam_mstack *own = entered(0);
    push_many(own, 0, 30);
    loam_mstack *other = loam_mstack_make(0);
    LOAM_SET(f.stack, other);
    pthread_t thread = thread_start(push_and_pop, &f);
    WAIT_BY(30, atomic_load(&f.ready), usleep(100));
    for (int i = 0; i < 5; i++) {
        fflush(NULL);
        pid_t pid = fork();
        EXPECT_GE(pid, 0);
        if (pid == 0) {
            check_all(own, 30);
            push_many(own, 30, 60);
            EXPECT_EQ(loam_mstack_enter(other), 0); /* nobody is on it here */
            frame *top =
                loam_mstack_top(other); /* what the program wrote into it may be half done */
            for (top = top == NULL ? NULL : loam_mstack_below(other, top); top != NULL;
                 top = loam_mstack_below(other, top)) {
                check_one(other, top, top->depth);
            }
            loam_mstack_unwind(other, NULL);
            push_many(other, 0, 100);
            loam_gc();
            check_all(other, 100);
            check_all(own, 60);
            _exit(0);
        }
        int status;
        EXPECT_EQ(waitpid(pid, &status, 0), pid);
        EXPECT_EQ(status, 0);
    }
    atomic_store(&f.stop, true);
    thread_join(thread);
    check_all(own, 30);
    loam_mstack_leave(own);
}

/* ---- what cannot be ---- */

static void too_deep(void)
{
    loam_mstack *s = entered(10000);
    uint64_t d = 0;
    size_t used;
    while (LOAM_PUSH(s, plain, 5) != NULL) {
        ((plain *)loam_mstack_top(s))->unnamed = ++d;
    }
    EXPECT_EQ(errno, EOVERFLOW);
    EXPECT_EQ(d, 10000 / (5 * sizeof(plain) + 16));
    EXPECT_LE(loam_mstack_bytes(s, &used), 16384);
    EXPECT_LE(used, 10000);
    EXPECT_EQ(((plain *)loam_mstack_top(s))->unnamed, d); /* as it was */
    EXPECT_NOT_NULL(LOAM_PUSH(s, plain, 0));
    EXPECT_ERRNO(LOAM_PUSH(s, plain, SIZE_MAX), NULL, EOVERFLOW);
    EXPECT_ERRNO(LOAM_PUSH(s, plain, SIZE_MAX / sizeof(plain)), NULL, EOVERFLOW);
    EXPECT_ERRNO(LOAM_PUSH(s, frame, SIZE_MAX / sizeof(void *)), NULL, EOVERFLOW);
    EXPECT_ERRNO(LOAM_PUSH(s, frame, SIZE_MAX), NULL, EOVERFLOW);
    loam_mstack_leave(s);
}

static void bad_arguments(void)
{
    static const loam_type crooked = {.name = "crooked", .field_names = "", .size = 8, .align = 64};
    static const loam_frame_map maps[] = {{.type = NULL}, {.type = &crooked}};
    loam_mstack *s = entered(0);
    EXPECT_ERRNO(loam_mstack_push(s, NULL, 1), NULL, EINVAL);
    EXPECT_ERRNO(loam_mstack_push(s, &maps[0], 1), NULL, EINVAL);
    EXPECT_ERRNO(loam_mstack_push(s, &maps[1], 1), NULL, EINVAL);
    EXPECT_ERRNO(loam_mstack_make(((size_t)1 << 30) + 1), NULL, EINVAL);
    EXPECT_ERRNO(loam_mstack_make(SIZE_MAX), NULL, EINVAL);
    loam_mstack_leave(s);
}

static void child_push_left(void)
{
    loam_mstack *s = loam_mstack_make(0);
    LOAM_PUSH(s, plain, 1);
}
static void child_pop_empty(void)
{
    loam_mstack_pop(entered(0));
}
static void child_leave_left(void)
{
    loam_mstack_leave(loam_mstack_make(0));
}
static void child_free(void)
{
    loam_free(loam_mstack_make(0));
}
static void child_free_entered(void)
{
    loam_realloc(entered(0), 100);
}
static void *enter_only(void *arg)
{
    EXPECT_EQ(loam_mstack_enter(arg), 0);
    sleep(100);
    return NULL;
}
static void child_leave_others(void)
{
    static loam_mstack *s;
    LOAM_SET(s, loam_mstack_make(0));
    thread_start(enter_only, s);
    while (loam_mstack_enter(s) == 0) {
        loam_mstack_leave(s);
        usleep(1000);
    }
    loam_mstack_leave(s);
}
static void child_unwind_astray(void)
{
    loam_mstack *s = entered(0);
    plain *p = LOAM_PUSH(s, plain, 3);
    loam_mstack_unwind(s, p + 1);
}
static void child_below_astray(void)
{
    int here = 0;
    loam_mstack_below(entered(0), &here);
}

static const struct child_case children[] = {
    {"push_left", child_push_left},
    {"pop_empty", child_pop_empty},
    {"leave_left", child_leave_left},
    {"leave_others", child_leave_others},
    {"free", child_free},
    {"free_entered", child_free_entered},
    {"halved_without_memory", child_halved_without_memory},
    {"unwind_astray", child_unwind_astray},
    {"below_astray", child_below_astray},
};

static void misuse_ends_with_a_message(void)
{
    static const char *const cases[][2] = {
        {"push_left", "loam_mstack_push of"},
        {"pop_empty", "loam_mstack_pop of"},
        {"leave_left", "loam_mstack_leave of"},
        {"leave_others", "loam_mstack_leave of"},
        {"unwind_astray", "loam_mstack_unwind to"},
        {"below_astray", "loam_mstack_below of"},
        {"free", "a managed stack is left to the collector"},
        {"free_entered", "a managed stack is left to the collector"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct child c;
        child_run(&c, cases[i][0], NULL, 60);
        EXPECT_CHILD_ABORTED(&c);
        EXPECT_CONTAINS(c.text, cases[i][1]);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN_BOTH(frames);
    RUN_BOTH(sizes);
    RUN_BOTH(tagged_words);
    RUN(ends_of_frames);
    RUN(searched_precisely);
    RUN(unreachable_ones_are_collected);
    RUN_BOTH(halved_by_a_push);
    RUN(halved_while_left);
    RUN(halved_with_a_finalizer);
    RUN(halving_needs_no_memory);
    RUN_BOTH(told_of_each_move);
    RUN(several_at_once);
    RUN(left_at_the_end);
    RUN(kept_by_goroutines);
    RUN(in_the_child);
    RUN(too_deep);
    RUN(bad_arguments);
    RUN(misuse_ends_with_a_message);
    return test_end();
}
