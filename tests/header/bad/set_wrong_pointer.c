/* expect: incompatible|cannot convert|no matching */
#include <loam.h>
typedef struct node {
    struct node *next;
} node;
void f(node *n, char *s);
void f(node *n, char *s)
{
    LOAM_SET(n->next, s);
}
