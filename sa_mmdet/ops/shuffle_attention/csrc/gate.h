// The arithmetic of one plane, in double, between the passes over its elements.
#pragma once

#include <cmath>
#include <cstdint>

namespace sa_mmdet {

struct Statistics {
  double mean, rstd;  // rstd is only defined for planes of the spatial branch
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

  double rstd(double eps) const {
    return 1 / std::sqrt(squares / count + eps);
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

// dx = dy s + slope (dz - mean - linear (x - center)) + constant, with the gate s and
// dz = dy x s (1 - s). What should cancel is subtracted first, before the slope can magnify it.
template <typename acc_t>
struct InputGradient {
  acc_t mean, linear, constant;
};

// What the parameters' gradients are sums of, over the planes of their channel: dz times what the
// weight multiplies (the mean; the normalised x), and dz.
struct PlaneSums {
  double weight, bias;
};

// cweight, cbias, sweight, sbias, gn_weight, gn_bias, each of p values, one after the other.
struct Parameters {
  const double* values;
  int64_t p;

  bool is_spatial(int64_t c) const {
    return c / p % 2;
  }

  template <typename acc_t>
  Gate<acc_t> gate(int64_t c, const Statistics& stats) const {
    const double* at = values + c % p;
    if (!is_spatial(c)) return {0, 0, static_cast<acc_t>(at[0] * stats.mean + at[p])};
    const double slope = at[2 * p] * at[4 * p] * stats.rstd;
    const auto center = static_cast<acc_t>(stats.mean);
    const double offset = at[2 * p] * at[5 * p] + at[3 * p] + slope * (center - stats.mean);
    return {static_cast<acc_t>(slope), center, static_cast<acc_t>(offset)};
  }

  // The derivatives through the mean or, in the spatial branch, the group norm of a plane with
  // area elements.
  template <typename acc_t>
  InputGradient<acc_t> input_gradient(
      int64_t c, const Statistics& stats, const PlaneSums& sums, int64_t area) const {
    if (!is_spatial(c)) return {0, 0, static_cast<acc_t>(values[c % p] * sums.bias / area)};
    const double linear = stats.rstd * sums.weight / area;
    const double center = static_cast<acc_t>(stats.mean);
    const double mean = sums.bias / area + linear * (center - stats.mean);
    return {static_cast<acc_t>(mean), static_cast<acc_t>(linear), 0};
  }

  // sum_dz and sum_dz_x: of dz, and of dz (x - center), which the channel branch has no use for.
  template <typename acc_t>
  PlaneSums plane_sums(
      int64_t c, const Statistics& stats, double sum_dz, double sum_dz_x) const {
    if (!is_spatial(c)) return {sum_dz * stats.mean, sum_dz};
    const double center = static_cast<acc_t>(stats.mean);
    return {stats.rstd * (sum_dz_x + (center - stats.mean) * sum_dz), sum_dz};
  }
};

}  // namespace sa_mmdet
