/* What a request brings of its candidates, read from its JSON: one object of features a candidate, or
 * one array of values a feature. It is cut out of the body before the parser sees that. All of it is
 * ASCII; whether it is JSON is seen here, and what is told is told as the parser and the encoders
 * would. Whatever else comes (an escape, another type, a name twice) ends the reading: they are
 * asked, and say what is wrong, if anything is. */
#ifndef SLIMRANK_READING_H
#define SLIMRANK_READING_H

#include "_ids.h"
#include <float.h>
#include <math.h>

#if defined(__GNUC__) && defined(__SSE2__)
#include <emmintrin.h>
#define HAS_SSE2 1
#endif

#define UNKNOWN_TOKEN 0    /* the row of all that a vocabulary does not hold */
#define LONGEST_NUMBER 40  /* characters: none so short is out of the parser's range */
#define WHOLE_DOUBLE 15    /* digits that any double holds */
#define EXACT_POWER 22     /* powers of ten that a double holds */
#define DEEPEST 8          /* lists in lists that are passed over */
#define SHORT 8            /* bytes of a token, which are compared at once */
#define MOST_SHORT 16384   /* tokens of a vocabulary: half a megabyte */

typedef struct {
    const char *at, *end;
} Text;

typedef enum { PASSED, TOKEN, NUMBER } Kind;

/* A token of a few bytes, and its row; NO_ROW: none is here. */
typedef struct {
    uint64_t bytes;
    int32_t length, row;
} Short;

/* A vocabulary of short tokens, found as a rule by one look at one place: slots, where a token lies and its text
 * are three, and SipHash takes longer than all of them. */
typedef struct {
    Short *places; /* NULL: its tokens are too many, too long, or lie elsewhere */
    int bits;      /* of the number of places, twice the tokens or more */
    uint64_t odd;
} Shorts;

/* A feature that candidates may bring. */
typedef struct {
    Kind kind;
    Ids known;         /* tokens */
    Shorts shorts;     /* the same */
    int32_t start;     /* the row of the first of these */
    Py_ssize_t place;  /* the column of rows, or of numbers */
    Py_ssize_t latest; /* the last candidate that brought it, counted from 1 */
    Py_ssize_t next;   /* the feature that came after it, as far as that is known */
} Feature;

typedef struct {
    Feature *features;
    Py_ssize_t first; /* the feature that comes first, as far as that is known */
    int32_t *rows; /* [candidates][width] */
    Py_ssize_t width;
    double *numbers; /* [candidates][columns] */
    Py_ssize_t columns;
    Py_ssize_t candidates;
    Sought ahead[AHEAD]; /* tokens that wait to be looked up together */
    const Feature *of[AHEAD];
    Py_ssize_t candidate[AHEAD];
    Py_ssize_t waiting;
} Reader;

static void look_up_waiting(Reader *reader)
{
    int64_t found[AHEAD];
    find_sought(reader->ahead, reader->waiting, found);
    for (Py_ssize_t i = 0; i < reader->waiting; i++) {
        const Feature *feature = reader->of[i];
        reader->rows[reader->candidate[i] * reader->width + feature->place] =
            found[i] == NO_ROW ? UNKNOWN_TOKEN : feature->start + (int32_t)found[i];
    }
    reader->waiting = 0;
}

/* What is sought last is a token of this feature. */
static inline void wait_for(Reader *reader, const Feature *feature, Py_ssize_t candidate)
{
    reader->of[reader->waiting] = feature;
    reader->candidate[reader->waiting++] = candidate;
    if (reader->waiting == AHEAD)
        look_up_waiting(reader);
}

/* The bytes of a short text; what lies behind it, up to ``end``, may be read. */
static inline uint64_t bytes_of(const char *text, Py_ssize_t length, const char *end)
{
    if (length == SHORT)
        return little_endian(text, SHORT);
    if (end - text < SHORT)
        return little_endian(text, length);
    return little_endian(text, SHORT) & (((uint64_t)1 << 8 * length) - 1);
}

