// One team of threads for the life of a run: work in pieces, shared out by a counter.
//
// A phase is over when all of its pieces are done. Who waits spins for some 20 microseconds and then sleeps, so that
// other work on the machine costs its share of the time and no more; a thread that was interrupted holds up the one
// piece that it has begun. Denormal numbers count as zero on every thread of a team while it works.
#pragma once
#include <atomic>
#include <cstdint>

namespace scope {

class Team {
   public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;

    const int threads;

    // Runs work(thread) on every thread, the caller's being number 0; returns when all are done.
    template <class Work>
    void run(const Work& work) {
        run_raw([](void* it, int thread) { (*(const Work*)it)(thread); }, (void*)&work);
    }

    // By every thread inside `run`: does the pieces from 0 to before `pieces`, whoever comes first, and waits for the last.
    template <class Piece>
    void share(int pieces, const Piece& piece) {
        const uint32_t now = phase.load(std::memory_order_relaxed);
        for (int at; (at = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) piece(at);
        meet(now);
    }

   private:
    using Raw = void (*)(void*, int);
    void run_raw(Raw work, void* with);
    void member(int thread);
    void meet(uint32_t now);

    struct Threads;
    Threads* others;
    Raw work = nullptr;
    void* with = nullptr;
    bool ends = false;
    alignas(64) std::atomic<uint32_t> started{0};  // runs so far
    alignas(64) std::atomic<int> next{0};          // piece
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};
};

// The team of this process with so many threads, and the right to use it: calls from several Python threads take turns.
//
// A process that was forked has none of the threads; it leaves the team behind and makes its own.
class Turn {
   public:
    explicit Turn(int threads);
    ~Turn();
    Turn(const Turn&) = delete;

   private:
    struct Owner;
    Owner& owner;

   public:
    Team& team;
};

// Denormals count as zero as long as it lives.
class Flushed {
   public:
    Flushed();
    ~Flushed();

   private:
    uint64_t before;
};

}  // namespace scope
