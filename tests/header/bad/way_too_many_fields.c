/* expect: loam_type_has_more_than_64_fields */
#include <loam.h>
typedef struct wide {
    void *f[200];
} wide;
#define EIGHT(i) f[i], f[i + 1], f[i + 2], f[i + 3], f[i + 4], f[i + 5], f[i + 6], f[i + 7]
#define SIXTY_FOUR(i)                                                                   \
    EIGHT(i), EIGHT(i + 8), EIGHT(i + 16), EIGHT(i + 24), EIGHT(i + 32), EIGHT(i + 40), \
        EIGHT(i + 48), EIGHT(i + 56)
LOAM_TYPE(wide, SIXTY_FOUR(0), SIXTY_FOUR(64), EIGHT(128));
