/* Threads that allocate flat out beside a live heap of lists and trees do not drive it past the goal of the cycle.
 *
 * The cycle in the middle ends at 1.4 times its goal at most, from 400 MiB on at 1.15.  Measured on two processors that
 * thirty other threads wanted, too: 1.00 to 1.06 at 400 MiB, 1.00 to 1.19 at 64 MiB, 1.08 to 1.24 at 8 MiB.  The worst
 * one is printed only: it is not bounded.  An allocator at the goal goes on at a run of 8 KiB each 100 us, however long a
 * handshake waits for a thread that the kernel does not run; 1.2, 1.4 and 7.2 times the goal were seen.
 *
 * Each case is a process of its own, whose cycles are read from GODEBUG=gcpacertrace=1: the heap when marking ended, and
 * the goal set before it began.
 *
 * TEST_LABEL: stress
 * TEST_TIMEOUT: 240 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/threads.h"

typedef struct node {
    struct node *left, *right;
    uint64_t id;
    uint64_t fill[5];
} node;
LOAM_TYPE(node, left, right);

static node *node_new(node *left, node *right)
{
    node *n = LOAM_NEW(node);
    EXPECT_NOT_NULL(n);
    LOAM_SET(n->left, left);
    LOAM_SET(n->right, right);
    return n;
}

static node *tree_new(unsigned depth)
{
    return depth == 0 ? node_new(NULL, NULL) : node_new(tree_new(depth - 1), tree_new(depth - 1));
}

static node *list_new(size_t length)
{
    node *n = NULL;
    while (length-- > 0) {
        n = node_new(NULL, n);
    }
    return n;
}

enum { DEPTH = 10, CHUNK = (1 << (DEPTH + 1)) - 1, ALLOCATORS = 4, MOST_CYCLES = 40 };

/* Half of it trees, half of it lists. */
static node **live;

static void make_live(size_t bytes)
{
    size_t chunks = bytes / (CHUNK * sizeof(node));
    LOAM_SET(live, LOAM_NEW_POINTERS(node, chunks));
    for (size_t i = 0; i < chunks; i++) {
        LOAM_SET(live[i], i % 2 == 0 ? tree_new(DEPTH) : list_new(CHUNK));
    }
}

static _Atomic(bool) stop;

static void *allocate(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        switch (rng_below(&me->rng, 4)) {
        case 0:
            loam_keep_alive(tree_new(6));
            break;
        case 1:
            loam_keep_alive(list_new(100));
            break;
        case 2:
            loam_keep_alive(loam_alloc_noscan(rng_below(&me->rng, 20000)));
            break;
        default:
            loam_keep_alive(loam_alloc(rng_below(&me->rng, 2000)));
        }
    }
    return NULL;
}

/* ---- the child: what it says on stderr are the pacer's lines, after BEGIN those of the steady state ---- */

#define BEGIN "allocators start\n"
#define END "allocators stop\n"

static void child_hold(void)
{
    static struct team team;
    loam_memstats m;
    make_live(strtoull(getenv("LIVE_MIB"), NULL, 10) << 20);
    loam_gc();
    loam_read_memstats(&m);
    uint32_t first = m.num_gc;
    fputs(BEGIN, stderr);
    team_start(&team, ALLOCATORS, allocate, NULL);
    uint32_t cycles = (uint32_t)strtoul(getenv("CYCLES"), NULL, 10);
    do {
        sleep_us(1000);
        loam_read_memstats(&m);
    } while (m.num_gc < first + cycles);
    fputs(END, stderr);
    atomic_store(&stop, true);
    team_join(&team);
}

/* ---- the parent ---- */

struct hold {
    unsigned live_mib, percent, procs, cycles;
};

struct cycle {
    uint64_t ended, goal; /* bytes: the heap at the end of marking */
};

static double ratio(const struct cycle *c)
{
    return (double)c->ended / (double)c->goal;
}

static int compare(const void *a, const void *b)
{
    return (ratio(a) > ratio(b)) - (ratio(a) < ratio(b));
}

/* The cycles between BEGIN and END.  Gives how many. */
static size_t read_cycles(const char *text, struct cycle *cycles, size_t most)
{
    static const char mark[] = " B work in ";
    const char *at = strstr(text, BEGIN);
    const char *end = strstr(text, END);
    size_t count = 0;
    EXPECT_NOT_NULL(at);
    EXPECT_NOT_NULL(end);
    while (count < most && (at = strstr(at, mark)) != NULL && at < end) {
        struct cycle *c = &cycles[count++];
        uint64_t begun;
        at += strlen(mark);
        EXPECT_EQ(sscanf(at, "%" SCNu64 " B -> %" SCNu64 " B (goal %" SCNu64 " B", &begun,
                         &c->ended, &c->goal),
                  3);
    }
    return count;
}

static void check_cycles(const struct hold *h, struct cycle *cycles, size_t count)
{
    qsort(cycles, count, sizeof cycles[0], compare);
    double middle = ratio(&cycles[count / 2]);
    printf(
        "%3u MiB live, GOGC=%u, GOMAXPROCS=%u: %zu cycles, heap/goal %.3f in the middle, %.3f at "
        "worst\n",
        h->live_mib, h->percent, h->procs, count, middle, ratio(&cycles[count - 1]));
    fflush(stdout);
    EXPECT_MSG(middle <= (h->live_mib < 400 ? 1.4 : 1.15),
               "half of the cycles end above %.3f times their goal", middle);
}

static void run_hold(const struct hold *h)
{
    static struct child c;
    char live_text[32], percent_text[32], procs_text[32], cycles_text[32];
    struct cycle cycles[2 * MOST_CYCLES];
    snprintf(live_text, sizeof live_text, "LIVE_MIB=%u", h->live_mib);
    snprintf(percent_text, sizeof percent_text, "GOGC=%u", h->percent);
    snprintf(procs_text, sizeof procs_text, "GOMAXPROCS=%u", h->procs);
    snprintf(cycles_text, sizeof cycles_text, "CYCLES=%u", h->cycles);
    const char *const environment[] = {
        live_text, percent_text, procs_text, cycles_text, "GODEBUG=gcpacertrace=1", NULL};
    child_run(&c, "hold", environment, 200);
    EXPECT_CHILD_PASSED(&c);
    size_t count = read_cycles(c.text, cycles, COUNT_OF(cycles));
    EXPECT_GE(count + 1, h->cycles); /* the last one is counted before its line is written */
    check_cycles(h, cycles, count);
}

static const struct child_case children[] = {{"hold", child_hold}};

int main(int argc, char **argv)
{
    static const struct hold holds[] = {
        {8, 50, 1, 20},  {8, 100, 1, 20}, {8, 200, 1, 20},  {8, 50, 2, 20},
        {8, 100, 2, 20}, {8, 200, 2, 20}, {64, 50, 1, 8},   {64, 100, 1, 8},
        {64, 200, 1, 5}, {64, 100, 2, 8}, {400, 100, 1, 3}, {400, 50, 2, 3},
    };
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    if (TEST_TSAN) {
        test_skip("a bound on time, and ten minutes, under ThreadSanitizer");
        return test_end();
    }
    for (size_t i = 0; i < COUNT_OF(holds); i++) {
        run_hold(&holds[i]);
    }
    return test_end();
}
