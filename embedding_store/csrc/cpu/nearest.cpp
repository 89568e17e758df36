// The items of greatest inner product with each user. Scores are never stored: what does not beat a user's k-th best so
// far is dropped where it is computed, and next to the products little is left to do.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops.h"
#include "parallel.h"
#include "pipeline.h"
#include "products.h"

namespace embedding_store {
namespace {

constexpr int64_t kPanelBytes = int64_t{256} << 10;  // of the users that are answered at once: half a second cache
constexpr int64_t kChunkBytes = int64_t{16} << 10;   // of items between two looks at a user: half a first cache
constexpr int64_t kBestBytes = int64_t{64} << 20;    // of what is found for these users
constexpr int64_t kFewUsers = 128;                   // a thread: with fewer, threads share the items instead
constexpr int64_t kGrain = 4096;                     // items a thread, at least
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct Scored {
  float score;
  int64_t row;
};

// Ties go to the item that comes first, whichever thread found it.
bool better(const Scored& a, const Scored& b) { return a.score != b.score ? a.score > b.score : a.row < b.row; }

// A user's k best so far.
class Best {
 public:
  explicit Best(int64_t k) : k_(k) {}

  // What a score must be above to be added.
  float bar() const { return bar_; }

  void add(const Scored& scored) {
    kept_.push_back(scored);
    if (static_cast<int64_t>(kept_.size()) >= 2 * k_) shrink();
  }

  void add(const Best& other) {
    for (const Scored& scored : other.kept_) add(scored);
  }

  // Best first; -1 and -inf where there are fewer than k.
  void write(int64_t* rows, float* scores) {
    shrink();
    std::sort(kept_.begin(), kept_.end(), better);
    for (int64_t i = 0; i < k_; ++i) {
      const bool there = i < static_cast<int64_t>(kept_.size());
      rows[i] = there ? kept_[i].row : -1;
      scores[i] = there ? kept_[i].score : kNothing;
    }
  }

 private:
  void shrink() {
    if (static_cast<int64_t>(kept_.size()) < k_) return;
    std::nth_element(kept_.begin(), kept_.begin() + (k_ - 1), kept_.end(), better);
    kept_.resize(k_);
    bar_ = kept_.back().score;
  }

  int64_t k_;
  float bar_ = kNothing;
  std::vector<Scored> kept_;
};

// For each user the items that it must not get.
class Without {
 public:
  Without(const Tensor& users, const Tensor& items, int64_t count) : starts_(count + 1) {
    const auto* user = static_cast<const int64_t*>(users.const_data_ptr());
    const auto* item = static_cast<const int64_t*>(items.const_data_ptr());
    const int64_t pairs = users.numel();
    for (int64_t i = 0; i < pairs; ++i) {
      if (user[i] < 0 || user[i] >= count) {
        throw std::invalid_argument("without has user " + std::to_string(user[i]) + "; use a row of the " +
                                    std::to_string(count) + " users");
      }
      ++starts_[user[i] + 1];
    }
    for (int64_t i = 0; i < count; ++i) starts_[i + 1] += starts_[i];
    items_.resize(pairs);
    std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
    for (int64_t i = 0; i < pairs; ++i) items_[next[user[i]]++] = item[i];
    for (int64_t i = 0; i < count; ++i) std::sort(items_.begin() + starts_[i], items_.begin() + starts_[i + 1]);
  }

  bool has(int64_t user, int64_t item) const {
    return std::binary_search(items_.begin() + starts_[user], items_.begin() + starts_[user + 1], item);
  }

 private:
  std::vector<int64_t> starts_, items_;
};

struct Range {
  int64_t begin, end;

  int64_t count() const { return end - begin; }
};

class Search {
 public:
  Search(const Tensor& users, const Tensor& items, int64_t k, const Without& without)
      : users_(static_cast<const float*>(users.const_data_ptr())),
        items_(static_cast<const float*>(items.const_data_ptr())),
        dim_(items.size(1)),
        all_{0, items.size(0)},
        k_(k),
        without_(without) {}

  // For users, written to rows and scores [all users, k].
  void answer(const Range& users, bool share_items, int64_t* rows, float* scores) const {
    const int64_t row_bytes = std::max<int64_t>(1, dim_ * sizeof(float));
    const int64_t room = std::min(kPanelBytes / row_bytes, kBestBytes / int64_t(2 * k_ * sizeof(Scored)));
    const int64_t block = std::max<int64_t>(1, room / functions_.width) * functions_.width;
    for (int64_t begin = users.begin; begin < users.end; begin += block) {
      const Range some{begin, std::min(begin + block, users.end)};
      std::vector<Best> best(some.count(), Best(k_));
      const std::vector<float> panels = packed(some);
      if (share_items) shared(some, panels, best);
      else find(some, panels, all_, best);
      for (int64_t i = 0; i < some.count(); ++i) best[i].write(rows + (begin + i) * k_, scores + (begin + i) * k_);
    }
  }

