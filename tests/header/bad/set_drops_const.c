/* expect: discards|invalid conversion|no matching */
#include <loam.h>
typedef struct node {
    struct node *next;
} node;
void f(node *n, const node *c);
void f(node *n, const node *c)
{
    LOAM_SET(n->next, c);
}
