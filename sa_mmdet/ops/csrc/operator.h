// The operators sa_mmdet::shuffle_attention_{forward,backward,gate}_<capability>. Each instruction
// set has a source file, which names it, includes this file and becomes a library. cpp.py loads the
// library that fits the machine.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "channels_last.h"
#include "contiguous.h"

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

// The values of tensors, each of size values, one after the other, in double.
std::vector<double> gather(at::TensorList tensors, int64_t size) {
  std::vector<double> values;
  values.reserve(tensors.size() * size);
  for (const auto& tensor : tensors) {
    TORCH_CHECK_VALUE(
        tensor.numel() == size, "a parameter has ", tensor.numel(), " values, not ", size);
    const Tensor contiguous = tensor.contiguous();
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, tensor.scalar_type(), "shuffle_attention_parameter", [&] {
          const auto* data = contiguous.const_data_ptr<scalar_t>();
          values.insert(values.end(), data, data + size);
        });
  }
  return values;
}

// The numbers that the tensors of a call hold. It must outlive the Parameters that point to it.
struct Gathered {
  std::vector<double> attention, batch_norm;
  int64_t p;
  double eps;

  // norm: no tensors, or weight, bias, mean and variance
  Gathered(at::TensorList attention_, at::TensorList norm, int64_t channels, int64_t groups,
           double eps, double bn_eps)
      : eps(eps) {
    TORCH_CHECK_VALUE(groups > 0 && channels % (2 * groups) == 0,
                      "channels (", channels, ") must divide by 2 * groups (", groups, ")");
    TORCH_CHECK_VALUE(norm.empty() || norm.size() == 4,
                      "batch_norm must be no tensors or four, not ", norm.size());
    p = channels / (2 * groups);
    attention = gather(attention_, p);
    batch_norm = gather(norm, channels);
    if (norm.empty()) return;
    double *weight = batch_norm.data(), *bias = weight + channels;
    double *mean = bias + channels, *variance = mean + channels;
    for (int64_t c = 0; c < channels; ++c) {
      variance[c] = 1 / std::sqrt(variance[c] + bn_eps);
      weight[c] *= variance[c];
      bias[c] -= mean[c] * weight[c];
    }
  }

  Parameters parameters() const {
    BatchNorm norm{nullptr, nullptr, nullptr, nullptr};
    if (!batch_norm.empty()) {
      const double* scale = batch_norm.data();
      const auto channels = static_cast<int64_t>(batch_norm.size() / 4);
      norm = {scale, scale + channels, scale + 2 * channels, scale + 3 * channels};
    }
    return {attention.data(), p, eps, norm};
  }
};

// The type of the tensors if they share it, else double.
at::ScalarType gradient_type(at::TensorList tensors) {
  for (const auto& tensor : tensors)
    if (tensor.scalar_type() != tensors[0].scalar_type()) return at::kDouble;
  return tensors.empty() ? at::kDouble : tensors[0].scalar_type();
}

// (6, p), for the attention's parameters, from the sums over all planes of their channel.
Tensor attention_gradients(
    const std::vector<PlaneSums>& sums, const Parameters& parameters, int64_t channels) {
  const int64_t p = parameters.p;
  Tensor gradients = at::zeros({6, p}, at::kDouble);
  double* of = gradients.mutable_data_ptr<double>();
  for (size_t plane = 0; plane < sums.size(); ++plane) {
    const int64_t c = plane % channels, i = c % p + (parameters.is_spatial(c) ? 2 * p : 0);
    of[i] += sums[plane].weight;
    of[i + p] += sums[plane].bias;
  }
  // scale and shift of the group norm and those after it see the same two sums
  for (int64_t i = 0; i < p; ++i) {
    const double* at = parameters.values + i;
    const double dz_x = of[i + 2 * p], dz = of[i + 3 * p];
    of[i + 2 * p] = at[4 * p] * dz_x + at[5 * p] * dz;
    of[i + 4 * p] = at[2 * p] * dz_x;
    of[i + 5 * p] = at[2 * p] * dz;
  }
  return gradients;
}

