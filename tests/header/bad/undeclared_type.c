/* expect: undeclared|undefined|no matching|not declared|loam_tag_ */
#include <loam.h>
typedef struct node {
    struct node *next;
} node;
node *make(void);
node *make(void)
{
    return LOAM_NEW(node);
}
