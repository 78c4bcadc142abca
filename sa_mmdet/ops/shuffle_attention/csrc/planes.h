// Shuffle attention where every (n, c) plane is contiguous: planes are independent of each other,
// and one stays in the cache between the passes over it.
#pragma once

#include <ATen/Parallel.h>

#include "gate.h"
#include "pack.h"

namespace sa_mmdet {

// Where the planes of a (N, C, H, W) tensor start.
template <typename T>
struct Planes {
  T* data;
  int64_t n_stride, c_stride;

  T* operator()(int64_t n, int64_t c) const {
    return data + n * n_stride + c * c_stride;
  }
};

struct Shape {
  int64_t n, c, area;
};

// Channel c of y goes to channel 2 i + k of the shuffled output, with c = k C / 2 + i.
inline int64_t shuffled(int64_t c, int64_t channels) {
  return c % (channels / 2) * 2 + c / (channels / 2);
}

// The channel that is shuffled to channel c.
inline int64_t unshuffled(int64_t c, int64_t channels) {
  return c % 2 * (channels / 2) + c / 2;
}

// Sums run in the type of computation over a block, from block to block in double.
constexpr int64_t kBlock = 4096;

template <typename T>
double plane_sum(const T* x, int64_t area) {
  double sum = 0;
  for (int64_t begin = 0; begin < area; begin += kBlock) {
    SlotSum<T> block;
    for_each_pack_in_slots<T>(begin, std::min(begin + kBlock, area), [&](int64_t i, auto count,
                                                                         auto slot) {
      block.slots[slot] = block.slots[slot] + Pack<T>::load(x + i, count);
    });
    sum += block.total();
  }
  return sum;
}

// Two passes over each block: the deviations from the block's own mean lose no digits.
template <typename T>
Moments plane_moments(const T* x, int64_t area) {
  Moments moments;
  for (int64_t begin = 0; begin < area; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, area);
    const auto center =
        static_cast<accumulate_t<T>>(plane_sum(x + begin, end - begin) / (end - begin));
    const Pack<T> centers(center);
    SlotSum<T> sum, squares;
    for_each_pack_in_slots<T>(begin, end, [&](int64_t i, auto count, auto slot) {
      const auto deviation = (Pack<T>::load(x + i, count) - centers).head(count);
      sum.slots[slot] = sum.slots[slot] + deviation;
      squares.slots[slot] = fmadd(deviation, deviation, squares.slots[slot]);
    });
    moments.merge(Moments::about(center, end - begin, sum.total(), squares.total()));
  }
  return moments;
}

// The plane after this one, which is read soon, comes into the cache while this one is gated. After
// the last plane there is nothing to read, but a prefetch does not read.
template <typename T>
void prefetch_next_plane(const T* x, int64_t area) {
#if defined(__GNUC__)
  __builtin_prefetch(x + area, 0, 2);
#endif
}

template <typename T>
void scale_plane(const T* x, T* y, int64_t area, accumulate_t<T> gate) {
  const Pack<T> gates(gate);
  for_each_pack<T>(0, area, [&](int64_t i, auto count) {
    prefetch_next_plane(x + i, area);
    (Pack<T>::load(x + i, count) * gates).store(y + i, count);
  });
}

template <typename T>
void gate_plane(const T* x, T* y, int64_t area, const Gate<accumulate_t<T>>& gate) {
  const Pack<T> slope(gate.slope), center(gate.center), offset(gate.offset);
  for_each_pack<T>(0, area, [&](int64_t i, auto count) {
    prefetch_next_plane(x + i, area);
    const auto v = Pack<T>::load(x + i, count);
    (v * sigmoid(fmadd(slope, v - center, offset)).value).store(y + i, count);
  });
}

// Sum of dy x.
template <typename T>
double plane_dot(const T* dy, const T* x, int64_t area) {
  double sum = 0;
  for (int64_t begin = 0; begin < area; begin += kBlock) {
    SlotSum<T> block;
    for_each_pack_in_slots<T>(begin, std::min(begin + kBlock, area), [&](int64_t i, auto count,
                                                                         auto slot) {
      block.slots[slot] =
          fmadd(Pack<T>::load(dy + i, count), Pack<T>::load(x + i, count), block.slots[slot]);
    });
    sum += block.total();
  }
  return sum;
}

