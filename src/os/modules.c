/* modules.c - the executable and the shared objects: their data, their restartable stores, other
 * copies of the library in them.
 *
 * Purpose     Global roots; the code ranges of stores that a handshake may not leave half-done; and
 *             that one copy of the library alone works in a process.
 * Model       Each sequence has a note in its module: name "loam", type 1, two 32-bit offsets, each
 *             relative to its own address, of the first and past the last byte. os_stores_refresh
 *             collects them, sorted, into a snapshot; handlers search the current snapshot.
 *             A few snapshot slots stand for ever and count their readers, so a handler that is not
 *             being run delays nobody: the next free slot is taken.
 *             dlclose and dlopen may put other code where a sequence was, between a refresh and a
 *             handler: an entry has the first bytes of its code, and holds only where they are still
 *             there (breakpoints of a debugger apart).
 *             The library has a note of its own: type 2, the offset of a word that is not zero while
 *             this copy is the one that works.
 * Invariants  [stores.sorted] ranges of a snapshot ascend by begin.
 *             [stores.slot] a slot is written only while it is not current and has no readers.
 * Locking     modules_lock, held over every walk. Inside: the loader's lock.
 * Ordering    current and readers are seq_cst: a reader raises readers and then reads current, the
 *             writer stores current and later reads readers; one of them sees the other.
 * Tests       tests/unit/test_os_modules.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"
#include "os/os_internal.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sort.h"

#include <elf.h>
#include <link.h>
#include <sched.h>
#include <string.h>

static struct mutex modules_lock; /* around every dl_iterate_phdr of ours */

bool module_holds(const struct dl_phdr_info *info, uintptr_t addr, size_t bytes, unsigned flags)
{
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        if (ph->p_type != PT_LOAD || (ph->p_flags & flags) != flags) {
            continue;
        }
        uintptr_t offset = addr - (uintptr_t)(info->dlpi_addr + ph->p_vaddr);
        if (offset < ph->p_memsz && bytes <= ph->p_memsz - offset) {
            return true;
        }
    }
    return false;
}

void modules_each(int (*fn)(struct dl_phdr_info *info, size_t size, void *arg), void *arg)
{
    mutex_lock(&modules_lock);
    (void)dl_iterate_phdr(fn, arg);
    mutex_unlock(&modules_lock);
}

/* -- data ------------------------------------------------------------------------------------- */

struct data_walk {
    void (*fn)(void *arg, uintptr_t start, size_t bytes);
    void *arg;
};

/* Is this module nothing but the library? Linked statically into an executable or a plug-in, its data
 * is mixed with the program's: then it is not. The file's name tells: leaving out too little costs a
 * moment, leaving out too much an object. */
static bool module_is_library(const struct dl_phdr_info *info)
{
    const char *name = info->dlpi_name;
    if (name == NULL || !module_holds(info, (uintptr_t)&os_each_data_range, 1, PF_X)) {
        return false;
    }
    const char *slash = strrchr(name, '/');
    static const char own[] = "libloam.so";
    return strncmp(slash != NULL ? slash + 1 : name, own, sizeof(own) - 1) == 0;
}

static int data_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    const struct data_walk *walk = arg;
    (void)size;
    if (module_is_library(info)) {
        return 0;
    }
#if defined(__SANITIZE_THREAD__) /* its tables are 50 MB and name no object of the program */
    if (info->dlpi_name != NULL && strstr(info->dlpi_name, "/libtsan.so") != NULL) {
        return 0;
    }
#endif
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        if (ph->p_type != PT_LOAD || (ph->p_flags & (PF_R | PF_W)) != (PF_R | PF_W)) {
            continue; /* the vDSO has none */
        }
        uintptr_t start = align_up((uintptr_t)(info->dlpi_addr + ph->p_vaddr), sizeof(uintptr_t));
        uintptr_t end = (uintptr_t)(info->dlpi_addr + ph->p_vaddr + ph->p_memsz);
        end = align_down(end, sizeof(uintptr_t));
        if (start < end) {
            walk->fn(walk->arg, start, end - start);
        }
    }
    return 0;
}

