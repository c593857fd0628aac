/* symbols.c - which variable, or function, lies at an address.
 *
 * Purpose     Names for roots in the data of the program and its libraries, and for calls in profiles; static ones too.
 * Model       Which modules there are is noted under the loader's lock; their files are read after it, for nobody should wait
 *             for a disk. Of each file's .symtab, or where it was stripped .dynsym, what is a variable in writable memory, or
 *             a function, goes to one table, sorted by address. A file that is not what was loaded gives wrong
 *             names, and nothing worse: it is read into memory of our own, and all offsets are checked.
 * Locking     modules_lock, while modules are noted.
 * Tests       tests/api/heapdump.c, tests/api/profile.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"
#include "os/os_internal.h"

#include "base/bits.h"
#include "base/sort.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

enum {
    MODULES = 256, /* of further ones nothing has a name */
    RANGES = 8,    /* of memory, of a module */
};

#define PART_MOST (UINT64_C(1) << 30) /* bytes of a file that are read at once */

struct os_module {
    uintptr_t base;
    struct {
        uintptr_t start, end;
    } ranges[RANGES]; /* where its symbols may lie */
    size_t nranges;
    char *names; /* .strtab, in memory of our own; NULL: none */
    uint64_t names_bytes;
    char path[PATH_MAX]; /* of the program too, which the loader does not name */
};

static size_t modules_bytes(void)
{
    return align_up(MODULES * sizeof(struct os_module), os_page_size());
}

/* -- which modules there are ------------------------------------------------------------------- */

static int note_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct os_symbols *s = arg;
    unsigned flag = s->of == OS_FUNCTIONS ? PF_X : PF_W;
    (void)size;
    if (s->nmodules == MODULES || info->dlpi_name == NULL) {
        return 0;
    }
    struct os_module *m = &s->modules[s->nmodules++];
    m->base = (uintptr_t)info->dlpi_addr;
    strncpy(m->path, info->dlpi_name, sizeof m->path - 1);
    for (size_t i = 0; i < info->dlpi_phnum && m->nranges < RANGES; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        if (ph->p_type == PT_LOAD && (ph->p_flags & flag) != 0) {
            m->ranges[m->nranges].start = m->base + ph->p_vaddr;
            m->ranges[m->nranges++].end = m->base + ph->p_vaddr + ph->p_memsz;
        }
    }
    return 0;
}

void os_symbols_begin(struct os_symbols *s, enum os_symbols_of of)
{
    *s = (struct os_symbols){.of = of, .modules = os_map(modules_bytes())};
    if (s->modules != NULL) {
        modules_each(note_module, s);
    }
}

/* -- their files ------------------------------------------------------------------------------- */

/* Released with its size. NULL: the file has no such bytes, or no memory. */
static void *read_part(int fd, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0 || bytes > PART_MOST || offset > INT64_MAX - bytes) {
        return NULL;
    }
    size_t room = align_up((size_t)bytes, os_page_size());
    char *at = os_map(room);
    ssize_t n = 1;
    for (uint64_t done = 0; at != NULL && done < bytes; done += (uint64_t)n) {
        n = pread(fd, at + done, (size_t)(bytes - done), (off_t)(offset + done));
        if (n <= 0) {
            os_release(at, room);
            return NULL;
        }
    }
    return at;
}

static void release_part(void *at, uint64_t bytes)
{
    if (at != NULL) {
        os_release(at, align_up((size_t)bytes, os_page_size()));
    }
}

static bool symbols_grow(struct os_symbols *s)
{
    size_t capacity = s->capacity == 0 ? 1024 : 2 * s->capacity;
    struct os_symbol *bigger = os_map(align_up(capacity * sizeof *bigger, os_page_size()));
    if (bigger == NULL) {
        return false;
    }
    if (s->symbols != NULL) {
        memcpy(bigger, s->symbols, s->count * sizeof *bigger);
        release_part(s->symbols, s->capacity * sizeof *bigger);
    }
    s->symbols = bigger;
    s->capacity = capacity;
    return true;
}

static bool module_has(const struct os_module *m, uintptr_t start, uint64_t bytes)
{
    for (size_t i = 0; i < m->nranges; i++) {
        uintptr_t offset = start - m->ranges[i].start;
        uintptr_t length = m->ranges[i].end - m->ranges[i].start;
        if (offset < length && bytes <= length - offset) {
            return true;
        }
    }
    return false;
}

