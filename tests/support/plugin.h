/* plugin.h - compiling a small library at run time, to load and unload it.
 *
 * The library may include loam.h but must call nothing of it: the program may be linked statically and export nothing.
 * The header is found beside this file, or where LOAM_INCLUDE says. */
#ifndef TESTS_SUPPORT_PLUGIN_H
#define TESTS_SUPPORT_PLUGIN_H

#include "test.h"

#include <dlfcn.h>

enum { PLUGIN_PATH = 512 };

static inline void plugin_remove(const char *path)
{
    char source[PLUGIN_PATH + 8];
    unlink(path);
    snprintf(source, sizeof source, "%s.c", path);
    unlink(source);
}

/* Compiles `text` into `path` (PLUGIN_PATH bytes).  False, with a line that says so, if there is no compiler. */
static inline bool plugin_build(char *path, const char *name, const char *text, bool with_loam)
{
    const char *tmp = getenv("TMPDIR");
    const char *include = getenv("LOAM_INCLUDE");
    const char *cc = getenv("CC");
    char here[PLUGIN_PATH];
    char source[PLUGIN_PATH + 8];
    char command[4 * PLUGIN_PATH];

    if (TEST_SANITIZED) {
        test_skip("libraries made at run time, under a sanitizer");
        return false;
    }
    cc = cc != NULL && cc[0] != '\0' ? cc : "cc";
    snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", cc);
    if (system(command) != 0) {
        test_skip("no compiler `%s` to make a library with", cc);
        return false;
    }
    snprintf(path, PLUGIN_PATH, "%s/loam-%s-%ld.so", tmp != NULL ? tmp : "/tmp", name,
             (long)getpid());
    snprintf(source, sizeof source, "%s.c", path);
    FILE *f = fopen(source, "w");
    EXPECT_MSG(f != NULL, "%s: %s", source, strerror(errno));
    fputs(text, f);
    EXPECT_EQ(fclose(f), 0);
    snprintf(here, sizeof here, "%s", __FILE__);
    char *slash = strrchr(here, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
    if (include == NULL) {
        snprintf(command, sizeof command, "%s -shared -fPIC -O1 %s%s%s -o '%s' '%s'", cc,
                 with_loam ? "-I'" : "", with_loam ? here : "", with_loam ? "/../../include'" : "",
                 path, source);
    } else {
        snprintf(command, sizeof command, "%s -shared -fPIC -O1 -I'%s' -o '%s' '%s'", cc, include,
                 path, source);
    }
    if (system(command) != 0) {
        FAIL("cannot compile: %s", command);
    }
    return true;
}

#endif