// Sums of dz (x - center) and of dz.
template <typename T>
PlaneSums gate_sums(
    const T* dy, const T* x, int64_t area, const Gate<accumulate_t<T>>& gate) {
  const Pack<T> slope(gate.slope), center(gate.center), offset(gate.offset);
  PlaneSums sums{0, 0};
  for (int64_t begin = 0; begin < area; begin += kBlock) {
    SlotSum<T> weight, bias;
    for_each_pack_in_slots<T>(begin, std::min(begin + kBlock, area), [&](int64_t i, auto count,
                                                                         auto slot) {
      const auto v = Pack<T>::load(x + i, count);
      const auto deviation = v - center;
      const auto s = sigmoid(fmadd(slope, deviation, offset));
      const auto dz = Pack<T>::load(dy + i, count) * v * (s.value * s.complement);
      weight.slots[slot] = fmadd(dz, deviation, weight.slots[slot]);
      bias.slots[slot] = bias.slots[slot] + dz;
    });
    sums.weight += weight.total();
    sums.bias += bias.total();
  }
  return sums;
}

template <typename T>
void scale_plane_backward(
    const T* dy, T* dx, int64_t area, accumulate_t<T> gate, accumulate_t<T> constant) {
  const Pack<T> gates(gate), constants(constant);
  for_each_pack<T>(0, area, [&](int64_t i, auto count) {
    fmadd(Pack<T>::load(dy + i, count), gates, constants).store(dx + i, count);
  });
}

template <typename T>
void gate_plane_backward(
    const T* dy, const T* x, T* dx, int64_t area, const Gate<accumulate_t<T>>& gate,
    const InputGradient<accumulate_t<T>>& gradient) {
  const Pack<T> slope(gate.slope), center(gate.center), offset(gate.offset);
  const Pack<T> mean(gradient.mean), minus_linear(-gradient.linear);
  for_each_pack<T>(0, area, [&](int64_t i, auto count) {
    const auto v = Pack<T>::load(x + i, count), dv = Pack<T>::load(dy + i, count);
    const auto deviation = v - center;
    const auto s = sigmoid(fmadd(slope, deviation, offset));
    const auto dz = dv * v * (s.value * s.complement);
    const auto through_gate = fmadd(minus_linear, deviation, dz - mean);
    fmadd(slope, through_gate, dv * s.value).store(dx + i, count);
  });
}

// Enough work for a thread: that of 32768 elements.
inline int64_t planes_per_task(int64_t area) {
  return std::max<int64_t>(1, 32768 / area);
}

template <typename T>
void planes_forward(
    Planes<const T> x, Planes<T> y, Statistics* stats, const Parameters& parameters,
    const Shape& shape, double eps) {
  using acc_t = accumulate_t<T>;
  at::parallel_for(
      0, shape.n * shape.c, planes_per_task(shape.area), [&](int64_t begin, int64_t end) {
        // in the order of the output: memory that is written in order is written faster
        for (int64_t out = begin; out < end; ++out) {
          const int64_t n = out / shape.c, c = unshuffled(out % shape.c, shape.c);
          const int64_t plane = n * shape.c + c;
          const T* from = x(n, c);
          T* to = y(n, out % shape.c);
          if (parameters.is_spatial(c)) {
            const Moments moments = plane_moments(from, shape.area);
            stats[plane] = {moments.mean, moments.rstd(eps)};
            gate_plane(from, to, shape.area, parameters.gate<acc_t>(c, stats[plane]));
          } else {
            stats[plane] = {plane_sum(from, shape.area) / shape.area, 0};
            const auto gate = parameters.gate<acc_t>(c, stats[plane]);
            scale_plane(from, to, shape.area, static_cast<acc_t>(sigmoid(gate.offset)));
          }
        }
      });
}

// dx is left alone where it has no data.
template <typename T>
void planes_backward(
    Planes<const T> dy, Planes<const T> x, Planes<T> dx, const Statistics* stats,
    PlaneSums* sums, const Parameters& parameters, const Shape& shape) {
  using acc_t = accumulate_t<T>;
  const auto area = shape.area;
  at::parallel_for(0, shape.n * shape.c, planes_per_task(area), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / shape.c, c = plane % shape.c;
      const T* from = x(n, c);
      const T* grad = dy(n, shuffled(c, shape.c));
      const auto gate = parameters.gate<acc_t>(c, stats[plane]);
      const double constant = sigmoid(gate.offset);
      const bool spatial = parameters.is_spatial(c);
      const PlaneSums raw = spatial
          ? gate_sums(grad, from, area, gate)
          : PlaneSums{0, plane_dot(grad, from, area) * constant * sigmoid(-gate.offset)};
      sums[plane] = parameters.plane_sums<acc_t>(c, stats[plane], raw.bias, raw.weight);
      if (!dx.data) continue;
      const auto gradient = parameters.input_gradient<acc_t>(c, stats[plane], sums[plane], area);
      T* to = dx(n, c);
      if (spatial)
        gate_plane_backward(grad, from, to, area, gate, gradient);
      else
        scale_plane_backward(grad, to, area, static_cast<acc_t>(constant), gradient.constant);
    }
  });
}

}  // namespace sa_mmdet
