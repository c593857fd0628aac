/* expect: loam_type_has_no_fields */
#include <loam.h>
typedef struct node {
    struct node *next;
} node;
LOAM_TYPE(node, );
