/* copy_host.c PLUGIN host-first|plugin-first - a program with the library loads a plug-in with its own copy. Whichever
 * allocates first is served, the other one gets NULL and ENOMEM, as often as it asks. */
#include <loam.h>

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static void *(*plugin_alloc)(size_t);

static int served(void *(*alloc)(size_t))
{
    for (int i = 0; i < 1000; i++) {
        char *p = alloc(100);
        if (p == NULL) {
            return 0;
        }
        memset(p, i, 100);
    }
    return 1;
}

static int refused(void *(*alloc)(size_t))
{
    for (int i = 0; i < 3; i++) {
        errno = 0;
        if (alloc(100) != NULL || errno != ENOMEM) {
            return 0;
        }
    }
    return 1;
}

int main(int argc, char **argv)
{
    void *plugin = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    if (plugin == NULL) {
        fprintf(stderr, "copy_host: %s\n", dlerror());
        return 1;
    }
    void *symbol = dlsym(plugin, "plugin_alloc");
    memcpy(&plugin_alloc, &symbol, sizeof symbol);
    if (strcmp(argv[2], "host-first") == 0) {
        int ok = served(loam_alloc) && refused(plugin_alloc) && served(loam_alloc);
        loam_gc();
        return ok && served(loam_alloc) ? 0 : 1;
    }
    return served(plugin_alloc) && refused(loam_alloc) && served(plugin_alloc) ? 0 : 1;
}
