#include "checkpoint/gguf/source.h"

#include "base/error.h"
#include "checkpoint/gguf/config.h"
#include "checkpoint/gguf/tokenizer.h"

namespace lquant::checkpoint::gguf {
namespace {

const Architecture& architecture_of(const Metadata& metadata, const std::vector<Architecture>& architectures) {
  const auto experts = metadata.count(metadata.key("expert_count")).value_or(0) > 0;
  if (const auto* found = find_architecture(architectures, metadata.architecture(), experts)) return *found;
  std::string known;
  for (const auto& name : architecture_names(architectures)) known += (known.empty() ? "" : ", ") + name;
  fail("checkpoint", "{}: its architecture is {}, which lquant does not read from GGUF files; supported: {}", metadata.file().string(),
       in_quotes(metadata.architecture()), known);
}

/// See Source.
mx::Dtype matrix_dtype(const std::vector<Piece>& pieces) {
  bool f16 = false, others = false;
  for (const auto& piece : pieces)
    for (const auto& tensor : piece.header.tensors) {
      if (tensor.shape.size() < 2 || !tensor.type->decode) continue;
      const std::string_view type = tensor.type->name;
      f16 |= type == "F16";
      others |= type != "F16" && type != "F32" && type != "F64";
    }
  return others ? mx::bfloat16 : f16 ? mx::float16 : mx::float32;
}

mx::Dtype vector_dtype(const BlockType& type) {
  const std::string_view name = type.name;
  return name == "F32" || name == "F64" ? mx::float32 : name == "F16" ? mx::float16 : mx::bfloat16;
}

}  // namespace

Source Source::open(const std::filesystem::path& path, const std::vector<Architecture>& architectures) {
  Source source;
  source.pieces_ = open_pieces(path);
  source.metadata_ = std::make_shared<const Metadata>(source.pieces_[0].header, source.pieces_[0].file.path());
  const auto& architecture = architecture_of(*source.metadata_, architectures);
  source.map_tensors(architecture);
  source.config_ = make_config(*source.metadata_, architecture, source.tensors_, read_tables(source.pieces_));
  source.files_ = tokenizer_files(source.metadata_, source.config_, architecture.takes_blanks);
  return source;
}

void Source::map_tensors(const Architecture& architecture) {
  const int heads = metadata_->needed_count(metadata_->key("attention.head_count"));
  const int kv_heads = metadata_->count(metadata_->key("attention.head_count_kv")).value_or(heads);
  const auto matrices = matrix_dtype(pieces_);
  for (std::size_t p = 0; p < pieces_.size(); ++p)
    for (const auto& tensor : pieces_[p].header.tensors) {
      if (is_table(tensor.name)) continue;
      const auto& file = pieces_[p].file.path();
      const auto mapped = map_name(architecture, tensor.name);
      if (mapped.empty())
        fail("checkpoint", "{}: tensor {} is none that a model of architecture {} has, as lquant knows it; it may be a variant that is not supported",
             file.string(), in_quotes(tensor.name), metadata_->architecture());
      for (const auto& [name, change] : mapped) {
        const Wanted wanted{&tensor, change, change == Change::kv_heads ? kv_heads : heads};
        check(wanted, tensor.name, file);
        const auto dtype = !tensor.type->decode ? integer_dtype(*tensor.type) : tensor.shape.size() < 2 ? vector_dtype(*tensor.type) : matrices;
        if (!tensors_.emplace(name, TensorInfo{dtype, tensor.type->name, shape_of(wanted), file, tensor.begin, tensor.end}).second)
          fail("checkpoint", "{}: tensor {} is there twice, as {} in another place; the pieces do not belong together: download them again",
               file.string(), in_quotes(tensor.name), in_quotes(name));
        places_.emplace(name, Place{p, wanted});
      }
    }
}

mx::array Source::read(const std::string& name, mx::Dtype dtype) const {
  const auto& [piece, wanted] = places_.find(name)->second;
  return gguf::read(pieces_[piece].file, wanted, dtype);
}

}  // namespace lquant::checkpoint::gguf
