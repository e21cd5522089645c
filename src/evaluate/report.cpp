#include "evaluate/report.h"

#include "base/json.h"

namespace lquant::evaluate {
using json = nlohmann::ordered_json;

json FolderReport::to_json() const {
  json out{{"name", name}, {"sha256", sha256}, {"bytes", bytes}, {"parameters", parameters}, {"bits_per_weight", bits_per_weight()}};
  out["quality"] = quality.to_json();
  out["kl_distribution"] = kl.to_json();
  out["linears"] = out["alone"] = out["worst"] = json::array();
  for (const auto& l : linears) {
    json linear{{"path", l.path}, {"role", l.role}, {"block", l.block}, {"mode", l.mode}, {"bytes", l.bytes}};
    if (l.experts) linear["experts"] = l.experts;
    if (l.bits) linear.update({{"bits", l.bits}, {"group_size", l.group_size}});
    out["linears"].push_back(std::move(linear));
  }
  for (const auto& a : alone)
    out["alone"].push_back({{"name", a.name}, {"role", a.role}, {"block", a.block}, {"kl", a.kl}, {"kl_se", or_null(a.kl_se)}});
  for (const auto& w : worst) out["worst"].push_back(w.to_json());
  out["record"] = record;
  return out;
}

json Report::to_json() const {
  json out{{"lquant", lquant},
           {"teacher", {{"name", teacher}, {"sha256", teacher_sha256}, {"bytes", teacher_bytes}}},
           {"data", {{"file", data}, {"sha256", data_sha256}, {"rows", rows}, {"sequence_length", sequence_length}}},
           {"layers", layers},
           {"alone_rows", alone_rows},
           {"folders", json::array()}};
  for (const auto& folder : folders) out["folders"].push_back(folder.to_json());
  return out;
}

}  // namespace lquant::evaluate
