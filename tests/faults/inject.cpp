// Kills a program at its N-th system call that changes files below one folder. Loaded with LD_PRELOAD:
//   INJECT_UNDER  a part of the paths that count
//   INJECT_AT     N, from 1; the call itself is not made, but a write is made by half first
//   INJECT_COUNT  a file that gets the number of such calls, when the program ends by itself
// A program that ends before its N-th call is left alone.
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<long> calls{0};

const char* under() {
  static const char* const part = std::getenv("INJECT_UNDER");
  return part;
}

bool counts(const char* path) { return under() && path && std::strstr(path, under()); }

bool counts(int descriptor) {
  if (!under()) return false;
  char link[64], path[PATH_MAX + 1];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const auto n = ::readlink(link, path, PATH_MAX);
  if (n < 0) return false;
  path[n] = 0;
  return std::strstr(path, under()) != nullptr;
}

bool is_the_one() {
  static const long at = std::getenv("INJECT_AT") ? std::atol(std::getenv("INJECT_AT")) : 0;
  return ++calls == at;
}

void die() { ::kill(::getpid(), SIGKILL); }

__attribute__((destructor)) void tell() {
  const char* const path = std::getenv("INJECT_COUNT");
  const long count = calls;
  if (std::FILE* file = path ? std::fopen(path, "w") : nullptr) {
    std::fprintf(file, "%ld", count);
    std::fclose(file);
  }
}

template <class F>
F* real(const char* name) {
  return reinterpret_cast<F*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t write(int descriptor, const void* data, size_t size) {
  static const auto next = real<ssize_t(int, const void*, size_t)>("write");
  if (counts(descriptor) && is_the_one()) {
    next(descriptor, data, size / 2);
    die();
  }
  return next(descriptor, data, size);
}

int rename(const char* from, const char* to) {
  static const auto next = real<int(const char*, const char*)>("rename");
  if ((counts(from) || counts(to)) && is_the_one()) die();
  return next(from, to);
}

int unlink(const char* path) {
  static const auto next = real<int(const char*)>("unlink");
  if (counts(path) && is_the_one()) die();
  return next(path);
}

int remove(const char* path) {
  static const auto next = real<int(const char*)>("remove");
  if (counts(path) && is_the_one()) die();
  return next(path);
}

int rmdir(const char* path) {
  static const auto next = real<int(const char*)>("rmdir");
  if (counts(path) && is_the_one()) die();
  return next(path);
}

int unlinkat(int folder, const char* path, int flags) {
  static const auto next = real<int(int, const char*, int)>("unlinkat");
  if ((counts(path) || (folder != AT_FDCWD && counts(folder))) && is_the_one()) die();
  return next(folder, path, flags);
}

int mkdir(const char* path, mode_t mode) {
  static const auto next = real<int(const char*, mode_t)>("mkdir");
  if (counts(path) && is_the_one()) die();
  return next(path, mode);
}

int open(const char* path, int flags, ...) {
  static const auto next = real<int(const char*, int, ...)>("open");
  va_list more;
  va_start(more, flags);
  const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
  va_end(more);
  if (flags & (O_CREAT | O_TRUNC) && counts(path) && is_the_one()) die();
  return next(path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
  va_end(more);
  return open(path, flags | O_LARGEFILE, mode);
}
}
