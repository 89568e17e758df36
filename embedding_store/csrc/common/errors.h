// Errors that Python turns into a class of embedding_store.errors.
#pragma once

#include <stdexcept>
#include <string>

namespace embedding_store {

// A stored file breaks the format. Python reads "class: path: message" (native/library.py); `message` has no ": " of
// its own.
[[noreturn]] inline void raise_corrupt(const char* error_class, const std::string& path, const std::string& message) {
  throw std::runtime_error(std::string(error_class) + ": " + path + ": " + message);
}

}  // namespace embedding_store
