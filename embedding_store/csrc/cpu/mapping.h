// A snapshot's files, mapped side by side into one range of addresses, each block checked before its first use.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "crc32c.h"

namespace embedding_store {

// What tells a file, and the state that it was in, from every other: two mappings with the same one show the same bytes.
struct FileState {
  uint64_t device, inode;
  int64_t modified, changed;  // ns since the epoch
  bool settled;  // whether the clock has gone on since: if not, a later change may bear the same time
  bool operator==(const FileState&) const = default;
};

struct MappedFile {
  std::string path;
  int64_t start;  // in the range, a multiple of kBlockBytes
  int64_t bytes;
  FileState state;
};

class Mapping {
 public:
  // Maps the files read-only and lists the mapping for `at`. `crcs`: the CRC-32C of each block of each file, in order.
  // Blocks that another mapping of the very same file has checked count as checked, unless all are to be checked `anew`.
  // `copies`: the files can be fetched anew, so that one whose bytes have changed is deleted when that is noticed.
  // Throws MissingFileError or FileSizeError (as raise_corrupt does), std::runtime_error if the system refuses.
  Mapping(
      const std::vector<std::string>& paths, const std::vector<int64_t>& bytes, const std::vector<uint32_t>& crcs,
      bool copies, bool anew);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // The mapping that an address lies in, or nullptr. It stays valid as long as the tensor over it.
  static Mapping* at(const void* address);

  const uint8_t* data() const { return base_; }
  int64_t bytes() const { return bytes_; }
  const std::vector<MappedFile>& files() const { return files_; }
  int64_t blocks() const { return static_cast<int64_t>(crcs_.size()); }

  // The file that a byte of the range lies in, or the one before it.
  const std::string& path_at(int64_t start) const { return file_at(start).path; }

  // Whether `bytes` bytes from `start` lie within one file.
  bool in_one_file(int64_t start, int64_t bytes) const;

  // Whether they lie within one file, or within several that follow each other without a gap.
  bool in_joined_files(int64_t start, int64_t bytes) const;

  int64_t unchecked() const { return unchecked_.load(std::memory_order_acquire); }  // blocks
  bool all_checked() const { return unchecked() == 0; }

  // Checks the blocks under these bytes unless that was done before. Threads may race: both check, both are right.
  // Throws ChecksumError naming the file.
  void require(const void* address, int64_t bytes) {
    const int64_t start = static_cast<const uint8_t*>(address) - base_;
    for (int64_t block = start / kBlockBytes; block <= (start + bytes - 1) / kBlockBytes; ++block) {
      if (!is_checked(block)) check(block);
    }
  }

  // Checks blocks first .. first + count - 1 unless that was done before: with all threads at once or, given
  // bytes_per_second > 0, with one thread of the lowest priority at that pace, so that lookups keep their latency.
  void check_blocks(int64_t first, int64_t count, double bytes_per_second);

  // Gives back the page table's memory for the range; what is read later is mapped anew. A large mapping goes
  // faster afterwards.
  void release_pages();

 private:
  void reserve();
  void map(size_t file);
  void list(bool listed);
  void take_over();
  void take_over(const MappedFile& file, const Mapping& other, const MappedFile& same);
  int64_t check_range(int64_t begin, int64_t end);
  bool is_checked(int64_t block) const {
    return checked_[block / 64].load(std::memory_order_acquire) >> (block % 64) & 1;
  }
  void check(int64_t block);
  bool drop(const MappedFile& file) const;
  void mark_checked(int64_t block);
  const MappedFile& file_at(int64_t start) const;

  std::vector<MappedFile> files_;
  bool copies_;
  std::vector<uint32_t> crcs_;  // one a block of the range; those between files count as checked
  std::unique_ptr<std::atomic<uint64_t>[]> checked_;
  std::atomic<int64_t> unchecked_{0};
  uint8_t* base_ = nullptr;
  int64_t bytes_ = 0;
  void* reserved_ = nullptr;
  size_t reserved_bytes_ = 0;
};

}  // namespace embedding_store
