/* expect: loam_set_needs_a_word|no matching */
#include <loam.h>
typedef struct box {
    double d;
} box;
void f(box *b);
void f(box *b)
{
    LOAM_SET(b->d, 1.0);
}
