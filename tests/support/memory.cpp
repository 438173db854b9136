// Guard pages by mmap; copies to and from an engine's memory.
#include "support/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace flash3::test {

GuardedBuffer::GuardedBuffer(std::size_t bytes, Against side) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  constexpr std::size_t least_slack = 256;
  const std::size_t inner = (bytes + least_slack + page - 1) / page * page;
  void* memory = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mapped_ = {static_cast<std::byte*>(memory), inner + 2 * page};
  whole_ = mapped_.subspan(page, inner);
  if (mprotect(whole_.data(), inner, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  bytes_ = side == Against::end ? whole_.last(bytes) : whole_.first(bytes);
  std::fill(whole_.begin(), whole_.end(), poison);
}

GuardedBuffer::~GuardedBuffer() { munmap(mapped_.data(), mapped_.size()); }

Stay::~Stay() {
  for (const Guest& guest : guests_) space_->release(guest.copy);
}

TensorView Stay::place(GuardedBuffer& buffer, const TensorView& host_view) {
  if (space_ == nullptr) return host_view;
  auto guest = std::find_if(guests_.begin(), guests_.end(), [&](const Guest& g) { return g.buffer == &buffer; });
  if (guest == guests_.end()) {
    auto* copy = static_cast<std::byte*>(space_->allocate(buffer.whole().size()));
    guest = guests_.insert(guests_.end(), {&buffer, copy});
    space_->copy_in(copy, buffer.whole().data(), buffer.whole().size());
  }
  TensorView view = host_view;
  view.device = space_->device();
  view.data = guest->copy + (static_cast<std::byte*>(host_view.data) - buffer.whole().data());
  return view;
}

void Stay::fetch() {
  for (const Guest& guest : guests_) {
    space_->copy_out(guest.buffer->whole().data(), guest.copy, guest.buffer->whole().size());
  }
}

}  // namespace flash3::test
