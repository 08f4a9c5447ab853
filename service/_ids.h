/* Ids and tokens: texts one after the other in UTF-8, found by a hash table of their rows. */
#ifndef SLIMRANK_IDS_H
#define SLIMRANK_IDS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)(address))
#endif

#define AHEAD 32 /* places asked for before they are read: a miss takes as long as 32 hits */
#define FREE UINT32_MAX
#define NO_ROW (-1)

/* A slot is free, or holds a row in its low bits and above it what of its id's hash there is room
 * for: so few ids are looked at in vain. All is checked as it is read: slots may come from a file. */
typedef struct {
    const char *text;
    Py_ssize_t bytes;
    const uint32_t *ends; /* [items + 1]: id i lies from ends[i] to ends[i + 1] */
    Py_ssize_t items;
    uint32_t *slots;
    uint64_t places; /* slots, more than there are items */
    int bits;        /* of a row in a slot */
    uint64_t key[2];
} Ids;

/* A text, and the slot that it may stand at: on its way into the cache. */
typedef struct {
    const char *text; /* NULL: none in UTF-8 */
    Py_ssize_t length;
    uint64_t slot;
    uint64_t left; /* slots to look at, should none be free */
    uint32_t tag;  /* of its hash, where a slot has it */
    const Ids *ids;
} Sought;

#define ROTATED(x, by) ((x) << (by) | (x) >> (64 - (by)))

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[2] += v[3];
    v[1] = ROTATED(v[1], 13) ^ v[0], v[3] = ROTATED(v[3], 16) ^ v[2];
    v[0] = ROTATED(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = ROTATED(v[1], 17) ^ v[2], v[3] = ROTATED(v[3], 21) ^ v[0];
    v[2] = ROTATED(v[2], 32);
}

static inline uint64_t little_endian(const char *text, Py_ssize_t length)
{
    uint64_t word = 0;
    for (Py_ssize_t i = 0; i < length; i++)
        word |= (uint64_t)(unsigned char)text[i] << 8 * i;
    return word;
}

/* SipHash-1-3 (Aumasson and Bernstein, INDOCRYPT 2012), as Python's own hash of texts: under a key
 * that nobody else knows, nobody can choose ids that all meet in one slot. */
