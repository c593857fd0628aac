/* expect: loam_tail_is_not_whole_aligned_words */
#include <loam.h>
typedef struct __attribute__((packed)) vec {
    int n;
    void *items[];
} vec;
LOAM_TYPE_FLEX(vec, items);
