/* expect: without a cast|incompatible integer to pointer|invalid conversion|no matching */
#include <loam.h>
typedef struct node {
    struct node *next;
} node;
void f(node *n, uintptr_t w);
void f(node *n, uintptr_t w)
{
    LOAM_SET(n->next, w);
}
