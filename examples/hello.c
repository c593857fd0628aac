/* hello.c - allocate, never free: a tree that stays, and a thousand that do not. */
#include <loam.h>
#include <loam/stats.h>
#include <stdio.h>

typedef struct tree {
    struct tree *left, *right;
} tree;
LOAM_TYPE(tree, left, right); /* the fields that hold pointers */

static tree *tree_grow(int depth)
{
    tree *t = LOAM_NEW(tree);
    if (depth > 0) {
        LOAM_SET(t->left, tree_grow(depth - 1)); /* a pointer into the heap's own memory */
        LOAM_SET(t->right, tree_grow(depth - 1));
    }
    return t;
}

static int tree_count(const tree *t)
{
    return t == NULL ? 0 : 1 + tree_count(t->left) + tree_count(t->right);
}

int main(void)
{
    tree *kept = tree_grow(16); /* a local is enough to keep it */
    for (int i = 0; i < 1000; i++)
        tree_grow(12); /* garbage as soon as it is made */

    loam_memstats m;
    loam_read_memstats(&m);
    printf("%d nodes kept, %.0f MB allocated, %u cycles, heap %.1f MB\n", tree_count(kept),
           (double)m.total_alloc / 1e6, (unsigned)m.num_gc, (double)m.heap_alloc / 1e6);
    return 0;
}
