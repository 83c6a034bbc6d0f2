/* The inner loops of packing.py and masking.py, which do the same with numpy where this is not compiled. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "two numbers are cut from 64 bits as a little-endian processor has them"
#endif

static int has_bytes(const Py_buffer *buffer, Py_ssize_t count, size_t size)
{
    if (buffer->len == count * (Py_ssize_t)size)
        return 1;
    PyErr_Format(PyExc_ValueError, "a buffer of %zd bytes where %zd x %zu were expected", buffer->len, count, size);
    return 0;
}

/* --- place: documents in rows, by best fit and then in order */

typedef struct {
    int64_t row, document, token, stop;
} Placement;

typedef struct {
    int64_t *free; /* positions of each row */
    Py_ssize_t rows;
    int64_t framing, smallest;
    Placement *placed;
    Py_ssize_t count, most;
} Packed;

static void put(Packed *packed, Py_ssize_t row, int64_t document, int64_t token, int64_t stop)
{
    if (packed->count < packed->most)
        packed->placed[packed->count] = (Placement){row, document, token, stop};
    packed->count++;
    packed->free[row] -= stop - token + packed->framing;
}

/* How many of the `rest` tokens of a document to place: all, a fragment that leaves another, or none. */
static int64_t most_of(int64_t rest, int64_t room, int64_t smallest)
{
    int64_t take = room < rest - smallest ? room : rest - smallest;
    return rest <= room ? rest : take >= smallest ? take : 0;
}

/* The first of the fullest rows with room, or -1. */
static Py_ssize_t fullest_with_room(const Packed *packed, int64_t positions)
{
    int64_t least = INT64_MAX;
    Py_ssize_t found = -1;
    for (Py_ssize_t row = 0; row < packed->rows; row++)
        if (packed->free[row] >= positions && packed->free[row] < least)
            least = packed->free[found = row];
    return found;
}

/* The last of the emptiest rows. */
static Py_ssize_t emptiest(const Packed *packed)
{
    Py_ssize_t found = 0;
    for (Py_ssize_t row = 1; row < packed->rows; row++)
        if (packed->free[row] >= packed->free[found])
            found = row;
    return found;
}

/* Place a document in the fullest row with room, or in parts where none has; returns the tokens that are left of it. */
static int64_t place_best(Packed *packed, int64_t document, int64_t length)
{
    const int64_t framing = packed->framing, smallest = packed->smallest;
    int64_t token = 0;
    Py_ssize_t row;
    while ((row = fullest_with_room(packed, length - token + framing)) < 0) {
        row = emptiest(packed);
        int64_t room = packed->free[row] - framing, take = most_of(length - token, room, smallest), gap = room - take;
        if (room <= 0 || take == 0)
            return length - token;
        if (0 < gap && gap < smallest + framing) { /* a larger one can be filled by a fragment */
            take -= smallest + framing - gap;
            take = take < smallest ? smallest : take;
        }
        put(packed, row, document, token, token + take);
        token += take;
    }
    put(packed, row, document, token, length);
    return 0;
}

static PyObject *place(PyObject *self, PyObject *args)
{
    Py_buffer lengths, order, free_rows, placements;
    Packed packed = {0};
    long long framing, smallest, most_of_row, left = 0, token = 0;
    int best;
    PyObject *answer = NULL;
    if (!PyArg_ParseTuple(args, "y*y*w*LLLpw*", &lengths, &order, &free_rows, &framing, &smallest, &most_of_row, &best,
                          &placements))
        return NULL;
    packed = (Packed){free_rows.buf, free_rows.len / 8, framing, smallest, placements.buf, 0,
                      placements.len / (Py_ssize_t)sizeof(Placement)};
    const int64_t *length = lengths.buf;
    Py_ssize_t documents = lengths.len / 8, document = order.len / 8;
    for (Py_ssize_t i = 0; i < document; i++)
        left += place_best(&packed, ((int64_t *)order.buf)[i], length[((int64_t *)order.buf)[i]]);
    for (Py_ssize_t i = 0; i < packed.rows && !left; i++) {
        Py_ssize_t row = best ? emptiest(&packed) : i;
        for (int64_t room = most_of_row; room > 0 && document < documents; room--) {
            int64_t rest = length[document] - token;
            int64_t take = most_of(rest, packed.free[row] - framing, smallest);
            if (take == 0)
                break;
            put(&packed, row, document, token, token + take);
            token += take;
            if (take < rest)
                break;
            document++;
            token = 0;
        }
        packed.free[row] = -1;
    }
    if (packed.count > packed.most)
        PyErr_Format(PyExc_ValueError, "%zd placements where room for %zd was expected", packed.count, packed.most);
    else
        answer = Py_BuildValue("nLnL", packed.count, left, document, token);
    PyBuffer_Release(&lengths);
    PyBuffer_Release(&order);
    PyBuffer_Release(&free_rows);
    PyBuffer_Release(&placements);
    return answer;
}

/* --- assemble: placements to rows */