// (2, channels), for the batch norm's weight and bias.
Tensor batch_norm_gradients(const std::vector<PlaneSums>& sums, int64_t channels) {
  Tensor gradients = at::zeros({2, channels}, at::kDouble);
  double* of = gradients.mutable_data_ptr<double>();
  for (size_t plane = 0; plane < sums.size(); ++plane) {
    of[plane % channels] += sums[plane].bn_weight;
    of[channels + plane % channels] += sums[plane].bn_bias;
  }
  return gradients;
}

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

template <typename T, typename P>
void forward_contiguous(
    const Tensor& x, const Tensor& identity, const Tensor& y, Statistics* stats,
    const P& parameters, const Shape& shape) {
  const auto from = planes_of<const T>(x);
  const auto to = planes_of<T>(y);
  if (!identity.defined()) {
    contiguous_forward<T>(
        from, to, stats, parameters, shape,
        [](int64_t, int64_t, const Affine& affine, double center) {
          if constexpr (std::is_same_v<P, ChannelParameters>)
            return Shifted<T>{Pack<T>(affine.scale), Pack<T>(affine(center))};
          else
            return Alone<T>{};
        });
    return;
  }
  const auto added = planes_of<const T>(identity);
  contiguous_forward<T>(
      from, to, stats, parameters, shape,
      [=](int64_t n, int64_t c, const Affine& affine, double center) {
        return WithIdentity<T>{Pack<T>(affine.scale), Pack<T>(affine(center)),
                               added(n, parameters.target(c, shape.c)), nullptr, nullptr, nullptr};
      });
}

// Attention, and with an identity its addition and the ReLU. Returns the output and the planes'
// statistics.
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
          forward_contiguous<scalar_t>(from, added, y, stats_data, parameters, shape);
        } else {
          const auto kernel = identity ? channels_last_forward<scalar_t, true>
                                       : channels_last_forward<scalar_t, false>;
          kernel(from.const_data_ptr<scalar_t>(),
                 identity ? added.const_data_ptr<scalar_t>() : nullptr, y.data_ptr<scalar_t>(),
                 stats_data, parameters, shape);
        }
      });
  return {y, stats};
}

// Overwrites z with what the attention makes of it after its shuffle was absorbed. With an
// identity, adds it and applies a ReLU. The parameters are as in ChannelParameters, with a value
// for each channel.
void gate(
    const Tensor& z, const std::optional<Tensor>& identity, at::TensorList parameters, double eps) {
  TORCH_CHECK_VALUE(z.dim() == 4, "z must have four dimensions, not ", z.dim());
  const auto layout = layout_of(z);
  TORCH_CHECK_VALUE(z.is_contiguous(layout), "z must be contiguous or channels_last");
  if (identity) check_like("identity", *identity, z);
  if (z.numel() == 0) return;
  const auto values = gather(parameters, z.size(1));
  TORCH_CHECK_VALUE(parameters.size() == 4, "parameters must be four tensors");
  const auto shape = shape_of(z);
  const double* slope = values.data();
  const ChannelParameters of_channels{
      slope, slope + shape.c, slope + 2 * shape.c, slope + 3 * shape.c, eps};
  std::vector<Statistics> stats(shape.n * shape.c);
  const Tensor added = identity ? in_layout(*identity, layout) : Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, z.scalar_type(), "shuffle_attention_gate", [&] {
        if (layout == at::MemoryFormat::Contiguous) {
          forward_contiguous<scalar_t>(z, added, z, stats.data(), of_channels, shape);
        } else {
          channels_last_gate<scalar_t>(
              z.data_ptr<scalar_t>(), identity ? added.const_data_ptr<scalar_t>() : nullptr,
              stats.data(), of_channels, shape);
        }
      });
}

