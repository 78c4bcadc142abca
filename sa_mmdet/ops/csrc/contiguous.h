// Shuffle attention where every (n, c) plane is contiguous: planes are independent of each other,
// and one stays in the cache between the passes over it.
#pragma once

#include <ATen/Parallel.h>

#include "plane.h"
#include "vec.h"

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

// Sums run in the type of computation over a block, from block to block in double.
constexpr int64_t kBlock = 4096;

// The mean of deviations from one of the values. If the mean is much larger than the deviations, a
// sum of the values would lose digits.
template <typename T>
double plane_mean(const T* x, int64_t area) {
  const accumulate_t<T> first = *x, center = std::isfinite(first) ? first : 0;
  const Pack<T> centers(center);
  double sum = 0;
  for (int64_t begin = 0; begin < area; begin += kBlock) {
    SlotSum<T> block;
    for_each_pack_in_slots<T>(begin, std::min(begin + kBlock, area), [&](int64_t i, auto count,
                                                                         auto slot) {
      const auto deviation = (Pack<T>::load(x + i, count) - centers).head(count);
      block.slots[slot] = block.slots[slot] + deviation;
    });
    sum += block.total();
  }
  return center + sum / area;
}

// Two passes over each block: the deviations from the block's own mean lose no digits.
template <typename T>
Moments plane_moments(const T* x, int64_t area) {
  Moments moments;
  for (int64_t begin = 0; begin < area; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, area);
    const auto center = static_cast<accumulate_t<T>>(plane_mean(x + begin, end - begin));
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

// Fetches the next plane into the cache while this one is gated. After the last plane there is
// nothing to read, but a prefetch does not read.
template <typename T>
void prefetch_next_plane(const T* x, int64_t area) {
#if defined(__GNUC__)
  __builtin_prefetch(x + area, 0, 2);
#endif
}

// What surrounds the attention of a plane: nothing, or the rest of the bottleneck. input()
// comes before the attention, of x or its deviation from the plane's center, output() after it;
// gradient() is dy on the first pass over the plane, gradient_again() on the second.
template <typename T>
struct Alone {
  const T* dy;

  static constexpr bool kAddsIdentity = false;

  Pack<T> input(const Pack<T>& x, const Pack<T>&) const {
    return x;
  }
  Pack<T> output(const Pack<T>& y, int64_t, int) const {
    return y;
  }
  Pack<T> gradient(int64_t i, int count) const {
    return Pack<T>::load(dy + i, count);
  }
  Pack<T> gradient_again(int64_t i, int count) const {
    return gradient(i, count);
  }
};

// An affine function before the attention, nothing after it.
template <typename T>
struct Shifted {
  Pack<T> scale, at_center;

  Pack<T> input(const Pack<T>&, const Pack<T>& deviation) const {
    return fmadd(scale, deviation, at_center);
  }
  Pack<T> output(const Pack<T>& y, int64_t, int) const {
    return y;
  }
};

template <typename T>
inline Pack<T> relu(const Pack<T>& x) {
  return map<T>([](auto x) { return at::vec::clamp_min(x, decltype(x)(0)); }, x);
}

// dy where the ReLU's output is positive, else 0.
template <typename T>
inline Pack<T> relu_gradient(const Pack<T>& dy, const Pack<T>& out) {
  return map<T>([](auto dy, auto out) {
    using Vec = decltype(dy);
    return Vec::blendv(dy, Vec(0), out <= Vec(0));
  }, dy, out);
}

template <typename T>
struct WithIdentity {
  Pack<T> scale, at_center;  // of the affine function
  const T *identity, *dout, *out;
  T* didentity;

  static constexpr bool kAddsIdentity = true;

  Pack<T> input(const Pack<T>&, const Pack<T>& deviation) const {
    return fmadd(scale, deviation, at_center);
  }
  Pack<T> output(const Pack<T>& y, int64_t i, int count) const {
    return relu(y + Pack<T>::load(identity + i, count));
  }
  Pack<T> gradient(int64_t i, int count) const {
    const auto dy = relu_gradient(Pack<T>::load(dout + i, count), Pack<T>::load(out + i, count));
    if (didentity) dy.store(didentity + i, count);
    return dy;
  }
  Pack<T> gradient_again(int64_t i, int count) const {
    return Pack<T>::load(didentity + i, count);
  }
};

template <typename T, typename Around>
void scale_plane(
    const T* x, T* y, int64_t area, const Gate<accumulate_t<T>>& gate, const Around& around) {
  const Pack<T> center(gate.center), s(static_cast<accumulate_t<T>>(sigmoid(gate.offset)));
  for_each_pack<T>(0, area, [&](int64_t i, auto count) {
    prefetch_next_plane(x + i, area);
    const auto loaded = Pack<T>::load(x + i, count);
    around.output(around.input(loaded, loaded - center) * s, i, count).store(y + i, count);
  });
}

template <typename T, typename Around>
void gate_plane(
    const T* x, T* y, int64_t area, const Gate<accumulate_t<T>>& gate, const Around& around) {
  const Pack<T> slope(gate.slope), center(gate.center), offset(gate.offset);
  for_each_pack<T>(0, area, [&](int64_t i, auto count) {
    prefetch_next_plane(x + i, area);
    const auto loaded = Pack<T>::load(x + i, count);
    const auto deviation = loaded - center;
    const auto s = sigmoid(fmadd(slope, deviation, offset)).value;
    around.output(around.input(loaded, deviation) * s, i, count).store(y + i, count);
  });
}

// For the channel branch, whose gate is one number.
template <typename T, typename Around>
RawSums scale_sums(
    const T* x, int64_t area, const Gate<accumulate_t<T>>& gate, const Affine& affine,
    const Around& around) {
  const Pack<T> center(gate.center);
  double dy_deviation = 0, dy = 0;
  for (int64_t begin = 0; begin < area; begin += kBlock) {
    SlotSum<T> deviations, ones;
    for_each_pack_in_slots<T>(begin, std::min(begin + kBlock, area), [&](int64_t i, auto count,
                                                                         auto slot) {
      const auto gradient = around.gradient(i, count);
      deviations.slots[slot] =
          fmadd(gradient, Pack<T>::load(x + i, count) - center, deviations.slots[slot]);
      ones.slots[slot] = ones.slots[slot] + gradient;
    });
    dy_deviation += deviations.total();
    dy += ones.total();
  }
  const double s = sigmoid(gate.offset);
  const double dy_v = affine.scale * dy_deviation + affine(gate.center) * dy;
  return {0, s * sigmoid(-gate.offset) * dy_v, s * dy_deviation, s * dy};
}

template <typename T, typename Around>
RawSums gate_sums(
    const T* x, int64_t area, const Gate<accumulate_t<T>>& gate, const Around& around) {
  const Pack<T> slope(gate.slope), center(gate.center), offset(gate.offset);
  RawSums sums{0, 0, 0, 0};
  for (int64_t begin = 0; begin < area; begin += kBlock) {
    SlotSum<T> dz_deviation, dzs, dv_deviation, dvs;
    for_each_pack_in_slots<T>(begin, std::min(begin + kBlock, area), [&](int64_t i, auto count,
                                                                         auto slot) {
      const auto loaded = Pack<T>::load(x + i, count);
      const auto deviation = loaded - center;
      const auto s = sigmoid(fmadd(slope, deviation, offset));
      const auto dy = around.gradient(i, count);
      const auto dz = dy * around.input(loaded, deviation) * (s.value * s.complement);
      dz_deviation.slots[slot] = fmadd(dz, deviation, dz_deviation.slots[slot]);
      dzs.slots[slot] = dzs.slots[slot] + dz;
      if constexpr (Around::kAddsIdentity) {
        const auto dv = dy * s.value;
        dv_deviation.slots[slot] = fmadd(dv, deviation, dv_deviation.slots[slot]);
        dvs.slots[slot] = dvs.slots[slot] + dv;
      }
    });
    sums.dz_deviation += dz_deviation.total();
    sums.dz += dzs.total();
    sums.dv_deviation += dv_deviation.total();
    sums.dv += dvs.total();
  }
  return sums;
}

template <typename T, typename Around>
void scale_plane_backward(
    T* dx, int64_t area, accumulate_t<T> gate, accumulate_t<T> constant, const Around& around) {
  const Pack<T> gates(gate), constants(constant);
  for_each_pack<T>(0, area, [&](int64_t i, auto count) {
    fmadd(around.gradient_again(i, count), gates, constants).store(dx + i, count);
  });
}

template <typename T, typename Around>
void gate_plane_backward(
    const T* x, T* dx, int64_t area, const Gate<accumulate_t<T>>& gate,
    const InputGradient<accumulate_t<T>>& gradient, const Around& around) {
  const Pack<T> slope(gate.slope), center(gate.center), offset(gate.offset);
  const Pack<T> scale(gradient.scale), mean(gradient.mean), minus_linear(-gradient.linear);
  for_each_pack<T>(0, area, [&](int64_t i, auto count) {
    const auto loaded = Pack<T>::load(x + i, count), dy = around.gradient_again(i, count);
    const auto deviation = loaded - center;
    const auto s = sigmoid(fmadd(slope, deviation, offset));
    const auto dz = dy * around.input(loaded, deviation) * (s.value * s.complement);
    const auto through_gate = fmadd(minus_linear, deviation, dz - mean);
    auto dv = dy * s.value;
    if constexpr (Around::kAddsIdentity) dv = dv * scale;
    fmadd(slope, through_gate, dv).store(dx + i, count);
  });
}

// 32768 elements are enough work for a thread.
inline int64_t planes_per_task(int64_t area) {
  return std::max<int64_t>(1, 32768 / area);
}

// around(n, c, affine, center): what surrounds the plane of input channel c. y may be x if no
// channel moves.
template <typename T, typename P, typename F>
void contiguous_forward(
    Planes<const T> x, Planes<T> y, Statistics* stats, const P& parameters, const Shape& shape,
    F around) {
  using acc_t = accumulate_t<T>;
  at::parallel_for(
      0, shape.n * shape.c, planes_per_task(shape.area), [&](int64_t begin, int64_t end) {
        // in the order of the output: memory that is written in order is written faster
        for (int64_t out = begin; out < end; ++out) {
          const int64_t n = out / shape.c, c = parameters.source(out % shape.c, shape.c);
          const int64_t plane = n * shape.c + c;
          const bool spatial = parameters.is_spatial(c);
          const T* from = x(n, c);
          T* to = y(n, out % shape.c);
          stats[plane] = spatial ? plane_moments(from, shape.area).statistics()
                                 : Statistics{plane_mean(from, shape.area), 0};
          const auto gate = parameters.template gate<acc_t>(c, stats[plane]);
          const auto around_plane = around(n, c, parameters.affine(c), gate.center);
          if (spatial)
            gate_plane(from, to, shape.area, gate, around_plane);
          else
            scale_plane(from, to, shape.area, gate, around_plane);
        }
      });
}

// dx is not written if it has no data.
template <typename T, typename F>
void contiguous_backward(
    Planes<const T> x, Planes<T> dx, const Statistics* stats, PlaneSums* sums,
    const Parameters& parameters, const Shape& shape, F around) {
  using acc_t = accumulate_t<T>;
  const auto area = shape.area;
  at::parallel_for(0, shape.n * shape.c, planes_per_task(area), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / shape.c, c = plane % shape.c;
      const auto affine = parameters.batch_norm.affine(c);
      const auto gate = parameters.gate<acc_t>(c, stats[plane]);
      const auto around_plane = around(n, c, affine, gate.center);
      const T* from = x(n, c);
      const bool spatial = parameters.is_spatial(c);
      const RawSums raw = spatial ? gate_sums(from, area, gate, around_plane)
                                  : scale_sums(from, area, gate, affine, around_plane);
      sums[plane] = parameters.plane_sums<acc_t>(c, stats[plane], raw);
      if (!dx.data) continue;
      const auto gradient = parameters.input_gradient<acc_t>(c, stats[plane], sums[plane], area);
      T* to = dx(n, c);
      if (spatial)
        gate_plane_backward(from, to, area, gate, gradient, around_plane);
      else
        scale_plane_backward(
            to, area, static_cast<acc_t>(affine.scale * sigmoid(gate.offset)), gradient.constant,
            around_plane);
    }
  });
}

}  // namespace sa_mmdet
