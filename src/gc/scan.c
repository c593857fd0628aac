/* scan.c - kernels that gather candidate words from the objects of a span.
 *
 * Purpose     From the chosen words of the chosen objects keep those that lie in the heap's region.
 * Model       a word counts if (word & pointer_mask) - base < used, as unsigned numbers.
 * Invariants  [scan.same]  every kernel gives what scan_plain gives, in the same order.
 * Ordering    words are read while the program writes them, whole and aligned.
 * From Go     internal/runtime/gc/scan; differs: one kernel for every size, a mask by type.
 * Tests       tests/unit/test_scan.c compares all kernels for every class, density and page end.
 */
#include "gc/scan.h"

#include "base/bits.h"

NO_SANITIZE size_t scan_plain(const uintptr_t *base, size_t words, uint64_t mask, uint64_t objects,
                              const struct scan_region *region, uintptr_t *out)
{
    size_t n = 0;
    for (; objects != 0; objects &= objects - 1) {
        const volatile uintptr_t *obj = base + ctz64(objects) * words;
        for (uint64_t m = mask; m != 0; m &= m - 1) {
            uintptr_t off = (obj[ctz64(m)] & region->pointer_mask) - region->base;
            out[n] = off;
            n += off < region->used;
        }
    }
    return n;
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx512f,avx512vl,bmi,bmi2"))) NO_SANITIZE size_t
scan_avx512(const uintptr_t *base, size_t words, uint64_t mask, uint64_t objects,
            const struct scan_region *region, uintptr_t *out)
{
    size_t n = 0;
    const __m512i low = _mm512_set1_epi64((long long)region->base);
    const __m512i used = _mm512_set1_epi64((long long)region->used);
    const __m512i pmask = _mm512_set1_epi64((long long)region->pointer_mask);
    for (; objects != 0; objects &= objects - 1) {
        const uintptr_t *obj = base + ctz64(objects) * words;
        for (uint64_t m = mask; m != 0; m >>= 8, obj += 8) {
            __mmask8 k = (__mmask8)m;
            __m512i v = _mm512_maskz_loadu_epi64(k, obj);
            v = _mm512_sub_epi64(_mm512_and_epi64(v, pmask), low);
            k = _mm512_mask_cmplt_epu64_mask(k, v, used);
            /* compress in the register: compressing to memory is far slower on some processors */
            _mm512_storeu_si512(out + n, _mm512_maskz_compress_epi64(k, v));
            n += (size_t)__builtin_popcount(k);
            if (m >> 8 == 0) {
                break;
            }
        }
    }
    return n;
}

__attribute__((target("avx2"))) NO_SANITIZE size_t scan_avx2(const uintptr_t *base, size_t words,
                                                             uint64_t mask, uint64_t objects,
                                                             const struct scan_region *region,
                                                             uintptr_t *out)
{
    size_t n = 0;
    const long long flip = (long long)(UINT64_C(1) << 63); /* makes a signed compare unsigned */
    const __m256i low = _mm256_set1_epi64x((long long)region->base);
    const __m256i used = _mm256_set1_epi64x((long long)region->used ^ flip);
    const __m256i sign = _mm256_set1_epi64x(flip);
    const __m256i pmask = _mm256_set1_epi64x((long long)region->pointer_mask);
    const __m256i lanes = _mm256_setr_epi64x(1, 2, 4, 8);
    for (; objects != 0; objects &= objects - 1) {
        const uintptr_t *obj = base + ctz64(objects) * words;
        for (uint64_t m = mask; m != 0; m >>= 4, obj += 4) {
            __m256i bits = _mm256_and_si256(_mm256_set1_epi64x((long long)(m & 15)), lanes);
            __m256i chosen = _mm256_cmpeq_epi64(bits, lanes);
            __m256i v = _mm256_maskload_epi64((const long long *)obj, chosen);
            v = _mm256_sub_epi64(_mm256_and_si256(v, pmask), low);
            __m256i in = _mm256_cmpgt_epi64(used, _mm256_xor_si256(v, sign));
            unsigned k =
                (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_and_si256(in, chosen)));
            uintptr_t lane[4];
            _mm256_storeu_si256((__m256i *)lane, v);
            for (; k != 0; k &= k - 1) {
                out[n++] = lane[ctz64(k)];
            }
        }
    }
    return n;
}

scan_kernel *scan_choose(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
        return scan_avx512;
    }
    return __builtin_cpu_supports("avx2") ? scan_avx2 : scan_plain;
}

#elif defined(__aarch64__)
#include <arm_neon.h>

NO_SANITIZE size_t scan_neon(const uintptr_t *base, size_t words, uint64_t mask, uint64_t objects,
                             const struct scan_region *region, uintptr_t *out)
{
    size_t n = 0;
    const uint64x2_t low = vdupq_n_u64(region->base);
    const uint64x2_t used = vdupq_n_u64(region->used);
    const uint64x2_t pmask = vdupq_n_u64(region->pointer_mask);
    for (; objects != 0; objects &= objects - 1) {
        const uintptr_t *obj = base + ctz64(objects) * words;
        for (uint64_t m = mask; m != 0; m >>= 2, obj += 2) {
            if ((m & 3) != 3) {
                uintptr_t off = (obj[(m & 1) ? 0 : 1] & region->pointer_mask) - region->base;
                out[n] = off;
                n += (m & 3) != 0 && off < region->used;
                continue;
            }
            uint64x2_t v = vsubq_u64(vandq_u64(vld1q_u64((const uint64_t *)obj), pmask), low);
            uint64x2_t in = vcltq_u64(v, used);
            out[n] = vgetq_lane_u64(v, 0);
            n += vgetq_lane_u64(in, 0) & 1;
            out[n] = vgetq_lane_u64(v, 1);
            n += vgetq_lane_u64(in, 1) & 1;
        }
    }
    return n;
}

scan_kernel *scan_choose(void)
{
    return scan_neon;
}

#else

scan_kernel *scan_choose(void)
{
    return scan_plain;
}

#endif