void os_each_data_range(void (*fn)(void *arg, uintptr_t start, size_t bytes), void *arg)
{
    modules_each(data_module, &(struct data_walk){fn, arg});
}

/* -- notes ------------------------------------------------------------------------------------ */

#define NOTE_NAME "loam"
#define NOTE_STORE 1u /* types */
#define NOTE_COPY 2u

struct note {
    const char *name;
    uint32_t type;
    size_t bytes; /* of the description */
};

/* Call fn for each such note of this module, desc and its bytes, while it returns true. bytes 0: of any length. */
static void
module_notes(const struct dl_phdr_info *info, const ElfW(Phdr) * ph, const struct note *which,
             bool (*fn)(void *arg, const struct dl_phdr_info *info, uintptr_t desc, size_t bytes),
             void *arg)
{
    uintptr_t at = (uintptr_t)(info->dlpi_addr + ph->p_vaddr);
    uintptr_t end = at + ph->p_memsz;
    size_t align = ph->p_align == 8 ? 8 : 4;
    size_t namesz = strlen(which->name) + 1;
    if (ph->p_type != PT_NOTE || !module_holds(info, at, ph->p_memsz, PF_R)) {
        return;
    }
    while (end - at >= sizeof(ElfW(Nhdr))) {
        ElfW(Nhdr) nh;
        memcpy(&nh, (const void *)at, sizeof(nh));
        size_t desc_at = align_up(sizeof(nh) + (size_t)nh.n_namesz, align);
        size_t bytes = align_up(desc_at + nh.n_descsz, align);
        if (desc_at + nh.n_descsz > end - at) {
            return;
        }
        if (nh.n_type == which->type && nh.n_namesz == namesz &&
            (which->bytes == 0 || nh.n_descsz == which->bytes) &&
            memcmp((const void *)(at + sizeof(nh)), which->name, namesz) == 0 &&
            !fn(arg, info, at + desc_at, nh.n_descsz)) {
            return;
        }
        if (bytes >= end - at) {
            return;
        }
        at += bytes;
    }
}

/* -- code ------------------------------------------------------------------------------------- */

struct text_walk {
    void (*fn)(void *arg, const struct os_text *text);
    void *arg;
};

static bool build_id_note(void *arg, const struct dl_phdr_info *info, uintptr_t desc, size_t bytes)
{
    struct os_text *t = arg;
    (void)info;
    t->build_id = (const uint8_t *)desc;
    t->build_id_bytes = bytes;
    return false;
}

static int text_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    const struct text_walk *walk = arg;
    (void)size;
    struct os_text t = {.file = info->dlpi_name};
    static const struct note build_id = {"GNU", NT_GNU_BUILD_ID, 0};
    for (size_t i = 0; i < info->dlpi_phnum && t.build_id == NULL; i++) {
        module_notes(info, &info->dlpi_phdr[i], &build_id, build_id_note, &t);
    }
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        if (ph->p_type == PT_LOAD && (ph->p_flags & PF_X) != 0) {
            t.start = align_down((uintptr_t)(info->dlpi_addr + ph->p_vaddr), os_page_size());
            t.limit = (uintptr_t)(info->dlpi_addr + ph->p_vaddr + ph->p_memsz);
            t.offset = align_down(ph->p_offset, os_page_size());
            t.is_library = module_is_library(info);
            walk->fn(walk->arg, &t);
        }
    }
    return 0;
}

void os_each_text(void (*fn)(void *arg, const struct os_text *text), void *arg)
{
    modules_each(text_module, &(struct text_walk){fn, arg});
}

/* -- restartable stores ----------------------------------------------------------------------- */

/* Of each sequence, so many first bytes are compared before it is believed. On aarch64 whole
 * instructions. */
#if defined(__aarch64__)
#define STORE_CODE 16
#else
#define STORE_CODE 19
#endif

struct store_range {
    uintptr_t begin;
    uint32_t bytes;
    uint8_t ncode; /* of code[]; 0: the code cannot be read, believe it */
    uint8_t code[STORE_CODE];
};
_Static_assert(sizeof(struct store_range) == 32, "two in a cache line");

/* Two are in use in turn; the others are for when a reader stands still. */
#define SNAPSHOTS 8

