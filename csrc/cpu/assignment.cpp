// Linear assignment by shortest augmenting paths (Crouse 2016), one matrix after the other, all
// columns of a row in vector lanes.
#include <cmath>
#include <limits>
#include <vector>

#include "gram.h"
#include "parallel.h"
#include "tables.h"

namespace vaekern {
namespace VAEKERN_ISA {

namespace {

constexpr double NONE = std::numeric_limits<double>::infinity();

// Matrices solved in turns, a step of each: while one waits for a result another one computes.
constexpr int TOGETHER = 2;

class Assigner {
  static constexpr int W = LANES<double>;

 public:
  explicit Assigner(int d)
      : d_(d),
        ld_(padded(d)),
        cost_(size_t(d) * ld_, NONE),
        v_(ld_),
        shortest_(ld_),
        closed_(ld_),
        from_(ld_),
        key_(ld_),
        fresh_key_(ld_),
        u_(d),
        row_of_(d),
        column_of_(d),
        list_(d),
        place_(d),
        row_in_tree_(d) {}

  // Reads the cost; false where it is not finite.
  bool load(const MatrixView& C) {
    Vec<double> sum = {};  // of zeros, or NaN; the padding is infinite and left out
    for (int i = 0; i < d_; ++i) {
      double* row = cost_.data() + size_t(i) * ld_;
      load_run<double>(C.at(i, 0), C.dtype, C.column_stride, d_, row);
      for (int j = 0; j < d_; j += W) {
        const Vec<double> v = j + W <= d_ ? VAEKERN_ISA::load(row + j) : load_part(row + j, d_ - j);
        sum += v - v;
      }
    }
    return sum_lanes<double>(sum) == 0;
  }

  void begin() {
    std::fill(u_.begin(), u_.end(), 0.0);
    std::fill(v_.begin(), v_.end(), 0.0);
    std::fill(row_of_.begin(), row_of_.end(), -1);
    for (int j = 0; j < d_; ++j) fresh_key_[j] = key(j, d_ - 1 - j);
    start_ = row_ = 0;
    plant();
  }

  void give_up() {
    std::fill(column_of_.begin(), column_of_.end(), -1);
    start_ = d_;
  }

  bool done() const { return start_ == d_; }

  // One column more in the tree of shortest paths from row start_; once that is a free one, what is
  // assigned along its path is exchanged, and the next row starts.
  void step() {
    const int column = size_ == 0 ? extend<true>() : extend<false>();
    row_in_tree_[size_++] = row_;
    take(column);
    row_ = row_of_[column];
    if (row_ >= 0) return;
    exchange(column);
    row_ = ++start_;
    plant();
  }

  void write(int64_t* columns) const {
    for (int i = 0; i < d_; ++i) columns[i] = column_of_[i];
  }

 private:
  static VAEKERN_INLINE Vec<double> get(const std::vector<double>& v, int j) {
    return VAEKERN_ISA::load(v.data() + j);
  }

  // The nearest column outside the tree and its distance. Of several at the same distance the one
  // of the highest key.
  struct Nearest {
    Vec<double> distance = splat(NONE), key = splat(-1.0);

    VAEKERN_INLINE void offer(Vec<double> other, Vec<double> other_key) {
      const Bits<double> better = (other < distance) | ((other == distance) & (other_key > key));
      distance = select<double>(better, other, distance);
      key = select<double>(better, other_key, key);
    }

    // Over all lanes, without leaving the vector registers
    VAEKERN_INLINE void reduce() {
#pragma GCC unroll 3
      for (int step = W / 2; step > 0; step /= 2) {
        Bits<double> partner;
        for (int k = 0; k < W; ++k) partner[k] = k ^ step;
        offer(__builtin_shuffle(distance, partner), __builtin_shuffle(key, partner));
      }
    }
  };

  // SciPy's choice among equally near columns, as one exact number: a free column, the last that it
  // comes upon, or else the first. It looks through a list of the columns, reversed at first so
  // that equal costs give the identity, from which a column is taken by putting the last one in its
  // place.
  static constexpr int INDEX = 2 * MAX_COLUMNS;
  double key(int column, int place) const {
    const int rank = row_of_[column] < 0 ? 2 * d_ + place : d_ - place;
    return rank * INDEX + column;
  }

  static VAEKERN_INLINE Vec<double> lanes() {
    Vec<double> index;
    for (int k = 0; k < W; ++k) index[k] = k;
    return index;
  }

