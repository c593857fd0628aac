/* Forks in the middle of a cycle, while threads allocate: a thousand in the long run.  Each child checks the parent's
 * structure, collects, makes one of its own, checks both, and ends; some fork once more.  The parent never notices.
 * A fork counts if one cycle had the write barrier on before and after it; the test goes on until enough have counted.
 * While the world stands nobody can fork: with gcstoptheworld each one counts.
 *
 * --count N (forks that count)
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | --count 100 | 240
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | --count 50 | 240
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | --count 50 | 240
 * TEST_RUN: thousand | | --count 1000 | 3600 | long */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/threads.h"

typedef struct tree {
    struct tree *left, *right;
    uint64_t id;
    uint64_t check;
} tree;
LOAM_TYPE(tree, left, right);

static tree *tree_new(unsigned depth, uint64_t id)
{
    tree *t = LOAM_NEW(tree);
    EXPECT_NOT_NULL(t);
    t->id = id;
    t->check = rng_mix(id);
    if (depth > 0) {
        LOAM_SET(t->left, tree_new(depth - 1, 2 * id));
        LOAM_SET(t->right, tree_new(depth - 1, 2 * id + 1));
    }
    return t;
}

static size_t tree_check(const tree *t, uint64_t id)
{
    if (t == NULL) {
        return 0;
    }
    EXPECT_EQ(t->id, id);
    EXPECT_EQ(t->check, rng_mix(id));
    return 1 + tree_check(t->left, 2 * id) + tree_check(t->right, 2 * id + 1);
}

enum { DEPTH = 10, NODES = (1 << (DEPTH + 1)) - 1 };

static tree *shared_tree;
static _Atomic(bool) stop;
static pid_t parent;
static uint64_t during_cycles;

/* Outside of the library's own handlers. The cycle that was running before runs on: the fork fell into it. */
static uint32_t running_cycle(void)
{
    loam_memstats m;
    loam_read_memstats(&m);
    return barrier_is_on() ? m.num_gc + 1 : 0;
}

static uint32_t cycle_before;

static void before_fork(void)
{
    cycle_before = running_cycle();
}

static void after_fork(void)
{
    bool same = cycle_before != 0 && running_cycle() == cycle_before;
    during_cycles += same && getpid() == parent ? 1 : 0;
}

static void *allocate(void *arg)
{
    struct team_member *me = arg;
    tree *mine = NULL;
    while (!atomic_load(&stop)) {
        if (rng_below(&me->rng, 4) == 0) {
            mine = tree_new(6, 1);
        }
        tree_new(3, 1);
        if (mine != NULL) {
            EXPECT_EQ(tree_check(mine, 1), 127);
        }
        loam_free(loam_alloc_noscan(rng_below(&me->rng, 100000)));
    }
    return NULL;
}

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static NOINLINE void live_as_child(bool fork_again)
{
    EXPECT_EQ(tree_check(shared_tree, 1), NODES);
    tree *mine = tree_new(8, 1);
    loam_gc();
    EXPECT_EQ(tree_check(shared_tree, 1), NODES);
    EXPECT_EQ(tree_check(mine, 1), 511);
    if (fork_again) {
        pid_t pid = fork();
        EXPECT_MSG(pid >= 0, "fork: %s", strerror(errno));
        if (pid == 0) {
            live_as_child(false);
            _exit(0);
        }
        child_wait(pid);
    }
    LOAM_SET(shared_tree, mine);
    loam_gc();
    EXPECT_EQ(tree_check(shared_tree, 1), 511);
}

int main(int argc, char **argv)
{
    static struct team team;
    loam_memstats m;
    test_begin(argc, argv);
    parent = getpid();
    EXPECT_EQ(pthread_atfork(before_fork, after_fork, NULL), 0);
    LOAM_SET(shared_tree, tree_new(DEPTH, 1));
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 3, allocate, NULL);
    uint64_t count = test_number("count", 1000);
    uint64_t done = 0;
    bool any = test_godebug("gcstoptheworld");
    for (; (any ? done : during_cycles) < count; done++) {
        pid_t pid = fork();
        EXPECT_MSG(pid >= 0, "fork: %s", strerror(errno));
        if (pid == 0) {
            live_as_child(done % 10 == 0);
            _exit(0);
        }
        if (done % 8 == 0) {
            EXPECT_EQ(tree_check(shared_tree, 1), NODES);
        }
        child_wait(pid);
    }
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
    EXPECT_EQ(tree_check(shared_tree, 1), NODES);
    loam_read_memstats(&m);
    printf("%" PRIu64 " forks, %" PRIu64 " of them during a cycle, of which there were %u\n", done,
           during_cycles, m.num_gc);
    return test_end();
}
