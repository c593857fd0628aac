/* sort.h - sorting by address: in place, and not malloc's, as qsort may be. */
#ifndef BASE_SORT_H
#define BASE_SORT_H

#include "base/compiler.h"

/* n items of `bytes` each, 64 at most, which begin with the address. Heapsort, n log n at worst. */
void sort_by_address(void *items, size_t n, size_t bytes);

#endif