 private:
  int64_t panels_of(const Range& users) const { return (users.count() + functions_.width - 1) / functions_.width; }

  // [panels, dim, width], zeros beyond the last user.
  std::vector<float> packed(const Range& users) const {
    std::vector<float> panels(panels_of(users) * functions_.width * dim_);
    for (int64_t i = 0; i < users.count(); ++i) {
      const int64_t panel = i / functions_.width, column = i % functions_.width;
      for (int64_t d = 0; d < dim_; ++d) {
        panels[(panel * dim_ + d) * functions_.width + column] = users_[(users.begin + i) * dim_ + d];
      }
    }
    return panels;
  }

  // Each thread looks through some of the items.
  void shared(const Range& users, const std::vector<float>& panels, std::vector<Best>& best) const {
    std::mutex mutex;
    parallel(all_.begin, all_.end, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<Best> part(users.count(), Best(k_));
      find(users, panels, {begin, end}, part);
      const std::lock_guard lock(mutex);
      for (size_t i = 0; i < part.size(); ++i) best[i].add(part[i]);
    });
  }

  void find(
      const Range& users, const std::vector<float>& panels, const Range& items, std::vector<Best>& best) const {
    const int64_t width = functions_.width, count = panels_of(users);
    const int64_t chunk = std::max<int64_t>(24, kChunkBytes / std::max<int64_t>(1, dim_ * sizeof(float)) / 24 * 24);
    std::vector<Hit> hits(chunk * width);
    std::vector<float> bars(count * width, kNothing);
    std::fill(bars.begin() + users.count(), bars.end(), -kNothing);  // beyond the last user
    for (int64_t begin = items.begin; begin < items.end; begin += chunk) {
      const int64_t here = std::min(chunk, items.end - begin);
      for (int64_t panel = 0; panel < count; ++panel) {
        const int64_t first = panel * width;
        const int64_t found = functions_.find_hits(
            items_ + begin * dim_, here, dim_, panels.data() + first * dim_, bars.data() + first, hits.data());
        for (int64_t i = 0; i < found; ++i) {
          const int64_t user = first + hits[i].user, row = begin + hits[i].item;
          if (hits[i].score <= bars[user] || without_.has(users.begin + user, row)) continue;
          best[user].add({hits[i].score, row});
          bars[user] = best[user].bar();
        }
      }
    }
  }

  const float *users_, *items_;
  int64_t dim_;
  Range all_;
  int64_t k_;
  const Without& without_;
  ProductFunctions functions_ = product_functions();
};

Tensor contiguous_vectors(const Tensor& tensor, const char* name) {
  if (tensor.scalar_type() != ScalarType::Float || tensor.dim() != 2) {
    throw std::invalid_argument(std::string(name) + " are not float32 of two dimensions");
  }
  return torch::stable::contiguous(tensor);
}

}  // namespace

std::tuple<Tensor, Tensor> nearest(
    const Tensor& users_tensor, const Tensor& items_tensor, int64_t k, const Tensor& without_users,
    const Tensor& without_items) {
  const Tensor users = contiguous_vectors(users_tensor, "users");
  const Tensor items = contiguous_vectors(items_tensor, "items");
  if (users.size(1) != items.size(1)) {
    throw std::invalid_argument("users have " + std::to_string(users.size(1)) + " dimensions and items " +
                                std::to_string(items.size(1)));
  }
  if (k < 1) throw std::invalid_argument("k is " + std::to_string(k) + "; use 1 or more");
  if (without_users.scalar_type() != ScalarType::Long || without_items.scalar_type() != ScalarType::Long ||
      without_users.numel() != without_items.numel()) {
    throw std::invalid_argument("without is not as many int64 rows of items as of users");
  }
  const int64_t count = users.size(0), most = std::min(k, items.size(0));
  Tensor rows = torch::stable::new_empty(users, {count, most}, ScalarType::Long);
  Tensor scores = torch::stable::new_empty(users, {count, most}, ScalarType::Float);
  if (most == 0) return {rows, scores};
  const Without without(torch::stable::contiguous(without_users), torch::stable::contiguous(without_items), count);
  const Search search(users, items, most, without);
  auto* rows_data = static_cast<int64_t*>(rows.mutable_data_ptr());
  auto* scores_data = static_cast<float*>(scores.mutable_data_ptr());
  if (count < kFewUsers * static_cast<int64_t>(torch::stable::get_num_threads())) {
    search.answer({0, count}, true, rows_data, scores_data);
  } else {
    parallel(0, count, kFewUsers, [&](int64_t begin, int64_t end) {
      search.answer({begin, end}, false, rows_data, scores_data);
    });
  }
  return {rows, scores};
}

}  // namespace embedding_store
