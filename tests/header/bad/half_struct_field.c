/* expect: loam_field_is_not_whole_aligned_words */
#include <loam.h>
typedef struct node {
    struct {
        int a, b, c;
    } three;
} node;
LOAM_TYPE(node, three);
