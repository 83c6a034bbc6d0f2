/* The inner loops of packing.py, masking.py and batches.py, which do the same without them where this is not compiled. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "two numbers are cut from 64 bits as a little-endian processor has them"
#endif

enum { MOST_BUFFERS = 8 };

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

/* What masks a row, and room for one. */
typedef struct {
    const uint8_t *special; /* by id */
    Py_ssize_t vocabulary;
    const int32_t *drawable;
    uint64_t drawable_count;
    Hash order, lots, replacements;
    double rate;
    uint64_t mask_below, random_below; /* numbers of lots, of 32 bits */
    int32_t mask_id;
    Py_ssize_t slots;
    uint32_t random_bits; /* those of a key that are not its position */
    uint32_t *keys, *chosen, *in_bin;
    uint8_t *maskable;
} Masking;

enum { BIN_BITS = 8, BINS = 1 << BIN_BITS, IGNORED = -100 };

static int ascending(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

/* Draw the keys of a row whose first place is this one, and count the maskable ones by their first bits; -1 for a strange id. */
static Py_ssize_t draw_keys(const Masking *m, const int32_t *ids, Py_ssize_t filled, uint64_t place, uint32_t *bins)
{
    const Py_ssize_t vocabulary = m->vocabulary;
    const uint8_t *const special = m->special;
    const uint32_t random_bits = m->random_bits;
    uint32_t *const numbers = m->chosen, *const drawn = numbers + (place & 1); /* until positions are chosen, there is room */
    uint32_t *restrict keys = m->keys;
    uint8_t *restrict maskable = m->maskable;
    Py_ssize_t count = 0;
    for (Py_ssize_t pair = 0; pair <= filled / 2; pair++) {
        const uint64_t two = mixed(m->order, (place >> 1) + (uint64_t)pair);
        memcpy(numbers + 2 * pair, &two, sizeof two);
    }
    for (Py_ssize_t i = 0; i < filled; i++) {
        const int32_t id = ids[i];
        if (id < 0 || id >= vocabulary)
            return -1;
        const uint32_t key = (drawn[i] & random_bits) | (uint32_t)i;
        const uint8_t is_maskable = !special[id];
        keys[i] = key;
        maskable[i] = is_maskable;
        bins[key >> (32 - BIN_BITS)] += is_maskable;
        count += is_maskable;
    }
    return count;
}

/* Choose the positions of the least maskable keys, so many of them, and perhaps a few more: returns how many, and the last key. */
static Py_ssize_t choose(const Masking *m, Py_ssize_t filled, const uint32_t *bins, uint32_t budget, uint32_t *last)
{
    uint32_t bin = 0, rank = budget - 1;
    Py_ssize_t count = 0, found = 0;
    for (; rank >= bins[bin]; bin++)
        rank -= bins[bin];
    for (Py_ssize_t i = 0; i < filled; i++) {
        m->chosen[count] = (uint32_t)i;
        count += m->maskable[i] & (m->keys[i] >> (32 - BIN_BITS) <= bin);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        m->in_bin[found] = m->keys[m->chosen[i]];
        found += m->in_bin[found] >> (32 - BIN_BITS) == bin;
    }
    qsort(m->in_bin, (size_t)found, sizeof *m->in_bin, ascending);
    *last = m->in_bin[rank];
    return count;
}

/* Mask a row, of which so many positions are filled, and whose first is this place; returns whether its ids are known. */
static int mask_row(const Masking *m, const int32_t *ids, Py_ssize_t filled, uint64_t place, int32_t *shown, int32_t *positions,
                    int32_t *labels)
{
    uint32_t bins[BINS] = {0}, last = 0;
    const Py_ssize_t maskable = draw_keys(m, ids, filled, place, bins);
    if (maskable < 0)
        return 0;
    const double wanted = rint(m->rate * (double)maskable);
    const Py_ssize_t budget = wanted < (double)m->slots ? (Py_ssize_t)wanted : m->slots;
    const Py_ssize_t count = budget ? choose(m, filled, bins, (uint32_t)budget, &last) : 0;
    uint32_t *const random = m->in_bin; /* positions, since the last key is known */
    Py_ssize_t slot = 0, randoms = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        const uint32_t i = m->chosen[at];
        if (m->keys[i] > last)
            continue;
        const uint64_t lot = number_at(m->lots, place + i);
        positions[slot] = (int32_t)i;
        labels[slot++] = ids[i];
        shown[i] = lot < m->mask_below ? m->mask_id : ids[i];
        random[randoms] = i;
        randoms += (m->mask_below <= lot) & (lot < m->random_below);
    }
    for (Py_ssize_t at = 0; at < randoms; at++) /* by themselves: each waits for its part of a large table */
        shown[random[at]] = m->drawable[number_at(m->replacements, place + random[at]) * m->drawable_count >> 32];
    for (; slot < m->slots; slot++) {
        positions[slot] = 0;
        labels[slot] = IGNORED;
    }
    return 1;
}

