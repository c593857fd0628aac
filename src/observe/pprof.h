/* pprof.h - writing a profile for `go tool pprof`. */
#ifndef OBSERVE_PPROF_H
#define OBSERVE_PPROF_H

#include "world/m.h"

enum { PPROF_DEPTH = 128, PPROF_VALUES = 4, PPROF_LABELS = 2 };

/* All texts live until pprof_end, and equal ones are best one. */
struct pprof_type {
    const char *type, *unit;
};

struct pprof_head {
    const struct pprof_type *types; /* of a sample's values; the last one is shown first */
    size_t ntypes;
    struct pprof_type period_type;
    int64_t period;
};

struct pprof_label {
    const char *key;
    const char *text; /* NULL: a number of bytes */
    uint64_t number;
};

struct pprof_sample {
    const uintptr_t *pcs; /* innermost first, within the calls */
    size_t depth;
    uint64_t values[PPROF_VALUES];
    size_t nvalues;
    struct pprof_label labels[PPROF_LABELS];
    size_t nlabels;
};

/* Of a chain of calls, for who groups them; `of` is what else tells groups apart. */
uint64_t pprof_hash(const uintptr_t *pcs, size_t n, uint64_t of);

struct pprof;

/* m: the caller's, not busy. most_pcs, most_texts: of all samples together, texts of labels. NULL and errno: nothing, or only a part, was written. */
struct pprof *pprof_begin(struct m *m, int fd, const struct pprof_head *head, size_t most_pcs,
                          size_t most_texts);
void pprof_put(struct pprof *p, const struct pprof_sample *s);
/* 0, or -1 and errno. */
int pprof_end(struct pprof *p);

#endif
