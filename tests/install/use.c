/* use.c - the smallest program of each kind; its argument is the version that it must meet. */
#include <loam.h>
#include <loam/stats.h>

#include <stdio.h>
#include <string.h>

typedef struct node node;
struct node {
    node *next;
    int key;
};
LOAM_TYPE(node, next);

static node *list;

#ifdef TAKE_NAMES
/* Names that the library uses inside, and does not show. */
int mheap_init(void);
int mheap_init(void)
{
    return 42;
}
int warnf(void);
int warnf(void)
{
    return 42;
}
#endif

int main(int argc, char **argv)
{
    if (argc != 2 || strcmp(argv[1], LOAM_VERSION) != 0 || strcmp(argv[1], loam_version()) != 0) {
        fprintf(stderr, "version: header %s, library %s\n", LOAM_VERSION, loam_version());
        return 1;
    }
    for (int i = 0; i < 1000; i++) {
        node *n = LOAM_NEW(node);
        if (n == NULL) {
            return 1;
        }
        n->key = i;
        LOAM_SET(n->next, list);
        LOAM_SET(list, n);
    }
    loam_gc();
    int want = 999;
    for (node *n = list; n != NULL; n = n->next, want--) {
        if (n->key != want) {
            fprintf(stderr, "key %d, not %d\n", n->key, want);
            return 1;
        }
    }
#ifdef TAKE_NAMES
    if (mheap_init() != 42 || warnf() != 42) {
        return 1;
    }
#endif
    return want == -1 ? 0 : 1;
}
