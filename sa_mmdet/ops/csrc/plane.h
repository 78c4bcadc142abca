// The arithmetic of one plane, in double, between the passes over its elements.
#pragma once

#include <cmath>
#include <cstdint>

namespace sa_mmdet {

// The statistics of a plane of the input. The variance is only defined in the spatial branch.
struct Statistics {
  double mean, variance;
};

// Count, mean and sum of squared deviations of some elements.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  // count elements whose deviations from center add up to sum, and squared to squares
  static Moments about(double center, double count, double sum, double squares) {
    return {count, center + sum / count, squares - sum * sum / count};
  }

  void merge(const Moments& other) {
    const double all = count + other.count;
    const double delta = other.mean - mean;
    squares += other.squares + delta * delta * count * other.count / all;
    mean += delta * other.count / all;
    count = all;
  }

  Statistics statistics() const {
    return {mean, squares / count};
  }
};

// The attention's input is scale * x + shift.
struct Affine {
  double scale, shift;

  double operator()(double x) const {
    return scale * x + shift;
  }
};

// Batch norm with frozen statistics of each channel. Without scale, it is the identity.
struct BatchNorm {
  const double *scale, *shift, *mean, *rstd;

  Affine affine(int64_t c) const {
    return scale ? Affine{scale[c], shift[c]} : Affine{1, 0};
  }
};

// A plane is gated by sigmoid(slope * (x - center) + offset). The center is the mean as far as the
// type of computation holds it: the difference is then exact where x is near the mean.
template <typename acc_t>
struct Gate {
  acc_t slope, center, offset;
};

inline double sigmoid(double z) {
  return 1 / (1 + std::exp(-z));
}

// dx = scale dy s + slope (dz - mean - linear (x - center)) + constant, with the gate s, the
// attention's input v and dz = dy v s (1 - s). What should cancel is subtracted first, before the
// slope can magnify it.
template <typename acc_t>
struct InputGradient {
  acc_t scale, mean, linear, constant;
};

// A plane's sums of dz (x - center), dz, dy s (x - center) and dy s. The channel branch does not
// need the first, attention without batch norm does not need the last two.
struct RawSums {
  double dz_deviation, dz, dv_deviation, dv;

  void operator+=(const RawSums& other) {
    dz_deviation += other.dz_deviation;
    dz += other.dz;
    dv_deviation += other.dv_deviation;
    dv += other.dv;
  }
};

// A plane's terms of the parameters' gradients, which are sums over the planes of their channel.
// For the attention, they are dz times what the weight multiplies (the mean; the normalised v), and
// dz. For the batch norm's weight and bias, they are dv times the normalised x, and dv.
struct PlaneSums {
  double weight, bias, bn_weight, bn_bias;
};

// Channel c goes to channel 2 i + k of the shuffled output, with c = k C / 2 + i.
inline int64_t shuffled(int64_t c, int64_t channels) {
  return c % (channels / 2) * 2 + c / (channels / 2);
}

// The channel that is shuffled to channel c.
inline int64_t unshuffled(int64_t c, int64_t channels) {
  return c % 2 * (channels / 2) + c / 2;
}

// cweight, cbias, sweight, sbias, gn_weight, gn_bias, each of p values, one after the other.
struct Parameters {
  const double* values;
  int64_t p;
  double eps;
  BatchNorm batch_norm;

  bool is_spatial(int64_t c) const {
    return c / p % 2;
  }

  // Where a channel of the output comes from, and where one of the input goes.
  int64_t source(int64_t c, int64_t channels) const {
    return unshuffled(c, channels);
  }
  int64_t target(int64_t c, int64_t channels) const {
    return shuffled(c, channels);
  }

  Affine affine(int64_t c) const {
    return batch_norm.affine(c);
  }

  double rstd(int64_t c, const Statistics& stats) const {
    const double scale = batch_norm.affine(c).scale;
    return 1 / std::sqrt(scale * scale * stats.variance + eps);
  }

