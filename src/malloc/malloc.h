/* malloc.h - the front door: from a request to memory. */
#ifndef MALLOC_MALLOC_H
#define MALLOC_MALLOC_H

#include "gc/gc.h"

/* The calling thread's record; starts the library and attaches where needed. NULL: no memory. */
COLD struct m *malloc_attach(void);
ALWAYS_INLINE struct m *malloc_self(void)
{
    struct m *m = m_self;
    return likely(m != NULL) ? m : malloc_attach();
}

/* The same where no error can be told: a store. Ends the program when there is no memory for it. */
ALWAYS_INLINE struct m *malloc_must_attach(void)
{
    struct m *m = malloc_self();
    CHECK(m != NULL, "no memory to attach a thread that stores a pointer");
    return m;
}

/* True once the library has started: what must be said before the first allocation comes too late. */
bool malloc_started(void);

/* Zeroed memory of a layout; NULL and errno ENOMEM. May assist, start a cycle, collect. */
void *malloc_typed(struct m *m, struct gctype *type, size_t bytes);

/* The same for the library's own use, which can do without: no emergency collection, no handler hears of it. */
void *malloc_quietly(struct m *m, struct gctype *type, size_t bytes);

void malloc_external(struct m *m, int64_t delta); /* loam_add_external_bytes */
void malloc_free(struct m *m, void *p);
void *malloc_realloc(struct m *m, void *p, size_t bytes);

/* Set once at start: an object that the heap profile samples was allocated. The caller is not busy and holds it. */
extern void (*malloc_sampled)(struct m *m, void *obj);

/* Called before an allocation gives NULL. */
void malloc_set_oom_handler(struct m *m, void (*fn)(void *arg), void *arg);

#endif
