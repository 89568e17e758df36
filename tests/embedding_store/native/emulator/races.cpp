#include "races.h"

#include <algorithm>

namespace embedding_store::warp {
namespace {

constexpr uintptr_t kWord = 8;

bool writes(Access access) { return access == Access::kWrite || access == Access::kAtomic; }

// Whether one may have come before the other or after it.
bool is_unordered(const Touch& before, const Thread& thread) {
  if (before.last.warp == thread.warp) {
    return before.last.syncs == thread.syncs && (before.lanes & ~(1u << thread.lane)) != 0;
  }
  return before.last.block != thread.block || before.last.barriers == thread.barriers;
}

}  // namespace

Trail::Trail(const void* start, int64_t bytes, bool contested)
    : first_word_(reinterpret_cast<uintptr_t>(start) / kWord), contested_(contested) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(start) + static_cast<uintptr_t>(bytes);
  heads_.resize((end + kWord - 1) / kWord - first_word_);
  forget();
}

void Trail::forget() {
  std::fill(heads_.begin(), heads_.end(), 0);
  touches_.assign(1, Touch{});  // place 0 is none
}

std::optional<Touch> Trail::note(const Thread& thread, const void* address, int64_t bytes, Access access) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(address) + static_cast<uintptr_t>(bytes);
  for (uintptr_t at = reinterpret_cast<uintptr_t>(address); at < end;) {
    const uintptr_t begin = at % kWord, stop = std::min(kWord, begin + end - at);
    const auto mask = static_cast<uint8_t>((1u << stop) - (1u << begin));
    if (const auto race = note_word(&heads_[at / kWord - first_word_], thread, mask, access)) return race;
    at += stop - begin;
  }
  return std::nullopt;
}

std::optional<Touch> Trail::note_word(uint32_t* head, const Thread& thread, uint8_t bytes, Access access) {
  Touch* same = nullptr;
  for (uint32_t place = *head; place != 0; place = touches_[place].next) {
    Touch& before = touches_[place];
    if ((before.bytes & bytes) != 0 && races(before, thread, access)) return before;
    if (before.last.warp == thread.warp && before.access == access && before.bytes == bytes) same = &before;
  }
  const uint32_t lane = 1u << thread.lane;
  if (same == nullptr) {
    touches_.push_back({thread, lane, access, bytes, *head});
    *head = static_cast<uint32_t>(touches_.size() - 1);
    return std::nullopt;
  }
  // Of what was before a sync only this warp's lanes know it: for all others the newer touch stands for the older.
  same->lanes = same->last.syncs == thread.syncs ? same->lanes | lane : lane;
  same->last = thread;
  return std::nullopt;
}

bool Trail::races(const Touch& before, const Thread& thread, Access access) const {
  if (!writes(before.access) && !writes(access)) return false;
  if (before.access == Access::kReadOnly || access == Access::kReadOnly) return true;
  if (before.access == Access::kAtomic && access == Access::kAtomic) return false;
  if (contested_ && before.access == Access::kWrite && access == Access::kWrite) return false;
  return is_unordered(before, thread);
}

std::string described(Access access, const Thread& thread, uint32_t lanes) {
  const char* const verbs[] = {"read", "read through the read-only path", "written", "changed atomically"};
  std::string said = verbs[static_cast<int>(access)];
  said += " by block " + std::to_string(thread.block) + ", warp " + std::to_string(thread.warp) + ", lane";
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if ((lanes >> lane & 1u) != 0) said += " " + std::to_string(lane);
  }
  return said;
}

}  // namespace embedding_store::warp