  template <typename acc_t>
  Gate<acc_t> gate(int64_t c, const Statistics& stats) const {
    const double* at = values + c % p;
    const auto affine = batch_norm.affine(c);
    const auto center = static_cast<acc_t>(stats.mean);
    if (!is_spatial(c))
      return {0, center, static_cast<acc_t>(at[0] * affine(stats.mean) + at[p])};
    const double slope = at[2 * p] * at[4 * p] * rstd(c, stats) * affine.scale;
    const double offset = at[2 * p] * at[5 * p] + at[3 * p] + slope * (center - stats.mean);
    return {static_cast<acc_t>(slope), center, static_cast<acc_t>(offset)};
  }

  // The derivatives through the mean or, in the spatial branch, the group norm of a plane with
  // area elements.
  template <typename acc_t>
  InputGradient<acc_t> input_gradient(
      int64_t c, const Statistics& stats, const PlaneSums& sums, int64_t area) const {
    const double scale = batch_norm.affine(c).scale;
    const auto scale_ = static_cast<acc_t>(scale);
    if (!is_spatial(c))
      return {scale_, 0, 0, static_cast<acc_t>(scale * values[c % p] * sums.bias / area)};
    const double linear = scale * rstd(c, stats) * sums.weight / area;
    const double center = static_cast<acc_t>(stats.mean);
    const double mean = sums.bias / area + linear * (center - stats.mean);
    return {scale_, static_cast<acc_t>(mean), static_cast<acc_t>(linear), 0};
  }

  template <typename acc_t>
  PlaneSums plane_sums(int64_t c, const Statistics& stats, const RawSums& raw) const {
    const double* at = values + c % p;
    const auto affine = batch_norm.affine(c);
    const double residual = static_cast<acc_t>(stats.mean) - stats.mean;
    const double dv_deviation = raw.dv_deviation + residual * raw.dv;
    if (!is_spatial(c))
      return with_batch_norm(c, stats, {raw.dz * affine(stats.mean), raw.dz},
                             dv_deviation, raw.dv + at[0] * raw.dz);
    const double of_plane = rstd(c, stats);
    const double dz_deviation = raw.dz_deviation + residual * raw.dz;
    const double weight = of_plane * affine.scale * dz_deviation;
    // The group norm's derivative is orthogonal to constants, and but for eps to x.
    const double through_norm = at[2 * p] * at[4 * p] * of_plane *
        (dz_deviation - of_plane * weight * affine.scale * stats.variance);
    return with_batch_norm(c, stats, {weight, raw.dz}, dv_deviation + through_norm, raw.dv);
  }

 private:
  // dv_deviation: of dv (x - mean), with the whole of dv
  PlaneSums with_batch_norm(
      int64_t c, const Statistics& stats, PlaneSums sums, double dv_deviation, double dv) const {
    if (!batch_norm.scale) return {sums.weight, sums.bias, 0, 0};
    const double about_mean = dv_deviation + (stats.mean - batch_norm.mean[c]) * dv;
    return {sums.weight, sums.bias, batch_norm.rstd[c] * about_mean, dv};
  }
};

// What is left of the attention after the layer before has absorbed its shuffle and left out a part
// of its own bias. For each channel: the slope for planes of variance 1, the factor of the mean, a
// constant, and that part of the bias.
struct ChannelParameters {
  const double *slope, *of_mean, *constant, *shift;
  double eps;

  bool is_spatial(int64_t c) const {
    return slope[c] != 0;
  }

  int64_t source(int64_t c, int64_t) const {
    return c;
  }
  int64_t target(int64_t c, int64_t) const {
    return c;
  }

  Affine affine(int64_t c) const {
    return {1, shift[c]};
  }

  template <typename acc_t>
  Gate<acc_t> gate(int64_t c, const Statistics& stats) const {
    const auto center = static_cast<acc_t>(stats.mean);
    // the variance is not known without a slope
    const double of_plane = is_spatial(c) ? slope[c] / std::sqrt(stats.variance + eps) : 0;
    const double offset =
        of_mean[c] * (stats.mean + shift[c]) + constant[c] + of_plane * (center - stats.mean);
    return {static_cast<acc_t>(of_plane), center, static_cast<acc_t>(offset)};
  }
};

}  // namespace sa_mmdet
