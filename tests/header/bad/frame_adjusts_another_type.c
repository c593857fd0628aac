/* expect: incompatible|cannot convert|no matching */
#include <loam/sched.h>
typedef struct value {
    void *p;
} value;
typedef struct other {
    void *p;
} other;
static void adjust(other *o, size_t bytes, const loam_move *move)
{
    (void)bytes;
    o->p = loam_moved(move, o->p);
}
LOAM_TYPE_NOSCAN(value);
LOAM_FRAME_ADJUSTED(value, adjust);
