/* expect: loam_set_needs_a_word|no matching */
#include <loam.h>
typedef struct node {
    struct node *next;
    int key;
} node;
void f(node *n);
void f(node *n)
{
    LOAM_SET(n->key, 1);
}
