/* out.h - bytes on their way to a file descriptor.
 *
 * Writes in pieces, over short writes and interruptions, and waits where the descriptor would have it wait. The first error
 * stays, and nothing is written after it. */
#ifndef OBSERVE_OUT_H
#define OBSERVE_OUT_H

#include "base/compiler.h"

enum { OUT_BYTES = 16 << 10 };

struct out {
    int fd;
    int error; /* errno of the first write that failed */
    size_t n;
    char buf[OUT_BYTES];
};

/* False and errno: fd cannot be written to. */
bool out_init(struct out *o, int fd);
void out_bytes(struct out *o, const void *data, size_t n);
/* All of it is with the system. 0, or -1 and errno. */
int out_end(struct out *o);

#endif
