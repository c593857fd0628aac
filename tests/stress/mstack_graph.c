/* Managed stacks that goroutines and threads enter, leave and hand to each other at random: frames, the objects that only they hold,
 * and addresses within them stay whole, whoever moves or collects meanwhile.
 *
 * Pointers go from stack to stack, through locals, thread-local storage and objects, and leave nothing behind where they were. A
 * range of roots makes the moment long in which some threads have told the collector what they hold and others have not.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | --seconds 2 | 90
 * TEST_RUN: clobberfree | GOMAXPROCS=4 GOGC=5 GODEBUG=clobberfree=1 | --seconds 3 | 90
 * TEST_RUN: moves | GOMAXPROCS=4 GOGC=5 GODEBUG=clobberfree=1,mstackmove=1 | --seconds 3 | 90
 * TEST_RUN: gcstress | GODEBUG=gcstress=20,clobberfree=1,mstackmove=1 | --seconds 4 | 90
 * TEST_RUN: checkmark | GOGC=5 GODEBUG=gccheckmark=1,clobberfree=1 | --seconds 3 | 90
 * TEST_RUN: stoptheworld | GOGC=5 GODEBUG=gcstoptheworld=1,clobberfree=1 | --seconds 3 | 90 | stress
 * TEST_RUN: stress | GOMAXPROCS=4 GOGC=5 GODEBUG=clobberfree=1 | --seconds 30 | 120 | stress
 * TEST_RUN: long | GOMAXPROCS=4 GOGC=5 GODEBUG=gcstress=200,clobberfree=1 | --seconds 300 | 900 | long */
#include "../support/test.h"

#include <loam/sched.h>

#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { STACKS = 24, PLAYERS = 16, ROOT_BYTES = 8 << 20, REGS = 6, TURNS = 200 };

static uint64_t deepest = 2000;

typedef struct frame {
    struct frame *caller;
    item **window;      /* a register of this frame or of the caller */
    uint64_t ids[REGS]; /* of what the registers hold; NOTHING: nothing */
    item *regs[REGS];
} frame;
LOAM_TYPE(frame, regs);
LOAM_FRAME_INNER(frame, caller, window);

#define NOTHING UINT64_MAX

typedef struct table {
    loam_mstack *stack[STACKS];
    item *shared[STACKS];
} table;
LOAM_TYPE(table, stack, shared);

static table *all;
static loam_mutex lock[STACKS];
static _Atomic(bool) stop;
static _Atomic(uint64_t) next_id;
static __thread item *of_thread;

static void check_frame(loam_mstack *s, frame *f)
{
    EXPECT_PTR_EQ(f->caller, loam_mstack_below(s, f));
    frame *of = f->window >= f->regs && f->window < f->regs + REGS ? f : f->caller;
    EXPECT(of != NULL && f->window >= of->regs && f->window < of->regs + REGS);
    for (int i = 0; i < REGS; i++) {
        if (f->ids[i] == NOTHING) {
            EXPECT_NULL(f->regs[i]);
        } else {
            EXPECT_EQ(list_check(f->regs[i]), 2);
            EXPECT_EQ(f->regs[i]->id, f->ids[i]);
        }
    }
}

static void push(struct rng *rng, loam_mstack *s)
{
    frame *f = LOAM_PUSH(s, frame, 1);
    EXPECT_NOT_NULL(f);
    f->caller = loam_mstack_below(s, f);
    frame *of = f->caller != NULL && rng_below(rng, 2) == 0 ? f->caller : f;
    f->window = &of->regs[rng_below(rng, REGS)];
    for (int i = 0; i < REGS; i++) {
        f->ids[i] = NOTHING;
    }
}

static void put(frame *f, size_t reg, item *it)
{
    f->regs[reg] = it;
    f->ids[reg] = it == NULL ? NOTHING : it->id;
}

/* What the register held is nowhere else then. */
static item *take(frame *f, size_t reg)
{
    item *it = f->regs[reg];
    put(f, reg, NULL);
    return it;
}

static item *fresh(void)
{
    uint64_t id = atomic_fetch_add(&next_id, 1);
    return item_new(id, item_new(id, NULL));
}

/* Not inlined: the address of a thread-local is not kept over a call that parks. */
NOINLINE static item *swap_of_thread(item *it)
{
    item *old = of_thread;
    of_thread = it;
    return old;
}

