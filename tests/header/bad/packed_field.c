/* expect: loam_field_is_not_whole_aligned_words */
#include <loam.h>
typedef struct __attribute__((packed)) node {
    char tag;
    struct node *next;
} node;
LOAM_TYPE(node, next);