/* For PyArg_ParseTuple: rows that need not follow upon each other. */
static int rows_of(PyObject *object, void *buffer)
{
    return PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE | PyBUF_STRIDES) == 0;
}

static int32_t *row_at(const Py_buffer *rows, Py_ssize_t row)
{
    return (int32_t *)((char *)rows->buf + row * rows->strides[0]);
}

static PyObject *mask_tokens(PyObject *self, PyObject *args)
{
    Py_buffer buffers[MOST_BUFFERS] = {0}, *input_ids = buffers, *filled = buffers + 1, *special = buffers + 2;
    Py_buffer *drawable = buffers + 3, *shown = buffers + 4, *positions = buffers + 5, *labels = buffers + 6;
    Masking m = {0};
    Py_ssize_t first_row, row = 0;
    double mask_share, random_share;
    int known = 1;
    if (!PyArg_ParseTuple(args, "y*y*y*y*(KK)(KK)(KK)ndiddO&O&O&", input_ids, filled, special, drawable, &m.order.state,
                          &m.order.step, &m.lots.state, &m.lots.step, &m.replacements.state, &m.replacements.step, &first_row,
                          &m.rate, &m.mask_id, &mask_share, &random_share, rows_of, shown, rows_of, positions, rows_of, labels))
        return released(buffers, NULL);
    const Py_ssize_t rows = filled->len / 4, length = shown->ndim == 2 ? shown->shape[1] : -1;
    const int32_t *filled_of = filled->buf;
    m.special = special->buf;
    m.vocabulary = special->len;
    m.drawable = drawable->buf;
    m.drawable_count = (uint64_t)drawable->len / 4;
    m.mask_below = (uint64_t)ceil(mask_share * 0x1p32);
    m.random_below = (uint64_t)ceil((mask_share + random_share) * 0x1p32);
    int fit = input_ids->len == rows * length * 4 && 0 <= m.rate && m.rate <= 1 && (m.drawable_count > 0 || random_share <= 0);
    for (Py_buffer *made = shown; made <= labels; made++)
        fit = fit && made->ndim == 2 && made->shape[0] == rows && made->itemsize == 4 && made->strides[1] == 4;
    for (Py_ssize_t i = 0; i < rows; i++)
        fit &= 0 <= filled_of[i] && filled_of[i] <= length;
    if (!fit || positions->shape[1] != labels->shape[1]) {
        PyErr_SetString(PyExc_ValueError, "rows of one length, as many of labels, a rate and something to draw are expected");
        return released(buffers, NULL);
    }
    m.slots = labels->shape[1];
    uint64_t places = 1;
    while (places < (uint64_t)length)
        places *= 2;
    m.random_bits = (uint32_t)(((uint64_t)1 << 32) - places);
    m.keys = PyMem_Malloc((size_t)length * 13 + 8);
    if (m.keys == NULL) {
        PyErr_NoMemory();
        return released(buffers, NULL);
    }
    m.in_bin = m.keys + length;
    m.chosen = m.in_bin + length;
    m.maskable = (uint8_t *)(m.chosen + length + 2);
    Py_BEGIN_ALLOW_THREADS;
    for (; row < rows && known; row++) {
        const int32_t *ids = (const int32_t *)input_ids->buf + row * length;
        memcpy(row_at(shown, row), ids, (size_t)length * 4);
        known = mask_row(&m, ids, filled_of[row], (uint64_t)((first_row + row) * length), row_at(shown, row),
                         row_at(positions, row), row_at(labels, row));
    }
    Py_END_ALLOW_THREADS;
    PyMem_Free(m.keys);
    if (!known) {
        PyErr_Format(PyExc_IndexError, "row %zd has an id outside of the vocabulary of %zd", first_row + row - 1, m.vocabulary);
        return released(buffers, NULL);
    }
    Py_INCREF(Py_None);
    return released(buffers, Py_None);
}

