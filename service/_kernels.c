/* The loops of service/kernels.py, which says what each is for and how the codes lie in memory.
 *
 * Those over codes trust what they get, but for rows: kernels.py checks types and shapes, and whoever
 * loads codes has seen that all are below K. Every score is a sum of float32 in the order of the
 * codebooks, so that all ways to it give equal numbers. The GIL is free while they run, but in
 * `ranked`, which is done in microseconds and asks for it once.
 *
 * Those over ids, tokens, JSON and a request's rows and scores check what they read. They keep the
 * GIL, as they read Python's objects or are done in microseconds; read_features lets it go where
 * there is much to read.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "_ids.h"
#include "_reading.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define HAS_SHUFFLE 1
#endif

#define VERSION 21 /* of what the functions take, as in kernels.py: an old build must not be called */
#define LANES 32 /* items of a block */
#define CACHE_LINE 64
#define LONG_JSON (64 << 10) /* bytes, which take some 150 us */

/* ---- the best so far: a heap, its root the worst; of equal scores the later row is worse ---- */

typedef struct {
    float *scores;
    int64_t *rows;
    Py_ssize_t size;
} Heap;

static int worse(const Heap *heap, Py_ssize_t one, Py_ssize_t other)
{
    return heap->scores[one] < heap->scores[other] ||
           (heap->scores[one] == heap->scores[other] && heap->rows[one] > heap->rows[other]);
}

/* Put an item in the place of the worst. */
static void take_in(Heap *heap, float score, int64_t row)
{
    Py_ssize_t place = 0;
    for (;;) {
        Py_ssize_t child = 2 * place + 1;
        if (child >= heap->size)
            break;
        if (child + 1 < heap->size && worse(heap, child + 1, child))
            child++;
        if (heap->scores[child] > score ||
            (heap->scores[child] == score && heap->rows[child] < row))
            break;
        heap->scores[place] = heap->scores[child];
        heap->rows[place] = heap->rows[child];
        place = child;
    }
    heap->scores[place] = score;
    heap->rows[place] = row;
}

static void best_of(const float *scores, Py_ssize_t items, Heap *best)
{
    for (Py_ssize_t row = 0; row < items; row++)
        if (scores[row] > best->scores[0])
            take_in(best, scores[row], row);
}

/* ---- codes of one or two bytes, item by item ---- */

/* A kernel for a number of codebooks that the compiler knows unrolls; M = 0 is any number. */
#define SUM_OF(code, M)                                                                            \
    static inline float sum_##code##_##M(const code *codes, Py_ssize_t books, const float *tables, \
                                         Py_ssize_t words)                                         \
    {                                                                                              \
        float score = 0.0f;                                                                        \
        for (Py_ssize_t m = 0; m < (M ? M : books); m++)                                           \
            score += tables[m * words + codes[m]];                                                 \
        return score;                                                                              \
    }

#define LOOPS_OF(code, M)                                                                          \
    SUM_OF(code, M)                                                                                \
    static void taken_##code##_##M(const code *codes, Py_ssize_t books, const int64_t *rows,       \
                                   Py_ssize_t count, const float *tables, Py_ssize_t words,        \
                                   float *found)                                                   \
    {                                                                                              \
        for (Py_ssize_t i = 0; i < count && i < AHEAD; i++)                                        \
            PREFETCH(codes + rows[i] * books);                                                     \
        for (Py_ssize_t i = 0; i < count; i++) {                                                   \
            if (i + AHEAD < count)                                                                 \
                PREFETCH(codes + rows[i + AHEAD] * books);                                         \
            found[i] = sum_##code##_##M(codes + rows[i] * books, books, tables, words);            \
        }                                                                                          \
    }                                                                                              \
    static void scanned_##code##_##M(const code *codes, Py_ssize_t books, Py_ssize_t items,        \
                                     const float *tables, Py_ssize_t words, Heap *best)            \
    {                                                                                              \
        for (Py_ssize_t row = 0; row < items; row++) {                                             \
            float score = sum_##code##_##M(codes + row * books, books, tables, words);             \
            if (score > best->scores[0])                                                           \
                take_in(best, score, row);                                                         \
        }                                                                                          \
    }

LOOPS_OF(uint8_t, 0)
LOOPS_OF(uint8_t, 4)
LOOPS_OF(uint8_t, 8)
LOOPS_OF(uint16_t, 0)

static void taken(const void *codes, Py_ssize_t width, Py_ssize_t books, const int64_t *rows,
                  Py_ssize_t count, const float *tables, Py_ssize_t words, float *found)
{
    if (width == 2)
        taken_uint16_t_0(codes, books, rows, count, tables, words, found);
    else if (books == 8)
        taken_uint8_t_8(codes, books, rows, count, tables, words, found);
    else if (books == 4)
        taken_uint8_t_4(codes, books, rows, count, tables, words, found);
    else
        taken_uint8_t_0(codes, books, rows, count, tables, words, found);
}

static void scanned(const void *codes, Py_ssize_t width, Py_ssize_t books, Py_ssize_t items,
                    const float *tables, Py_ssize_t words, Heap *best)
{
    if (width == 2)
        scanned_uint16_t_0(codes, books, items, tables, words, best);
    else if (books == 8)
        scanned_uint8_t_8(codes, books, items, tables, words, best);
    else if (books == 4)
        scanned_uint8_t_4(codes, books, items, tables, words, best);
    else
        scanned_uint8_t_0(codes, books, items, tables, words, best);
}

typedef struct {
    const float *words; /* [books][size][width] */
    Py_ssize_t books, size, width;
    int concatenated; /* or added up, in the order of the codebooks */
} Codebooks;

static void vectors(const void *codes, Py_ssize_t bytes, const Codebooks *books,
                    const int64_t *rows, Py_ssize_t count, float *found)
{
    for (Py_ssize_t i = 0; i < count; i++)
        for (Py_ssize_t m = 0; m < books->books; m++) {
            Py_ssize_t at = rows[i] * books->books + m;
            Py_ssize_t code = bytes == 2 ? ((const uint16_t *)codes)[at] : ((const uint8_t *)codes)[at];
            const float *word = books->words + (m * books->size + code) * books->width;
            if (books->concatenated || m == 0) {
                memcpy(found, word, (size_t)books->width * sizeof *word);
                found += books->width;
            } else {
                for (Py_ssize_t d = 0; d < books->width; d++)
                    found[d - books->width] += word[d];
            }
        }
}

/* ---- codes of four bits, in blocks ---- */

typedef struct {
    const uint8_t *codes; /* [blocks][pairs][LANES] */
    Py_ssize_t pairs;
    const float *tables; /* [2 * pairs][words] */
    Py_ssize_t words;
} Blocks;

static inline float exact(const Blocks *blocks, int64_t row)
{
    const uint8_t *pair = blocks->codes + (row / LANES) * blocks->pairs * LANES + row % LANES;
    const float *table = blocks->tables;
    float score = 0.0f;
    for (Py_ssize_t p = 0; p < blocks->pairs; p++, pair += LANES, table += 2 * blocks->words) {
        score += table[*pair & 15];
        score += table[blocks->words + (*pair >> 4)];
    }
    return score;
}

static void prefetch_block(const Blocks *blocks, int64_t row)
{
    const uint8_t *block = blocks->codes + (row / LANES) * blocks->pairs * LANES;
    for (Py_ssize_t offset = 0; offset < blocks->pairs * LANES; offset += CACHE_LINE)
        PREFETCH(block + offset);
}

static void taken_from_blocks(const Blocks *blocks, const int64_t *rows, Py_ssize_t count,
                              float *found)
{
    for (Py_ssize_t i = 0; i < count && i < AHEAD; i++)
        prefetch_block(blocks, rows[i]);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            prefetch_block(blocks, rows[i + AHEAD]);
        found[i] = exact(blocks, rows[i]);
    }
}

/* An item's bytes add up to an upper bound of its score: score <= ceiling + step * sum. Adds the
 * bytes (entries [2 * pairs][16]) of a block's items; tells which of them reach `enough`, a bit
 * each. */
typedef uint32_t (*Reaching)(const uint8_t *block, Py_ssize_t pairs, const uint8_t *entries,
                             uint16_t enough);