/* Order placements by row, as stable as they are; returns the number of rows with any, and numbers them in `number`. */
static Py_ssize_t by_row(const Placement *placed, Py_ssize_t count, Py_ssize_t rows, Py_ssize_t *order, Py_ssize_t *number)
{
    Py_ssize_t *next = number, filled = 0, first = 0;
    memset(next, 0, (size_t)rows * sizeof *next);
    for (Py_ssize_t i = 0; i < count; i++)
        next[placed[i].row]++;
    for (Py_ssize_t row = 0; row < rows; row++) {
        Py_ssize_t of_row = next[row];
        next[row] = first;
        first += of_row;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        order[next[placed[i].row]++] = i;
    for (Py_ssize_t row = 0, before = 0; row < rows; row++) {
        Py_ssize_t stop = next[row];
        number[row] = stop > before ? filled++ : filled;
        before = stop;
    }
    return filled;
}

static PyObject *assemble(PyObject *self, PyObject *args)
{
    Py_buffer placements, ids, offsets, prefix, suffix, input_ids, segments;
    Py_ssize_t length;
    int pad;
    PyObject *answer = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*niw*w*", &placements, &ids, &offsets, &prefix, &suffix, &length, &pad, &input_ids,
                          &segments))
        return NULL;
    const Placement *placed = placements.buf;
    const int64_t *first_of = offsets.buf;
    const int32_t *tokens = ids.buf;
    Py_ssize_t count = placements.len / (Py_ssize_t)sizeof *placed, documents = offsets.len / 8 - 1;
    Py_ssize_t rows = input_ids.len / (length * 4), before = prefix.len / 4, behind = suffix.len / 4;
    Py_ssize_t *order = malloc((size_t)(count + rows + 1) * sizeof *order), filled, position = 0, last = -1;
    int32_t *row_of = segments.buf, *start_of = row_of + count, *length_of = start_of + count;
    int32_t *document_of = length_of + count, *token_of = document_of + count, *row = NULL;

    if (order == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (!has_bytes(&segments, 5 * count, 4) || !has_bytes(&input_ids, rows * length, 4))
        goto done;
    for (Py_ssize_t i = 0; i < count; i++)
        if (placed[i].row < 0 || placed[i].row >= rows || placed[i].document < 0 || placed[i].document >= documents ||
            placed[i].token < 0 || placed[i].stop < placed[i].token ||
            first_of[placed[i].document] + placed[i].stop > ids.len / 4) {
            PyErr_Format(PyExc_IndexError, "placement %zd is of no row or no token", i);
            goto done;
        }
    filled = by_row(placed, count, rows, order, order + count);
    for (Py_ssize_t i = 0; i < count; i++) {
        Placement one = placed[order[i]];
        Py_ssize_t taken = one.stop - one.token, positions = before + taken + behind;
        if (one.row != last) {
            for (; row != NULL && position < length; position++)
                row[position] = pad;
            row = (int32_t *)input_ids.buf + order[count + one.row] * length;
            position = 0;
            last = one.row;
        }
        if (position + positions > length) {
            PyErr_Format(PyExc_IndexError, "the placements of row %zd have more than %zd positions", last, length);
            goto done;
        }
        row_of[i] = (int32_t)order[count + one.row];
        start_of[i] = (int32_t)position;
        length_of[i] = (int32_t)positions;
        document_of[i] = (int32_t)one.document;
        token_of[i] = (int32_t)one.token;
        memcpy(row + position, prefix.buf, (size_t)prefix.len);
        memcpy(row + position + before, tokens + first_of[one.document] + one.token, (size_t)taken * 4);
        memcpy(row + position + before + taken, suffix.buf, (size_t)suffix.len);
        position += positions;
    }
    for (; row != NULL && position < length; position++)
        row[position] = pad;
    answer = PyLong_FromSsize_t(filled);
done:
    free(order);
    PyBuffer_Release(&placements);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&suffix);
    PyBuffer_Release(&input_ids);
    PyBuffer_Release(&segments);
    return answer;
}

/* --- mask_tokens: which tokens of each row are masked, and what replaces them */

typedef struct {
    unsigned long long state, step;
} Hash; /* one purpose of randomness.Hashed */

