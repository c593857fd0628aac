/* snapshot.h - questions to the heap as it was at one moment, answered while the program runs on. */
#ifndef OBSERVE_SNAPSHOT_H
#define OBSERVE_SNAPSHOT_H

#include "world/m.h"

struct question {
    /* In the copy; 0, or an errno value. `self`: where the thread that asks stands. */
    int (*answer)(const struct question *q, const struct m_context *self);
    int fd;           /* where the answer goes */
    uintptr_t hidden; /* ~address of the object that is asked about: no root */
};

/* 0, or -1 and errno. */
int snapshot_ask(const struct question *q);

#endif
