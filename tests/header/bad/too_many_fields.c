/* expect: loam_type_has_more_than_64_fields */
#include <loam.h>
typedef struct wide {
    void *f[65];
} wide;
#define EIGHT(i) f[i], f[i + 1], f[i + 2], f[i + 3], f[i + 4], f[i + 5], f[i + 6], f[i + 7]
LOAM_TYPE(wide, EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48),
          EIGHT(56), f[64]);
