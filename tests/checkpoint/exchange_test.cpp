// This program's side of test_exchange.py: Python writes files and asks what becomes of them. Skipped when nobody asks.
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf/load.h"
#include "checkpoint/gguf/pieces.h"
#include "checkpoint/tensor.h"
#include "checkpoint/writer.h"
#include "support.h"

namespace lquant::checkpoint {
namespace {

namespace fs = std::filesystem;

// LQUANT_EXCHANGE/in is opened and written to LQUANT_EXCHANGE/out, with its config and tokenizer, in shards of at most a million bytes.
TEST(Exchange, CopiesAFolder) {
  const char* folder = std::getenv("LQUANT_EXCHANGE");
  if (!folder) GTEST_SKIP() << "run by test_exchange.py";
  const auto checkpoint = Checkpoint::open(fs::path(folder) / "in");
  Writer writer(fs::path(folder) / "out", 1'000'000);
  for (const auto& name : checkpoint.names()) writer.add(name, checkpoint.load(name, CheckFinite::no));
  writer.write_json("config.json", checkpoint.config());
  for (const auto& name : tokenizer_files()) {
    if (fs::exists(checkpoint.folder() / name)) writer.copy_file(checkpoint.folder() / name, name);
  }
  writer.commit();
}

// Every tensor of the GGUF file LQUANT_GGUF in float32, under the file's own names, to the folder LQUANT_GGUF.out.
TEST(Exchange, DequantizesGguf) {
  const char* path = std::getenv("LQUANT_GGUF");
  if (!path) GTEST_SKIP() << "run by test_gguf_values.py";
  Writer writer(std::string(path) + ".out");
  for (const auto& piece : gguf::open_pieces(path))
    for (const auto& tensor : piece.header.tensors)
      writer.add(tensor.name, gguf::read(piece.file, {&tensor}, tensor.type->decode ? mx::float32 : gguf::integer_dtype(*tensor.type)));
  writer.commit();
}

// What read_header says of each file in LQUANT_VERDICTS, as verdicts.json there: "" or the message.
TEST(Exchange, JudgesFiles) {
  const char* folder = std::getenv("LQUANT_VERDICTS");
  if (!folder) GTEST_SKIP() << "run by test_exchange.py";
  nlohmann::json verdicts;
  for (const auto& entry : fs::directory_iterator(folder)) {
    auto& verdict = verdicts[entry.path().filename().string()] = "";
    try {
      read_header(File::open(entry.path()));
    } catch (const Error& e) {
      verdict = e.what();
    }
  }
  std::ofstream(fs::path(folder) / "verdicts.json") << verdicts.dump();
}

}  // namespace
}  // namespace lquant::checkpoint
