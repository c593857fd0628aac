/* Coroutines on stacks of their own (ucontext, memory from mmap, registered with loam_stack_add) keep what their locals
 * hold: while they run, while they are parked, and when another thread resumes them; and the thread's own stack keeps
 * what it holds while a coroutine runs.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90 */
#include "../support/test.h"

#include <sys/mman.h>
#include <ucontext.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/threads.h"

typedef struct tree {
    struct tree *left, *right;
    uint64_t magic;
    uint64_t size;
} tree;
LOAM_TYPE(tree, left, right);

#define MAGIC UINT64_C(0x7472656521212121)

static tree *tree_leaf(void)
{
    tree *t = LOAM_NEW(tree);
    EXPECT_NOT_NULL(t);
    t->magic = MAGIC;
    t->size = 1;
    return t;
}

static uint64_t tree_check(const tree *t)
{
    if (t == NULL) {
        return 0;
    }
    EXPECT_EQ(t->magic, MAGIC);
    uint64_t size = 1 + tree_check(t->left) + tree_check(t->right);
    EXPECT_EQ(size, t->size);
    return size;
}

enum { STACK_BYTES = 256 * 1024 };

/* At the high end of its own stack's memory, so that the saved registers are searched with the stack. */
struct coroutine {
    ucontext_t self;
    ucontext_t *caller; /* on the stack of the thread that resumed it */
    char *memory;       /* STACK_BYTES, this struct at their end */
    loam_stack *stack;
    struct rng rng;
    bool done;
    bool tell_live; /* parked: says what part is live */
    char *sp;       /* while parked */
    uint64_t turns;
};

static NOINLINE void coroutine_yield(struct coroutine *co)
{
    char *volatile here = __builtin_frame_address(0);
    co->sp = here - 4096; /* this frame and swapcontext's lie above */
    swapcontext(&co->self, co->caller);
}

/* Recursion: at each level a tree in a local, nowhere else. */
static NOINLINE tree *grow(struct coroutine *co, unsigned levels)
{
    if (levels == 0) {
        if (rng_below(&co->rng, 4) == 0) {
            coroutine_yield(co);
        }
        return tree_leaf();
    }
    tree *left = grow(co, levels - 1);
    if (rng_below(&co->rng, 8) == 0) {
        coroutine_yield(co);
    }
    tree *right = grow(co, levels - 1);
    if (levels >= 4) {
        coroutine_yield(co);
    }
    tree *t = tree_leaf();
    LOAM_SET(t->left, left);
    LOAM_SET(t->right, right);
    t->size = 1 + left->size + right->size;
    return t;
}

static void coroutine_main(unsigned high, unsigned low)
{
    struct coroutine *co = (struct coroutine *)((uintptr_t)high << 32 |
                                                low); /* NOLINT: makecontext takes ints */
    tree *kept = NULL;
    while (!co->done) {
        tree *t = grow(co, 5);
        EXPECT_EQ(tree_check(t), 63);
        EXPECT_EQ(tree_check(kept), kept != NULL ? 63u : 0u);
        kept = t;
        co->turns++;
        coroutine_yield(co);
    }
    coroutine_yield(co);
}

static struct coroutine *coroutine_new(uint64_t number, bool tell_live)
{
    char *memory = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                        0);
    EXPECT_PTR_NE(memory, MAP_FAILED);
    size_t head = (sizeof(struct coroutine) + 63) / 64 * 64;
    struct coroutine *co = (struct coroutine *)(void *)(memory + STACK_BYTES - head);
    co->memory = memory;
    co->rng = rng_stream(number);
    co->tell_live = tell_live;
    co->sp = memory + STACK_BYTES - head;
    co->stack = loam_stack_add(memory, STACK_BYTES, NULL);
    EXPECT_NOT_NULL(co->stack);
    EXPECT_EQ(getcontext(&co->self), 0);
    co->self.uc_stack.ss_sp = memory;
    co->self.uc_stack.ss_size = STACK_BYTES - head;
    co->self.uc_link = NULL;
    uintptr_t bits = (uintptr_t)co;
    makecontext(&co->self, (void (*)(void))coroutine_main, 2, (unsigned)(bits >> 32),
                (unsigned)bits);
    return co;
}

static void coroutine_free(struct coroutine *co)
{
    char *memory = co->memory;
    loam_stack_remove(co->stack);
    munmap(memory, STACK_BYTES);
}

/* On whatever thread: all of the stack is live while it runs, the part from sp while it is parked. */
static NOINLINE void coroutine_resume(struct coroutine *co)
{
    ucontext_t here;
    EXPECT_EQ(loam_stack_set(co->stack, NULL, 0), 0);
    co->caller = &here;
    EXPECT_EQ(swapcontext(&here, &co->self), 0);
    if (co->tell_live) {
        EXPECT_EQ(loam_stack_set(co->stack, co->sp, (size_t)(co->memory + STACK_BYTES - co->sp)),
                  0);
    }
}

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void run_on_this_thread(bool tell_live)
{
    enum { COROUTINES = 20 };
    struct coroutine *co[COROUTINES];
    struct rng rng = rng_stream(1);
    uint64_t turns = 0;

    for (size_t i = 0; i < COROUTINES; i++) {
        co[i] = coroutine_new(i, tell_live);
    }
    tree *mine = tree_leaf(); /* held by this thread's own stack alone */
    uint64_t start = now_ns();
    for (size_t n = 0; seconds_since(start) < (double)test_number("seconds", 1) * 0.7 || turns == 0;
         n++) {
        coroutine_resume(co[rng_below(&rng, COROUTINES)]);
        EXPECT_EQ(tree_check(mine), 1);
        if (n % 100 == 0) {
            loam_gc();
            mine = tree_leaf();
            turns = co[0]->turns;
        }
    }
    for (size_t i = 0; i < COROUTINES; i++) {
        coroutine_free(co[i]);
    }
}

