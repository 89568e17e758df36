#include "mapping.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <thread>

#include "../common/errors.h"
#include "fork.h"
#include "pages.h"
#include "parallel.h"

namespace embedding_store {
namespace {


std::shared_mutex registry_mutex;
[[maybe_unused]] const bool registry_forks = free_in_child<registry_mutex>();
// By first address; never destroyed: tensors may outlive statics.
std::map<const uint8_t*, Mapping*>& registry = *new std::map<const uint8_t*, Mapping*>;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
int64_t blocks_of(int64_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes; }
int64_t nanoseconds(const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

FileState state_of(const struct stat& status) {
  timespec now;
  clock_gettime(CLOCK_REALTIME_COARSE, &now);  // the clock that the kernel takes a file's times from
  const int64_t changed = nanoseconds(status.st_ctim);
  return {status.st_dev, status.st_ino, nanoseconds(status.st_mtim), changed, changed < nanoseconds(now)};
}

[[noreturn]] void raise_system(const std::string& path, const char* what, int error) {
  throw std::runtime_error(path + ": " + what + " failed (" + std::strerror(error) + ")");
}

// A random row of a large file costs a miss in the page table's cache on top of the one in the data's, unless pages are
// huge. They are if the file comes into memory that way, 2 MiB at a time, which suits a table that will be there whole.
// (One that does not fit would read 2 MiB for each row.)
bool fits_in_memory(int64_t bytes) { return bytes / sysconf(_SC_PAGESIZE) < sysconf(_SC_PHYS_PAGES) / 2; }

// Closed at the end of the scope: a mapping needs no descriptor, and a process may have only so many.
class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : number_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (number_ >= 0) return;
    if (errno == ENOENT) raise_corrupt("MissingFileError", path, "does not exist");
    raise_system(path, "open", errno);
  }
  ~Descriptor() { close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

Mapping::Mapping(
    const std::vector<std::string>& paths, const std::vector<int64_t>& bytes, const std::vector<uint32_t>& crcs,
    bool copies, bool anew)
    : copies_(copies) {
  auto crc = crcs.begin();
  for (size_t i = 0; i < paths.size(); ++i) {
    // Files of some size begin where a huge page could: the kernel may then map them with such pages. But what ends at
    // the end of a block may go on in the next file, as an index of several pieces does: no gap there.
    const bool apart = bytes_ % kBlockBytes != 0 && bytes[i] >= kHugePage;
    const int64_t start = round_up(bytes_, apart ? kHugePage : kBlockBytes);
    if (crcs.end() - crc < blocks_of(bytes[i])) throw std::invalid_argument("fewer crcs than the files have blocks");
    crcs_.resize(start / kBlockBytes);
    crcs_.insert(crcs_.end(), crc, crc + blocks_of(bytes[i]));
    crc += blocks_of(bytes[i]);
    files_.push_back({paths[i], start, bytes[i], {}});
    bytes_ = start + bytes[i];
  }
  checked_ = std::make_unique<std::atomic<uint64_t>[]>(blocks() / 64 + 1);
  unchecked_ = blocks();
  int64_t block = 0;
  for (const MappedFile& file : files_) {
    while (block < file.start / kBlockBytes) mark_checked(block++);
    block += blocks_of(file.bytes);
  }
  reserve();
  try {
    for (size_t i = 0; i < files_.size(); ++i) map(i);
    if (!anew) take_over();
    list(true);
  } catch (...) {
    munmap(reserved_, reserved_bytes_);
    throw;
  }
}

Mapping::~Mapping() {
  list(false);
  munmap(reserved_, reserved_bytes_);
}

// One range for all files. What lies between them reads as zeros instead of ending the process.
void Mapping::reserve() {
  reserved_bytes_ = round_up(bytes_, kHugePage) + kHugePage;
  reserved_ = mmap(nullptr, reserved_bytes_, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved_ == MAP_FAILED) raise_system(files_.empty() ? "" : files_[0].path, "reserving addresses", errno);
  base_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<intptr_t>(reserved_), kHugePage));
}

void Mapping::map(size_t i) {
  MappedFile& file = files_[i];
  const Descriptor descriptor(file.path);
  struct stat status;
  if (fstat(descriptor.number(), &status) != 0) raise_system(file.path, "fstat", errno);
  if (status.st_size != file.bytes) {
    const std::string sizes = std::to_string(status.st_size) + " bytes, expected " + std::to_string(file.bytes);
    raise_corrupt("FileSizeError", file.path, "has " + sizes + "; restore it from a copy");
  }
  file.state = state_of(status);
  if (file.bytes == 0) return;
  void* wanted = base_ + file.start;
  if (mmap(wanted, file.bytes, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor.number(), 0) == MAP_FAILED) {
    raise_system(file.path, "mmap", errno);
  }
  if (fits_in_memory(bytes_)) madvise(wanted, file.bytes, MADV_HUGEPAGE);  // without effect where it is not possible
}

void Mapping::list(bool listed) {
  const std::unique_lock lock(registry_mutex);
  if (listed) registry[base_] = this;
  else registry.erase(base_);
}

// A delta's files are for the most part its base's, which a process that swaps them in has mapped and checked.
void Mapping::take_over() {
  const std::shared_lock lock(registry_mutex);
  for (const MappedFile& file : files_) {
    const Mapping* best = nullptr;
    const MappedFile* theirs = nullptr;
    for (const auto& [base, other] : registry) {
      if (best != nullptr && best->unchecked() <= other->unchecked()) continue;
      const auto is_same = [&](const MappedFile& one) { return one.state == file.state && one.bytes == file.bytes; };
      const auto same = std::find_if(other->files_.begin(), other->files_.end(), is_same);
      if (same != other->files_.end()) best = other, theirs = &*same;
    }
    if (best != nullptr && file.state.settled) take_over(file, *best, *theirs);
  }
}

void Mapping::take_over(const MappedFile& file, const Mapping& other, const MappedFile& same) {
  const int64_t here = file.start / kBlockBytes, there = same.start / kBlockBytes;
  for (int64_t i = 0; i < blocks_of(file.bytes); ++i) {
    if (other.is_checked(there + i) && other.crcs_[there + i] == crcs_[here + i]) mark_checked(here + i);
  }
}

Mapping* Mapping::at(const void* address) {
  const auto* byte = static_cast<const uint8_t*>(address);
  const std::shared_lock lock(registry_mutex);
  auto next = registry.upper_bound(byte);
  if (next == registry.begin()) return nullptr;
  Mapping* mapping = std::prev(next)->second;
  return byte < mapping->base_ + mapping->bytes_ ? mapping : nullptr;
}

// The last file that begins at or before `start`.
const MappedFile& Mapping::file_at(int64_t start) const {
  const auto later = [](int64_t value, const MappedFile& file) { return value < file.start; };
  return *std::prev(std::upper_bound(files_.begin(), files_.end(), start, later));
}

bool Mapping::in_one_file(int64_t start, int64_t bytes) const {
  const MappedFile& file = file_at(start);
  return start - file.start <= file.bytes && bytes <= file.bytes - (start - file.start);
}

bool Mapping::in_joined_files(int64_t start, int64_t bytes) const {
  const int64_t end = start + bytes;
  for (const MappedFile* file = &file_at(start); start >= file->start && start <= file->start + file->bytes; ++file) {
    start = file->start + file->bytes;
    if (end <= start) return true;
    if (file == &files_.back() || start % kBlockBytes != 0) return false;
  }
  return false;
}

void Mapping::check(int64_t block) {
  const int64_t start = block * kBlockBytes;
  const MappedFile& file = file_at(start);
  const int64_t bytes = std::min(kBlockBytes, file.start + file.bytes - start);
  if (crc32c(base_ + start, bytes) != crcs_[block]) {
    const int64_t first = start - file.start;
    const std::string where = "bytes " + std::to_string(first) + " .. " + std::to_string(first + bytes - 1);
    const char* remedy = drop(file) ? "the copy was deleted, load again to fetch another" : "restore it from a copy";
    raise_corrupt("ChecksumError", file.path, where + " are not those that were written; " + remedy);
  }
  mark_checked(block);
}

// Deletes a damaged copy, unless another has taken its name. What is mapped stays mapped.
bool Mapping::drop(const MappedFile& file) const {
  if (!copies_) return false;
  struct stat status;
  if (stat(file.path.c_str(), &status) != 0) return errno == ENOENT;
  const bool renamed = status.st_dev != file.state.device || status.st_ino != file.state.inode;
  return renamed || unlink(file.path.c_str()) == 0;
}

void Mapping::mark_checked(int64_t block) {
  const uint64_t bit = uint64_t{1} << (block % 64);
  if (!(checked_[block / 64].fetch_or(bit, std::memory_order_acq_rel) & bit)) {
    unchecked_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

// Returns how many blocks it had to read.
int64_t Mapping::check_range(int64_t begin, int64_t end) {
  int64_t read = 0;
  for (int64_t block = begin; block < end; ++block) {
    if (is_checked(block)) continue;
    check(block);
    ++read;
  }
  return read;
}

void Mapping::check_blocks(int64_t first, int64_t count, double bytes_per_second) {
  if (bytes_per_second <= 0) {
    parallel(first, first + count, 16, [this](int64_t begin, int64_t end) { check_range(begin, end); });
    return;
  }
  constexpr int64_t kStep = 16;  // 1 MiB between two pauses
  std::exception_ptr error;
  std::thread worker([&] {
    const sched_param none{};
    pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
    const auto begin = std::chrono::steady_clock::now();
    try {
      int64_t read = 0;
      for (int64_t done = 0; done < count; done += kStep) {
        const std::chrono::duration<double> due(static_cast<double>(read) * kBlockBytes / bytes_per_second);
        std::this_thread::sleep_until(begin + std::chrono::duration_cast<std::chrono::nanoseconds>(due));
        read += check_range(first + done, first + std::min(done + kStep, count));
      }
    } catch (...) {
      error = std::current_exception();
    }
  });
  worker.join();
  if (error) std::rethrow_exception(error);
}

void Mapping::release_pages() { madvise(base_, round_up(bytes_, 4096), MADV_DONTNEED); }

}  // namespace embedding_store
