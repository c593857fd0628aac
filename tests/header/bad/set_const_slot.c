/* expect: read-only|const-qualified|no matching */
#include <loam.h>
typedef struct node {
    struct node *const next;
} node;
void f(node *n);
void f(node *n)
{
    LOAM_SET(n->next, n);
}
