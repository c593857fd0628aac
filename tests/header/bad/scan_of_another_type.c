/* expect: incompatible|cannot convert|no matching */
#include <loam.h>
typedef struct value {
    void *p;
} value;
typedef struct other {
    void *p;
} other;
static void scan(const other *o, size_t bytes, loam_marker *m)
{
    (void)bytes;
    loam_mark(m, o->p);
}
LOAM_TYPE_SCANNED(value, scan);
