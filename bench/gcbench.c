/* gcbench.c - Ellis, Kovac and Boehm's GCBench: trees built top down and bottom up beside a live heap.
 *
 * Work        A tree and an array of 500 000 doubles live throughout, while trees of depth 4, 6 ...
 *             16 are built in both directions, as many of each depth as give the same number of
 *             nodes. Top down stores into old objects, bottom up into fresh ones.
 *             -depth N scales it: the deepest temporary trees (16).
 * Twin        go/gcbench/main.go
 */
#include "heap.h"

enum { MIN_DEPTH = 4, ARRAY_LENGTH = 500000 };

typedef struct node node;
struct node {
    node *left, *right;
    int i, j;
};
HEAP_TYPE(node, left, right);

static node *long_lived_tree;
static double *long_lived_array;
static unsigned stretch_depth;

static uint64_t tree_size(unsigned depth)
{
    return (UINT64_C(1) << (depth + 1)) - 1;
}

static node *new_node(void)
{
    node *n = HEAP_NEW(node);
    HEAP_NULL(n->left);
    HEAP_NULL(n->right);
    return n;
}

static void populate(unsigned depth, node *n)
{
    if (depth == 0) {
        return;
    }
    HEAP_SET(n->left, new_node());
    HEAP_SET(n->right, new_node());
    populate(depth - 1, n->left);
    populate(depth - 1, n->right);
}

static node *make_tree(unsigned depth)
{
    if (depth == 0) {
        return new_node();
    }
    node *left = make_tree(depth - 1);
    node *right = make_tree(depth - 1);
    node *n = new_node();
    HEAP_SET(n->left, left);
    HEAP_SET(n->right, right);
    return n;
}

static uint64_t count(const node *n)
{
    return n == NULL ? 0 : 1 + count(n->left) + count(n->right);
}

static void drop(node *n)
{
    if (HEAP_IS_MANUAL && n != NULL) {
        drop(n->left);
        drop(n->right);
        HEAP_FREE(n);
    }
}

/* Both directions, and the nodes of the last pair as a check that costs little. */
static uint64_t construct(unsigned depth)
{
    uint64_t n = 2 * tree_size(stretch_depth) / tree_size(depth);
    node *tree = NULL;
    uint64_t nodes = 0;
    for (uint64_t i = 0; i < n; i++) {
        tree = new_node();
        populate(depth, tree);
        nodes += i + 1 == n ? count(tree) : 0;
        drop(tree);
    }
    for (uint64_t i = 0; i < n; i++) {
        tree = make_tree(depth);
        nodes += i + 1 == n ? count(tree) : 0;
        drop(tree);
    }
    return nodes;
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    heap_init();
    unsigned depth = (unsigned)option_count("depth", 16);
    result_as_json = option_flag("json");
    heap_option_gc_percent();
    options_end();
    stretch_depth = depth + 2;

    uint64_t began = clock_ns();
    node *stretch = make_tree(stretch_depth);
    uint64_t checksum = count(stretch);
    drop(stretch);
    stretch = NULL;
    HEAP_SET(long_lived_tree, new_node());
    populate(depth, long_lived_tree);
    HEAP_SET(long_lived_array, (double *)HEAP_ALLOC_NOSCAN(ARRAY_LENGTH * sizeof(double)));
    for (unsigned i = 0; i < ARRAY_LENGTH / 2; i++) {
        long_lived_array[i] = 1.0 / (i + 1);
    }
    for (unsigned d = MIN_DEPTH; d <= depth; d += 2) {
        checksum = checksum * 31 + construct(d);
    }
    checksum = checksum * 31 + count(long_lived_tree);
    checksum = checksum * 31 + (uint64_t)(1.0 / long_lived_array[1000]);
    double seconds = (double)(clock_ns() - began) / 1e9;

    result_begin("gcbench", HEAP_NAME);
    result_count("depth", depth);
    result_real("seconds", seconds);
    result_count("cycles", heap_cycles());
    result_end(checksum);
    return 0;
}
