#include "model/family/delta_net.h"

#include "base/error.h"
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

GatedDelta channel_net(const Layer& layer, const std::string& path, int hidden, const DeltaSizes& sizes, float eps) {
  const auto linear = [&](const char* name, Role role, int out, int in) { return block_linear(layer.index, path + name, role, out, in); };
  auto net = sizes.op(path);
  net.by_channel = true;
  net.activation = kernels::Activation::sigmoid;
  net.dt_bias.shape = {sizes.value_heads * sizes.key_dim};
  net.inputs.resize(6);
  net.inputs[0] = linear("q_proj", Role::q, sizes.keys(), hidden);
  net.inputs[1] = linear("k_proj", Role::k, sizes.keys(), hidden);
  net.inputs[2] = linear("v_proj", Role::v, sizes.values(), hidden);
  net.inputs[4] = linear("b_proj", Role::other, sizes.value_heads, hidden);
  net.norm = rms_norm_over(path + "o_norm", sizes.value_dim, eps);
  net.output = linear("o_proj", Role::o, hidden, sizes.values());
  return net;
}

}  // namespace lquant::model::family
