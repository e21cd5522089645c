// The host's side of head_rows.cu.
#include "kernels/head_rows.h"

#include <fmt/format.h>
#include <mlx/mlx.h>

#include "kernels/cuda_module.h"
#include "kernels/cuda_text.h"
#include "kernels/primitive.h"

namespace lquant::kernels {
namespace {

// A row of 150,000 logits gives each of so many threads some 18 loads of 16 bytes.
constexpr int kThreads = 1024;
constexpr int kWide = 8;  // as in head_rows.cu

}  // namespace

bool fused_head_rows() { return cuda_kernels(); }

HeadRows head_rows(const mx::array& student, const mx::array& teacher, const mx::array& mask, const HeadLossArgs& args, bool needs_gradient) {
  const int rows = student.shape(0), width = student.shape(1);
  const auto body = fmt::format(
      "const lquant::Finish of_student{{multiplier, softcap, cold}}, of_teacher{{teacher_multiplier, teacher_softcap, cold}};\n"
      "lquant::divergence<{}, {}, {}, {}>(student, teacher, mask, of_student, of_teacher, width, loss, slopes);",
      cuda_type(student.dtype()), cuda_type(teacher.dtype()), needs_gradient, width % kWide == 0);
  const auto made = call({"lquant_head_rows",
                          head_rows_cu(),
                          body,
                          {{"student", student}, {"teacher", teacher}, {"mask", mask}},
                          {{"loss", {rows}, mx::float32}, {"slopes", needs_gradient ? student.shape() : mx::Shape{1}, student.dtype()}},
                          {{"multiplier", args.multiplier},
                           {"softcap", args.softcap},
                           {"teacher_multiplier", args.teacher_multiplier},
                           {"teacher_softcap", args.teacher_softcap},
                           {"cold", 1 / args.temperature},
                           {"width", width}},
                          rows,
                          kThreads});
  return {made[0], made[1]};
}

}  // namespace lquant::kernels
