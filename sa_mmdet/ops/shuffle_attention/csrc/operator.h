// The operators sa_mmdet::shuffle_attention_{forward,backward}_<capability>. Each instruction set
// has a source file of its own, which names it, includes this one, and becomes a library of its
// own; cpu.py loads the one that fits the machine.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

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

// Tensors of size values each as one tensor, in double. Keep it as long as what points to it.
Tensor gather(at::TensorList tensors, int64_t size) {
  std::vector<Tensor> flat;
  for (const auto& tensor : tensors) {
    TORCH_CHECK_VALUE(
        tensor.numel() == size, "a parameter has ", tensor.numel(), " values, not ", size);
    flat.push_back(tensor.reshape(-1).to(at::kDouble));
  }
  return at::cat(flat);
}

struct Gathered {
  Tensor attention, batch_norm;
  double eps, bn_eps;

  // batch_norm: no tensors, or weight, bias, mean and variance
  Gathered(at::TensorList attention_, at::TensorList batch_norm_, int64_t channels, int64_t groups,
           double eps, double bn_eps)
      : eps(eps), bn_eps(bn_eps) {
    TORCH_CHECK_VALUE(groups > 0 && channels % (2 * groups) == 0,
                      "channels (", channels, ") must divide by 2 * groups (", groups, ")");
    TORCH_CHECK_VALUE(batch_norm_.empty() || batch_norm_.size() == 4,
                      "batch_norm must be no tensors or four, not ", batch_norm_.size());
    attention = gather(attention_, channels / (2 * groups));
    if (!batch_norm_.empty()) batch_norm = gather(batch_norm_, channels);
  }

  Parameters parameters() const {
    const bool has_norm = batch_norm.defined();
    return {attention.const_data_ptr<double>(), attention.numel() / 6, eps,
            {has_norm ? batch_norm.const_data_ptr<double>() : nullptr,
             has_norm ? batch_norm.numel() / 4 : 0, bn_eps}};
  }
};

at::MemoryFormat layout_of(const Tensor& x) {
  return is_channels_last(x) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// x, identity and so on as the kernels read them.
Tensor in_layout(const Tensor& x, at::MemoryFormat layout) {
  return layout == at::MemoryFormat::ChannelsLast ? x.contiguous(layout)
                                                  : with_contiguous_planes(x);
}

void check_like(const char* name, const Tensor& tensor, const Tensor& x) {
  TORCH_CHECK_VALUE(tensor.sizes() == x.sizes() && tensor.scalar_type() == x.scalar_type(),
                    name, " must have the shape and type of the input");
}

template <typename T>
void forward_planes(
    const Tensor& x, const Tensor& identity, Tensor& y, Statistics* stats,
    const Parameters& parameters, const Shape& shape) {
  const auto from = planes_of<const T>(x);
  const auto to = planes_of<T>(y);
  if (!identity.defined()) {
    planes_forward<T>(from, to, stats, parameters, shape,
                      [](int64_t, int64_t, const Affine&, double) { return Alone<T>{}; });
    return;
  }
  const auto added = planes_of<const T>(identity);
  planes_forward<T>(
      from, to, stats, parameters, shape,
      [=](int64_t n, int64_t c, const Affine& affine, double center) {
        return Tail<T>{Pack<T>(affine.scale), Pack<T>(affine(center)),
                       added(n, shuffled(c, shape.c)), nullptr, nullptr, nullptr};
      });
}

// Attention alone, or with identity the tail. Returns the output and the planes' statistics.
std::tuple<Tensor, Tensor> forward(
    const Tensor& x, const std::optional<Tensor>& identity, at::TensorList batch_norm,
    at::TensorList attention, int64_t groups, double eps, double bn_eps) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x must have four dimensions, not ", x.dim());
  if (identity) check_like("identity", *identity, x);
  const Gathered gathered(attention, batch_norm, x.size(1), groups, eps, bn_eps);
  const auto layout = layout_of(x);
  Tensor y = at::empty(x.sizes(), x.options().memory_format(layout));
  Tensor stats = at::empty({x.size(0), x.size(1), 2}, x.options().dtype(at::kDouble));
  if (x.numel() == 0) return {y, stats.zero_()};
  auto* stats_data = static_cast<Statistics*>(stats.data_ptr());
  const Tensor from = in_layout(x, layout);
  const Tensor added = identity ? in_layout(*identity, layout) : Tensor();
  const auto parameters = gathered.parameters();
  const auto shape = shape_of(x);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "shuffle_attention", [&] {
        if (layout == at::MemoryFormat::Contiguous) {
          forward_planes<scalar_t>(from, added, y, stats_data, parameters, shape);
        } else {
          const auto kernel =
              identity ? pixels_forward<scalar_t, true> : pixels_forward<scalar_t, false>;
          kernel(from.const_data_ptr<scalar_t>(),
                 identity ? added.const_data_ptr<scalar_t>() : nullptr, y.data_ptr<scalar_t>(),
                 stats_data, parameters, shape);
        }
      });
  return {y, stats};
}

