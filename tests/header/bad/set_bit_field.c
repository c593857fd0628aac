/* expect: bit.?field */
#include <loam.h>
typedef struct box {
    uintptr_t w : 48;
} box;
void f(box *b);
void f(box *b)
{
    LOAM_SET(b->w, 1);
}
