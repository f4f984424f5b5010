#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "cpu.h"

using namespace scope;

const Sampling& scope::sampling() { return SCOPE_IN_USE(sampling); }

namespace {

constexpr double NO_NUMBER = std::numeric_limits<double>::quiet_NaN();
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

struct Candidate {
    float score;
    int64_t id;
};

// Scores of forbidden ids are -inf as long as it lives; the row is the model's own.
class Hidden {
   public:
    explicit Hidden(const scope_pick& asked) : asked(asked), were(asked.forbidden_count) {
        for (int64_t i = 0; i < asked.forbidden_count; i++)
            if (float* at = score(i)) {
                were[i] = *at;
                *at = NOTHING;
            }
    }
    ~Hidden() {
        for (int64_t i = asked.forbidden_count - 1; i >= 0; i--)  // one may be named twice
            if (float* at = score(i)) *at = were[i];
    }

   private:
    float* score(int64_t i) const {
        const int64_t id = asked.forbidden[i];
        return id >= 0 && id < asked.vocab ? asked.scores + id : nullptr;
    }
    const scope_pick& asked;
    std::vector<float> were;
};

std::vector<float> tops_of(const float* x, int64_t count) {
    std::vector<float> tops((count + TOPS - 1) / TOPS);
    sampling().tops(x, count, tops.data());
    return tops;
}

// The `most` highest, the highest first, and the lower id first among equals. So many stretches as there are to be
// candidates have a number that is not below the bound, so the candidates have none.
std::vector<Candidate> likeliest(const float* x, int64_t count, const std::vector<float>& tops, int64_t most) {
    float bound = NOTHING;
    if (most < (int64_t)tops.size()) {
        std::vector<float> order = tops;
        std::nth_element(order.begin(), order.begin() + most - 1, order.end(), std::greater<float>());
        bound = order[most - 1];
    }
    std::vector<Candidate> found;
    for (int64_t stretch = 0; stretch < (int64_t)tops.size(); stretch++) {
        if (tops[stretch] < bound) continue;
        const int64_t end = std::min(count, (stretch + 1) * TOPS);
        for (int64_t i = stretch * TOPS; i < end; i++)
            if (x[i] >= bound) found.push_back({x[i], i});
    }
    const auto last = found.begin() + std::min(most, (int64_t)found.size());
    std::partial_sort(found.begin(), last, found.end(), [](const Candidate& a, const Candidate& b) {
        return a.score > b.score || (a.score == b.score && a.id < b.id);
    });
    found.erase(last, found.end());
    return found;
}

// Drawn by chance from what top_p and min_p leave; negative where that may reach beyond the candidates.
int64_t draw(const scope_pick& asked, float top, const std::vector<Candidate>& candidates) {
    const int64_t count = candidates.size();
    std::vector<double> shares(count);
    double whole = 0, looked_at = 0, before = 0, kept = 0, reached = 0;
    for (int64_t i = 0; i < count; i++) {
        shares[i] = std::exp(((double)candidates[i].score - top) / asked.temperature);
        whole += shares[i];
    }
    if (asked.among_all && count < asked.vocab)
        whole = sampling().weigh(asked.scores, asked.vocab, top, (float)(1 / asked.temperature));
    for (double& share : shares) looked_at += share /= whole;
    if (asked.among_all && count < asked.vocab && looked_at < asked.top_p &&
        !(shares[count - 1] < asked.min_p * shares[0]))
        return -1;
    for (double& share : shares) {
        const double own = share;
        if (!(before < asked.top_p && own >= asked.min_p * shares[0])) share = 0;
        before += own;
        kept += share;
    }
    const double wanted = asked.chance * kept;
    for (int64_t i = 0; i < count; i++)
        if ((reached += shares[i]) > wanted) return candidates[i].id;
    return candidates[0].id;  // no chance from 0 to before 1
}

int64_t pick(const scope_pick& asked) {
    const Hidden hidden(asked);
    const std::vector<float> tops = tops_of(asked.scores, asked.vocab);
    const float top = *std::max_element(tops.begin(), tops.end());
    if (!std::isfinite(top)) return asked.vocab;
    if (!asked.temperature) {
        const float* from = asked.scores + TOPS * (std::find(tops.begin(), tops.end(), top) - tops.begin());
        return std::find(from, (const float*)asked.scores + asked.vocab, top) - asked.scores;
    }
    return draw(asked, top, likeliest(asked.scores, asked.vocab, tops, std::min(asked.top_k, asked.vocab)));
}

}  // namespace

int64_t scope_pick_one(scope_pick* asked) {
    const int64_t id = asked->known < 0 ? pick(*asked) : asked->known;
    if (id < 0) return id;
    const std::vector<float> tops = tops_of(asked->logits, asked->vocab);
    const float top = *std::max_element(tops.begin(), tops.end());
    const double whole = sampling().weigh(asked->logits, asked->vocab, top, 1);
    if (id == asked->vocab) {  // nothing may be picked
        asked->logprob = NO_NUMBER;
        return 0;
    }
    asked->logprob = (float)((double)asked->logits[id] - top - std::log(whole));
    if (asked->known < 0 && asked->scores != asked->logits && std::isnan(sampling().weigh(asked->scores, asked->vocab, 0, 1)))
        asked->logprob = NO_NUMBER;
    return id;
}
