// Shuffle attention in channels_last memory: the channels of a pixel are contiguous, so that a
// pass over some pixels does all planes at once. An image is cut into chunks of pixels, whose sums
// are then merged in order: the result does not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <vector>

#include "plane.h"
#include "vec.h"
#include "contiguous.h"

namespace sa_mmdet {

struct Chunks {
  static constexpr int64_t kElements = 1 << 18;

  Shape shape;
  int64_t pixels, per_image;

  explicit Chunks(const Shape& shape)
      : shape(shape),
        pixels(std::max<int64_t>(1, kElements / shape.c)),
        per_image((shape.area + pixels - 1) / pixels) {}

  int64_t count() const {
    return shape.n * per_image;
  }

  // f(chunk, n, offset, pixels), with the offset of the chunk's first element
  template <typename F>
  void parallel(F f) const {
    at::parallel_for(0, count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t n = chunk / per_image, first = chunk % per_image * pixels;
        f(chunk, n, (n * shape.area + first) * shape.c, std::min(pixels, shape.area - first));
      }
    });
  }

  // f(plane, c, partial), with the partial sums of a plane's chunks shape.c apart
  template <typename Sums, typename F>
  void merge(const std::vector<Sums>& sums, F f) const {
    at::parallel_for(0, shape.n * shape.c, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t n = plane / shape.c, c = plane % shape.c;
        f(plane, c, sums.data() + n * per_image * shape.c + c);
      }
    });
  }
};

// Pixels whose sums run in the type of computation before they are added up in double.
inline int64_t pixels_per_block(int64_t channels) {
  return std::clamp<int64_t>(16384 / channels, 8, 64);
}

template <typename T>
void add_to(accumulate_t<T>* sums, int64_t c, const Pack<T>& value, int count) {
  (Pack<T>::load_acc(sums + c, count) + value).store_acc(sums + c, count);
}

template <typename T>
void chunk_moments(const T* x, int64_t pixels, int64_t channels, Moments* moments) {
  using acc_t = accumulate_t<T>;
  std::fill_n(moments, channels, Moments{});
  std::vector<acc_t> arrays(3 * channels);
  acc_t *centers = arrays.data(), *sum = centers + channels, *squares = sum + channels;
  const int64_t block = pixels_per_block(channels);
  for (int64_t first = 0; first < pixels; first += block) {
    const int64_t last = std::min(first + block, pixels);
    std::fill(arrays.begin(), arrays.end(), acc_t(0));
    for (int64_t pixel = first; pixel < last; ++pixel)
      for_each_pack<T>(0, channels, [&](int64_t c, auto count) {
        add_to<T>(centers, c, Pack<T>::load(x + pixel * channels + c, count), count);
      });
    for (int64_t c = 0; c < channels; ++c) centers[c] /= last - first;
    for (int64_t pixel = first; pixel < last; ++pixel)
      for_each_pack<T>(0, channels, [&](int64_t c, auto count) {
        const auto deviation =
            Pack<T>::load(x + pixel * channels + c, count) - Pack<T>::load_acc(centers + c, count);
        add_to<T>(sum, c, deviation, count);
        add_to<T>(squares, c, deviation * deviation, count);
      });
    for (int64_t c = 0; c < channels; ++c)
      moments[c].merge(Moments::about(centers[c], last - first, sum[c], squares[c]));
  }
}

// The gates of all channels of an image, as arrays. The channel branch is the spatial branch with
// slope 0.
template <typename T>
struct Gates {
  using acc_t = accumulate_t<T>;
  std::vector<acc_t> slope, center, offset, scale, at_center;

  template <typename P>
  Gates(const Statistics* stats, const P& parameters, int64_t channels)
      : slope(channels), center(channels), offset(channels), scale(channels), at_center(channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto gate = parameters.template gate<acc_t>(c, stats[c]);
      const auto affine = parameters.affine(c);
      slope[c] = gate.slope, center[c] = gate.center, offset[c] = gate.offset;
      scale[c] = affine.scale, at_center[c] = affine(gate.center);
    }
  }
};

// One pack of elements of x with their gates; v is the attention's input.
template <typename T, bool kAddsIdentity>
struct Gated {
  Pack<T> v, slope, deviation;
  Sigmoid<T> s;

