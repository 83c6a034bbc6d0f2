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

enum { MOST_BUFFERS = 7 };

/* Release buffers, and pass on an answer, which is NULL where an exception is set. */
static PyObject *released(Py_buffer *buffers, PyObject *answer)
{
    for (int i = 0; i < MOST_BUFFERS; i++)
        PyBuffer_Release(&buffers[i]); /* nothing where it was not taken */
    return answer;
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
    Py_buffer buffers[MOST_BUFFERS] = {0}, *lengths = buffers, *order = buffers + 1, *free = buffers + 2, *placements = buffers + 3;
    long long framing, smallest, most_of_row, left = 0, token = 0;
    int best;
    if (!PyArg_ParseTuple(args, "y*y*w*LLLpw*", lengths, order, free, &framing, &smallest, &most_of_row, &best, placements))
        return released(buffers, NULL);
    Packed packed = {free->buf, free->len / 8, framing, smallest, placements->buf, 0, placements->len / 32};
    const int64_t *length = lengths->buf, *largest_first = order->buf;
    Py_ssize_t documents = lengths->len / 8, document = order->len / 8;

    for (Py_ssize_t i = 0; i < document; i++)
        left += place_best(&packed, largest_first[i], length[largest_first[i]]);
    for (Py_ssize_t i = 0; i < packed.rows && !left; i++) {
        Py_ssize_t row = best ? emptiest(&packed) : i;
        for (int64_t room = most_of_row; room > 0 && document < documents; room--) {
            int64_t rest = length[document] - token, take = most_of(rest, packed.free[row] - framing, smallest);
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
    if (packed.count <= packed.most)
        return released(buffers, Py_BuildValue("nLnL", packed.count, left, document, token));
    PyErr_Format(PyExc_ValueError, "%zd placements where room for %zd was expected", packed.count, packed.most);
    return released(buffers, NULL);
}

/* --- assemble: placements, by row, to rows */

static PyObject *assemble(PyObject *self, PyObject *args)
{
    Py_buffer buffers[MOST_BUFFERS] = {0}, *placements = buffers, *ids = buffers + 1, *offsets = buffers + 2;
    Py_buffer *prefix = buffers + 3, *suffix = buffers + 4, *grid = buffers + 5, *segments = buffers + 6;
    Py_ssize_t length;
    int pad;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*niw*w*", placements, ids, offsets, prefix, suffix, &length, &pad, grid, segments))
        return released(buffers, NULL);
    const Placement *placed = placements->buf;
    const int64_t *first_of = offsets->buf;
    Py_ssize_t count = placements->len / 32, documents = offsets->len / 8 - 1, rows = grid->len / (length * 4), number = -1;
    Py_ssize_t before = prefix->len / 4, behind = suffix->len / 4, position = length;
    int32_t *row_of = segments->buf, *start = row_of + count, *length_of = start + count, *document = length_of + count;
    int32_t *first_token = document + count, *row = grid->buf;

    if (segments->len != 5 * count * 4) {
        PyErr_SetString(PyExc_ValueError, "five numbers for each placement are expected");
        return released(buffers, NULL);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const Placement one = placed[i];
        const Py_ssize_t taken = one.stop - one.token, positions = before + taken + behind;
        if (i == 0 || one.row != placed[i - 1].row) {
            for (; position < length; position++)
                row[position] = pad;
            row = (int32_t *)grid->buf + ++number * length;
            position = 0;
        }
        if (number >= rows || one.document < 0 || one.document >= documents || one.token < 0 || taken < 0 ||
            first_of[one.document] + one.stop > ids->len / 4 || position + positions > length) {
            PyErr_Format(PyExc_IndexError, "placement %zd has no room, or not so many tokens", i);
            return released(buffers, NULL);
        }
        row_of[i] = (int32_t)number;
        start[i] = (int32_t)position;
        length_of[i] = (int32_t)positions;
        document[i] = (int32_t)one.document;
        first_token[i] = (int32_t)one.token;
        memcpy(row + position, prefix->buf, (size_t)prefix->len);
        memcpy(row + position + before, (int32_t *)ids->buf + first_of[one.document] + one.token, (size_t)taken * 4);
        memcpy(row + position + before + taken, suffix->buf, (size_t)suffix->len);
        position += positions;
    }
    for (; position < length; position++)
        row[position] = pad;
    Py_INCREF(Py_None);
    return released(buffers, Py_None);
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

static inline uint64_t number_at(Hash hash, uint64_t place)
{
    return mixed(hash, place >> 1) >> (place & 1) * 32 & UINT32_MAX;
}

typedef struct {
    const uint8_t *special; /* by id */
    Py_ssize_t vocabulary;
    const int32_t *drawable;
    uint64_t drawable_count;
    Hash order, lots, replacements;
    double rate, mask_share, random_share;
    int32_t mask_id;
    Py_ssize_t length, slots;
    uint32_t random_bits; /* those of a key that are not its position */
    uint32_t *keys, *scratch;
    uint8_t *maskable; /* of the positions of a row, as the two before: room for one row */
} Masking;

enum { BIN_BITS = 8, BINS = 1 << BIN_BITS, IGNORED = -100 };

static int ascending(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

/* The key of a rank, from 0, among the maskable ones; `bins` has their numbers by their first bits. */
static uint32_t key_of_rank(const Masking *m, Py_ssize_t filled, const uint32_t *bins, uint32_t rank)
{
    uint32_t bin = 0;
    size_t found = 0;
    for (; rank >= bins[bin]; bin++)
        rank -= bins[bin];
    for (Py_ssize_t i = 0; i < filled; i++) {
        m->scratch[found] = m->keys[i];
        found += m->maskable[i] & (m->keys[i] >> (32 - BIN_BITS) == bin);
    }
    qsort(m->scratch, found, sizeof *m->scratch, ascending);
    return m->scratch[rank];
}

/* Mask a row, of which so many positions are filled, and whose first is this place; returns whether its ids are known. */
static int mask_row(const Masking *m, int32_t *ids, Py_ssize_t filled, uint64_t place, int32_t *positions, int32_t *labels)
{
    uint32_t bins[BINS] = {0}, maskable = 0;
    for (Py_ssize_t pair = 0; pair <= filled / 2; pair++) {
        const uint64_t two = mixed(m->order, (place >> 1) + (uint64_t)pair);
        memcpy(m->scratch + 2 * pair, &two, sizeof two);
    }
    for (Py_ssize_t i = 0; i < filled; i++) {
        if (ids[i] < 0 || ids[i] >= m->vocabulary)
            return 0;
        m->keys[i] = (m->scratch[i + (Py_ssize_t)(place & 1)] & m->random_bits) | (uint32_t)i;
        m->maskable[i] = !m->special[ids[i]];
        bins[m->keys[i] >> (32 - BIN_BITS)] += m->maskable[i];
        maskable += m->maskable[i];
    }
    const double wanted = rint(m->rate * maskable);
    const Py_ssize_t budget = wanted < (double)m->slots ? (Py_ssize_t)wanted : m->slots;
    if (budget) {
        const uint32_t last = key_of_rank(m, filled, bins, (uint32_t)budget - 1);
        size_t chosen = 0;
        for (Py_ssize_t i = 0; i < filled; i++) {
            m->scratch[chosen] = (uint32_t)i;
            chosen += m->maskable[i] & (m->keys[i] <= last);
        }
    }
    for (Py_ssize_t slot = 0; slot < budget; slot++) {
        const uint32_t i = m->scratch[slot];
        const double lot = (double)number_at(m->lots, place + i) * 0x1p-32;
        positions[slot] = (int32_t)i;
        labels[slot] = ids[i];
        if (lot < m->mask_share)
            ids[i] = m->mask_id;
        else if (lot < m->mask_share + m->random_share)
            ids[i] = m->drawable[number_at(m->replacements, place + i) * m->drawable_count >> 32];
    }
    for (Py_ssize_t slot = budget; slot < m->slots; slot++) {
        positions[slot] = 0;
        labels[slot] = IGNORED;
    }
    return 1;
}

static PyObject *mask_tokens(PyObject *self, PyObject *args)
{
    Py_buffer buffers[MOST_BUFFERS] = {0}, *input_ids = buffers, *filled = buffers + 1, *special = buffers + 2;
    Py_buffer *drawable = buffers + 3, *label_positions = buffers + 4, *labels = buffers + 5;
    Masking m = {0};
    Py_ssize_t first_row, row = 0;
    int known = 1;
    if (!PyArg_ParseTuple(args, "w*y*y*y*(KK)(KK)(KK)nndiddw*w*", input_ids, filled, special, drawable, &m.order.state,
                          &m.order.step, &m.lots.state, &m.lots.step, &m.replacements.state, &m.replacements.step, &first_row,
                          &m.length, &m.rate, &m.mask_id, &m.mask_share, &m.random_share, label_positions, labels))
        return released(buffers, NULL);
    const Py_ssize_t rows = filled->len / 4;
    const int32_t *filled_of = filled->buf;
    m.special = special->buf;
    m.vocabulary = special->len;
    m.drawable = drawable->buf;
    m.drawable_count = (uint64_t)drawable->len / 4;
    m.slots = rows ? labels->len / (rows * 4) : 0;
    int fit = input_ids->len == rows * m.length * 4 && labels->len == rows * m.slots * 4 && label_positions->len == labels->len;
    for (Py_ssize_t i = 0; i < rows; i++)
        fit &= 0 <= filled_of[i] && filled_of[i] <= m.length;
    fit &= m.drawable_count > 0 || m.random_share <= 0;
    if (!fit || m.rate > 1) {
        PyErr_SetString(PyExc_ValueError, "rows of one length, as many of labels, a rate and something to draw are expected");
        return released(buffers, NULL);
    }
    uint64_t positions = 1;
    while (positions < (uint64_t)m.length)
        positions *= 2;
    m.random_bits = (uint32_t)(((uint64_t)1 << 32) - positions);
    m.keys = PyMem_Malloc((size_t)m.length * 9 + 8);
    if (m.keys == NULL) {
        PyErr_NoMemory();
        return released(buffers, NULL);
    }
    m.scratch = m.keys + m.length;
    m.maskable = (uint8_t *)(m.scratch + m.length + 2);
    Py_BEGIN_ALLOW_THREADS;
    for (; row < rows && known; row++)
        known = mask_row(&m, (int32_t *)input_ids->buf + row * m.length, filled_of[row], (uint64_t)((first_row + row) * m.length),
                         (int32_t *)label_positions->buf + row * m.slots, (int32_t *)labels->buf + row * m.slots);
    Py_END_ALLOW_THREADS;
    PyMem_Free(m.keys);
    if (!known) {
        PyErr_Format(PyExc_IndexError, "row %zd has an id outside of the vocabulary of %zd", first_row + row - 1, m.vocabulary);
        return released(buffers, NULL);
    }
    Py_INCREF(Py_None);
    return released(buffers, Py_None);
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
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", 2) < 0)
        Py_CLEAR(module);
    return module;
}
