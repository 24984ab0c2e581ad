// check: the assertions of these tests. A failed one tells where and ends the program.
#pragma once

#include <cstdio>
#include <cstdlib>

#undef CHECK  // torch has one, too: include this behind its headers
#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

#define CHECK_THROWS(expression, Exception)                                                 \
  do {                                                                                      \
    bool thrown = false;                                                                    \
    try {                                                                                   \
      static_cast<void>(expression);                                                        \
    } catch (const Exception&) {                                                            \
      thrown = true;                                                                        \
    }                                                                                       \
    if (!thrown) {                                                                          \
      std::fprintf(stderr, "%s:%d: %s did not throw %s\n", __FILE__, __LINE__, #expression, \
                   #Exception);                                                             \
      std::abort();                                                                         \
    }                                                                                       \
  } while (false)