static void step(struct rng *rng, loam_mstack *s)
{
    frame *top = loam_mstack_top(s);
    size_t reg = rng_below(rng, REGS);
    size_t place = rng_below(rng, STACKS);
    switch (top == NULL ? 0 : rng_below(rng, 10)) {
    case 0:
    case 1:
    case 2:
        push(rng, s);
        break;
    case 3:
        check_frame(s, top);
        loam_mstack_pop(s);
        break;
    case 4:
        put(top, reg, fresh());
        break;
    case 5: /* an object takes it, and gives what it held */
        put(top, reg, loam_exchange(&all->shared[place], take(top, reg)));
        break;
    case 6:
        put(top, reg, swap_of_thread(take(top, reg)));
        break;
    case 7:
        if (top->caller != NULL) {
            item *it = take(top->caller, reg);
            put(top->caller, reg, take(top, REGS - 1 - reg));
            put(top, REGS - 1 - reg, it);
        }
        break;
    case 8:
        if (rng_below(rng, 20) == 0) {
            for (uint64_t n = rng_below(rng, deepest); n > 0; n--) {
                push(rng, s);
            }
        }
        break;
    default:
        if (rng_below(rng, 20) == 0) {
            frame *to = top;
            for (uint64_t n = rng_below(rng, deepest); n > 0 && to != NULL; n--) {
                to = loam_mstack_below(s, to);
            }
            loam_mstack_unwind(s, to);
        }
        break;
    }
}

static void check_stack(loam_mstack *s)
{
    size_t n = 0;
    for (frame *f = loam_mstack_top(s); f != NULL && n < 100; f = f->caller, n++) {
        check_frame(s, f);
    }
}

/* One stack, or two, between which something goes over. */
static void turn(struct rng *rng)
{
    size_t i = rng_below(rng, STACKS);
    size_t j = rng_below(rng, STACKS);
    loam_mutex_lock(&lock[i]);
    loam_mstack *a = all->stack[i];
    EXPECT_EQ(loam_mstack_enter(a), 0);
    check_stack(a);
    for (uint64_t n = rng_below(rng, TURNS); n > 0; n--) {
        step(rng, a);
        if (rng_below(rng, 50) == 0) { /* perhaps to another thread, with the stack */
            loam_sleep(MICROSECONDS(rng_below(rng, 500)));
        }
    }
    item *it = NULL;
    frame *top = loam_mstack_top(a);
    size_t reg = rng_below(rng, REGS);
    if (top != NULL) {
        it = take(top, reg);
    }
    if (i != j && loam_mutex_trylock(&lock[j])) {
        loam_mstack *b = all->stack[j];
        if (rng_below(rng, 2) == 0) {
            loam_mstack_leave(a);
            a = NULL;
        }
        EXPECT_EQ(loam_mstack_enter(b), 0);
        if (loam_mstack_top(b) != NULL) {
            put(loam_mstack_top(b), reg, it);
        }
        check_stack(b);
        loam_mstack_leave(b);
        if (rng_below(rng, 50) == 0) {
            LOAM_SET(all->stack[j],
                     loam_mstack_make(0)); /* the old one goes with all that it holds */
        }
        loam_mutex_unlock(&lock[j]);
    }
    if (a != NULL) {
        loam_mstack_leave(a);
    }
    loam_mutex_unlock(&lock[i]);
}

static void play(void *arg)
{
    struct rng rng = rng_stream(10 + (uint64_t)(uintptr_t)arg);
    while (!atomic_load(&stop)) {
        turn(&rng);
    }
}

static void *collect(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
        usleep(1000);
    }
    return NULL;
}

static void handed_around(void)
{
    static struct crew crew;
    if (test_godebug("mstackmove=1")) {
        deepest = 100; /* each push copies them all */
    }
    LOAM_SET(all, LOAM_NEW(table));
    for (size_t i = 0; i < STACKS; i++) {
        LOAM_SET(all->stack[i], loam_mstack_make(0));
    }
    void *roots = calloc(1, ROOT_BYTES);
    EXPECT_EQ(loam_add_roots(roots, ROOT_BYTES), 0);
    pthread_t collector = thread_start(collect, NULL);
    for (size_t i = 0; i < PLAYERS; i++) {
        crew_start(&crew, i % 8 == 0 ? ON_THREAD : ON_GOROUTINE, play, (void *)(uintptr_t)i);
    }
    loam_sleep((int64_t)test_number("seconds", 1) * 1000000000);
    atomic_store(&stop, true);
    crew_join(&crew);
    thread_join(collector);
    EXPECT_EQ(loam_remove_roots(roots, ROOT_BYTES), 0);
    free(roots);
    for (size_t i = 0; i < STACKS; i++) {
        EXPECT_EQ(loam_mstack_enter(all->stack[i]), 0);
        check_stack(all->stack[i]);
        loam_mstack_leave(all->stack[i]);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(handed_around);
    return test_end();
}
