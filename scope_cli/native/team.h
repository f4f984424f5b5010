// One team of threads for the life of a run: work in phases, phases in pieces.
//
// A phase is over when all of its pieces are done, whoever did them; nobody waits for a thread that has none. Each thread
// has a stretch of the pieces to itself, so that it reads memory in one go, and then takes what is left of the others'.
// Whoever does the last piece begins the next phase. So a thread that other work on the machine keeps from its core holds
// up the one piece that it has begun, and finds when it comes back whatever phase the others are in.
//
// Who finds no piece fetches what it will read next, spins for some 20 microseconds and then sleeps. Denormal numbers
// count as zero on every thread of a team while it works.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace scope {

// A piece of memory.
struct Stretch {
    const uint8_t* at = nullptr;
    size_t bytes = 0;
};

// What a team does, in phases 0, 1, ...
struct Work {
    // By one thread, when all before it is done: how many pieces the phase has; 0: there is no such phase.
    virtual int begin(int phase) = 0;
    virtual void piece(int phase, int at, int thread) = 0;
    // What the thread will probably read first in the next phase.
    virtual Stretch ahead(int, int) { return {}; }
};

class Team {
   public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;

    const int threads;

    // Returns when all phases are over. The caller is thread 0.
    void run(Work& work);

    // One phase: piece(at, thread) for `at` from 0 to before `pieces`.
    template <class Piece>
    void share(int pieces, const Piece& piece) {
        struct : Work {
            int pieces;
            const Piece* done;
            int begin(int phase) override { return phase == 0 ? pieces : 0; }
            void piece(int, int at, int thread) override { (*done)(at, thread); }
        } one;
        one.pieces = pieces;
        one.done = &piece;
        run(one);
    }

    // The first of a thread's own stretch of so many pieces.
    int first_of(int thread, int pieces) const { return (int)((int64_t)thread * pieces / threads); }

   private:
    void member(int thread);
    void help(int thread, uint32_t seen);
    void begin_next();

    // What is left of a thread's own pieces: those from the lower half of the number to before the upper half.
    struct alignas(64) Own {
        std::atomic<uint64_t> pieces{0};
    };

    struct Threads;
    Threads* others;
    std::unique_ptr<Own[]> own;
    Work* work = nullptr;
    int phase = 0;
    std::atomic<bool> ends{false};
    std::atomic<bool> over{true};
    alignas(64) std::atomic<int> left{0};         // pieces of the phase that are not done
    alignas(64) std::atomic<uint32_t> begun{0};  // phases so far, and ends of work
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
