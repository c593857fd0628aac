// names.cpp - names.c in C++, with the names that only C++ has; compiled only. See compile_all.sh.
extern int A, What, zero, loam_value;
#include "names.c"

namespace app
{
struct value { // of a namespace, where a global has that name
    value *next;
};
LOAM_TYPE(value, next);
inline void link(value *a, value *b)
{
    LOAM_SET(a->next, b);
}
} // namespace app
