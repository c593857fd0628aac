/* binary_trees.c - the Benchmarks Game's binary trees: build, count and drop complete trees.
 *
 * Work        binary_trees [depth]: one tree of `depth` lives throughout, while 2^(depth - d + 4)
 *             trees of each depth d = 4, 6, 8 ... are built, counted and dropped, shared out to
 *             `-threads` threads.
 * Twin        go/binary_trees/main.go
 */
#include "heap.h"

enum { MIN_DEPTH = 4 };

typedef struct node node;
struct node {
    node *left, *right;
};
HEAP_TYPE(node, left, right);

struct share {
    unsigned depth;
    uint64_t ntrees;
    uint64_t nodes; /* result */
};

static node *long_lived;

static node *build(unsigned depth)
{
    if (depth == 0) {
        node *leaf = HEAP_NEW(node);
        HEAP_NULL(leaf->left);
        HEAP_NULL(leaf->right);
        return leaf;
    }
    node *left = build(depth - 1);
    node *right = build(depth - 1);
    node *n = HEAP_NEW(node);
    HEAP_NULL(n->left);
    HEAP_NULL(n->right);
    HEAP_SET(n->left, left);
    HEAP_SET(n->right, right);
    return n;
}

static uint64_t count(const node *n)
{
    return n->left == NULL ? 1 : 1 + count(n->left) + count(n->right);
}

static void drop(node *n)
{
    if (HEAP_IS_MANUAL && n != NULL) {
        drop(n->left);
        drop(n->right);
        HEAP_FREE(n);
    }
}

static void *build_share(void *arg)
{
    struct share *share = arg;
    for (uint64_t i = 0; i < share->ntrees; i++) {
        node *tree = build(share->depth);
        share->nodes += count(tree);
        drop(tree);
    }
    return NULL;
}

/* All trees of one depth; the main thread works too, so that one thread means no other. */
static uint64_t build_all(unsigned depth, uint64_t ntrees, unsigned threads)
{
    struct share shares[MAX_THREADS] = {{0}};
    pthread_t thread[MAX_THREADS];
    for (unsigned i = 0; i < threads; i++) {
        shares[i].depth = depth;
        shares[i].ntrees = ntrees / threads + (i < ntrees % threads);
        if (i > 0) {
            thread_start(&thread[i], build_share, &shares[i]);
        }
    }
    build_share(&shares[0]);
    uint64_t nodes = shares[0].nodes;
    for (unsigned i = 1; i < threads; i++) {
        pthread_join(thread[i], NULL);
        nodes += shares[i].nodes;
    }
    return nodes;
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    heap_init();
    unsigned threads = option_threads(1);
    result_as_json = option_flag("json");
    heap_option_gc_percent();
    unsigned depth = (unsigned)option_positional(18);
    options_end();
    depth = depth < MIN_DEPTH + 2 ? MIN_DEPTH + 2 : depth;

    uint64_t began = clock_ns();
    uint64_t checksum = build_all(depth + 1, 1, 1);
    HEAP_SET(long_lived, build(depth));
    for (unsigned d = MIN_DEPTH; d <= depth; d += 2) {
        uint64_t ntrees = UINT64_C(1) << (depth - d + MIN_DEPTH);
        checksum = checksum * 31 + build_all(d, ntrees, threads);
    }
    checksum = checksum * 31 + count(long_lived);
    double seconds = (double)(clock_ns() - began) / 1e9;

    result_begin("binary_trees", HEAP_NAME);
    result_count("depth", depth);
    result_count("threads", threads);
    result_real("seconds", seconds);
    result_count("cycles", heap_cycles());
    result_end(checksum);
    return 0;
}
