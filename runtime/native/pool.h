// A small pool of persistent threads, and the barrier between phases.
//
// One job is the run of one image (or one image each): threads are woken once for it, not once per op. Between phases
// they meet at a barrier that spins for some microseconds, because the others are nearly always about to arrive, and
// then sleeps, because on a shared machine they may not be running at all.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace qvit {

class Barrier {
 public:
  explicit Barrier(int parties) : parties_(parties) {}
  void wait();

 private:
  const int parties_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

class Pool {
 public:
  // The caller is one of them: threads - 1 are started. Throws ProgramError where not all of them can be.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // job(worker) on every thread, worker 0 on the calling one; returns when all are done. One run at a time.
  void run(const std::function<void(int)>& job);

 private:
  void work(int worker);
  void stop();  // and wait for all that were started

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* job_ = nullptr;
  uint64_t jobs_ = 0;
  int running_ = 0;
  bool stop_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace qvit
