/* expect: loam_type_is_aligned_above_16 */
#include <loam.h>
typedef struct vector {
    float f[8];
} __attribute__((aligned(32))) vector;
LOAM_TYPE_NOSCAN(vector);
