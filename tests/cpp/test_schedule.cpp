// The schedule floor: every generator, over small sizes, builds what verify() accepts or throws a
// ValueError.

#include "analysis/verify.h"
#include "base/error.h"
#include "check.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

void every_generator_builds_a_good_schedule_or_throws() {
  int built = 0;
  for (const Generator* generator : generators()) {
    for (int num_ranks = 1; num_ranks <= 4; ++num_ranks) {
      for (int num_microbatches = 1; num_microbatches <= 9; ++num_microbatches) {
        for (int num_stages = 0; num_stages <= 8; ++num_stages) {
          try {
            const Schedule schedule =
                build_schedule(generator->name, {.num_ranks = num_ranks,
                                                 .num_microbatches = num_microbatches,
                                                 .num_stages = num_stages,
                                                 .options = {}});
            require_valid(schedule);
            CHECK(schedule.num_ranks() == num_ranks);
            CHECK(num_stages == 0 || schedule.num_stages() == num_stages);
            ++built;
          } catch (const ValueError& error) {
            CHECK(std::string_view(error.what())
                      .starts_with("num_"));  // a size is at fault, never the schedule
          }
        }
      }
    }
  }
  CHECK(built > 100);
}

void mistakes_throw() {
  CHECK_THROWS(
      build_schedule("nonesuch",
                     {.num_ranks = 1, .num_microbatches = 1, .num_stages = 0, .options = {}}),
      ValueError);
  CHECK_THROWS(
      build_schedule("gpipe",
                     {.num_ranks = 0, .num_microbatches = 1, .num_stages = 0, .options = {}}),
      ValueError);
  CHECK_THROWS(
      build_schedule(
          "gpipe",
          {.num_ranks = 1, .num_microbatches = 1, .num_stages = 0, .options = {{"no_such", 1}}}),
      ValueError);
}

// These are read while a struct is being made; the address sanitizer sees if one of its members is
// destroyed twice (CONTRIBUTING.md tells of GCC 12).
void bad_options_of_zb_auto_throw_and_destroy_nothing_twice() {
  for (const char* option :
       {"forward", "input", "weight", "latency", "memory_limit", "weight_percent"}) {
    CHECK_THROWS(
        build_schedule(
            "zb_auto",
            {.num_ranks = 4, .num_microbatches = 4, .num_stages = 0, .options = {{option, -1}}}),
        ValueError);
  }
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::every_generator_builds_a_good_schedule_or_throws();
  pipert::mistakes_throw();
  pipert::bad_options_of_zb_auto_throw_and_destroy_nothing_twice();
}
