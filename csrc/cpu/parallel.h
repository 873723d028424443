// Parallel loops over rows, on the same threads that torch uses.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

// The entry point of a parallel region, in GNU's OpenMP and (under the same name) in LLVM's and Intel's.
using ParallelRegion = void (*)(void (*)(void*), void*, unsigned, unsigned);

// The entry point of the OpenMP runtime that torch loaded; null if there is none. Linking against OpenMP could load a
// second runtime, whose threads would compete with those of the first one, which stay awake between matrix products.
inline ParallelRegion parallel_region() {
  return reinterpret_cast<ParallelRegion>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

// The file of that runtime; "threads" if there is none.
inline std::string thread_runtime() {
  Dl_info info;
  const auto region = reinterpret_cast<void*>(parallel_region());
  return region && dladdr(region, &info) && info.dli_fname ? info.dli_fname : "threads";
}

// Calls body(row) once for each of `rows` rows of `columns` numbers. A row is processed by one thread, so the
// assignment of rows to threads does not change the result.
template <class Body>
void for_each_row(int64_t rows, int64_t columns, int threads, const Body& body) {
  constexpr int64_t worthwhile = 32768;  // minimum numbers for which waking a thread is worthwhile; torch's own grain
  struct Work {
    const Body& body;
    const int64_t rows, grain;
    std::atomic<int64_t> next{0};
    void run() {
      for (int64_t begin; (begin = next.fetch_add(grain)) < rows;)
        for (int64_t row = begin; row < std::min(begin + grain, rows); ++row) body(row);
    }
  } work{body, rows, std::max<int64_t>(1, std::min(worthwhile / columns, rows / (4 * int64_t{threads})))};
  if (threads < 2 || rows < 2 || rows * columns < 2 * worthwhile) return work.run();
  if (const auto region = parallel_region()) {
    region([](void* shared) { static_cast<Work*>(shared)->run(); }, &work, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&work] { work.run(); });
  work.run();
  for (auto& other : others) other.join();
}
