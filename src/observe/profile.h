/* profile.h - which calls allocated what is on the heap. Above malloc/, whose hook it sets. */
#ifndef OBSERVE_PROFILE_H
#define OBSERVE_PROFILE_H

#include "gc/gc.h"

void profile_init(void);
uint64_t profile_bytes(void); /* of the system's that the tables take */

#endif
