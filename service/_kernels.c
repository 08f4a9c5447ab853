/* The loops of service/kernels.py, which says what each is for and how the codes lie in memory.
 *
 * They trust what they get: kernels.py checks types and shapes, and whoever loads codes has seen
 * that all are below K. Every score is a sum of float32 in the order of the codebooks, so that all
 * ways to it give equal numbers. The GIL is free while they run, but for find_ids, longest,
 * token_rows and numbers, which read Python's objects.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define HAS_SHUFFLE 1
#endif

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)(address))
#endif

#define VERSION 6 /* of what the functions take, as in kernels.py: an old build must not be called */
#define AHEAD 32 /* places asked for before they are read: a miss takes as long as 32 hits */
#define LANES 32 /* items of a block */
#define CACHE_LINE 64

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

/* ---- ids, one after the other in UTF-8, found by a hash table of their rows ---- */

#define FREE (-1)

typedef struct {
    const char *text;
    Py_ssize_t bytes;
    const uint32_t *ends; /* [items + 1]: id i lies from ends[i] to ends[i + 1] */
    Py_ssize_t items;
    int32_t *slots; /* a power of two, more than there are items: rows, or FREE */
    uint64_t mask;
    Py_hash_t (*hash)(const void *, Py_ssize_t);
} Ids;

/* A text, and the first slot that it may stand at: on its way into the cache. */
typedef struct {
    const char *text; /* NULL: none in UTF-8 */
    Py_ssize_t length;
    uint64_t slot;
} Sought;

static Sought seek(const Ids *ids, const char *text, Py_ssize_t length)
{
    uint64_t slot = (uint64_t)ids->hash(text, length) & ids->mask;
    PREFETCH(ids->slots + slot);
    return (Sought){text, length, slot};
}

/* The slot that holds a text's row, or the free one where it would stand. */
static uint64_t slot_of(const Ids *ids, Sought sought)
{
    uint64_t slot = sought.slot;
    for (int32_t row; (row = ids->slots[slot]) != FREE; slot = (slot + 1) & ids->mask)
        if ((Py_ssize_t)(ids->ends[row + 1] - ids->ends[row]) == sought.length &&
            !memcmp(ids->text + ids->ends[row], sought.text, (size_t)sought.length))
            break;
    return slot;
}

/* Whether all ids lie within the text. */
static int index_ids(const Ids *ids)
{
    for (Py_ssize_t row = 0; row < ids->items; row++) {
        uint32_t start = ids->ends[row], end = ids->ends[row + 1];
        if (start > end || end > ids->bytes)
            return 0;
        ids->slots[slot_of(ids, seek(ids, ids->text + start, end - start))] = (int32_t)row;
    }
    return 1;
}

/* Whether a Python object is a text; half a surrogate pair makes one that UTF-8 does not have. */
static int seek_text(const Ids *ids, PyObject *wanted, Sought *sought)
{
    Py_ssize_t length;
    if (!PyUnicode_Check(wanted)) {
        PyErr_Format(PyExc_TypeError, "expected texts, got %R", wanted);
        return 0;
    }
    const char *text = PyUnicode_AsUTF8AndSize(wanted, &length);
    *sought = text ? seek(ids, text, length) : (Sought){NULL, 0, 0};
    if (!text && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        PyErr_Clear();
    return !PyErr_Occurred();
}

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
        for (Py_ssize_t i = 0; i < some; i++)
            rows[first + i] = ahead[i].text ? ids->slots[slot_of(ids, ahead[i])] : FREE;
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

/* Rows of tokens by a dictionary; how many were texts or None before the first that is neither, or
 * -1 if an error is set. */
static Py_ssize_t token_rows(PyObject *tokens, PyObject *vocabulary, int32_t missing, int32_t *rows)
{
    PyObject *const *token = PySequence_Fast_ITEMS(tokens);
    Py_ssize_t count = PySequence_Fast_GET_SIZE(tokens);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (token[i] == Py_None) {
            rows[i] = missing;
            continue;
        }
        if (!PyUnicode_CheckExact(token[i]))
            return i;
        PyObject *row = PyDict_GetItemWithError(vocabulary, token[i]);
        rows[i] = row ? (int32_t)PyLong_AsLong(row) : 0;
        if ((!row || rows[i] == -1) && PyErr_Occurred())
            return -1;
    }
    return count;
}

/* Numbers as doubles, None as what is missing; how many were one of these, and within what float32
 * holds, before the first that is not. */
