/* expect: nxet */
#include <loam.h>
typedef struct node {
    struct node *next;
} node;
LOAM_TYPE(node, nxet);
