// The crate is a shared library that is opened when a command first needs the hub: its hundreds of crates take minutes to build and what works on
// local files must not wait for them. Two Rust libraries in one program would also clash if both were linked statically.
#include "hub/library.h"

#include <dlfcn.h>
#include <lquant_hub.h>

#include <optional>

#include "base/error.h"

namespace lquant::hub {
using nlohmann::json;

namespace {

#ifdef __APPLE__
constexpr const char* kLibrary = "@rpath/liblquant_hub.dylib";
#else
constexpr const char* kLibrary = "liblquant_hub.so";  // looked for along the program's RUNPATH
#endif

void* opened() {
  static void* const handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  return handle;
}

void* library() {
  void* const handle = opened();
  if (!handle) {
    fail("hub",
         "this build cannot reach the Hugging Face hub or read Parquet files; build that part once by `make hub` in lquant's folder, or give a model "
         "folder, "
         ".jsonl or .txt files, or --data-path self");
  }
  return handle;
}

template <class F>
F* symbol(const char* name) {
  void* const address = dlsym(library(), name);
  if (!address) fail("hub", "the library for the Hugging Face hub is of another version than lquant; build it again (make hub)");
  return reinterpret_cast<F*>(address);
}

/// Shows bytes as a bar and remarks as lines.
class Reporter {
 public:
  explicit Reporter(const run::Context& context) : context_(context) {}
  ~Reporter() {
    if (progress_ && done_ > 0) progress_->finish();
  }

  static int report(void* self, lquant_hub_slice text, std::uint64_t done, std::uint64_t total) {
    static_cast<Reporter*>(self)->show({text.data, text.size}, done, total);
    return 0;
  }

 private:
  void show(const std::string& text, std::uint64_t done, std::uint64_t total) {
    if (total == 0) {
      if (!text.empty()) context_.line(text);
      return;
    }
    if (!progress_ || text != what_ || total != total_) {
      what_ = text, total_ = total, done_ = 0;
      progress_.emplace(context_.events(), text + ", MB", megabytes(total));
    }
    if (done <= done_) return;
    progress_->advance(megabytes(done) - megabytes(done_));
    done_ = done;
  }

  static std::int64_t megabytes(std::uint64_t bytes) { return static_cast<std::int64_t>((bytes + 999'999) / 1'000'000); }

  const run::Context& context_;
  std::optional<run::Progress> progress_;
  std::string what_;
  std::uint64_t total_ = 0, done_ = 0;
};

}  // namespace

bool available() { return opened() != nullptr; }

void need_library() { library(); }

json call(const char* function, const json& request, const run::Context& context) {
  const auto run = symbol<lquant_hub_function>(function);
  const auto release = symbol<void(lquant_hub_string)>("lquant_hub_string_free");
  const auto text = request.dump(-1, ' ', false, json::error_handler_t::replace);
  lquant_hub_string out{}, error{};
  bool fine = false;
  {
    Reporter reporter(context);
    fine = run({text.data(), text.size()}, {&Reporter::report, &reporter}, &out, &error) != 0;
  }
  const auto& result = fine ? out : error;
  const std::string answer(result.data, result.size);
  release(result);
  if (!fine) fail("hub", "{}", answer);
  return json::parse(answer);
}

}  // namespace lquant::hub