static void parked_whole(void)
{
    run_on_this_thread(false);
}

static void parked_with_the_live_part(void)
{
    run_on_this_thread(true);
}

static void while_another_thread_collects(void)
{
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    run_on_this_thread(true);
    atomic_store(&stop, true);
    thread_join(collector);
}

/* While a coroutine runs and collects, what the thread's own stack holds stays. */
static void collecting_main(unsigned high, unsigned low)
{
    struct coroutine *co = (struct coroutine *)((uintptr_t)high << 32 |
                                                low); /* NOLINT: makecontext takes ints */
    for (;;) {
        tree *local = tree_leaf();
        for (int i = 0; i < 3; i++) {
            loam_gc();
            for (int k = 0; k < 1000; k++) {
                tree_leaf();
            }
        }
        EXPECT_EQ(tree_check(local), 1);
        coroutine_yield(co);
    }
}

static NOINLINE uint64_t hold_in_frames(struct coroutine *co, size_t levels)
{
    tree *here = tree_leaf();
    uint64_t below = 0;
    if (levels == 0) {
        coroutine_resume(co);
    } else {
        below = hold_in_frames(co, levels - 1);
    }
    return below + tree_check(here);
}

static void the_threads_own_stack_stays(void)
{
    struct coroutine *co = coroutine_new(7, false);
    uintptr_t bits = (uintptr_t)co;
    makecontext(&co->self, (void (*)(void))collecting_main, 2, (unsigned)(bits >> 32),
                (unsigned)bits);
    for (size_t levels = 0; levels < 200; levels += 20) {
        EXPECT_EQ(hold_in_frames(co, levels), levels + 1);
    }
    coroutine_free(co);
}

/* A pool of threads resumes whichever coroutine is parked. */
enum { POOL = 16 };
static struct coroutine *pool[POOL];
static bool pool_taken[POOL];
static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;

static size_t pool_take(struct rng *rng)
{
    while (!atomic_load(&stop)) {
        pthread_mutex_lock(&pool_lock);
        size_t i = rng_below(rng, POOL);
        bool got = !pool_taken[i];
        pool_taken[i] = true;
        if (got) {
            EXPECT_EQ(loam_stack_set(pool[i]->stack, NULL, 0), 0);
        }
        pthread_mutex_unlock(&pool_lock);
        if (got) {
            return i;
        }
        sched_yield();
    }
    return POOL;
}

static void pool_put(size_t i)
{
    pthread_mutex_lock(&pool_lock);
    pool_taken[i] = false;
    pthread_mutex_unlock(&pool_lock);
}

static void *pool_worker(void *arg)
{
    struct team_member *me = arg;
    EXPECT_EQ(loam_attach(), 0);
    for (size_t i = pool_take(&me->rng); i < POOL; i = pool_take(&me->rng)) {
        coroutine_resume(pool[i]);
        pool_put(i);
    }
    return NULL;
}

static void resumed_by_other_threads(void)
{
    static struct team team;
    struct rng rng = rng_stream(2);
    uint64_t turns = 0;

    for (size_t i = 0; i < POOL; i++) {
        pool[i] = coroutine_new(50 + i, i % 2 == 0);
    }
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, pool_worker, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    for (size_t i = 0; i < POOL; i++) {
        pool_take(&rng); /* the main thread, which stays, takes all over and keeps them */
    }
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
    loam_gc();
    for (size_t i = 0; i < POOL; i++) {
        coroutine_resume(pool[i]);
        turns += pool[i]->turns;
        coroutine_free(pool[i]);
    }
    EXPECT_GT(turns, 0);
}

static void child_remove_twice(void)
{
    static char memory[4096];
    loam_stack *s = loam_stack_add(memory, sizeof memory, NULL);
    loam_stack_remove(s);
    loam_stack_remove(s);
}

static void child_set_when_removed(void)
{
    static char memory[4096];
    loam_stack *s = loam_stack_add(memory, sizeof memory, NULL);
    loam_stack_remove(s);
    loam_stack_set(s, memory, sizeof memory);
}

static const struct child_case children[] = {{"remove_twice", child_remove_twice},
                                             {"set_when_removed", child_set_when_removed}};

static void what_is_not_added_aborts(void)
{
    struct child c;
    for (size_t i = 0; i < COUNT_OF(children); i++) {
        child_run(&c, children[i].name, NULL, 20);
        EXPECT_CHILD_ABORTED(&c);
        EXPECT_CONTAINS(c.text, "which is not added");
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN(what_is_not_added_aborts);
    if (TEST_SANITIZED) {
        test_skip("ucontext under a sanitizer");
        return test_end();
    }
    RUN(parked_whole);
    RUN(parked_with_the_live_part);
    RUN(while_another_thread_collects);
    RUN(the_threads_own_stack_stays);
    RUN(resumed_by_other_threads);
    return test_end();
}