static inline uint64_t mixed(Hash hash, uint64_t count)
{
    uint64_t z = count * hash.step + hash.state;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static inline uint32_t number_at(Hash hash, uint64_t place)
{
    return (uint32_t)(mixed(hash, place >> 1) >> (place & 1) * 32);
}

enum { BIN_BITS = 8, BINS = 1 << BIN_BITS };

static int ascending(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

/* The key of a rank, from 0, among keys of which `bins` has the numbers by their first bits; `scratch` has room for them. */
static uint32_t key_of_rank(const uint32_t *keys, const uint8_t *maskable, Py_ssize_t length, const uint32_t *bins,
                            uint32_t rank, uint32_t *scratch)
{
    uint32_t bin = 0;
    size_t found = 0;
    for (; rank >= bins[bin]; bin++)
        rank -= bins[bin];
    for (Py_ssize_t i = 0; i < length; i++) {
        scratch[found] = keys[i];
        found += maskable[i] & (keys[i] >> (32 - BIN_BITS) == bin);
    }
    qsort(scratch, found, sizeof *scratch, ascending);
    return scratch[rank];
}

static PyObject *mask_tokens(PyObject *self, PyObject *args)
{
    Py_buffer input_ids, filled, special, drawable, label_positions, labels;
    Hash order, lots, replacements;
    Py_ssize_t first_row, length, slots;
    double rate, mask_share, random_share;
    int mask_id;
    uint32_t *keys = NULL;
    PyObject *answer = NULL;
    if (!PyArg_ParseTuple(args, "w*y*y*y*(KK)(KK)(KK)nndiddw*w*", &input_ids, &filled, &special, &drawable, &order.state,
                          &order.step, &lots.state, &lots.step, &replacements.state, &replacements.step, &first_row, &length,
                          &rate, &mask_id, &mask_share, &random_share, &label_positions, &labels))
        return NULL;
    Py_ssize_t rows = filled.len / 4, outside = -1;
    slots = rows ? labels.len / (rows * 4) : 0;
    if (!has_bytes(&input_ids, rows * length, 4) || !has_bytes(&labels, rows * slots, 4) ||
        !has_bytes(&label_positions, rows * slots, 4))
        goto done;
    keys = malloc((size_t)(2 * length + 4) * sizeof *keys + (size_t)length);
    if (keys == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    uint32_t *scratch = keys + length + 2;
    uint8_t *maskable = (uint8_t *)(scratch + length + 2);
    uint32_t position_bits = 0;
    while ((length - 1) >> position_bits)
        position_bits++;
    const uint32_t random_bits = (uint32_t)(((uint64_t)1 << 32) - ((uint64_t)1 << position_bits));

    Py_BEGIN_ALLOW_THREADS for (Py_ssize_t r = 0; r < rows && outside < 0; r++)
    {
        int32_t *ids = (int32_t *)input_ids.buf + r * length;
        int32_t *positions = (int32_t *)label_positions.buf + r * slots, *values = (int32_t *)labels.buf + r * slots;
        const Py_ssize_t fill = ((const int32_t *)filled.buf)[r];
        const uint64_t place = (uint64_t)((first_row + r) * length);
        uint32_t bins[BINS] = {0}, count = 0;
        for (Py_ssize_t pair = 0; pair <= fill / 2; pair++) {
            const uint64_t two = mixed(order, (place >> 1) + (uint64_t)pair);
            memcpy(scratch + 2 * pair, &two, sizeof two);
        }
        for (Py_ssize_t i = 0; i < fill; i++) {
            if (ids[i] < 0 || ids[i] >= special.len) {
                outside = r;
                break;
            }
            keys[i] = (scratch[i + (Py_ssize_t)(place & 1)] & random_bits) | (uint32_t)i;
            maskable[i] = !((const uint8_t *)special.buf)[ids[i]];
            bins[keys[i] >> (32 - BIN_BITS)] += maskable[i];
            count += maskable[i];
        }
        const double wanted = rint(rate * count);
        const uint32_t budget = wanted < (double)slots ? (uint32_t)wanted : (uint32_t)slots;
        Py_ssize_t slot = 0;
        if (budget && outside < 0) {
            const uint32_t last = key_of_rank(keys, maskable, fill, bins, budget - 1, scratch);
            size_t chosen = 0;
            for (Py_ssize_t i = 0; i < fill; i++) {
                scratch[chosen] = (uint32_t)i;
                chosen += maskable[i] & (keys[i] <= last);
            }
            for (; slot < budget; slot++) {
                const uint32_t i = scratch[slot];
                const double lot = number_at(lots, place + i) * 0x1p-32;
                positions[slot] = (int32_t)i;
                values[slot] = ids[i];
                if (lot < mask_share)
                    ids[i] = mask_id;
                else if (lot < mask_share + random_share)
                    ids[i] = ((const int32_t *)drawable.buf)[number_at(replacements, place + i) * (drawable.len / 4) >> 32];
            }
        }
        for (; slot < slots; slot++) {
            positions[slot] = 0;
            values[slot] = -100;
        }
    }
    Py_END_ALLOW_THREADS
    if (outside >= 0)
        PyErr_Format(PyExc_IndexError, "row %zd has an id outside of the vocabulary of %zd", first_row + outside, special.len);
    else
        answer = Py_NewRef(Py_None);
done:
    free(keys);
    PyBuffer_Release(&input_ids);
    PyBuffer_Release(&filled);
    PyBuffer_Release(&special);
    PyBuffer_Release(&drawable);
    PyBuffer_Release(&label_positions);
    PyBuffer_Release(&labels);
    return answer;
}

static PyMethodDef functions[] = {
    {"place", place, METH_VARARGS, NULL},
    {"assemble", assemble, METH_VARARGS, NULL},
    {"mask_tokens", mask_tokens, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", 1) < 0)
        Py_CLEAR(module);
    return module;
}
