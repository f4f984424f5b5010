// One product from floats to floats, by a team of threads: for a linear layer of a model whose step is not ours, and for
// the reading of a prompt.
#include <algorithm>
#include <memory>

#include "products.h"
#include "team.h"

using namespace scope;

namespace {

constexpr int ROWS_AT_ONCE = 16;       // that a thread rounds
constexpr int PIECES_OF_A_THREAD = 4;  // so that one which was interrupted holds up few

int pieces_of(int count, int size) { return (count + size - 1) / size; }

}  // namespace

void scope_product(const Weight* weight, const float* values, int64_t stride, int32_t rows, const float* bias,
                   float* out, int64_t out_stride, int32_t threads) {
    const int columns = weight->columns, groups = groups_of(weight->rows);
    const int64_t blocks = blocks_of(columns);
    const std::unique_ptr<Block[]> rounded(new Block[rows * blocks]);
    const Rows x = {rows, rounded.get(), values, stride};
    const int own = std::max(4, groups / (threads * PIECES_OF_A_THREAD) & ~3);  // groups of a piece: whole registers

    Turn turn(threads);
    turn.team.share(pieces_of(rows, ROWS_AT_ONCE), [&](int piece, int) {
        const int64_t first = (int64_t)piece * ROWS_AT_ONCE;
        const int count = std::min<int64_t>(ROWS_AT_ONCE, rows - first);
        scope_round(values + first * stride, stride, count, columns, &rounded[first * blocks]);
    });
    turn.team.share(pieces_of(groups, own), [&](int piece, int) {
        const int first = piece * own, last = std::min(first + own, groups);
        scope_multiply(weight, &x, out, out_stride, first, last);
        if (!bias) return;
        const int end = std::min(last * GROUP, weight->rows);
        for (int64_t n = 0; n < rows; n++)
            for (int i = first * GROUP; i < end; i++) out[n * out_stride + i] += bias[i];
    });
}