static uint32_t reaching_by_look_up(const uint8_t *block, Py_ssize_t pairs, const uint8_t *entries,
                                    uint16_t enough)
{
    uint16_t sums[LANES] = {0};
    for (Py_ssize_t p = 0; p < pairs; p++, block += LANES, entries += 32)
        for (int i = 0; i < LANES; i++)
            sums[i] += entries[block[i] & 15] + entries[16 + (block[i] >> 4)];
    uint32_t reach = 0;
    for (int i = 0; i < LANES; i++)
        reach |= (uint32_t)(sums[i] >= enough) << i;
    return reach;
}

#ifdef HAS_SHUFFLE
/* 32 look-ups by one shuffle. Sums of 16 bits: `all` adds pairs of neighbours as they come, the
 * even item in the low byte, and `odd` the odd one alone; taken off in the end, the even remains. */
__attribute__((target("avx2"))) static uint32_t
reaching_by_shuffle(const uint8_t *block, Py_ssize_t pairs, const uint8_t *entries, uint16_t enough)
{
    const __m256i half = _mm256_set1_epi8(15);
    __m256i all = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
    for (Py_ssize_t p = 0; p < pairs; p++, block += LANES, entries += 32) {
        __m256i pair = _mm256_loadu_si256((const __m256i *)block);
        __m256i both = _mm256_loadu_si256((const __m256i *)entries);
        __m256i low = _mm256_shuffle_epi8(_mm256_permute2x128_si256(both, both, 0x00),
                                          _mm256_and_si256(pair, half));
        __m256i high =
            _mm256_shuffle_epi8(_mm256_permute2x128_si256(both, both, 0x11),
                                _mm256_and_si256(_mm256_srli_epi16(pair, 4), half));
        all = _mm256_add_epi16(all, _mm256_add_epi16(low, high));
        odd = _mm256_add_epi16(odd, _mm256_add_epi16(_mm256_srli_epi16(low, 8),
                                                     _mm256_srli_epi16(high, 8)));
    }
    __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8));
    __m256i least = _mm256_set1_epi16((short)enough);
    __m256i evens = _mm256_cmpeq_epi16(_mm256_max_epu16(even, least), even);
    __m256i odds = _mm256_cmpeq_epi16(_mm256_max_epu16(odd, least), odd);
    /* A byte an item, in the order of the items: even from the low byte, odd from the high one. */
    return (uint32_t)_mm256_movemask_epi8(
        _mm256_blendv_epi8(odds, evens, _mm256_set1_epi16(0x00ff)));
}
#endif

static int shuffles(void)
{
#ifdef HAS_SHUFFLE
    return __builtin_cpu_supports("avx2") != 0;
#else
    return 0;
#endif
}

static void scanned_blocks(const Blocks *blocks, const uint8_t *entries, double ceiling,
                           double step, Py_ssize_t items, int shuffle, Heap *best)
{
    Reaching reaching = reaching_by_look_up;
#ifdef HAS_SHUFFLE
    if (shuffle)
        reaching = reaching_by_shuffle;
#endif
    uint16_t enough = 0;
    const uint8_t *block = blocks->codes;
    for (int64_t first = 0; first < items; first += LANES, block += blocks->pairs * LANES) {
        uint32_t reach = reaching(block, blocks->pairs, entries, enough);
        if (items - first < LANES)
            reach &= (1u << (items - first)) - 1; /* what fills the last block is no item */
        for (int i = 0; reach; i++, reach >>= 1) {
            if (!(reach & 1))
                continue;
            float score = exact(blocks, first + i);
            if (score > best->scores[0]) {
                take_in(best, score, first + i);
                double sum = (best->scores[0] - ceiling) / step;
                enough = sum > 0 ? (sum < UINT16_MAX ? (uint16_t)sum : UINT16_MAX) : 0;
            }
        }
    }
}

/* ---- ids and tokens that Python holds ---- */

/* Rows of the texts of a tuple; stops at an error. */
static void find_ids(const Ids *ids, PyObject *wanted, int64_t *rows)
{
    Sought ahead[AHEAD];
    Py_ssize_t count = PyTuple_GET_SIZE(wanted);
    for (Py_ssize_t first = 0; first < count; first += AHEAD) {
        Py_ssize_t some = count - first < AHEAD ? count - first : AHEAD;
        for (Py_ssize_t i = 0; i < some; i++)
            if (!seek_text(ids, PyTuple_GET_ITEM(wanted, first + i), &ahead[i]))
                return;
        find_sought(ahead, some, rows + first);
    }
}

/* Characters of the longest text of a list; -1 if something else is in it. */
static Py_ssize_t longest(PyObject *texts)
{
    Py_ssize_t most = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(texts); i++) {
        PyObject *text = PyList_GET_ITEM(texts, i);
        if (!PyUnicode_CheckExact(text))
            return -1;
        if (PyUnicode_GET_LENGTH(text) > most)
            most = PyUnicode_GET_LENGTH(text);
    }
    return most;
}

/* Rows of tokens in an embedding table, whose known ones begin at ``start``, into one column of
 * ``rows``; None leaves what is there. How many were texts or None before the first that is neither,
 * or -1 if an error is set. */
static Py_ssize_t lay_tokens(const Ids *ids, PyObject *tokens, int32_t start, int32_t *rows,
                             Py_ssize_t width)
{
    Sought ahead[AHEAD];
    int64_t found[AHEAD];
    PyObject *const *token = PySequence_Fast_ITEMS(tokens);
    Py_ssize_t count = PySequence_Fast_GET_SIZE(tokens);
    for (Py_ssize_t first = 0; first < count; first += AHEAD, token += AHEAD) {
        Py_ssize_t some = count - first < AHEAD ? count - first : AHEAD;
        for (Py_ssize_t i = 0; i < some; i++) {
            ahead[i] = (Sought){0};
            if (token[i] == Py_None)
                continue;
            if (!PyUnicode_CheckExact(token[i]))
                return first + i;
            if (!seek_text(ids, token[i], &ahead[i]))
                return -1;
        }
        find_sought(ahead, some, found);
        for (Py_ssize_t i = 0; i < some; i++, rows += width)
            if (token[i] != Py_None)
                *rows = found[i] == NO_ROW ? UNKNOWN_TOKEN : start + (int32_t)found[i];
    }
    return count;
}

/* Numbers as doubles, None as NaN; how many were one of these, and within what float32 holds,
 * before the first that is not. */
static Py_ssize_t numbers(PyObject *values, double *found)
{
    PyObject *const *value = PySequence_Fast_ITEMS(values);
    Py_ssize_t count = PySequence_Fast_GET_SIZE(values);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (value[i] == Py_None) {
            found[i] = NAN;
            continue;
        }
        if (PyFloat_CheckExact(value[i]))
            found[i] = PyFloat_AS_DOUBLE(value[i]);
        else if (PyLong_CheckExact(value[i]))
            found[i] = PyLong_AsDouble(value[i]);
        else
            return i;
        if (!(found[i] >= -FLT_MAX && found[i] <= FLT_MAX))
            return i;
        if (found[i] == -1.0 && PyErr_Occurred()) {
            PyErr_Clear(); /* more than a double holds: the caller says so */
            return i;
        }
    }
    return count;
}

/* ---- rows and scores of a request ---- */

/* Whether all rows are known, and no two are the same; -1 without memory. ``odd`` is a number that
 * nobody else knows: so nobody can choose rows that all meet in one place. */
static int told_apart(const int64_t *rows, Py_ssize_t count, uint64_t odd)
{
    int bits = 3;
    while ((Py_ssize_t)1 << bits < 2 * count)
        bits++;
    size_t places = (size_t)1 << bits;
    int64_t *seen = PyMem_Malloc(places * sizeof *seen);
    if (!seen)
        return -1;
    memset(seen, 0xff, places * sizeof *seen); /* NO_ROW: such a row is found where it would be put */
    int apart = 1;
    for (Py_ssize_t i = 0; apart && i < count; i++) {
        size_t place = (size_t)((uint64_t)rows[i] * odd >> (64 - bits));
        while (seen[place] != NO_ROW && seen[place] != rows[i])
            place = (place + 1) & (places - 1);
        apart = seen[place] != rows[i];
        seen[place] = rows[i];
    }
    PyMem_Free(seen);
    return apart;
}