/* Where a short text stands, or would. Its hash multiplies by a number that nobody else knows
 * (Dietzfelbinger et al., J. Algorithms 1997): nobody can choose tokens that all meet in one place.
 * Twice: after once tokens that count up lie in runs. */
static inline Short *place_of(const Shorts *shorts, uint64_t bytes, Py_ssize_t length)
{
    uint64_t product = bytes * shorts->odd;
    size_t place = (product ^ product >> 32) * shorts->odd >> (64 - shorts->bits);
    while (shorts->places[place].row != NO_ROW &&
           (shorts->places[place].bytes != bytes || shorts->places[place].length != length))
        place = (place + 1) & (((size_t)1 << shorts->bits) - 1);
    return &shorts->places[place];
}

static int are_short(const Ids *known)
{
    if (known->items > MOST_SHORT)
        return 0;
    for (Py_ssize_t row = 0; row < known->items; row++)
        if (!lies_within(known, row) || known->ends[row + 1] - known->ends[row] > SHORT)
            return 0;
    return 1;
}

/* Lay out a vocabulary, if its tokens are few enough and short; 0 without memory. */
static int lay_shorts(Shorts *shorts, const Ids *known)
{
    if (!are_short(known))
        return 1;
    shorts->odd = sip_hash(known->key, "", 0) | 1; /* which does not tell the key */
    shorts->bits = 1;
    while ((Py_ssize_t)1 << shorts->bits < 2 * known->items)
        shorts->bits++;
    size_t count = (size_t)1 << shorts->bits;
    if (!(shorts->places = PyMem_Malloc(count * sizeof *shorts->places)))
        return 0;
    for (size_t place = 0; place < count; place++)
        shorts->places[place].row = NO_ROW;
    for (int32_t row = 0; row < known->items; row++) {
        const char *text = known->text + known->ends[row];
        int32_t length = (int32_t)(known->ends[row + 1] - known->ends[row]);
        uint64_t bytes = bytes_of(text, length, text + length);
        *place_of(shorts, bytes, length) = (Short){bytes, length, row};
    }
    return 1;
}

static inline void look_up(Reader *reader, const Feature *feature, Py_ssize_t candidate,
                           const Text *token, const char *end)
{
    Py_ssize_t length = token->end - token->at;
    if (!feature->shorts.places) {
        seek(&feature->known, token->at, length, &reader->ahead[reader->waiting]);
        wait_for(reader, feature, candidate);
        return;
    }
    int32_t row = NO_ROW;
    if (length <= SHORT)
        row = place_of(&feature->shorts, bytes_of(token->at, length, end), length)->row;
    reader->rows[candidate * reader->width + feature->place] =
        row == NO_ROW ? UNKNOWN_TOKEN : feature->start + row;
}

/* ---- JSON: each reads what it is for and goes on behind it, or answers 0 ---- */

/* The character that comes next; 0 at the end. */
static inline char next_of(const Text *text)
{
    return text->at < text->end ? *text->at : 0;
}

/* Here and below a local pointer goes through the text: characters may alias a Text, whose own
 * pointer would be stored and loaded with each of them. */