/* --- fill_batch: neighbouring records to the tensors of a micro-batch */

static PyObject *fill_batch(PyObject *self, PyObject *args)
{
    Py_buffer buffers[MOST_BUFFERS] = {0}, *records = buffers, *starts = buffers + 1, *input_ids = buffers + 2;
    Py_buffer *position_ids = buffers + 3, *cu_seq_lens = buffers + 4, *label_positions = buffers + 5, *labels = buffers + 6;
    Py_buffer *sources = buffers + 7;
    Py_ssize_t first, size, length, slots;
    int pad;
    if (!PyArg_ParseTuple(args, "y*y*nnnniw*w*w*w*w*w*", records, starts, &first, &size, &length, &slots, &pad, input_ids,
                          position_ids, cu_seq_lens, label_positions, labels, sources))
        return released(buffers, NULL);
    int fit = first >= 0 && size >= 0 && length > 0 && slots >= 0;
    const Py_ssize_t width = length + 2 * slots + 1, rows = fit ? records->len / (width * 4) : 0, segments = starts->len / 4;
    const Py_ssize_t positions = size * length, edges = cu_seq_lens->len / 4;
    const int32_t *start = starts->buf;
    fit = fit && rows <= size && (segments > 0 ? start[0] == first : rows == 0) && segments + size - rows < edges;
    for (Py_ssize_t i = 1; i < segments; i++)
        fit = fit && start[i - 1] <= start[i] && start[i] < first + rows * length;
    fit = fit && input_ids->len == positions * 8 && position_ids->len == positions * 8;
    for (Py_buffer *made = label_positions; made <= sources; made++)
        fit = fit && made->len == size * slots * 8;
    if (!fit) {
        PyErr_SetString(PyExc_ValueError, "records, where their segments begin, and room for a batch are expected");
        return released(buffers, NULL);
    }
    int64_t *id = input_ids->buf, *position = position_ids->buf;
    int64_t *labelled = label_positions->buf, *label = labels->buf, *source = sources->buf;
    for (Py_ssize_t row = 0; row < size; row++) {
        const int32_t *record = row < rows ? (const int32_t *)records->buf + row * width : NULL; /* or padding without labels */
        for (Py_ssize_t i = 0; i < length; i++)
            *id++ = record ? record[i] : pad;
        for (Py_ssize_t i = 0; i < slots; i++) {
            *labelled++ = row * length + (record ? record[length + i] : 0);
            *label++ = record ? record[length + slots + i] : IGNORED;
            *source++ = record ? record[width - 1] : 0;
        }
    }
    int32_t *edge = cu_seq_lens->buf;
    for (Py_ssize_t i = 0; i < edges; i++) /* those of segments, of rows of padding, and the last one again */
        edge[i] = (int32_t)(i < segments ? start[i] - first : i - segments < size - rows ? (rows + i - segments) * length : positions);
    for (Py_ssize_t i = 1; i < edges; i++)
        for (int64_t token = 0; token < edge[i] - edge[i - 1]; token++)
            *position++ = token;
    Py_INCREF(Py_None);
    return released(buffers, Py_None);
}

static PyMethodDef functions[] = {
    {"place", place, METH_VARARGS, NULL},
    {"assemble", assemble, METH_VARARGS, NULL},
    {"mask_tokens", mask_tokens, METH_VARARGS, NULL},
    {"fill_batch", fill_batch, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", 4) < 0)
        Py_CLEAR(module);
    return module;
}