template <typename T>
void backward_contiguous(
    const Tensor& dy, const Tensor& out, const Tensor& x, const Tensor& dx,
    const Tensor& didentity, const Statistics* stats, PlaneSums* sums,
    const Parameters& parameters, const Shape& shape) {
  const Planes<T> none{nullptr, 0, 0};
  const auto from = planes_of<const T>(x), gradient = planes_of<const T>(dy);
  const auto to = dx.numel() ? planes_of<T>(dx) : none;
  if (!out.defined()) {
    contiguous_backward<T>(from, to, stats, sums, parameters, shape,
                           [=](int64_t n, int64_t c, const Affine&, double) {
                             return Alone<T>{gradient(n, shuffled(c, shape.c))};
                           });
    return;
  }
  const auto result = planes_of<const T>(out);
  const auto to_identity = didentity.numel() ? planes_of<T>(didentity) : none;
  contiguous_backward<T>(
      from, to, stats, sums, parameters, shape,
      [=](int64_t n, int64_t c, const Affine& affine, double center) {
        const int64_t at = shuffled(c, shape.c);
        return WithIdentity<T>{
            Pack<T>(affine.scale), Pack<T>(affine(center)), nullptr, gradient(n, at),
            result(n, at), to_identity.data ? to_identity(n, at) : nullptr};
      });
}

// The derivative of the attention and, with out, of what follows it. Returns dx, didentity and the
// gradients of the batch norm's and the attention's parameters. dx and didentity are empty without
// input_gradients, didentity also without out.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
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
  std::vector<PlaneSums> sums(x.numel() ? x.size(0) * x.size(1) : 0);
  const auto* stats_data = static_cast<const Statistics*>(stats.const_data_ptr());
  const Tensor gradient = in_layout(dy, layout), from = in_layout(x, layout);
  const Tensor result = out ? in_layout(*out, layout) : Tensor();
  const auto parameters = gathered.parameters();
  const auto shape = shape_of(x);
  if (!sums.empty()) AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "shuffle_attention_backward", [&] {
        if (layout == at::MemoryFormat::Contiguous) {
          backward_contiguous<scalar_t>(gradient, result, from, dx, didentity, stats_data,
                                    sums.data(), parameters, shape);
        } else {
          const auto data = [](const Tensor& tensor) {
            return tensor.numel() ? tensor.data_ptr<scalar_t>() : nullptr;
          };
          const auto kernel = out ? channels_last_backward<scalar_t, true>
                                  : channels_last_backward<scalar_t, false>;
          kernel(gradient.const_data_ptr<scalar_t>(),
                 out ? result.const_data_ptr<scalar_t>() : nullptr,
                 from.const_data_ptr<scalar_t>(), data(dx), data(didentity), stats_data,
                 sums.data(), parameters, shape);
        }
      });
  const auto affine = batch_norm.slice(0, batch_norm.size() / 2);  // weight and bias
  return {dx, didentity, batch_norm_gradients(sums, x.size(1)).to(gradient_type(affine)),
          attention_gradients(sums, parameters, x.size(1)).to(gradient_type(attention))};
}

}  // namespace
}  // namespace sa_mmdet

TORCH_LIBRARY_FRAGMENT(sa_mmdet, m) {
  m.def(OPERATOR("forward")
        "(Tensor x, Tensor? identity, Tensor[] batch_norm, Tensor[] attention, int groups, "
        "float eps, float bn_eps) -> (Tensor, Tensor)");
  m.def(OPERATOR("gate") "(Tensor(a!) z, Tensor? identity, Tensor[] parameters, float eps) -> ()");
  m.def(OPERATOR("backward")
        "(Tensor dy, Tensor x, Tensor? out, Tensor stats, Tensor[] batch_norm, "
        "Tensor[] attention, int groups, float eps, float bn_eps, bool input_gradients) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(sa_mmdet, CPU, m) {
  m.impl(OPERATOR("forward"), sa_mmdet::forward);
  m.impl(OPERATOR("gate"), sa_mmdet::gate);
  m.impl(OPERATOR("backward"), sa_mmdet::backward);
}
