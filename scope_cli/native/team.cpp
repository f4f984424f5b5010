#include "team.h"

#include <unistd.h>

#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
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

Team::Team(int threads) : threads(threads), others(new Threads) {
    for (int thread = 1; thread < threads; thread++) others->all.emplace_back([this, thread] { member(thread); });
}

Team::~Team() {
    ends = true;
    started.fetch_add(1, std::memory_order_release);
    started.notify_all();
    for (auto& thread : others->all) thread.join();
    delete others;
}

void Team::member(int thread) {
    const Flushed flushed;
    for (uint32_t seen = 0;; seen++) {
        wait_while(started, seen);
        if (ends) return;
        work(with, thread);
        meet(phase.load(std::memory_order_relaxed));
    }
}

void Team::run_raw(Raw new_work, void* new_with) {
    const Flushed flushed;
    work = new_work;
    with = new_with;
    if (threads > 1) {
        started.fetch_add(1, std::memory_order_release);
        started.notify_all();
    }
    work(with, 0);
    meet(phase.load(std::memory_order_relaxed));
}

// The last one to come opens the next phase, `now` + 1.
void Team::meet(uint32_t now) {
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
        next.store(0, std::memory_order_relaxed);
        arrived.store(0, std::memory_order_relaxed);
        phase.store(now + 1, std::memory_order_release);
        if (threads > 1) phase.notify_all();
        return;
    }
    wait_while(phase, now);
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