static int all_finite(const float *numbers, Py_ssize_t count)
{
    int wrong = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        wrong |= !(fabsf(numbers[i]) <= FLT_MAX);
    return !wrong;
}

typedef struct {
    uint32_t key;
    uint32_t place;
} Keyed;

/* Less for a greater score, the same for both zeros, most for what is no number. */
static uint32_t key_of(float score)
{
    uint32_t bits;
    if (score != score)
        return UINT32_MAX;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? bits : ~bits & INT32_MAX;
}

/* Sort by some bytes of keys less the least one, the last of them first: what is the same there
 * stays in order. */
static Keyed *sorted_by(Keyed *some, Keyed *others, Py_ssize_t count, uint32_t least, int shift,
                        int end)
{
    for (; shift < end; shift += 8) {
        uint32_t starts[257] = {0};
        for (Py_ssize_t i = 0; i < count; i++)
            starts[((some[i].key - least) >> shift & 255) + 1]++;
        for (int byte = 0; byte < 256; byte++)
            starts[byte + 1] += starts[byte];
        for (Py_ssize_t i = 0; i < count; i++)
            others[starts[(some[i].key - least) >> shift & 255]++] = some[i];
        Keyed *filled = others;
        others = some;
        some = filled;
    }
    return some;
}

/* Put right what is nearly in order; whether few enough steps were enough. */
static int put_right(Keyed *some, Py_ssize_t count)
{
    Py_ssize_t steps = count;
    for (Py_ssize_t i = 1; i < count; i++) {
        Keyed each = some[i];
        Py_ssize_t place = i;
        for (; place && some[place - 1].key > each.key; place--)
            some[place] = some[place - 1];
        some[place] = each;
        if ((steps -= i - place) < 0)
            return 0;
    }
    return 1;
}

#define TWO_BYTES_FOR 512 /* scores: of more, two bytes leave too many alike */

/* Sort by keys; of equal ones the first stays first. By two or three bytes of what there is between
 * the least and the greatest, and by all four only where that leaves much to do. */
static Keyed *sorted(Keyed *some, Keyed *others, Py_ssize_t count)
{
    uint32_t least = UINT32_MAX, most = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        least = some[i].key < least ? some[i].key : least;
        most = some[i].key > most ? some[i].key : most;
    }
    int bits = count <= TWO_BYTES_FOR ? 16 : 24, shift = 0;
    while (count && (most - least) >> shift >> bits)
        shift++;
    Keyed *found = sorted_by(some, others, count, least, shift, shift + bits);
    if (!shift || put_right(found, count))
        return found;
    return sorted_by(found, found == some ? others : some, count, 0, 0, 32);
}

/* Places of the best scores, best first, of equal ones the first; 0 without memory. */
static int best_first(const float *scores, Py_ssize_t count, int64_t *places, float *best,
                      Py_ssize_t wanted)
{
    Keyed *keyed = PyMem_Malloc(2 * (size_t)count * sizeof *keyed);
    if (!keyed)
        return 0;
    for (Py_ssize_t i = 0; i < count; i++)
        keyed[i] = (Keyed){key_of(scores[i]), (uint32_t)i};
    const Keyed *found = sorted(keyed, keyed + count, count);
    for (Py_ssize_t i = 0; i < wanted; i++) {
        places[i] = found[i].place;
        best[i] = scores[found[i].place];
    }
    PyMem_Free(keyed);
    return 1;
}

/* ---- JSON of the answer ---- */

#define BEFORE_ID "{\"id\":"
#define BEFORE_SCORE ",\"score\":"
#define COLD ",\"cold\":true"

static char *put(char *to, const char *from, Py_ssize_t bytes)
{
    memcpy(to, from, (size_t)bytes);
    return to + bytes;
}

/* What ends a JSON text, its quote included; NULL if nothing does before ``end``. */
static const char *text_end(const char *text, const char *end)
{
    if (text >= end || *text != '"')
        return NULL;
    for (text++; text < end; text += *text == '\\' ? 2 : 1)
        if (*text == '"')
            return text + 1;
    return NULL;
}

/* An object for each of so many ids and scores, lists in JSON without spaces, and whether it is cold,
 * a byte each or none at all; where it ends, NULL if these are of other lengths. */
static char *put_items(char *to, const Py_buffer *ids, const Py_buffer *scores,
                       const Py_buffer *cold)
{
    const char *id = ids->buf, *ids_end = id + ids->len - 1;
    const char *score = scores->buf, *scores_end = score + scores->len - 1;
    Py_ssize_t item = 0;
    *to++ = '[';
    for (id++, score++; id < ids_end; id++, score++, item++) {
        const char *next = text_end(id, ids_end);
        if (!next || score >= scores_end || (cold->len && item == cold->len))
            return NULL;
        to = put(to, BEFORE_ID, sizeof BEFORE_ID - 1);
        to = put(to, id, next - id);
        id = next;
        to = put(to, BEFORE_SCORE, sizeof BEFORE_SCORE - 1);
        while (score < scores_end && *score != ',')
            *to++ = *score++;
        if (cold->len && ((const char *)cold->buf)[item])
            to = put(to, COLD, sizeof COLD - 1);
        *to++ = '}';
        if (id < ids_end)
            *to++ = ',';
    }
    *to++ = ']';
    return score >= scores_end && (!cold->len || item == cold->len) ? to : NULL;
}

/* ---- times of a request ---- */

#define LONGEST_TIME 24 /* digits of int64_t and a point */
#define BEFORE_TIME ";dur="

/* Microseconds, not below 0, of a list that may hold anything; 0 if an error is set. */
static int64_t microseconds(PyObject *seconds, Py_ssize_t place)
{
    PyObject *given = place < PyList_GET_SIZE(seconds) ? PyList_GET_ITEM(seconds, place) : Py_None;
    if (!PyFloat_CheckExact(given) || !(fabs(PyFloat_AS_DOUBLE(given)) < 1e12)) {
        PyErr_Format(PyExc_TypeError, "expected seconds, got %R", given);
        return 0;
    }
    return PyFloat_AS_DOUBLE(given) > 0 ? (int64_t)(PyFloat_AS_DOUBLE(given) * 1e6 + 0.5) : 0;
}

/* Milliseconds, to three places. */
static char *put_time(char *to, int64_t us)
{
    char digits[LONGEST_TIME], *first = digits + sizeof digits;
    for (int place = 0; place < 4 || us; place++, us /= 10) {
        if (place == 3)
            *--first = '.';
        *--first = (char)('0' + us % 10);
    }
    return put(to, first, digits + sizeof digits - first);
}

/* ---- what a session's own items add to a score ---- */

/* log(exp(one) + exp(other)) as numpy has it, to the bit. */
static float log_add_exp(float one, float other)
{
    if (one == other)
        return one + 0.693147180559945309417232121458176568f;
    float apart = one - other;
    return apart > 0 ? one + log1pf(expf(-apart)) : other + log1pf(expf(apart));
}

static void add_repeats(float *scores, const int64_t *rows, Py_ssize_t items,
                        const int64_t *session, const float *weights, Py_ssize_t length)
{
    for (Py_ssize_t i = 0; i < items; i++) {
        float sum = -INFINITY;
        for (Py_ssize_t t = 0; t < length; t++)
            if (session[t] == rows[i])
                sum = sum == -INFINITY ? weights[t] : log_add_exp(sum, weights[t]);
        if (sum != -INFINITY)
            scores[i] = log_add_exp(scores[i], sum);
    }
}

/* Write numbers over some columns of a tensor; NaN leaves what is there. */
static void lay_numbers(const double *numbers, Py_ssize_t count, const int64_t *columns,
                        Py_ssize_t many, float *tensor, Py_ssize_t width)
{
    for (Py_ssize_t i = 0; i < count; i++, tensor += width)
        for (Py_ssize_t j = 0; j < many; j++, numbers++)
            if (!isnan(*numbers))
                tensor[columns[j]] = (float)*numbers;
}

/* ---- what Python sees ---- */

