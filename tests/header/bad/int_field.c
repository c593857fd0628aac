/* expect: loam_field_is_not_whole_aligned_words */
#include <loam.h>
typedef struct node {
    struct node *next;
    int key;
} node;
LOAM_TYPE(node, next, key);