struct snapshot {
    _Atomic uint32_t readers;
    uint32_t count;             /* the rest by [stores.slot] */
    size_t capacity;            /* of ranges */
    struct store_range *ranges; /* [stores.sorted], from os_map */
};

static struct snapshot snapshots[SNAPSHOTS];
static _Atomic size_t snapshot_bytes;     /* mapped for both; for reports only */
static _Atomic uint32_t snapshot_current; /* index; written under modules_lock */

/* Under modules_lock. */
static uint64_t stores_generation; /* of the current snapshot; 0: none yet */
static uint64_t stores_adds;       /* the loader's counters then */
static uint64_t stores_subs;

struct stores_build {
    struct snapshot *into; /* NULL: only look for pc */
    uintptr_t pc, found;
    uint64_t adds;
    uint64_t subs;
    bool seen;   /* the counters are read */
    bool failed; /* no memory */
};

/* Where the C library does not count (an ancient one), modules always seem to have changed. */
static void counters_read(const struct dl_phdr_info *info, size_t size, uint64_t *adds,
                          uint64_t *subs)
{
    static uint64_t unknown;
    if (size >= offsetof(struct dl_phdr_info, dlpi_subs) + sizeof(info->dlpi_subs)) {
        *adds = info->dlpi_adds;
        *subs = info->dlpi_subs;
    } else {
        *adds = ++unknown;
        *subs = 0;
    }
}

static bool snapshot_grow(struct snapshot *s)
{
    size_t capacity = s->capacity == 0 ? os_page_size() / sizeof(struct store_range)
                                       : 2 * s->capacity;
    struct store_range *ranges = os_map(capacity * sizeof(*ranges));
    if (ranges == NULL) {
        return false;
    }
    os_name(ranges, capacity * sizeof(*ranges), "loam stores");
    if (s->ranges != NULL) {
        memcpy(ranges, s->ranges, s->count * sizeof(*ranges));
        os_release(s->ranges, s->capacity * sizeof(*ranges));
    }
    add_rlx(&snapshot_bytes, (capacity - s->capacity) * sizeof(*ranges)); /* relaxed: a count */
    s->ranges = ranges;
    s->capacity = capacity;
    return true;
}

static NO_SANITIZE void code_copy(struct store_range *r, uintptr_t begin, size_t n)
{
    const uint8_t *code = (const uint8_t *)begin;
    for (size_t i = 0; i < n; i++) {
        r->code[i] = code[i];
    }
    r->ncode = (uint8_t)n;
}

static void stores_add(struct stores_build *b, const struct dl_phdr_info *info, uintptr_t begin,
                       uintptr_t end)
{
    /* A note whose code the linker has thrown away points anywhere. */
    if (begin >= end || end - begin > UINT32_MAX || !module_holds(info, begin, end - begin, PF_X)) {
        return;
    }
    if (b->into == NULL) {
        b->found = begin < b->pc && b->pc < end ? begin : b->found;
        return;
    }
    struct snapshot *s = b->into;
    if (s->count == s->capacity && !snapshot_grow(s)) {
        b->failed = true;
        return;
    }
    struct store_range *r = &s->ranges[s->count++];
    r->begin = begin;
    r->bytes = (uint32_t)(end - begin);
    r->ncode = 0;
    if (module_holds(info, begin, end - begin, PF_R | PF_X)) {
        code_copy(r, begin, r->bytes < STORE_CODE ? r->bytes : STORE_CODE);
    }
}

/* The two words of a store's note. */
static bool stores_note(void *arg, const struct dl_phdr_info *info, uintptr_t desc, size_t bytes)
{
    struct stores_build *b = arg;
    int32_t offset[2];
    (void)bytes;
    memcpy(offset, (const void *)desc, sizeof(offset));
    uintptr_t begin = desc + (uintptr_t)(intptr_t)offset[0];
    uintptr_t end = desc + sizeof(offset[0]) + (uintptr_t)(intptr_t)offset[1];
    stores_add(b, info, begin, end);
    return !b->failed;
}

