// Built apart from the kernels, with optimisation and without the instrumentation that tells it of their plain accesses.
#include "threads.h"

#include <link.h>
#include <pthread.h>
#include <ucontext.h>

#include <algorithm>

namespace embedding_store::warp {

Launch* current = nullptr;

namespace {

constexpr size_t kWarpsAtOnce = 16;  // of a launch, and those of one block in any case

std::vector<std::unique_ptr<Fibre>> idle;

Fibre* idle_fibre() {
  if (idle.empty()) return new Fibre;
  Fibre* fibre = idle.back().release();
  idle.pop_back();
  return fibre;
}

struct Range {
  const char* start;
  const char* end;

  bool contains(const char* address, int64_t bytes) const { return address >= start && address + bytes <= end; }
};

// Where this library and its variables are.
std::vector<Range> segments() {
  std::vector<Range> found;
  const auto add = [](dl_phdr_info* info, size_t, void* into) {
    std::vector<Range> all;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& part = info->dlpi_phdr[i];
      const auto* start = reinterpret_cast<const char*>(info->dlpi_addr + part.p_vaddr);
      if (part.p_type == PT_LOAD) all.push_back({start, start + part.p_memsz});
    }
    const auto* ours = reinterpret_cast<const char*>(&threadIdx);
    if (std::none_of(all.begin(), all.end(), [&](const Range& one) { return one.contains(ours, 1); })) return 0;
    *static_cast<std::vector<Range>*>(into) = all;
    return 1;
  };
  dl_iterate_phdr(add, &found);
  return found;
}

const char* stack_end() {
  pthread_attr_t attributes;
  void* start = nullptr;
  size_t bytes = 0;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) fail("the host's stack is not known");
  pthread_attr_getstack(&attributes, &start, &bytes);
  pthread_attr_destroy(&attributes);
  return static_cast<const char*>(start) + bytes;
}

}  // namespace

uint32_t Launch::draw(uint64_t below) {  // SplitMix64
  uint64_t x = *order_ += 0x9e3779b97f4a7c15ULL;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return static_cast<uint32_t>((x ^ x >> 31) % below);
}

void Launch::run() {
  frame_ = static_cast<const char*>(__builtin_frame_address(0));
  const uint32_t count = grid_.blocks.x * grid_.blocks.y;
  std::vector<uint32_t> order(count);
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t at = draw(i + 1);
    order[i] = order[at];
    order[at] = i;
  }
  // Whether a warp goes on and on while the others stand still: by chance alone, or nearly always, or in between.
  stay_ = (1u << 2 * draw(4)) - 1;
  const size_t warps = grid_.threads / kLanes;
  Warp* last = nullptr;
  while (!order.empty() || !blocks_.empty()) {
    while (!order.empty() && (blocks_.empty() || warps_.size() + warps <= kWarpsAtOnce)) {
      begin(order.back());
      order.pop_back();
    }
    if (last == nullptr || last->ready == 0 || draw(stay_ + 1) == 0) last = choose();
    Block* block = last->block;
    turn(last);
    if (block->left > 0) continue;
    last = nullptr;
    for (Warp& warp : block->warps) {
      for (Fibre* fibre : warp.fibres) idle.emplace_back(fibre);
    }
    std::erase_if(warps_, [&](const Warp* warp) { return warp->block == block; });
    std::erase_if(blocks_, [&](const auto& other) { return other.get() == block; });
  }
}

void Launch::begin(uint32_t number) {
  auto block = std::make_unique<Block>();
  block->index = {number % grid_.blocks.x, number / grid_.blocks.x};
  block->number = number;
  block->left = grid_.threads;
  block->warps.resize(grid_.threads / kLanes);
  for (uint32_t i = 0; i < block->warps.size(); ++i) {
    Warp& warp = block->warps[i];
    warp.block = block.get();
    warp.number = static_cast<uint32_t>(number * block->warps.size() + i);
    warp.first_thread = i * kLanes;
    for (Fibre*& fibre : warp.fibres) fibre = idle_fibre();
    warps_.push_back(&warp);
  }
  blocks_.push_back(std::move(block));
}

Warp* Launch::choose() {
  const size_t first = draw(warps_.size());
  for (size_t i = 0; i < warps_.size(); ++i) {
    Warp* warp = warps_[(first + i) % warps_.size()];
    if (warp->ready != 0) return warp;
  }
  for (const Warp* warp : warps_) {
    if (warp->arrived != 0) fail("a lane left the others");
  }
  fail("a thread left the others of its block");
}

// All its lanes that may go on do so once, in some order.
void Launch::turn(Warp* warp) {
  const uint32_t ready = warp->ready, first = draw(kLanes), step = draw(kLanes) | 1u;  // odd: it comes to all lanes
  warp_ = warp;
  blockIdx = warp->block->index;
  blockDim = {static_cast<unsigned>(grid_.threads), 1};
  gridDim = grid_.blocks;
  for (uint32_t i = 0; i < kLanes; ++i) {
    lane_ = static_cast<int>((first + i * step) % kLanes);
    if ((ready >> lane_ & 1u) == 0) continue;
    threadIdx = {warp->first_thread + static_cast<unsigned>(lane_), 0};
    resume(warp->fibres[lane_]);
  }
  warp_ = nullptr;
}

