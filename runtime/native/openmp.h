// The threads that the process already has for such work: those of its OpenMP runtime.
//
// PyTorch's OpenMP threads spin for a while after each of its operations. Threads of our own would find no processor free
// in the middle of a training step, so work between two of its operations goes to the same threads. The runtime is looked
// up among what is loaded (GNU's entry point, which LLVM's and Intel's runtimes have too) and never loaded or linked: a
// second one would bring threads of its own. It also decides what is allowed after a fork and in calls from several threads.
#pragma once

namespace qvit {

// job(data) on `threads` threads, the calling one included; returns when all are done. Without an OpenMP runtime, or with
// one thread, only on the calling one: a job must take its work from a shared counter and not count on its helpers.
void on_openmp_threads(int threads, void (*job)(void*), void* data);

}  // namespace qvit