/* Gives buffers back; answers None, or NULL if an error is set. */
#define DONE_WITH(...) done_with((Py_buffer *[]){__VA_ARGS__, NULL})

static PyObject *done_with(Py_buffer **lent)
{
    for (; *lent; lent++)
        PyBuffer_Release(*lent);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* Whether all rows are those of items; an error is set if not. */
static int are_rows(const Py_buffer *rows, Py_ssize_t items)
{
    const int64_t *row = rows->buf;
    for (Py_ssize_t i = 0; i < rows->len / (Py_ssize_t)sizeof(int64_t); i++)
        if (row[i] < 0 || row[i] >= items) {
            PyErr_Format(PyExc_IndexError, "expected rows from 0 to %zd, got %lld", items - 1,
                         (long long)row[i]);
            return 0;
        }
    return 1;
}

static PyObject *py_index_ids(PyObject *self, PyObject *args)
{
    Py_buffer text, ends, key, slots;
    if (!PyArg_ParseTuple(args, "y*y*y*w*", &text, &ends, &key, &slots))
        return NULL;
    Ids ids;
    if (make_ids(&ids, &text, &ends, &key, &slots)) {
        int64_t wrong;
        Py_BEGIN_ALLOW_THREADS
        wrong = index_ids(&ids);
        Py_END_ALLOW_THREADS
        if (wrong != NO_ROW && !lies_within(&ids, wrong))
            PyErr_SetString(PyExc_ValueError, "expected ids within their text");
        else if (wrong != NO_ROW)
            PyErr_Format(PyExc_ValueError, "id %lld appears twice", (long long)wrong);
    }
    return DONE_WITH(&text, &ends, &key, &slots);
}

/* What lends ids their memory. */
typedef struct {
    Py_buffer text, ends, key, slots;
} Lent;

static void give_back(Lent *lent)
{
    PyBuffer_Release(&lent->text);
    PyBuffer_Release(&lent->ends);
    PyBuffer_Release(&lent->key);
    PyBuffer_Release(&lent->slots);
}

/* Ids of (text, ends, key, slots); 0 if an error is set. Whatever is lent is to be given back. */
static int borrow_ids(Ids *ids, Lent *lent, PyObject *parts)
{
    return PyArg_ParseTuple(parts, "y*y*y*y*", &lent->text, &lent->ends, &lent->key,
                            &lent->slots) &&
           make_ids(ids, &lent->text, &lent->ends, &lent->key, &lent->slots);
}

typedef struct {
    Lent lent;
    Ids ids;
} IdRows;

#define ID_ROWS "service._kernels.id_rows" /* the capsule's name */

static void free_id_rows(PyObject *capsule)
{
    IdRows *held = PyCapsule_GetPointer(capsule, ID_ROWS);
    give_back(&held->lent);
    PyMem_Free(held);
}

static PyObject *py_id_rows(PyObject *self, PyObject *args)
{
    IdRows *held = PyMem_Calloc(1, sizeof *held);
    if (!held)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(held, ID_ROWS, free_id_rows);
    if (!capsule)
        PyMem_Free(held);
    else if (!borrow_ids(&held->ids, &held->lent, args))
        Py_CLEAR(capsule);
    return capsule;
}

/* The texts of a list or tuple, as a tuple: a text that UTF-8 does not have makes an error, which may
 * collect garbage, and so run any code; a list could become shorter. */
static PyObject *held_texts(PyObject *texts)
{
    if (PyList_CheckExact(texts))
        return PyList_AsTuple(texts);
    if (PyTuple_CheckExact(texts))
        return Py_NewRef(texts);
    return PyErr_Format(PyExc_TypeError, "expected a list or tuple, got %s", Py_TYPE(texts)->tp_name);
}

/* Into rows, those of one sequence after the other; stops at an error. */
static void find_each(const Ids *ids, PyObject *sequences, const Py_buffer *rows)
{
    int64_t *row = rows->buf;
    Py_ssize_t left = rows->len / (Py_ssize_t)sizeof *row;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(sequences) && !PyErr_Occurred(); i++) {
        PyObject *texts = held_texts(PyTuple_GET_ITEM(sequences, i));
        if (!texts)
            return;
        Py_ssize_t count = PyTuple_GET_SIZE(texts);
        if ((left -= count) >= 0)
            find_ids(ids, texts, row);
        row += count;
        Py_DECREF(texts);
        if (left < 0)
            break;
    }
    if (left && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "expected a row for each text");
}

static PyObject *py_find_ids(PyObject *self, PyObject *args)
{
    Py_buffer rows;
    PyObject *capsule, *sequences;
    if (!PyArg_ParseTuple(args, "OO!w*", &capsule, &PyTuple_Type, &sequences, &rows))
        return NULL;
    const IdRows *held = PyCapsule_GetPointer(capsule, ID_ROWS);
    if (held)
        find_each(&held->ids, sequences, &rows);
    return DONE_WITH(&rows);
}

static PyObject *py_longest(PyObject *self, PyObject *texts)
{
    if (PyList_CheckExact(texts))
        return PyLong_FromSsize_t(longest(texts));
    PyErr_SetString(PyExc_TypeError, "expected a list");
    return NULL;
}

/* Whether it is a list or a tuple of so many; an error is set if not. */
static int holds(PyObject *values, Py_ssize_t count)
{
    if ((PyList_CheckExact(values) || PyTuple_CheckExact(values)) &&
        PySequence_Fast_GET_SIZE(values) == count)
        return 1;
    PyErr_Format(PyExc_TypeError, "expected a list or a tuple of %zd values", count);
    return 0;
}

/* Lay one column of tokens; 1 if all could be told, 0 if not, -1 if an error is set. */
static int lay_column(PyObject *column, int32_t *rows, Py_ssize_t count, Py_ssize_t width)
{
    PyObject *tokens;
    Py_buffer text, ends, key, slots;
    int start;
    Py_ssize_t at;
    if (!PyArg_ParseTuple(column, "O(y*y*y*y*in)", &tokens, &text, &ends, &key, &slots, &start, &at))
        return -1;
    Ids ids;
    Py_ssize_t known = -1;
    if (at < 0 || at >= width)
        PyErr_Format(PyExc_ValueError, "expected a column from 0 to %zd, got %zd", width - 1, at);
    else if (holds(tokens, count) && make_ids(&ids, &text, &ends, &key, &slots))
        known = lay_tokens(&ids, tokens, start, rows + at, width);
    PyObject *done = DONE_WITH(&text, &ends, &key, &slots);
    Py_XDECREF(done);
    return done ? known == count : -1;
}

/* Rows of so many columns in a buffer; -1 if it does not hold whole ones. */
static Py_ssize_t rows_in(const Py_buffer *buffer, Py_ssize_t columns, Py_ssize_t size)
{
    Py_ssize_t values = buffer->len / size;
    return columns > 0 && buffer->len % size == 0 && values % columns == 0 ? values / columns : -1;
}

/* The columns that hold something that is neither a text nor None; what came before it is laid. */
static PyObject *py_lay_tokens(PyObject *self, PyObject *args)
{
    PyObject *columns, *left = NULL;
    Py_ssize_t width;
    Py_buffer rows;
    if (!PyArg_ParseTuple(args, "O!nw*", &PyTuple_Type, &columns, &width, &rows))
        return NULL;
    Py_ssize_t count = rows_in(&rows, width, sizeof(int32_t));
    if (count < 0)
        PyErr_Format(PyExc_ValueError, "expected rows of %zd columns", width);
    else
        left = PyList_New(0);
    for (Py_ssize_t j = 0; left && j < PyTuple_GET_SIZE(columns); j++) {
        int laid = lay_column(PyTuple_GET_ITEM(columns, j), rows.buf, count, width);
        PyObject *place = laid == 0 ? PyLong_FromSsize_t(j) : NULL;
        if (laid < 0 || (laid == 0 && (!place || PyList_Append(left, place) < 0)))
            Py_CLEAR(left);
        Py_XDECREF(place);
    }
    PyBuffer_Release(&rows);
    return left;
}

