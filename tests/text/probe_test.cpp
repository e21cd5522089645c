// The window through which test_against_transformers.py sees this room: it writes questions to the file LQUANT_TEXT_PROBE, runs this
// one test, and reads the answers from the same name with ".answers".

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "base/files.h"
#include "text/stream.h"
#include "text/temp_folder.h"
#include "text/tokenizer.h"

namespace lquant::text {
namespace {

using Json = nlohmann::ordered_json;

std::string text_of(const Json& question) {
  if (question.is_string()) return question.get<std::string>();
  std::string bytes;  // texts that are not UTF-8 come as lists of their bytes
  for (const auto& byte : question) bytes.push_back(static_cast<char>(byte.get<int>()));
  return bytes;
}

std::string streamed(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  StreamDecoder stream(tokenizer);
  std::string text;
  for (const auto id : ids) text += stream.add(id);
  return text + stream.finish();
}

Json answer(const Json& question) {
  const auto tokenizer = Tokenizer::open(question.at("folder").get<std::string>());
  Json out = {{"vocab_size", tokenizer.vocab_size()}, {"eos_ids", tokenizer.eos_ids()}};
  std::vector<std::string> texts;
  for (const auto& text : question.value("texts", Json::array())) texts.push_back(text_of(text));
  out["ids"] = tokenizer.encode_batch(texts);
  out["ids_plain"] = tokenizer.encode_batch(texts, false);
  for (const auto& ids : question.value("decode", Json::array())) {
    const auto row = ids.get<std::vector<std::int32_t>>();
    out["decoded"].push_back(tokenizer.decode(row));
    out["skipped"].push_back(tokenizer.decode(row, true));
    out["streamed"].push_back(streamed(tokenizer, row));
  }
  for (const auto& chat : question.value("chats", Json::array())) {
    try {
      out["chats"].push_back({{"text", tokenizer.apply_chat_template(chat.at("messages"), chat.at("add_generation_prompt"), chat.at("tools"),
                                                                     chat.value("extra", Json()))}});
    } catch (const Error& e) {
      out["chats"].push_back({{"error", e.what()}});
    }
  }
  return out;
}

TEST(Probe, AnswersTheQuestionsOfPytest) {
  const auto* path = std::getenv("LQUANT_TEXT_PROBE");
  if (!path) GTEST_SKIP() << "run by tests/text/test_against_transformers.py";
  const auto questions = Json::parse(read_file("text", path));
  Json answers = Json::array();
  for (const auto& question : questions) answers.push_back(answer(question));
  std::ofstream(std::string(path) + ".answers") << answers.dump();
}

}  // namespace
}  // namespace lquant::text
