/* main.c - the programs, one after the other. */
#include "vm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Its text, with a zero behind. */
char *file_read(machine *m, const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail(m, "%s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    bool fits = size >= 0 && size <= TEXT_MAX; /* a folder does not */
    char *text = fits ? loam_alloc_noscan((size_t)size + 1) : NULL;
    fits = fits && fread(text, 1, (size_t)size, file) == (size_t)size;
    fclose(file);
    if (!fits)
        fail(m, "%s: cannot be read", path);
    return text;
}

int main(int argc, char *argv[])
{
    if (argc < 2 || argv[1][0] == '-') {
        fputs("usage: vm FILE...\n", stderr);
        return 2;
    }
    machine *m = machine_make();
    for (int i = 1; i < argc; i++)
        if (!machine_run(m, argv[i]))
            return 1;
    return fflush(stdout) == 0 ? 0 : 1;
}