static PyObject *py_numbers(PyObject *self, PyObject *args)
{
    PyObject *columns;
    Py_buffer found;
    if (!PyArg_ParseTuple(args, "O!w*", &PyTuple_Type, &columns, &found))
        return NULL;
    Py_ssize_t many = PyTuple_GET_SIZE(columns), bytes = many * (Py_ssize_t)sizeof(double);
    Py_ssize_t count = many ? found.len / bytes : 0;
    int all = many == 0 || found.len == count * bytes;
    if (!all)
        PyErr_SetString(PyExc_ValueError, "expected a place for each value");
    for (Py_ssize_t j = 0; all && j < many; j++) {
        PyObject *values = PyTuple_GET_ITEM(columns, j);
        all = holds(values, count) && numbers(values, (double *)found.buf + j * count) == count;
    }
    PyBuffer_Release(&found);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(all);
}

static PyObject *py_lay_numbers(PyObject *self, PyObject *args)
{
    Py_buffer numbers, columns, tensor;
    Py_ssize_t width;
    if (!PyArg_ParseTuple(args, "y*y*w*n", &numbers, &columns, &tensor, &width))
        return NULL;
    Py_ssize_t many = columns.len / (Py_ssize_t)sizeof(int64_t);
    Py_ssize_t count = rows_in(&numbers, many, sizeof(double));
    if (count < 0 || count != rows_in(&tensor, width, sizeof(float)))
        PyErr_SetString(PyExc_ValueError, "expected a row of the tensor for each of numbers");
    else if (are_rows(&columns, width))
        lay_numbers(numbers.buf, count, columns.buf, many, tensor.buf, width);
    return DONE_WITH(&numbers, &columns, &tensor);
}

/* What candidates may bring, and where it is written. */
typedef struct {
    Ids names;
    Feature *features;
    Py_ssize_t count, width, columns;
    Lent *lent;  /* by each feature, then by the names */
    int several; /* whether it is for many candidates, which memory for their tokens pays for */
} Layout;

#define LAYOUT "service._kernels.layout" /* the capsule's name */

static void free_layout(Layout *layout)
{
    for (Py_ssize_t j = 0; layout->lent && j <= layout->count; j++)
        give_back(&layout->lent[j]);
    for (Py_ssize_t j = 0; layout->features && j < layout->count; j++)
        PyMem_Free(layout->features[j].shorts.places);
    PyMem_Free(layout->lent);
    PyMem_Free(layout->features);
    PyMem_Free(layout);
}

static void free_capsule(PyObject *capsule)
{
    free_layout(PyCapsule_GetPointer(capsule, LAYOUT));
}

/* A feature from (text, ends, key, slots, start, column) of tokens, (column,) of numbers, or (); an
 * error is set if it is none. */
static int make_feature(const Layout *layout, PyObject *spec, Feature *feature, Lent *lent)
{
    if (!PyTuple_Check(spec)) {
        PyErr_SetString(PyExc_TypeError, "expected a tuple for each feature");
        return 0;
    }
    if (PyTuple_GET_SIZE(spec) == 0)
        return 1;
    Py_ssize_t places = layout->columns;
    if (PyTuple_GET_SIZE(spec) == 1) {
        feature->kind = NUMBER;
        if (!PyArg_ParseTuple(spec, "n", &feature->place))
            return 0;
    } else {
        if (!PyArg_ParseTuple(spec, "y*y*y*y*in", &lent->text, &lent->ends, &lent->key,
                              &lent->slots, &feature->start, &feature->place))
            return 0;
        feature->kind = TOKEN;
        places = layout->width;
        if (!make_ids(&feature->known, &lent->text, &lent->ends, &lent->key, &lent->slots))
            return 0;
        if (layout->several && !lay_shorts(&feature->shorts, &feature->known)) {
            PyErr_NoMemory();
            return 0;
        }
    }
    if (feature->place >= 0 && feature->place < places)
        return 1;
    PyErr_Format(PyExc_ValueError, "expected a place from 0 to %zd, got %zd", places - 1,
                 feature->place);
    return 0;
}

/* Whether a layout could be made of names (text, ends, key, slots) and what is at each; an error is
 * set if not. */
static int make_layout(Layout *layout, PyObject *names, PyObject *places)
{
    layout->count = PyTuple_GET_SIZE(places);
    layout->lent = PyMem_Calloc((size_t)layout->count + 1, sizeof *layout->lent);
    layout->features = PyMem_Calloc((size_t)layout->count + 1, sizeof *layout->features);
    if (!layout->lent || !layout->features) {
        PyErr_NoMemory();
        return 0;
    }
    if (!borrow_ids(&layout->names, &layout->lent[layout->count], names))
        return 0;
    if (layout->names.items != layout->count) {
        PyErr_SetString(PyExc_ValueError, "expected a name for each feature");
        return 0;
    }
    for (Py_ssize_t j = 0; j < layout->count; j++)
        if (!make_feature(layout, PyTuple_GET_ITEM(places, j), &layout->features[j],
                          &layout->lent[j]))
            return 0;
    return 1;
}

static PyObject *py_layout(PyObject *self, PyObject *args)
{
    PyObject *names, *places, *capsule = NULL;
    Layout *layout = PyMem_Calloc(1, sizeof *layout);
    if (!layout)
        return PyErr_NoMemory();
    if (PyArg_ParseTuple(args, "O!O!nnp", &PyTuple_Type, &names, &PyTuple_Type, &places,
                         &layout->width, &layout->columns, &layout->several) &&
        make_layout(layout, names, places))
        capsule = PyCapsule_New(layout, LAYOUT, free_capsule);
    if (!capsule)
        free_layout(layout);
    return capsule;
}

/* Whether a tensor is of so many candidates and columns. */
static int has_room(const Py_buffer *tensor, Py_ssize_t candidates, Py_ssize_t columns,
                    Py_ssize_t size)
{
    return columns == 0 ? tensor->len == 0 : rows_in(tensor, columns, size) == candidates;
}

/* Whether there is an object for each candidate, or one for all, that lies in the body; an error is
 * set if not. */
static int are_spans(const Py_buffer *spans, Py_ssize_t wanted, Py_ssize_t bytes)
{
    const Span *span = spans->buf;
    int right = spans->len % (Py_ssize_t)sizeof *span == 0 &&
                spans->len / (Py_ssize_t)sizeof *span == wanted;
    for (Py_ssize_t i = 0; right && i < wanted; i++)
        right = span[i].start >= 0 && span[i].start <= span[i].end && span[i].end <= bytes;
    if (!right)
        PyErr_SetString(PyExc_ValueError,
                        "expected one object a candidate, or one of columns, within the body");
    return right;
}

/* Read what candidates bring, an object each (no bytes: nothing), or all of them by one object.
 * Whether all could be told. */
static int read_spans(Reader *reader, const Ids *names, const char *body, const Span *spans,
                      int whole)
{
    for (Py_ssize_t i = 0; i < (whole ? 1 : reader->candidates); i++) {
        Text text = {body + spans[i].start, body + spans[i].end};
        if (text.at < text.end && !read_object(reader, names, whole ? -1 : i, text))
            return 0;
    }
    look_up_waiting(reader);
    return 1;
}

/* The same; -1 if an error is set. */
static int read_body(Reader *reader, const Layout *layout, const Py_buffer *body,
                     const Py_buffer *spans, int whole)
{
    if (!are_spans(spans, whole ? 1 : reader->candidates, body->len))
        return -1;
    reader->features = PyMem_Malloc(((size_t)layout->count + 1) * sizeof *reader->features);
    if (!reader->features) {
        PyErr_NoMemory();
        return -1;
    }
    /* A copy: another thread may read by the same layout. */
    memcpy(reader->features, layout->features, (size_t)layout->count * sizeof *reader->features);
    /* The event loop may wait for the GIL; where there is little to read it would rather keep it. */
    PyThreadState *state = body->len > LONG_JSON ? PyEval_SaveThread() : NULL;
    int told = read_spans(reader, &layout->names, body->buf, spans->buf, whole);
    if (state)
        PyEval_RestoreThread(state);
    PyMem_Free(reader->features);
    return told;
}