static inline void pass_space(Text *text)
{
    const char *at = text->at;
    while (at < text->end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r'))
        at++;
    text->at = at;
}

static inline int read_sign(Text *text, char sign)
{
    pass_space(text);
    if (next_of(text) != sign)
        return 0;
    text->at++;
    return 1;
}

static inline int is_digit(char sign)
{
    return sign >= '0' && sign <= '9';
}

/* Pass one or more digits. */
static inline int pass_digits(Text *text)
{
    const char *at = text->at;
    while (at < text->end && is_digit(*at))
        at++;
    int some = at > text->at;
    text->at = at;
    return some;
}

static inline int read_word(Text *text, const char *word)
{
    Py_ssize_t length = (Py_ssize_t)strlen(word);
    if (text->end - text->at < length || memcmp(text->at, word, (size_t)length))
        return 0;
    text->at += length;
    return 1;
}

#ifndef HAS_SSE2
#define EACH_BYTE 0x0101010101010101u

/* Marks, in the highest bit of each byte, the first byte of a word that is below a limit of at most
 * 128; others after it may be marked too. */
static inline uint64_t below(uint64_t word, uint64_t limit)
{
    return (word - EACH_BYTE * limit) & ~word & EACH_BYTE << 7;
}

/* The same of bytes that are a sign. */
static inline uint64_t marked(uint64_t word, char sign)
{
    return below(word ^ EACH_BYTE * (uint64_t)sign, 1);
}
#endif

/* Whether a text goes on with this: no quote, no escape, nothing below a space. */
static inline int is_of_text(char sign)
{
    return sign != '"' && sign != '\\' && (unsigned char)sign >= ' ';
}

/* A text without escapes, which is what lies between its quotes: looked through by many at once. */
static inline int read_text(Text *text, Text *found)
{
    if (!read_sign(text, '"'))
        return 0;
    const char *at = text->at, *end = text->end;
#ifdef HAS_SSE2
    const __m128i quote = _mm_set1_epi8('"'), escape = _mm_set1_epi8('\\'), last = _mm_set1_epi8(31);
    for (; end - at >= 16; at += 16) {
        __m128i some = _mm_loadu_si128((const __m128i *)at);
        __m128i ends = _mm_or_si128(_mm_cmpeq_epi8(some, quote), _mm_cmpeq_epi8(some, escape));
        ends = _mm_or_si128(ends, _mm_cmpeq_epi8(_mm_max_epu8(some, last), last)); /* below 32 */
        int marks = _mm_movemask_epi8(ends);
        if (marks) {
            at += __builtin_ctz((unsigned)marks);
            break;
        }
    }
#else
    for (; end - at >= 8; at += 8) {
        uint64_t word = little_endian(at, 8);
        if (marked(word, '"') | marked(word, '\\') | below(word, ' '))
            break;
    }
#endif
    while (at < end && is_of_text(*at))
        at++;
    if (at == end || *at != '"')
        return 0;
    found->at = text->at;
    found->end = at;
    text->at = at + 1;
    return 1;
}

/* What makes a number other than a whole one. */
static inline int is_of_fraction(char sign)
{
    return sign == '.' || sign == 'e' || sign == 'E';
}

static inline int read_number(Text *text, Text *found)
{
    Text number = *text;
    number.at += next_of(&number) == '-';
    if (next_of(&number) == '0')
        number.at++;
    else if (!pass_digits(&number))
        return 0;
    if (next_of(&number) == '.') {
        number.at++;
        if (!pass_digits(&number))
            return 0;
    }
    if (next_of(&number) == 'e' || next_of(&number) == 'E') {
        number.at++;
        number.at += next_of(&number) == '-' || next_of(&number) == '+';
        if (!pass_digits(&number))
            return 0;
    }
    found->at = text->at;
    found->end = text->at = number.at;
    return found->end - found->at < LONGEST_NUMBER;
}

static int is_whole(Text number)
{
    for (; number.at < number.end; number.at++)
        if (is_of_fraction(*number.at))
            return 0;
    return 1;
}

static int as_python_reads(Text number, double *value)
{
    char copy[LONGEST_NUMBER + 1] = {0};
    memcpy(copy, number.at, (size_t)(number.end - number.at));
    PyGILState_STATE state = PyGILState_Ensure(); /* it may have been let go */
    *value = PyOS_string_to_double(copy, NULL, NULL);
    int wrong = *value == -1.0 && PyErr_Occurred();
    if (wrong)
        PyErr_Clear();
    PyGILState_Release(state);
    return !wrong && isfinite(*value);
}

/* Add digits to a number; how many there were, and of those how many count. */
static inline Py_ssize_t add_digits(Text *text, uint64_t *number, int *counting)
{
    const char *at = text->at;
    for (; at < text->end && is_digit(*at) && *counting <= WHOLE_DOUBLE; at++) {
        *number = *number * 10 + (uint64_t)(*at - '0');
        *counting += *number > 0;
    }
    Py_ssize_t passed = at - text->at;
    text->at = at;
    return passed;
}

/* Up to 15 digits and a power of ten up to 22 are exact doubles, and so one quotient rounds as it
 * should (Clinger, PLDI 1990), where doubles are computed as such. 0 if this number is none. */
static inline int read_exact(Text *text, double *value)
{
    static const double powers[EXACT_POWER + 1] = {
        1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
        1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    Text rest = *text;
    int negative = next_of(&rest) == '-', point = 0, digits = 0;
    uint64_t mantissa = 0;
    Py_ssize_t behind = 0;
    rest.at += negative;
    char first = next_of(&rest);
    Py_ssize_t whole = add_digits(&rest, &mantissa, &digits);
    if (whole == 0 || (first == '0' && whole > 1))
        return 0;
    if (next_of(&rest) == '.') {
        rest.at++;
        point = 1;
        behind = add_digits(&rest, &mantissa, &digits);
    }
    if (behind < point || behind > EXACT_POWER || digits > WHOLE_DOUBLE ||
        is_of_fraction(next_of(&rest)) || FLT_EVAL_METHOD != 0)
        return 0;
    *value = (double)mantissa / powers[behind];
    if (negative && (mantissa || point)) /* -0 is a whole number, and these know one zero */
        *value = -*value;
    text->at = rest.at;
    return 1;
}

/* A number as Python reads it; 0 if it is none, or out of range. */
static inline int read_double(Text *text, double *value)
{
    Text number;
    return read_exact(text, value) || (read_number(text, &number) && as_python_reads(number, value));
}

static int pass_value(Text *text, int depth)
{
    Text found;
    pass_space(text);
    if (next_of(text) == '"')
        return read_text(text, &found);
    if (read_word(text, "null") || read_word(text, "true") || read_word(text, "false"))
        return 1;
    if (!read_sign(text, '[')) {
        double value;
        return read_double(text, &value);
    }
    if (read_sign(text, ']'))
        return 1;
    do {
        if (depth == DEEPEST || !pass_value(text, depth + 1))
            return 0;
    } while (read_sign(text, ','));
    return read_sign(text, ']');
}

/* ---- features ---- */

static int read_token(Reader *reader, Feature *feature, Py_ssize_t candidate, Text *text)
{
    Text token = {text->at, text->at};
    if (next_of(text) == '"') {
        if (!read_text(text, &token))
            return 0;
    } else if (read_word(text, "true") || read_word(text, "false")) {
        token.end = text->at;
    } else if (!read_number(text, &token) || !is_whole(token) ||
               (*token.at == '-' && token.end - token.at == 2 && token.at[1] == '0')) {
        return 0; /* 24.0 is the token 24, and -0 is 0: the encoder knows */
    }
    look_up(reader, feature, candidate, &token, text->end);
    return 1;
}

static int read_value(Reader *reader, Feature *feature, Py_ssize_t candidate, Text *text)
{
    if (feature->kind == PASSED)
        return pass_value(text, 0);
    pass_space(text);
    if (read_word(text, "null"))
        return 1;
    if (feature->kind == TOKEN)
        return read_token(reader, feature, candidate, text);
    double value;
    if (!read_double(text, &value) || fabs(value) > FLT_MAX)
        return 0;
    reader->numbers[candidate * reader->columns + feature->place] = value;
    return 1;
}

/* Whether the name that comes next is that of a feature; then what follows its quotes is next. */
static int read_name(Text *text, const Ids *names, Py_ssize_t feature)
{
    if (feature >= names->items || !lies_within(names, feature))
        return 0;
    const char *name = names->text + names->ends[feature];
    Py_ssize_t length = names->ends[feature + 1] - names->ends[feature];
    if (text->end - text->at < length + 2 || *text->at != '"' || text->at[length + 1] != '"' ||
        memcmp(text->at + 1, name, (size_t)length))
        return 0;
    text->at += length + 2;
    return 1;
}

/* Read the name of a feature; NULL where it is none. As a rule it is the expected one: most
 * candidates bring the same features in the same order. */
static Feature *read_feature(Reader *reader, const Ids *names, Py_ssize_t expected, Text *text)
{
    pass_space(text);
    if (read_name(text, names, expected))
        return &reader->features[expected];
    Text name;
    if (!read_text(text, &name))
        return NULL;
    Sought sought;
    seek(names, name.at, name.end - name.at, &sought);
    int64_t row = row_of(names, &sought);
    return row == NO_ROW ? NULL : &reader->features[row];
}

static int read_array(Reader *reader, Feature *feature, Text *text)
{
    Py_ssize_t candidate = 0;
    if (read_word(text, "null"))
        return 1;
    if (!read_sign(text, '['))
        return 0;
    if (read_sign(text, ']'))
        return reader->candidates == 0;
    do {
        if (candidate == reader->candidates || !read_value(reader, feature, candidate++, text))
            return 0;
    } while (read_sign(text, ','));
    return read_sign(text, ']') && candidate == reader->candidates;
}

/* Read an object of features and nothing behind it: of one candidate, or of all (candidate < 0),
 * where each feature has an array of values. Whether all could be told. */
static int read_object(Reader *reader, const Ids *names, Py_ssize_t candidate, Text text)
{
    if (!read_sign(&text, '{'))
        return 0;
    if (read_sign(&text, '}'))
        return text.at == text.end;
    Py_ssize_t *next = &reader->first, turn = candidate < 0 ? 1 : candidate + 1;
    do {
        Feature *feature = read_feature(reader, names, *next, &text);
        if (!feature || feature->latest == turn || !read_sign(&text, ':'))
            return 0;
        *next = feature - reader->features;
        next = &feature->next;
        feature->latest = turn;
        pass_space(&text);
        if (candidate < 0 ? !read_array(reader, feature, &text)
                          : !read_value(reader, feature, candidate, &text))
            return 0;
    } while (read_sign(&text, ','));
    return read_sign(&text, '}') && text.at == text.end;
}

/* ---- what candidates bring, cut out of a body ---- */

/* Where an object lies in a body. */
typedef struct {
    int64_t start, end;
} Span;

/* The objects that features are in, in their order, and the body with {} in their place. */
typedef struct {
    Span *spans;
    Py_ssize_t count;
    char *rest;
    Py_ssize_t kept;
} Cut;

#define FEATURES "\"features\""
#define LEAST_CUT ((Py_ssize_t)sizeof FEATURES - 1 + 3) /* bytes: with a colon and two brackets */

static void keep(Cut *cut, const char *from, const char *to)
{
    memcpy(cut->rest + cut->kept, from, (size_t)(to - from));
    cut->kept += to - from;
}

/* Cut what stands behind "features" and a colon, up to the first bracket that closes: all of it,
 * where no value has such a bracket. A body without escapes is passed from text to text. 0 if a quote,
 * or an object to be cut, is not closed. */
static int cut_features(const char *body, const char *end, Cut *cut)
{
    const char *at = body, *kept = body, *close;
    while ((at = memchr(at, '"', (size_t)(end - at)))) {
        if (!(close = memchr(at + 1, '"', (size_t)(end - at - 1))))
            return 0;
        Text behind = {close + 1, end};
        int found = behind.at - at == sizeof FEATURES - 1 && !memcmp(at, FEATURES, sizeof FEATURES - 1);
        at = behind.at;
        if (!found || !read_sign(&behind, ':'))
            continue;
        pass_space(&behind);
        if (next_of(&behind) != '{')
            continue;
        if (!(close = memchr(behind.at, '}', (size_t)(end - behind.at))))
            return 0;
        keep(cut, kept, behind.at + 1);
        cut->spans[cut->count++] = (Span){behind.at - body, close + 1 - body};
        kept = close;
        at = close + 1;
    }
    keep(cut, kept, end);
    return 1;
}

#endif
