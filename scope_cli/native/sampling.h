// How a lane's next token is picked, over all numbers of a row; engine/sampling.py says what it has to come to.
#pragma once
#include <cstdint>

namespace scope {

constexpr int TOPS = 64;  // numbers that share one largest

struct Sampling {
    // The largest of each TOPS numbers, -inf where none is one.
    void (*tops)(const float* x, long count, float* out);
    // Sum of e to the (x - top) * factor; no number where any is none.
    double (*weigh)(const float* x, long count, float top, float factor);
};

extern const Sampling sampling_plain, sampling_avx2, sampling_avx512;
const Sampling& sampling();  // with the instructions in use

}  // namespace scope

extern "C" {

struct scope_pick {
    const float* logits;       // [vocab], the model's own
    float* scores;             // [vocab], as the settings change them; may be the same
    const int64_t* forbidden;  // [forbidden_count], ids; those beyond the vocabulary count as none
    int64_t vocab, forbidden_count;
    int64_t known;             // an id that was picked before, or negative
    int64_t top_k;             // that are looked at
    int64_t among_all;         // shares are of the whole vocabulary, not of those
    double temperature;        // 0: the highest score
    double top_p, min_p;
    double chance;             // from 0 to 1
    double logprob;            // out: under the model's own distribution; no number where any was none
};

// The id; negative where those that are looked at hold too little of the whole.
int64_t scope_pick_one(scope_pick* asked);
}
