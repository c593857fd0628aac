/* expect: lvalue|rvalue|no matching */
#include <loam.h>
void *get(void);
void f(void *p);
void f(void *p)
{
    LOAM_SET(get(), p);
}