static Py_ssize_t numbers(PyObject *values, double missing, double *found)
{
    PyObject *const *value = PySequence_Fast_ITEMS(values);
    Py_ssize_t count = PySequence_Fast_GET_SIZE(values);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (value[i] == Py_None) {
            found[i] = missing;
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

/* ---- what Python sees ---- */

/* Gives buffers back; answers None, or NULL if an error is set. */
#define DONE_WITH(...) done_with((Py_buffer *[]){__VA_ARGS__, NULL})

static PyObject *done_with(Py_buffer **lent)
{
    for (; *lent; lent++)
        PyBuffer_Release(*lent);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* Whether there are as many slots as ids need: with none free, a search would never end. */
static int make_ids(Ids *ids, const Py_buffer *text, const Py_buffer *ends, const Py_buffer *slots)
{
    Py_ssize_t items = ends->len / (Py_ssize_t)sizeof(uint32_t) - 1;
    Py_ssize_t places = slots->len / (Py_ssize_t)sizeof(int32_t);
    /* Python's own hash of bytes: keyed anew in each process, so that nobody can choose ids that
     * all meet in one slot. */
    *ids = (Ids){text->buf, text->len, ends->buf, items, slots->buf, (uint64_t)places - 1,
                 PyHash_GetFuncDef()->hash};
    if (items >= 0 && items < places && items <= INT32_MAX && !(places & (places - 1)))
        return 1;
    PyErr_Format(PyExc_ValueError, "expected a power of two of slots, over %zd, got %zd", items,
                 places);
    return 0;
}

static PyObject *py_index_ids(PyObject *self, PyObject *args)
{
    Py_buffer text, ends, slots;
    if (!PyArg_ParseTuple(args, "y*y*w*", &text, &ends, &slots))
        return NULL;
    Ids ids;
    if (make_ids(&ids, &text, &ends, &slots)) {
        int within;
        Py_BEGIN_ALLOW_THREADS
        within = index_ids(&ids);
        Py_END_ALLOW_THREADS
        if (!within)
            PyErr_SetString(PyExc_ValueError, "expected ids within their text");
    }
    return DONE_WITH(&text, &ends, &slots);
}

static PyObject *py_find_ids(PyObject *self, PyObject *args)
{
    Py_buffer text, ends, slots, rows;
    PyObject *wanted;
    /* A tuple: unlike a list it cannot grow meanwhile. */
    if (!PyArg_ParseTuple(args, "O!y*y*y*w*", &PyTuple_Type, &wanted, &text, &ends, &slots, &rows))
        return NULL;
    Ids ids;
    if (rows.len / (Py_ssize_t)sizeof(int64_t) != PyTuple_GET_SIZE(wanted))
        PyErr_SetString(PyExc_ValueError, "expected a row for each text");
    else if (make_ids(&ids, &text, &ends, &slots))
        find_ids(&ids, wanted, rows.buf);
    return DONE_WITH(&text, &ends, &slots, &rows);
}

static PyObject *py_longest(PyObject *self, PyObject *texts)
{
    if (PyList_CheckExact(texts))
        return PyLong_FromSsize_t(longest(texts));
    PyErr_SetString(PyExc_TypeError, "expected a list");
    return NULL;
}

static PyObject *py_token_rows(PyObject *self, PyObject *args)
{
    PyObject *tokens, *vocabulary;
    int missing;
    Py_buffer rows;
    if (!PyArg_ParseTuple(args, "OO!iw*", &tokens, &PyDict_Type, &vocabulary, &missing, &rows))
        return NULL;
    Py_ssize_t known = -1;
    if (!PyList_CheckExact(tokens) && !PyTuple_CheckExact(tokens))
        PyErr_SetString(PyExc_TypeError, "expected a list or a tuple");
    else if (rows.len / (Py_ssize_t)sizeof(int32_t) != PySequence_Fast_GET_SIZE(tokens))
        PyErr_SetString(PyExc_ValueError, "expected a row for each token");
    else
        known = token_rows(tokens, vocabulary, missing, rows.buf);
    PyBuffer_Release(&rows);
    return known < 0 ? NULL : PyLong_FromSsize_t(known);
}

static PyObject *py_numbers(PyObject *self, PyObject *args)
{
    PyObject *values;
    double missing;
    Py_buffer found;
    if (!PyArg_ParseTuple(args, "Odw*", &values, &missing, &found))
        return NULL;
    Py_ssize_t known = -1;
    if (!PyList_CheckExact(values) && !PyTuple_CheckExact(values))
        PyErr_SetString(PyExc_TypeError, "expected a list or a tuple");
    else if (found.len / (Py_ssize_t)sizeof(double) != PySequence_Fast_GET_SIZE(values))
        PyErr_SetString(PyExc_ValueError, "expected a place for each value");
    else
        known = numbers(values, missing, found.buf);
    PyBuffer_Release(&found);
    return known < 0 ? NULL : PyLong_FromSsize_t(known);
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
    Py_BEGIN_ALLOW_THREADS
    taken(codes.buf, width, books, rows.buf, rows.len / (Py_ssize_t)sizeof(int64_t), tables.buf,
          words, found.buf);
    Py_END_ALLOW_THREADS
    return DONE_WITH(&codes, &rows, &tables, &found);
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
    Py_BEGIN_ALLOW_THREADS
    taken_from_blocks(&blocks, rows.buf, rows.len / (Py_ssize_t)sizeof(int64_t), found.buf);
    Py_END_ALLOW_THREADS
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
    {"index_ids", py_index_ids, METH_VARARGS, "index_ids(text, ends, slots)"},
    {"find_ids", py_find_ids, METH_VARARGS, "find_ids(wanted, text, ends, slots, rows)"},
    {"longest", py_longest, METH_O, "longest(texts)"},
    {"token_rows", py_token_rows, METH_VARARGS, "token_rows(tokens, vocabulary, missing, rows)"},
    {"numbers", py_numbers, METH_VARARGS, "numbers(values, missing, found)"},
    {"best_of", py_best_of, METH_VARARGS, "best_of(scores, best, rows)"},
    {"taken", py_taken, METH_VARARGS, "taken(codes, width, M, rows, tables, K, found)"},
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
