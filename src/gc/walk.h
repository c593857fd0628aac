/* walk.h - the words of an object that may hold pointers, one by one: for who looks at the heap, not for the marker. */
#ifndef GC_WALK_H
#define GC_WALK_H

#include "gc/gc.h"

/* where: the word's address; 0: a scan function has named it. */
typedef void walk_fn(void *arg, uintptr_t where, uintptr_t word);

/* Each word of the object that its layout says may hold a pointer. Nobody writes it meanwhile. */
void walk_object(const struct mspan *s, size_t index, walk_fn *fn, void *arg);

/* The same of `bytes` at obj, which are elements of t, or its head with a tail. */
void walk_typed(const struct gctype *t, uintptr_t obj, size_t bytes, walk_fn *fn, void *arg);

/* A walk_fn for who wants roots: kind and start are said before, the rest with each word. */
struct walk_roots {
    root_fn *fn;
    void *arg;
    struct root root;
};
void walk_root_word(void *roots, uintptr_t where, uintptr_t word);

/* Each word of [start, limit), unaligned bounds rounded inwards. */
void walk_range(uintptr_t start, uintptr_t limit, walk_fn *fn, void *arg);

#endif
