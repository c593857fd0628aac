/* stand_in.c - just enough of a library to link and run the stores of two_tus_a.cpp. */
#define LOAM_LIBRARY_ 1
#include <loam.h>

#include <stdlib.h>

volatile uint32_t loam_write_barrier;
static unsigned stores;

/* Switches the barrier; gives the calls of loam_store since the last time. */
LOAM_API unsigned stand_in_stores(bool on);
unsigned stand_in_stores(bool on)
{
    unsigned n = stores;
    stores = 0;
    loam_write_barrier = on;
    return n;
}

void loam_store(void *slot, const void *value)
{
    stores++;
    *(const void **)slot = value;
}

void *loam_new(const loam_type *type, size_t count)
{
    return calloc(count, type->size);
}
