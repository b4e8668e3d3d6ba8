// Memory for one pass after another. Given back to the system and asked for again, its pages would cost a tenth of a pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace thinbert {

class Arena {
 public:
  // Memory for `count` values, aligned to 64 bytes, good until `reset`. Throws std::bad_alloc.
  template <typename T>
  T* take(size_t count) {
    // a line more than it needs: arrays that begin a multiple of 4 KB apart would crowd into a few sets of the L1 cache
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64 + 64;
    if (blocks_.empty() || used_ + bytes > blocks_.back().size) grow(bytes);
    T* taken = reinterpret_cast<T*>(blocks_.back().data.get() + used_);
    used_ += bytes;
    return taken;
  }

  // All of it may be taken again. What came in pieces is asked for at once the next time.
  void reset() {
    trim();
    if (blocks_.size() > 1) {
      const size_t all = size();
      blocks_.clear();
      grow(all);
    }
    used_ = 0;
  }

  // Gives back what is very much. Nothing that was taken is good any more.
  void trim() {
    if (size() > kKept) blocks_.clear();
  }

 private:
  static constexpr size_t kSmallest = 1 << 20, kKept = 256 << 20;  // bytes

  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  struct Block {
    std::unique_ptr<uint8_t, Free> data;
    size_t size;
  };

  size_t size() const {
    size_t sum = 0;
    for (const Block& block : blocks_) sum += block.size;
    return sum;
  }

  void grow(size_t bytes) {
    const size_t size = std::max(bytes, kSmallest) / 64 * 64;
    std::unique_ptr<uint8_t, Free> data(static_cast<uint8_t*>(std::aligned_alloc(64, size)));
    if (!data) throw std::bad_alloc();
    blocks_.push_back({std::move(data), size});
    used_ = 0;
  }

  std::vector<Block> blocks_;
  size_t used_ = 0;  // of the last one
};

}  // namespace thinbert
