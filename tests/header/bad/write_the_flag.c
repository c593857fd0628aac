/* expect: read-only|const-qualified */
#include <loam.h>
void f(void);
void f(void)
{
    loam_write_barrier = 1;
}
