#include "core_pool.h"

#include <stdlib.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace maxmin::core {
namespace {

int processors() {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// Workers sleep until a round of tasks is announced, take tasks one by one, and are counted when they are done.
class Pool {
 public:
  explicit Pool(int n_workers) {
    for (int i = 0; i < n_workers; i++) std::thread([this] { work(); }).detach();
    n_workers_ = n_workers;
  }

  void run(int64_t n_tasks, maxmin_task task, void* context) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      context_ = context;
      n_tasks_ = n_tasks;
      next_ = 0;
      busy_ = n_workers_;
      round_++;
    }
    announced_.notify_all();
    drain();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void drain() {
    for (int64_t t; (t = next_.fetch_add(1)) < n_tasks_;) task_(context_, t);
  }

  void work() {
    int64_t seen = 0;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        announced_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
      }
      drain();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable announced_, done_;
  int64_t round_ = 0, n_tasks_ = 0;
  int n_workers_ = 0, busy_ = 0;
  maxmin_task task_ = nullptr;
  void* context_ = nullptr;
  std::atomic<int64_t> next_{0};
};

std::atomic_flag taken = ATOMIC_FLAG_INIT;
pid_t owner = 0;
Pool* pool = nullptr;  // never destroyed: its threads sleep until the process ends

void run(int64_t n_tasks, maxmin_task task, void* context) {
  // A child of fork() has the pool's memory without its threads, and may have been born while a call held it.
  static const int at_fork = pthread_atfork(nullptr, nullptr, [] { taken.clear(); });
  (void)at_fork;
  const bool mine = num_threads() > 1 && !taken.test_and_set(std::memory_order_acquire);
  if (!mine) {
    for (int64_t t = 0; t < n_tasks; t++) task(context, t);
    return;
  }
  if (owner != getpid()) {
    pool = new Pool(num_threads() - 1);
    owner = getpid();
  }
  pool->run(n_tasks, task, context);
  taken.clear(std::memory_order_release);
}

}  // namespace

int num_threads() {
  static const int n = [] {
    const char* wanted = getenv("MAXMIN_NUM_THREADS");
    const int count = wanted ? atoi(wanted) : 0;
    return count > 0 ? count : processors();
  }();
  return n;
}

const maxmin_parallel* parallel() {
  static const maxmin_parallel lent = {run, num_threads()};
  return &lent;
}

}  // namespace maxmin::core