static PyObject *py_read_features(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    Py_buffer body, spans, rows, numbers;
    int whole, told = -1;
    Reader reader = {0};
    if (!PyArg_ParseTuple(args, "Oy*y*pnw*w*", &capsule, &body, &spans, &whole, &reader.candidates,
                          &rows, &numbers))
        return NULL;
    const Layout *layout = PyCapsule_GetPointer(capsule, LAYOUT);
    if (layout && reader.candidates >= 0 &&
        has_room(&rows, reader.candidates, layout->width, sizeof(int32_t)) &&
        has_room(&numbers, reader.candidates, layout->columns, sizeof(double))) {
        reader.rows = rows.buf;
        reader.width = layout->width;
        reader.numbers = numbers.buf;
        reader.columns = layout->columns;
        told = read_body(&reader, layout, &body, &spans, whole);
    } else if (layout)
        PyErr_SetString(PyExc_ValueError, "expected room for each candidate");
    PyBuffer_Release(&body);
    PyBuffer_Release(&spans);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&numbers);
    return told < 0 ? NULL : PyBool_FromLong(told);
}

#define LONGEST_WHOLE 24 /* bytes of a whole number of 64 bits as text */
typedef char Digits[AHEAD][LONGEST_WHOLE]; /* of whole numbers that wait to be looked up as tokens */

/* Seek a text, or a whole number as one; 0 if it is for others to tell, -1 if an error is set. */
static int seek_token(const Ids *ids, PyObject *value, char *digits, Sought *sought)
{
    int overflow;
    if (PyUnicode_CheckExact(value))
        return seek_text(ids, value, sought) ? 1 : -1;
    if (!PyLong_CheckExact(value))
        return 0;
    long long whole = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow)
        return 0;
    seek(ids, digits, PyOS_snprintf(digits, LONGEST_WHOLE, "%lld", whole), sought);
    return 1;
}

/* Lay a value that Python holds; as seek_token. */
static int lay_value(Reader *reader, Feature *feature, PyObject *value, Digits digits)
{
    double number;
    int overflow = 0;
    if (value == Py_None || feature->kind == PASSED)
        return 1;
    if (feature->kind == TOKEN) {
        Py_ssize_t place = reader->waiting;
        int sought = seek_token(&feature->known, value, digits[place], &reader->ahead[place]);
        if (sought > 0)
            wait_for(reader, feature, 0);
        return sought;
    }
    if (PyFloat_CheckExact(value))
        number = PyFloat_AS_DOUBLE(value);
    else if (PyLong_CheckExact(value))
        number = (double)PyLong_AsLongLongAndOverflow(value, &overflow);
    else
        return 0;
    if (overflow || !(fabs(number) <= FLT_MAX))
        return 0;
    reader->numbers[feature->place] = number;
    return 1;
}

/* Lay the values of a dict, by name; other names are passed over. As seek_token. */
static int lay_side(Reader *reader, const Layout *layout, PyObject *side)
{
    PyObject *name, *value;
    Py_ssize_t at = 0;
    Digits digits;
    while (PyDict_Next(side, &at, &name, &value)) {
        Sought sought;
        if (!seek_text(&layout->names, name, &sought))
            return -1;
        int64_t row = sought.text ? row_of(&layout->names, &sought) : NO_ROW;
        int laid = row == NO_ROW ? 1 : lay_value(reader, &layout->features[row], value, digits);
        if (laid <= 0)
            return laid;
    }
    look_up_waiting(reader);
    return 1;
}

static PyObject *py_lay_side(PyObject *self, PyObject *args)
{
    PyObject *capsule, *side;
    Py_buffer rows, numbers;
    int laid = -1;
    if (!PyArg_ParseTuple(args, "OO!w*w*", &capsule, &PyDict_Type, &side, &rows, &numbers))
        return NULL;
    const Layout *layout = PyCapsule_GetPointer(capsule, LAYOUT);
    if (layout && has_room(&rows, 1, layout->width, sizeof(int32_t)) &&
        has_room(&numbers, 1, layout->columns, sizeof(double))) {
        Reader reader = {.rows = rows.buf, .width = layout->width, .numbers = numbers.buf,
                         .columns = layout->columns};
        laid = lay_side(&reader, layout, side);
    } else if (layout)
        PyErr_SetString(PyExc_ValueError, "expected room for one row");
    PyBuffer_Release(&rows);
    PyBuffer_Release(&numbers);
    return laid < 0 ? NULL : PyBool_FromLong(laid);
}

/* (what is left of a body, where what was cut lies in it), or None if something is not closed. */
static PyObject *py_cut_features(PyObject *self, PyObject *args)
{
    Py_buffer body;
    if (!PyArg_ParseTuple(args, "y*", &body))
        return NULL;
    PyObject *rest = PyBytes_FromStringAndSize(NULL, body.len), *spans = NULL;
    Cut cut = {PyMem_Malloc((size_t)(body.len / LEAST_CUT + 1) * sizeof *cut.spans), 0, NULL, 0};
    const char *text = body.buf;
    int all = 0;
    if (!cut.spans)
        PyErr_NoMemory();
    else if (rest) {
        cut.rest = PyBytes_AS_STRING(rest);
        all = cut_features(text, text + body.len, &cut);
    }
    if (all && !_PyBytes_Resize(&rest, cut.kept))
        /* numpy asks for a buffer to write to first: it would make an error of bytes, and drop it. */
        spans = PyByteArray_FromStringAndSize((char *)cut.spans, cut.count * (Py_ssize_t)sizeof(Span));
    PyMem_Free(cut.spans);
    PyBuffer_Release(&body);
    PyObject *both = spans ? PyTuple_Pack(2, rest, spans) : PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    Py_XDECREF(rest);
    Py_XDECREF(spans);
    return both;
}

static PyObject *py_add_repeats(PyObject *self, PyObject *args)
{
    Py_buffer scores, rows, session, weights;
    if (!PyArg_ParseTuple(args, "w*y*y*y*", &scores, &rows, &session, &weights))
        return NULL;
    Py_ssize_t items = scores.len / (Py_ssize_t)sizeof(float);
    Py_ssize_t length = weights.len / (Py_ssize_t)sizeof(float);
    if (rows.len / (Py_ssize_t)sizeof(int64_t) != items)
        PyErr_SetString(PyExc_ValueError, "expected a row for each score");
    else if (session.len / (Py_ssize_t)sizeof(int64_t) != length)
        PyErr_SetString(PyExc_ValueError, "expected a weight for each item of the session");
    else
        add_repeats(scores.buf, rows.buf, items, session.buf, weights.buf, length);
    return DONE_WITH(&scores, &rows, &session, &weights);
}

static PyObject *py_told_apart(PyObject *self, PyObject *args)
{
    Py_buffer rows;
    unsigned long long odd;
    if (!PyArg_ParseTuple(args, "y*K", &rows, &odd))
        return NULL;
    int apart = told_apart(rows.buf, rows.len / (Py_ssize_t)sizeof(int64_t), odd | 1);
    PyBuffer_Release(&rows);
    return apart < 0 ? PyErr_NoMemory() : PyBool_FromLong(apart);
}

static PyObject *py_all_finite(PyObject *self, PyObject *args)
{
    Py_buffer numbers;
    if (!PyArg_ParseTuple(args, "y*", &numbers))
        return NULL;
    int finite = all_finite(numbers.buf, numbers.len / (Py_ssize_t)sizeof(float));
    PyBuffer_Release(&numbers);
    return PyBool_FromLong(finite);
}

static PyObject *py_best_first(PyObject *self, PyObject *args)
{
    Py_buffer scores, places, best;
    if (!PyArg_ParseTuple(args, "y*w*w*", &scores, &places, &best))
        return NULL;
    Py_ssize_t count = scores.len / (Py_ssize_t)sizeof(float);
    Py_ssize_t wanted = best.len / (Py_ssize_t)sizeof(float);
    if (wanted > count || count > INT32_MAX || places.len != wanted * (Py_ssize_t)sizeof(int64_t))
        PyErr_SetString(PyExc_ValueError, "expected a place for each of the best, of all scores");
    else if (!best_first(scores.buf, count, places.buf, best.buf, wanted))
        PyErr_NoMemory();
    return DONE_WITH(&scores, &places, &best);
}

