// A pool of threads that work on one job at a time, and the barrier they meet at.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thinbert {

// About 20 us of spinning: longer than threads of one layer are usually apart, shorter than a sleep and its wake-up.
constexpr int kSpins = 1 << 10;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits for what another thread does soon: spins, since steps are short, and then yields the processor.
template <typename Condition>
void spin_until(const Condition& condition) {
  for (int spin = 0; !condition(); ++spin) {
    if (spin < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
}

// Threads that reach `wait` go on once all have.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count), left_(count) {}
  void wait();

 private:
  const int count_;
  std::atomic<int> left_;
  std::atomic<unsigned> round_{0};
};

class ThreadPool {
 public:
  using Job = void (*)(void* context, int thread);

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }
  // Runs job(context, 0 … size-1), number 0 on the calling thread, and returns when all are done. One call at a time.
  void run(Job job, void* context);

 private:
  void work(int thread);
  void end();

  std::vector<std::thread> workers_;
  Job job_ = nullptr;  // written before round_ is raised, read after it was seen raised
  void* context_ = nullptr;
  int core_ = -1;  // of the caller
  std::atomic<unsigned> round_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;  // for those who gave up spinning
  std::condition_variable wake_, done_;
};

// Owns a pool. After a fork, the child has a copy of it whose threads stayed behind: it can only be left alone.
class PoolOwner {
 public:
  explicit PoolOwner(int threads);
  ~PoolOwner();
  PoolOwner(const PoolOwner&) = delete;
  PoolOwner& operator=(const PoolOwner&) = delete;
  ThreadPool& operator*() const { return *pool_; }
  ThreadPool* operator->() const { return pool_; }

 private:
  ThreadPool* pool_;
  long process_;
};

}  // namespace thinbert