static uint64_t sip_hash(const uint64_t key[2], const char *text, Py_ssize_t length)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du,
                     key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u};
    uint64_t last = (uint64_t)length << 56;
    for (; length >= 8; text += 8, length -= 8) {
        uint64_t word = little_endian(text, 8);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    last |= little_endian(text, length);
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* Fields one by one: a copy of all would wait until each of them is written. */
static inline void seek(const Ids *ids, const char *text, Py_ssize_t length, Sought *sought)
{
    uint64_t hash = sip_hash(ids->key, text, length);
    uint64_t slot = (hash >> 32) * ids->places >> 32; /* the upper half, scaled to the slots */
    PREFETCH(ids->slots + slot);
    sought->text = text;
    sought->length = length;
    sought->slot = slot;
    sought->left = ids->places;
    sought->tag = (uint32_t)hash << ids->bits;
    sought->ids = ids;
}

static int64_t row_in(const Ids *ids, uint64_t slot)
{
    return ids->slots[slot] & (((uint32_t)1 << ids->bits) - 1);
}

static void pass_by(const Ids *ids, Sought *sought)
{
    sought->left--;
    if (++sought->slot == ids->places)
        sought->slot = 0;
}

/* Go to the first slot, from this one on, that is free or may hold a text's row; whether it may. */
static int may_hold(const Ids *ids, Sought *sought)
{
    for (; sought->left; pass_by(ids, sought)) {
        uint32_t held = ids->slots[sought->slot];
        if (held == FREE)
            return 0;
        if ((held ^ sought->tag) >> ids->bits == 0 && row_in(ids, sought->slot) < ids->items)
            return 1;
    }
    return 0;
}

/* Whether an id lies within the text. */
static int lies_within(const Ids *ids, int64_t row)
{
    return ids->ends[row] <= ids->ends[row + 1] && ids->ends[row + 1] <= ids->bytes;
}

static int is_of(const Ids *ids, int64_t row, const Sought *sought)
{
    return lies_within(ids, row) && ids->ends[row + 1] - ids->ends[row] == sought->length &&
           !memcmp(ids->text + ids->ends[row], sought->text, (size_t)sought->length);
}

/* The row of a text; NO_ROW and the free slot where it would stand if it is not there. */
static int64_t row_of(const Ids *ids, Sought *sought)
{
    for (; may_hold(ids, sought); pass_by(ids, sought)) {
        int64_t row = row_in(ids, sought->slot);
        if (is_of(ids, row, sought))
            return row;
    }
    return NO_ROW;
}

/* Fill free slots; the first row that lies outside of the text, or whose id an earlier one has, or
 * NO_ROW. */
static int64_t index_ids(const Ids *ids)
{
    Sought ahead[AHEAD];
    for (int64_t first = 0; first < ids->items; first += AHEAD) {
        int64_t some = ids->items - first < AHEAD ? ids->items - first : AHEAD;
        for (int64_t i = 0; i < some; i++) {
            if (!lies_within(ids, first + i))
                return first + i;
            uint32_t start = ids->ends[first + i];
            seek(ids, ids->text + start, ids->ends[first + i + 1] - start, &ahead[i]);
        }
        for (int64_t i = 0; i < some; i++) {
            if (row_of(ids, &ahead[i]) != NO_ROW)
                return first + i;
            ids->slots[ahead[i].slot] = ahead[i].tag | (uint32_t)(first + i);
        }
    }
    return NO_ROW;
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
    *sought = (Sought){0};
    if (text)
        seek(ids, text, length, sought);
    else if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        PyErr_Clear();
    return !PyErr_Occurred();
}

/* Rows of up to AHEAD texts, each among ids of its own. Each pass asks for what the next one reads:
 * slots, where the ids lie, their text. */
static void find_sought(Sought *ahead, Py_ssize_t some, int64_t *rows)
{
    int held[AHEAD];
    for (Py_ssize_t i = 0; i < some; i++)
        if ((held[i] = ahead[i].text && may_hold(ahead[i].ids, &ahead[i])))
            PREFETCH(ahead[i].ids->ends + row_in(ahead[i].ids, ahead[i].slot));
    for (Py_ssize_t i = 0; i < some; i++) {
        const Ids *ids = ahead[i].ids;
        if (held[i] && lies_within(ids, row_in(ids, ahead[i].slot)))
            PREFETCH(ids->text + ids->ends[row_in(ids, ahead[i].slot)]);
    }
    for (Py_ssize_t i = 0; i < some; i++)
        rows[i] = held[i] ? row_of(ahead[i].ids, &ahead[i]) : NO_ROW;
}

/* Whether there are more slots than ids, and numbers that they can hold. */
static int make_ids(Ids *ids, const Py_buffer *text, const Py_buffer *ends, const Py_buffer *key,
                    const Py_buffer *slots)
{
    Py_ssize_t items = ends->len / (Py_ssize_t)sizeof(uint32_t) - 1;
    Py_ssize_t places = slots->len / (Py_ssize_t)sizeof(uint32_t);
    if (items < 0 || items > INT32_MAX || places <= items || places > UINT32_MAX || key->len != 16) {
        PyErr_Format(PyExc_ValueError, "expected over %zd slots and a key of 16 bytes, got %zd, %zd",
                     items, places, key->len);
        return 0;
    }
    *ids = (Ids){text->buf, text->len, ends->buf, items, slots->buf, (uint64_t)places, 0, {0, 0}};
    memcpy(ids->key, key->buf, sizeof ids->key);
    while (items >> ids->bits) /* one value more than there are rows: FREE is none of theirs */
        ids->bits++;
    return 1;
}

#endif