/* What stands at some places of a list, none of them below 0. */
static PyObject *picked(PyObject *list, const int64_t *places, Py_ssize_t count)
{
    PyObject *found = PyList_New(count); /* which may collect garbage, and so run any code */
    for (Py_ssize_t i = 0; found && i < count; i++) {
        if (places[i] < PyList_GET_SIZE(list)) {
            PyList_SET_ITEM(found, i, Py_NewRef(PyList_GET_ITEM(list, places[i])));
        } else {
            PyErr_SetString(PyExc_IndexError, "the list became shorter meanwhile");
            Py_CLEAR(found);
        }
    }
    return found;
}

static PyObject *py_picked(PyObject *self, PyObject *args)
{
    PyObject *list, *found = NULL;
    Py_buffer places;
    if (!PyArg_ParseTuple(args, "O!y*", &PyList_Type, &list, &places))
        return NULL;
    if (are_rows(&places, PyList_GET_SIZE(list)))
        found = picked(list, places.buf, places.len / (Py_ssize_t)sizeof(int64_t));
    PyBuffer_Release(&places);
    return found;
}

static PyObject *py_items_json(PyObject *self, PyObject *args)
{
    Py_buffer ids, scores, cold;
    if (!PyArg_ParseTuple(args, "y*y*y*", &ids, &scores, &cold))
        return NULL;
    Py_ssize_t bytes = ids.len + scores.len;
    Py_ssize_t around = sizeof BEFORE_ID + sizeof BEFORE_SCORE + (cold.len ? sizeof COLD : 0);
    for (Py_ssize_t i = 0; i < scores.len; i++) /* of objects no more than there are numbers */
        bytes += i == 0 || ((char *)scores.buf)[i] == ',' ? around : 0;
    char *json = PyMem_Malloc((size_t)bytes);
    const char *end = NULL;
    if (!json)
        PyErr_NoMemory();
    else if (ids.len < 2 || scores.len < 2 || !(end = put_items(json, &ids, &scores, &cold)))
        PyErr_SetString(PyExc_ValueError, "expected lists of as many texts as numbers");
    PyObject *items = end ? PyBytes_FromStringAndSize(json, end - json) : NULL;
    PyMem_Free(json);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&scores);
    PyBuffer_Release(&cold);
    return items;
}

static PyObject *py_milliseconds(PyObject *self, PyObject *seconds)
{
    if (!PyList_CheckExact(seconds)) {
        PyErr_SetString(PyExc_TypeError, "expected a list");
        return NULL;
    }
    PyObject *found = PyList_New(PyList_GET_SIZE(seconds));
    for (Py_ssize_t i = 0; found && i < PyList_GET_SIZE(found); i++) {
        int64_t us = microseconds(seconds, i);
        PyObject *each = PyErr_Occurred() ? NULL : PyFloat_FromDouble((double)us / 1e3);
        if (each)
            PyList_SET_ITEM(found, i, each);
        else
            Py_CLEAR(found);
    }
    return found;
}

/* A name, and a list's seconds at its place, of each of some names. */
static char *put_times(char *to, PyObject *names, PyObject *seconds)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        int64_t us = microseconds(seconds, i);
        if (PyErr_Occurred())
            return NULL;
        if (i)
            to = put(to, ", ", 2);
        to = put(to, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name));
        to = put(to, BEFORE_TIME, sizeof BEFORE_TIME - 1);
        to = put_time(to, us);
    }
    return to;
}

static PyObject *py_server_timing(PyObject *self, PyObject *args)
{
    PyObject *names, *seconds;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &names, &PyList_Type, &seconds))
        return NULL;
    if (PyTuple_GET_SIZE(names) != PyList_GET_SIZE(seconds)) {
        PyErr_SetString(PyExc_ValueError, "expected seconds for each name");
        return NULL;
    }
    Py_ssize_t room = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (!PyBytes_CheckExact(name))
            return PyErr_Format(PyExc_TypeError, "expected names, got %R", name);
        room += 2 + PyBytes_GET_SIZE(name) + (Py_ssize_t)sizeof BEFORE_TIME + LONGEST_TIME;
    }
    PyObject *text = PyBytes_FromStringAndSize(NULL, room);
    if (!text)
        return NULL;
    char *start = PyBytes_AS_STRING(text), *end = put_times(start, names, seconds);
    if (!end)
        Py_CLEAR(text);
    else
        _PyBytes_Resize(&text, end - start);
    return text;
}

static PyObject *py_best_of(PyObject *self, PyObject *args)
{
    Py_buffer scores, best, rows;
    if (!PyArg_ParseTuple(args, "y*w*w*", &scores, &best, &rows))
        return NULL;
    Heap heap = {best.buf, rows.buf, best.len / (Py_ssize_t)sizeof(float)};
    Py_BEGIN_ALLOW_THREADS
    best_of(scores.buf, scores.len / (Py_ssize_t)sizeof(float), &heap);
    Py_END_ALLOW_THREADS
    return DONE_WITH(&scores, &best, &rows);
}

static PyObject *py_taken(PyObject *self, PyObject *args)
{
    Py_buffer codes, rows, tables, found;
    Py_ssize_t width, books, words;
    if (!PyArg_ParseTuple(args, "y*nny*y*nw*", &codes, &width, &books, &rows, &tables, &words,
                          &found))
        return NULL;
    if (are_rows(&rows, codes.len / (width * books))) {
        Py_BEGIN_ALLOW_THREADS
        taken(codes.buf, width, books, rows.buf, rows.len / (Py_ssize_t)sizeof(int64_t),
              tables.buf, words, found.buf);
        Py_END_ALLOW_THREADS
    }
    return DONE_WITH(&codes, &rows, &tables, &found);
}

/* A query's products with the codewords of items, and what the items of its session get besides. */
typedef struct {
    Py_buffer codes, tables, session, repeats;
    Py_ssize_t width, books, words;
} RankingLoop;

#define RANKING_LOOP "service._kernels.ranking_loop" /* the capsule's name */

static void free_ranking_loop(PyObject *capsule)
{
    RankingLoop *loop = PyCapsule_GetPointer(capsule, RANKING_LOOP);
    PyBuffer_Release(&loop->codes);
    PyBuffer_Release(&loop->tables);
    PyBuffer_Release(&loop->session);
    PyBuffer_Release(&loop->repeats);
    PyMem_Free(loop);
}

/* Whether its parts fit each other; an error is set if not. */
static int fits(const RankingLoop *loop)
{
    if (loop->width < 1 || loop->books < 1)
        PyErr_SetString(PyExc_ValueError, "expected codes");
    else if (loop->tables.len / (Py_ssize_t)sizeof(float) / loop->books != loop->words)
        PyErr_SetString(PyExc_ValueError, "expected a table for each code");
    else if (loop->session.len / (Py_ssize_t)sizeof(int64_t) !=
             loop->repeats.len / (Py_ssize_t)sizeof(float))
        PyErr_SetString(PyExc_ValueError, "expected a weight for each item of the session");
    return !PyErr_Occurred();
}

static PyObject *py_ranking_loop(PyObject *self, PyObject *args)
{
    RankingLoop *loop = PyMem_Calloc(1, sizeof *loop);
    if (!loop)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(loop, RANKING_LOOP, free_ranking_loop);
    if (!capsule)
        PyMem_Free(loop);
    else if (!PyArg_ParseTuple(args, "y*nny*ny*y*", &loop->codes, &loop->width, &loop->books,
                               &loop->tables, &loop->words, &loop->session, &loop->repeats) ||
             !fits(loop))
        Py_CLEAR(capsule);
    return capsule;
}

/* Scores of items that are there; whether all are finite. */
static int scored(const RankingLoop *loop, const int64_t *rows, Py_ssize_t count, float *scores)
{
    taken(loop->codes.buf, loop->width, loop->books, rows, count, loop->tables.buf, loop->words,
          scores);
    add_repeats(scores, rows, count, loop->session.buf, loop->repeats.buf,
                loop->repeats.len / (Py_ssize_t)sizeof(float));
    return all_finite(scores, count);
}

/* The best of a list by scores of their rows, with these and their places; None if a score is not
 * finite. */