  void plant() {
    for (int k = 0; k < d_; ++k) list_[k] = place_[k] = d_ - 1 - k;
    size_ = 0;
    least_ = 0;
  }

  void exchange(int sink) {
    u_[start_] += least_;
    for (int k = 1; k < size_; ++k) {
      const int i = row_in_tree_[k];
      u_[i] += least_ - shortest_[column_of_[i]];
    }
    Vec<double> index = lanes();
    for (int j = 0; j < ld_; j += W, index += double(W)) {
      const Bits<double> in_tree = (get(closed_, j) == NONE) | (index == double(sink));
      const Vec<double> v = get(v_, j);
      store(v_.data() + j, select<double>(in_tree, v - (least_ - get(shortest_, j)), v));
    }
    int row, column = sink;
    do {
      row = int(from_[column]);
      row_of_[column] = row;
      std::swap(column_of_[row], column);
    } while (row != start_);
    fresh_key_[sink] = key(sink, d_ - 1 - sink);
  }

  // Paths over row_, which is least_ away: returns the nearest column outside the tree, its
  // distance in least_.
  template <bool First>
  int extend() {
    const double* cost = cost_.data() + size_t(row_) * ld_;
    const Vec<double> u = splat(u_[row_]), before = splat(least_), index = splat(double(row_));
    Nearest nearest;
    Vec<double> lane = lanes();
    for (int j = 0; j < ld_; j += W, lane += double(W)) {
      Vec<double> length = ((before + VAEKERN_ISA::load(cost + j)) - u) - get(v_, j);
      Vec<double> keys;
      if (First) {
        store(shortest_.data() + j, length);
        store(from_.data() + j, index);
        store(closed_.data() + j, Vec<double>{});
        keys = get(fresh_key_, j);
      } else {
        // What the last step changed, here and not by scalar stores, for which the loads would wait
        const Vec<double> shut = select<double>(lane == taken_, splat(NONE), get(closed_, j));
        keys = select<double>(lane == moved_, splat(moved_key_), get(key_, j));
        store(closed_.data() + j, shut);
        const Vec<double> known = get(shortest_, j);
        // adding 0 changes nothing, and infinity keeps a column of the tree as it is
        const Bits<double> better = length + shut < known;
        length = select<double>(better, length, known);
        store(shortest_.data() + j, length);
        store(from_.data() + j, select<double>(better, index, get(from_, j)));
        length += shut;
      }
      store(key_.data() + j, keys);
      nearest.offer(length, keys);
    }
    nearest.reduce();
    least_ = nearest.distance[0];
    return int(nearest.key[0]) & (INDEX - 1);
  }

  // Moves a column into the tree.
  void take(int column) {
    const int last = list_[d_ - size_], hole = place_[column];
    list_[hole] = last;
    place_[last] = hole;
    taken_ = column;
    moved_ = last;
    moved_key_ = key(last, hole);
  }

  int d_, ld_;
  std::vector<double> cost_, v_, shortest_, closed_, from_, key_, fresh_key_;  // by column, padded
  std::vector<double> u_;
  std::vector<int> row_of_, column_of_, list_, place_;
  std::vector<int> row_in_tree_;  // in the order that they joined it
  int start_ = 0, row_ = 0, size_ = 0;
  double least_ = 0, taken_ = 0, moved_ = 0, moved_key_ = 0;
};

}  // namespace

void assignment(const AssignmentArgs& a) {
  const int64_t batch = a.cost.shape[0];
  const int d = int(a.cost.shape[1]);
  const int64_t length = std::max<int64_t>(TOGETHER, ceil_div(batch, 8 * int64_t(a.threads)));
  parallel_for(ceil_div(batch, length), batch * d * d * 4, a.threads, [&](int64_t t) {
    std::vector<Assigner> assigners(TOGETHER, Assigner(d));
    const int64_t last = std::min((t + 1) * length, batch);
    for (int64_t b = t * length; b < last; b += TOGETHER) {
      const int count = int(std::min<int64_t>(TOGETHER, last - b));
      for (int n = 0; n < count; ++n) {
        assigners[n].begin();
        if (!assigners[n].load(MatrixView(a.cost, b + n))) assigners[n].give_up();
      }
      for (bool active = true; active;) {
        active = false;
        for (int n = 0; n < count; ++n) {
          if (assigners[n].done()) continue;
          assigners[n].step();
          active = true;
        }
      }
      for (int n = 0; n < count; ++n) assigners[n].write(a.columns + (b + n) * d);
    }
  });
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
