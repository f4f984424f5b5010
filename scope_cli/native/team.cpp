#include "team.h"

#include <unistd.h>

#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace scope {

using Clock = std::chrono::steady_clock;
constexpr auto SPIN = std::chrono::microseconds(20);

struct Team::Threads {
    std::vector<std::thread> all;
};

static inline void rest() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Until `place` is no longer `seen`.
static void wait_while(std::atomic<uint32_t>& place, uint32_t seen) {
    const auto until = Clock::now() + SPIN;
    do {
        for (int i = 0; i < 32; i++, rest())
            if (place.load(std::memory_order_acquire) != seen) return;
    } while (Clock::now() < until);
    place.wait(seen, std::memory_order_acquire);
}

// Into the nearer caches, as long as `place` is still `seen`.
static void fetch_while(std::atomic<uint32_t>& place, uint32_t seen, Stretch next) {
    for (size_t i = 0; i < next.bytes && place.load(std::memory_order_relaxed) == seen; i += 256)
        for (size_t line = i; line < i + 256; line += 64) __builtin_prefetch(next.at + line, 0, 2);
}

Team::Team(int threads) : threads(threads), others(new Threads), own(new Own[threads]) {
    for (int thread = 1; thread < threads; thread++) others->all.emplace_back([this, thread] { member(thread); });
}

Team::~Team() {
    ends = true;
    begun.fetch_add(1, std::memory_order_release);
    begun.notify_all();
    for (auto& thread : others->all) thread.join();
    delete others;
}

void Team::member(int thread) {
    const Flushed flushed;
    for (;;) {
        const uint32_t seen = begun.load(std::memory_order_acquire);
        if (ends) return;
        help(thread, seen);
        wait_while(begun, seen);
    }
}

void Team::run(Work& new_work) {
    const Flushed flushed;
    work = &new_work;
    phase = -1;
    over.store(false, std::memory_order_relaxed);
    begin_next();
    for (;;) {
        const uint32_t seen = begun.load(std::memory_order_acquire);
        help(0, seen);
        if (over.load(std::memory_order_acquire)) return;
        wait_while(begun, seen);
    }
}

// Does pieces until there are none. Only who has a piece may look at the work: the phase cannot end without it.
void Team::help(int thread, uint32_t seen) {
    Stretch next;
    for (int i = 0; i < threads;) {
        auto& pieces = own[(thread + i) % threads].pieces;
        const auto none = [](uint64_t some) { return (uint32_t)some >= some >> 32; };
        uint64_t some = pieces.load(std::memory_order_relaxed);
        if (none(some) || none(some = pieces.fetch_add(1, std::memory_order_acquire))) {
            i++;
            continue;
        }
        const int at = (int)(uint32_t)some;
        work->piece(phase, at, thread);
        if (i == 0) next = work->ahead(phase, thread);
        if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            begin_next();
            i = 0;
        }
    }
    fetch_while(begun, seen, next);
}

// The last stretch is not empty, so the phase does not end before all are laid out.
void Team::begin_next() {
    if (const int pieces = work->begin(++phase)) {
        left.store(pieces, std::memory_order_relaxed);
        for (int thread = 0; thread < threads; thread++) {
            const uint64_t first = first_of(thread, pieces), end = first_of(thread + 1, pieces);
            own[thread].pieces.store(end << 32 | first, std::memory_order_release);
        }
    } else {
        over.store(true, std::memory_order_release);
    }
    begun.fetch_add(1, std::memory_order_release);
    if (threads > 1) begun.notify_all();
}

struct Turn::Owner {
    const pid_t process = getpid();
    std::mutex turn;
    Team* team = nullptr;

    static Owner& here() {
        static std::atomic<Owner*> known{nullptr};
        Owner* owner = known.load();
        while (!owner || owner->process != getpid()) {
            Owner* fresh = new Owner;
            if (known.compare_exchange_strong(owner, fresh)) return *fresh;
            delete fresh;
        }
        return *owner;
    }

    Team& with(int threads) {
        turn.lock();
        if (team && team->threads != threads) {
            delete team;
            team = nullptr;
        }
        if (!team) team = new Team(threads);
        return *team;
    }
};

Turn::Turn(int threads) : owner(Owner::here()), team(owner.with(threads)) {}
Turn::~Turn() { owner.turn.unlock(); }

#if defined(__x86_64__)
Flushed::Flushed() : before(_mm_getcsr()) { _mm_setcsr((unsigned)before | 0x8040); }
Flushed::~Flushed() { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
Flushed::Flushed() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(before | 1ull << 24));
}
Flushed::~Flushed() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#else
Flushed::Flushed() : before(0) {}
Flushed::~Flushed() {}
#endif

}  // namespace scope