static int stores_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    static const struct note store = {NOTE_NAME, NOTE_STORE, 2 * sizeof(int32_t)};
    struct stores_build *b = arg;
    if (!b->seen) {
        counters_read(info, size, &b->adds, &b->subs);
        b->seen = true;
    }
    tls_module_seen(info, size);
    for (size_t i = 0; i < info->dlpi_phnum && !b->failed; i++) {
        module_notes(info, &info->dlpi_phdr[i], &store, stores_note, b);
    }
    return b->failed;
}

static bool stores_sorted(const struct store_range *r, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        if (r[i - 1].begin > r[i].begin) {
            return false;
        }
    }
    return true;
}

/* Mostly they are in order already. */
static void stores_sort(struct store_range *r, size_t n)
{
    if (!stores_sorted(r, n)) {
        sort_by_address(r, n, sizeof *r);
    }
}

static int counters_unchanged(struct dl_phdr_info *info, size_t size, void *arg)
{
    bool *unchanged = arg;
    uint64_t adds;
    uint64_t subs;
    counters_read(info, size, &adds, &subs);
    *unchanged = adds == stores_adds && subs == stores_subs;
    return 1; /* every callback has the same counters */
}

static bool stores_current_locked(void)
{
    bool unchanged = false;
    if (stores_generation != 0) {
        (void)dl_iterate_phdr(counters_unchanged, &unchanged);
    }
    return unchanged;
}

static uint32_t snapshot_take_free(void)
{
    uint32_t current = load_rlx(&snapshot_current);
    for (;;) {
        for (uint32_t i = 0; i < SNAPSHOTS; i++) {
            /* seq_cst: pairs with snapshot_enter; see Ordering. */
            if (i != current && load_sc(&snapshots[i].readers) == 0) {
                return i;
            }
        }
        sched_yield();
    }
}

uint64_t os_stores_refresh(void)
{
    mutex_lock(&modules_lock);
    uint64_t generation = stores_generation;
    if (!stores_current_locked()) {
        uint32_t slot = snapshot_take_free();
        struct stores_build b = {.into = &snapshots[slot]};
        b.into->count = 0;
        (void)dl_iterate_phdr(stores_module, &b);
        generation = 0;
        if (!b.failed) {
            stores_sort(b.into->ranges, b.into->count);
            ASSERT_SLOW(stores_sorted(b.into->ranges, b.into->count));
            /* seq_cst, a release too: the slot is complete. Pairs with snapshot_enter. */
            store_sc(&snapshot_current, slot);
            stores_adds = b.adds;
            stores_subs = b.subs;
            generation = ++stores_generation;
        }
    }
    mutex_unlock(&modules_lock);
    return generation;
}

uintptr_t os_stores_find(uintptr_t pc)
{
    struct stores_build b = {.pc = pc, .found = pc};
    modules_each(stores_module, &b);
    return b.found;
}

bool os_stores_changed(uint64_t generation)
{
    mutex_lock(&modules_lock);
    bool changed = generation != stores_generation || !stores_current_locked();
    mutex_unlock(&modules_lock);
    return changed;
}

static struct snapshot *snapshot_enter(void)
{
    for (;;) {
        uint32_t i = load_sc(&snapshot_current);
        struct snapshot *s = &snapshots[i];
        /* seq_cst: raise readers, then look again whether it is current: if it is, the writer sees
         * us before it writes there. Pairs with snapshot_take_free and os_stores_refresh. */
        (void)atomic_fetch_add_explicit(&s->readers, 1u, memory_order_seq_cst);
        if (load_sc(&snapshot_current) == i) {
            return s;
        }
        (void)sub_acqrel(&s->readers, 1u); /* release: as in snapshot_leave */
    }
}

static void snapshot_leave(struct snapshot *s)
{
    /* release: our reads of the slot are done. Pairs with snapshot_take_free. */
    (void)sub_acqrel(&s->readers, 1u);
}