static PyObject *ranked(const RankingLoop *loop, PyObject *list, const Py_buffer *rows,
                        const Py_buffer *places, const Py_buffer *best)
{
    Py_ssize_t count = rows->len / (Py_ssize_t)sizeof(int64_t);
    Py_ssize_t wanted = best->len / (Py_ssize_t)sizeof(float);
    if (count != PyList_GET_SIZE(list) || wanted > count || count > INT32_MAX ||
        places->len / (Py_ssize_t)sizeof(int64_t) != wanted) {
        PyErr_SetString(PyExc_ValueError, "expected a row for each value, a place for each of the best");
        return NULL;
    }
    if (!are_rows(rows, loop->codes.len / (loop->width * loop->books)))
        return NULL;
    float *scores = PyMem_Malloc((size_t)count * sizeof *scores);
    if (!scores)
        return PyErr_NoMemory();
    PyObject *found = NULL;
    if (!scored(loop, rows->buf, count, scores))
        found = Py_NewRef(Py_None);
    else if (best_first(scores, count, places->buf, best->buf, wanted))
        found = picked(list, places->buf, wanted);
    else
        PyErr_NoMemory();
    PyMem_Free(scores);
    return found;
}

static PyObject *py_ranked(PyObject *self, PyObject *args)
{
    PyObject *capsule, *list, *found = NULL;
    Py_buffer rows, places, best;
    if (!PyArg_ParseTuple(args, "OO!y*w*w*", &capsule, &PyList_Type, &list, &rows, &places, &best))
        return NULL;
    const RankingLoop *loop = PyCapsule_GetPointer(capsule, RANKING_LOOP);
    if (loop)
        found = ranked(loop, list, &rows, &places, &best);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&places);
    PyBuffer_Release(&best);
    return found;
}

static PyObject *py_vectors(PyObject *self, PyObject *args)
{
    Py_buffer codes, rows, words, found;
    Py_ssize_t bytes;
    Codebooks books;
    if (!PyArg_ParseTuple(args, "y*ny*y*nnnpw*", &codes, &bytes, &rows, &words, &books.books,
                          &books.size, &books.width, &books.concatenated, &found))
        return NULL;
    books.words = words.buf;
    if (are_rows(&rows, codes.len / (bytes * books.books)))
        vectors(codes.buf, bytes, &books, rows.buf, rows.len / (Py_ssize_t)sizeof(int64_t),
                found.buf);
    return DONE_WITH(&codes, &rows, &words, &found);
}

static PyObject *py_scanned(PyObject *self, PyObject *args)
{
    Py_buffer codes, tables, best, rows;
    Py_ssize_t width, books, words;
    if (!PyArg_ParseTuple(args, "y*nny*nw*w*", &codes, &width, &books, &tables, &words, &best,
                          &rows))
        return NULL;
    Heap heap = {best.buf, rows.buf, best.len / (Py_ssize_t)sizeof(float)};
    Py_BEGIN_ALLOW_THREADS
    scanned(codes.buf, width, books, codes.len / (width * books), tables.buf, words, &heap);
    Py_END_ALLOW_THREADS
    return DONE_WITH(&codes, &tables, &best, &rows);
}

static PyObject *py_taken_from_blocks(PyObject *self, PyObject *args)
{
    Py_buffer codes, rows, tables, found;
    Py_ssize_t pairs, words;
    if (!PyArg_ParseTuple(args, "y*ny*y*nw*", &codes, &pairs, &rows, &tables, &words, &found))
        return NULL;
    Blocks blocks = {codes.buf, pairs, tables.buf, words};
    if (are_rows(&rows, codes.len / pairs)) {
        Py_BEGIN_ALLOW_THREADS
        taken_from_blocks(&blocks, rows.buf, rows.len / (Py_ssize_t)sizeof(int64_t), found.buf);
        Py_END_ALLOW_THREADS
    }
    return DONE_WITH(&codes, &rows, &tables, &found);
}

static PyObject *py_scanned_blocks(PyObject *self, PyObject *args)
{
    Py_buffer codes, tables, entries, best, rows;
    Py_ssize_t pairs, words, items;
    double ceiling, step;
    int shuffle;
    if (!PyArg_ParseTuple(args, "y*ny*ny*ddnpw*w*", &codes, &pairs, &tables, &words, &entries,
                          &ceiling, &step, &items, &shuffle, &best, &rows))
        return NULL;
    Blocks blocks = {codes.buf, pairs, tables.buf, words};
    Heap heap = {best.buf, rows.buf, best.len / (Py_ssize_t)sizeof(float)};
    Py_BEGIN_ALLOW_THREADS
    scanned_blocks(&blocks, entries.buf, ceiling, step, items, shuffle, &heap);
    Py_END_ALLOW_THREADS
    return DONE_WITH(&codes, &tables, &entries, &best, &rows);
}

static PyObject *py_shuffles(PyObject *self, PyObject *unused)
{
    return PyBool_FromLong(shuffles());
}

static PyMethodDef methods[] = {
    {"index_ids", py_index_ids, METH_VARARGS, "index_ids(text, ends, key, slots)"},
    {"id_rows", py_id_rows, METH_VARARGS, "id_rows(text, ends, key, slots)"},
    {"find_ids", py_find_ids, METH_VARARGS, "find_ids(id_rows, (texts, ...), rows)"},
    {"longest", py_longest, METH_O, "longest(texts)"},
    {"lay_tokens", py_lay_tokens, METH_VARARGS,
     "lay_tokens(((tokens, (text, ends, key, slots, start, column)), ...), width, rows)"},
    {"numbers", py_numbers, METH_VARARGS, "numbers((values, ...), found)"},
    {"lay_numbers", py_lay_numbers, METH_VARARGS, "lay_numbers(numbers, columns, tensor, width)"},
    {"read_features", py_read_features, METH_VARARGS,
     "read_features(layout, body, spans, whole, candidates, rows, numbers)"},
    {"lay_side", py_lay_side, METH_VARARGS, "lay_side(layout, values, rows, numbers)"},
    {"layout", py_layout, METH_VARARGS, "layout(names, places, width, columns, several)"},
    {"cut_features", py_cut_features, METH_VARARGS, "cut_features(body)"},
    {"add_repeats", py_add_repeats, METH_VARARGS, "add_repeats(scores, rows, session, weights)"},
    {"told_apart", py_told_apart, METH_VARARGS, "told_apart(rows, odd)"},
    {"all_finite", py_all_finite, METH_VARARGS, "all_finite(numbers)"},
    {"best_first", py_best_first, METH_VARARGS, "best_first(scores, places, best)"},
    {"picked", py_picked, METH_VARARGS, "picked(list, places)"},
    {"items_json", py_items_json, METH_VARARGS, "items_json(ids, scores, cold)"},
    {"milliseconds", py_milliseconds, METH_O, "milliseconds(seconds)"},
    {"server_timing", py_server_timing, METH_VARARGS, "server_timing(names, seconds)"},
    {"best_of", py_best_of, METH_VARARGS, "best_of(scores, best, rows)"},
    {"taken", py_taken, METH_VARARGS, "taken(codes, width, M, rows, tables, K, found)"},
    {"ranking_loop", py_ranking_loop, METH_VARARGS,
     "ranking_loop(codes, width, M, tables, K, session, repeats)"},
    {"ranked", py_ranked, METH_VARARGS, "ranked(loop, list, rows, places, best)"},
    {"vectors", py_vectors, METH_VARARGS,
     "vectors(codes, bytes, rows, codebooks, M, K, width, concatenated, found)"},
    {"scanned", py_scanned, METH_VARARGS, "scanned(codes, width, M, tables, K, best, rows)"},
    {"taken_from_blocks", py_taken_from_blocks, METH_VARARGS,
     "taken_from_blocks(blocks, pairs, rows, tables, K, found)"},
    {"scanned_blocks", py_scanned_blocks, METH_VARARGS,
     "scanned_blocks(blocks, pairs, tables, K, entries, ceiling, step, N, shuffle, best, rows)"},
    {"shuffles", py_shuffles, METH_NOARGS, "Whether the processor has AVX2's shuffle."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "service._kernels", "Compiled loops; see service/kernels.py.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "VERSION", VERSION) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
