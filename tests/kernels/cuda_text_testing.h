#pragma once

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <vector>

#include "kernels/cuda_on_host.h"

// What the tests of the kernels' text share.
namespace cuda_on_host {

/// The text runs on the CPU, and so does what it is held to.
class OnCpu : public ::testing::Test {
 protected:
  OnCpu() : before_(mlx::core::default_device()) { mlx::core::set_default_device(mlx::core::Device::cpu); }
  ~OnCpu() override { mlx::core::set_default_device(before_); }

 private:
  mlx::core::Device before_;
};

template <class T>
std::vector<T> values(mlx::core::array x) {
  x = mlx::core::contiguous(x);
  x.eval();
  return {x.data<T>(), x.data<T>() + x.size()};
}
inline std::vector<float> floats(const mlx::core::array& x) { return values<float>(mlx::core::astype(x, mlx::core::float32)); }

}  // namespace cuda_on_host