/* Is the code at r still what it was? Only the page of pc is known to be mapped. */
static NO_SANITIZE bool store_code_same(const struct store_range *r, uintptr_t pc)
{
    const uintptr_t page = 4096;
    for (size_t i = 0; i < r->ncode; i++) {
        uintptr_t at = r->begin + i;
        if (align_down(at, page) != align_down(pc, page)) {
            continue;
        }
#if defined(__aarch64__)
        /* Instructions are aligned words; brk #0 of a debugger is as good. */
        uint32_t word;
        memcpy(&word, (const void *)align_down(at, sizeof(word)), sizeof(word));
        bool breakpoint = word == UINT32_C(0xd4200000);
#else
        bool breakpoint = *(const uint8_t *)at == 0xcc; /* int3 */
#endif
        if (*(const uint8_t *)at != r->code[i] && !breakpoint) {
            return false;
        }
    }
    return true;
}

size_t os_stores_bytes(void)
{
    return load_rlx(&snapshot_bytes);
}

uintptr_t os_stores_restart(uintptr_t pc)
{
    struct snapshot *s = snapshot_enter();
    /* The last range that begins before pc. */
    size_t low = 0;
    size_t high = s->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (s->ranges[middle].begin < pc) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low > 0) {
        const struct store_range *r = &s->ranges[low - 1];
        if (pc - r->begin < r->bytes && store_code_same(r, pc)) {
            pc = r->begin;
        }
    }
    snapshot_leave(s);
    return pc;
}

/* -- copies ----------------------------------------------------------------------------------- */

/* Named by this copy's note, so neither static nor left out. */
extern _Atomic uint32_t os_copy_works;
_Atomic uint32_t os_copy_works;

__asm__(".pushsection .note.loam, \"a\", %note\n"
        ".balign 4\n"
        ".long 5, 4, 2\n" /* NOTE_COPY */
        ".asciz \"" NOTE_NAME "\"\n"
        ".balign 4\n"
        ".long os_copy_works - .\n"
        ".popsection\n");

struct copies_walk {
    char *own, *other; /* names of modules */
    size_t bytes;
    bool found; /* another that works */
};

static void module_name(const struct dl_phdr_info *info, char *name, size_t bytes)
{
    const char *from = info->dlpi_name;
    from = from == NULL || from[0] == '\0' ? "the program itself" : from;
    size_t n = strnlen(from, bytes - 1);
    memcpy(name, from, n);
    name[n] = '\0';
}

static bool copies_note(void *arg, const struct dl_phdr_info *info, uintptr_t desc, size_t bytes)
{
    struct copies_walk *walk = arg;
    int32_t offset;
    (void)bytes;
    memcpy(&offset, (const void *)desc, sizeof(offset));
    uintptr_t addr = desc + (uintptr_t)(intptr_t)offset;
    if (addr == (uintptr_t)&os_copy_works) {
        module_name(info, walk->own, walk->bytes);
    } else if (addr % sizeof(os_copy_works) == 0 &&
               module_holds(info, addr, sizeof(os_copy_works), PF_R | PF_W) &&
               load_rlx((_Atomic uint32_t *)addr) != 0) {
        module_name(info, walk->other, walk->bytes);
        walk->found = true;
    }
    return true;
}

/* Runs under the loader's lock, which every copy takes: of several, one sees none before it. */
static int copies_module(struct dl_phdr_info *info, size_t size, void *arg)
{
    static const struct note copy = {NOTE_NAME, NOTE_COPY, sizeof(int32_t)};
    (void)size;
    store_rlx(&os_copy_works, 1u);
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        module_notes(info, &info->dlpi_phdr[i], &copy, copies_note, arg);
    }
    return 0;
}

bool os_copy_claim(char *own, char *other, size_t bytes)
{
    struct copies_walk walk = {.own = own, .other = other, .bytes = bytes};
    own[0] = other[0] = '\0';
    mutex_lock(&modules_lock);
    (void)dl_iterate_phdr(copies_module, &walk);
    if (walk.found) {
        store_rlx(&os_copy_works, 0u);
    }
    mutex_unlock(&modules_lock);
    return !walk.found;
}

/* -- fork ------------------------------------------------------------------------------------- */

void os_modules_fork_child(void)
{
    /* Only this thread is left, and it is in no handler of ours: whoever read is gone. Nobody was under the lock. */
    for (uint32_t i = 0; i < SNAPSHOTS; i++) {
        store_rlx(&snapshots[i].readers, 0u);
    }
}
