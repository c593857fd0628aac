// two_tus_a.cpp - COMDAT functions with stores in two translation units, linked and run.
//
// Claim: the linker keeps one copy of each and its note, and dl_iterate_phdr finds the notes of the
// program and of its libraries, each within executable memory. Run with a stand-in for the library
// (stand_in.c); compile_all.sh links it in every way it can.
#include "two_tus.h"

#include <cstdio>
#include <cstring>
#include <link.h>

extern "C" unsigned stand_in_stores(bool on);

namespace
{

struct found {
    int notes, bad, objects;
};

bool is_code(const dl_phdr_info *info, uintptr_t pc)
{
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &ph = info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + ph.p_vaddr;
        if (ph.p_type == PT_LOAD && (ph.p_flags & PF_X) && pc >= start && pc < start + ph.p_memsz) {
            return true;
        }
    }
    return false;
}

int visit(dl_phdr_info *info, size_t, void *arg)
{
    found *f = static_cast<found *>(arg);
    int before = f->notes;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &ph = info->dlpi_phdr[i];
        if (ph.p_type != PT_NOTE || ph.p_align > 4) {
            continue;
        }
        const char *p = reinterpret_cast<const char *>(info->dlpi_addr + ph.p_vaddr);
        const char *end = p + ph.p_memsz;
        while (p + 12 <= end) {
            uint32_t h[3];
            std::memcpy(h, p, sizeof h);
            const char *desc = p + 12 + ((h[0] + 3) & ~3u);
            if (h[0] == 5 && h[1] == 8 && h[2] == 1 && std::memcmp(p + 12, "loam", 5) == 0) {
                int32_t d[2];
                std::memcpy(d, desc, sizeof d);
                uintptr_t at = reinterpret_cast<uintptr_t>(desc);
                uintptr_t start = at + uintptr_t(intptr_t(d[0]));
                uintptr_t limit = at + 4 + uintptr_t(intptr_t(d[1]));
                f->notes++;
                f->bad += !(start < limit && limit - start < 40 && is_code(info, start));
            }
            p = desc + ((h[1] + 3) & ~3u);
        }
    }
    f->objects += f->notes > before;
    return 0;
}

} // namespace

int main(int argc, char **argv)
{
    static item a, b, *slot;
    found f = {0, 0, 0};
    int objects = argc > 1 ? argv[1][0] - '0' : 1;

    stand_in_stores(false);
    link_items(&b, &a);
    put(slot, &a);
    if (slot != &a || b.next != &a || stand_in_stores(true) != 0) {
        std::puts("with the barrier off a store called the library");
        return 1;
    }
    int expected = use_b(&a, &b);
    if (int(stand_in_stores(false)) != expected) {
        std::puts("with the barrier on a store did not call the library once");
        return 1;
    }
#if defined(LOAM_STORE_CALLS_)
    return 0;
#endif
    dl_iterate_phdr(visit, &f);
    if (f.bad != 0 || f.notes < 4 || f.objects != objects) {
        std::printf("%d notes in %d of %d objects, %d out of range\n", f.notes, f.objects, objects,
                    f.bad);
        return 1;
    }
    return 0;
}
