/* symbols.c - which variable, or function, lies at an address.
 *
 * Purpose     Names for roots in the data of the program and its libraries, and for calls in profiles; static ones too.
 * Model       Each module's file is mapped; of its .symtab, or where it was stripped .dynsym, what is a variable in writable
 *             memory, or a function, goes to one table, sorted by address. A file that is not what was loaded gives wrong names, and nothing
 *             worse: all offsets are checked against its length.
 * Locking     modules_lock over the walk.
 * Tests       tests/api/heapdump.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"
#include "os/os_internal.h"

#include "base/bits.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct elf {
    const char *at; /* the mapped file; NULL: none */
    size_t bytes;
    const ElfW(Shdr) * sections;
    size_t nsections;
};

/* Does the file have n things of `size` at `offset`? */
static bool elf_holds(const struct elf *e, uint64_t offset, uint64_t n, uint64_t size)
{
    return offset <= e->bytes && n <= (e->bytes - offset) / size;
}

static void elf_map(struct elf *e, const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    if (fstat(fd, &st) == 0 && (size_t)st.st_size > sizeof(ElfW(Ehdr))) {
        const void *at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        e->at = at == MAP_FAILED ? NULL : at;
        e->bytes = (size_t)st.st_size;
    }
    (void)close(fd);
}

static bool elf_read(struct elf *e)
{
    const ElfW(Ehdr) *head = (const void *)e->at;
    if (e->at == NULL || memcmp(head->e_ident, ELFMAG, SELFMAG) != 0 ||
        head->e_shentsize != sizeof(ElfW(Shdr)) || head->e_shoff % _Alignof(ElfW(Shdr)) != 0 ||
        !elf_holds(e, head->e_shoff, head->e_shnum, sizeof(ElfW(Shdr)))) {
        return false;
    }
    e->sections = (const void *)(e->at + head->e_shoff);
    e->nsections = head->e_shnum;
    return true;
}

static const ElfW(Shdr) * elf_section(const struct elf *e, uint32_t type)
{
    for (size_t i = 0; i < e->nsections; i++) {
        const ElfW(Shdr) *s = &e->sections[i];
        if (s->sh_type == type && s->sh_link < e->nsections &&
            s->sh_offset % _Alignof(ElfW(Sym)) == 0 && elf_holds(e, s->sh_offset, s->sh_size, 1)) {
            return s;
        }
    }
    return NULL;
}

static bool symbols_grow(struct os_symbols *s)
{
    size_t capacity = s->capacity == 0 ? 1024 : 2 * s->capacity;
    size_t page = os_page_size();
    struct os_symbol *bigger = os_map(align_up(capacity * sizeof *bigger, page));
    if (bigger == NULL) {
        return false;
    }
    if (s->symbols != NULL) {
        memcpy(bigger, s->symbols, s->count * sizeof *bigger);
        os_release(s->symbols, align_up(s->capacity * sizeof *bigger, page));
    }
    s->symbols = bigger;
    s->capacity = capacity;
    return true;
}

static void symbols_add(struct os_symbols *s, struct os_symbol symbol)
{
    if (s->count < s->capacity || symbols_grow(s)) {
        s->symbols[s->count++] = symbol;
    }
}

static void symbols_of_section(struct os_symbols *s, const struct elf *e, const ElfW(Shdr) * table,
                               const struct dl_phdr_info *info, const char *module)
{
    const ElfW(Sym) *sym = (const void *)(e->at + table->sh_offset);
    const ElfW(Shdr) *names = &e->sections[table->sh_link];
    if (!elf_holds(e, names->sh_offset, names->sh_size, 1) || names->sh_size == 0 ||
        e->at[names->sh_offset + names->sh_size - 1] != '\0') {
        return;
    }
    for (size_t i = 0; i < table->sh_size / sizeof *sym; i++) {
        uintptr_t start = (uintptr_t)(info->dlpi_addr + sym[i].st_value);
        if (ELF64_ST_TYPE(sym[i].st_info) == (s->of == OS_FUNCTIONS ? STT_FUNC : STT_OBJECT) &&
            sym[i].st_size != 0 && sym[i].st_shndx != SHN_UNDEF &&
            sym[i].st_name < names->sh_size &&
            module_holds(info, start, (size_t)sym[i].st_size,
                         s->of == OS_FUNCTIONS ? PF_X : PF_W)) {
            const char *name = e->at + names->sh_offset + sym[i].st_name;
            symbols_add(s, (struct os_symbol){start, (size_t)sym[i].st_size, name, module});
        }
    }
}

/* The program has no name for the loader; and a name without a file is the kernel's. */
static const char *module_path(struct os_symbols *s, const struct dl_phdr_info *info,
                               const char **module)
{
    const char *path = info->dlpi_name;
    if (path == NULL || path[0] == '\0') {
        ssize_t n = readlink("/proc/self/exe", s->program, sizeof s->program - 1);
        s->program[n < 0 ? 0 : n] = '\0';
        *module = s->program;
        path = "/proc/self/exe";
    } else {
        *module = path;
    }
    const char *slash = strrchr(*module, '/');
    *module = slash != NULL ? slash + 1 : *module;
    return path;
}

static int symbols_of_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct os_symbols *s = arg;
    const char *module;
    struct elf e = {0};
    (void)size;
    elf_map(&e, module_path(s, info, &module));
    if (!elf_read(&e)) {
        if (e.at != NULL) {
            (void)munmap((void *)(uintptr_t)e.at, e.bytes);
        }
        return 0;
    }
    const ElfW(Shdr) *table = elf_section(&e, SHT_SYMTAB);
    table = table != NULL ? table : elf_section(&e, SHT_DYNSYM);
    if (table != NULL && s->nfiles < OS_SYMBOL_FILES) {
        s->files[s->nfiles].at = (void *)(uintptr_t)e.at;
        s->files[s->nfiles++].bytes = e.bytes;
        symbols_of_section(s, &e, table, info, module);
    } else {
        (void)munmap((void *)(uintptr_t)e.at, e.bytes);
    }
    return 0;
}

static void sift(struct os_symbol *v, size_t root, size_t n)
{
    struct os_symbol moved = v[root];
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        child += child + 1 < n && v[child].start < v[child + 1].start;
        if (moved.start >= v[child].start) {
            break;
        }
        v[root] = v[child];
    }
    v[root] = moved;
}

void os_symbols_read(struct os_symbols *s, enum os_symbols_of of)
{
    int saved_errno = errno;
    *s = (struct os_symbols){.of = of};
    modules_each(symbols_of_module, s);
    for (size_t i = s->count / 2; i > 0; i--) {
        sift(s->symbols, i - 1, s->count);
    }
    for (size_t i = s->count; i-- > 1;) {
        struct os_symbol largest = s->symbols[0];
        s->symbols[0] = s->symbols[i];
        s->symbols[i] = largest;
        sift(s->symbols, 0, i);
    }
    errno = saved_errno;
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

void os_symbols_release(struct os_symbols *s)
{
    for (size_t i = 0; i < s->nfiles; i++) {
        (void)munmap(s->files[i].at, s->files[i].bytes);
    }
    if (s->symbols != NULL) {
        os_release(s->symbols, align_up(s->capacity * sizeof *s->symbols, os_page_size()));
    }
}