template <typename T>
void backward_planes(
    const Tensor& dy, const Tensor& out, const Tensor& x, const Tensor& dx,
    const Tensor& didentity, const Statistics* stats, PlaneSums* sums,
    const Parameters& parameters, const Shape& shape) {
  const Planes<T> none{nullptr, 0, 0};
  const auto from = planes_of<const T>(x), gradient = planes_of<const T>(dy);
  const auto to = dx.numel() ? planes_of<T>(dx) : none;
  if (!out.defined()) {
    planes_backward<T>(from, to, stats, sums, parameters, shape,
                       [=](int64_t n, int64_t c, const Affine&, double) {
                         return Alone<T>{gradient(n, shuffled(c, shape.c))};
                       });
    return;
  }
  const auto result = planes_of<const T>(out);
  const auto to_identity = didentity.numel() ? planes_of<T>(didentity) : none;
  planes_backward<T>(
      from, to, stats, sums, parameters, shape,
      [=](int64_t n, int64_t c, const Affine& affine, double center) {
        const int64_t at = shuffled(c, shape.c);
        return Tail<T>{Pack<T>(affine.scale), Pack<T>(affine(center)), nullptr, gradient(n, at),
                       result(n, at), to_identity.data ? to_identity(n, at) : nullptr};
      });
}

// Of attention alone, or with out of the tail. Returns dx, didentity and the planes' sums; the first
// two are empty without input_gradients, the second without out.
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& x, const std::optional<Tensor>& out, const Tensor& stats,
    at::TensorList batch_norm, at::TensorList attention, int64_t groups, double eps, double bn_eps,
    bool input_gradients) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x must have four dimensions, not ", x.dim());
  check_like("the gradient", dy, x);
  if (out) check_like("out", *out, x);
  TORCH_CHECK_VALUE(stats.sizes() == at::IntArrayRef({x.size(0), x.size(1), 2}) &&
                        stats.is_contiguous() && stats.scalar_type() == at::kDouble,
                    "stats must be those of the forward pass");
  const Gathered gathered(attention, batch_norm, x.size(1), groups, eps, bn_eps);
  const auto layout = layout_of(x);
  const auto empty_if_not = [&](bool wanted) {
    return wanted ? at::empty(x.sizes(), x.options().memory_format(layout))
                  : at::empty({0}, x.options());
  };
  Tensor dx = empty_if_not(input_gradients);
  Tensor didentity = empty_if_not(input_gradients && out);
  Tensor sums = at::empty({x.size(0), x.size(1), 4}, x.options().dtype(at::kDouble));
  if (x.numel() == 0) return {dx, didentity, sums.zero_()};
  const auto* stats_data = static_cast<const Statistics*>(stats.const_data_ptr());
  auto* sums_data = static_cast<PlaneSums*>(sums.data_ptr());
  const Tensor gradient = in_layout(dy, layout), from = in_layout(x, layout);
  const Tensor result = out ? in_layout(*out, layout) : Tensor();
  const auto parameters = gathered.parameters();
  const auto shape = shape_of(x);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "shuffle_attention_backward", [&] {
        if (layout == at::MemoryFormat::Contiguous) {
          backward_planes<scalar_t>(gradient, result, from, dx, didentity, stats_data, sums_data,
                                    parameters, shape);
        } else {
          const auto data = [](const Tensor& tensor) {
            return tensor.numel() ? tensor.data_ptr<scalar_t>() : nullptr;
          };
          const auto kernel = out ? pixels_backward<scalar_t, true> : pixels_backward<scalar_t, false>;
          kernel(gradient.const_data_ptr<scalar_t>(),
                 out ? result.const_data_ptr<scalar_t>() : nullptr,
                 from.const_data_ptr<scalar_t>(), data(dx), data(didentity), stats_data, sums_data,
                 parameters, shape);
        }
      });
  return {dx, didentity, sums};
}

}  // namespace
}  // namespace sa_mmdet

TORCH_LIBRARY_FRAGMENT(sa_mmdet, m) {
  m.def(OPERATOR("forward")
        "(Tensor x, Tensor? identity, Tensor[] batch_norm, Tensor[] attention, int groups, "
        "float eps, float bn_eps) -> (Tensor, Tensor)");
  m.def(OPERATOR("backward")
        "(Tensor dy, Tensor x, Tensor? out, Tensor stats, Tensor[] batch_norm, "
        "Tensor[] attention, int groups, float eps, float bn_eps, bool input_gradients) "
        "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(sa_mmdet, CPU, m) {
  m.impl(OPERATOR("forward"), sa_mmdet::forward);
  m.impl(OPERATOR("backward"), sa_mmdet::backward);
}
