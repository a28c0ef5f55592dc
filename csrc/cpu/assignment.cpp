// Linear assignment by shortest augmenting paths (Crouse 2016), one matrix after the other.
#include <cmath>
#include <limits>
#include <vector>

#include "gram.h"
#include "parallel.h"
#include "tables.h"

namespace vaekern {
namespace VAEKERN_ISA {

namespace {

class Assigner {
 public:
  explicit Assigner(int d)
      : d_(d),
        cost_(size_t(d) * d),
        u_(d),
        v_(d),
        shortest_(d),
        path_(d),
        row_of_(d),
        column_of_(d),
        remaining_(d),
        tree_(d) {}

  // Reads the cost; false where it is not finite.
  bool load(const MatrixView& C) {
    double sum = 0;
    for (int i = 0; i < d_; ++i) {
      double* row = cost_.data() + size_t(i) * d_;
      load_run<double>(C.at(i, 0), C.dtype, C.column_stride, d_, row);
      for (int j = 0; j < d_; ++j) sum += row[j] - row[j];  // 0, or NaN
    }
    return sum == 0;
  }

  void solve(int64_t* columns) {
    std::fill(u_.begin(), u_.end(), 0.0);
    std::fill(v_.begin(), v_.end(), 0.0);
    std::fill(row_of_.begin(), row_of_.end(), -1);
    std::fill(column_of_.begin(), column_of_.end(), -1);
    for (int row = 0; row < d_; ++row) augment(row);
    for (int i = 0; i < d_; ++i) columns[i] = column_of_[i];
  }

 private:
  // Grows the tree of shortest paths from `start` to a free column and flips the path.
  void augment(int start) {
    for (int k = 0; k < d_; ++k) {
      remaining_[k] = d_ - 1 - k;  // reversed: equal costs give the identity
      shortest_[k] = std::numeric_limits<double>::infinity();
    }
    int left = d_, in_tree = 0, row = start, sink = -1;
    double least = 0;
    while (sink < 0) {
      tree_[in_tree++] = row;
      const double* cost = cost_.data() + size_t(row) * d_;
      const double u = u_[row];
      double lowest = std::numeric_limits<double>::infinity();
      int best = 0;
      for (int k = 0; k < left; ++k) {
        const int j = remaining_[k];
        const double length = least + cost[j] - u - v_[j];
        if (length < shortest_[j]) {
          shortest_[j] = length;
          path_[j] = row;
        }
        // of equally short paths one that ends here
        if (shortest_[j] < lowest || (shortest_[j] == lowest && row_of_[j] < 0)) {
          lowest = shortest_[j];
          best = k;
        }
      }
      least = lowest;
      const int column = remaining_[best];
      remaining_[best] = remaining_[--left];
      remaining_[left] = column;  // those behind `left` are the tree's columns
      if (row_of_[column] < 0)
        sink = column;
      else
        row = row_of_[column];
    }
    u_[start] += least;
    for (int k = 1; k < in_tree; ++k) u_[tree_[k]] += least - shortest_[column_of_[tree_[k]]];
    for (int k = left; k < d_; ++k) v_[remaining_[k]] -= least - shortest_[remaining_[k]];
    for (int column = sink;;) {
      const int i = path_[column];
      row_of_[column] = i;
      std::swap(column_of_[i], column);
      if (i == start) return;
    }
  }

  int d_;
  std::vector<double> cost_, u_, v_, shortest_;
  std::vector<int> path_, row_of_, column_of_, remaining_, tree_;
};

}  // namespace

void assignment(const AssignmentArgs& a) {
  const int64_t batch = a.cost.shape[0];
  const int d = int(a.cost.shape[1]);
  const int64_t runs = std::min<int64_t>(batch, 8 * a.threads),
                length = ceil_div(batch, std::max<int64_t>(runs, 1));
  parallel_for(runs, batch * d * d * 4, a.threads, [&](int64_t t) {
    Assigner assigner(d);
    for (int64_t b = t * length; b < std::min((t + 1) * length, batch); ++b) {
      int64_t* columns = a.columns + b * d;
      if (assigner.load(MatrixView(a.cost, b)))
        assigner.solve(columns);
      else
        std::fill(columns, columns + d, int64_t(-1));
    }
  });
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
