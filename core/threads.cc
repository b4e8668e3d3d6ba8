#include "threads.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace thinbert {
namespace {

// About 0.2 ms: from the end of one forward pass to the start of the next, when calls come one after another. A thread woken
// from sleep may first have to find a core, which takes longer than a short pass itself.
constexpr int kIdleSpins = 1 << 14;

long current_process() {
#if defined(__unix__) || defined(__APPLE__)
  return getpid();
#else
  return 0;  // no forks
#endif
}

int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves this thread off the core of the thread it works for. A worker woken from sleep is sometimes put on its caller's core
// though another idles, and with calls of a millisecond the scheduler takes many of them to notice.
void step_aside([[maybe_unused]] int core) {
#if defined(__linux__)
  if (core < 0 || sched_getcpu() != core) return;
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  others = allowed;
  CPU_CLR(core, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

}  // namespace

void Barrier::wait() {
  const unsigned round = round_.load(std::memory_order_acquire);
  if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    left_.store(count_, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
}

ThreadPool::ThreadPool(int threads) {
  try {
    for (int t = 1; t < threads; ++t) workers_.emplace_back(&ThreadPool::work, this, t);
  } catch (...) {  // the system gives no more
    end();
    throw;
  }
}

ThreadPool::~ThreadPool() { end(); }

void ThreadPool::end() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

PoolOwner::PoolOwner(int threads) : pool_(new ThreadPool(threads)), process_(current_process()) {}

PoolOwner::~PoolOwner() {
  if (current_process() == process_) delete pool_;
}

void ThreadPool::run(Job job, void* context) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    job_ = job;
    context_ = context;
    core_ = current_core();
    running_ = static_cast<int>(workers_.size());
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  job(context, 0);
  for (int spin = 0; spin < kIdleSpins && running_.load(std::memory_order_acquire) != 0; ++spin) pause();
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return running_.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::work(int thread) {
  for (unsigned seen = 0;;) {
    const auto called = [&] { return stop_.load() || round_.load(std::memory_order_acquire) != seen; };
    for (int spin = 0; spin < kIdleSpins && !called(); ++spin) {
      pause();
      if (spin % kSpins == kSpins - 1) std::this_thread::yield();  // to a server's threads, one of which may call next
    }
    if (!called()) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, called);
    }
    if (stop_) return;
    seen = round_.load(std::memory_order_acquire);
    step_aside(core_);
    job_(context_, thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

}  // namespace thinbert
