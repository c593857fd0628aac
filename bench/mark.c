/* mark.c - what a collection costs for each object that is alive, by the shape of the heap.
 *
 * Work        `-objects` (8 million) of 32 bytes with three pointers:
 *             -shape tree            binary tree, allocated in the order in which it is searched
 *             -shape shuffled-tree   the same tree, its nodes at random places in memory
 *             -shape list            one list through random places: no two loads overlap
 *             -shape graph           an array of all; each points to three others, at random
 *             -shape rows            a table of rows of 512 pointers each, to nodes in random order
 * Measured    The wall time of a forced collection, the median of `-rounds` (7) after one to warm
 *             up, over the number of objects. No malloc here: there is nothing to compare.
 * Twin        go/mark/main.go
 */
#include "heap.h"

enum { MAX_ROUNDS = 101, ROW = 512 };

typedef struct node node;
struct node {
    node *left, *right, *other;
    uint64_t key;
};
HEAP_TYPE(node, left, right, other);

static node *root;
static node ***table; /* rows of nodes */
static node **all;    /* the nodes by number; NULL where the shape does not need it to live */

static node *new_node(uint64_t key)
{
    node *n = HEAP_NEW(node);
    HEAP_NULL(n->left);
    HEAP_NULL(n->right);
    HEAP_NULL(n->other);
    n->key = key;
    return n;
}

/* A tree of n nodes, as even as n allows, each node before its children. */
static node *build_tree(uint64_t n, uint64_t *next_key)
{
    if (n == 0) {
        return NULL;
    }
    node *tree = new_node((*next_key)++);
    HEAP_SET(tree->left, build_tree((n - 1) / 2, next_key));
    HEAP_SET(tree->right, build_tree(n - 1 - (n - 1) / 2, next_key));
    return tree;
}

static void build_all(uint64_t n)
{
    HEAP_SET(all, HEAP_NEW_POINTERS(node, n));
    for (uint64_t i = 0; i < n; i++) {
        HEAP_SET(all[i], new_node(i));
    }
}

static void shuffle_all(uint64_t n, uint64_t *rng)
{
    for (uint64_t i = n - 1; i > 0; i--) {
        uint64_t j = rng_below(rng, i + 1);
        node *other = all[j];
        HEAP_SET(all[j], all[i]);
        HEAP_SET(all[i], other);
    }
}

static void build_shuffled_tree(uint64_t n, uint64_t *rng)
{
    build_all(n);
    shuffle_all(n, rng);
    for (uint64_t i = 0; i < n; i++) {
        if (2 * i + 1 < n) {
            HEAP_SET(all[i]->left, all[2 * i + 1]);
        }
        if (2 * i + 2 < n) {
            HEAP_SET(all[i]->right, all[2 * i + 2]);
        }
    }
    HEAP_SET(root, all[0]);
    HEAP_SET(all, NULL);
}

static void build_list(uint64_t n, uint64_t *rng)
{
    build_all(n);
    shuffle_all(n, rng);
    for (uint64_t i = 0; i + 1 < n; i++) {
        HEAP_SET(all[i]->right, all[i + 1]);
    }
    HEAP_SET(root, all[0]);
    HEAP_SET(all, NULL);
}

static void build_graph(uint64_t n, uint64_t *rng)
{
    build_all(n);
    for (uint64_t i = 0; i < n; i++) {
        HEAP_SET(all[i]->left, all[rng_below(rng, n)]);
        HEAP_SET(all[i]->right, all[rng_below(rng, n)]);
        HEAP_SET(all[i]->other, all[rng_below(rng, n)]);
    }
}

static void build_rows(uint64_t n, uint64_t *rng)
{
    build_all(n);
    shuffle_all(n, rng);
    HEAP_SET(table, HEAP_NEW_POINTERS(node *, (n + ROW - 1) / ROW));
    for (uint64_t i = 0; i < n; i++) {
        if (i % ROW == 0) {
            HEAP_SET(table[i / ROW], HEAP_NEW_POINTERS(node, ROW));
        }
        HEAP_SET(table[i / ROW][i % ROW], all[i]);
    }
    HEAP_SET(all, NULL);
}

/* Depth by `left` only: a list goes to the right and would exhaust the stack. */
static uint64_t tree_sum(const node *n)
{
    uint64_t sum = 0;
    for (; n != NULL; n = n->right) {
        sum += n->key * UINT64_C(0x9e3779b97f4a7c15) + 1;
        sum += tree_sum(n->left);
    }
    return sum;
}

static uint64_t graph_sum(uint64_t n)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        const node *at = all[i];
        sum = sum * 31 + at->key + at->left->key + 3 * at->right->key + 5 * at->other->key;
    }
    return sum;
}

static uint64_t rows_sum(uint64_t n)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        sum = sum * 31 + table[i / ROW][i % ROW]->key;
    }
    return sum;
}

static int compare_ns(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static bool build(const char *shape, uint64_t n)
{
    uint64_t rng = 1;
    if (strcmp(shape, "tree") == 0) {
        uint64_t next_key = 0;
        HEAP_SET(root, build_tree(n, &next_key));
    } else if (strcmp(shape, "shuffled-tree") == 0) {
        build_shuffled_tree(n, &rng);
    } else if (strcmp(shape, "list") == 0) {
        build_list(n, &rng);
    } else if (strcmp(shape, "graph") == 0) {
        build_graph(n, &rng);
    } else if (strcmp(shape, "rows") == 0) {
        build_rows(n, &rng);
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    heap_init();
    const char *shape = option_string("shape", "tree");
    uint64_t objects = option_count("objects", 8000000);
    uint64_t rounds = option_count("rounds", 7);
    result_as_json = option_flag("json");
    heap_option_gc_percent();
    options_end();
#if HEAP_IS_MANUAL
    fprintf(stderr, "malloc has no collector\n");
    return 77;
#endif
    if (objects < 1 || rounds < 1 || rounds > MAX_ROUNDS || !build(shape, objects)) {
        fprintf(stderr, "-shape tree|shuffled-tree|list|graph|rows, -rounds 1 to %d\n", MAX_ROUNDS);
        return 2;
    }
    uint64_t took[MAX_ROUNDS];
    heap_gc();
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t began = clock_ns();
        heap_gc();
        took[i] = clock_ns() - began;
    }
    qsort(took, rounds, sizeof took[0], compare_ns);

    result_begin("mark", HEAP_NAME);
    result_string("shape", shape);
    result_count("objects", objects);
    result_real("ns_per_object", (double)took[rounds / 2] / (double)objects);
    result_real("ns_per_object_min", (double)took[0] / (double)objects);
    result_real("ns_per_object_max", (double)took[rounds - 1] / (double)objects);
    result_end(all != NULL     ? graph_sum(objects)
               : table != NULL ? rows_sum(objects)
                               : tree_sum(root));
    return 0;
}
