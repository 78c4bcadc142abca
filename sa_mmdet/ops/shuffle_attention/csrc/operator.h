// The operators sa_mmdet::shuffle_attention_{forward,backward}_<capability>. Each instruction set
// has a source file of its own, which names it, includes this one, and becomes a library of its
// own; cpu.py loads the one that fits the machine.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "pixels.h"
#include "planes.h"

#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
#define OPERATOR(name) "shuffle_attention_" name "_" STRINGIFY(SA_MMDET_CAPABILITY)

namespace sa_mmdet {
namespace {

using at::Tensor;

Shape shape_of(const Tensor& x) {
  return {x.size(0), x.size(1), x.size(2) * x.size(3)};
}

bool is_channels_last(const Tensor& x) {
  return !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// Each plane contiguous, wherever it starts.
Tensor with_contiguous_planes(const Tensor& x) {
  const bool rows = x.size(3) == 1 || x.stride(3) == 1;
  const bool columns = x.size(2) == 1 || x.stride(2) == x.size(3);
  return rows && columns ? x : x.contiguous();
}

template <typename T>
Planes<T> planes_of(const Tensor& x) {
  return {static_cast<T*>(x.data_ptr()), x.stride(0), x.stride(1)};
}

// The six parameters as one tensor, in double. Keep it as long as the Parameters that point to it.
Tensor gather_parameters(at::TensorList parameters, int64_t channels, int64_t groups) {
  TORCH_CHECK_VALUE(groups > 0 && channels % (2 * groups) == 0,
                    "channels (", channels, ") must divide by 2 * groups (", groups, ")");
  std::vector<Tensor> flat;
  for (const auto& parameter : parameters) {
    TORCH_CHECK_VALUE(parameter.numel() == channels / (2 * groups),
                      "a parameter has ", parameter.numel(), " values, not channels / (2 * groups)"
                      " = ", channels / (2 * groups));
    flat.push_back(parameter.reshape(-1).to(at::kDouble));
  }
  return at::cat(flat);
}

Parameters parameters_of(const Tensor& gathered) {
  return {gathered.const_data_ptr<double>(), gathered.numel() / 6};
}

std::tuple<Tensor, Tensor> forward(
    const Tensor& x, const Tensor& cweight, const Tensor& cbias, const Tensor& sweight,
    const Tensor& sbias, const Tensor& gn_weight, const Tensor& gn_bias, int64_t groups,
    double eps) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x must have four dimensions, not ", x.dim());
  const Tensor gathered = gather_parameters(
      {cweight, cbias, sweight, sbias, gn_weight, gn_bias}, x.size(1), groups);
  const bool channels_last = is_channels_last(x);
  Tensor y = at::empty(x.sizes(), x.options().memory_format(
      channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
  Tensor stats = at::empty({x.size(0), x.size(1), 2}, x.options().dtype(at::kDouble));
  if (x.numel() == 0) return {y, stats.zero_()};
  auto* stats_data = static_cast<Statistics*>(stats.data_ptr());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "shuffle_attention", [&] {
        if (channels_last) {
          pixels_forward(x.const_data_ptr<scalar_t>(), y.data_ptr<scalar_t>(), stats_data,
                         parameters_of(gathered), shape_of(x), eps);
        } else {
          const Tensor from = with_contiguous_planes(x);
          planes_forward<scalar_t>(
              planes_of<const scalar_t>(from), planes_of<scalar_t>(y), stats_data,
              parameters_of(gathered), shape_of(x), eps);
        }
      });
  return {y, stats};
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& x, const Tensor& stats, const Tensor& cweight,
    const Tensor& cbias, const Tensor& sweight, const Tensor& sbias, const Tensor& gn_weight,
    const Tensor& gn_bias, int64_t groups, bool input_gradient) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x must have four dimensions, not ", x.dim());
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes() && dy.scalar_type() == x.scalar_type(),
                    "dy must have the shape and type of x");
  TORCH_CHECK_VALUE(stats.sizes() == at::IntArrayRef({x.size(0), x.size(1), 2}) &&
                        stats.is_contiguous() && stats.scalar_type() == at::kDouble,
                    "stats must be those of the forward pass");
  const Tensor gathered = gather_parameters(
      {cweight, cbias, sweight, sbias, gn_weight, gn_bias}, x.size(1), groups);
  const bool channels_last = is_channels_last(x);
  const auto format =
      channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  Tensor dx = input_gradient ? at::empty(x.sizes(), x.options().memory_format(format))
                             : at::empty({0}, x.options());
  Tensor sums = at::empty({x.size(0), x.size(1), 2}, x.options().dtype(at::kDouble));
  if (x.numel() == 0) return {dx, sums.zero_()};
  const auto* stats_data = static_cast<const Statistics*>(stats.const_data_ptr());
  auto* sums_data = static_cast<PlaneSums*>(sums.data_ptr());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "shuffle_attention_backward", [&] {
        if (channels_last) {
          const Tensor grad = dy.contiguous(format);
          pixels_backward(grad.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                          input_gradient ? dx.data_ptr<scalar_t>() : nullptr, stats_data,
                          sums_data, parameters_of(gathered), shape_of(x));
        } else {
          const Tensor grad = with_contiguous_planes(dy), from = with_contiguous_planes(x);
          planes_backward<scalar_t>(
              planes_of<const scalar_t>(grad), planes_of<const scalar_t>(from),
              input_gradient ? planes_of<scalar_t>(dx) : Planes<scalar_t>{nullptr, 0, 0},
              stats_data, sums_data, parameters_of(gathered), shape_of(x));
        }
      });
  return {dx, sums};
}

}  // namespace
}  // namespace sa_mmdet

TORCH_LIBRARY_FRAGMENT(sa_mmdet, m) {
  m.def(OPERATOR("forward")
        "(Tensor x, Tensor cweight, Tensor cbias, Tensor sweight, Tensor sbias, Tensor gn_weight, "
        "Tensor gn_bias, int groups, float eps) -> (Tensor, Tensor)");
  m.def(OPERATOR("backward")
        "(Tensor dy, Tensor x, Tensor stats, Tensor cweight, Tensor cbias, Tensor sweight, "
        "Tensor sbias, Tensor gn_weight, Tensor gn_bias, int groups, bool input_gradient) "
        "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(sa_mmdet, CPU, m) {
  m.impl(OPERATOR("forward"), sa_mmdet::forward);
  m.impl(OPERATOR("backward"), sa_mmdet::backward);
}
