#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "evaluate/distribution.h"
#include "evaluate/quality.h"
#include "evaluate/worst.h"

// What a report tells, apart from how it looks (report_html.h). All of it was read or measured: texts may hold anything.
namespace lquant::evaluate {

/// A linear as a folder stores it.
struct StoredLinear {
  std::string path, role;
  int block = -1;          ///< −1: the embedding or the head
  int bits = 0;            ///< 0: dense
  int group_size = 0;      ///< 0: dense
  std::string mode;        ///< "affine", …; of a dense one its dtype
  std::int64_t bytes = 0;  ///< codes, scales, biases
  int experts = 0;         ///< that it holds, one matrix each; 0: a linear without experts
};

/// The divergence that a folder's weights bring when they alone are put into the teacher.
struct AloneFigure {
  std::string name, role;  ///< path and role of the linear; "block" for a whole one
  int block = -1;
  double kl = 0, kl_se = 0;  ///< the error over rows; NaN where it is not known
};

struct FolderReport {
  std::string name;
  std::string sha256;
  std::int64_t bytes = 0, parameters = 0;  ///< of all tensors
  Quality quality;
  Distribution kl;
  std::vector<StoredLinear> linears;  ///< in the order of the forward pass
  std::vector<AloneFigure> alone;     ///< empty when not asked for
  std::vector<WorstToken> worst;
  nlohmann::ordered_json record;  ///< lquant.json, or null
  std::string record_note;        ///< why there is none
  double bits_per_weight() const { return parameters ? 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters) : 0; }
  nlohmann::ordered_json to_json() const;
};

struct Report {
  std::string teacher, teacher_sha256;
  std::int64_t teacher_bytes = 0;
  std::string data, data_sha256;  ///< the text's file
  std::int64_t rows = 0, alone_rows = 0;
  int sequence_length = 0;
  std::string layers;  ///< "linear", "block", "none"
  std::string lquant;  ///< its version
  int blocks = 0;
  std::vector<FolderReport> folders;
  nlohmann::ordered_json to_json() const;
};

}  // namespace lquant::evaluate