// By jumps, not swapcontext, which asks the kernel about signals each time.
void Launch::resume(Fibre* fibre) {
  if (_setjmp(scheduler_) != 0) return;
  if (fibre->begun) _longjmp(fibre->at, 1);
  fibre->begun = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fibre->stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, &Launch::enter, 0);
  setcontext(&context);
}

void Launch::suspend() {
  if (_setjmp(warp_->fibres[lane_]->at) == 0) _longjmp(scheduler_, 1);
}

void Launch::enter() {
  for (;;) {
    current->kernel_();
    current->warp_->ready &= ~(1u << current->lane_);
    --current->warp_->block->left;
    current->suspend();
  }
}

const uint64_t* Launch::exchange(Step step, uint64_t value) {
  Warp& warp = *warp_;
  if (warp.arrived == 0) warp.step = step;
  if (warp.step != step) fail("lanes are at different steps");
  uint64_t* values = warp.values[warp.steps % 2];
  values[lane_] = value;
  warp.ready &= ~(1u << lane_);
  warp.arrived |= 1u << lane_;
  if (warp.arrived == kAllLanes) {
    warp.ready = kAllLanes, warp.arrived = 0;
    ++warp.steps;
    if (step == Step::kSync) ++warp.syncs;
  }
  suspend();
  return values;
}

bool Launch::barrier(bool value) {
  Block& block = *warp_->block;
  bool* any = &block.any[block.barriers % 2];
  *any = *any || value;
  warp_->ready &= ~(1u << lane_);
  if (++block.arrived == static_cast<uint32_t>(grid_.threads)) {
    block.arrived = 0;
    ++block.barriers;
    block.any[block.barriers % 2] = false;
    for (Warp& warp : block.warps) warp.ready = kAllLanes, ++warp.syncs;
  }
  suspend();
  return *any;
}

void Launch::wait() { suspend(); }

void* Launch::shared_memory(const Line& line, size_t bytes) {
  auto& all = warp_->block->shared;
  auto found = all.find(line);
  if (found == all.end()) {
    std::unique_ptr<char[]> memory(new char[bytes]);
    std::memset(memory.get(), 0x7f, bytes);  // whatever was there
    Emulator::Place place({"shared memory", memory.get(), static_cast<int64_t>(bytes), true});
    found = all.emplace(line, Block::Shared{std::move(memory), std::move(place)}).first;
  }
  return found->second.bytes.get();
}

bool Launch::touch_in(Emulator::Place* place, const char* address, int64_t bytes, Access access) {
  const bool writes = access == Access::kWrite || access == Access::kAtomic;
  if (!place->contains(address, bytes) || (writes && !place->memory.writable)) return false;
  if (!writes) place->memory.bytes_read += bytes;
  if (!place->trail) return true;
  const Block& block = *warp_->block;
  const Thread thread{block.number, warp_->number, static_cast<uint32_t>(lane_), warp_->syncs, block.barriers};
  const auto before = place->trail->note(thread, address, bytes, access);
  if (!before) return true;
  const auto offset = address - static_cast<const char*>(place->memory.start);
  fail("a race for " + std::to_string(bytes) + " bytes at " + place->memory.name + " + " + std::to_string(offset) +
       ": " + described(access, thread, 1u << thread.lane) + ", and, before or after it, " +
       described(before->access, before->last, before->lanes));
}

// Whether it is what the host gave the kernel, the library's own, or what the other lanes gave.
bool Launch::is_hosts(const char* address, int64_t bytes) const {
  static const std::vector<Range> statics = segments();
  thread_local const char* const end = stack_end();
  const auto has = [&](const Range& range) { return range.contains(address, bytes); };
  const auto* warp = reinterpret_cast<const char*>(warp_);
  return has({warp, warp + sizeof *warp_}) || has({frame_, end}) || std::any_of(statics.begin(), statics.end(), has);
}

// A plain access may also be to what a thread has for itself, and, if it reads, to what the host gave the kernel.
void Launch::touch(const void* address, int64_t bytes, Access access, bool plain) {
  const auto* first = static_cast<const char*>(address);
  const char* stack = warp_->fibres[lane_]->stack.get();
  if (plain && first >= stack && first < stack + kStackBytes) return;
  for (Emulator::Place& place : *places_) {
    if (touch_in(&place, first, bytes, access)) return;
  }
  for (auto& [line, shared] : warp_->block->shared) {
    if (touch_in(&shared.place, first, bytes, access)) return;
  }
  if (access == Access::kWrite || access == Access::kAtomic) fail("a write outside of the outputs");
  if (!plain || !is_hosts(first, bytes)) fail("a read outside of the inputs");
}

void Launch::fail(const std::string& what) const { warp::fail(std::string(name_) + ": " + what); }

}  // namespace embedding_store::warp