  Gated(const T* pixel, const Gates<T>& gates, int64_t c, int count)
      : v(Pack<T>::load(pixel + c, count)),
        slope(Pack<T>::load_acc(gates.slope.data() + c, count)),
        deviation(v - Pack<T>::load_acc(gates.center.data() + c, count)),
        s(sigmoid(fmadd(slope, deviation, Pack<T>::load_acc(gates.offset.data() + c, count)))) {
    if constexpr (kAddsIdentity)
      v = fmadd(Pack<T>::load_acc(gates.scale.data() + c, count), deviation,
                Pack<T>::load_acc(gates.at_center.data() + c, count));
  }

  Pack<T> dz(const Pack<T>& dy) const {
    return dy * v * (s.value * s.complement);
  }
};

template <typename T>
void channels_last_statistics(const T* x, Statistics* stats, const Chunks& chunks) {
  const int64_t channels = chunks.shape.c;
  std::vector<Moments> partial(chunks.count() * channels);
  chunks.parallel([&](int64_t chunk, int64_t, int64_t offset, int64_t pixels) {
    chunk_moments(x + offset, pixels, channels, partial.data() + chunk * channels);
  });
  chunks.merge(partial, [&](int64_t plane, int64_t, const Moments* of_plane) {
    Moments moments;
    for (int64_t i = 0; i < chunks.per_image; ++i) moments.merge(of_plane[i * channels]);
    stats[plane] = moments.statistics();
  });
}

// identity is not read without kAddsIdentity.
template <typename T, bool kAddsIdentity>
void channels_last_forward(
    const T* x, const T* identity, T* y, Statistics* stats, const Parameters& parameters,
    const Shape& shape) {
  const Chunks chunks(shape);
  const int64_t channels = shape.c, half = channels / 2;
  channels_last_statistics(x, stats, chunks);
  chunks.parallel([&](int64_t, int64_t n, int64_t offset, int64_t pixels) {
    const Gates<T> gates(stats + n * channels, parameters, channels);
    for (int64_t at = offset; at < offset + pixels * channels; at += channels)
      for_each_pack<T>(0, half, [&](int64_t c, auto count) {
        const Gated<T, kAddsIdentity> a(x + at, gates, c, count), b(x + at, gates, half + c, count);
        auto y_a = a.v * a.s.value, y_b = b.v * b.s.value;
        if constexpr (kAddsIdentity) {
          const auto [identity_a, identity_b] = load_interleaved<T>(identity + at + 2 * c, count);
          y_a = relu(y_a + identity_a), y_b = relu(y_b + identity_b);
        }
        store_interleaved<T>(y + at + 2 * c, y_a, y_b, count);
      });
  });
}

// In place, with the shuffle absorbed; identity may be null.
template <typename T>
void channels_last_gate(
    T* x, const T* identity, Statistics* stats, const ChannelParameters& parameters,
    const Shape& shape) {
  const Chunks chunks(shape);
  channels_last_statistics<T>(x, stats, chunks);
  chunks.parallel([&](int64_t, int64_t n, int64_t offset, int64_t pixels) {
    const Gates<T> gates(stats + n * shape.c, parameters, shape.c);
    for (int64_t at = offset; at < offset + pixels * shape.c; at += shape.c)
      for_each_pack<T>(0, shape.c, [&](int64_t c, auto count) {
        const Gated<T, true> gated(x + at, gates, c, count);
        auto y = gated.v * gated.s.value;
        if (identity) y = relu(y + Pack<T>::load(identity + at + c, count));
        y.store(x + at + c, count);
      });
  });
}

// dy of both halves of the channels. With an identity, it is 0 where the ReLU's output is.
template <typename T, bool kAddsIdentity>
std::pair<Pack<T>, Pack<T>> load_gradient(const T* dy, const T* out, int64_t at, int count) {
  auto gradient = load_interleaved<T>(dy + at, count);
  if constexpr (kAddsIdentity) {
    const auto [out_a, out_b] = load_interleaved<T>(out + at, count);
    gradient.first = relu_gradient(gradient.first, out_a);
    gradient.second = relu_gradient(gradient.second, out_b);
  }
  return gradient;
}

