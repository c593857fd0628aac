/* text.c - numbers, patterns, chance; nothing of the library. */
#define _GNU_SOURCE
#include "kv.h"

#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- numbers and words ---- */

bool integer_parse(struct slice text, int64_t *n)
{
    const char *p = text.at, *end = text.at + text.length;
    bool negative = p < end && *p == '-';
    p += negative;
    if (p == end || (*p == '0' && (end - p > 1 || negative)))
        return false;
    int64_t sum = 0; /* negative: that side reaches one further */
    for (; p < end; p++)
        if (*p < '0' || *p > '9' || __builtin_mul_overflow(sum, 10, &sum) ||
            __builtin_sub_overflow(sum, *p - '0', &sum))
            return false;
    if (!negative && sum == INT64_MIN)
        return false;
    *n = negative ? sum : -sum;
    return true;
}

size_t integer_print(int64_t n, char text[INTEGER_CHARS])
{
    char digits[INTEGER_CHARS];
    size_t at = INTEGER_CHARS;
    uint64_t rest = n < 0 ? -(uint64_t)n : (uint64_t)n;
    do
        digits[--at] = (char)('0' + rest % 10);
    while ((rest /= 10) > 0);
    if (n < 0)
        digits[--at] = '-';
    memcpy(text, digits + at, INTEGER_CHARS - at);
    return INTEGER_CHARS - at;
}

bool same_word(struct slice a, const char *word)
{
    return strlen(word) == a.length && strncasecmp(a.at, word, a.length) == 0;
}

/* ---- patterns ---- */

/* One character that is no star, at *p of the pattern: does c match it? *p moves behind it. */
static bool glob_one(struct slice pattern, size_t *p, char c)
{
    char want = pattern.at[(*p)++];
    if (want == '?')
        return true;
    if (want == '\\' && *p < pattern.length)
        want = pattern.at[(*p)++];
    else if (want == '[') {
        bool not = *p < pattern.length && pattern.at[*p] == '^', found = false;
        for (*p += not ; *p < pattern.length && pattern.at[*p] != ']'; (*p)++) {
            *p += pattern.at[*p] == '\\' && *p + 1 < pattern.length;
            char low = pattern.at[*p], high = low;
            if (*p + 2 < pattern.length && pattern.at[*p + 1] == '-' && pattern.at[*p + 2] != ']')
                high = pattern.at[ *p += 2];
            found |= low <= high ? low <= c && c <= high : high <= c && c <= low;
        }
        *p += *p < pattern.length;
        return found != not ;
    }
    return want == c;
}

/* Only the last star can have to take one more: so the time is at most the product of both lengths.
 * */
bool glob_match(struct slice pattern, struct slice text)
{
    size_t p = 0, t = 0, star = SIZE_MAX, star_text = 0;
    while (t < text.length || p < pattern.length) {
        if (p < pattern.length && pattern.at[p] == '*') {
            star = ++p;
            star_text = t;
        } else if (p < pattern.length && t < text.length && glob_one(pattern, &p, text.at[t])) {
            t++;
        } else if (star != SIZE_MAX && star_text < text.length) {
            p = star;
            t = ++star_text;
        } else {
            return false;
        }
    }
    return true;
}

/* ---- chance ---- */

uint64_t random_next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t hash_key[2];

void hash_init(void)
{
    uint64_t seed = (uint64_t)now_ms(); /* has to do where there is no chance */
    if (getrandom(hash_key, sizeof hash_key, GRND_NONBLOCK) != (ssize_t)sizeof hash_key)
        hash_key[0] = random_next(&seed), hash_key[1] = random_next(&seed);
}

static uint64_t folded_product(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 product = a;
    product *= b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* With a key of this process: nobody outside can choose texts that all fall into one bucket. */
uint64_t hash_of(struct slice text)
{
    uint64_t h = hash_key[0] ^ text.length, word;
    size_t i = 0;
    for (; i + sizeof word < text.length; i += sizeof word) {
        memcpy(&word, text.at + i, sizeof word);
        h = folded_product(h ^ word, hash_key[1] | 1);
    }
    word = 0;
    memcpy(&word, text.at + i, text.length - i);
    h = folded_product(h ^ word, hash_key[1] | 1);
    return folded_product(h ^ hash_key[1], 0x9e3779b97f4a7c15u);
}
