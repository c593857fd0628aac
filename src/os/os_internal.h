/* os_internal.h - what the files of src/os share with each other and nobody else. */
#ifndef OS_OS_INTERNAL_H
#define OS_OS_INTERNAL_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cgroup.c: a small file, cut off where it does not fit, with a 0 behind it; false: it is not there, or empty. */
bool file_read(const char *path, char *text, size_t size);

/* modules.c: does a PT_LOAD of this module, with at least these flags, hold all of [addr, addr + bytes)? And dl_iterate_phdr,
 * under the lock that is around each of them. */
bool module_holds(const struct dl_phdr_info *info, uintptr_t addr, size_t bytes, unsigned flags);
void modules_each(int (*fn)(struct dl_phdr_info *info, size_t size, void *arg), void *arg);

/* tls.c: a module was seen by a walk under modules.c's lock. glibc's own tables tell all that is
 * needed; elsewhere sizes of thread-local storage are noted. */
#ifdef __GLIBC__
static inline void tls_module_seen(const struct dl_phdr_info *info, size_t size)
{
    (void)info;
    (void)size;
}
#else
void tls_module_seen(const struct dl_phdr_info *info, size_t size);
#endif

#endif