template <typename T, bool kAddsIdentity>
void chunk_sums(
    const T* dy, const T* out, const T* x, T* didentity, int64_t pixels, int64_t channels,
    const Gates<T>& gates, RawSums* sums) {
  using acc_t = accumulate_t<T>;
  std::fill_n(sums, channels, RawSums{0, 0, 0, 0});
  std::vector<acc_t> arrays(4 * channels);
  acc_t *dz_deviation = arrays.data(), *dzs = dz_deviation + channels;
  acc_t *dv_deviation = dzs + channels, *dvs = dv_deviation + channels;
  const int64_t half = channels / 2, block = pixels_per_block(channels);
  for (int64_t first = 0; first < pixels; first += block) {
    const int64_t last = std::min(first + block, pixels);
    std::fill(arrays.begin(), arrays.end(), acc_t(0));
    for (int64_t at = first * channels; at < last * channels; at += channels)
      for_each_pack<T>(0, half, [&](int64_t c, auto count) {
        const auto [dy_a, dy_b] = load_gradient<T, kAddsIdentity>(dy, out, at + 2 * c, count);
        if (didentity) store_interleaved<T>(didentity + at + 2 * c, dy_a, dy_b, count);
        const auto add = [&](int64_t c, const Pack<T>& dy) {
          const Gated<T, kAddsIdentity> gated(x + at, gates, c, count);
          const auto dz = gated.dz(dy);
          add_to<T>(dz_deviation, c, dz * gated.deviation, count);
          add_to<T>(dzs, c, dz, count);
          if constexpr (kAddsIdentity) {
            const auto dv = dy * gated.s.value;
            add_to<T>(dv_deviation, c, dv * gated.deviation, count);
            add_to<T>(dvs, c, dv, count);
          }
        };
        add(c, dy_a);
        add(half + c, dy_b);
      });
    for (int64_t c = 0; c < channels; ++c) {
      sums[c].dz_deviation += dz_deviation[c], sums[c].dz += dzs[c];
      sums[c].dv_deviation += dv_deviation[c], sums[c].dv += dvs[c];
    }
  }
}

// out and didentity are null for attention alone. dx is not written if it is null.
template <typename T, bool kAddsIdentity>
void channels_last_backward(
    const T* dy, const T* out, const T* x, T* dx, T* didentity, const Statistics* stats,
    PlaneSums* sums, const Parameters& parameters, const Shape& shape) {
  using acc_t = accumulate_t<T>;
  const Chunks chunks(shape);
  const int64_t channels = shape.c, half = channels / 2;
  std::vector<RawSums> partial(chunks.count() * channels);
  chunks.parallel([&](int64_t chunk, int64_t n, int64_t offset, int64_t pixels) {
    const Gates<T> gates(stats + n * channels, parameters, channels);
    chunk_sums<T, kAddsIdentity>(
        dy + offset, kAddsIdentity ? out + offset : nullptr, x + offset,
        didentity ? didentity + offset : nullptr, pixels, channels, gates,
        partial.data() + chunk * channels);
  });
  chunks.merge(partial, [&](int64_t plane, int64_t c, const RawSums* of_plane) {
    RawSums raw{0, 0, 0, 0};
    for (int64_t i = 0; i < chunks.per_image; ++i) raw += of_plane[i * channels];
    sums[plane] = parameters.plane_sums<acc_t>(c, stats[plane], raw);
  });
  if (!dx) return;
  const T* gradient = kAddsIdentity ? didentity : dy;
  chunks.parallel([&](int64_t, int64_t n, int64_t offset, int64_t pixels) {
    const Gates<T> gates(stats + n * channels, parameters, channels);
    std::vector<acc_t> mean(channels), linear(channels), constant(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t plane = n * channels + c;
      const auto of_plane =
          parameters.input_gradient<acc_t>(c, stats[plane], sums[plane], shape.area);
      mean[c] = of_plane.mean, linear[c] = of_plane.linear, constant[c] = of_plane.constant;
    }
    for (int64_t at = offset; at < offset + pixels * channels; at += channels)
      for_each_pack<T>(0, half, [&](int64_t c, auto count) {
        const auto [dy_a, dy_b] = load_interleaved<T>(gradient + at + 2 * c, count);
        const auto put = [&](int64_t c, const Pack<T>& dy) {
          const Gated<T, kAddsIdentity> gated(x + at, gates, c, count);
          const auto at_c = [&](const std::vector<acc_t>& array) {
            return Pack<T>::load_acc(array.data() + c, count);
          };
          const auto through_gate =
              gated.dz(dy) - at_c(mean) - at_c(linear) * gated.deviation;
          auto dv = dy * gated.s.value;
          if constexpr (kAddsIdentity) dv = dv * at_c(gates.scale);
          fmadd(gated.slope, through_gate, dv + at_c(constant)).store(dx + at + c, count);
        };
        put(c, dy_a);
        put(half + c, dy_b);
      });
  });
}

}  // namespace sa_mmdet
