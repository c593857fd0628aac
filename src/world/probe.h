/* probe.h - points that perf, bpftrace and systemtap can watch from outside: provider `loam`, sys/sdt.h.
 *
 * A point is one nop, and a note of where it is and where its arguments are. Built without the header there is none. What
 * takes time has two, ..._begin and ..._end. Times are ns; names are zero-ended strings.
 */
#ifndef WORLD_PROBE_H
#define WORLD_PROBE_H

#if defined(__has_include)
#if __has_include(<sys/sdt.h>)
#include <sys/sdt.h>
#endif
#endif

#ifdef DTRACE_PROBE
#define PROBE(name) DTRACE_PROBE(loam, name)
#define PROBE1(name, a) DTRACE_PROBE1(loam, name, a)
#define PROBE2(name, a, b) DTRACE_PROBE2(loam, name, a, b)
#define PROBE3(name, a, b, c) DTRACE_PROBE3(loam, name, a, b, c)
#else
#define PROBE(name) ((void)0)
#define PROBE1(name, a) ((void)(a))
#define PROBE2(name, a, b) ((void)(a), (void)(b))
#define PROBE3(name, a, b, c) ((void)(a), (void)(b), (void)(c))
#endif

#endif
