/* copy_plugin.c - a plug-in that has the library for itself. */
#include <loam.h>

void *plugin_alloc(size_t bytes);

void *plugin_alloc(size_t bytes)
{
    return loam_alloc(bytes);
}