static void add_symbols(struct os_symbols *s, const struct os_module *m, const ElfW(Sym) * sym,
                        uint64_t n)
{
    const char *slash = strrchr(m->path, '/');
    unsigned type = s->of == OS_FUNCTIONS ? STT_FUNC : STT_OBJECT;
    for (uint64_t i = 0; i < n; i++) {
        uintptr_t start = m->base + (uintptr_t)sym[i].st_value;
        if (ELF64_ST_TYPE(sym[i].st_info) == type && sym[i].st_size != 0 &&
            sym[i].st_shndx != SHN_UNDEF && sym[i].st_name < m->names_bytes &&
            module_has(m, start, sym[i].st_size) && (s->count < s->capacity || symbols_grow(s))) {
            s->symbols[s->count++] = (struct os_symbol){start, (size_t)sym[i].st_size,
                                                        m->names + sym[i].st_name,
                                                        slash != NULL ? slash + 1 : m->path};
        }
    }
}

static const ElfW(Shdr) * table_of(const ElfW(Shdr) * sections, size_t n, uint32_t type)
{
    for (size_t i = 0; i < n; i++) {
        if (sections[i].sh_type == type && sections[i].sh_link < n) {
            return &sections[i];
        }
    }
    return NULL;
}

static void read_table(struct os_symbols *s, struct os_module *m, int fd, const ElfW(Shdr) * table,
                       const ElfW(Shdr) * names)
{
    uint64_t n = table->sh_size / sizeof(ElfW(Sym));
    ElfW(Sym) *sym = read_part(fd, table->sh_offset, n * sizeof *sym);
    m->names = read_part(fd, names->sh_offset, names->sh_size);
    m->names_bytes = m->names != NULL ? names->sh_size : 0;
    if (sym != NULL && m->names != NULL && m->names[m->names_bytes - 1] == '\0') {
        add_symbols(s, m, sym, n);
    }
    release_part(sym, n * sizeof *sym);
}

static void read_sections(struct os_symbols *s, struct os_module *m, int fd)
{
    ElfW(Ehdr) head;
    if (pread(fd, &head, sizeof head, 0) != (ssize_t)sizeof head ||
        memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_shentsize != sizeof(ElfW(Shdr))) {
        return;
    }
    size_t bytes = head.e_shnum * sizeof(ElfW(Shdr));
    ElfW(Shdr) *sections = read_part(fd, head.e_shoff, bytes);
    if (sections == NULL) {
        return;
    }
    const ElfW(Shdr) *table = table_of(sections, head.e_shnum, SHT_SYMTAB);
    table = table != NULL ? table : table_of(sections, head.e_shnum, SHT_DYNSYM);
    if (table != NULL) {
        read_table(s, m, fd, table, &sections[table->sh_link]);
    }
    release_part(sections, bytes);
}

static void read_file(struct os_symbols *s, struct os_module *m)
{
    const char *path = m->path;
    if (path[0] == '\0') {
        ssize_t n = readlink("/proc/self/exe", m->path, sizeof m->path - 1);
        m->path[n < 0 ? 0 : n] = '\0';
        path = "/proc/self/exe";
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC); /* none for a name without a file, the kernel's */
    if (fd >= 0) {
        read_sections(s, m, fd);
        (void)close(fd);
    }
}

/* -- the table --------------------------------------------------------------------------------- */

void os_symbols_read(struct os_symbols *s)
{
    int saved_errno = errno;
    for (size_t i = 0; i < s->nmodules; i++) {
        read_file(s, &s->modules[i]);
    }
    sort_by_address(s->symbols, s->count, sizeof *s->symbols);
    errno = saved_errno;
}

void os_symbols_release(struct os_symbols *s)
{
    for (size_t i = 0; i < s->nmodules; i++) {
        release_part(s->modules[i].names, s->modules[i].names_bytes);
    }
    release_part(s->symbols, s->capacity * sizeof *s->symbols);
    if (s->modules != NULL) {
        os_release(s->modules, modules_bytes());
    }
}

const struct os_symbol *os_symbols_find(const struct os_symbols *s, uintptr_t addr)
{
    size_t low = 0;
    size_t high = s->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (s->symbols[middle].start <= addr) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const struct os_symbol *last = low == 0 ? NULL : &s->symbols[low - 1];
    return last != NULL && addr - last->start < last->bytes ? last : NULL;
}
