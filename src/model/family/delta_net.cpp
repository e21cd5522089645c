#include "model/family/delta_net.h"

#include "base/error.h"
#include "model/family/decoder.h"

namespace lquant::model::family {

DeltaSizes DeltaSizes::read(const Config& config) {
  DeltaSizes sizes;
  sizes.key_heads = config.count("linear_num_key_heads");
  sizes.value_heads = config.count("linear_num_value_heads");
  sizes.key_dim = config.count("linear_key_head_dim");
  sizes.value_dim = config.count("linear_value_head_dim");
  sizes.taps = config.count("linear_conv_kernel_dim", 2);
  if (sizes.value_heads % sizes.key_heads != 0)
    fail("model", "config.json: \"{}\" {} is no multiple of \"{}\" {}; {}", config.place("linear_num_value_heads"), sizes.value_heads,
         config.place("linear_num_key_heads"), sizes.key_heads, kMend);
  return sizes;
}

GatedDelta DeltaSizes::op(const std::string& path) const {
  GatedDelta op;
  op.key_heads = key_heads;
  op.value_heads = value_heads;
  op.key_dim = key_dim;
  op.value_dim = value_dim;
  op.a_log = {path + "A_log", {value_heads}};
  op.dt_bias = {path + "dt_bias", {value_heads}};
  return op;
}

ParameterSpec DeltaSizes::taps_of(const std::string& name, int channels, Imports& imports) const {
  const ParameterSpec spec{name, {channels, taps, 1}};
  imports.rows.push_back(reshaped(spec));
  return spec;
}

}  // namespace lquant::model::family
