/* expect: loam_type_is_aligned_above_16 */
#include <loam.h>
typedef struct node {
    struct node *next;
} __attribute__((aligned(32))) node;
LOAM_TYPE(node, next);
