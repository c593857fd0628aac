// two_tus.h - inline functions and templates with stores, for both translation units.
#ifndef TWO_TUS_H
#define TWO_TUS_H

#include <loam.h>

struct item {
    item *next;
    void *payload;
};
LOAM_TYPE(item, next, payload);

// Too large to be inlined everywhere: its COMDAT copy is in both objects.
__attribute__((noinline)) inline void link_items(item *a, item *b)
{
    LOAM_SET(a->next, b);
    LOAM_SET(b->payload, a);
}

template <class T> __attribute__((noinline)) void put(T *&slot, T *value)
{
    LOAM_SET(slot, value);
}

struct shape {
    virtual ~shape()
    {
    }
    virtual void keep(item *i)
    {
        LOAM_SET(kept, i);
    }
    item *kept = nullptr;
};

int use_b(item *a, item *b); // two_tus_b.cpp; gives its stores

#endif
