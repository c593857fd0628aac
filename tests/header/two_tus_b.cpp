// two_tus_b.cpp - the second translation unit of two_tus_a.cpp.
#include "two_tus.h"

// Never called: with --gc-sections it and its note may go.
void never(item *a);
void never(item *a)
{
    LOAM_SET(a->next, a);
}

__attribute__((visibility("default"))) int use_b(item *a, item *b)
{
    static item *slot;
    shape s;
    link_items(a, b);
    put(slot, a);
    s.keep(a);
    LOAM_SET(a->payload, LOAM_NEW(item));
    return s.kept == a && slot == a && a->next == b ? 5 : -1;
}
